//! Authenticates requests, and issues tokens. Keys and cached tokens are checked at once; other tokens need a check of
//! their signature, which another thread makes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};

use crate::model::refusal::{AuthFailure, Refusal};
use crate::policy::access::{Access, Credential, Identity, bearer_token};
use crate::policy::token::{Claims, KeySet, ParsedToken};
use crate::state::routing_table::EndpointEntry;
use crate::state::tokens::TokenState;

/// The longest wait for each of a key set of an issuer, a check of a signature, and a review by the cluster.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);
/// The `retry-after` when the key set was not available.
const KEYS_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The subjects of tokens that the router issues, by the index of the key that the client shows.
const KEY_SUBJECTS: [&str; 2] = ["primary-key", "secondary-key"];

/// Authenticates the credential for `endpoint` and returns the identity of the client.
pub(super) async fn authenticate(
    tokens: &TokenState,
    endpoint: &EndpointEntry,
    authorization: Option<&[u8]>,
) -> Result<Identity, Refusal> {
    let token = match endpoint.access.authenticate(authorization).map_err(Refusal::Denied)? {
        Credential::Identified(identity) => return Ok(identity),
        Credential::Token(token) => token,
    };
    let (digest, now) = (tokens.verified.digest(endpoint.generation, token), unix_seconds());
    let subject = match tokens.verified.get(digest, now) {
        Some(subject) => subject,
        // This case is rare and its future is large, so it is kept out of every request's future.
        None => {
            let key_generation = tokens.verified.key_generation();
            let (subject, expires_at) = Box::pin(verify_token(tokens, endpoint, token, now)).await?;
            // If keys were fetched meanwhile, this entry is outdated, and the next request verifies the token again.
            tokens.verified.insert(digest, key_generation, expires_at, subject.clone(), now);
            subject
        }
    };
    Ok(match endpoint.access {
        Access::RouterTokens(_) => Identity::RouterToken(subject),
        _ => Identity::IssuerToken(subject),
    })
}

/// Verifies a token. Returns its subject and the last second in which it is valid.
async fn verify_token(
    tokens: &TokenState,
    endpoint: &EndpointEntry,
    text: &str,
    now: u64,
) -> Result<(Arc<str>, u64), Refusal> {
    let token = ParsedToken::parse(text).map_err(Refusal::Denied)?;
    let verified = |claims: &Claims| (claims.subject().into(), claims.expires_at());
    if let Access::IssuerTokens(issuers) = &endpoint.access {
        let matching_issuer =
            issuers.iter().zip(&endpoint.key_sets).find(|(issuer, _)| issuer.key_set.issuer == token.issuer());
        let (issuer, set) = matching_issuer.ok_or(Refusal::Denied(AuthFailure::WrongIssuer))?;
        if set.keys().is_none() {
            // The router or the endpoint has just started, or the issuer is unavailable.
            set.request_refresh(AUTH_TIMEOUT).await;
        }
        let keys = set.keys().ok_or(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER))?;
        match verify_signature(tokens, text, keys).await {
            // The issuer may have a new key.
            Err(Refusal::Denied(AuthFailure::UnknownSigningKey)) if set.request_refresh(AUTH_TIMEOUT).await => {
                let keys = set.keys().ok_or(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER))?;
                verify_signature(tokens, text, keys).await?;
            }
            verdict => verdict?,
        }
        token.claims().validate_for_issuer(issuer, now).map_err(Refusal::Denied)?;
        return Ok(verified(token.claims()));
    }
    let signing = tokens.signing.load_full().ok_or(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER))?;
    if token.issuer() != signing.issuer() {
        return Err(Refusal::Denied(AuthFailure::WrongIssuer));
    }
    verify_signature(tokens, text, signing.keys().clone()).await?;
    token.claims().authorize_endpoint(endpoint.spec.name.key(), now).map_err(Refusal::Denied)?;
    Ok(verified(token.claims()))
}

/// Verifies that one of `keys` has signed a token.
async fn verify_signature(tokens: &TokenState, token: &str, keys: Arc<KeySet>) -> Result<(), Refusal> {
    let verdict = tokio::time::timeout(AUTH_TIMEOUT, tokens.verification.verify_signature(token, keys)).await;
    match verdict {
        Ok(Some(verdict)) => verdict.map_err(Refusal::Denied),
        _ => Err(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER)),
    }
}

/// Issues a token to a client that shows a key or, in a cluster, to a user with the right to get one.
pub(super) async fn issue_token(
    tokens: &TokenState,
    endpoint: &EndpointEntry,
    authorization: Option<&[u8]>,
) -> Result<Response<Bytes>, Refusal> {
    let subject = match endpoint.access.key_index_for_token(authorization) {
        Ok(key) => KEY_SUBJECTS.get(key).copied().unwrap_or_default().to_owned(),
        Err(AuthFailure::InvalidKey | AuthFailure::NoTokens) if tokens.access_reviews.has_reviewer() => {
            review_token(tokens, endpoint, authorization).await?
        }
        Err(denied) => return Err(Refusal::Denied(denied)),
    };
    let signing = tokens.signing.load_full().ok_or(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER))?;
    let issued = signing.issue(endpoint.spec.name.key(), &subject, unix_seconds(), None).map_err(|error| {
        tracing::error!(%error, "failed to sign token");
        Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER)
    })?;
    let mut response = Response::new(Bytes::from(issued.to_document().to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Returns the name of the user that a token of the cluster belongs to. The cluster authenticates the user and decides
/// whether the user may have a token of the endpoint.
async fn review_token(
    tokens: &TokenState,
    endpoint: &EndpointEntry,
    authorization: Option<&[u8]>,
) -> Result<String, Refusal> {
    let token = authorization.and_then(bearer_token).ok_or(Refusal::Denied(AuthFailure::Missing))?;
    let token = str::from_utf8(token).map_err(|_| Refusal::Denied(AuthFailure::InvalidKey))?;
    let (name, namespace) = (endpoint.spec.name.as_str(), endpoint.spec.namespace.as_deref().unwrap_or_default());
    let reviewed = tokio::time::timeout(AUTH_TIMEOUT, tokens.access_reviews.review_token(token, namespace, name)).await;
    match reviewed {
        Ok(Some(verdict)) => verdict.map_err(Refusal::Denied),
        _ => Err(Refusal::TokenKeysUnavailable(KEYS_RETRY_AFTER)),
    }
}

/// Returns the Unix time in seconds.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
