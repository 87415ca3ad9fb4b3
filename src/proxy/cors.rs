//! Cross-origin answers for browsers (the Fetch standard's CORS protocol), per endpoint.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, request};

use crate::model::endpoint::Cors;

/// Whether a request is a browser's question before the real one.
pub(super) fn is_preflight(head: &request::Parts) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains_key(ORIGIN)
        && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The headers that answer a preflight. Those of an origin, method or header that is not allowed are missing, which is
/// how a browser is told no.
pub(super) fn preflight(cors: &Cors, asked: &HeaderMap) -> HeaderMap {
    let mut answer = HeaderMap::new();
    answer.insert(
        VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    );
    let Some(origin) = allowed(cors, asked.get(ORIGIN)) else { return answer };
    let method = asked.get(ACCESS_CONTROL_REQUEST_METHOD).and_then(|method| method.to_str().ok()).unwrap_or_default();
    let headers = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).and_then(|names| names.to_str().ok()).unwrap_or_default();
    let names = || headers.split(',').map(str::trim).filter(|name| !name.is_empty());
    let any = cors.allow_headers.iter().any(|allowed| allowed == "*");
    let headers_allowed =
        any || names().all(|name| cors.allow_headers.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)));
    if !cors.allow_methods.iter().any(|allowed| allowed == method) || !headers_allowed {
        return answer;
    }
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    insert(&mut answer, ACCESS_CONTROL_ALLOW_METHODS, &cors.allow_methods.join(", "));
    // A browser takes `*` as one header's name when credentials are sent, so the names asked for are repeated.
    insert(&mut answer, ACCESS_CONTROL_ALLOW_HEADERS, &names().collect::<Vec<_>>().join(", "));
    insert(&mut answer, ACCESS_CONTROL_MAX_AGE, &cors.max_age.as_secs().to_string());
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    answer
}

/// Adds what a browser must see on an actual response.
pub(super) fn decorate(cors: &Cors, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    answer.append(VARY, HeaderValue::from_static("origin"));
    // What a model says about origins does not count beside the endpoint's rules.
    answer.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    let Some(origin) = allowed(cors, origin) else { return };
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    insert(answer, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose_headers.join(", "));
}

fn allowed(cors: &Cors, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    let origin = origin?;
    if cors.allow_origins.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    cors.allow_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}
