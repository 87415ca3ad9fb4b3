//! The keys that the router signs its own tokens with: read from files or a Secret, again when they change.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::files::Watch;
use super::index::Desired;
use super::secrets::NamedSecrets;
use super::small_file;
use crate::model::limits::{PREVIOUS_KEY, SIGNING_KEY, TokenSettings};
use crate::model::problem::{Problem, item};
use crate::policy::signing::Signing;
use crate::state::metrics::Metrics;
use crate::state::status::{Part, Status};
use crate::state::tokens::Tokens;

const CURRENT: &str = "tokens.signingKeyFile";
const PREVIOUS: &str = "tokens.previousKeyFiles";
const SECRET: &str = "tokens.signingSecret";

/// Reads the keys; `None` where the settings name no key to sign with.
///
/// # Errors
/// Which file is wrong, and how; or what is wrong with the Secret.
pub fn read(settings: &TokenSettings, secrets: &NamedSecrets) -> Result<Option<Signing>, Problem> {
    if let Some(name) = &settings.signing_secret {
        let signing = in_secret(settings, name, secrets);
        return signing.map(Some).map_err(|what| Problem::new(SECRET, format!("names the Secret {name}: {what}")));
    }
    let Some(current) = &settings.signing_key_file else { return Ok(None) };
    let pem = pem(CURRENT, current)?;
    let previous = settings.previous_key_files.iter().enumerate();
    let previous: Vec<Vec<u8>> =
        previous.map(|(index, path)| self::pem(&item(PREVIOUS, index), path)).collect::<Result<_, _>>()?;
    let signing = Signing::new(&settings.issuer, settings.lifetime, &pem, &previous);
    signing.map(Some).map_err(|wrong| {
        let (field, path) = match wrong.previous {
            Some(index) => (item(PREVIOUS, index), &settings.previous_key_files[index]),
            None => (CURRENT.to_owned(), current),
        };
        Problem::new(field, format!("{} {wrong}", path.display()))
    })
}

/// What is wrong with the files that the settings name.
pub fn check(settings: &TokenSettings) -> Option<Problem> {
    // What is in a Secret, only the cluster knows.
    let is_secret = settings.signing_secret.is_some();
    if is_secret { None } else { read(settings, &NamedSecrets::default()).err() }
}

fn in_secret(settings: &TokenSettings, name: &str, secrets: &NamedSecrets) -> Result<Signing, String> {
    let entries = secrets.get(name)?;
    let current = entries.get(SIGNING_KEY).ok_or_else(|| {
        format!("it has no entry `{SIGNING_KEY}`; make a key with `inference-router keys signing --file FILE`")
    })?;
    let (names, previous): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter(|(name, _)| name.starts_with(PREVIOUS_KEY))
        .map(|(name, key)| (name, key.clone()))
        .unzip();
    Signing::new(&settings.issuer, settings.lifetime, current, &previous)
        .map_err(|wrong| format!("its entry `{}` {wrong}", wrong.previous.map_or(SIGNING_KEY, |index| names[index])))
}

fn pem(field: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    small_file::read(path).map_err(|error| Problem::new(field, format!("{} cannot be read: {error}", path.display())))
}

/// Endpoints that need the router's tokens, where it signs none.
pub fn missing(settings: &TokenSettings, endpoints: &[Desired]) -> Vec<Problem> {
    let needs = endpoints.iter().filter(|endpoint| endpoint.access.needs_signing() && !settings.is_signing());
    let says = |endpoint: &Desired| {
        let what = format!("is missing, but the endpoint {} has `authMode: aml_token`", endpoint.spec.name);
        Problem::new(CURRENT, format!("{what}; make a key with `inference-router keys signing --file FILE`"))
    };
    needs.map(says).collect()
}

/// Reads the keys again whenever their files or their Secret change. Keys that are broken leave those of before in place.
/// Does not end.
pub async fn follow(
    settings: TokenSettings,
    secrets: NamedSecrets,
    tokens: Arc<Tokens>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
) {
    let files: Vec<PathBuf> = settings.signing_key_file.iter().chain(&settings.previous_key_files).cloned().collect();
    if !settings.is_signing() {
        return pending().await;
    }
    // A few short files: their contents say more than their stamps.
    let look = || {
        let in_files = files.iter().map(|file| small_file::read(file).map_err(|error| error.to_string()));
        let in_secret = settings.signing_secret.iter().flat_map(|name| match secrets.get(name) {
            Ok(entries) => entries.iter().flat_map(|(name, key)| [Ok(name.clone().into()), Ok(key.clone())]).collect(),
            Err(what) => vec![Err(what)],
        });
        in_files.chain(in_secret).map(|read| read.map(Sha256::digest)).collect::<Vec<_>>()
    };
    let mut known = look();
    let mut watch = Watch::new(&files);
    loop {
        let _ = watch.changed().await;
        watch.looked(Duration::ZERO);
        let now = look();
        if now == known {
            continue;
        }
        known = now;
        let signing = read(&settings, &secrets);
        metrics.reloads.with_label_values(&[if signing.is_ok() { "ok" } else { "error" }]).inc();
        status.set_problems(Part::Tokens, signing.as_ref().err().cloned().into_iter().collect());
        match signing {
            Ok(signing) => {
                tracing::info!("the keys that tokens are signed with have changed");
                tokens.signing.store(signing.map(Arc::new));
                tokens.good.forget();
            }
            Err(problem) => tracing::error!(%problem, "the keys that tokens are signed with stay as they were"),
        }
    }
}
