//! The keys that the router signs its own tokens with. They are read from files or a Secret, and again when these
//! change.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::document_files::FileWatcher;
use super::index::DesiredEndpoint;
use super::secret_cache::SecretCache;
use super::small_file;
use crate::model::problem::{Problem, item_path};
use crate::model::router_settings::{PREVIOUS_KEY_ENTRY_PREFIX, SIGNING_KEY_ENTRY, TokenSettings};
use crate::policy::signing::TokenSigner;
use crate::state::control_plane_status::{ControlPlaneStatus, Subsystem};
use crate::state::metrics::Metrics;
use crate::state::tokens::TokenState;

const SIGNING_KEY_FILE_FIELD: &str = "tokens.signingKeyFile";
const PREVIOUS_KEY_FILES_FIELD: &str = "tokens.previousKeyFiles";
const SIGNING_SECRET_FIELD: &str = "tokens.signingSecret";

/// Reads the keys. Returns `None` if the settings name no signing key.
///
/// # Errors
///
/// Which file or entry is wrong, and what is wrong with it.
pub fn read_signing_keys(settings: &TokenSettings, secrets: &SecretCache) -> Result<Option<TokenSigner>, Problem> {
    if let Some(name) = &settings.signing_secret {
        let signing = read_from_secret(settings, name, secrets);
        return signing
            .map(Some)
            .map_err(|what| Problem::new(SIGNING_SECRET_FIELD, format!("names the Secret {name}: {what}")));
    }
    let Some(current) = &settings.signing_key_file else { return Ok(None) };
    let pem = read_pem(SIGNING_KEY_FILE_FIELD, current)?;
    let previous = settings.previous_key_files.iter().enumerate();
    let previous: Vec<Vec<u8>> = previous
        .map(|(index, path)| self::read_pem(&item_path(PREVIOUS_KEY_FILES_FIELD, index), path))
        .collect::<Result<_, _>>()?;
    let signing = TokenSigner::new(&settings.issuer, settings.lifetime, &pem, &previous);
    signing.map(Some).map_err(|wrong| {
        let (field, path) = match wrong.previous {
            Some(index) => (item_path(PREVIOUS_KEY_FILES_FIELD, index), &settings.previous_key_files[index]),
            None => (SIGNING_KEY_FILE_FIELD.to_owned(), current),
        };
        Problem::new(field, format!("{} {wrong}", path.display()))
    })
}

/// Returns the problem of the files that the settings name.
pub fn check_key_files(settings: &TokenSettings) -> Option<Problem> {
    // The content of a Secret is known only with the cluster.
    let is_secret = settings.signing_secret.is_some();
    if is_secret { None } else { read_signing_keys(settings, &SecretCache::default()).err() }
}

fn read_from_secret(settings: &TokenSettings, name: &str, secrets: &SecretCache) -> Result<TokenSigner, String> {
    let entries = secrets.get(name)?;
    let current = entries.get(SIGNING_KEY_ENTRY).ok_or_else(|| {
        format!("it has no entry `{SIGNING_KEY_ENTRY}`; make a key with `inference-router keys signing --file FILE`")
    })?;
    let (names, previous): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter(|(name, _)| name.starts_with(PREVIOUS_KEY_ENTRY_PREFIX))
        .map(|(name, key)| (name, key.clone()))
        .unzip();
    TokenSigner::new(&settings.issuer, settings.lifetime, current, &previous).map_err(|wrong| {
        format!("its entry `{}` {wrong}", wrong.previous.map_or(SIGNING_KEY_ENTRY, |index| names[index]))
    })
}

fn read_pem(field: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    small_file::read(path).map_err(|error| Problem::new(field, format!("{} cannot be read: {error}", path.display())))
}

/// Returns problems of endpoints that need the router's tokens although it has no signing key.
pub fn missing_key_problems(settings: &TokenSettings, endpoints: &[DesiredEndpoint]) -> Vec<Problem> {
    let without_key = endpoints.iter().filter(|endpoint| endpoint.access.needs_signing() && !settings.is_signing());
    let to_problem = |endpoint: &DesiredEndpoint| {
        let what = format!("is missing, but the endpoint {} has `authMode: aml_token`", endpoint.spec.name);
        Problem::new(
            SIGNING_KEY_FILE_FIELD,
            format!("{what}; make a key with `inference-router keys signing --file FILE`"),
        )
    };
    without_key.map(to_problem).collect()
}

/// Reads the keys again whenever their files or their Secret change. Invalid keys leave the previous ones in place.
/// This never returns.
pub async fn watch_signing_keys(
    settings: TokenSettings,
    secrets: SecretCache,
    tokens: Arc<TokenState>,
    metrics: Arc<Metrics>,
    status: Arc<ControlPlaneStatus>,
) {
    let files: Vec<PathBuf> = settings.signing_key_file.iter().chain(&settings.previous_key_files).cloned().collect();
    if !settings.is_signing() {
        return pending().await;
    }
    // The files are few and short, and their content is more reliable than their stamps.
    let read_digests = || {
        let in_files = files.iter().map(|file| small_file::read(file).map_err(|error| error.to_string()));
        let in_secret = settings.signing_secret.iter().flat_map(|name| match secrets.get(name) {
            Ok(entries) => entries.iter().flat_map(|(name, key)| [Ok(name.clone().into()), Ok(key.clone())]).collect(),
            Err(what) => vec![Err(what)],
        });
        in_files.chain(in_secret).map(|read| read.map(Sha256::digest)).collect::<Vec<_>>()
    };
    let mut last_digests = read_digests();
    let mut watch = FileWatcher::new(&files);
    loop {
        let _ = watch.changed().await;
        watch.schedule_next_poll(Duration::ZERO);
        let digests = read_digests();
        if digests == last_digests {
            continue;
        }
        last_digests = digests;
        let signing = read_signing_keys(&settings, &secrets);
        metrics.config_reloads.with_label_values(&[if signing.is_ok() { "ok" } else { "error" }]).inc();
        status.set_problems(Subsystem::Tokens, signing.as_ref().err().cloned().into_iter().collect());
        match signing {
            Ok(signing) => {
                tracing::info!("reloaded signing keys");
                tokens.signing.store(signing.map(Arc::new));
                tokens.verified.invalidate_all();
            }
            Err(problem) => tracing::error!(%problem, "invalid signing keys; keeping the previous ones"),
        }
    }
}
