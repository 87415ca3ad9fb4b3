//! State of token authentication: the cache of verified tokens and the keys that others are verified with.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::access_reviews::AccessReviewQueue;
use super::key_sets::KeySetRegistry;
use super::signature_verification::VerificationQueue;
use crate::policy::signing::TokenSigner;

/// Capacity of the cache of verified tokens, over all endpoints.
const MAX_CACHED_TOKENS: usize = 65_536;

/// Shared by all workers and the control plane.
#[derive(Debug, Default)]
pub struct TokenState {
    /// The signing keys of the router's own tokens; `None` if it issues none.
    pub signing: ArcSwapOption<TokenSigner>,
    /// Key sets of token issuers.
    pub key_sets: Arc<KeySetRegistry>,
    /// The cache of verified tokens.
    pub verified: VerifiedTokenCache,
    /// The queue of tokens to be verified.
    pub verification: VerificationQueue,
    /// The queue of Kubernetes users who ask for a token.
    pub access_reviews: AccessReviewQueue,
}

/// Remembers verified tokens until they expire or a key set changes, so that a repeated token costs a look-up instead
/// of a signature verification.
#[derive(Debug)]
pub struct VerifiedTokenCache {
    /// The hash key is secret, so that nobody can construct a token with the digest of another one.
    keyed_hasher: SipHasher24,
    /// Counts changes of key sets. Entries of earlier generations do not count any more.
    key_generation: AtomicU64,
    entries: DashMap<TokenDigest, CachedToken, BuildHasherDefault<IdentityHasher>>,
}

/// A 128-bit keyed hash of one token at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest(u128);

/// A generation of the key sets. A token is cached with the generation of the keys that it was verified with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyGeneration(u64);

#[derive(Debug)]
struct CachedToken {
    key_generation: KeyGeneration,
    /// The last second in which the token is valid, as a Unix time.
    expires_at: u64,
    subject: Arc<str>,
}

impl Default for VerifiedTokenCache {
    fn default() -> Self {
        let (first, second) = (rand::random(), rand::random());
        Self {
            keyed_hasher: SipHasher24::new_with_keys(first, second),
            key_generation: AtomicU64::new(0),
            entries: DashMap::default(),
        }
    }
}

impl VerifiedTokenCache {
    /// Returns the digest of `token` at an endpoint whose rules have this `generation`.
    pub fn digest(&self, generation: u64, token: &str) -> TokenDigest {
        let mut hasher = self.keyed_hasher;
        hasher.write_u64(generation);
        hasher.write(token.as_bytes());
        TokenDigest(hasher.finish128().as_u128())
    }

    /// Returns the subject of a token that is cached as valid at `now`, a Unix time in seconds.
    pub fn get(&self, digest: TokenDigest, now: u64) -> Option<Arc<str>> {
        let known = self.entries.get(&digest)?;
        (known.expires_at >= now && known.key_generation == self.key_generation()).then(|| known.subject.clone())
    }

    /// Returns the current generation. It must be read before the keys that a token is verified with.
    pub fn key_generation(&self) -> KeyGeneration {
        KeyGeneration(self.key_generation.load(Ordering::Acquire))
    }

    /// Caches a token that was verified with keys of `key_generation`.
    pub fn insert(
        &self,
        digest: TokenDigest,
        key_generation: KeyGeneration,
        expires_at: u64,
        subject: Arc<str>,
        now: u64,
    ) {
        if self.entries.len() >= MAX_CACHED_TOKENS {
            let current = self.key_generation();
            self.entries.retain(|_, known| known.expires_at >= now && known.key_generation == current);
        }
        if self.entries.len() >= MAX_CACHED_TOKENS {
            // All entries are valid, so any half of them will do, and the cache is rarely full.
            self.entries.retain(|_, _| rand::random());
        }
        self.entries.insert(digest, CachedToken { key_generation, expires_at, subject });
    }

    /// Starts a new generation after key sets have changed and can be read: no cached token counts any more.
    pub fn invalidate_all(&self) {
        self.key_generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// A hasher that uses the digest itself, which is already as good as random.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Digests are hashed by `write_u128`, never by this method.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_token_is_known_until_its_time_is_over_or_keys_change() {
        let good = VerifiedTokenCache::default();
        let digest = good.digest(1, "a.b.c");
        assert_eq!(good.get(digest, 100), None);
        good.insert(digest, good.key_generation(), 100, "me".into(), 0);
        assert_eq!(good.get(digest, 100).as_deref(), Some("me"));
        assert_eq!(good.get(digest, 101), None);
        for other in [good.digest(2, "a.b.c"), good.digest(1, "a.b.d"), good.digest(1, "a.b.c.")] {
            assert_eq!(good.get(other, 100), None);
        }
        let before = good.key_generation();
        good.invalidate_all();
        assert_eq!(good.get(digest, 100), None);
        // Verified with the keys of the generation before, but inserted late.
        good.insert(digest, before, 100, "me".into(), 0);
        assert_eq!(good.get(digest, 100), None);
        good.insert(digest, good.key_generation(), 100, "me".into(), 0);
        assert!(good.get(digest, 100).is_some());
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let good = VerifiedTokenCache::default();
        for number in 0..3 * MAX_CACHED_TOKENS as u64 {
            good.insert(good.digest(number, "x"), good.key_generation(), 100, "me".into(), 0);
            assert!(good.entries.len() <= MAX_CACHED_TOKENS);
        }
        let last = good.digest(3 * MAX_CACHED_TOKENS as u64 - 1, "x");
        assert!(good.get(last, 100).is_some());
        // Expired entries are removed first.
        good.insert(good.digest(0, "y"), good.key_generation(), 300, "me".into(), 0);
        while good.entries.len() < MAX_CACHED_TOKENS {
            good.insert(good.digest(good.entries.len() as u64, "z"), good.key_generation(), 100, "me".into(), 0);
        }
        good.insert(good.digest(0, "w"), good.key_generation(), 300, "me".into(), 200);
        assert!(good.entries.len() <= 3, "{} left", good.entries.len());
    }
}
