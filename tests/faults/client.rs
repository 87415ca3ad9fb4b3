//! A client that knows the one right answer to each of its requests, and classifies the outcome.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::WAIT_TIMEOUT;
use crate::message::{ConnectionEnd, Message};

/// The key of endpoints made by [`crate::program::endpoint`].
pub const KEY: &str = "test-key-0123456789abcdef";

/// The outcome of a question that was answered with 200 and exactly the right body.
pub const OUTCOME_EXACT: &str = "200";
/// The connection could not be made.
pub const OUTCOME_CONNECT_REFUSED: &str = "refused";
/// The connection ended before the first byte of an answer, on a connection that had been used before.
pub const OUTCOME_CLOSED_ON_REUSE: &str = "cut, on a kept connection";
/// The same on a new connection.
pub const OUTCOME_CLOSED_ON_NEW: &str = "cut, on a new connection";
/// The connection ended within an answer.
pub const OUTCOME_CUT_SHORT: &str = "short";

/// What is asked, and what must come back.
#[derive(Debug, Clone)]
pub struct CheckedRequest {
    /// Below the endpoint: `score`, or a path on the model.
    pub path: &'static str,
    /// More fields, each with its end of line.
    pub fields: &'static str,
    pub body: Vec<u8>,
    pub expected: Vec<u8>,
}

impl CheckedRequest {
    /// One that an echoing model (see [`crate::model`]) with this name answers; no two numbers have the same answer.
    pub fn echo(model: &str, number: u64) -> Self {
        let body =
            format!("{{\"question\": {number}, \"padding\": \"{:0>width$}\"}}", 0, width = number as usize % 400);
        let expected = format!("{model} {body}").into_bytes();
        Self { path: "score", fields: "", body: body.into_bytes(), expected }
    }

    /// The same for this deployment, whatever its weight.
    pub fn to_green(number: u64) -> Self {
        Self { fields: "azureml-model-deployment: green\r\n", ..Self::echo("green", number) }
    }

    /// The request as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = head(self.path, self.fields, self.body.len()).into_bytes();
        bytes.extend(&self.body);
        bytes
    }

    /// What became of it, in a word.
    fn outcome(&self, answer: Result<Message, ConnectionEnd>, kept: bool) -> String {
        let answer = match answer {
            Ok(answer) => answer,
            Err(ConnectionEnd::BeforeMessage) => {
                return (if kept { OUTCOME_CLOSED_ON_REUSE } else { OUTCOME_CLOSED_ON_NEW }).to_owned();
            }
            Err(ConnectionEnd::WithinMessage) => return OUTCOME_CUT_SHORT.to_owned(),
        };
        let id = answer.field("x-request-id").unwrap_or_default();
        if answer.status() == 200 && answer.body == self.expected && id.len() == 36 {
            return OUTCOME_EXACT.to_owned();
        }
        let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let retry_after = answer.field("retry-after").and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let well_made = answer.field("content-type") == Some("application/problem+json")
            && problem["status"] == answer.status()
            && (problem["requestId"] == id || problem["code"] == "too_many_connections")
            && (answer.status() != 503 || retry_after >= 1);
        match problem["code"].as_str() {
            Some(code) if well_made => format!("{} {code}", answer.status()),
            _ => format!("wrong: {} {:?} to {:?}", answer.start, text(&answer.body), text(&self.body)),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

/// The head of a scoring request of `my-endpoint`.
pub fn head(path: &str, fields: &str, length: usize) -> String {
    format!(
        "POST /api/v1/endpoint/my-endpoint/{path} HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\n{fields}content-length: {length}\r\n\r\n"
    )
}

/// A client with at most one connection.
pub struct CheckingClient {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl CheckingClient {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Asks over the kept connection, or a new one, and says in a word what became of it.
    pub async fn send(&mut self, question: &CheckedRequest) -> String {
        match tokio::time::timeout(WAIT_TIMEOUT, self.try_send(question)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.connection = None;
                format!("no answer in {WAIT_TIMEOUT:?} to {:?}", text(&question.body))
            }
        }
    }

    async fn try_send(&mut self, question: &CheckedRequest) -> String {
        let kept = self.connection.is_some();
        if self.connect().await.is_err() {
            return OUTCOME_CONNECT_REFUSED.to_owned();
        }
        let answer = self.exchange(&question.bytes()).await;
        question.outcome(answer, kept)
    }

    /// Connects, unless there is a connection.
    pub async fn connect(&mut self) -> std::io::Result<()> {
        if self.connection.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.connection = Some(BufReader::new(stream));
        }
        Ok(())
    }

    /// Sends a request and reads its answer; keeps the connection if that goes on.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Message, ConnectionEnd> {
        let mut stream = self.connection.take().unwrap();
        // The other side may have answered before it stopped listening.
        let _ = stream.get_mut().write_all(request).await;
        let answer = Message::read(&mut stream).await?;
        if answer.field("connection") != Some("close") {
            self.connection = Some(stream);
        }
        Ok(answer)
    }

    /// Closes the connection.
    pub fn close_connection(&mut self) {
        self.connection = None;
    }
}

/// How a client vanishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectKind {
    /// With a FIN, as programs that end do.
    Fin,
    /// With a RST, as machines that lose their state do.
    Reset,
}

impl DisconnectKind {
    pub const ALL: [Self; 2] = [Self::Fin, Self::Reset];

    /// Closes `stream` so.
    pub fn close(self, stream: TcpStream) {
        if self == Self::Reset {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
    }
}

/// A connection on which `bytes` have been sent and nothing is read yet.
pub async fn connect_and_send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}
