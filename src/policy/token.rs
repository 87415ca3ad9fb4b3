//! Tokens (JWT, RFC 7519): read, and checked against the keys and the rules of who issued them.
//!
//! Nothing of a token is believed before its signature is checked but what leads to the key: issuer, key id, algorithm.
//! The algorithm is the key's; that of the token only has to be the same.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model::endpoint::Issuer;
use crate::model::refusal::Denied;

/// How far the clocks of issuer and router may be apart, in seconds.
pub const LEEWAY: u64 = 60;
/// Most keys of one issuer that are looked at: an unsigned token must not cost more than so many checks.
const MOST_KEYS: usize = 100;

const OF_RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// A token as it came: nothing in it is proven.
#[derive(Debug)]
pub struct Token<'t> {
    signed: &'t str,
    signature: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Claims,
}

/// What a token says.
#[derive(Debug)]
pub struct Claims(Map<String, Value>);

/// Public keys of one issuer.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
}

#[derive(Debug, Clone)]
struct PublicKey {
    /// The key as it was written: two of the same text are the same key.
    written: Value,
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<Value>,
}

impl<'t> Token<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`Denied::Malformed`].
    pub fn parse(text: &'t str) -> Result<Self, Denied> {
        let (signed, signature) = text.rsplit_once('.').ok_or(Denied::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Denied::Malformed)?;
        let header: Header = decode(header)?;
        if header.crit.is_some() {
            return Err(Denied::Malformed);
        }
        let claims = Claims(decode(claims)?);
        Ok(Self { signed, signature, algorithm: header.alg, key_id: header.kid, claims })
    }

    /// Who says to have issued it (`iss`).
    pub fn issuer(&self) -> &str {
        self.claims.text("iss")
    }

    /// What it says, once one of `keys` has signed it.
    ///
    /// # Errors
    /// [`Denied::UnknownSigningKey`] when none of `keys` is the one it names, [`Denied::BadSignature`].
    pub fn verified(&self, keys: &KeySet) -> Result<&Claims, Denied> {
        let mut found = Err(Denied::UnknownSigningKey);
        for key in keys.keys.iter().filter(|key| key.may_have_signed(self)) {
            match jsonwebtoken::crypto::verify(self.signature, self.signed.as_bytes(), &key.key, self.algorithm) {
                Ok(true) => return Ok(&self.claims),
                _ => found = Err(Denied::BadSignature),
            }
        }
        found
    }
}

impl PublicKey {
    fn may_have_signed(&self, token: &Token<'_>) -> bool {
        let named = match (&token.key_id, &self.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        named && self.algorithms.contains(&token.algorithm)
    }
}

/// One part of a token.
fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, Denied> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Denied::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Denied::Malformed)
}

impl Claims {
    /// Whether an issuer's token is good for an endpoint that trusts it, at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`Denied`] says what is not right.
    pub fn satisfy(&self, issuer: &Issuer, now: u64) -> Result<(), Denied> {
        self.in_time(now)?;
        if !issuer.audiences.iter().any(|audience| self.has("aud", audience)) {
            return Err(Denied::WrongAudience);
        }
        let has_claim = |(name, values): &(String, Vec<Value>)| {
            let Some(found) = self.0.get(name) else { return false };
            let found = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
            found.iter().any(|found| values.contains(found))
        };
        let in_scope = issuer.scopes.iter().any(|scope| self.has_word("scp", scope) || self.has_word("scope", scope));
        let in_role = issuer.roles.iter().any(|role| self.has("roles", role));
        let any_asked = !issuer.scopes.is_empty() || !issuer.roles.is_empty();
        if !issuer.required_claims.iter().all(has_claim) || any_asked && !in_scope && !in_role {
            return Err(Denied::MissingClaim);
        }
        Ok(())
    }

    /// Whether a token of the router's own is good for `endpoint` (its name in lower case), at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`Denied`] says what is not right.
    pub fn open(&self, endpoint: &str, now: u64) -> Result<(), Denied> {
        self.in_time(now)?;
        if self.has("aud", endpoint) { Ok(()) } else { Err(Denied::WrongEndpoint) }
    }

    /// Who may use the token, as far as it says so: an application has no `sub` with some issuers.
    pub fn subject(&self) -> &str {
        ["sub", "azp", "appid"].into_iter().map(|name| self.text(name)).find(|text| !text.is_empty()).unwrap_or("")
    }

    /// The last second, since 1970, at which it is good.
    pub fn until(&self) -> u64 {
        self.time("exp").unwrap_or_default().saturating_add(LEEWAY)
    }

    fn in_time(&self, now: u64) -> Result<(), Denied> {
        // Tokens are for a time; one for ever is not what anybody means.
        self.time("exp").ok_or(Denied::Malformed)?;
        if now > self.until() {
            return Err(Denied::Expired);
        }
        let from = if self.0.contains_key("nbf") { self.time("nbf").ok_or(Denied::Malformed)? } else { 0 };
        if from > now.saturating_add(LEEWAY) { Err(Denied::NotYetValid) } else { Ok(()) }
    }

    /// Seconds since 1970; some issuers write fractions.
    fn time(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        value.as_u64().or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64))
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether a claim is `wanted`, or a list with it.
    fn has(&self, name: &str, wanted: &str) -> bool {
        match self.0.get(name) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Array(list)) => list.iter().any(|item| item == wanted),
            _ => false,
        }
    }

    /// The same where a text may hold several words.
    fn has_word(&self, name: &str, wanted: &str) -> bool {
        self.text(name).split_ascii_whitespace().any(|word| word == wanted) || self.has(name, wanted)
    }
}

/// The same keys in the same order.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.keys.iter().map(|key| &key.written).eq(other.keys.iter().map(|key| &key.written))
    }
}

impl KeySet {
    /// The keys of a JWK set (RFC 7517) that can check signatures; others are left out.
    ///
    /// # Errors
    /// What is wrong with the document.
    pub fn parse(document: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Written {
            keys: Vec<Value>,
        }
        let Written { keys } =
            serde_json::from_slice(document).map_err(|error| format!("it is not a JWK set: {error}"))?;
        let keys: Vec<PublicKey> = keys.into_iter().filter_map(PublicKey::of).take(MOST_KEYS).collect();
        if keys.is_empty() {
            return Err("it has no key that a token could be signed with (RSA, P-256, P-384, Ed25519)".to_owned());
        }
        Ok(Self { keys })
    }

    /// The set of these keys.
    pub(super) fn of(keys: Vec<Value>) -> Self {
        Self { keys: keys.into_iter().filter_map(PublicKey::of).collect() }
    }
}

impl PublicKey {
    /// `None` for a key that is not for signatures, or of a kind that is not known.
    fn of(written: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(written.clone()).ok()?;
        let signs = match (&jwk.common.public_key_use, &jwk.common.key_operations) {
            (Some(PublicKeyUse::Signature), _) | (None, None) => true,
            (None, Some(operations)) => operations.contains(&KeyOperations::Verify),
            _ => false,
        };
        // A shared secret is no public key: whoever can read it can sign.
        let possible = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => OF_RSA,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => &[Algorithm::ES256],
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P384 => &[Algorithm::ES384],
            AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
            _ => return None,
        };
        let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
            Some(only) => possible.iter().copied().filter(|one| only == (*one).into()).collect(),
            None => possible.to_vec(),
        };
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (signs && !algorithms.is_empty()).then(|| Self { written, id: jwk.common.key_id.clone(), algorithms, key })
    }
}
