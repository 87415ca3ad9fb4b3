//! HTTP/1.1 as spoken with replicas (RFC 9112): request heads are written, response heads and bodies read. No socket:
//! bytes come in and go out of buffers.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode, Version, response};

/// Longest head, list of trailers, or chunk size with its extensions, that is read from a replica, in bytes.
const LONGEST: usize = 256 * 1024;
/// Most fields in a replica's head or trailers.
const FIELDS: usize = 256;

/// A replica does not speak HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage;

/// How the body of a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// So many bytes, announced in the head.
    Length(u64),
    /// In chunks: nobody knows how many bytes it will be.
    Chunked,
}

/// Writes the head of a request. Of the headers that frame a message, only its own are sent.
pub(super) fn write_head<B>(out: &mut BytesMut, head: &Request<B>, body: Sending) {
    let target = head.uri().path_and_query().map_or("/", |target| target.as_str());
    let fields: usize = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    out.reserve(head.method().as_str().len() + target.len() + fields + 64);
    out.put_slice(head.method().as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    let mut had_length = false;
    for (name, value) in head.headers() {
        match *name {
            CONTENT_LENGTH => had_length = true,
            TRANSFER_ENCODING => {}
            _ => write_field(out, name, value),
        }
    }
    // An empty body is announced where one is expected (RFC 9110 section 8.6).
    let expected = had_length || [Method::POST, Method::PUT, Method::PATCH].contains(head.method());
    match body {
        Sending::Length(0) if !expected => {}
        // Writing to memory does not fail.
        Sending::Length(length) => drop(write!(out.writer(), "content-length: {length}\r\n")),
        Sending::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// Writes the line before a chunk of `length` bytes, which is followed by [`CRLF`].
pub(super) fn write_chunk_size(out: &mut BytesMut, length: usize) {
    let _ = write!(out.writer(), "{length:x}\r\n");
}

/// What ends a line, and a chunk.
pub(super) const CRLF: &[u8] = b"\r\n";

/// Writes the end of a body in chunks.
pub(super) fn write_last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        write_field(out, name, value);
    }
    out.put_slice(CRLF);
}

fn write_field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(CRLF);
}

/// A response head.
#[derive(Debug)]
pub struct Head {
    /// Status and fields.
    pub parts: response::Parts,
    /// How to read its body.
    pub body: Receiving,
    /// Whether the connection can be used again after the body.
    pub keeps_alive: bool,
}

/// Takes a response head, that answers a request with `method`, from the front of `input`. `None`: it is not complete.
/// Interim responses before it are skipped.
///
/// # Errors
/// [`Garbage`].
pub fn read_head(input: &mut BytesMut, method: &Method) -> Result<Option<Head>, Garbage> {
    loop {
        let Some((length, head)) = parse_head(input, method)? else {
            return bounded(input).map(|()| None);
        };
        input.advance(length);
        let status = head.parts.status;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(head));
        }
    }
}

fn parse_head(input: &[u8], method: &Method) -> Result<Option<(usize, Head)>, Garbage> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let parsing = httparse::ParserConfig::default();
    let status = parsing.parse_response_with_uninit_headers(&mut parsed, input, &mut fields).map_err(|_| Garbage)?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let (mut parts, ()) = response::Response::new(()).into_parts();
    parts.status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Garbage)?;
    parts.version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = headers(&input[..length], parsed.headers)?;
    let body = Receiving::of(&mut parts, method)?;
    let http = parts.status != StatusCode::SWITCHING_PROTOCOLS && body != Receiving::ToTheEnd;
    let keeps_alive = http && keeps_alive(&parts);
    Ok(Some((length, Head { parts, body, keeps_alive })))
}

/// The fields as a map, with values that share one copy of `input`.
fn headers(input: &[u8], fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Garbage> {
    let copy = Bytes::copy_from_slice(input);
    // A few more than there are: the router adds its own.
    let mut headers = HeaderMap::with_capacity(fields.len() + 5);
    for field in fields {
        let start = field.value.as_ptr().addr().wrapping_sub(input.as_ptr().addr());
        let value = copy.get(start..start + field.value.len()).map_or_else(Bytes::new, |value| copy.slice_ref(value));
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Garbage)?;
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Garbage)?);
    }
    Ok(headers)
}

fn keeps_alive(head: &response::Parts) -> bool {
    let says = |what: &[u8]| {
        let values =
            head.headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        values.map(<[u8]>::trim_ascii).any(|value| value.eq_ignore_ascii_case(what))
    };
    // Of a length and an encoding, one is wrong (RFC 9112 section 6.3): whoever sends both is not trusted with another.
    let doubtful = head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH);
    !doubtful && if head.version == Version::HTTP_11 { !says(b"close") } else { says(b"keep-alive") }
}

/// How much of a response's body is still to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// Until the replica closes.
    ToTheEnd,
}

/// What comes next in a body in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// The line with the chunk's size.
    Size,
    /// So many bytes of the chunk.
    Data(u64),
    /// The end of line after the chunk.
    End,
    /// Trailers, maybe none.
    Trailers,
    /// Nothing.
    Over,
}

/// A piece of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A part of it.
    Data(Bytes),
    /// The fields after it.
    Trailers(HeaderMap),
    /// Nothing comes any more.
    End,
    /// Read more first.
    Incomplete,
}

impl Receiving {
    /// By RFC 9112 section 6.3.
    fn of(head: &mut response::Parts, method: &Method) -> Result<Self, Garbage> {
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::SWITCHING_PROTOCOLS];
        if *method == Method::HEAD || head.status.is_informational() || bodiless.contains(&head.status) {
            return Ok(Self::Length(0));
        }
        let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
            // Other codings were never asked for.
            let understood = chunked && codings.next().is_none() && head.version == Version::HTTP_11;
            return if understood { Ok(Self::Chunked(Chunk::Size)) } else { Err(Garbage) };
        }
        let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else { return Ok(Self::ToTheEnd) };
        if lengths.any(|other| other != length) || !length.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err(Garbage);
        }
        let number = length.to_str().ok().and_then(|text| text.parse().ok()).ok_or(Garbage)?;
        let length = length.clone();
        head.headers.insert(CONTENT_LENGTH, length);
        Ok(Self::Length(number))
    }

    /// Takes the next piece from the front of `input`.
    ///
    /// # Errors
    /// [`Garbage`].
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Piece, Garbage> {
        match self {
            Self::Length(0) | Self::Chunked(Chunk::Over) => Ok(Piece::End),
            Self::Length(rest) => Ok(take(input, rest)),
            Self::ToTheEnd => Ok(take(input, &mut { u64::MAX })),
            Self::Chunked(chunk) => chunk.next(input),
        }
    }

    /// Whether nothing comes any more.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Over))
    }
}

impl Chunk {
    fn next(&mut self, input: &mut BytesMut) -> Result<Piece, Garbage> {
        self.skip(input)?;
        match self {
            Self::Data(rest) => {
                let piece = take(input, rest);
                if *rest == 0 {
                    *self = Self::End;
                    // Looked at now, so that a body is known to be over with its last piece.
                    self.skip(input)?;
                }
                Ok(piece)
            }
            Self::Trailers => self.read_trailers(input),
            Self::Over => Ok(Piece::End),
            Self::Size | Self::End => Ok(Piece::Incomplete),
        }
    }

    /// Takes what is there between the data of two chunks, and an empty list of trailers.
    fn skip(&mut self, input: &mut BytesMut) -> Result<(), Garbage> {
        loop {
            *self = match self {
                Self::End if input.starts_with(CRLF) => {
                    input.advance(CRLF.len());
                    Self::Size
                }
                Self::End if CRLF.starts_with(input) => return Ok(()),
                Self::End => return Err(Garbage),
                Self::Size => match httparse::parse_chunk_size(input).map_err(|_| Garbage)? {
                    httparse::Status::Complete((line, size)) => {
                        input.advance(line);
                        if size == 0 { Self::Trailers } else { Self::Data(size) }
                    }
                    httparse::Status::Partial => return bounded(input),
                },
                Self::Trailers if input.starts_with(CRLF) => {
                    input.advance(CRLF.len());
                    Self::Over
                }
                Self::Trailers | Self::Data(_) | Self::Over => return Ok(()),
            }
        }
    }

    fn read_trailers(&mut self, input: &mut BytesMut) -> Result<Piece, Garbage> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        match httparse::parse_headers(input, &mut fields).map_err(|_| Garbage)? {
            httparse::Status::Complete((length, fields)) => {
                let trailers = headers(&input[..length], fields)?;
                input.advance(length);
                *self = Self::Over;
                Ok(Piece::Trailers(trailers))
            }
            httparse::Status::Partial => bounded(input).map(|()| Piece::Incomplete),
        }
    }
}

fn bounded(unfinished: &BytesMut) -> Result<(), Garbage> {
    if unfinished.len() > LONGEST { Err(Garbage) } else { Ok(()) }
}

/// Takes up to `rest` bytes.
fn take(input: &mut BytesMut, rest: &mut u64) -> Piece {
    if input.is_empty() {
        return Piece::Incomplete;
    }
    let length = usize::try_from(*rest).unwrap_or(usize::MAX).min(input.len());
    *rest -= length as u64;
    Piece::Data(input.split_to(length).freeze())
}

#[cfg(test)]
mod tests;
