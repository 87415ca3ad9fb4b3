//! Responses to clients that are not authenticated or not authorized: enough to fix the request, nothing about what a
//! valid credential would be.

use http::HeaderValue;

use crate::model::refusal::AuthFailure;

/// The `error` of a valid credential that lacks a right (RFC 6750). Its status is 403; that of all others is 401.
pub(super) const INSUFFICIENT_SCOPE: &str = "insufficient_scope";
/// The `error` of an invalid credential.
const INVALID_TOKEN: &str = "invalid_token";

/// The parts of the response to one failure.
pub(super) struct AuthFailureDetails {
    pub(super) code: &'static str,
    /// The `error` of `www-authenticate` (RFC 6750); `None` if there was no credential.
    pub(super) error: Option<&'static str>,
    pub(super) detail: &'static str,
}

/// Returns the parts of the response to a failure.
pub(super) const fn auth_failure_details(denied: AuthFailure) -> AuthFailureDetails {
    let (code, error, detail) = match denied {
        AuthFailure::Missing => (
            "missing_credential",
            None,
            "This endpoint needs a key or a token: send it as `Authorization: Bearer <key or token>`.",
        ),
        AuthFailure::InvalidKey => (
            "invalid_key",
            Some(INVALID_TOKEN),
            "The key is not one of this endpoint's. Check that it is complete and that it has not been replaced.",
        ),
        AuthFailure::Malformed => (
            "malformed_token",
            Some(INVALID_TOKEN),
            "This endpoint needs a token (JWT) that ends at a time and is signed with RS256, RS384, RS512, PS256, \
             PS384, PS512, ES256, ES384 or EdDSA, and this is none. Check that it is complete.",
        ),
        AuthFailure::UnknownSigningKey => (
            "unknown_signing_key",
            Some(INVALID_TOKEN),
            "The token is signed with a key that its issuer does not have, or has no more. Get a new token.",
        ),
        AuthFailure::BadSignature => (
            "invalid_token",
            Some(INVALID_TOKEN),
            "The token's signature is wrong: it was changed, or not signed by its issuer. Get a new token.",
        ),
        AuthFailure::Expired => ("expired_token", Some(INVALID_TOKEN), "The token's time is over. Get a new one."),
        AuthFailure::NotYetValid => (
            "token_not_yet_valid",
            Some(INVALID_TOKEN),
            "The token's time has not come. Check the clock of whoever issued it, or wait.",
        ),
        AuthFailure::WrongIssuer => (
            "wrong_issuer",
            Some(INVALID_TOKEN),
            "The token is from an issuer that this endpoint does not know. Get one from the right issuer.",
        ),
        AuthFailure::WrongAudience => (
            "wrong_audience",
            Some(INVALID_TOKEN),
            "The token is for another service. Ask its issuer for one whose audience is this endpoint's.",
        ),
        AuthFailure::WrongEndpoint => (
            "wrong_endpoint",
            Some(INSUFFICIENT_SCOPE),
            "The token is for another endpoint. Ask this endpoint for one: POST /api/v1/endpoint/{endpoint}/token.",
        ),
        AuthFailure::MissingClaim => (
            "missing_claim",
            Some(INSUFFICIENT_SCOPE),
            "The token lacks a claim, a scope or a role that this endpoint asks for. Have its issuer grant it.",
        ),
        AuthFailure::NotAllowed => (
            "forbidden",
            Some(INSUFFICIENT_SCOPE),
            "You are known to the cluster, but may not `create` `onlineendpoints/token` there for this endpoint. \
             Ask who runs it for that right.",
        ),
        AuthFailure::NoTokens => (
            "forbidden",
            Some(INSUFFICIENT_SCOPE),
            "This endpoint has no keys to get a token for. Ask who runs it: `inference-router token` makes one.",
        ),
    };
    AuthFailureDetails { code, error, detail }
}

/// Returns the `www-authenticate` header (RFC 6750).
pub(super) fn www_authenticate(denied: AuthFailure) -> HeaderValue {
    let AuthFailureDetails { code, error, .. } = auth_failure_details(denied);
    let text = match error {
        None => "Bearer realm=\"inference-router\"".to_owned(),
        Some(error) => {
            format!("Bearer realm=\"inference-router\", error=\"{error}\", error_description=\"{code}\"")
        }
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer"))
}
