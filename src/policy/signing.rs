//! Tokens that the router issues, each for one endpoint, and the keys that they are signed with.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde_json::{Value, json};

use super::token::KeySet;

/// Signs and verifies the router's own tokens.
pub struct TokenSigner {
    issuer: String,
    lifetime: Duration,
    header: Header,
    key: EncodingKey,
    public: Vec<Value>,
    keys: Arc<KeySet>,
}

/// A token that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The token that the client sends as `Authorization: Bearer …`.
    pub token: String,
    /// When the token expires, as a Unix time in seconds.
    pub expires_at: u64,
    /// When the client should ask for the next token, as a Unix time in seconds.
    pub refresh_after: u64,
}

impl IssuedToken {
    /// Returns the JSON document of Azure's token API.
    pub fn to_document(&self) -> Value {
        json!({
            "accessToken": self.token,
            "tokenType": "Bearer",
            "expiryTimeUtc": self.expires_at,
            "refreshAfterTimeUtc": self.refresh_after,
        })
    }
}

/// Debug output must not contain the keys.
impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").field("issuer", &self.issuer).field("public", &self.public).finish_non_exhaustive()
    }
}

/// A key that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", if .previous.is_some() {
    "is not a private or public key in PEM for Ed25519 or P-256"
} else {
    "is not a private key in PEM (PKCS #8) for Ed25519 or P-256; make one with `inference-router keys signing --file FILE`"
})]
pub struct WrongKey {
    /// The index of the previous key; `None` for the current one.
    pub previous: Option<usize>,
}

impl TokenSigner {
    /// Creates a signer with the private key in `current`. Tokens signed with one of the `previous` keys, private or
    /// public, stay valid.
    ///
    /// # Errors
    ///
    /// [`WrongKey`].
    pub fn new(issuer: &str, lifetime: Duration, current: &[u8], previous: &[Vec<u8>]) -> Result<Self, WrongKey> {
        let wrong = WrongKey { previous: None };
        let (key, algorithm) = private(current).ok_or(wrong)?;
        let (id, first) = Jwk::from_encoding_key(&key, algorithm).ok().and_then(with_key_id).ok_or(wrong)?;
        let mut public = vec![first];
        for (index, pem) in previous.iter().enumerate() {
            let (_, key) = parse_previous_key(pem).and_then(with_key_id).ok_or(WrongKey { previous: Some(index) })?;
            if !public.contains(&key) {
                public.push(key);
            }
        }
        let header = Header { kid: Some(id), ..Header::new(algorithm) };
        let keys = Arc::new(KeySet::from_keys(public.clone()));
        Ok(Self { issuer: issuer.to_owned(), lifetime, header, key, public, keys })
    }

    /// Issues a token for `endpoint` (its name in lower case) to `subject` at `now`, a Unix time in seconds. The token
    /// is valid for `lifetime`, or for the default lifetime.
    ///
    /// # Errors
    ///
    /// When the key cannot sign.
    pub fn issue(
        &self,
        endpoint: &str,
        subject: &str,
        now: u64,
        lifetime: Option<Duration>,
    ) -> Result<IssuedToken, jsonwebtoken::errors::Error> {
        let lifetime = lifetime.unwrap_or(self.lifetime).as_secs();
        let expires = now.saturating_add(lifetime);
        let claims =
            json!({"iss": self.issuer, "aud": endpoint, "sub": subject, "iat": now, "nbf": now, "exp": expires});
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key)?;
        // This is early enough for several attempts.
        Ok(IssuedToken { token, expires_at: expires, refresh_after: now.saturating_add(lifetime / 5 * 4) })
    }

    /// Returns the issuer, as in `iss` of the tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the keys that tokens are verified with.
    pub fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    /// Returns the public keys as a key set (JWKS), for others that verify the router's tokens.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.public })
    }
}

fn private(pem: &[u8]) -> Option<(EncodingKey, Algorithm)> {
    let ed = EncodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA));
    ed.or_else(|_| EncodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256))).ok()
}

/// Returns the public part of a private or public key.
fn parse_previous_key(pem: &[u8]) -> Option<Jwk> {
    if let Some((key, algorithm)) = private(pem) {
        return Jwk::from_encoding_key(&key, algorithm).ok();
    }
    let ed = DecodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA));
    let (key, algorithm) = ed.or_else(|_| DecodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256))).ok()?;
    Jwk::from_decoding_key(&key, Some(algorithm)).ok()
}

/// Returns a public key with its id, which is its thumbprint (RFC 7638) and therefore the same at every router that has
/// the key.
fn with_key_id(mut jwk: Jwk) -> Option<(String, Value)> {
    let id = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
    jwk.common.key_id = Some(id.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    Some((id, serde_json::to_value(jwk).ok()?))
}
