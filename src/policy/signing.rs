//! Tokens that the router issues, each for one endpoint, and the keys they are signed with.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde_json::{Value, json};

use super::token::KeySet;

/// What the router signs its tokens with, and checks them with.
pub struct Signing {
    issuer: String,
    lifetime: Duration,
    header: Header,
    key: EncodingKey,
    public: Vec<Value>,
    keys: Arc<KeySet>,
}

/// A token, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// What the caller sends as `Authorization: Bearer …`.
    pub token: String,
    /// Seconds since 1970.
    pub expires: u64,
    /// When to ask for the next one, in seconds since 1970.
    pub refresh_after: u64,
}

impl Issued {
    /// As Azure's token document.
    pub fn document(&self) -> Value {
        json!({
            "accessToken": self.token,
            "tokenType": "Bearer",
            "expiryTimeUtc": self.expires,
            "refreshAfterTimeUtc": self.refresh_after,
        })
    }
}

/// The keys are not shown.
impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").field("issuer", &self.issuer).field("public", &self.public).finish_non_exhaustive()
    }
}

/// A key that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", if .previous.is_some() {
    "is not a private or public key in PEM for Ed25519 or P-256"
} else {
    "is not a private key in PEM (PKCS #8) for Ed25519 or P-256; make one with `inference-router keys signing --file FILE`"
})]
pub struct WrongKey {
    /// Which of the previous ones; `None`: the current one.
    pub previous: Option<usize>,
}

impl Signing {
    /// Signs with the private key in `current`; tokens signed with one of `previous`, private or public, stay good.
    ///
    /// # Errors
    /// [`WrongKey`].
    pub fn new(issuer: &str, lifetime: Duration, current: &[u8], previous: &[Vec<u8>]) -> Result<Self, WrongKey> {
        let wrong = WrongKey { previous: None };
        let (key, algorithm) = private(current).ok_or(wrong)?;
        let (id, first) = Jwk::from_encoding_key(&key, algorithm).ok().and_then(named).ok_or(wrong)?;
        let mut public = vec![first];
        for (index, pem) in previous.iter().enumerate() {
            let (_, key) = earlier(pem).and_then(named).ok_or(WrongKey { previous: Some(index) })?;
            if !public.contains(&key) {
                public.push(key);
            }
        }
        let header = Header { kid: Some(id), ..Header::new(algorithm) };
        let keys = Arc::new(KeySet::of(public.clone()));
        Ok(Self { issuer: issuer.to_owned(), lifetime, header, key, public, keys })
    }

    /// A token for `endpoint` (its name in lower case), asked for by `subject` at `now` (seconds since 1970); good for
    /// `lifetime`, or as long as is usual.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn issue(
        &self,
        endpoint: &str,
        subject: &str,
        now: u64,
        lifetime: Option<Duration>,
    ) -> Result<Issued, jsonwebtoken::errors::Error> {
        let lifetime = lifetime.unwrap_or(self.lifetime).as_secs();
        let expires = now.saturating_add(lifetime);
        let claims =
            json!({"iss": self.issuer, "aud": endpoint, "sub": subject, "iat": now, "nbf": now, "exp": expires});
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key)?;
        // Early enough to try several times.
        Ok(Issued { token, expires, refresh_after: now.saturating_add(lifetime / 5 * 4) })
    }

    /// As in `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What its tokens are checked with.
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// The public keys as a JWK set, for others who want to check its tokens.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.public })
    }
}

fn private(pem: &[u8]) -> Option<(EncodingKey, Algorithm)> {
    let ed = EncodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA));
    ed.or_else(|_| EncodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256))).ok()
}

/// The public part of a key, private or public.
fn earlier(pem: &[u8]) -> Option<Jwk> {
    if let Some((key, algorithm)) = private(pem) {
        return Jwk::from_encoding_key(&key, algorithm).ok();
    }
    let ed = DecodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA));
    let (key, algorithm) = ed.or_else(|_| DecodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256))).ok()?;
    Jwk::from_decoding_key(&key, Some(algorithm)).ok()
}

/// A public key with its id, which is its thumbprint (RFC 7638): the same for every router that has the key.
fn named(mut jwk: Jwk) -> Option<(String, Value)> {
    let id = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
    jwk.common.key_id = Some(id.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    Some((id, serde_json::to_value(jwk).ok()?))
}
