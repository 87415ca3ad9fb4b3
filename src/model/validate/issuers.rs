//! Validation of token issuers: `jwt`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::super::endpoint::{Issuer, KeySetSource};
use super::super::problem::{field_path, item_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::{RawIssuer, RawJwt};

const ISSUERS_PATH: &str = "spec.jwt.issuers";

/// Returns `None` if there is no issuer.
pub(super) fn validate_issuers(check: &mut ProblemCollector, jwt: Option<&RawJwt>) -> Option<Vec<Issuer>> {
    let written = jwt.and_then(|jwt| jwt.issuers.as_deref()).unwrap_or_default();
    if written.is_empty() {
        let how = "write `- {issuer: https://…, audiences: […]}`";
        check.report(
            ISSUERS_PATH,
            format!("is missing; `authMode: aad_token` needs to know whose tokens to accept: {how}"),
        );
    }
    let mut issuers: Vec<Issuer> = Vec::with_capacity(written.len());
    for (index, raw) in written.iter().enumerate() {
        let path = item_path(ISSUERS_PATH, index);
        let Some(raw) = raw else {
            check.report(&path, "is empty; remove it, or write an issuer");
            continue;
        };
        let issuer = validate_issuer(check, &path, raw);
        if let Some(first) = issuers.iter().position(|other| other.key_set.issuer == issuer.key_set.issuer) {
            let what = format!("is already that of {}; write all its audiences there", item_path(ISSUERS_PATH, first));
            check.report(&field_path(&path, "issuer"), what);
        }
        issuers.push(issuer);
    }
    (!issuers.is_empty()).then_some(issuers)
}

/// Validates an issuer. Problems are reported.
fn validate_issuer(check: &mut ProblemCollector, path: &str, raw: &RawIssuer) -> Issuer {
    let at = |name| field_path(path, name);
    let allow_http = raw.allow_http.unwrap_or(false);
    let issuer = raw.issuer.clone().unwrap_or_default();
    if issuer.is_empty() {
        check.report(&at("issuer"), "is missing; it is what `iss` says in the issuer's tokens");
    } else if raw.jwks_uri.is_none() {
        // The discovery document is below the issuer's address.
        check_url(check, &at("issuer"), &issuer, allow_http);
    }
    if let Some(uri) = &raw.jwks_uri {
        check_url(check, &at("jwksUri"), uri, allow_http);
    }
    let audiences = validate_words(check, &at("audiences"), raw.audiences.as_deref());
    if audiences.is_empty() {
        let what = "is missing; without it, a token that the issuer gave for any other service would do";
        check.report(&at("audiences"), format!("{what}: write what `aud` says in the tokens meant for this one"));
    }
    Issuer {
        key_set: KeySetSource {
            issuer,
            jwks_uri: raw.jwks_uri.clone(),
            ca_file: validate_file_path(check, &at("caFile"), raw.ca_file.as_deref()),
            bearer_token_file: validate_file_path(check, &at("bearerTokenFile"), raw.bearer_token_file.as_deref()),
            allow_http,
        },
        audiences,
        required_claims: validate_claims(check, &at("requiredClaims"), raw.required_claims.as_ref()),
        scopes: validate_words(check, &at("scopes"), raw.scopes.as_deref()),
        roles: validate_words(check, &at("roles"), raw.roles.as_deref()),
    }
}

/// Reports an address that is not a URL of a document.
fn check_url(check: &mut ProblemCollector, path: &str, given: &str, allow_http: bool) {
    let rest = given.strip_prefix("https://").or_else(|| given.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let is_plain = given.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_some_and(|host| host.contains('@')) {
        // The address is not repeated, because it may contain a password.
        check.report(path, "has a user name or a password in it; remove that, and use `bearerTokenFile`");
    } else if !is_plain || host.is_none_or(str::is_empty) {
        check.report(
            path,
            format!("is {}, which is not an address such as `https://login.example/keys`", quoted(given)),
        );
    } else if given.starts_with("http:") && !allow_http {
        let what = "is plain HTTP, where anybody on the way could put keys of their own; write `https:`";
        check.report(path, format!("{what}, or `allowHttp: true` where nobody can be on the way"));
    }
}

/// Returns the words of a list that are given.
fn validate_words(check: &mut ProblemCollector, path: &str, given: Option<&[Option<String>]>) -> Vec<String> {
    let given = given.unwrap_or_default();
    for (index, _) in given.iter().enumerate().filter(|(_, word)| word.as_deref().unwrap_or_default().is_empty()) {
        check.report(&item_path(path, index), "is empty; remove it, or write a name");
    }
    given.iter().flatten().cloned().collect()
}

fn validate_file_path(check: &mut ProblemCollector, path: &str, given: Option<&str>) -> Option<PathBuf> {
    if given == Some("") {
        check.report(path, "is empty; name a file");
    }
    given.map(PathBuf::from)
}

/// Returns each claim with its accepted values.
fn validate_claims(
    check: &mut ProblemCollector,
    path: &str,
    given: Option<&BTreeMap<String, Value>>,
) -> Vec<(String, Vec<Value>)> {
    let is_plain = |value: &Value| matches!(value, Value::String(_) | Value::Bool(_) | Value::Number(_));
    let mut claims = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let values = match value {
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        if values.is_empty() || !values.iter().all(is_plain) {
            let what = "must be a text, a number, a boolean, or a list of some that will do";
            check.report(&field_path(path, name), what);
        }
        claims.push((name.clone(), values));
    }
    claims
}
