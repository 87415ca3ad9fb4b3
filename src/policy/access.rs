//! May this caller use this endpoint?

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::model::endpoint::Issuer;
use crate::model::refusal::Denied;

/// Who may call an endpoint, ready to be asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever knows one of these keys.
    Keys(Vec<KeyDigest>),
    /// Whoever has a token that the router has issued for the endpoint; it does so for these keys.
    RouterTokens(Vec<KeyDigest>),
    /// Whoever has a token of one of these issuers.
    IssuerTokens(Vec<Issuer>),
}

/// The SHA-256 of a key: keys themselves are not kept in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

/// How a caller proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// None was asked for.
    Open,
    /// One of the endpoint's keys.
    Key,
    /// A token of the router's own; who had asked for it.
    RouterToken(Arc<str>),
    /// A token of an issuer; its subject.
    IssuerToken(Arc<str>),
}

/// What a credential says at first sight.
#[derive(Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    /// The caller may.
    Proven(Proof),
    /// That depends on this token.
    Token(&'a str),
}

impl KeyDigest {
    /// The digest of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

impl Access {
    /// Looks at the value of the `authorization` header, if there is one.
    ///
    /// # Errors
    /// [`Denied`] says why not. The time taken does not depend on how much of a key was right.
    pub fn check<'a>(&self, authorization: Option<&'a [u8]>) -> Result<Credential<'a>, Denied> {
        match self {
            Self::Open => Ok(Credential::Proven(Proof::Open)),
            Self::Keys(keys) => which(keys, authorization).map(|_| Credential::Proven(Proof::Key)),
            Self::RouterTokens(_) | Self::IssuerTokens(_) => {
                let token = authorization.and_then(bearer).ok_or(Denied::Missing)?;
                str::from_utf8(token).map(Credential::Token).map_err(|_| Denied::Malformed)
            }
        }
    }

    /// Whether callers need a token that the router has signed.
    pub fn needs_signing(&self) -> bool {
        matches!(self, Self::RouterTokens(_))
    }

    /// Which of the endpoint's keys, counted from 0, is shown to get a token.
    ///
    /// # Errors
    /// [`Denied`], as [`Access::check`].
    pub fn may_have_token(&self, authorization: Option<&[u8]>) -> Result<usize, Denied> {
        match self {
            Self::RouterTokens(keys) if !keys.is_empty() => which(keys, authorization),
            _ => Err(Denied::NoTokens),
        }
    }
}

/// Which of `keys` a credential is. All are compared, each in constant time.
fn which(keys: &[KeyDigest], authorization: Option<&[u8]>) -> Result<usize, Denied> {
    let token = authorization.and_then(bearer).ok_or(Denied::Missing)?;
    let digest: [u8; 32] = Sha256::digest(token).into();
    let found = keys
        .iter()
        .zip(0_u64..)
        .fold(u64::MAX, |found, (key, index)| u64::conditional_select(&found, &index, key.0.ct_eq(&digest)));
    usize::try_from(found).ok().filter(|found| *found < keys.len()).ok_or(Denied::InvalidKey)
}

/// The token of a `Bearer` credential (RFC 6750; the scheme in any case).
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Access {
        Access::Keys(vec![KeyDigest::of("primary-key"), KeyDigest::of("secondary-key")])
    }

    const KEY: Result<Credential<'_>, Denied> = Ok(Credential::Proven(Proof::Key));

    #[test]
    fn either_key_opens_and_no_other() {
        assert_eq!(keys().check(Some(b"Bearer primary-key")), KEY);
        assert_eq!(keys().check(Some(b"bearer  secondary-key ")), KEY);
        for wrong in ["Bearer primary-keY", "Bearer primary-key2", "Bearer primary", "Bearer primary-key secondary-key"]
        {
            assert_eq!(keys().check(Some(wrong.as_bytes())), Err(Denied::InvalidKey), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_bearer_credential_is_missing() {
        for value in ["", "Bearer", "Bearer ", "Basic cHJpbWFyeTprZXk=", "primary-key", "Bearerprimary-key"] {
            assert_eq!(keys().check(Some(value.as_bytes())), Err(Denied::Missing), "{value}");
        }
        assert_eq!(keys().check(None), Err(Denied::Missing));
        assert_eq!(Access::Open.check(None), Ok(Credential::Proven(Proof::Open)));
    }

    #[test]
    fn tokens_are_handed_out_for_keys_only() {
        let Access::Keys(digests) = keys() else { panic!("no keys") };
        let tokens = Access::RouterTokens(digests);
        assert_eq!(tokens.may_have_token(Some(b"Bearer primary-key")), Ok(0));
        assert_eq!(tokens.may_have_token(Some(b"Bearer secondary-key")), Ok(1));
        assert_eq!(tokens.may_have_token(Some(b"Bearer a.b.c")), Err(Denied::InvalidKey));
        assert_eq!(tokens.may_have_token(None), Err(Denied::Missing));
        assert_eq!(tokens.check(Some(b"Bearer a.b.c")), Ok(Credential::Token("a.b.c")));
        assert_eq!(tokens.check(Some(b"Bearer \xff")), Err(Denied::Malformed));
        for other in [keys(), Access::Open, Access::RouterTokens(Vec::new())] {
            assert_eq!(other.may_have_token(Some(b"Bearer primary-key")), Err(Denied::NoTokens));
        }
    }

    #[test]
    fn a_digest_shows_nothing_in_debug() {
        assert_eq!(format!("{:?}", keys()), "Keys([KeyDigest(…), KeyDigest(…)])");
    }
}
