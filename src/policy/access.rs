//! May this caller use this endpoint?

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Who may call an endpoint, ready to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever knows one of these keys.
    Keys(Vec<KeyDigest>),
}

/// The SHA-256 of a key: keys themselves are not kept in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

/// How a caller proved itself: the `AuthType` of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// None was asked for.
    Open,
    /// One of the endpoint's keys.
    Key,
}

/// Why a caller may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// No `authorization` header, or not of the form `Bearer …`.
    Missing,
    /// A key, but none of this endpoint's.
    InvalidKey,
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
    /// Decides on the value of the `authorization` header, if there is one.
    ///
    /// # Errors
    /// [`Denied`] says why not. The time taken does not depend on how much of a key was right.
    pub fn check(&self, authorization: Option<&[u8]>) -> Result<Proof, Denied> {
        let Self::Keys(keys) = self else { return Ok(Proof::Open) };
        let token = authorization.and_then(bearer).ok_or(Denied::Missing)?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = keys.iter().fold(Choice::from(0), |known, key| known | key.0.ct_eq(&digest));
        if known.into() { Ok(Proof::Key) } else { Err(Denied::InvalidKey) }
    }
}

/// The token of a `Bearer` credential (RFC 6750; the scheme in any case).
fn bearer(value: &[u8]) -> Option<&[u8]> {
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

    #[test]
    fn either_key_opens_and_no_other() {
        assert_eq!(keys().check(Some(b"Bearer primary-key")), Ok(Proof::Key));
        assert_eq!(keys().check(Some(b"bearer  secondary-key ")), Ok(Proof::Key));
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
        assert_eq!(Access::Open.check(None), Ok(Proof::Open));
    }

    #[test]
    fn a_digest_shows_nothing_in_debug() {
        assert_eq!(format!("{:?}", keys()), "Keys([KeyDigest(…), KeyDigest(…)])");
    }
}
