//! The harness of the router's tests: a router in this process, scripted models, and clients.
#![allow(dead_code, reason = "each test uses its part")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use inference_router::app::{App, AppEnvironment, AppRunError, EndpointSource};
use inference_router::config::{LogFormat, LogLevel, LogSettings, RouterSettings, WorkerCount};
use inference_router::model::router_settings::ShutdownSettings;
use inference_router::state::lifecycle::Lifecycle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Longest wait for anything in a test: only a broken router takes it.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two looks at a condition that is waited for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The key of endpoints made by [`endpoint`].
pub const KEY: &str = "test-key-0123456789abcdef";

/// `future`, or a panic that says what did not come.
pub async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_TIMEOUT, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// A router on a thread of its own, with its endpoint files in a temporary folder.
pub struct Router {
    pub scoring: SocketAddr,
    /// Where clients connect with TLS, if they can.
    pub scoring_tls: Option<SocketAddr>,
    pub admin: SocketAddr,
    pub folder: tempfile::TempDir,
    pub lifecycle: Lifecycle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), AppRunError>>>,
}

impl Router {
    /// Serves `documents`, each in a file of its own (`0.yaml`, `1.yaml`, …), with one worker and default limits.
    pub fn start(documents: &[&str]) -> Self {
        Self::start_with(documents, |_| ())
    }

    /// The same with other settings.
    pub fn start_with(documents: &[&str], change: impl FnOnce(&mut RouterSettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (number, document) in documents.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{number}.yaml")), document).unwrap();
        }
        Self::start_in(folder, Box::new(std::io::stderr()), change)
    }

    /// The same with the endpoint files that are in `folder`, and the access log, if it is on, to `access_log`.
    pub fn start_in(
        folder: tempfile::TempDir,
        access_log: Box<dyn std::io::Write + Send>,
        change: impl FnOnce(&mut RouterSettings),
    ) -> Self {
        let mut settings = RouterSettings {
            scoring: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            workers: WorkerCount::Count(1.try_into().unwrap()),
            shutdown: ShutdownSettings { unready_delay: Duration::ZERO, drain_timeout: Duration::from_secs(10) },
            log: LogSettings { level: LogLevel::Info, format: LogFormat::Text, access: false },
            ..RouterSettings::default()
        };
        change(&mut settings);
        let surroundings = AppEnvironment {
            endpoint_source: EndpointSource::Files(vec![folder.path().to_owned()]),
            environment: Arc::new(|_| None),
            executable: env!("CARGO_BIN_EXE_inference-router").into(),
            access_log,
        };
        let app = App::build(settings, surroundings).unwrap_or_else(|error| panic!("{error:?}"));
        let (scoring, admin) = (app.scoring_address().unwrap(), app.admin_address().unwrap());
        let scoring_tls = app.scoring_tls_address().ok();
        let lifecycle = app.lifecycle();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            app.run(async {
                let _ = stopped.await;
            })
        });
        Self { scoring, scoring_tls, admin, folder, lifecycle, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells the router to stop; [`Router::join`] waits for it.
    pub fn begin_shutdown(&mut self) {
        self.stop = None;
    }

    /// Stops the router, and waits until it has ended.
    pub fn join(mut self) -> Result<(), AppRunError> {
        self.stop = None;
        self.thread.take().unwrap().join().unwrap()
    }

    /// Path of an endpoint file, to change it.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// `GET` on the admin listener.
    pub async fn admin(&self, path: &str) -> Answer {
        call(self.admin, Request::get(path).body(Full::default()).unwrap()).await
    }

    /// `/api/endpoints`, parsed.
    pub async fn endpoints(&self) -> serde_json::Value {
        self.admin("/api/endpoints").await.json()
    }

    /// The value of a metric, as in `/metrics`: name and labels as printed there. `None`: no such line.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let text = self.admin("/metrics").await.text();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until `condition` holds for what `/api/endpoints` says.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&serde_json::Value) -> bool) {
        with_timeout(what, async {
            while !condition(&self.endpoints().await) {
                // Asking without a pause would keep a core from what is waited for.
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        })
        .await;
    }

    /// Scores `body` on the endpoint `my-endpoint` with the test key.
    pub async fn score(&self, body: &'static str) -> Answer {
        call(self.scoring, score(body)).await
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            let _ = thread.join();
        }
    }
}

/// A document of the endpoint `my-endpoint` with [`KEY`], one deployment `blue` with all traffic at `addresses`, and
/// `requestSettings` given as YAML flow (`{maxQueueWaitMs: 10}`).
pub fn endpoint(addresses: &[SocketAddr], request_settings: &str) -> String {
    let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    document(
        "traffic: {blue: 100}",
        &format!("- {{name: blue, instances: [{}], requestSettings: {request_settings}}}", addresses.join(", ")),
    )
}

/// A document of the endpoint `my-endpoint` with [`KEY`]: `rules` and `deployments` as YAML lines at their level.
pub fn document(rules: &str, deployments: &str) -> String {
    format!(
        "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: my-endpoint}}\nspec:\n  \
         keys: {{primary: {{value: {KEY}}}}}\n  {rules}\n  deployments:\n  {}\n",
        deployments.replace('\n', "\n  ")
    )
}

/// A scoring request of `my-endpoint` with the test key.
pub fn score(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/api/v1/endpoint/my-endpoint/score")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A complete response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
    /// The `code` of a problem document.
    pub fn code(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        self.json()["code"].as_str().unwrap().to_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }
}

/// The head of a request with a body of so many bytes, and the body.
pub fn raw_scoring_request(length: usize) -> Vec<u8> {
    let head = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer ";
    let mut request = format!("{head}{KEY}\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    request.resize(request.len() + length, b'x');
    request
}

/// Sends a request over a connection of its own (HTTP/1.1, origin form, `host` added) and reads the whole response.
pub async fn call(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    try_call(address, request).await.unwrap()
}

/// The same, for responses that may break off.
pub async fn try_call(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
    with_timeout("an answer", async {
        let response = send(address, request.map(|body| body.boxed())).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    })
    .await
}

/// Sends a request over a connection of its own; the response's body is still to come. Dropping the response, or this
/// future, closes the connection.
pub async fn send(
    address: SocketAddr,
    mut request: Request<BoxBody<Bytes, std::convert::Infallible>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", address.to_string().parse().unwrap());
    }
    sender.send_request(request).await
}

/// Sends bytes as they are and reads until the router closes.
pub async fn send_raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    with_timeout("the end of a connection", async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end like any other.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// A model server that answers by `handle`; lives as long as the value.
pub struct Model {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Model {
    /// Speaks HTTP/1.1.
    pub async fn http<F, R>(handle: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<BoxBody<Bytes, std::io::Error>>> + Send + 'static,
    {
        Self::from_connections(move |stream| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| {
                    let answer = handle(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .half_close(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await
    }

    /// Does whatever it likes with each connection.
    pub async fn from_connections<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Self { address, task }
    }

    /// Answers 200 with `name` as its body.
    pub async fn named(name: &'static str) -> Self {
        Self::http(move |_| async move { Response::new(full_body(name)) }).await
    }

    /// Hands each request to the test, which decides when and how it is answered.
    pub async fn manual() -> (Self, mpsc::UnboundedReceiver<PendingRequest>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let model = Self::http(move |request| {
            let sender = sender.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let _ = sender.send(PendingRequest { request, answer });
                answered.await.unwrap_or_else(|_| Response::builder().status(500).body(full_body("dropped")).unwrap())
            }
        })
        .await;
        (model, receiver)
    }
}

/// A request that reached a [`Model::manual`].
pub struct PendingRequest {
    pub request: Request<Incoming>,
    answer: oneshot::Sender<Response<BoxBody<Bytes, std::io::Error>>>,
}

impl PendingRequest {
    /// Answers 200 with `body`.
    pub fn answer(self, body: &'static str) {
        let _ = self.answer.send(Response::new(full_body(body)));
    }
    /// Answers with any response.
    pub fn respond(self, response: Response<BoxBody<Bytes, std::io::Error>>) {
        let _ = self.answer.send(response);
    }
}

/// A body that is there at once.
pub fn full_body(text: impl Into<Bytes>) -> BoxBody<Bytes, std::io::Error> {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// An address where nobody listens.
pub fn unused_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Writes a file the way editors do: beside it, then renamed over it.
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}
