//! The required claims of a token, with times to the second.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use inference_router::model::endpoint::{Issuer, KeySetSource};
use inference_router::model::refusal::AuthFailure;
use inference_router::policy::signing::{TokenSigner, WrongKey};
use inference_router::policy::token::{CLOCK_LEEWAY_SECONDS, KeySet, ParsedToken};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::signers::{Signer, jwk_set, with_changed_claims};

const NOW: u64 = 1_000_000;

fn issuer() -> Issuer {
    let issuer = "https://issuer.example".to_owned();
    Issuer {
        key_set: KeySetSource { issuer, jwks_uri: None, ca_file: None, bearer_token_file: None, allow_http: false },
        audiences: vec!["one".to_owned(), "two".to_owned()],
        required_claims: vec![("tid".to_owned(), vec![json!("t"), json!(7)])],
        scopes: vec!["score".to_owned()],
        roles: vec!["scorer".to_owned()],
    }
}

fn valid_claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "one", "sub": "me", "exp": NOW + 10, "tid": "t", "scp": "read score"})
}

fn verdict(keys: &str, token: &str, issuer: &Issuer, now: u64) -> Result<(), AuthFailure> {
    let token = ParsedToken::parse(token)?;
    token.verify(&KeySet::parse(keys.as_bytes()).unwrap())?.validate_for_issuer(issuer, now)
}

#[test]
fn every_kind_of_signature_is_checked() {
    let signers = Signer::one_of_each_kind();
    let others = Signer::one_of_each_kind();
    let keys = jwk_set(&signers.each_ref().map(Signer::public));
    for (signer, other) in signers.iter().zip(&others) {
        assert_eq!(verdict(&keys, &signer.sign(&valid_claims()), &issuer(), NOW), Ok(()), "{:?}", signer.algorithm);
        // The same name and kind, another key.
        assert_eq!(verdict(&keys, &other.sign(&valid_claims()), &issuer(), NOW), Err(AuthFailure::BadSignature));
        let unnamed = signer.sign_as(&Header::new(signer.algorithm), &valid_claims());
        assert_eq!(verdict(&keys, &unnamed, &issuer(), NOW), Ok(()), "a token need not name its key");
        let misnamed = Header { kid: Some("none".to_owned()), ..Header::new(signer.algorithm) };
        let misnamed = signer.sign_as(&misnamed, &valid_claims());
        assert_eq!(verdict(&keys, &misnamed, &issuer(), NOW), Err(AuthFailure::UnknownSigningKey));
    }
}

#[test]
fn the_key_says_which_algorithm() {
    let signer = Signer::rsa("rsa");
    let public = signer.public();
    let keys = jwk_set(std::slice::from_ref(&public));
    let other =
        signer.sign_as(&Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::RS512) }, &valid_claims());
    assert_eq!(verdict(&keys, &other, &issuer(), NOW), Err(AuthFailure::UnknownSigningKey));
    // A key that does not say so is good for all of its kind.
    let mut open = public.clone();
    open.as_object_mut().unwrap().remove("alg");
    assert_eq!(verdict(&jwk_set(&[open]), &other, &issuer(), NOW), Ok(()));
    // What everybody knows is no secret to sign with.
    let secret = EncodingKey::from_secret(public["n"].as_str().unwrap().as_bytes());
    let header = Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::HS256) };
    let forged = jsonwebtoken::encode(&header, &valid_claims(), &secret).unwrap();
    assert_eq!(verdict(&keys, &forged, &issuer(), NOW), Err(AuthFailure::UnknownSigningKey));
    let shared = json!({"kty": "oct", "kid": "rsa", "alg": "HS256", "k": public["n"]});
    assert_eq!(verdict(&jwk_set(&[shared, public]), &forged, &issuer(), NOW), Err(AuthFailure::UnknownSigningKey));
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for alg in ["none", "None", "nOnE", "", "XX"] {
        let unsigned = format!("{}.{}.", encode(json!({"alg": alg})), encode(valid_claims()));
        assert_eq!(verdict(&keys, &unsigned, &issuer(), NOW), Err(AuthFailure::Malformed), "{alg}");
    }
    let critical = format!("{}.{}.", encode(json!({"alg": "RS256", "crit": ["exp"]})), encode(valid_claims()));
    assert_eq!(verdict(&keys, &critical, &issuer(), NOW), Err(AuthFailure::Malformed));
}

#[test]
fn keys_for_other_uses_check_nothing() {
    let signer = Signer::p256("ec");
    for change in [json!({"use": "enc"}), json!({"key_ops": ["encrypt"]})] {
        let other = with_changed_claims(&signer.public(), change);
        assert!(KeySet::parse(jwk_set(std::slice::from_ref(&other)).as_bytes()).is_err(), "{other}");
    }
    let one_bad = jwk_set(&[json!({"kty": "EC", "crv": "P-256", "x": "?", "y": "?"}), json!(5), signer.public()]);
    assert_eq!(
        verdict(&one_bad, &signer.sign(&valid_claims()), &issuer(), NOW),
        Ok(()),
        "a key that is none spoils no other"
    );
    for document in ["", "[]", "{}", r#"{"keys": []}"#, r#"{"keys": {}}"#, "<html>"] {
        assert!(KeySet::parse(document.as_bytes()).is_err(), "{document}");
    }
}

/// RFC 7518 asks for coordinates at their full length; some issuers leave leading zeros out.
#[test]
fn a_key_whose_coordinates_lack_leading_zeros_is_the_key() {
    let short = |signer: &Signer| {
        let (public, mut fewer) = (signer.public(), json!({}));
        for name in ["x", "y"] {
            let bytes = URL_SAFE_NO_PAD.decode(public[name].as_str().unwrap()).unwrap();
            let kept: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
            if kept.len() < bytes.len() {
                fewer[name] = json!(URL_SAFE_NO_PAD.encode(kept));
            }
        }
        (fewer != json!({})).then(|| with_changed_claims(&public, fewer))
    };
    // One key in 128 has such a coordinate.
    let (signer, key) =
        std::iter::repeat_with(|| Signer::p256("ec")).find_map(|s| short(&s).map(|key| (s, key))).unwrap();
    assert_eq!(verdict(&jwk_set(&[key]), &signer.sign(&valid_claims()), &issuer(), NOW), Ok(()));
    let long = format!("AAAA{}", signer.public()["x"].as_str().unwrap());
    assert!(KeySet::parse(jwk_set(&[with_changed_claims(&signer.public(), json!({"x": long}))]).as_bytes()).is_err());
}

/// An unnamed key is tried for every token; that it did not fit does not say that there is none.
#[test]
fn a_key_without_a_name_hides_no_new_one() {
    let (unnamed, new) = (Signer::rsa("x"), Signer::rsa("new"));
    let keys = jwk_set(&[with_changed_claims(&unnamed.public(), json!({"kid": null}))]);
    assert_eq!(verdict(&keys, &unnamed.sign(&valid_claims()), &issuer(), NOW), Ok(()));
    assert_eq!(verdict(&keys, &new.sign(&valid_claims()), &issuer(), NOW), Err(AuthFailure::UnknownSigningKey));
}

#[test]
fn each_claim_counts() {
    let signer = Signer::ed25519("ed");
    let keys = jwk_set(&[signer.public()]);
    let says =
        |change: Value| verdict(&keys, &signer.sign(&with_changed_claims(&valid_claims(), change)), &issuer(), NOW);
    for change in [
        json!({"aud": ["x", "two"]}),
        json!({"tid": 7}),
        json!({"tid": ["a", "t"]}),
        json!({"scp": ["score"]}),
        json!({"scp": null, "scope": "score"}),
        json!({"scp": null, "roles": ["scorer"]}),
        json!({"exp": NOW as f64 + 0.5}),
        json!({"nbf": NOW}),
        json!({"sub": null}),
    ] {
        assert_eq!(says(change.clone()), Ok(()), "{change}");
    }
    for (change, denied) in [
        (json!({"aud": "three"}), AuthFailure::WrongAudience),
        (json!({"aud": null}), AuthFailure::WrongAudience),
        (json!({"aud": []}), AuthFailure::WrongAudience),
        (json!({"aud": {"one": 1}}), AuthFailure::WrongAudience),
        (json!({"tid": "u"}), AuthFailure::MissingClaim),
        (json!({"tid": null}), AuthFailure::MissingClaim),
        (json!({"tid": "7"}), AuthFailure::MissingClaim),
        (json!({"scp": "scores"}), AuthFailure::MissingClaim),
        (json!({"scp": null}), AuthFailure::MissingClaim),
        (json!({"scp": null, "roles": "score"}), AuthFailure::MissingClaim),
        (json!({"exp": null}), AuthFailure::Malformed),
        (json!({"exp": "1000010"}), AuthFailure::Malformed),
        (json!({"exp": -1}), AuthFailure::Malformed),
        (json!({"nbf": "soon"}), AuthFailure::Malformed),
    ] {
        assert_eq!(says(change.clone()), Err(denied), "{change}");
    }
}

#[test]
fn time_counts_with_a_minutes_leeway() {
    let signer = Signer::ed25519("ed");
    let keys = jwk_set(&[signer.public()]);
    let at = |change: Value, now: u64| {
        verdict(&keys, &signer.sign(&with_changed_claims(&valid_claims(), change)), &issuer(), now)
    };
    assert_eq!(at(json!({"exp": NOW}), NOW + CLOCK_LEEWAY_SECONDS), Ok(()));
    assert_eq!(at(json!({"exp": NOW}), NOW + CLOCK_LEEWAY_SECONDS + 1), Err(AuthFailure::Expired));
    assert_eq!(at(json!({"nbf": NOW + CLOCK_LEEWAY_SECONDS}), NOW), Ok(()));
    assert_eq!(at(json!({"nbf": NOW + CLOCK_LEEWAY_SECONDS + 1}), NOW), Err(AuthFailure::NotYetValid));
    assert_eq!(at(json!({"exp": u64::MAX}), NOW), Ok(()));
    assert_eq!(at(json!({"exp": 1e300}), NOW), Ok(()));
    assert_eq!(at(json!({"exp": 0}), NOW), Err(AuthFailure::Expired));
}

#[test]
fn the_routers_own_tokens_are_for_one_endpoint() {
    let hour = Duration::from_secs(3600);
    for signer in [Signer::ed25519("a"), Signer::p256("b")] {
        let signing = TokenSigner::new("router", hour, signer.pem.as_bytes(), &[]).unwrap();
        let issued = signing.issue("mine", "me", NOW, None).unwrap();
        assert_eq!((issued.expires_at, issued.refresh_after), (NOW + 3600, NOW + 2880));
        let token = ParsedToken::parse(&issued.token).unwrap();
        assert_eq!(token.issuer(), "router");
        let claims = token.verify(signing.keys()).unwrap();
        assert_eq!(claims.subject(), "me");
        assert_eq!(claims.authorize_endpoint("mine", NOW), Ok(()));
        assert_eq!(claims.authorize_endpoint("yours", NOW), Err(AuthFailure::WrongEndpoint));
        assert_eq!(claims.authorize_endpoint("mine", NOW + 3600 + CLOCK_LEEWAY_SECONDS + 1), Err(AuthFailure::Expired));
        let short = signing.issue("mine", "me", NOW, Some(Duration::from_secs(5))).unwrap();
        assert_eq!(short.expires_at, NOW + 5);
    }
}

#[test]
fn tokens_of_previous_keys_stay_good() {
    let (old, new, other) = (Signer::p256("x"), Signer::ed25519("x"), Signer::ed25519("x"));
    let hour = Duration::from_secs(3600);
    let sign = |current: &Signer, previous: &[&Signer]| {
        let previous: Vec<Vec<u8>> = previous.iter().map(|signer| signer.pem.clone().into_bytes()).collect();
        TokenSigner::new("router", hour, current.pem.as_bytes(), &previous).unwrap()
    };
    let token = sign(&old, &[]).issue("mine", "me", NOW, None).unwrap().token;
    let after = sign(&new, &[&old, &new]);
    assert!(ParsedToken::parse(&token).unwrap().verify(after.keys()).is_ok());
    assert_eq!(after.jwks()["keys"].as_array().unwrap().len(), 2, "the same key twice is one");
    assert!(after.jwks().to_string().contains("\"kid\""));
    assert!(!after.jwks().to_string().contains("\"d\""), "nothing private");
    let without = sign(&other, &[&new]);
    let verified = ParsedToken::parse(&token).unwrap().verify(without.keys()).map(|_| ());
    assert_eq!(verified, Err(AuthFailure::UnknownSigningKey));
    let wrong = |current: &str, previous: &str| {
        TokenSigner::new("router", hour, current.as_bytes(), &[previous.as_bytes().to_vec()]).map(|_| ())
    };
    assert_eq!(wrong("x", &old.pem), Err(WrongKey { previous: None }));
    assert_eq!(wrong(&Signer::rsa("x").pem, &old.pem), Err(WrongKey { previous: None }));
    assert_eq!(wrong(&new.pem, "-----BEGIN"), Err(WrongKey { previous: Some(0) }));
}
