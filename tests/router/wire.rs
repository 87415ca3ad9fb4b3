//! HTTP/1 written and read by hand, for clients and models: what is on the wire, byte by byte, and when.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Body, Frame};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{Model, with_timeout};

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) stream: BufReader<TcpStream>,
}

/// A start line and the fields after it, names in small letters.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) start_line: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn status(&self) -> u16 {
        self.start_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
    /// All values of a field, joined.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }
    pub(crate) fn length(&self) -> usize {
        self.get("content-length").and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) fn from_stream(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        with_timeout("written bytes", self.stream.get_mut().write_all(bytes.as_ref())).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        with_timeout("a line", self.stream.read_until(b'\n', &mut line)).await.unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.ends_with("\r\n"), "the connection ended in a head: {line:?}");
        line.trim_end().to_owned()
    }

    /// The next head.
    pub(crate) async fn head(&mut self) -> Head {
        let start = self.line().await;
        Head { start_line: start, fields: self.fields().await }
    }

    /// Fields up to an empty line: those of a head, or trailers.
    pub(crate) async fn fields(&mut self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap();
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub(crate) async fn read_exact_text(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        with_timeout("bytes of a body", self.stream.read_exact(&mut bytes)).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// The next chunk of a chunked body; empty after the last one, with the trailers still to be read.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let size = self.line().await;
        let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
        let mut bytes = vec![0; size];
        with_timeout("a chunk", self.stream.read_exact(&mut bytes)).await.unwrap();
        if size > 0 {
            assert_eq!(self.line().await, "");
        }
        bytes
    }

    /// Chunks until there is `expected`.
    pub(crate) async fn expect_chunks(&mut self, expected: &str) {
        let mut bytes = Vec::new();
        while bytes.len() < expected.len() {
            let chunk = self.chunk().await;
            assert!(!chunk.is_empty(), "the body ended after {:?}", String::from_utf8_lossy(&bytes));
            bytes.extend(chunk);
        }
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    /// The end of a chunked body, with its trailers.
    pub(crate) async fn read_last_chunk(&mut self) -> Vec<(String, String)> {
        assert_eq!(String::from_utf8_lossy(&self.chunk().await), "");
        self.fields().await
    }

    /// A head and the body that goes with it, of known or unknown length.
    pub(crate) async fn message(&mut self) -> (Head, String) {
        let head = self.head().await;
        let body = if head.get("transfer-encoding").is_some() {
            let mut all = Vec::new();
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                all.extend(chunk);
            }
            self.fields().await;
            String::from_utf8(all).unwrap()
        } else {
            self.read_exact_text(head.get("content-length").map_or(0, |length| length.parse().unwrap())).await
        };
        (head, body)
    }

    /// What comes until the other side closes or resets.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        // A reset is an end like any other.
        let _ = with_timeout("the end of a connection", self.stream.read_to_end(&mut bytes)).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether nothing has come that was not read.
    pub(crate) fn is_silent(&self) -> bool {
        let mut byte = [0];
        self.stream.buffer().is_empty()
            && self.stream.get_ref().try_read(&mut byte).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// A model whose every connection is played by the test.
pub(crate) async fn start_wire_model() -> (Model, mpsc::UnboundedReceiver<Wire>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let model = Model::from_connections(move |stream| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(Wire::from_stream(stream));
        }
    })
    .await;
    (model, receiver)
}

/// The next value of a channel, soon.
pub(crate) async fn next_value<T>(what: &str, receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    with_timeout(what, receiver.recv()).await.unwrap_or_else(|| panic!("nothing more: {what}"))
}

/// A body whose frames come from a channel.
pub(crate) struct ChannelFrames(mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::io::Error>>);

pub(crate) type FrameSender = mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>;

/// A body, and what to fill it with; it ends when the sender is dropped.
pub(crate) fn channel_frames() -> (FrameSender, BoxBody<Bytes, std::io::Error>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, ChannelFrames(receiver).boxed())
}

impl Body for ChannelFrames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context)
    }
}
