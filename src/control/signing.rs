//! The keys that the router signs its own tokens with: read from files, again when they change.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::files::Watch;
use super::index::Desired;
use super::small_file;
use crate::model::limits::TokenSettings;
use crate::model::problem::{Problem, item};
use crate::policy::signing::Signing;
use crate::state::metrics::Metrics;
use crate::state::status::{Part, Status};
use crate::state::tokens::Tokens;

const CURRENT: &str = "tokens.signingKeyFile";
const PREVIOUS: &str = "tokens.previousKeyFiles";

/// Reads the keys; `None` where the settings name no key to sign with.
///
/// # Errors
/// Which file is wrong, and how.
pub fn read(settings: &TokenSettings) -> Result<Option<Signing>, Problem> {
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

fn pem(field: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    small_file::read(path).map_err(|error| Problem::new(field, format!("{} cannot be read: {error}", path.display())))
}

/// Endpoints that need the router's tokens, where it signs none.
pub fn missing(settings: &TokenSettings, endpoints: &[Desired]) -> Vec<Problem> {
    let needs =
        endpoints.iter().filter(|endpoint| endpoint.access.needs_signing() && settings.signing_key_file.is_none());
    let says = |endpoint: &Desired| {
        let what = format!("is missing, but the endpoint {} has `authMode: aml_token`", endpoint.spec.name);
        Problem::new(CURRENT, format!("{what}; make a key with `inference-router keys signing --file FILE`"))
    };
    needs.map(says).collect()
}

/// Reads the keys again whenever their files change. Keys that are broken leave those of before in place. Does not end.
pub async fn follow(settings: TokenSettings, tokens: Arc<Tokens>, metrics: Arc<Metrics>, status: Arc<Status>) {
    let files: Vec<PathBuf> = settings.signing_key_file.iter().chain(&settings.previous_key_files).cloned().collect();
    if files.is_empty() {
        return pending().await;
    }
    // A few short files: their contents say more than their stamps.
    let look = || files.iter().map(|file| small_file::read(file).ok().map(Sha256::digest)).collect::<Vec<_>>();
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
        let signing = read(&settings);
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
