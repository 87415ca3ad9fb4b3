//! Tokens (JWT, RFC 7519): read, and checked against the keys and the rules of who issued them.
//!
//! Nothing of a token is believed before its signature is checked but what leads to the key: issuer, key id, algorithm.
//! The algorithm is the key's; that of the token only has to be the same.

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model::endpoint::Issuer;
use crate::model::refusal::Denied;

/// How far the clocks of issuer and router may be apart, in seconds.
pub const LEEWAY: u64 = 60;
/// Most keys of one issuer that are looked at: an unsigned token must not cost more than so many checks.
const MOST_KEYS: usize = 100;

/// What an RSA key may sign with; keys of less than 2048 bits are not accepted.
const OF_RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &signature::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &signature::RSA_PSS_2048_8192_SHA512),
];

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
    /// Ready to check signatures with: to parse a key costs more than to use it.
    by_algorithm: Vec<(Algorithm, ParsedPublicKey)>,
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

    /// What it says: to be believed only when it is [`Token::verified`].
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What it says, once one of `keys` has signed it.
    ///
    /// # Errors
    /// [`Denied::UnknownSigningKey`] when none of `keys` is the one it names, [`Denied::BadSignature`].
    pub fn verified(&self, keys: &KeySet) -> Result<&Claims, Denied> {
        let mut possible = keys.keys.iter().filter_map(|key| key.for_token(self)).peekable();
        possible.peek().ok_or(Denied::UnknownSigningKey)?;
        let signature = URL_SAFE_NO_PAD.decode(self.signature).map_err(|_| Denied::BadSignature)?;
        let signed = possible.any(|key| key.verify_sig(self.signed.as_bytes(), &signature).is_ok());
        let is_named = self.key_id.is_some() && keys.keys.iter().any(|key| key.id == self.key_id);
        match (signed, is_named) {
            (true, _) => Ok(&self.claims),
            (false, true) => Err(Denied::BadSignature),
            // Keys without a name were tried, but it may be one that is not there yet.
            (false, false) => Err(Denied::UnknownSigningKey),
        }
    }
}

impl PublicKey {
    /// The key, if it is the one that a token names, and of its algorithm.
    fn for_token(&self, token: &Token<'_>) -> Option<&ParsedPublicKey> {
        let named = match (&token.key_id, &self.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        let (_, key) = self.by_algorithm.iter().find(|(algorithm, _)| *algorithm == token.algorithm)?;
        named.then_some(key)
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
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature)
            && jwk.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        let is_wanted = |algorithm: Algorithm| jwk.common.key_algorithm.is_none_or(|only| only == algorithm.into());
        let by_algorithm: Vec<(Algorithm, ParsedPublicKey)> =
            parse(&jwk.algorithm)?.into_iter().filter(|(algorithm, _)| is_wanted(*algorithm)).collect();
        let id = jwk.common.key_id;
        (signs && !by_algorithm.is_empty()).then_some(Self { written, id, by_algorithm })
    }
}

/// A key, for each algorithm that it can be used with.
fn parse(key: &AlgorithmParameters) -> Option<Vec<(Algorithm, ParsedPublicKey)>> {
    let number = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let one = |algorithm, how: &'static dyn signature::VerificationAlgorithm, bytes: Vec<u8>| {
        Some(vec![(algorithm, ParsedPublicKey::new(how, bytes).ok()?)])
    };
    match key {
        AlgorithmParameters::RSA(rsa) => {
            let plain = |text| Some(number(text)?.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>());
            let components = RsaPublicKeyComponents { n: plain(&rsa.n)?, e: plain(&rsa.e)? };
            let keys =
                OF_RSA.iter().map(|(algorithm, how)| Some((*algorithm, components.to_parsed_public_key(how).ok()?)));
            if components.n.len() < 256 { None } else { keys.collect() }
        }
        AlgorithmParameters::EllipticCurve(point) => {
            // Uncompressed, as in SEC 1 section 2.3.3.
            let bytes = |length| {
                Some([vec![4], padded(number(&point.x)?, length)?, padded(number(&point.y)?, length)?].concat())
            };
            match point.curve {
                EllipticCurve::P256 => one(Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED, bytes(32)?),
                EllipticCurve::P384 => one(Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED, bytes(48)?),
                _ => None,
            }
        }
        AlgorithmParameters::OctetKeyPair(key) => one(Algorithm::EdDSA, &signature::ED25519, number(&key.x)?),
        // A shared secret is no public key: whoever can read it can sign.
        _ => None,
    }
}

/// A coordinate at its full length: RFC 7518 asks for it, some issuers leave leading zeros out. `None`: too long.
fn padded(coordinate: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    Some([vec![0; length.checked_sub(coordinate.len())?], coordinate].concat())
}
