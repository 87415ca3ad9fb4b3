//! Changes of heads between client and model (RFC 9110 section 7.6, RFC 9113 section 8.2).

use std::time::Duration;

use bytes::BytesMut;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{StatusCode, Version, request};

use crate::model::router_settings::Limits;

/// The deployment that a request names and, in a response, the deployment that answered.
pub(super) const MODEL_DEPLOYMENT: HeaderName = HeaderName::from_static("azureml-model-deployment");
/// The id of the request, which the router generates.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The client's own request id, which is echoed.
pub(super) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// Marks a mirrored request for the shadow. The router removes it from client requests.
pub(super) const MIRROR: HeaderName = HeaderName::from_static("x-ms-azureml-mirror");
/// The time from the dispatch to the response head of the model, in milliseconds.
pub(super) const MODEL_TIME: HeaderName = HeaderName::from_static("ms-azureml-model-time");
/// The status of the model, in responses that are errors of the model.
pub(super) const MODEL_ERROR_STATUS_CODE: HeaderName = HeaderName::from_static("ms-azureml-model-error-statuscode");
/// The constant reason `model_error`, in responses that are errors of the model.
pub(super) const MODEL_ERROR_REASON: HeaderName = HeaderName::from_static("ms-azureml-model-error-reason");
/// The queue wait and the time of the model, in milliseconds (W3C Server Timing).
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The time by which the bandwidth limit delayed the request body, in milliseconds.
pub(super) const REQUEST_DELAY: HeaderName = HeaderName::from_static("ms-azureml-bandwidth-request-delay-ms");
/// The time by which the bandwidth limit delayed the response body, in milliseconds.
pub(super) const RESPONSE_DELAY: HeaderName = HeaderName::from_static("ms-azureml-bandwidth-response-delay-ms");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");

/// The longest `x-ms-client-request-id` that is echoed, in bytes, as in Azure's router.
const MAX_CLIENT_REQUEST_ID_BYTES: usize = 40;

/// The headers of a message that concern the router. One pass over the names costs less than a look-up of each in the
/// map, and most messages have few of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PresentHeaders {
    pub(super) has_origin: bool,
    pub(super) has_deployment: bool,
    pub(super) has_client_request_id: bool,
    pub(super) has_expect: bool,
    has_content_length: bool,
    has_cookie: bool,
    has_mirror: bool,
    has_te: bool,
    has_transfer_encoding: bool,
    has_connection: bool,
    /// Any other header that concerns only one connection.
    has_hop_by_hop: bool,
    /// Any header that proxies add to.
    has_forwarded: bool,
}

/// The origin of a connection's requests, as forwarded headers report it.
#[derive(Debug, Clone)]
pub struct ForwardedInfo {
    /// The client's address, as in `x-forwarded-for`.
    pub address: HeaderValue,
    /// The scheme, as in `x-forwarded-proto`.
    pub scheme: HeaderValue,
}

impl PresentHeaders {
    /// Records which of these headers occur in `headers`.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "origin" => present.has_origin = true,
                "azureml-model-deployment" => present.has_deployment = true,
                "x-ms-client-request-id" => present.has_client_request_id = true,
                "expect" => present.has_expect = true,
                "x-ms-azureml-mirror" => present.has_mirror = true,
                "content-length" => present.has_content_length = true,
                "cookie" => present.has_cookie = true,
                "te" => (present.has_te, present.has_hop_by_hop) = (true, true),
                "transfer-encoding" => (present.has_transfer_encoding, present.has_hop_by_hop) = (true, true),
                "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => present.has_forwarded = true,
                "connection" => present.has_connection = true,
                "upgrade" | "keep-alive" | "proxy-connection" | "proxy-authorization" | "proxy-authenticate" => {
                    present.has_hop_by_hop = true;
                }
                _ => {}
            }
        }
        present
    }
}

/// Returns whether a head that was received with HTTP/2 is within the limits. Heads of HTTP/1 are limited while they
/// are read.
pub fn is_within_limits(headers: &HeaderMap, limits: &Limits) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() <= limits.max_headers && bytes <= limits.max_header_bytes
}

/// Refuses heads that are valid, but that a model could understand differently.
///
/// # Errors
///
/// Returns the reason, which becomes a part of the problem document's `detail`.
pub fn validate_request_head(head: &request::Parts, present: &PresentHeaders) -> Result<(), &'static str> {
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
            // In HTTP/1 the target counts; in HTTP/2 there must not be two hosts (RFC 9113 section 8.3.1).
            let differs = host.zip(authority).is_some_and(|(host, other)| !host.as_bytes().eq_ignore_ascii_case(other));
            if differs && head.version == Version::HTTP_2 {
                return Err("its host header is not its authority");
            }
        }
    }
    if present.has_content_length {
        let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
        // The library has parsed and accepted the length, but for some servers a leading zero means octal.
        let is_plain = lengths.next().is_none_or(|length| length == b"0" || !length.starts_with(b"0"));
        if !is_plain || lengths.next().is_some() {
            return Err("its content-length is not one plain number");
        }
    }
    if present.has_transfer_encoding {
        let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err("its transfer-encoding is another than `chunked`");
        }
    }
    Ok(())
}

/// Returns whether `text` is a host with an optional port (RFC 3986 section 3.2.2), and not empty.
fn is_host(text: &[u8]) -> bool {
    let is_host_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    !text.is_empty() && text.iter().all(is_host_byte)
}

/// Turns a client's head into one for the model, except for its host and its credential.
pub fn prepare_upstream_request(
    head: &mut request::Parts,
    present: &PresentHeaders,
    forwarded_info: &ForwardedInfo,
    request_id: &HeaderValue,
    client_request_id: Option<&HeaderValue>,
) {
    let headers = &mut head.headers;
    let accepts_te_trailers = present.has_te && accepts_trailers(headers);
    strip_hop_by_hop(headers, present);
    if present.has_transfer_encoding {
        // If a head has both, the encoding counts (RFC 9112 section 6.3). A model must not choose otherwise.
        headers.remove(CONTENT_LENGTH);
    }
    if accepts_te_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if present.has_expect {
        // The router itself answers 100 Continue, when it starts to read the body.
        headers.remove(EXPECT);
    }
    if present.has_mirror {
        headers.remove(MIRROR);
    }
    if present.has_cookie && head.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    let authority = head.uri.authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    // If a request names its host twice, the target counts (RFC 9112 section 3.2.2, RFC 9113 section 8.3.1).
    let host = authority.and_then(Result::ok).or_else(|| headers.get(HOST).cloned());
    let forwarded = [
        (FORWARDED_FOR, Some(forwarded_info.address.clone())),
        (FORWARDED_PROTO, Some(forwarded_info.scheme.clone())),
        (FORWARDED_HOST, host),
    ];
    for (name, value) in forwarded {
        match value {
            Some(value) if present.has_forwarded => append_list_value(headers, name, value),
            Some(value) => drop(headers.insert(name, value)),
            None => {}
        }
    }
    headers.insert(REQUEST_ID, request_id.clone());
    if present.has_client_request_id {
        // The model gets the same id as the client, or none.
        headers.remove(CLIENT_REQUEST_ID);
        if let Some(id) = client_request_id {
            headers.insert(CLIENT_REQUEST_ID, id.clone());
        }
    }
    head.version = Version::HTTP_11;
}

/// Turns the headers of a model's response with `status` into those for the client.
pub fn prepare_client_response(headers: &mut HeaderMap, status: StatusCode) {
    let present = PresentHeaders::from_headers(headers);
    strip_hop_by_hop(headers, &present);
    // In these responses a length is not valid (RFC 9110 section 8.6).
    if present.has_transfer_encoding || status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Returns whether the client accepts trailers, which an HTTP/1 client has to announce (RFC 9110 section 6.5.1).
pub(super) fn client_accepts_trailers(head: &request::Parts) -> bool {
    let values = head.headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split(','));
    head.version == Version::HTTP_2 || words.any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// Prepares a response head for a body with trailers, which it lists in `trailer`.
pub(super) fn announce_trailers(headers: &mut HeaderMap, version: Version) {
    if version != Version::HTTP_2 {
        // In HTTP/1 only a chunked body has trailers.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [REQUEST_DELAY, RESPONSE_DELAY] {
        headers.append(TRAILER, HeaderValue::from(name));
    }
}

/// Removes trailers that would frame, route or authenticate a message (RFC 9110 section 6.5.1), or that only the router
/// may set, because a recipient may merge trailers into headers.
pub(super) fn strip_forbidden_trailers(trailers: &mut HeaderMap) {
    const FORBIDDEN_TRAILERS: [&str; 32] = [
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
    for name in FORBIDDEN_TRAILERS {
        trailers.remove(name);
    }
}

/// Removes the headers that concern only one connection, also those that `connection` names (RFC 9110 section 7.6.1).
fn strip_hop_by_hop(headers: &mut HeaderMap, present: &PresentHeaders) {
    if present.has_connection
        && let Entry::Occupied(connection) = headers.entry(CONNECTION)
    {
        let connection_options: Vec<HeaderName> = connection
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            // `keep-alive` is common and is removed in any case.
            .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive"))
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        connection.remove_entry_mult();
        for name in connection_options {
            // A sender must not remove the length, the host and the origin of a message, which do not belong to the
            // connection.
            if ![CONTENT_LENGTH, HOST, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST].contains(&name) {
                headers.remove(name);
            }
        }
    }
    if present.has_hop_by_hop {
        for name in
            [TE, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, PROXY_AUTHENTICATE]
        {
            headers.remove(name);
        }
    }
}

/// Returns the client's own request id, cut at 40 characters, to be echoed. Returns `None` if it is empty or has
/// other characters than letters, digits, `-` and `_`.
pub fn echoed_client_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(CLIENT_REQUEST_ID)?.as_bytes();
    let is_allowed = value.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let cut = &value[..value.len().min(MAX_CLIENT_REQUEST_ID_BYTES)];
    (is_allowed && !cut.is_empty()).then(|| HeaderValue::from_bytes(cut).ok())?
}

/// Writes a duration in milliseconds with three decimals. It avoids the general formatter, because it is called twice
/// per request.
pub(super) fn write_milliseconds(text: &mut BytesMut, duration: Duration) {
    let mut digits = [0; 24];
    // A `u64` of microseconds has room for half a million years.
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

/// Joins the parts of a cookie header, which HTTP/2 may split and HTTP/1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Appends `value` to the list that earlier proxies have set.
fn append_list_value(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let previous_values: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let joined = if previous_values.is_empty() {
        Some(value)
    } else {
        let list = [previous_values.join(&b", "[..]).as_slice(), value.as_bytes()].join(&b", "[..]);
        HeaderValue::from_bytes(&list).ok()
    };
    if let Some(joined) = joined {
        headers.insert(name, joined);
    }
}

#[cfg(test)]
mod tests;
