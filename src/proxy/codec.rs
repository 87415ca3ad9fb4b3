//! The HTTP/1.1 codec for replicas (RFC 9112): writes request heads, and reads response heads and bodies. It works on
//! buffers and uses no socket.

use std::io::Write as _;
use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode, Version, response};

/// The largest head, list of trailers, or chunk size line that is read from a replica, in bytes.
const MAX_HEAD_BYTES: usize = 256 * 1024;
/// The largest number of fields in a head or trailers of a replica.
const MAX_HEADER_FIELDS: usize = 256;

/// The error of a response that is not valid HTTP/1, or whose head is larger than the router accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidResponse;

/// The framing of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// The length in bytes, which the head announces.
    Length(u64),
    /// Chunked, because the length is not known.
    Chunked,
}

/// Writes the head of a request. Its framing headers are replaced by those of `body`.
pub(super) fn write_head<B>(out: &mut BytesMut, head: &Request<B>, body: BodyFraming) {
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
    // The length of an empty body is announced where a body is expected (RFC 9110 section 8.6).
    let is_length_expected = had_length || [Method::POST, Method::PUT, Method::PATCH].contains(head.method());
    match body {
        BodyFraming::Length(0) if !is_length_expected => {}
        // Writing to memory does not fail.
        BodyFraming::Length(length) => drop(write!(out.writer(), "content-length: {length}\r\n")),
        BodyFraming::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// Writes the line before a chunk of `length` bytes. The chunk is followed by [`CRLF`].
pub(super) fn write_chunk_size(out: &mut BytesMut, length: usize) {
    let _ = write!(out.writer(), "{length:x}\r\n");
}

/// The end of a line and of a chunk.
pub(super) const CRLF: &[u8] = b"\r\n";

/// Writes the end of a chunked body.
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

/// The head of a replica's response.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status, the version and the header fields.
    pub parts: response::Parts,
    /// The decoder for the body.
    pub decoder: BodyDecoder,
    /// Whether the connection can be used again after the body.
    pub is_keep_alive: bool,
}

/// Takes a response head, which answers a request with `method`, from the front of `input`. Returns `None` if the head
/// is not complete. Interim responses before the head are skipped.
///
/// # Errors
///
/// Returns [`InvalidResponse`] if the head is not valid, or too large.
pub fn read_head(input: &mut BytesMut, method: &Method) -> Result<Option<ResponseHead>, InvalidResponse> {
    loop {
        let Some((length, head)) = parse_head(input, method)? else {
            return check_length_limit(input).map(|()| None);
        };
        input.advance(length);
        let status = head.parts.status;
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(head));
        }
    }
}

fn parse_head(input: &[u8], method: &Method) -> Result<Option<(usize, ResponseHead)>, InvalidResponse> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADER_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let parsing = httparse::ParserConfig::default();
    let status =
        parsing.parse_response_with_uninit_headers(&mut parsed, input, &mut fields).map_err(|_| InvalidResponse)?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let (mut parts, ()) = response::Response::new(()).into_parts();
    parts.status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(InvalidResponse)?;
    parts.version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = build_header_map(&input[..length], parsed.headers)?;
    let body = BodyDecoder::from_head(&mut parts, method)?;
    let is_http = parts.status != StatusCode::SWITCHING_PROTOCOLS && body != BodyDecoder::UntilClose;
    let is_keep_alive = is_http && is_keep_alive(&parts);
    Ok(Some((length, ResponseHead { parts, decoder: body, is_keep_alive })))
}

/// Returns the fields as a map whose values share one copy of `input`.
fn build_header_map(input: &[u8], fields: &[httparse::Header<'_>]) -> Result<HeaderMap, InvalidResponse> {
    let copy = Bytes::copy_from_slice(input);
    // There is room for the fields that the router adds.
    let mut headers = HeaderMap::with_capacity(fields.len() + 5);
    for field in fields {
        let start = field.value.as_ptr().addr().wrapping_sub(input.as_ptr().addr());
        let value = copy.get(start..start + field.value.len()).map_or_else(Bytes::new, |value| copy.slice_ref(value));
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| InvalidResponse)?;
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| InvalidResponse)?);
    }
    Ok(headers)
}

fn is_keep_alive(head: &response::Parts) -> bool {
    let has_option = |option: &[u8]| {
        let values =
            head.headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        values.map(<[u8]>::trim_ascii).any(|value| value.eq_ignore_ascii_case(option))
    };
    // If there are both a length and an encoding, one of them is wrong (RFC 9112 section 6.3), so the connection is not
    // used again.
    let is_ambiguous = head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH);
    !is_ambiguous && if head.version == Version::HTTP_11 { !has_option(b"close") } else { has_option(b"keep-alive") }
}

/// The framing of a response body, with what is still to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyDecoder {
    /// A body of a known length, with the number of bytes that are still to be read.
    Length(u64),
    /// A chunked body, with the element that comes next.
    Chunked(ChunkState),
    /// A body that ends when the replica closes the connection.
    UntilClose,
}

/// The element that comes next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// The line with the size of a chunk.
    Size,
    /// The data of a chunk, with the number of bytes that are still to be read.
    Data(u64),
    /// The end of line after the chunk.
    End,
    /// Trailers, which may be empty.
    Trailers,
    /// The body is complete.
    Complete,
}

/// One piece of a decoded body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPiece {
    /// Bytes of the body, without framing.
    Data(Bytes),
    /// The fields after the body.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
    /// More input is needed.
    NeedsInput,
}

impl BodyDecoder {
    /// Determines the framing by RFC 9112 section 6.3.
    fn from_head(head: &mut response::Parts, method: &Method) -> Result<Self, InvalidResponse> {
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::SWITCHING_PROTOCOLS];
        if *method == Method::HEAD || head.status.is_informational() || bodiless.contains(&head.status) {
            return Ok(Self::Length(0));
        }
        let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
            // A request never asks for another coding.
            let is_supported = chunked && codings.next().is_none() && head.version == Version::HTTP_11;
            return if is_supported { Ok(Self::Chunked(ChunkState::Size)) } else { Err(InvalidResponse) };
        }
        let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else { return Ok(Self::UntilClose) };
        if lengths.any(|other| other != length) || !length.as_bytes().iter().all(u8::is_ascii_digit) {
            return Err(InvalidResponse);
        }
        let number = length.to_str().ok().and_then(|text| text.parse().ok()).ok_or(InvalidResponse)?;
        let length = length.clone();
        head.headers.insert(CONTENT_LENGTH, length);
        Ok(Self::Length(number))
    }

    /// Takes the next piece from the front of `input`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidResponse`] if the framing is not valid.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<BodyPiece, InvalidResponse> {
        match self {
            Self::Length(0) | Self::Chunked(ChunkState::Complete) => Ok(BodyPiece::End),
            Self::Length(rest) => Ok(take_data(input, rest)),
            Self::UntilClose => Ok(take_data(input, &mut { u64::MAX })),
            Self::Chunked(chunk) => chunk.next(input),
        }
    }

    /// Returns whether the body has ended.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(ChunkState::Complete))
    }
}

impl ChunkState {
    fn next(&mut self, input: &mut BytesMut) -> Result<BodyPiece, InvalidResponse> {
        self.skip_chunk_framing(input)?;
        match self {
            Self::Data(rest) => {
                let piece = take_data(input, rest);
                if *rest == 0 {
                    *self = Self::End;
                    // The framing is skipped now, so that the end of the body is known with its last piece.
                    self.skip_chunk_framing(input)?;
                }
                Ok(piece)
            }
            Self::Trailers => self.read_trailers(input),
            Self::Complete => Ok(BodyPiece::End),
            Self::Size | Self::End => Ok(BodyPiece::NeedsInput),
        }
    }

    /// Skips the framing between the data of two chunks, and an empty list of trailers.
    fn skip_chunk_framing(&mut self, input: &mut BytesMut) -> Result<(), InvalidResponse> {
        loop {
            *self = match self {
                Self::End if input.starts_with(CRLF) => {
                    input.advance(CRLF.len());
                    Self::Size
                }
                Self::End if CRLF.starts_with(input) => return Ok(()),
                Self::End => return Err(InvalidResponse),
                Self::Size => match httparse::parse_chunk_size(input).map_err(|_| InvalidResponse)? {
                    httparse::Status::Complete((line, size)) => {
                        input.advance(line);
                        if size == 0 { Self::Trailers } else { Self::Data(size) }
                    }
                    httparse::Status::Partial => return check_length_limit(input),
                },
                Self::Trailers if input.starts_with(CRLF) => {
                    input.advance(CRLF.len());
                    Self::Complete
                }
                Self::Trailers | Self::Data(_) | Self::Complete => return Ok(()),
            }
        }
    }

    fn read_trailers(&mut self, input: &mut BytesMut) -> Result<BodyPiece, InvalidResponse> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADER_FIELDS];
        match httparse::parse_headers(input, &mut fields).map_err(|_| InvalidResponse)? {
            httparse::Status::Complete((length, fields)) => {
                let trailers = build_header_map(&input[..length], fields)?;
                input.advance(length);
                *self = Self::Complete;
                Ok(BodyPiece::Trailers(trailers))
            }
            httparse::Status::Partial => check_length_limit(input).map(|()| BodyPiece::NeedsInput),
        }
    }
}

fn check_length_limit(unfinished: &BytesMut) -> Result<(), InvalidResponse> {
    if unfinished.len() > MAX_HEAD_BYTES { Err(InvalidResponse) } else { Ok(()) }
}

/// Takes up to `rest` bytes from the front of `input`, and subtracts their number from `rest`.
fn take_data(input: &mut BytesMut, rest: &mut u64) -> BodyPiece {
    if input.is_empty() {
        return BodyPiece::NeedsInput;
    }
    let length = usize::try_from(*rest).unwrap_or(usize::MAX).min(input.len());
    *rest -= length as u64;
    BodyPiece::Data(input.split_to(length).freeze())
}

#[cfg(test)]
mod tests;
