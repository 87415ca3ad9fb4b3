//! The real program under attack: the resources it uses, and how long a good client waits beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use http::Response;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::attackers::{Attack, Credential, MAX_PIECES};
use crate::harness::{KEY, Model, endpoint, full_body};
use crate::signers::{Signer, jwk_set, unix_seconds};

/// Between two requests of the good client.
const GOOD_CLIENT_PAUSE: Duration = Duration::from_millis(5);
/// Whoever issues the tokens of the endpoint `tokens`, and what is asked for its keys.
pub const TOKEN_ISSUER: &str = "http://issuer.example";

/// The router with one worker, its model on a thread of its own. Killed when dropped.
pub struct AttackedProgram {
    child: Child,
    scoring: SocketAddr,
    /// Opens the endpoint `tokens`.
    token: String,
    _folder: tempfile::TempDir,
    _model: mpsc::Sender<()>,
}

impl AttackedProgram {
    /// Starts it, on this core alone if one is given.
    pub fn start(core: Option<usize>) -> Self {
        let signer = Signer::rsa("k");
        let (model, held) = model(jwk_set(&[signer.public()]));
        let folder = tempfile::tempdir().unwrap();
        let settings = "scoring: {address: \"127.0.0.1:0\"}\nadmin: {address: \"127.0.0.1:0\"}\nworkers: 1\n\
                        endpoints: {files: [\"endpoint.yaml\", \"tokens.yaml\"]}\nlog: {format: text, access: false}\n";
        std::fs::write(folder.path().join("router.yaml"), settings).unwrap();
        let document = endpoint(&[model], "{maxConcurrentRequestsPerInstance: 1000}");
        std::fs::write(folder.path().join("endpoint.yaml"), document).unwrap();
        let document = format!(
            "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: tokens}}\nspec:\n  authMode: \
             aad_token\n  jwt: {{issuers: [{{issuer: \"{TOKEN_ISSUER}\", jwksUri: \"http://{model}/keys\", audiences: [me], \
             allowHttp: true}}]}}\n  traffic: {{blue: 100}}\n  deployments: [{{name: blue, instances: [\"{model}\"], \
             requestSettings: {{maxConcurrentRequestsPerInstance: 1000}}}}]\n"
        );
        std::fs::write(folder.path().join("tokens.yaml"), document).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-router"));
        command.args(["serve", "--config"]).arg(folder.path().join("router.yaml"));
        let before = sched_getaffinity(None).unwrap();
        if let Some(core) = core {
            // What a thread starts runs where it runs itself.
            sched_setaffinity(None, &cpu_set([core])).unwrap();
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        sched_setaffinity(None, &before).unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = log.find(|line| line.contains("scoring listener")).expect("the router says where it listens");
        let scoring = line.split_once("address=").unwrap().1.trim().parse().unwrap();
        // Nobody reads on otherwise, and the router would wait.
        std::thread::spawn(move || log.for_each(drop));
        let token = signer.sign(
            &serde_json::json!({"iss": TOKEN_ISSUER, "aud": "me", "sub": "somebody", "exp": unix_seconds() + 3600}),
        );
        Self { child, scoring, token, _folder: folder, _model: held }
    }

    /// What the good client asks, again and again.
    fn request(&self, credential: Credential) -> String {
        let (endpoint, secret) = match credential {
            Credential::Key => ("my-endpoint", KEY),
            Credential::Token => ("tokens", self.token.as_str()),
        };
        format!(
            "POST /api/v1/endpoint/{endpoint}/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {secret}\r\n\
             content-length: 2\r\n\r\n{{}}"
        )
    }

    /// Processor time used so far, by all threads, in the system and out of it.
    fn cpu(&self) -> Duration {
        // The same as utime and stime of `/proc/PID/stat`, but in nanoseconds instead of hundredths of a second.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let times = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
        times.map(|times| Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())).sum()
    }
}

impl Drop for AttackedProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// These cores.
pub fn cpu_set(of: impl IntoIterator<Item = usize>) -> CpuSet {
    let mut set = CpuSet::new();
    of.into_iter().for_each(|core| set.set(core));
    set
}

/// A model that answers at once, and has the `keys` of an issuer, while the sender lives.
fn model(keys: String) -> (SocketAddr, mpsc::Sender<()>) {
    let (held, ended) = mpsc::channel::<()>();
    let (address_sender, address_receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let model = runtime.block_on(Model::http(move |request| {
            let answer = if request.uri().path() == "/keys" { keys.clone() } else { "ok".to_owned() };
            async move { Response::new(full_body(answer)) }
        }));
        address_sender.send(model.address).unwrap();
        runtime.block_on(async {
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    });
    (address_receiver.recv().unwrap(), held)
}

/// What an attack cost.
#[derive(Default)]
pub struct Cost {
    pub connections: u64,
    /// Frames, requests or heads, over all connections.
    pub pieces: u64,
    /// Processor time of the router, the good client's requests included.
    pub cpu: Duration,
    /// The good client's waits, ascending.
    waits: Vec<Duration>,
}

impl Cost {
    /// Adds what more of the same attack cost.
    pub fn add(&mut self, more: Self) {
        self.connections += more.connections;
        self.pieces += more.pieces;
        self.cpu += more.cpu;
        self.waits.extend(more.waits);
        self.waits.sort_unstable();
    }

    /// How many requests the good client made.
    pub fn good_request_count(&self) -> u32 {
        u32::try_from(self.waits.len()).unwrap()
    }

    /// How long the good client waited at most, in so many of a hundred cases.
    pub fn percentile(&self, percent: usize) -> Duration {
        self.waits[(self.waits.len() * percent / 100).min(self.waits.len() - 1)]
    }
}

/// Attacks for `time`, or does not, with a good client beside, which has this credential; each has a thread of its own.
///
/// # Panics
/// When the good client is not answered with 200, or a connection is not cut off that should be.
pub fn measure(program: &AttackedProgram, attack: Option<&Attack>, good_has: Credential, time: Duration) -> Cost {
    let (scoring, over) = (program.scoring, AtomicBool::new(false));
    let before = program.cpu();
    std::thread::scope(|scope| {
        let good = scope.spawn(|| run_good_client(scoring, &program.request(good_has), &over));
        let taken = match attack {
            Some(attack) => run_attack(attack, scoring, time),
            None => {
                std::thread::sleep(time);
                Vec::new()
            }
        };
        over.store(true, Ordering::Relaxed);
        let mut waits = good.join().unwrap();
        waits.sort_unstable();
        let cut_off = taken.iter().all(|pieces| *pieces < MAX_PIECES);
        assert!(cut_off || attack.is_none_or(|attack| !attack.is_cut_off), "{taken:?} pieces and never cut off");
        Cost { connections: taken.len() as u64, pieces: taken.iter().sum(), cpu: program.cpu() - before, waits }
    })
}

/// One connection of `attack` after the other, as many a second as it says. Returns how many pieces each got in.
fn run_attack(attack: &Attack, scoring: SocketAddr, time: Duration) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let since = Instant::now();
        let mut turns = tokio::time::interval(Duration::from_secs(1) / attack.connections_per_second);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::new();
        while taken.is_empty() || since.elapsed() < time {
            turns.tick().await;
            taken.push((attack.run)(scoring).await);
        }
        taken
    })
}

/// A client that asks again and again over one connection, until it is `over`. Returns how long it waited each time.
fn run_good_client(scoring: SocketAddr, request: &str, over: &AtomicBool) -> Vec<Duration> {
    let mut stream = TcpStream::connect(scoring).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(crate::harness::WAIT_TIMEOUT)).unwrap();
    let (mut waits, mut answer) = (Vec::new(), [0; 4096]);
    while waits.is_empty() || !over.load(Ordering::Relaxed) {
        let since = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut read = 0;
        while !answer[..read].ends_with(b"\r\n\r\nok") {
            let more = stream.read(&mut answer[read..]).unwrap();
            assert!(more > 0, "the good client was cut off: {}", String::from_utf8_lossy(&answer[..read]));
            read += more;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..read]));
        waits.push(since.elapsed());
        std::thread::sleep(GOOD_CLIENT_PAUSE);
    }
    waits
}
