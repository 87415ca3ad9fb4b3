//! A request's whole way: a client's connection, the router as `serve` runs it, a model; in one process, over loopback
//! sockets, one request at a time. Client and model are raw bytes (`wire.rs`), so that the router dominates.
//!
//! Every thread runs on the same core. So the time of a request is what client, router and model need together, without
//! the wake-ups across cores that make such measurements jump; `router's CPU` is the worker's share of it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use inference_router::app::{App, AppEnvironment, AppRunError, EndpointSource};
use inference_router::config::{LogSettings, RouterSettings, WorkerCount};
use inference_router::control::documents;
use inference_router::control::index::DesiredEndpoint;
use inference_router::model::router_settings::{ShutdownSettings, TokenSettings};
use inference_router::policy::access::{Access, KeyDigest};
use jsonwebtoken::Header;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;
use tokio::sync::oneshot;

mod h2c;
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "made for the tests, which use the rest")]
#[path = "../tests/tokens/signers.rs"]
mod signers;
mod wire;

use wire::{HttpClient, serve_model};

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "bench-key-0123456789abcdef0123456789abcdef";

/// A small answer, 100 bytes.
fn small() -> Vec<&'static [u8]> {
    vec![wire::answer(&format!("{:<100}", r#"{"result": [11055.977245525679, 4503.079536107787]}"#))]
}

/// A head, then 64 chunks, each written for itself as a model does that streams.
fn stream() -> Vec<&'static [u8]> {
    let head: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk: &[u8] = b"1e\r\ndata: {\"token\": \"something\"}\n\n\r\n";
    [vec![head], vec![chunk; 64], vec![b"0\r\n\r\n"]].concat()
}

/// A router with the endpoints `small`, `tokens` and `stream`; ends when dropped.
struct Router {
    address: SocketAddr,
    /// Opens `tokens`, which is otherwise as `small`.
    token: String,
    stop: Option<oneshot::Sender<()>>,
    /// What tokens are signed with.
    _key: tempfile::NamedTempFile,
    thread: Option<JoinHandle<Result<(), AppRunError>>>,
}

impl Router {
    fn start() -> Self {
        let mut tokens = endpoint("tokens", small());
        tokens.access = Access::RouterTokens(Vec::new());
        let endpoints = [endpoint("small", small()), tokens, endpoint("stream", stream())];
        let signer = signers::Signer::ed25519("k");
        let claims =
            json!({"iss": "bench", "aud": "tokens", "sub": "somebody", "exp": signers::unix_seconds() + 36_000});
        let key = tempfile::NamedTempFile::new().expect("a file can be made");
        std::fs::write(key.path(), &signer.pem).expect("it can be written");
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = RouterSettings {
            scoring: any_port,
            admin: any_port,
            workers: WorkerCount::Count(std::num::NonZeroUsize::MIN),
            shutdown: ShutdownSettings { unready_delay: Duration::ZERO, drain_timeout: Duration::from_secs(5) },
            log: LogSettings { access: false, ..RouterSettings::default().log },
            tokens: TokenSettings {
                issuer: "bench".to_owned(),
                signing_key_file: Some(key.path().to_owned()),
                ..TokenSettings::default()
            },
            ..RouterSettings::default()
        };
        let surroundings = AppEnvironment {
            endpoint_source: EndpointSource::Fixed(endpoints.into()),
            environment: Arc::new(|_| None),
            executable: PathBuf::new(),
            access_log: Box::new(std::io::sink()),
        };
        let app = App::build(settings, surroundings).expect("the router can be built");
        let address = app.scoring_address().expect("the router listens");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            app.run(async {
                let _ = stopped.await;
            })
        });
        Self {
            address,
            token: signer.sign_as(&Header::new(signer.algorithm), &claims),
            stop: Some(stop),
            thread: Some(thread),
            _key: key,
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))), "the router did not end in order: {ended:?}");
    }
}

/// An endpoint with two deployments whose models give this answer.
fn endpoint(name: &str, answer: Vec<&'static [u8]>) -> DesiredEndpoint {
    let [blue, green] = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        serve_model(listener, answer.clone()).expect("a thread can be started");
        address
    });
    let document = format!(
        "apiVersion: inference-router.dev/v1alpha1
kind: OnlineEndpoint
metadata: {{name: {name}}}
spec:
  keys: {{primary: {{value: {KEY}}}}}
  traffic: {{blue: 90, green: 10}}
  deployments:
  - {{name: blue, instances: [\"{blue}\"], requestSettings: {{maxConcurrentRequestsPerInstance: 512}}}}
  - {{name: green, instances: [\"{green}\"], requestSettings: {{maxConcurrentRequestsPerInstance: 512}}}}
"
    );
    let parsed = documents::parse(&document, "the benchmark's document");
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    let spec = parsed.endpoints.into_iter().next().expect("there is one document");
    DesiredEndpoint {
        spec: Arc::new(spec),
        access: Access::Keys(vec![KeyDigest::digest_key(KEY)]),
        connectors: Vec::new(),
    }
}

/// A request as bytes: with further header lines.
fn request(endpoint: &str, key: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/v1/endpoint/{endpoint}/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// JSON of `length` bytes.
fn body(length: usize) -> String {
    r#"{"data": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]}"#.to_owned() + &" ".repeat(length - 43)
}

fn pipeline(c: &mut Criterion) {
    pin_to_one_core();
    let router = Router::start();
    let green = "azureml-model-deployment: green\r\n";
    let wrong = "wrong-key-0123456789abcdef0123456789abcdef";
    let (small, large) = (body(512), body(1 << 20));
    for (name, status, request) in [
        ("small, split 90/10", 200, request("small", KEY, "", &small)),
        ("small, known token", 200, request("tokens", &router.token, "", &small)),
        ("small, deployment by header", 200, request("small", KEY, green, &small)),
        ("small, wrong key", 401, request("small", wrong, "", &small)),
        ("upload of 1 MiB", 200, request("small", KEY, "", &large)),
        ("answer in 64 chunks", 200, request("stream", KEY, "", &small)),
    ] {
        let mut client = HttpClient::connect(router.address).expect("the router accepts");
        measure(c, name, request.len(), || {
            client.send(&request).expect("the router reads");
            assert_eq!(client.receive().expect("the router answers"), status);
        });
    }
    let path = "/api/v1/endpoint/small/score";
    let mut client = h2c::H2cClient::connect(router.address).expect("the router accepts");
    measure(c, "small over HTTP/2", small.len(), || {
        let status = client.post(path, KEY, small.as_bytes()).expect("the router answers");
        assert_eq!(status, 200);
    });
}

/// The same request over and over: by the clock, and by what the router's worker has used.
fn measure(c: &mut Criterion, name: &str, bytes: usize, mut call: impl FnMut()) {
    // A small request is one among many, a large one so many bytes.
    let throughput =
        if bytes < 64 * 1024 { Throughput::Elements(1) } else { Throughput::Bytes(bytes.try_into().unwrap_or(0)) };
    // The worker is there, and what it remembers.
    call();
    let mut group = c.benchmark_group("pipeline");
    group.throughput(throughput);
    group.bench_function(name, |b| b.iter(&mut call));
    group.finish();
    let worker = worker_schedstat();
    let mut group = c.benchmark_group("pipeline, router's CPU");
    group.bench_function(name, |b| {
        b.iter_custom(|times| {
            let before = cpu_time(&worker);
            (0..times).for_each(|_| call());
            cpu_time(&worker) - before
        });
    });
}

/// Threads started from here on stay too.
fn pin_to_one_core() {
    let allowed = sched_getaffinity(None).expect("the kernel knows");
    let last = (0..CpuSet::MAX_CPU).rev().find(|core| allowed.is_set(*core)).expect("one core at least");
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).expect("it was allowed");
}

/// Where the kernel tells what the router's only worker has used.
fn worker_schedstat() -> PathBuf {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux has /proc");
    let mut threads = threads.filter_map(|thread| Some(thread.ok()?.path()));
    let is_worker = |thread: &PathBuf| std::fs::read(thread.join("comm")).is_ok_and(|name| name == b"worker-0\n");
    threads.find(is_worker).expect("the router has a worker").join("schedstat")
}

fn cpu_time(schedstat: &PathBuf) -> Duration {
    let text = std::fs::read_to_string(schedstat).expect("the worker lives");
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok()).expect("its first number is a time");
    Duration::from_nanos(nanoseconds)
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
