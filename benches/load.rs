//! What `compare.py` drives the contenders with: the load, and the model behind them. Nothing but the standard library,
//! so that the script can build it with `rustc` alone; blocking sockets, one thread for each connection.
//!
//!     load model BLUE GREEN                    answers on these addresses, until standard input ends
//!     load saturate TARGET SECONDS             closed loop: after an answer at once the next request
//!     load rate TARGET SECONDS REQUESTS/S      open loop: requests are due at a fixed rate, however long answers take
//!     load upload TARGET MIB                   one large body on each connection
//!
//! TARGET is `ADDRESS PATH KEY BODY CONNECTIONS`. The result is one line of JSON, times in milliseconds.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;
use std::time::{Duration, Instant};

mod wire;

use wire::HttpClient;

/// Where to, and what.
struct Target {
    address: SocketAddr,
    path: String,
    /// Sent as bearer token.
    key: String,
    /// The body of every small request.
    body: String,
    connections: u32,
}

/// What one connection, or all of them, have seen.
#[derive(Default)]
struct LoadResult {
    /// Of the requests answered with 200.
    latencies: Vec<Duration>,
    /// Answered otherwise, or not at all.
    failed: usize,
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seen = match &arguments[..] {
        ["model", blue, green] => return model(parse(blue)?, parse(green)?),
        ["saturate", target @ .., seconds] => saturate(&Target::parse(target)?, parse(seconds)?),
        ["rate", target @ .., seconds, rate] => at_rate(&Target::parse(target)?, parse(seconds)?, parse(rate)?),
        ["upload", target @ .., megabytes] => upload(&Target::parse(target)?, parse(megabytes)?),
        _ => return Err(io::Error::other("usage: see the beginning of load.rs")),
    };
    print(seen);
    Ok(())
}

fn parse<T: FromStr>(argument: &str) -> io::Result<T> {
    argument.parse().map_err(|_| io::Error::other(format!("`{argument}` is not what is expected there")))
}

fn saturate(target: &Target, seconds: f64) -> LoadResult {
    let request = target.small_request();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    target.on_each_connection(|_, call| {
        while Instant::now() < end {
            call(Instant::now(), &mut |client| client.send(&request));
        }
    })
}

fn at_rate(target: &Target, seconds: f64, rate: f64) -> LoadResult {
    let request = target.small_request();
    let start = Instant::now();
    target.on_each_connection(|number, call| {
        let dues = (0..).map(|turn| (f64::from(number) + f64::from(turn) * f64::from(target.connections)) / rate);
        for due in dues.take_while(|due| *due < seconds) {
            let due = start + Duration::from_secs_f64(due);
            // Time runs from when the request was due if the answer before it was late, else from when this thread was
            // woken: the load generator's own lateness is not the contender's.
            let begin = match due.checked_duration_since(Instant::now()) {
                Some(early) => {
                    std::thread::sleep(early);
                    Instant::now()
                }
                None => due,
            };
            call(begin, &mut |client| client.send(&request));
        }
    })
}

fn upload(target: &Target, megabytes: usize) -> LoadResult {
    let block = vec![b'x'; 1 << 20];
    let head = target.head(megabytes << 20);
    target.on_each_connection(|_, call| {
        call(Instant::now(), &mut |client| {
            client.send(head.as_bytes())?;
            (0..megabytes).try_for_each(|_| client.send(&block))
        });
    })
}

fn model(blue: SocketAddr, green: SocketAddr) -> io::Result<()> {
    for (address, name) in [(blue, "blue"), (green, "green")] {
        let body = format!(r#"{{"deployment": "{name}", "result": [11055.977245525679, 4503.079536107787]}}"#);
        wire::serve_model(TcpListener::bind(address)?, vec![wire::answer(&body)])?;
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

impl Target {
    fn parse(arguments: &[&str]) -> io::Result<Self> {
        let [address, path, key, body, connections] = arguments else {
            return Err(io::Error::other("a target is ADDRESS PATH KEY BODY CONNECTIONS"));
        };
        let [path, key, body] = [path, key, body].map(|text| (*text).to_owned());
        Ok(Self { address: parse(address)?, path, key, body, connections: parse(connections)? })
    }

    fn head(&self, length: usize) -> String {
        format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n",
            self.path, self.address, self.key
        )
    }

    fn small_request(&self) -> Vec<u8> {
        (self.head(self.body.len()) + &self.body).into_bytes()
    }

    /// Runs `drive` with the number of each connection, on a thread of its own, and a function that makes a request: it
    /// is told when the request begins and how it is sent.
    fn on_each_connection(&self, drive: impl Fn(u32, &mut dyn FnMut(Instant, &mut Sending<'_>)) + Sync) -> LoadResult {
        std::thread::scope(|scope| {
            let drive = &drive;
            let connections = (0..self.connections).map(|number| {
                scope.spawn(move || {
                    let (mut seen, mut client) = (LoadResult::default(), None);
                    drive(number, &mut |begin, send| match self.call(&mut client, send) {
                        Ok(200) => seen.latencies.push(begin.elapsed()),
                        _ => seen.failed += 1,
                    });
                    seen
                })
            });
            // All are started before the first is waited for.
            let connections: Vec<_> = connections.collect();
            let mut all = LoadResult::default();
            for seen in connections.into_iter().filter_map(|connection| connection.join().ok()) {
                all.latencies.extend(seen.latencies);
                all.failed += seen.failed;
            }
            all
        })
    }

    /// One request, over the connection that is there or a new one. A connection that failed is given up.
    fn call(&self, client: &mut Option<HttpClient>, send: &mut Sending<'_>) -> io::Result<u16> {
        let mut now = match client.take() {
            Some(client) => client,
            None => HttpClient::connect(self.address)?,
        };
        send(&mut now)?;
        let status = now.receive()?;
        *client = Some(now);
        Ok(status)
    }
}

type Sending<'s> = dyn FnMut(&mut HttpClient) -> io::Result<()> + 's;

fn print(mut seen: LoadResult) {
    seen.latencies.sort_unstable();
    let answered = seen.latencies.len();
    let at = |percent: usize| {
        seen.latencies.get(answered * percent / 100).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let (p50, p99) = (at(50), at(99));
    println!(r#"{{"ok": {answered}, "failed": {}, "p50": {p50}, "p99": {p99}}}"#, seen.failed);
}
