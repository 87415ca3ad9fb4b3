//! The two ends of a measurement, a client and a model, as raw bytes on blocking sockets: next to nothing beside the
//! system calls, so that what stands between them makes the difference. They understand what benchmarks exchange, not
//! HTTP at large.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Read at once; also the size of each end's buffer.
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Each connection of a model has a thread, and needs little of it.
const THREAD_STACK_BYTES: usize = 128 * 1024;

/// A client's connection, kept alive.
pub(crate) struct HttpClient {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl HttpClient {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; READ_BUFFER_BYTES] })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads a response to its end, and returns its status.
    pub(crate) fn receive(&mut self) -> io::Result<u16> {
        let (head, mut filled) = read_head(&mut self.stream, &mut self.buffer)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let digits = self.buffer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        let status = digits.and_then(|digits| digits.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        match content_length(&self.buffer[..head]) {
            Some(length) => discard(&mut self.stream, &mut self.buffer, (head + length).saturating_sub(filled))?,
            // In chunks: only whether the last one has come is of interest.
            None => {
                while !self.buffer[..filled].ends_with(b"\r\n0\r\n\r\n") {
                    filled += read_some(&mut self.stream, &mut self.buffer[filled..])?;
                }
            }
        }
        Ok(status)
    }
}

/// A response with this JSON. For the life of the process, like the models that give it.
pub(crate) fn answer(body: &str) -> &'static [u8] {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    (head + body).into_bytes().leak()
}

/// Answers every request on `listener` with `answer`, whose pieces are written one by one, once the whole request is
/// there. Bodies of announced length only. Runs until the process ends.
pub(crate) fn serve_model(listener: TcpListener, answer: Vec<&'static [u8]>) -> io::Result<()> {
    let answer: &'static [_] = answer.leak();
    std::thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that cannot be served, or breaks, shows at the client.
            let _ = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(move || serve(stream, answer));
        }
    })?;
    Ok(())
}

fn serve(mut stream: TcpStream, answer: &[&[u8]]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    while let Some((head, filled)) = read_head(&mut stream, &mut buffer)? {
        let length = content_length(&buffer[..head]).unwrap_or(0);
        discard(&mut stream, &mut buffer, (head + length).saturating_sub(filled))?;
        for piece in answer {
            stream.write_all(piece)?;
        }
    }
    Ok(())
}

/// Reads until a head is there: how long it is, and how much has been read. `None`: the peer has closed instead.
fn read_head(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
    let mut filled = 0;
    loop {
        match read_some(stream, &mut buffer[filled..]) {
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && filled == 0 => return Ok(None),
            Err(error) => return Err(error),
        }
        if let Some(end) = buffer[..filled].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            return Ok(Some((end + 4, filled)));
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

fn discard(stream: &mut TcpStream, buffer: &mut [u8], mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let most = bytes.min(buffer.len());
        bytes -= read_some(stream, &mut buffer[..most])?;
    }
    Ok(())
}

/// Reads at least one byte.
fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}
