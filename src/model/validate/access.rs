//! Validation of `authMode`, `keys` and `jwt`.

use std::path::PathBuf;

use super::super::endpoint::{Auth, KeySource, SECRET_KEYS};
use super::super::problem::{field_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::{RawKey, RawKeys, RawSpec};
use super::issuers;

/// The shortest key that cannot be guessed over a network.
const MIN_KEY_CHARS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum AuthMode {
    Key,
    None,
    RouterToken,
    IssuerToken,
}

const AUTH_MODES: [(&str, AuthMode); 4] = [
    ("key", AuthMode::Key),
    ("none", AuthMode::None),
    ("aml_token", AuthMode::RouterToken),
    ("aad_token", AuthMode::IssuerToken),
];

/// Returns `None` if there are problems, which are reported.
pub(super) fn validate_auth(check: &mut ProblemCollector, spec: &RawSpec) -> Option<Auth> {
    let mode = match &spec.auth_mode {
        Some(written) => check.keyword("spec.authMode", Some(written), &AUTH_MODES),
        None => Some(AuthMode::Key),
    };
    let written = spec.auth_mode.as_deref().unwrap_or("key");
    let keys = spec.keys.as_ref();
    if keys.is_some() && matches!(mode, Some(AuthMode::None | AuthMode::IssuerToken)) {
        let what = format!("is given, but nobody would be asked for a key with `authMode: {written}`");
        check.report("spec.keys", format!("{what}; remove the keys, or write `authMode: key`"));
    }
    if spec.jwt.is_some() && mode.is_some_and(|mode| mode != AuthMode::IssuerToken) {
        let what = format!("is given, but tokens of issuers are not looked at with `authMode: {written}`");
        check.report("spec.jwt", format!("{what}; remove it, or write `authMode: aad_token`"));
    }
    let sources = keys.map(|keys| key_sources(check, keys)).unwrap_or_default();
    let without_primary = keys.is_none_or(|keys| keys.primary.is_none() && keys.secret_ref.is_none());
    let how = "write `primary: {env: NAME}`, `{file: PATH}` or `{value: …}`, in a cluster `secretRef: {name: …}`";
    match mode? {
        AuthMode::Key => {
            if without_primary {
                let what = format!("is missing; {how}, or `authMode: none` to let anybody in");
                check.report("spec.keys.primary", what);
            }
            Some(Auth::Key(sources))
        }
        AuthMode::RouterToken => {
            if keys.is_some() && without_primary {
                check.report("spec.keys.primary", format!("is missing; {how}, or remove `keys`"));
            }
            Some(Auth::RouterToken(sources))
        }
        AuthMode::IssuerToken => issuers::validate_issuers(check, spec.jwt.as_ref()).map(Auth::IssuerToken),
        AuthMode::None => Some(Auth::None),
    }
}

fn key_sources(check: &mut ProblemCollector, keys: &RawKeys) -> Vec<KeySource> {
    if let Some(secret) = &keys.secret_ref {
        let name = secret.name.clone().unwrap_or_default();
        super::check_secret_name(check, "spec.keys.secretRef.name", &name);
        return SECRET_KEYS.iter().map(|key| KeySource::Secret { name: name.clone(), key }).collect();
    }
    let named = [("primary", keys.primary.as_ref()), ("secondary", keys.secondary.as_ref())];
    let mut sources: Vec<KeySource> = Vec::new();
    for (name, key) in named {
        let Some(key) = key else { continue };
        let path = field_path("spec.keys", name);
        let Some(source) = key_source(check, &path, key) else { continue };
        if sources.contains(&source) {
            check.report(
                &path,
                "is the same as primary; a second key is there to change over to, so make it another one",
            );
        }
        sources.push(source);
    }
    sources
}

fn key_source(check: &mut ProblemCollector, path: &str, key: &RawKey) -> Option<KeySource> {
    let value = key.value.as_ref().map(|value| KeySource::Value(value.0.clone()));
    let env = key.env.clone().map(KeySource::Env);
    let file = key.file.as_ref().map(|file| KeySource::File(PathBuf::from(file)));
    let given: Vec<KeySource> = [value, env, file].into_iter().flatten().collect();
    let count = given.len();
    let Ok([source]) = <[KeySource; 1]>::try_from(given) else {
        let found = if count == 0 { "says nothing" } else { "says more than one thing" };
        check.report(path, format!("{found}; write exactly one of `value`, `env` and `file`"));
        return None;
    };
    let (name, wrong) = match &source {
        KeySource::Value(value) => ("value", key_value_error(value)),
        KeySource::Env(name) => ("env", variable_name_error(name)),
        KeySource::File(file) => ("file", file.as_os_str().is_empty().then(|| "is empty; name a file".to_owned())),
        // This source is never one of the three.
        KeySource::Secret { .. } => return None,
    };
    if let Some(wrong) = wrong {
        check.report(&field_path(path, name), wrong);
        return None;
    }
    Some(source)
}

/// Returns what is wrong with a key. The key itself is never part of the message.
fn key_value_error(value: &str) -> Option<String> {
    let length = value.chars().count();
    if length < MIN_KEY_CHARS {
        let how = "make one with `openssl rand -hex 32`";
        return Some(format!(
            "has {length} characters, too short to resist guessing; {MIN_KEY_CHARS} is the least: {how}"
        ));
    }
    // A client sends the key in a header, where blanks end it.
    (!value.bytes().all(|b| b.is_ascii_graphic()))
        .then(|| "has blanks, control or non-ASCII characters, which a bearer token cannot have".to_owned())
}

fn variable_name_error(name: &str) -> Option<String> {
    let wrong = name.is_empty() || name.contains(['=', '\0', ' ']);
    wrong.then(|| format!("is {}, which cannot be the name of an environment variable", quoted(name)))
}
