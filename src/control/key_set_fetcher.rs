//! Fetches the key sets of token issuers ahead of need, once for all workers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, HeaderMap};
use reqwest::{Certificate, Client, Url};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::small_file;
use crate::model::endpoint::KeySetSource;
use crate::policy::token::KeySet;
use crate::state::key_sets::RemoteKeySet;
use crate::state::metrics::Metrics;
use crate::state::tokens::TokenState;

/// The longest time for one fetch, discovery included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest accepted document of an issuer.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// How long keys are valid if the issuer does not say.
const DEFAULT_KEY_SET_TTL: Duration = Duration::from_secs(3600);
/// The shortest accepted validity, whatever the issuer says.
const MIN_KEY_SET_TTL: Duration = Duration::from_secs(300);
/// The longest accepted validity, whatever the issuer says.
const MAX_KEY_SET_TTL: Duration = Duration::from_secs(86_400);
/// How long keys are used that could not be fetched again.
const MAX_KEY_SET_STALENESS: Duration = Duration::from_secs(86_400);
/// The delay after the first failed fetch. It doubles with each further one.
const INITIAL_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest delay after a failed fetch.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Why a key set could not be fetched, with advice where there is any.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The connection, the TLS handshake or the HTTP exchange failed.
    #[error("{url}: {}", error_chain(.error))]
    Http {
        /// The address that was requested.
        url: String,
        /// The error of the client.
        error: reqwest::Error,
    },
    /// The issuer answered with another status than 200.
    #[error("{url} answers {status}{}", if .status.is_redirection() { "; redirects are not followed, name the address itself" } else { "" })]
    Status {
        /// The address that was requested.
        url: String,
        /// The status of the answer.
        status: reqwest::StatusCode,
    },
    /// The document at this address is too large.
    #[error("{0} sends more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge(String),
    /// The document is not what it should be.
    #[error("{url}: {what}")]
    InvalidContent {
        /// The address that was requested.
        url: String,
        /// What is wrong with the document.
        what: String,
    },
    /// A file that belongs to the issuer's settings cannot be used.
    #[error("{path}: {what}")]
    File {
        /// The path of the file.
        path: String,
        /// What is wrong with the file.
        what: String,
    },
    /// The fetch took too long.
    #[error("no answer within {} s", FETCH_TIMEOUT.as_secs())]
    TimedOut,
}

/// Keeps the key set of every trusted issuer fresh. This never returns.
pub async fn run(tokens: Arc<TokenState>, metrics: Arc<Metrics>) {
    let mut refresh_tasks = JoinSet::new();
    loop {
        tokio::select! {
            added = tokens.key_sets.next_unclaimed() => {
                for set in added {
                    refresh_tasks.spawn(refresh_until_unused(set, tokens.clone(), metrics.clone(), fetch_key_set));
                }
            }
            Some(_) = refresh_tasks.join_next() => {}
        }
    }
}

/// Fetches one key set again and again, until no endpoint uses it any more.
async fn refresh_until_unused<F>(
    set: Arc<RemoteKeySet>,
    tokens: Arc<TokenState>,
    metrics: Arc<Metrics>,
    fetch: impl Fn(KeySetSource) -> F,
) where
    F: Future<Output = Result<(KeySet, Option<Duration>), FetchError>>,
{
    let (issuer, mut last_success, mut failures) = (set.source.issuer.clone(), None::<Instant>, 0_u32);
    while !tokens.key_sets.remove_if_unused(&set) {
        set.begin_refresh();
        let started = Instant::now();
        let result =
            tokio::time::timeout(FETCH_TIMEOUT, fetch(set.source.clone())).await.unwrap_or(Err(FetchError::TimedOut));
        metrics.record_key_set_fetch(&issuer, result.is_ok());
        let (keys, next_delay) = match result {
            Ok((keys, age)) => {
                if failures > 0 || last_success.is_none() {
                    tracing::info!(issuer, "fetched key set");
                }
                (last_success, failures) = (Some(started), 0);
                (Some(keys), age.unwrap_or(DEFAULT_KEY_SET_TTL).clamp(MIN_KEY_SET_TTL, MAX_KEY_SET_TTL) / 5 * 4)
            }
            Err(error) => {
                let is_stale = last_success.is_none_or(|at| at.elapsed() >= MAX_KEY_SET_STALENESS);
                let keys = if is_stale { "tokens are refused" } else { "those of before serve" };
                tracing::warn!(issuer, %error, "key set fetch failed; {keys}");
                if is_stale && set.keys().is_some() {
                    set.remove_expired_keys();
                    tokens.verified.invalidate_all();
                }
                failures += 1;
                (None, MAX_RETRY_DELAY.min(INITIAL_RETRY_DELAY * 2_u32.saturating_pow(failures - 1)))
            }
        };
        if set.finish_refresh(keys) {
            tokens.verified.invalidate_all();
        }
        tokio::select! {
            () = sleep(next_delay) => {}
            () = set.wait_for_refresh_request() => {}
        }
    }
}

/// Fetches the key set of an issuer. Returns it with its validity, if the issuer states one.
async fn fetch_key_set(source: KeySetSource) -> Result<(KeySet, Option<Duration>), FetchError> {
    let client = http_client(&source)?;
    let uri = match &source.jwks_uri {
        Some(uri) => uri.clone(),
        None => discover_jwks_uri(&client, &source).await?,
    };
    let (body, headers) = get_document(&client, &source, &uri).await?;
    let keys = KeySet::parse(&body).map_err(|what| FetchError::InvalidContent { url: uri, what })?;
    Ok((keys, max_age(&headers)))
}

/// Returns the address of the key set from the issuer's discovery document (OpenID Connect Discovery 1.0).
async fn discover_jwks_uri(client: &Client, source: &KeySetSource) -> Result<String, FetchError> {
    #[derive(Deserialize)]
    struct DiscoveryDocument {
        issuer: String,
        jwks_uri: String,
    }
    let url = format!("{}/.well-known/openid-configuration", source.issuer.trim_end_matches('/'));
    let (body, _) = get_document(client, source, &url).await?;
    let content_error = |what: String| FetchError::InvalidContent { url: url.clone(), what };
    let found: DiscoveryDocument = serde_json::from_slice(&body)
        .map_err(|error| content_error(format!("it is not a discovery document: {error}")))?;
    if found.issuer != source.issuer {
        return Err(content_error(format!(
            "it is the document of the issuer {:?}; write that, letter by letter",
            found.issuer
        )));
    }
    Ok(found.jwks_uri)
}

/// Returns problems of the files that belong to an issuer: the field, and what is wrong.
pub(super) fn check_issuer_files(source: &KeySetSource) -> Vec<(&'static str, String)> {
    let authorities = http_client(source).err().map(|error| ("caFile", error.to_string()));
    let token = source.bearer_token_file.as_deref().and_then(|path| read_issuer_file(path).err());
    authorities.into_iter().chain(token.map(|error| ("bearerTokenFile", error.to_string()))).collect()
}

/// Creates a client that trusts the configured certificate authorities and uses the proxy of the environment.
fn http_client(source: &KeySetSource) -> Result<Client, FetchError> {
    let mut builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .https_only(!source.allow_http)
        .connect_timeout(FETCH_TIMEOUT / 2)
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &source.ca_file {
        let file_error = |what: String| FetchError::File { path: path.display().to_string(), what };
        let certificates =
            Certificate::from_pem_bundle(&read_issuer_file(path)?).map_err(|error| file_error(error_chain(&error)))?;
        if certificates.is_empty() {
            return Err(file_error("has no certificate in PEM".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| FetchError::Http { url: source.issuer.clone(), error })
}

async fn get_document(client: &Client, source: &KeySetSource, url: &str) -> Result<(Vec<u8>, HeaderMap), FetchError> {
    let http_error = |error| FetchError::Http { url: url.to_owned(), error };
    let mut request = client.get(url).header(ACCEPT, "application/json");
    if let Some(path) = &source.bearer_token_file
        && is_configured_origin(source, url)
    {
        let token = String::from_utf8_lossy(&read_issuer_file(path)?).trim().to_owned();
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut response = request.send().await.map_err(http_error)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http_error)? {
        if body.len() + chunk.len() > MAX_DOCUMENT_BYTES {
            return Err(FetchError::TooLarge(url.to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, std::mem::take(response.headers_mut())))
}

/// Returns whether `url` has the origin that the settings name. The router's own bearer token is sent nowhere else,
/// whatever a discovery document says.
fn is_configured_origin(source: &KeySetSource, url: &str) -> bool {
    let origin = |url: &str| Url::parse(url).ok().map(|url| url.origin());
    origin(source.jwks_uri.as_deref().unwrap_or(&source.issuer)) == origin(url)
}

fn read_issuer_file(path: &Path) -> Result<Vec<u8>, FetchError> {
    small_file::read(path).map_err(|error| FetchError::File {
        path: path.display().to_string(),
        what: format!("cannot be read: {error}"),
    })
}

/// Returns the `max-age` of `cache-control`.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = directives.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_lowercase());
    let age = directives.find_map(|directive| directive.strip_prefix("max-age=")?.trim_matches('"').parse().ok())?;
    Some(Duration::from_secs(age))
}

/// Formats an error with its causes, because the message of the library leaves out the reason.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
