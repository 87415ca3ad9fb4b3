//! Fetches the public keys of issuers ahead of need, once for all workers.

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
use crate::state::key_sets::KeySetOf;
use crate::state::metrics::Metrics;
use crate::state::tokens::Tokens;

/// Longest time for one fetch, discovery and keys together.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest document of an issuer.
const MOST_BYTES: usize = 1 << 20;
/// How long keys are good where the issuer does not say.
const USUAL_AGE: Duration = Duration::from_secs(3600);
/// Whatever it says: not asked more often than this…
const LEAST_AGE: Duration = Duration::from_secs(300);
/// …nor less often.
const MOST_AGE: Duration = Duration::from_secs(86_400);
/// Keys that could not be fetched again serve this long.
const STALE: Duration = Duration::from_secs(86_400);
/// After a failed fetch; doubled with each further one…
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// …up to this.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Why keys could not be fetched; says what to do where somebody can.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The connection, TLS, or the HTTP of it.
    #[error("{url}: {}", chain(.error))]
    Http {
        /// What was asked for.
        url: String,
        /// What went wrong.
        error: reqwest::Error,
    },
    /// Another status than 200.
    #[error("{url} answers {status}{}", if .status.is_redirection() { "; redirects are not followed, name the address itself" } else { "" })]
    Status {
        /// What was asked for.
        url: String,
        /// What came.
        status: reqwest::StatusCode,
    },
    /// A document that goes on and on.
    #[error("{0} sends more than {MOST_BYTES} bytes")]
    TooLarge(String),
    /// Not what it should be.
    #[error("{url}: {what}")]
    Content {
        /// What was asked for.
        url: String,
        /// What is wrong with what came.
        what: String,
    },
    /// A file that goes with the issuer.
    #[error("{path}: {what}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// It took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Slow,
}

/// Keeps the keys of every issuer fresh that an endpoint trusts. Does not end.
pub async fn follow(tokens: Arc<Tokens>, metrics: Arc<Metrics>) {
    let mut fresh = JoinSet::new();
    loop {
        tokio::select! {
            added = tokens.key_sets.added() => {
                for set in added {
                    fresh.spawn(keep_fresh(set, tokens.clone(), metrics.clone(), fetch));
                }
            }
            Some(_) = fresh.join_next() => {}
        }
    }
}

/// Fetches one set again and again, until no endpoint has it any more.
async fn keep_fresh<F>(
    set: Arc<KeySetOf>,
    tokens: Arc<Tokens>,
    metrics: Arc<Metrics>,
    fetch: impl Fn(KeySetSource) -> F,
) where
    F: Future<Output = Result<(KeySet, Option<Duration>), FetchError>>,
{
    let (issuer, mut fetched, mut failures) = (set.source.issuer.clone(), None::<Instant>, 0_u32);
    while !tokens.key_sets.retire(&set) {
        set.take_off();
        let began = Instant::now();
        let result = tokio::time::timeout(TIMEOUT, fetch(set.source.clone())).await.unwrap_or(Err(FetchError::Slow));
        metrics.token_keys_fetched(&issuer, result.is_ok());
        let (keys, rest) = match result {
            Ok((keys, age)) => {
                if failures > 0 || fetched.is_none() {
                    tracing::info!(issuer, "the issuer's keys are fetched");
                }
                (fetched, failures) = (Some(began), 0);
                (Some(keys), age.unwrap_or(USUAL_AGE).clamp(LEAST_AGE, MOST_AGE) / 5 * 4)
            }
            Err(error) => {
                let stale = fetched.is_none_or(|at| at.elapsed() >= STALE);
                let keys = if stale { "tokens are refused" } else { "those of before serve" };
                tracing::warn!(issuer, %error, "the issuer's keys cannot be fetched; {keys}");
                if stale && set.keys().is_some() {
                    set.expire();
                    tokens.good.forget();
                }
                failures += 1;
                (None, LAST_RETRY.min(FIRST_RETRY * 2_u32.saturating_pow(failures - 1)))
            }
        };
        if set.land(keys) {
            tokens.good.forget();
        }
        tokio::select! {
            () = sleep(rest) => {}
            () = set.wanted() => {}
        }
    }
}

/// The keys of an issuer, and how long they are good if it says so.
async fn fetch(source: KeySetSource) -> Result<(KeySet, Option<Duration>), FetchError> {
    let client = client(&source)?;
    let uri = match &source.jwks_uri {
        Some(uri) => uri.clone(),
        None => discover(&client, &source).await?,
    };
    let (body, headers) = get(&client, &source, &uri).await?;
    let keys = KeySet::parse(&body).map_err(|what| FetchError::Content { url: uri, what })?;
    Ok((keys, max_age(&headers)))
}

/// The address of the keys, by the issuer's own document (OpenID Connect Discovery 1.0).
async fn discover(client: &Client, source: &KeySetSource) -> Result<String, FetchError> {
    #[derive(Deserialize)]
    struct Discovered {
        issuer: String,
        jwks_uri: String,
    }
    let url = format!("{}/.well-known/openid-configuration", source.issuer.trim_end_matches('/'));
    let (body, _) = get(client, source, &url).await?;
    let wrong = |what: String| FetchError::Content { url: url.clone(), what };
    let found: Discovered =
        serde_json::from_slice(&body).map_err(|error| wrong(format!("it is not a discovery document: {error}")))?;
    if found.issuer != source.issuer {
        return Err(wrong(format!(
            "it is the document of the issuer {:?}; write that, letter by letter",
            found.issuer
        )));
    }
    Ok(found.jwks_uri)
}

/// What is wrong with the files that go with an issuer: the field, and how.
pub(super) fn check(source: &KeySetSource) -> Vec<(&'static str, String)> {
    let authorities = client(source).err().map(|error| ("caFile", error.to_string()));
    let token = source.bearer_token_file.as_deref().and_then(|path| read(path).err());
    authorities.into_iter().chain(token.map(|error| ("bearerTokenFile", error.to_string()))).collect()
}

/// A client that trusts whom the issuer's settings trust, and goes through the proxy of the environment.
fn client(source: &KeySetSource) -> Result<Client, FetchError> {
    let mut builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .https_only(!source.allow_http)
        .connect_timeout(TIMEOUT / 2)
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &source.ca_file {
        let wrong = |what: String| FetchError::File { path: path.display().to_string(), what };
        let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|error| wrong(chain(&error)))?;
        if certificates.is_empty() {
            return Err(wrong("has no certificate in PEM".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| FetchError::Http { url: source.issuer.clone(), error })
}

async fn get(client: &Client, source: &KeySetSource, url: &str) -> Result<(Vec<u8>, HeaderMap), FetchError> {
    let http = |error| FetchError::Http { url: url.to_owned(), error };
    let mut request = client.get(url).header(ACCEPT, "application/json");
    if let Some(path) = &source.bearer_token_file
        && is_configured(source, url)
    {
        let token = String::from_utf8_lossy(&read(path)?).trim().to_owned();
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut response = request.send().await.map_err(http)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http)? {
        if body.len() + chunk.len() > MOST_BYTES {
            return Err(FetchError::TooLarge(url.to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, std::mem::take(response.headers_mut())))
}

/// Whether `url` is where the settings say: the router's own token is for nobody else, whatever a document says.
fn is_configured(source: &KeySetSource, url: &str) -> bool {
    let origin = |url: &str| Url::parse(url).ok().map(|url| url.origin());
    origin(source.jwks_uri.as_deref().unwrap_or(&source.issuer)) == origin(url)
}

fn read(path: &Path) -> Result<Vec<u8>, FetchError> {
    small_file::read(path).map_err(|error| FetchError::File {
        path: path.display().to_string(),
        what: format!("cannot be read: {error}"),
    })
}

/// `max-age` of `cache-control`.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = directives.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_lowercase());
    let age = directives.find_map(|directive| directive.strip_prefix("max-age=")?.trim_matches('"').parse().ok())?;
    Some(Duration::from_secs(age))
}

/// An error with its causes: the library's own words leave out why.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
