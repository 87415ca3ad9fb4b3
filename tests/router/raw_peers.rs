//! Models and clients byte by byte, for what HTTP libraries hide: which side closes what, and when.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Body, Frame};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::harness::{Answer, KEY, Model, Router, call, score, with_timeout};

/// A model's answer that leaves its connection open.
pub const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A scoring request of `my-endpoint` as bytes.
pub fn request(method: &str, body: &str) -> String {
    format!(
        "{method} /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A client on a connection of its own that has sent `bytes` and reads nothing yet.
pub async fn connect_and_send(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = with_timeout("a connection", TcpStream::connect(address)).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// Reads a message with `content-length` or without a body. `None`: the connection ended before its end.
pub async fn read_message(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text[..head].split("content-length: ").nth(1);
            let length = length.map_or(0, |rest| rest.lines().next().unwrap().trim().parse().unwrap());
            if bytes.len() >= head + 4 + length {
                return Some(String::from_utf8(bytes).unwrap());
            }
        }
        let mut chunk = [0; 4096];
        match with_timeout("more of a message", stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Waits until the other side has closed its direction of the connection; nothing else may come.
pub async fn read_eof(stream: &mut TcpStream) {
    let mut chunk = [0; 64];
    let read = with_timeout("the end of the other side", stream.read(&mut chunk)).await;
    assert!(matches!(read, Ok(0)), "not a clean end: {read:?}");
}

/// A request with its connection, in the hands of the test.
pub struct ReceivedRequest {
    pub text: String,
    pub stream: TcpStream,
}

impl ReceivedRequest {
    pub async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
    /// Waits for the next request on the same connection.
    pub async fn next_request(mut self) -> Self {
        let text = read_message(&mut self.stream).await.expect("the router reuses the connection");
        Self { text, stream: self.stream }
    }
}

/// A model that hands the test each connection, with the first request on it read.
pub async fn start_handover_model() -> (Model, mpsc::UnboundedReceiver<ReceivedRequest>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let model = Model::from_connections(move |mut stream| {
        let sender = sender.clone();
        async move {
            if let Some(text) = read_message(&mut stream).await {
                let _ = sender.send(ReceivedRequest { text, stream });
            }
        }
    })
    .await;
    (model, receiver)
}

/// What arrives next.
pub async fn next_arrival<T>(arrivals: &mut mpsc::UnboundedReceiver<T>) -> T {
    with_timeout("a request at the model", arrivals.recv()).await.unwrap()
}

/// A port that is ours, where connections are refused until [`Refusing::listen`].
pub struct RefusingPort {
    socket: socket2::Socket,
    pub address: SocketAddr,
}

impl RefusingPort {
    pub fn bind() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { socket, address }
    }

    pub fn listen(self) -> TcpListener {
        self.socket.listen(64).unwrap();
        self.socket.set_nonblocking(true).unwrap();
        TcpListener::from_std(self.socket.into()).unwrap()
    }
}

/// A response body written by the test; it ends when the sender is dropped.
pub struct ChannelBody(mpsc::UnboundedReceiver<Bytes>);

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A streaming response, and what writes its body.
pub fn streaming() -> (mpsc::UnboundedSender<Bytes>, Response<BoxBody<Bytes, io::Error>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Response::new(ChannelBody(receiver).boxed()))
}

/// Scores `body` in a task of its own.
pub fn spawn_scoring(router: &Router, body: &'static str) -> JoinHandle<Answer> {
    tokio::spawn(call(router.scoring, score(body)))
}

/// Waits for a task.
pub async fn join_task<T>(task: JoinHandle<T>) -> T {
    with_timeout("a task", task).await.unwrap()
}

/// The first deployment of the first endpoint in `/api/endpoints`.
pub fn first_deployment(endpoints: &Value) -> &Value {
    &endpoints["endpoints"][0]["deployments"][0]
}

/// Waits until so many requests are in slots and in the queue of the first deployment.
pub async fn wait_until_busy_and_queued(router: &Router, busy: usize, queued: usize) {
    let what = format!("{busy} busy slots and {queued} queued requests");
    router
        .wait_until(&what, |all| {
            first_deployment(all)["slots"]["busy"] == busy && first_deployment(all)["queue"] == queued
        })
        .await;
}

/// Waits until no request is anywhere in the router.
pub async fn wait_until_idle(router: &Router) {
    let still = |deployment: &Value| {
        let slots = &deployment["slots"];
        slots["busy"] == 0
            && slots["draining"] == 0
            && deployment["queue"] == 0
            && deployment["replicas"].as_array().unwrap().iter().all(|replica| replica["inFlight"] == 0)
    };
    let all_still = |all: &Value| {
        let endpoints = all["endpoints"].as_array().unwrap();
        endpoints.iter().all(|endpoint| endpoint["deployments"].as_array().unwrap().iter().all(still))
    };
    router.wait_until("an idle router", all_still).await;
}

/// Ends the router, which must have nothing left to do, while models and clients go on.
pub async fn shut_down(router: Router) {
    with_timeout("the end of the router", tokio::task::spawn_blocking(move || router.join())).await.unwrap().unwrap();
}

/// Sum of the samples of a metric whose line contains `part`.
pub async fn metric_sum(router: &Router, name: &str, part: &str) -> f64 {
    let text = router.admin("/metrics").await.text();
    let samples = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(part));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
