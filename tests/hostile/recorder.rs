//! A model that believes nothing: it writes down every request it gets, and what in it another server could read
//! otherwise.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::Model;

/// What a model saw of one request.
#[derive(Debug, Clone, Default)]
pub struct RecordedRequest {
    /// The request line.
    pub start: String,
    /// Names in small letters.
    pub fields: Vec<(String, String)>,
    pub body: String,
    pub trailers: Vec<(String, String)>,
    /// Whether it came to its end.
    pub is_complete: bool,
}

impl RecordedRequest {
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A model, and what it saw.
pub struct RecordingModel {
    pub model: Model,
    recorded: Arc<Mutex<Vec<RecordedRequest>>>,
}

impl RecordingModel {
    /// Answers every request with 200 and `ok`.
    pub async fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let model = Model::from_connections(move |stream| {
            let mut reader =
                RecordingConnection { stream, bytes: Vec::new(), recorded: noted.clone(), current_index: 0 };
            async move { while reader.request().await.is_some() {} }
        })
        .await;
        Self { model, recorded: seen }
    }

    /// What it saw since it was asked last.
    pub fn take_requests(&self) -> Vec<RecordedRequest> {
        std::mem::take(&mut *self.recorded.lock().unwrap())
    }
}

/// One connection of a recorder.
struct RecordingConnection {
    stream: TcpStream,
    bytes: Vec<u8>,
    recorded: Arc<Mutex<Vec<RecordedRequest>>>,
    /// Where in `seen` the current request is.
    current_index: usize,
}

impl RecordingConnection {
    /// Reads and answers one request. `None`: the connection is over.
    async fn request(&mut self) -> Option<()> {
        let mut start = self.line().await?;
        // An answer may be late: what was seen before was taken meanwhile.
        let mut head = RecordedRequest { start: std::mem::take(&mut start), ..RecordedRequest::default() };
        head.fields = self.fields().await?;
        let all = |name: &str| head.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect();
        let (lengths, codings): (Vec<String>, Vec<String>) = (all("content-length"), all("transfer-encoding"));
        let parts: Vec<&str> = head.start.split(' ').collect();
        assert!(parts.len() == 3 && parts[2] == "HTTP/1.1", "the model got the request line {:?}", head.start);
        assert!(lengths.len() + codings.len() <= 1, "the model could choose the length of {head:?}");
        self.current_index = {
            let mut seen = self.recorded.lock().unwrap();
            seen.push(head.clone());
            seen.len() - 1
        };
        if let Some(length) = lengths.first() {
            let number: usize = length.parse().unwrap();
            assert_eq!(*length, number.to_string(), "the model got an odd length");
            head.body = self.read_exact_text(number).await?;
        }
        if let Some(coding) = codings.first() {
            assert_eq!(coding, "chunked", "the model got an odd coding");
            loop {
                let size = self.line().await?;
                let length = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("an odd chunk: {size:?}"));
                if length == 0 {
                    break;
                }
                head.body += &self.read_exact_text(length).await?;
                assert_eq!(self.line().await?, "");
            }
            head.trailers = self.fields().await?;
        }
        head.is_complete = true;
        if let Some(noted) = self.recorded.lock().unwrap().get_mut(self.current_index) {
            *noted = head;
        }
        self.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok()
    }

    async fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("the model got the line {line:?}"));
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert!(!name.is_empty() && name.bytes().all(token), "the model got the line {line:?}");
            let clean = |c: char| c == '\t' || !c.is_control();
            assert!(value.chars().all(clean), "the model got the line {line:?}");
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    /// A line ended by CR LF, with neither of them inside.
    async fn line(&mut self) -> Option<String> {
        let end = loop {
            match self.bytes.windows(2).position(|pair| pair == b"\r\n") {
                Some(end) => break end,
                None => self.more().await?,
            }
        };
        let line: Vec<u8> = self.bytes.drain(..end + 2).take(end).collect();
        assert!(!line.iter().any(|byte| b"\r\n\0".contains(byte)), "the model got the line {line:?}");
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    async fn read_exact_text(&mut self, length: usize) -> Option<String> {
        while self.bytes.len() < length {
            self.more().await?;
        }
        let bytes: Vec<u8> = self.bytes.drain(..length).collect();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.bytes).await;
        read.is_ok_and(|read| read > 0).then_some(())
    }
}
