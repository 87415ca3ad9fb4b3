//! HTTP/2 by hand: frames as bytes, so that they can be wrong.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{KEY, with_timeout};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// Of DATA and HEADERS.
pub const PADDED: u8 = 8;

pub const PROTOCOL_ERROR: u32 = 1;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What an ordinary scoring request begins with.
pub const POST_PSEUDO_HEADERS: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/api/v1/endpoint/my-endpoint/score"),
    (":authority", "router"),
];

#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error of a RST_STREAM or GOAWAY.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block without indexing and without Huffman coding.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|(name, value)| [vec![0], hpack_string(name.as_bytes()), hpack_string(value.as_bytes())].concat())
        .collect()
}

/// A string of a header block.
pub fn hpack_string(bytes: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    if bytes.len() < 127 {
        written.push(bytes.len() as u8);
    } else {
        written.push(127);
        let mut rest = bytes.len() - 127;
        while rest >= 128 {
            written.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        written.push(rest as u8);
    }
    written.extend_from_slice(bytes);
    written
}

/// The head of a request with the right key, whole, with `more` fields; [`END_STREAM`] among the `flags` for no body.
pub fn head(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    let key = format!("Bearer {KEY}");
    let fields = [&POST_PSEUDO_HEADERS[..], &[("authorization", &*key)], more].concat();
    frame(HEADERS, flags | END_HEADERS, stream, &block(&fields))
}

/// `SETTINGS` with these pairs.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload = pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &payload.collect::<Vec<u8>>())
}

/// The client's end of a connection.
pub struct H2Connection {
    pub stream: TcpStream,
    bytes: Vec<u8>,
}

impl H2Connection {
    /// Connects, and sends preface and these settings.
    pub async fn connect(address: SocketAddr, pairs: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut connection = Self { stream, bytes: Vec::new() };
        connection.write(&[PREFACE, &settings(pairs)].concat()).await;
        connection
    }

    /// Writes as much as the router takes; one that has closed takes nothing.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = with_timeout("written bytes", self.stream.write_all(bytes)).await;
    }

    /// The next frame. `None`: the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.buffered_frame() {
                return Some(frame);
            }
            let read = with_timeout("a frame", self.stream.read_buf(&mut self.bytes)).await;
            if !read.is_ok_and(|read| read > 0) {
                return None;
            }
        }
    }

    /// The next frame of those that are there.
    pub fn try_next(&mut self) -> Option<Frame> {
        while let Ok(1..) = self.stream.try_read_buf(&mut self.bytes) {}
        self.buffered_frame()
    }

    fn buffered_frame(&mut self) -> Option<Frame> {
        let length = u32::from_be_bytes([0, *self.bytes.first()?, *self.bytes.get(1)?, *self.bytes.get(2)?]) as usize;
        if self.bytes.len() < 9 + length {
            return None;
        }
        let whole: Vec<u8> = self.bytes.drain(..9 + length).collect();
        let stream = u32::from_be_bytes(whole[5..9].try_into().unwrap());
        Some(Frame { kind: whole[3], flags: whole[4], stream, payload: whole[9..].to_vec() })
    }

    /// The frames up to the end of `stream` or of the connection.
    pub async fn read_until_stream_end(&mut self, stream: u32) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            let flagged = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            let ends = frame.stream == stream && (flagged || frame.kind == RST_STREAM);
            let over = ends || frame.kind == GOAWAY;
            frames.push(frame);
            if over {
                break;
            }
        }
        frames
    }
}
