//! Decides which live requests are mirrored to a shadow deployment.
//!
//! The mirrored share never exceeds the configured one, by requests and by bytes, at any time: each live request earns
//! a part of a copy, and a copy is made only when a whole one has been earned. A hash of the request id decides which
//! request is copied, so that clients that take turns are all represented; the longer a copy is due, the more likely it
//! is. Copies lag behind what is earned by a few requests at most, and there is no catch-up after a time in which
//! nothing could be copied.

/// The cost of one copy, in percent of a request.
const PERCENT_PER_COPY: u32 = 100;
/// At this credit a copy is made whatever the hash says.
const FORCED_COPY_CREDIT: u32 = 3 * PERCENT_PER_COPY;
/// The largest credit for requests.
const MAX_REQUEST_CREDIT: u32 = 4 * PERCENT_PER_COPY;
/// The largest credit for bytes: enough for the largest body at the smallest share.
const MAX_BYTE_CREDIT: i64 = 1 << 30;

/// What the live traffic of an endpoint has earned and its shadow has not received.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MirrorShare {
    /// Credit in hundredths of a request, at most [`MAX_REQUEST_CREDIT`].
    requests: u32,
    /// Credit in hundredths of a byte. It is negative after a copy that was longer than expected.
    bytes: i64,
}

impl MirrorShare {
    /// Records a live request with a body of at least `length` bytes. Returns whether it is copied if `percent` of the
    /// requests are.
    pub fn should_copy(&mut self, percent: u8, hash: u64, length: u64) -> bool {
        self.requests = (self.requests + u32::from(percent)).min(MAX_REQUEST_CREDIT);
        self.earn_bytes(percent, length);
        let cost = cents(length);
        if self.requests < PERCENT_PER_COPY || self.bytes < cost {
            return false;
        }
        // With the smallest credit the chance is the share itself; with twice the credit it is twice the share.
        let chance = u64::from(percent) * u64::from(self.requests) / u64::from(PERCENT_PER_COPY);
        if self.requests < FORCED_COPY_CREDIT && hash % 100 >= chance {
            return false;
        }
        self.requests -= PERCENT_PER_COPY;
        self.bytes -= cost;
        true
    }

    /// Adds bytes that a live body had beyond the expected length.
    pub fn earn_bytes(&mut self, percent: u8, bytes: u64) {
        let earned = i64::from(percent).saturating_mul(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.bytes = self.bytes.saturating_add(earned).min(cents(MAX_BYTE_CREDIT.unsigned_abs()));
    }

    /// Subtracts bytes that a copied body had beyond the expected length.
    pub fn spend_bytes(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(cents(bytes));
    }
}

fn cents(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(100)
}

/// Returns the FNV-1a hash of a request id, which can be computed from the id alone.
pub fn hash_request_id(id: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = id.iter().fold(0xcbf2_9ce4_8422_2325, step);
    // The low digits of the product depend little on the last bytes.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn run(percent: u8, requests: u64, mut length: impl FnMut(u64) -> u64) -> (u64, u64, u64) {
        let (mut share, mut rng) = (MirrorShare::default(), SmallRng::seed_from_u64(7));
        let (mut copies, mut bytes, mut copied) = (0, 0, 0);
        for number in 0..requests {
            let (hash, length) = (rng.random(), length(number));
            bytes += length;
            if share.should_copy(percent, hash, length) {
                copies += 1;
                copied += length;
            }
            let earned = |of: u64| of * u64::from(percent) / 100;
            assert!(copies <= earned(number + 1), "never above, by requests: {copies} of {number}");
            assert!(copied <= earned(bytes), "never above, by bytes: {copied} of {bytes}");
        }
        (copies, bytes, copied)
    }

    #[test]
    fn the_share_is_exact_but_for_a_few_requests() {
        for percent in [1, 10, 33, 50] {
            let (copies, ..) = run(percent, 20_000, |_| 500);
            let earned = 20_000 * u64::from(percent) / 100;
            assert!(earned - copies <= 3, "{percent} %: {copies} of {earned}");
        }
    }

    #[test]
    fn bodies_of_any_length_stay_within_the_share_by_bytes() {
        let mut rng = SmallRng::seed_from_u64(8);
        let (copies, bytes, copied) = run(10, 20_000, |_| 1 << rng.random_range(0..20));
        assert!(copies >= 1_900, "{copies}");
        // The longest bodies are due at the wrong moment more often than the others.
        assert!(copied * 100 >= bytes * 8, "{copied} of {bytes}");
        // One large body among small ones waits until enough has been earned for it.
        let (_, _, copied) = run(50, 4, |number| if number == 0 { 100 << 20 } else { 10 });
        assert!(copied < 100, "{copied}");
    }

    #[test]
    fn those_that_take_turns_do_not_meet_the_same_turn() {
        let (mut share, mut rng) = (MirrorShare::default(), SmallRng::seed_from_u64(9));
        let mut met = [0; 10];
        for number in 0..10_000 {
            if share.should_copy(10, rng.random(), 100) {
                met[number % 10] += 1;
            }
        }
        assert!(met.iter().all(|met| (50..200).contains(met)), "{met:?}");
    }

    #[test]
    fn nothing_is_made_up_for() {
        let mut share = MirrorShare::default();
        for _ in 0..1_000 {
            share.requests = (share.requests + 10).min(MAX_REQUEST_CREDIT);
        }
        share.earn_bytes(10, 1_000_000);
        let copies = (0..10).filter(|_| share.should_copy(10, 0, 1)).count();
        assert!(copies <= 5, "{copies}");
    }

    #[test]
    fn the_same_ids_are_decided_alike() {
        let ids = (0..1_000).map(|number| format!("id-{number}"));
        let all = |ids: Vec<String>| {
            let mut share = MirrorShare::default();
            ids.iter().map(|id| share.should_copy(10, hash_request_id(id.as_bytes()), 100)).collect::<Vec<_>>()
        };
        let ids: Vec<String> = ids.collect();
        assert_eq!(all(ids.clone()), all(ids));
    }

    #[test]
    fn nothing_is_copied_of_nothing() {
        assert_eq!(run(0, 1_000, |_| 10).0, 0);
    }
}
