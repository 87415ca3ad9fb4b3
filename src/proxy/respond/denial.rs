//! What is said to callers who may not: enough to mend it, nothing about what would have been right.

use http::HeaderValue;

use crate::model::refusal::Denied;

/// `error` of a credential that is in order, but lacks a right (RFC 6750): 403, all others are 401.
pub(super) const LACKS_RIGHT: &str = "insufficient_scope";
/// `error` of a credential that is not in order.
const INVALID: &str = "invalid_token";

/// What one denial comes to.
pub(super) struct Denial {
    pub(super) code: &'static str,
    /// As in `www-authenticate` (RFC 6750); `None` where there was no credential to be wrong.
    pub(super) error: Option<&'static str>,
    pub(super) detail: &'static str,
}

/// What a denial comes to.
pub(super) const fn denial(denied: Denied) -> Denial {
    let (code, error, detail) = match denied {
        Denied::Missing => (
            "missing_credential",
            None,
            "This endpoint needs a key or a token: send it as `Authorization: Bearer <key or token>`.",
        ),
        Denied::InvalidKey => (
            "invalid_key",
            Some(INVALID),
            "The key is not one of this endpoint's. Check that it is complete and that it has not been replaced.",
        ),
        Denied::Malformed => (
            "malformed_token",
            Some(INVALID),
            "This endpoint needs a token (JWT) that ends at a time and is signed with RS256, RS384, RS512, PS256, PS384, PS512, \
             ES256, ES384 or EdDSA, and this is none. Check that it is complete.",
        ),
        Denied::UnknownSigningKey => (
            "unknown_signing_key",
            Some(INVALID),
            "The token is signed with a key that its issuer does not have, or has no more. Get a new token.",
        ),
        Denied::BadSignature => (
            "invalid_token",
            Some(INVALID),
            "The token's signature is wrong: it was changed, or not signed by its issuer. Get a new token.",
        ),
        Denied::Expired => ("expired_token", Some(INVALID), "The token's time is over. Get a new one."),
        Denied::NotYetValid => (
            "token_not_yet_valid",
            Some(INVALID),
            "The token's time has not come. Check the clock of whoever issued it, or wait.",
        ),
        Denied::WrongIssuer => (
            "wrong_issuer",
            Some(INVALID),
            "The token is from an issuer that this endpoint does not know. Get one from the right issuer.",
        ),
        Denied::WrongAudience => (
            "wrong_audience",
            Some(INVALID),
            "The token is for another service. Ask its issuer for one whose audience is this endpoint's.",
        ),
        Denied::WrongEndpoint => (
            "wrong_endpoint",
            Some(LACKS_RIGHT),
            "The token is for another endpoint. Ask this endpoint for one: POST /api/v1/endpoint/{endpoint}/token.",
        ),
        Denied::MissingClaim => (
            "missing_claim",
            Some(LACKS_RIGHT),
            "The token lacks a claim, a scope or a role that this endpoint asks for. Have its issuer grant it.",
        ),
        Denied::NotAllowed => (
            "forbidden",
            Some(LACKS_RIGHT),
            "You are known to the cluster, but may not `create` `onlineendpoints/token` there for this endpoint. Ask who runs it \
             for that right.",
        ),
        Denied::NoTokens => (
            "forbidden",
            Some(LACKS_RIGHT),
            "This endpoint has no keys to get a token for. Ask who runs it: `inference-router token` makes one.",
        ),
    };
    Denial { code, error, detail }
}

/// The `www-authenticate` header (RFC 6750).
pub(super) fn challenge(denied: Denied) -> HeaderValue {
    let Denial { code, error, .. } = denial(denied);
    let text = match error {
        None => "Bearer realm=\"inference-router\"".to_owned(),
        Some(error) => {
            format!("Bearer realm=\"inference-router\", error=\"{error}\", error_description=\"{code}\"")
        }
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer"))
}
