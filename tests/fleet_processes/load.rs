//! Clients of each router in the background, which record the outcome of each request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::message::Message;
use crate::{POLL_INTERVAL, WAIT_TIMEOUT, wait_until};

/// Rest of a client whose request has failed.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// The connection was refused, because no process listens there.
pub const CONNECTION_REFUSED: &str = "refused";

/// Clients that ask until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    pub tally: Arc<Tally>,
    clients: JoinSet<()>,
}

/// The outcomes of requests.
pub struct Tally {
    /// Answered requests, by router.
    answered: Vec<AtomicU64>,
    /// The duration of the slowest request.
    slowest: Mutex<Duration>,
    /// Of which router, when, and in what way not answered.
    failures: Mutex<Vec<(usize, Instant, String)>>,
}

impl Load {
    /// So many clients of each router; each keeps its connection.
    pub fn start_on_each(routers: &[SocketAddr], clients: usize) -> Self {
        let mut load = Self::without_clients(routers.len());
        for (router, address) in routers.iter().enumerate() {
            for _ in 0..clients {
                let (stop, tally, address) = (load.stop.clone(), load.tally.clone(), *address);
                load.clients.spawn(async move {
                    let mut connection = None;
                    while !stop.load(Ordering::Relaxed) {
                        let asked = Instant::now();
                        let outcome = ask(&mut connection, address, router).await;
                        if !tally.record_outcome(router, asked, outcome) {
                            tokio::time::sleep(RETRY_DELAY).await;
                        }
                    }
                });
            }
        }
        load
    }

    /// So many clients that ask one router after the other, of those that a load balancer holds to be ready, on a new
    /// connection for each request. Where nobody listens they ask the next.
    pub fn start_on_ready(routers: &[SocketAddr], ready: &Arc<Vec<AtomicBool>>, clients: usize) -> Self {
        let mut load = Self::without_clients(routers.len());
        for client in 0..clients {
            let (stop, tally, ready, routers) =
                (load.stop.clone(), load.tally.clone(), ready.clone(), routers.to_vec());
            load.clients.spawn(async move {
                let mut router = client;
                while !stop.load(Ordering::Relaxed) {
                    router = (router + 1) % routers.len();
                    if !ready[router].load(Ordering::Relaxed) {
                        tokio::time::sleep(POLL_INTERVAL / 10).await;
                        continue;
                    }
                    let asked = Instant::now();
                    let outcome = ask(&mut None, routers[router], router).await;
                    if outcome.as_ref().is_err_and(|what| what == CONNECTION_REFUSED) {
                        continue;
                    }
                    tally.record_outcome(router, asked, outcome);
                }
            });
        }
        load
    }

    fn without_clients(routers: usize) -> Self {
        let tally = Tally {
            answered: (0..routers).map(|_| AtomicU64::new(0)).collect(),
            slowest: Mutex::default(),
            failures: Mutex::default(),
        };
        Self { stop: Arc::default(), tally: Arc::new(tally), clients: JoinSet::new() }
    }

    /// Waits for so many more answers of each of these routers.
    pub async fn wait_for_answers(&self, answers: u64, routers: &[usize]) -> Duration {
        let before = self.tally.answered_by_router();
        wait_until("answers", || {
            let now = self.tally.answered_by_router();
            std::future::ready(routers.iter().all(|router| now[*router] >= before[*router] + answers))
        })
        .await
    }

    /// Lets each client finish what it is asking.
    pub async fn stop(mut self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        self.tally.clone()
    }
}

impl Tally {
    /// Returns whether it was answered.
    fn record_outcome(&self, router: usize, asked: Instant, outcome: Result<(), String>) -> bool {
        let is_ok = outcome.is_ok();
        match outcome {
            Ok(()) => {
                self.answered[router].fetch_add(1, Ordering::Relaxed);
                let mut slowest = self.slowest.lock().unwrap();
                *slowest = slowest.max(asked.elapsed());
            }
            Err(what) => self.failures.lock().unwrap().push((router, asked, what)),
        }
        is_ok
    }

    /// Answers of each router.
    pub fn answered_by_router(&self) -> Vec<u64> {
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    pub fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap()
    }

    /// How requests to this router failed.
    pub fn failures(&self, router: usize) -> Vec<String> {
        let failures = self.failures.lock().unwrap();
        failures.iter().filter(|(of, ..)| *of == router).map(|(_, _, what)| what.clone()).collect()
    }

    /// The same, of requests that were begun after this.
    pub fn failures_since(&self, router: usize, since: Instant) -> Vec<String> {
        let failures = self.failures.lock().unwrap();
        let found = failures.iter().filter(|(of, asked, _)| *of == router && *asked > since);
        found.map(|(_, _, what)| what.clone()).collect()
    }

    /// Checks that no request to another router than this has failed.
    pub fn assert_none_failed_except_on(&self, router: Option<usize>) {
        let failures = self.failures.lock().unwrap();
        let unexplained: Vec<_> = failures.iter().filter(|(of, ..)| Some(*of) != router).collect();
        assert!(unexplained.is_empty(), "beside {:?} answers: {unexplained:#?}", self.answered_by_router());
    }
}

/// What a router says to a request that it refuses: when to ask again. `None`: it was answered.
pub async fn retry_after_of_refusal(address: SocketAddr, router: usize) -> Option<Duration> {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.get_mut().write_all(request(router).as_bytes()).await.unwrap();
    let answer = Message::read(&mut stream).await.unwrap();
    let retry_after = answer.field("retry-after")?.parse().unwrap();
    (answer.status() != 200).then_some(Duration::from_secs(retry_after))
}

fn request(router: usize) -> String {
    let head = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\ncontent-length: 1\r\n\r\n";
    format!("{head}{router}")
}

/// Asks over the kept connection, or a new one.
async fn ask(connection: &mut Option<BufReader<TcpStream>>, address: SocketAddr, router: usize) -> Result<(), String> {
    let asked = tokio::time::timeout(WAIT_TIMEOUT, async {
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(address).await.map_err(|_| CONNECTION_REFUSED.to_owned())?;
                stream.set_nodelay(true).unwrap();
                BufReader::new(stream)
            }
        };
        // The other side may have answered before it stopped listening.
        let _ = stream.get_mut().write_all(request(router).as_bytes()).await;
        let answer = Message::read(&mut stream).await.map_err(|ended| format!("cut: {ended:?}"))?;
        if answer.field("connection") != Some("close") {
            *connection = Some(stream);
        }
        match answer.status() {
            200 => Ok(()),
            status => Err(format!("{status} {}", String::from_utf8_lossy(&answer.body))),
        }
    });
    asked.await.unwrap_or_else(|_| Err("no answer".to_owned()))
}
