//! Authentication by keys, and the credentials that an endpoint accepts.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::model::endpoint::Issuer;
use crate::model::refusal::AuthFailure;

/// The credentials that an endpoint accepts, prepared for requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Access {
    /// No credential is needed.
    Open,
    /// One of these keys.
    Keys(Vec<KeyDigest>),
    /// A token that the router has issued for the endpoint, in exchange for one of these keys.
    RouterTokens(Vec<KeyDigest>),
    /// A token of one of these issuers.
    IssuerTokens(Vec<Issuer>),
}

/// The SHA-256 digest of a key. Keys themselves are not kept in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

/// The identity of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// No credential was needed.
    Open,
    /// The client has one of the endpoint's keys.
    Key,
    /// The client has a token of the router; this is the subject that asked for it.
    RouterToken(Arc<str>),
    /// The client has a token of an issuer; this is its subject.
    IssuerToken(Arc<str>),
}

/// The result of checking the `authorization` header.
#[derive(Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    /// The client is authenticated.
    Identified(Identity),
    /// The client has this token, which has to be verified.
    Token(&'a str),
}

impl KeyDigest {
    /// Returns the digest of `key`.
    pub fn digest_key(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

impl Access {
    /// Checks the value of the `authorization` header, if there is one.
    ///
    /// # Errors
    ///
    /// [`AuthFailure`] says why the client is denied. The time taken does not depend on how much of a key was right.
    pub fn authenticate<'a>(&self, authorization: Option<&'a [u8]>) -> Result<Credential<'a>, AuthFailure> {
        match self {
            Self::Open => Ok(Credential::Identified(Identity::Open)),
            Self::Keys(keys) => find_matching_key(keys, authorization).map(|_| Credential::Identified(Identity::Key)),
            Self::RouterTokens(_) | Self::IssuerTokens(_) => {
                let token = authorization.and_then(bearer_token).ok_or(AuthFailure::Missing)?;
                str::from_utf8(token).map(Credential::Token).map_err(|_| AuthFailure::Malformed)
            }
        }
    }

    /// Returns whether clients need a token that the router has signed.
    pub fn needs_signing(&self) -> bool {
        matches!(self, Self::RouterTokens(_))
    }

    /// Returns the index of the endpoint's key that a client shows to get a token.
    ///
    /// # Errors
    ///
    /// [`AuthFailure`], as for [`Access::authenticate`].
    pub fn key_index_for_token(&self, authorization: Option<&[u8]>) -> Result<usize, AuthFailure> {
        match self {
            Self::RouterTokens(keys) if !keys.is_empty() => find_matching_key(keys, authorization),
            _ => Err(AuthFailure::NoTokens),
        }
    }
}

/// Returns which of `keys` the credential is. All keys are compared, each in constant time.
fn find_matching_key(keys: &[KeyDigest], authorization: Option<&[u8]>) -> Result<usize, AuthFailure> {
    let token = authorization.and_then(bearer_token).ok_or(AuthFailure::Missing)?;
    let digest: [u8; 32] = Sha256::digest(token).into();
    let found = keys
        .iter()
        .zip(0_u64..)
        .fold(u64::MAX, |found, (key, index)| u64::conditional_select(&found, &index, key.0.ct_eq(&digest)));
    usize::try_from(found).ok().filter(|found| *found < keys.len()).ok_or(AuthFailure::InvalidKey)
}

/// Returns the token of a `Bearer` credential (RFC 6750). The scheme is compared without case.
pub fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Access {
        Access::Keys(vec![KeyDigest::digest_key("primary-key"), KeyDigest::digest_key("secondary-key")])
    }

    const KEY: Result<Credential<'_>, AuthFailure> = Ok(Credential::Identified(Identity::Key));

    #[test]
    fn either_key_opens_and_no_other() {
        assert_eq!(keys().authenticate(Some(b"Bearer primary-key")), KEY);
        assert_eq!(keys().authenticate(Some(b"bearer  secondary-key ")), KEY);
        for wrong in ["Bearer primary-keY", "Bearer primary-key2", "Bearer primary", "Bearer primary-key secondary-key"]
        {
            assert_eq!(keys().authenticate(Some(wrong.as_bytes())), Err(AuthFailure::InvalidKey), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_bearer_credential_is_missing() {
        for value in ["", "Bearer", "Bearer ", "Basic cHJpbWFyeTprZXk=", "primary-key", "Bearerprimary-key"] {
            assert_eq!(keys().authenticate(Some(value.as_bytes())), Err(AuthFailure::Missing), "{value}");
        }
        assert_eq!(keys().authenticate(None), Err(AuthFailure::Missing));
        assert_eq!(Access::Open.authenticate(None), Ok(Credential::Identified(Identity::Open)));
    }

    #[test]
    fn tokens_are_handed_out_for_keys_only() {
        let Access::Keys(digests) = keys() else { panic!("no keys") };
        let tokens = Access::RouterTokens(digests);
        assert_eq!(tokens.key_index_for_token(Some(b"Bearer primary-key")), Ok(0));
        assert_eq!(tokens.key_index_for_token(Some(b"Bearer secondary-key")), Ok(1));
        assert_eq!(tokens.key_index_for_token(Some(b"Bearer a.b.c")), Err(AuthFailure::InvalidKey));
        assert_eq!(tokens.key_index_for_token(None), Err(AuthFailure::Missing));
        assert_eq!(tokens.authenticate(Some(b"Bearer a.b.c")), Ok(Credential::Token("a.b.c")));
        assert_eq!(tokens.authenticate(Some(b"Bearer \xff")), Err(AuthFailure::Malformed));
        for other in [keys(), Access::Open, Access::RouterTokens(Vec::new())] {
            assert_eq!(other.key_index_for_token(Some(b"Bearer primary-key")), Err(AuthFailure::NoTokens));
        }
    }

    #[test]
    fn a_digest_shows_nothing_in_debug() {
        assert_eq!(format!("{:?}", keys()), "Keys([KeyDigest(…), KeyDigest(…)])");
    }
}
