//! No changed token is valid, wherever and however it was changed.

use inference_router::policy::token::{KeySet, ParsedToken};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::signers::{Signer, jwk_set};

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \x00";

#[test]
fn no_mutated_token_is_accepted() {
    let signers = Signer::one_of_each_kind();
    let keys = KeySet::parse(jwk_set(&signers.each_ref().map(Signer::public)).as_bytes()).unwrap();
    let is_good = |token: &str| ParsedToken::parse(token).is_ok_and(|token| token.verify(&keys).is_ok());
    let claims = json!({"iss": "i", "aud": "a", "sub": "me", "exp": 5_000_000_000_u64});
    for (signer, seed) in signers.iter().zip(0..) {
        let token = signer.sign(&claims);
        assert!(is_good(&token));
        // Every place, with every letter at a tenth of them: a whole run would take minutes in RSA alone.
        let mut rng = SmallRng::seed_from_u64(seed);
        for at in 0..token.len() {
            for _ in 0..8 {
                let mut bytes = token.clone().into_bytes();
                let letter = LETTERS[rng.random_range(0..LETTERS.len())];
                match rng.random_range(0..4) {
                    0 => bytes.insert(at, letter),
                    1 => drop(bytes.remove(at)),
                    2 => bytes.truncate(at),
                    _ => bytes[at] = letter,
                }
                let mutated = String::from_utf8(bytes).unwrap();
                assert!(mutated == token || !is_good(&mutated), "{at}: {mutated} instead of {token}");
            }
        }
        // Parts of one token with those of another.
        let other = signer.sign(&json!({"iss": "i", "aud": "b", "sub": "you", "exp": 5_000_000_000_u64}));
        let (parts, others): (Vec<&str>, Vec<&str>) = (token.split('.').collect(), other.split('.').collect());
        for mixed in [[parts[0], others[1], parts[2]], [parts[0], parts[1], others[2]]] {
            assert!(!is_good(&mixed.join(".")));
        }
    }
}
