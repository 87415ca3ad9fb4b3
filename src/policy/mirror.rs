//! Which live requests are copied to a shadow deployment.
//!
//! Never more than the configured share, by requests and by bytes, at any time: each live request earns the share's part of
//! a copy, and a copy is made only where a whole one has been earned. A hash of the request's id decides which request it
//! is, so that clients that take turns do not meet the same turn every time; the longer a copy is due, the more likely.
//! Between what is earned and what is copied there are never more than a few requests: nothing is made up for after a time
//! in which nothing could be copied.

/// What one copy costs, in percent of a request.
const WHOLE: u32 = 100;
/// A copy that is due for so many requests' worth is made whatever the hash says.
const OVERDUE: u32 = 3 * WHOLE;
/// More than this is not earned.
const MOST: u32 = 4 * WHOLE;
/// Nor more than this many bytes: enough for the largest body at the smallest share.
const MOST_BYTES: i64 = 1 << 30;

/// What an endpoint's live traffic has earned and its shadow has not had yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Share {
    /// Hundredths of a request; at most [`MOST`].
    requests: u32,
    /// Hundredths of a byte; below zero after a copy that was longer than anybody knew.
    bytes: i64,
}

impl Share {
    /// A live request came, with a body of at least `length` bytes; whether it is copied, where `percent` are.
    pub fn decide(&mut self, percent: u8, hash: u64, length: u64) -> bool {
        self.requests = (self.requests + u32::from(percent)).min(MOST);
        self.earn(percent, length);
        let cost = cents(length);
        if self.requests < WHOLE || self.bytes < cost {
            return false;
        }
        // At the least that is due the share itself; at twice that, twice the share.
        let chance = u64::from(percent) * u64::from(self.requests) / u64::from(WHOLE);
        if self.requests < OVERDUE && hash % 100 >= chance {
            return false;
        }
        self.requests -= WHOLE;
        self.bytes -= cost;
        true
    }

    /// A live body was longer by so much than was known when it was decided on.
    pub fn earn(&mut self, percent: u8, bytes: u64) {
        let earned = i64::from(percent).saturating_mul(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.bytes = self.bytes.saturating_add(earned).min(cents(MOST_BYTES.unsigned_abs()));
    }

    /// A copy was longer by so much than was known when it was decided on.
    pub fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(cents(bytes));
    }
}

fn cents(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(100)
}

/// Of a request's id, by FNV-1a: everybody who knows the id can say it.
pub fn hash(id: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = id.iter().fold(0xcbf2_9ce4_8422_2325, step);
    // The low digits of the multiplication see little of the last bytes.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn run(percent: u8, requests: u64, mut length: impl FnMut(u64) -> u64) -> (u64, u64, u64) {
        let (mut share, mut rng) = (Share::default(), SmallRng::seed_from_u64(7));
        let (mut copies, mut bytes, mut copied) = (0, 0, 0);
        for number in 0..requests {
            let (hash, length) = (rng.random(), length(number));
            bytes += length;
            if share.decide(percent, hash, length) {
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
        // The longest are due at the wrong moment more often than the others.
        assert!(copied * 100 >= bytes * 8, "{copied} of {bytes}");
        // One large body among small ones waits until enough has been earned for it.
        let (_, _, copied) = run(50, 4, |number| if number == 0 { 100 << 20 } else { 10 });
        assert!(copied < 100, "{copied}");
    }

    #[test]
    fn those_that_take_turns_do_not_meet_the_same_turn() {
        let (mut share, mut rng) = (Share::default(), SmallRng::seed_from_u64(9));
        let mut met = [0; 10];
        for number in 0..10_000 {
            if share.decide(10, rng.random(), 100) {
                met[number % 10] += 1;
            }
        }
        assert!(met.iter().all(|met| (50..200).contains(met)), "{met:?}");
    }

    #[test]
    fn nothing_is_made_up_for() {
        let mut share = Share::default();
        for _ in 0..1_000 {
            share.requests = (share.requests + 10).min(MOST);
        }
        share.earn(10, 1_000_000);
        let copies = (0..10).filter(|_| share.decide(10, 0, 1)).count();
        assert!(copies <= 5, "{copies}");
    }

    #[test]
    fn the_same_ids_are_decided_alike() {
        let ids = (0..1_000).map(|number| format!("id-{number}"));
        let all = |ids: Vec<String>| {
            let mut share = Share::default();
            ids.iter().map(|id| share.decide(10, hash(id.as_bytes()), 100)).collect::<Vec<_>>()
        };
        let ids: Vec<String> = ids.collect();
        assert_eq!(all(ids.clone()), all(ids));
    }

    #[test]
    fn nothing_is_copied_of_nothing() {
        assert_eq!(run(0, 1_000, |_| 10).0, 0);
    }
}
