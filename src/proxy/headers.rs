//! What is changed in heads on their way through (RFC 9110 section 7.6, RFC 9113 section 8.2).

use std::time::Duration;

use bytes::BytesMut;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{StatusCode, Version, request};

use crate::model::limits::Limits;

/// The deployment asked for by a request, and the one that answered a response.
pub(super) const MODEL_DEPLOYMENT: HeaderName = HeaderName::from_static("azureml-model-deployment");
/// The request's id, made by the router.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The client's own id, echoed.
pub(super) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// Marks a copy of a live request, for the shadow; nobody else can say it.
pub(super) const MIRROR: HeaderName = HeaderName::from_static("x-ms-azureml-mirror");
/// Milliseconds until the model's response head.
pub(super) const MODEL_TIME: HeaderName = HeaderName::from_static("ms-azureml-model-time");
/// The status that the model itself gave, on its errors.
pub(super) const MODEL_STATUS: HeaderName = HeaderName::from_static("ms-azureml-model-error-statuscode");
/// Why, on the model's errors.
pub(super) const MODEL_REASON: HeaderName = HeaderName::from_static("ms-azureml-model-error-reason");
/// Where the time went (W3C Server Timing).
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// For how long the request's body was held back.
pub(super) const REQUEST_DELAY: HeaderName = HeaderName::from_static("ms-azureml-bandwidth-request-delay-ms");
/// For how long the answer's body was held back.
pub(super) const RESPONSE_DELAY: HeaderName = HeaderName::from_static("ms-azureml-bandwidth-response-delay-ms");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");

/// Longest `x-ms-client-request-id` that is echoed, as Azure's router cuts it.
const CLIENT_REQUEST_ID_LENGTH: usize = 40;

/// Which of the headers that concern the router a message has. One pass over its names costs less than asking the map
/// for each of them, and most messages have few.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notable {
    pub(super) origin: bool,
    pub(super) deployment: bool,
    pub(super) client_request_id: bool,
    pub(super) expect: bool,
    content_length: bool,
    cookie: bool,
    mirror: bool,
    te: bool,
    transfer_encoding: bool,
    connection: bool,
    /// Any other that concerns one connection only.
    hop_by_hop: bool,
    /// Any that proxies add to.
    forwarded: bool,
}

/// What a request's connection says of where it came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The client's address, as `x-forwarded-for` says it.
    pub address: HeaderValue,
    /// As `x-forwarded-proto` says it.
    pub scheme: HeaderValue,
}

impl Notable {
    /// Of these.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "origin" => seen.origin = true,
                "azureml-model-deployment" => seen.deployment = true,
                "x-ms-client-request-id" => seen.client_request_id = true,
                "expect" => seen.expect = true,
                "x-ms-azureml-mirror" => seen.mirror = true,
                "content-length" => seen.content_length = true,
                "cookie" => seen.cookie = true,
                "te" => (seen.te, seen.hop_by_hop) = (true, true),
                "transfer-encoding" => (seen.transfer_encoding, seen.hop_by_hop) = (true, true),
                "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => seen.forwarded = true,
                "connection" => seen.connection = true,
                "upgrade" | "keep-alive" | "proxy-connection" | "proxy-authorization" | "proxy-authenticate" => {
                    seen.hop_by_hop = true;
                }
                _ => {}
            }
        }
        seen
    }
}

/// Whether a head that came by HTTP/2 keeps to the limits; those of HTTP/1 are kept while it is read.
pub fn fit(headers: &HeaderMap, limits: &Limits) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() <= limits.max_headers && bytes <= limits.max_header_bytes
}

/// Refuses heads that parse but that the model could understand otherwise than we do.
///
/// # Errors
/// Why, for the client.
pub fn check(head: &request::Parts, notable: &Notable) -> Result<(), &'static str> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, None) if head.version == Version::HTTP_11 => return Err("it must have a host header"),
        (_, Some(_)) => return Err("it has more than one host header"),
        (Some(host), None) if !is_host(host.as_bytes()) => return Err("its host header is no host"),
        (host, None) => {
            let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
            if host.is_none() && authority.is_none() && head.version == Version::HTTP_2 {
                return Err("it must have an authority");
            }
            if authority.is_some_and(|authority| !is_host(authority)) {
                return Err("its target is of no host");
            }
            // In HTTP/1 the target counts; HTTP/2 has no excuse for two (RFC 9113 section 8.3.1).
            let differs = host.zip(authority).is_some_and(|(host, other)| !host.as_bytes().eq_ignore_ascii_case(other));
            if differs && head.version == Version::HTTP_2 {
                return Err("its host header is not its authority");
            }
        }
    }
    if notable.content_length {
        let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
        // Parsed and found true by the library; but to some servers a leading zero means octal.
        let plain = lengths.next().is_none_or(|length| length == b"0" || !length.starts_with(b"0"));
        if !plain || lengths.next().is_some() {
            return Err("its content-length is not one plain number");
        }
    }
    if notable.transfer_encoding {
        let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err("its transfer-encoding is another than `chunked`");
        }
    }
    Ok(())
}

/// Whether this is written as a host and perhaps a port (RFC 3986 section 3.2.2), and not empty.
fn is_host(text: &[u8]) -> bool {
    let is_host_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    !text.is_empty() && text.iter().all(is_host_byte)
}

/// Makes a client's head one for the model, but for its host and its credential.
pub fn to_model(
    head: &mut request::Parts,
    notable: &Notable,
    origin: &Origin,
    request_id: &HeaderValue,
    client_request_id: Option<&HeaderValue>,
) {
    let headers = &mut head.headers;
    let trailers = notable.te && accepts_trailers(headers);
    strip_hop_by_hop(headers, notable);
    if notable.transfer_encoding {
        // Of the two, the encoding counts (RFC 9112 section 6.3); a model must not get to choose otherwise.
        headers.remove(CONTENT_LENGTH);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if notable.expect {
        // The router answers 100 Continue itself, when it starts to read the body.
        headers.remove(EXPECT);
    }
    if notable.mirror {
        headers.remove(MIRROR);
    }
    if notable.cookie && head.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    let authority = head.uri.authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    // Where a request names its host twice, the target counts (RFC 9112 section 3.2.2, RFC 9113 section 8.3.1).
    let host = authority.and_then(Result::ok).or_else(|| headers.get(HOST).cloned());
    let forwarded = [
        (FORWARDED_FOR, Some(origin.address.clone())),
        (FORWARDED_PROTO, Some(origin.scheme.clone())),
        (FORWARDED_HOST, host),
    ];
    for (name, value) in forwarded {
        match value {
            Some(value) if notable.forwarded => append(headers, name, value),
            Some(value) => drop(headers.insert(name, value)),
            None => {}
        }
    }
    headers.insert(REQUEST_ID, request_id.clone());
    if notable.client_request_id {
        // The model sees what the client will, or nothing.
        headers.remove(CLIENT_REQUEST_ID);
        if let Some(id) = client_request_id {
            headers.insert(CLIENT_REQUEST_ID, id.clone());
        }
    }
    head.version = Version::HTTP_11;
}

/// Makes the headers of a model's response with `status` ones for the client.
pub fn from_model(headers: &mut HeaderMap, status: StatusCode) {
    let notable = Notable::of(headers);
    strip_hop_by_hop(headers, &notable);
    // A length that is none: RFC 9110 section 8.6.
    if notable.transfer_encoding || status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Whether trailers can be sent to whoever sent this head: in HTTP/1 only to who asks for them (RFC 9110 section 6.5.1).
pub(super) fn takes_trailers(head: &request::Parts) -> bool {
    let asked = head.headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    let mut words = asked.flat_map(|value| value.split(','));
    head.version == Version::HTTP_2 || words.any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// Makes an answer's head one of a body with trailers.
pub(super) fn announce_trailers(headers: &mut HeaderMap, version: Version) {
    if version != Version::HTTP_2 {
        // In HTTP/1 only a body in chunks has them.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [REQUEST_DELAY, RESPONSE_DELAY] {
        headers.append(TRAILER, HeaderValue::from(name));
    }
}

/// Removes the trailers that would frame, route or authenticate a message (RFC 9110 section 6.5.1), or say again what
/// only the router says: who merges trailers into headers must not be misled.
pub(super) fn keep_what_may_trail(trailers: &mut HeaderMap) {
    const NEVER: [&str; 32] = [
        "authorization",
        "azureml-model-deployment",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-ms-client-request-id",
        "x-request-id",
        "ms-azureml-bandwidth-request-delay-ms",
        "ms-azureml-bandwidth-response-delay-ms",
        "ms-azureml-model-time",
    ];
    for name in NEVER {
        trailers.remove(name);
    }
}

/// Removes what concerns only the connection a message came by.
fn strip_hop_by_hop(headers: &mut HeaderMap, notable: &Notable) {
    if notable.connection
        && let Entry::Occupied(connection) = headers.entry(CONNECTION)
    {
        let named: Vec<HeaderName> = connection
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            // What nearly all say, and a header that goes in any case.
            .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        connection.remove_entry_mult();
        for name in named {
            // A message's length, its host and where it came from are not the connection's affair, whatever the sender
            // claims.
            if ![CONTENT_LENGTH, HOST, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST].contains(&name) {
                headers.remove(name);
            }
        }
    }
    if notable.hop_by_hop {
        for name in
            [TE, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, PROXY_AUTHENTICATE]
        {
            headers.remove(name);
        }
    }
}

/// The client's own request id, fit to be echoed: letters, digits, `-` and `_`, cut at 40 characters.
pub fn client_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(CLIENT_REQUEST_ID)?.as_bytes();
    let allowed = value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let cut = &value[..value.len().min(CLIENT_REQUEST_ID_LENGTH)];
    (allowed && !cut.is_empty()).then(|| HeaderValue::from_bytes(cut).ok())?
}

/// Writes a duration in milliseconds with three decimals: twice a request, so without the general formatter.
pub(super) fn milliseconds(text: &mut BytesMut, duration: Duration) {
    let mut digits = [0; 24];
    // Half a million years fit.
    let (mut at, mut rest) = (digits.len(), duration.as_micros() as u64);
    while rest > 0 || digits.len() - at < 5 {
        at -= 1;
        if digits.len() - at == 4 {
            digits[at] = b'.';
        } else {
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    values.map(<[u8]>::trim_ascii).any(|value| value.eq_ignore_ascii_case(b"trailers"))
}

/// HTTP/2 may split a cookie header; HTTP/1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Adds to what proxies before us said.
fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let before: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let joined = if before.is_empty() {
        Some(value)
    } else {
        let list = [before.join(&b", "[..]).as_slice(), value.as_bytes()].join(&b", "[..]);
        HeaderValue::from_bytes(&list).ok()
    };
    if let Some(joined) = joined {
        headers.insert(name, joined);
    }
}

#[cfg(test)]
mod tests;
