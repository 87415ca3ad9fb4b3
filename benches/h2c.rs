//! A client of HTTP/2 with prior knowledge, as far as a benchmark needs one: one request at a time, heads without
//! compression, flow control never in the way.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// Of `DATA` and `HEADERS`.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of `SETTINGS` and `PING`.
const ACK: u8 = 1;

/// A connection.
pub(crate) struct H2cClient {
    stream: TcpStream,
    next_stream: u32,
    /// Read and not yet looked at.
    unread: Vec<u8>,
}

impl H2cClient {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
        Ok(Self { stream, next_stream: 1, unread: Vec::new() })
    }

    /// One request; returns the status of its answer when that is complete.
    pub(crate) fn post(&mut self, path: &str, key: &str, body: &[u8]) -> io::Result<u16> {
        let id = self.next_stream;
        self.next_stream += 2;
        let mut head = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "router"),
            (":path", path),
            ("authorization", &format!("Bearer {key}")),
            ("content-type", "application/json"),
            ("content-length", &body.len().to_string()),
        ] {
            literal(&mut head, name.as_bytes(), value.as_bytes());
        }
        let request = [frame(HEADERS, END_HEADERS, id, &head), frame(DATA, END_STREAM, id, body)].concat();
        self.stream.write_all(&request)?;
        let mut status = None;
        loop {
            let (kind, flags, of, payload) = self.read_frame()?;
            match kind {
                HEADERS if of == id => status = status_in(&payload),
                // Gives the window back, of the connection: a stream's own is never used up.
                DATA if !payload.is_empty() => {
                    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
                    self.stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &length.to_be_bytes()))?;
                }
                SETTINGS | PING if flags & ACK == 0 => {
                    let echoed = if kind == PING { &payload[..] } else { &[] };
                    self.stream.write_all(&frame(kind, ACK, 0, echoed))?;
                }
                RST_STREAM | GOAWAY => return Err(io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && of == id && flags & END_STREAM != 0 {
                return status.ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// Kind, flags, stream and payload.
    fn read_frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        self.fill_buffer_to(FRAME_HEADER_BYTES)?;
        let head = &self.unread;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags, of) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        self.fill_buffer_to(FRAME_HEADER_BYTES + length)?;
        let payload = self.unread[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length].to_vec();
        self.unread.drain(..FRAME_HEADER_BYTES + length);
        Ok((kind, flags, of, payload))
    }

    fn fill_buffer_to(&mut self, length: usize) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        while self.unread.len() < length {
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.unread.extend_from_slice(&buffer[..read]),
            }
        }
        Ok(())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header field that no table has; both parts shorter than 127 bytes.
fn literal(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    head.push(0);
    for text in [name, value] {
        head.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        head.extend_from_slice(text);
    }
}

/// The status comes first. Those of the static table are one byte; others are not expected here.
fn status_in(head: &[u8]) -> Option<u16> {
    match head.first()? {
        0x88 => Some(200),
        0x8c => Some(400),
        0x8d => Some(404),
        0x8e => Some(500),
        _ => None,
    }
}
