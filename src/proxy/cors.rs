//! CORS headers for browsers (the Fetch standard's CORS protocol), per endpoint.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, request};

use crate::model::endpoint::Cors;

/// Returns whether a request is a preflight request.
pub(super) fn is_preflight(head: &request::Parts) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains_key(ORIGIN)
        && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns the headers of the answer to a preflight request. If the origin, the method or a header is not allowed, the
/// `access-control-*` headers are missing, and the browser does not send the request.
pub(super) fn preflight_headers(cors: &Cors, request_headers: &HeaderMap) -> HeaderMap {
    let mut answer = HeaderMap::new();
    answer.insert(
        VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    );
    let Some(origin) = allowed_origin(cors, request_headers.get(ORIGIN)) else { return answer };
    let method =
        request_headers.get(ACCESS_CONTROL_REQUEST_METHOD).and_then(|method| method.to_str().ok()).unwrap_or_default();
    let headers =
        request_headers.get(ACCESS_CONTROL_REQUEST_HEADERS).and_then(|names| names.to_str().ok()).unwrap_or_default();
    let names = || headers.split(',').map(str::trim).filter(|name| !name.is_empty());
    let allows_any_header = cors.allow_headers.iter().any(|allowed| allowed == "*");
    let headers_allowed = allows_any_header
        || names().all(|name| cors.allow_headers.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)));
    if !cors.allow_methods.iter().any(|allowed| allowed == method) || !headers_allowed {
        return answer;
    }
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    insert_non_empty(&mut answer, ACCESS_CONTROL_ALLOW_METHODS, &cors.allow_methods.join(", "));
    // When credentials are sent, a browser reads `*` as the name of a header, so the requested names are repeated.
    insert_non_empty(&mut answer, ACCESS_CONTROL_ALLOW_HEADERS, &names().collect::<Vec<_>>().join(", "));
    insert_non_empty(&mut answer, ACCESS_CONTROL_MAX_AGE, &cors.max_age.as_secs().to_string());
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    answer
}

/// Adds the CORS headers of an actual response.
pub(super) fn add_cors_headers(cors: &Cors, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    answer.append(VARY, HeaderValue::from_static("origin"));
    // The rules of the endpoint replace a header of the model.
    answer.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    let Some(origin) = allowed_origin(cors, origin) else { return };
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    insert_non_empty(answer, ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose_headers.join(", "));
}

fn allowed_origin(cors: &Cors, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    let origin = origin?;
    if cors.allow_origins.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    cors.allow_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn insert_non_empty(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}
