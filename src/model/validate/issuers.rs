//! Whose tokens are accepted: `jwt`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::super::check::Check;
use super::super::endpoint::{Issuer, KeySetSource};
use super::super::problem::{field, item, quoted};
use super::super::resource::{RawIssuer, RawJwt};

const PATH: &str = "spec.jwt.issuers";

/// `None` when there is none.
pub(super) fn issuers(check: &mut Check, jwt: Option<&RawJwt>) -> Option<Vec<Issuer>> {
    let written = jwt.and_then(|jwt| jwt.issuers.as_deref()).unwrap_or_default();
    if written.is_empty() {
        let how = "write `- {issuer: https://…, audiences: […]}`";
        check.problem(PATH, format!("is missing; `authMode: aad_token` needs to know whose tokens to accept: {how}"));
    }
    let mut issuers: Vec<Issuer> = Vec::with_capacity(written.len());
    for (index, raw) in written.iter().enumerate() {
        let path = item(PATH, index);
        let Some(raw) = raw else {
            check.problem(&path, "is empty; remove it, or write an issuer");
            continue;
        };
        let issuer = issuer(check, &path, raw);
        if let Some(first) = issuers.iter().position(|other| other.keys.issuer == issuer.keys.issuer) {
            let what = format!("is already that of {}; write all its audiences there", item(PATH, first));
            check.problem(&field(&path, "issuer"), what);
        }
        issuers.push(issuer);
    }
    (!issuers.is_empty()).then_some(issuers)
}

/// An issuer; what is wrong with it is noted.
fn issuer(check: &mut Check, path: &str, raw: &RawIssuer) -> Issuer {
    let at = |name| field(path, name);
    let allow_http = raw.allow_http.unwrap_or(false);
    let issuer = raw.issuer.clone().unwrap_or_default();
    if issuer.is_empty() {
        check.problem(&at("issuer"), "is missing; it is what `iss` says in the issuer's tokens");
    } else if raw.jwks_uri.is_none() {
        // Its discovery document is looked for there.
        address(check, &at("issuer"), &issuer, allow_http);
    }
    if let Some(uri) = &raw.jwks_uri {
        address(check, &at("jwksUri"), uri, allow_http);
    }
    let audiences = words(check, &at("audiences"), raw.audiences.as_deref());
    if audiences.is_empty() {
        let what = "is missing; without it, a token that the issuer gave for any other service would do";
        check.problem(&at("audiences"), format!("{what}: write what `aud` says in the tokens meant for this one"));
    }
    Issuer {
        keys: KeySetSource {
            issuer,
            jwks_uri: raw.jwks_uri.clone(),
            ca_file: file(check, &at("caFile"), raw.ca_file.as_deref()),
            bearer_token_file: file(check, &at("bearerTokenFile"), raw.bearer_token_file.as_deref()),
            allow_http,
        },
        audiences,
        required_claims: claims(check, &at("requiredClaims"), raw.required_claims.as_ref()),
        scopes: words(check, &at("scopes"), raw.scopes.as_deref()),
        roles: words(check, &at("roles"), raw.roles.as_deref()),
    }
}

/// Notes what is not the address of a document.
fn address(check: &mut Check, path: &str, given: &str, allow_http: bool) {
    let rest = given.strip_prefix("https://").or_else(|| given.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let is_plain = given.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_some_and(|host| host.contains('@')) {
        // Not repeated: it may be a password.
        check.problem(path, "has a user name or a password in it; remove that, and use `bearerTokenFile`");
    } else if !is_plain || host.is_none_or(str::is_empty) {
        check.problem(
            path,
            format!("is {}, which is not an address such as `https://login.example/keys`", quoted(given)),
        );
    } else if given.starts_with("http:") && !allow_http {
        let what = "is plain HTTP, where anybody on the way could put keys of their own; write `https:`";
        check.problem(path, format!("{what}, or `allowHttp: true` where nobody can be on the way"));
    }
}

/// The words of a list that are there.
fn words(check: &mut Check, path: &str, given: Option<&[Option<String>]>) -> Vec<String> {
    let given = given.unwrap_or_default();
    for (index, _) in given.iter().enumerate().filter(|(_, word)| word.as_deref().unwrap_or_default().is_empty()) {
        check.problem(&item(path, index), "is empty; remove it, or write a name");
    }
    given.iter().flatten().cloned().collect()
}

fn file(check: &mut Check, path: &str, given: Option<&str>) -> Option<PathBuf> {
    if given == Some("") {
        check.problem(path, "is empty; name a file");
    }
    given.map(PathBuf::from)
}

/// Each claim with the values that will do.
fn claims(check: &mut Check, path: &str, given: Option<&BTreeMap<String, Value>>) -> Vec<(String, Vec<Value>)> {
    let is_plain = |value: &Value| matches!(value, Value::String(_) | Value::Bool(_) | Value::Number(_));
    let mut claims = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let values = match value {
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        if values.is_empty() || !values.iter().all(is_plain) {
            let what = "must be a text, a number, a boolean, or a list of some that will do";
            check.problem(&field(path, name), what);
        }
        claims.push((name.clone(), values));
    }
    claims
}
