//! Who calls: keys and tokens that are known at once, other tokens by their signature.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};

use crate::model::refusal::{Denied, Refusal};
use crate::policy::access::{Access, Credential, Proof, bearer};
use crate::policy::token::{Claims, KeySet, Token};
use crate::state::table::Endpoint;
use crate::state::tokens::Tokens;

/// Longest wait for an issuer's keys.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again when they could not be had.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Who asks for tokens, by the key that is shown.
const ASKED_BY: [&str; 2] = ["primary-key", "secondary-key"];

/// Decides whether the bearer of a credential may call `endpoint`, and says who it is.
pub(super) async fn prove(
    tokens: &Tokens,
    endpoint: &Endpoint,
    authorization: Option<&[u8]>,
) -> Result<Proof, Refusal> {
    let token = match endpoint.access.check(authorization).map_err(Refusal::Denied)? {
        Credential::Proven(proof) => return Ok(proof),
        Credential::Token(token) => token,
    };
    let (digest, now) = (tokens.good.digest(endpoint.generation, token), now());
    let subject = match tokens.good.get(digest, now) {
        Some(subject) => subject,
        // Rare beside the other case: kept out of every request's future.
        None => {
            let epoch = tokens.good.epoch();
            let (subject, until) = Box::pin(verify(tokens, endpoint, token, now)).await?;
            // With keys that were fetched meanwhile it will be checked once more, and then remembered.
            tokens.good.put(digest, epoch, until, subject.clone(), now);
            subject
        }
    };
    Ok(match endpoint.access {
        Access::RouterTokens(_) => Proof::RouterToken(subject),
        _ => Proof::IssuerToken(subject),
    })
}

/// Checks a token, and returns its subject and its last second.
async fn verify(tokens: &Tokens, endpoint: &Endpoint, text: &str, now: u64) -> Result<(Arc<str>, u64), Refusal> {
    let token = Token::parse(text).map_err(Refusal::Denied)?;
    let good = |claims: &Claims| (claims.subject().into(), claims.until());
    if let Access::IssuerTokens(issuers) = &endpoint.access {
        let known = issuers.iter().zip(&endpoint.key_sets).find(|(issuer, _)| issuer.keys.issuer == token.issuer());
        let (issuer, set) = known.ok_or(Refusal::Denied(Denied::WrongIssuer))?;
        if set.keys().is_none() {
            // The router, or the endpoint, has only just begun, or the issuer is away.
            set.refreshed(PATIENCE).await;
        }
        let keys = set.keys().ok_or(Refusal::TokenKeysUnavailable(TRY_AGAIN))?;
        match signed(tokens, text, keys).await {
            // The issuer may have a new key.
            Err(Refusal::Denied(Denied::UnknownSigningKey)) if set.refreshed(PATIENCE).await => {
                let keys = set.keys().ok_or(Refusal::TokenKeysUnavailable(TRY_AGAIN))?;
                signed(tokens, text, keys).await?;
            }
            verdict => verdict?,
        }
        token.claims().satisfy(issuer, now).map_err(Refusal::Denied)?;
        return Ok(good(token.claims()));
    }
    let signing = tokens.signing.load_full().ok_or(Refusal::TokenKeysUnavailable(TRY_AGAIN))?;
    if token.issuer() != signing.issuer() {
        return Err(Refusal::Denied(Denied::WrongIssuer));
    }
    signed(tokens, text, signing.keys().clone()).await?;
    token.claims().open(endpoint.spec.name.key(), now).map_err(Refusal::Denied)?;
    Ok(good(token.claims()))
}

/// Whether one of `keys` has signed a token.
async fn signed(tokens: &Tokens, token: &str, keys: Arc<KeySet>) -> Result<(), Refusal> {
    let verdict = tokio::time::timeout(PATIENCE, tokens.checks.verdict(token, keys)).await;
    match verdict {
        Ok(Some(verdict)) => verdict.map_err(Refusal::Denied),
        _ => Err(Refusal::TokenKeysUnavailable(TRY_AGAIN)),
    }
}

/// Answers a request for a token, of somebody who shows a key, or, in a cluster, of one of its users who may have one.
pub(super) async fn issue(
    tokens: &Tokens,
    endpoint: &Endpoint,
    authorization: Option<&[u8]>,
) -> Result<Response<Bytes>, Refusal> {
    let subject = match endpoint.access.may_have_token(authorization) {
        Ok(key) => ASKED_BY.get(key).copied().unwrap_or_default().to_owned(),
        Err(Denied::InvalidKey | Denied::NoTokens) if tokens.reviews.is_open() => {
            review(tokens, endpoint, authorization).await?
        }
        Err(denied) => return Err(Refusal::Denied(denied)),
    };
    let signing = tokens.signing.load_full().ok_or(Refusal::TokenKeysUnavailable(TRY_AGAIN))?;
    let issued = signing.issue(endpoint.spec.name.key(), &subject, now(), None).map_err(|error| {
        tracing::error!(%error, "a token could not be signed");
        Refusal::TokenKeysUnavailable(TRY_AGAIN)
    })?;
    let mut response = Response::new(Bytes::from(issued.document().to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Asks the cluster who shows a token, and whether they may have one of the endpoint.
async fn review(tokens: &Tokens, endpoint: &Endpoint, authorization: Option<&[u8]>) -> Result<String, Refusal> {
    let token = authorization.and_then(bearer).ok_or(Refusal::Denied(Denied::Missing))?;
    let token = str::from_utf8(token).map_err(|_| Refusal::Denied(Denied::InvalidKey))?;
    let (name, namespace) = (endpoint.spec.name.as_str(), endpoint.spec.namespace.as_deref().unwrap_or_default());
    let told = tokio::time::timeout(PATIENCE, tokens.reviews.verdict(token, namespace, name)).await;
    match told {
        Ok(Some(verdict)) => verdict.map_err(Refusal::Denied),
        _ => Err(Refusal::TokenKeysUnavailable(TRY_AGAIN)),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
