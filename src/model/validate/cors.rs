//! Validation of cross-origin rules: `cors`.

use std::time::Duration;

use super::super::endpoint::{Cors, defaults};
use super::super::problem::{field_path, item_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::RawCors;
use super::address;

/// Browsers limit the time to a day or less.
pub(in crate::model) const MAX_AGE_SECONDS_RANGE: std::ops::RangeInclusive<i64> = 0..=86_400;
/// Methods that are never forwarded.
const FORBIDDEN_METHODS: [&str; 2] = ["CONNECT", "TRACE"];

/// Returns `None` if no origin is allowed. Problems are reported.
pub(super) fn validate_cors(check: &mut ProblemCollector, path: &str, raw: &RawCors) -> Option<Cors> {
    let at = |name| field_path(path, name);
    let origins = normalized_list(check, &at("allowOrigins"), raw.allow_origins.as_deref(), &[], normalize_origin);
    let methods = normalized_list(
        check,
        &at("allowMethods"),
        raw.allow_methods.as_deref(),
        defaults::CORS_METHODS,
        normalize_method,
    );
    let headers = normalized_list(
        check,
        &at("allowHeaders"),
        raw.allow_headers.as_deref(),
        defaults::CORS_HEADERS,
        normalize_header_name,
    );
    let exposed = normalized_list(
        check,
        &at("exposeHeaders"),
        raw.expose_headers.as_deref(),
        defaults::CORS_EXPOSED,
        normalize_header_name,
    );
    let age = check.number_in_range(
        &at("maxAgeSeconds"),
        raw.max_age_seconds,
        MAX_AGE_SECONDS_RANGE,
        defaults::CORS_MAX_AGE_SECONDS,
        " seconds",
    );
    let allow_credentials = raw.allow_credentials.unwrap_or(false);
    if allow_credentials && origins.iter().any(|origin| origin == "*") {
        let why = "cannot be true while `*` is among allowOrigins: any site could then act for a signed-in user";
        check.report(&at("allowCredentials"), format!("{why}; list the origins that may"));
    }
    if raw.allow_origins.is_none() && *raw != RawCors::default() {
        let how = "list the sites whose pages may call, as `https://app.example`, or `*` for all";
        check.report(&at("allowOrigins"), format!("is missing; {how}"));
    }
    (!origins.is_empty()).then(|| Cors {
        allow_origins: origins,
        allow_methods: methods,
        allow_headers: headers,
        expose_headers: exposed,
        allow_credentials,
        max_age: Duration::from_secs(age.unsigned_abs()),
    })
}

/// Returns each item in its normal form, or the default if there is no list.
fn normalized_list(
    check: &mut ProblemCollector,
    path: &str,
    written: Option<&[Option<String>]>,
    default: &[&str],
    normalize: fn(&str) -> Result<String, String>,
) -> Vec<String> {
    let Some(written) = written else { return default.iter().map(|&text| text.to_owned()).collect() };
    let mut checked = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let text = text.as_deref().unwrap_or_default();
        checked.extend(check.ok_or_report(&item_path(path, index), normalize(text)));
    }
    checked
}

/// Returns an origin as browsers send it: lower case, without the default port and without a path.
fn normalize_origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let wrong = |why: &str| format!("is {}, {why}", quoted(text));
    let (scheme, host) =
        text.split_once("://").ok_or_else(|| wrong("but an origin is `scheme://host[:port]`, or `*` for any"))?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    if !scheme_ok {
        return Err(wrong("which has no scheme such as `https` before `://`"));
    }
    if host.contains('*') {
        return Err(wrong("but `*` cannot be part of an origin; list each, or write only `*`"));
    }
    if host.contains(['/', '?', '#']) {
        return Err(wrong("but browsers send origins without a path, not even `/` at the end"));
    }
    address::validate_host_header(host).map_err(|error| wrong(&format!("which {error}")))?;
    let origin = text.to_ascii_lowercase();
    let default_port = match origin.as_str() {
        https if https.starts_with("https://") => ":443",
        http if http.starts_with("http://") => ":80",
        _ => return Ok(origin),
    };
    Ok(origin.strip_suffix(default_port).unwrap_or(&origin).to_owned())
}

fn normalize_method(text: &str) -> Result<String, String> {
    let method = text.to_ascii_uppercase();
    if !is_token(text) || method == "*" {
        return Err(format!("is {}, which is not a method; write for example `POST`", quoted(text)));
    }
    if FORBIDDEN_METHODS.contains(&method.as_str()) {
        return Err(format!("is {method}, which the router never forwards; remove it"));
    }
    Ok(method)
}

fn normalize_header_name(text: &str) -> Result<String, String> {
    if is_token(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("is {}, which is not the name of a header; write for example `x-request-id`, or `*`", quoted(text)))
}

/// Returns whether `text` is a token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
