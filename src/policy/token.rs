//! Tokens (JWT, RFC 7519): parsing, and verification against the keys and the rules of their issuers.
//!
//! Before the signature is verified, only the fields that lead to the key are used: issuer, key id and algorithm. The
//! key determines the algorithm; the one in the token only has to be the same.

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model::endpoint::Issuer;
use crate::model::refusal::AuthFailure;

/// The tolerated difference between the clocks of issuer and router, in seconds.
pub const CLOCK_LEEWAY_SECONDS: u64 = 60;
/// The largest number of keys that are used of one issuer: an unsigned token must not cost more verifications than
/// this.
const MAX_KEYS: usize = 100;

/// The algorithms of RSA keys. Keys of less than 2048 bits are not accepted.
const RSA_ALGORITHMS: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &signature::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &signature::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &signature::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &signature::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &signature::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &signature::RSA_PSS_2048_8192_SHA512),
];

/// A token as received. Nothing in it is verified.
#[derive(Debug)]
pub struct ParsedToken<'t> {
    signed: &'t str,
    signature: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Claims,
}

/// The claims of a token.
#[derive(Debug)]
pub struct Claims(Map<String, Value>);

/// The public keys of one issuer.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
}

#[derive(Debug, Clone)]
struct PublicKey {
    /// The key as it was written. Two keys with the same text are equal.
    written: Value,
    id: Option<String>,
    /// The key prepared for verification, because parsing a key costs more than using it.
    by_algorithm: Vec<(Algorithm, ParsedPublicKey)>,
}

#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    kid: Option<String>,
    /// Extensions that must be understood. None is supported.
    crit: Option<Value>,
}

impl<'t> ParsedToken<'t> {
    /// Parses a token.
    ///
    /// # Errors
    ///
    /// [`AuthFailure::Malformed`].
    pub fn parse(text: &'t str) -> Result<Self, AuthFailure> {
        let (signed, signature) = text.rsplit_once('.').ok_or(AuthFailure::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(AuthFailure::Malformed)?;
        let header: Header = decode_part(header)?;
        if header.crit.is_some() {
            return Err(AuthFailure::Malformed);
        }
        let claims = Claims(decode_part(claims)?);
        Ok(Self { signed, signature, algorithm: header.alg, key_id: header.kid, claims })
    }

    /// Returns the issuer that the token names (`iss`).
    pub fn issuer(&self) -> &str {
        self.claims.text("iss")
    }

    /// Returns the claims, which must be trusted only after [`ParsedToken::verify`].
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Verifies that one of `keys` has signed the token, and returns its claims.
    ///
    /// # Errors
    ///
    /// [`AuthFailure::UnknownSigningKey`] if none of `keys` is the one that the token names,
    /// [`AuthFailure::BadSignature`].
    pub fn verify(&self, keys: &KeySet) -> Result<&Claims, AuthFailure> {
        let mut possible = keys.keys.iter().filter_map(|key| key.matching_key(self)).peekable();
        possible.peek().ok_or(AuthFailure::UnknownSigningKey)?;
        let signature = URL_SAFE_NO_PAD.decode(self.signature).map_err(|_| AuthFailure::BadSignature)?;
        let signed = possible.any(|key| key.verify_sig(self.signed.as_bytes(), &signature).is_ok());
        let is_named = self.key_id.is_some() && keys.keys.iter().any(|key| key.id == self.key_id);
        match (signed, is_named) {
            (true, _) => Ok(&self.claims),
            (false, true) => Err(AuthFailure::BadSignature),
            // Keys without an id were tried, but the right one may not be in the set yet.
            (false, false) => Err(AuthFailure::UnknownSigningKey),
        }
    }
}

impl PublicKey {
    /// Returns the key, if it is the one that a token names and has its algorithm.
    fn matching_key(&self, token: &ParsedToken<'_>) -> Option<&ParsedPublicKey> {
        let named = match (&token.key_id, &self.id) {
            (Some(named), Some(id)) => named == id,
            _ => true,
        };
        let (_, key) = self.by_algorithm.iter().find(|(algorithm, _)| *algorithm == token.algorithm)?;
        named.then_some(key)
    }
}

/// Decodes one part of a token.
fn decode_part<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, AuthFailure> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthFailure::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| AuthFailure::Malformed)
}

impl Claims {
    /// Checks that an issuer's token is valid for an endpoint that trusts the issuer, at `now`, a Unix time in seconds.
    ///
    /// # Errors
    ///
    /// [`AuthFailure`] says why it is not.
    pub fn validate_for_issuer(&self, issuer: &Issuer, now: u64) -> Result<(), AuthFailure> {
        self.in_time(now)?;
        if !issuer.audiences.iter().any(|audience| self.contains_value("aud", audience)) {
            return Err(AuthFailure::WrongAudience);
        }
        let has_claim = |(name, values): &(String, Vec<Value>)| {
            let Some(found) = self.0.get(name) else { return false };
            let found = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
            found.iter().any(|found| values.contains(found))
        };
        let in_scope =
            issuer.scopes.iter().any(|scope| self.contains_word("scp", scope) || self.contains_word("scope", scope));
        let in_role = issuer.roles.iter().any(|role| self.contains_value("roles", role));
        let any_asked = !issuer.scopes.is_empty() || !issuer.roles.is_empty();
        if !issuer.required_claims.iter().all(has_claim) || any_asked && !in_scope && !in_role {
            return Err(AuthFailure::MissingClaim);
        }
        Ok(())
    }

    /// Checks that a token of the router is valid for `endpoint` (its name in lower case), at `now`, a Unix time in
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`AuthFailure`] says why it is not.
    pub fn authorize_endpoint(&self, endpoint: &str, now: u64) -> Result<(), AuthFailure> {
        self.in_time(now)?;
        if self.contains_value("aud", endpoint) { Ok(()) } else { Err(AuthFailure::WrongEndpoint) }
    }

    /// Returns the subject of the token. With some issuers an application has no `sub`, so other claims are used.
    pub fn subject(&self) -> &str {
        ["sub", "azp", "appid"].into_iter().map(|name| self.text(name)).find(|text| !text.is_empty()).unwrap_or("")
    }

    /// Returns the last second in which the token is valid, as a Unix time.
    pub fn expires_at(&self) -> u64 {
        self.unix_time("exp").unwrap_or_default().saturating_add(CLOCK_LEEWAY_SECONDS)
    }

    fn in_time(&self, now: u64) -> Result<(), AuthFailure> {
        // A token must expire; a token without an end is never intended.
        self.unix_time("exp").ok_or(AuthFailure::Malformed)?;
        if now > self.expires_at() {
            return Err(AuthFailure::Expired);
        }
        let from = if self.0.contains_key("nbf") { self.unix_time("nbf").ok_or(AuthFailure::Malformed)? } else { 0 };
        if from > now.saturating_add(CLOCK_LEEWAY_SECONDS) { Err(AuthFailure::NotYetValid) } else { Ok(()) }
    }

    /// Returns a claim that is a Unix time in seconds. Some issuers write fractions.
    fn unix_time(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        value.as_u64().or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds as u64))
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns whether a claim is `wanted`, or a list that contains it.
    fn contains_value(&self, name: &str, wanted: &str) -> bool {
        match self.0.get(name) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Array(list)) => list.iter().any(|item| item == wanted),
            _ => false,
        }
    }

    /// As `contains_value`, where a text may hold several words.
    fn contains_word(&self, name: &str, wanted: &str) -> bool {
        self.text(name).split_ascii_whitespace().any(|word| word == wanted) || self.contains_value(name, wanted)
    }
}

/// Two sets are equal if they have the same keys in the same order.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.keys.iter().map(|key| &key.written).eq(other.keys.iter().map(|key| &key.written))
    }
}

impl KeySet {
    /// Parses the keys of a key set (JWKS, RFC 7517) that can verify signatures; others are left out.
    ///
    /// # Errors
    ///
    /// What is wrong with the document.
    pub fn parse(document: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Written {
            keys: Vec<Value>,
        }
        let Written { keys } =
            serde_json::from_slice(document).map_err(|error| format!("it is not a JWK set: {error}"))?;
        let keys: Vec<PublicKey> = keys.into_iter().filter_map(PublicKey::from_jwk).take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err("it has no key that a token could be signed with (RSA, P-256, P-384, Ed25519)".to_owned());
        }
        Ok(Self { keys })
    }

    /// Creates a set of these keys.
    pub(super) fn from_keys(keys: Vec<Value>) -> Self {
        Self { keys: keys.into_iter().filter_map(PublicKey::from_jwk).collect() }
    }
}

impl PublicKey {
    /// Returns `None` for a key that is not for signatures, or of an unsupported kind.
    fn from_jwk(written: Value) -> Option<Self> {
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

/// Parses a key for each algorithm that it can be used with.
fn parse(key: &AlgorithmParameters) -> Option<Vec<(Algorithm, ParsedPublicKey)>> {
    let number = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let one = |algorithm, how: &'static dyn signature::VerificationAlgorithm, bytes: Vec<u8>| {
        Some(vec![(algorithm, ParsedPublicKey::new(how, bytes).ok()?)])
    };
    match key {
        AlgorithmParameters::RSA(rsa) => {
            let plain = |text| Some(number(text)?.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>());
            let components = RsaPublicKeyComponents { n: plain(&rsa.n)?, e: plain(&rsa.e)? };
            let keys = RSA_ALGORITHMS
                .iter()
                .map(|(algorithm, how)| Some((*algorithm, components.to_parsed_public_key(how).ok()?)));
            if components.n.len() < 256 { None } else { keys.collect() }
        }
        AlgorithmParameters::EllipticCurve(point) => {
            // Uncompressed form, as in SEC 1, section 2.3.3.
            let bytes = |length| {
                Some(
                    [vec![4], pad_coordinate(number(&point.x)?, length)?, pad_coordinate(number(&point.y)?, length)?]
                        .concat(),
                )
            };
            match point.curve {
                EllipticCurve::P256 => one(Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED, bytes(32)?),
                EllipticCurve::P384 => one(Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED, bytes(48)?),
                _ => None,
            }
        }
        AlgorithmParameters::OctetKeyPair(key) => one(Algorithm::EdDSA, &signature::ED25519, number(&key.x)?),
        // A shared secret is no public key: everybody who can read it can sign.
        _ => None,
    }
}

/// Pads a coordinate to its full length. RFC 7518 requires that, but some issuers leave out leading zeros. Returns
/// `None` if it is too long.
fn pad_coordinate(coordinate: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    Some([vec![0; length.checked_sub(coordinate.len())?], coordinate].concat())
}
