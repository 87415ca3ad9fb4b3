//! What is known about tokens: those that were found good, and the keys that others are checked with.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use siphasher::sip128::{Hasher128, SipHasher24};

use super::checks::Checks;
use super::key_sets::KeySets;
use super::reviews::Reviews;
use crate::policy::signing::Signing;

/// Most tokens that are remembered, over all endpoints.
const MOST: usize = 65_536;

/// Shared by all workers and the control plane.
#[derive(Debug, Default)]
pub struct Tokens {
    /// What the router's own tokens are signed with; `None`: it has no key for that.
    pub signing: ArcSwapOption<Signing>,
    /// Public keys of issuers.
    pub key_sets: Arc<KeySets>,
    /// Tokens found good.
    pub good: GoodTokens,
    /// Tokens that are to be found good or not.
    pub checks: Checks,
    /// Users of a cluster who want a token.
    pub reviews: Reviews,
}

/// Remembers tokens that were found good, until their time is over or a set of keys changes: a look-up instead of another
/// signature.
#[derive(Debug)]
pub struct GoodTokens {
    /// Secret, so that nobody can make up a token with the digest of another.
    secret: SipHasher24,
    /// Counts the changes of keys: what was found with others does not count any more.
    epoch: AtomicU64,
    known: DashMap<Digest, Known, BuildHasherDefault<AsItIs>>,
}

/// Stands for one token at one endpoint. 128 bits of a keyed hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(u128);

/// The keys of a time; a token found good with them is remembered as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

#[derive(Debug)]
struct Known {
    epoch: Epoch,
    /// Its last second, since 1970.
    until: u64,
    subject: Arc<str>,
}

impl Default for GoodTokens {
    fn default() -> Self {
        let (first, second) = (rand::random(), rand::random());
        Self { secret: SipHasher24::new_with_keys(first, second), epoch: AtomicU64::new(0), known: DashMap::default() }
    }
}

impl GoodTokens {
    /// What stands for `token` at an endpoint whose rules have this `generation`.
    pub fn digest(&self, generation: u64, token: &str) -> Digest {
        let mut hasher = self.secret;
        hasher.write_u64(generation);
        hasher.write(token.as_bytes());
        Digest(hasher.finish128().as_u128())
    }

    /// Whose the token is, if it is known to be good at `now` (seconds since 1970).
    pub fn get(&self, digest: Digest, now: u64) -> Option<Arc<str>> {
        let known = self.known.get(&digest)?;
        (known.until >= now && known.epoch == self.epoch()).then(|| known.subject.clone())
    }

    /// To be read before the keys that a token is checked with.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Remembers a token that was found good with the keys of `epoch`.
    pub fn put(&self, digest: Digest, epoch: Epoch, until: u64, subject: Arc<str>, now: u64) {
        if self.known.len() >= MOST {
            let current = self.epoch();
            self.known.retain(|_, known| known.until >= now && known.epoch == current);
        }
        if self.known.len() >= MOST {
            // All are good: any half will do, and half is gone rarely enough.
            self.known.retain(|_, _| rand::random());
        }
        self.known.insert(digest, Known { epoch, until, subject });
    }

    /// Keys have changed, and are there to be read: nothing that was found before counts any more.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// Digests are as good as random already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never called for a digest.
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
        let good = GoodTokens::default();
        let digest = good.digest(1, "a.b.c");
        assert_eq!(good.get(digest, 100), None);
        good.put(digest, good.epoch(), 100, "me".into(), 0);
        assert_eq!(good.get(digest, 100).as_deref(), Some("me"));
        assert_eq!(good.get(digest, 101), None);
        for other in [good.digest(2, "a.b.c"), good.digest(1, "a.b.d"), good.digest(1, "a.b.c.")] {
            assert_eq!(good.get(other, 100), None);
        }
        let before = good.epoch();
        good.forget();
        assert_eq!(good.get(digest, 100), None);
        // Found with the keys of before, put late.
        good.put(digest, before, 100, "me".into(), 0);
        assert_eq!(good.get(digest, 100), None);
        good.put(digest, good.epoch(), 100, "me".into(), 0);
        assert!(good.get(digest, 100).is_some());
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let good = GoodTokens::default();
        for number in 0..3 * MOST as u64 {
            good.put(good.digest(number, "x"), good.epoch(), 100, "me".into(), 0);
            assert!(good.known.len() <= MOST);
        }
        let last = good.digest(3 * MOST as u64 - 1, "x");
        assert!(good.get(last, 100).is_some());
        // What is over goes first.
        good.put(good.digest(0, "y"), good.epoch(), 300, "me".into(), 0);
        while good.known.len() < MOST {
            good.put(good.digest(good.known.len() as u64, "z"), good.epoch(), 100, "me".into(), 0);
        }
        good.put(good.digest(0, "w"), good.epoch(), 300, "me".into(), 200);
        assert!(good.known.len() <= 3, "{} left", good.known.len());
    }
}
