//! Cross-origin rules: `cors`.

use std::time::Duration;

use super::super::check::Check;
use super::super::endpoint::{Cors, defaults};
use super::super::problem::{field, item, quoted};
use super::super::resource::RawCors;
use super::address;

/// Browsers cap it at a day or less.
pub(in crate::model) const MAX_AGE_SECONDS: std::ops::RangeInclusive<i64> = 0..=86_400;
/// Methods that are never forwarded.
const NEVER: [&str; 2] = ["CONNECT", "TRACE"];

/// `None` when there is no origin to allow; what is wrong is noted.
pub(super) fn cors(check: &mut Check, path: &str, raw: &RawCors) -> Option<Cors> {
    let at = |name| field(path, name);
    let origins = list(check, &at("allowOrigins"), raw.allow_origins.as_deref(), &[], origin);
    let methods = list(check, &at("allowMethods"), raw.allow_methods.as_deref(), defaults::CORS_METHODS, method);
    let headers = list(check, &at("allowHeaders"), raw.allow_headers.as_deref(), defaults::CORS_HEADERS, header);
    let exposed = list(check, &at("exposeHeaders"), raw.expose_headers.as_deref(), defaults::CORS_EXPOSED, header);
    let age = check.number(
        &at("maxAgeSeconds"),
        raw.max_age_seconds,
        MAX_AGE_SECONDS,
        defaults::CORS_MAX_AGE_SECONDS,
        " seconds",
    );
    let allow_credentials = raw.allow_credentials.unwrap_or(false);
    if allow_credentials && origins.iter().any(|origin| origin == "*") {
        let why = "cannot be true while `*` is among allowOrigins: any site could then act for a signed-in user";
        check.problem(&at("allowCredentials"), format!("{why}; list the origins that may"));
    }
    if raw.allow_origins.is_none() && *raw != RawCors::default() {
        let how = "list the sites whose pages may call, as `https://app.example`, or `*` for all";
        check.problem(&at("allowOrigins"), format!("is missing; {how}"));
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

/// Each item in its normal form, or the default when there is no list.
fn list(
    check: &mut Check,
    path: &str,
    written: Option<&[Option<String>]>,
    default: &[&str],
    normal: fn(&str) -> Result<String, String>,
) -> Vec<String> {
    let Some(written) = written else { return default.iter().map(|&text| text.to_owned()).collect() };
    let mut checked = Vec::with_capacity(written.len());
    for (index, text) in written.iter().enumerate() {
        let text = text.as_deref().unwrap_or_default();
        checked.extend(check.ok(&item(path, index), normal(text)));
    }
    checked
}

/// As a browser sends it: small letters, no default port, no path.
fn origin(text: &str) -> Result<String, String> {
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
    address::host(host).map_err(|error| wrong(&format!("which {error}")))?;
    let origin = text.to_ascii_lowercase();
    let default_port = match origin.as_str() {
        https if https.starts_with("https://") => ":443",
        http if http.starts_with("http://") => ":80",
        _ => return Ok(origin),
    };
    Ok(origin.strip_suffix(default_port).unwrap_or(&origin).to_owned())
}

fn method(text: &str) -> Result<String, String> {
    let method = text.to_ascii_uppercase();
    if !is_token(text) || method == "*" {
        return Err(format!("is {}, which is not a method; write for example `POST`", quoted(text)));
    }
    if NEVER.contains(&method.as_str()) {
        return Err(format!("is {method}, which the router never forwards; remove it"));
    }
    Ok(method)
}

fn header(text: &str) -> Result<String, String> {
    if is_token(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("is {}, which is not the name of a header; write for example `x-request-id`, or `*`", quoted(text)))
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
