//! The delay of bytes under a bandwidth limit: a token bucket.
//!
//! The limit creates tokens as time passes, for [`BURST_DURATION`] at most. Bytes take tokens in the order of their
//! arrival and wait when there are none, so over time the limit is exact, whatever the size of the chunks. Waiting data
//! is counted in bytes, so that a changed limit applies to it too. Tokens are worth the time in which they were
//! created, so that a change of the limit creates none.

use std::time::{Duration, Instant};

/// The burst: tokens are kept for this much time below the limit.
pub const BURST_DURATION: Duration = Duration::from_secs(1);
/// Tokens are counted in fractions of a byte, of which any limit creates a whole number per nanosecond.
const TOKENS_PER_BYTE: i128 = 1_000_000_000;

/// The token bucket of one endpoint.
#[derive(Debug, Clone)]
pub struct Bandwidth {
    /// The limit in bytes per second; the last one while there is none.
    limit: u64,
    /// Whether there is no limit, so that nothing waits.
    is_unlimited: bool,
    /// Bytes of live traffic so far, including those that wait.
    live_bytes: u64,
    live: Tokens,
    /// Tokens for live and mirrored traffic together.
    total_tokens: Tokens,
    /// The time up to which tokens have been created.
    at: Instant,
}

/// The position of bytes in all of the live traffic.
#[derive(Debug, Clone, Copy)]
pub struct QueuePosition(u64);

/// A number of tokens. A negative number is the amount of data that waits.
#[derive(Debug, Clone, Copy)]
struct Tokens(i128);

impl Bandwidth {
    /// Creates a full bucket with a limit of `limit` bytes per second.
    pub fn new(limit: u64, now: Instant) -> Self {
        let full = Tokens(max_tokens(limit));
        Self { limit, is_unlimited: false, live_bytes: 0, live: full, total_tokens: full, at: now }
    }

    /// Sets the limit in bytes per second; `None` removes it. Returns whether the limit has changed.
    pub fn set_limit(&mut self, limit: Option<u64>, now: Instant) -> bool {
        if limit == (!self.is_unlimited).then_some(self.limit) {
            return false;
        }
        self.pass_time(now);
        self.is_unlimited = limit.is_none();
        for room in [&mut self.live, &mut self.total_tokens] {
            match limit {
                Some(limit) => room.rescale(self.limit, limit),
                // Waiting data passes. If there is a limit again later, there are no tokens beyond the present ones.
                None => room.0 = room.0.max(0),
            }
        }
        self.limit = limit.unwrap_or(self.limit);
        true
    }

    /// Adds bytes of live traffic. Returns their position, for [`Bandwidth::remaining_wait`].
    pub fn live(&mut self, bytes: u64, now: Instant) -> QueuePosition {
        self.add_mirrored_bytes(bytes, now);
        self.live_bytes = self.live_bytes.wrapping_add(bytes);
        if !self.is_unlimited {
            self.live.take(bytes);
        }
        QueuePosition(self.live_bytes)
    }

    /// Returns how long the bytes at this position still have to wait if the limit does not change.
    pub fn remaining_wait(&mut self, place: QueuePosition, now: Instant) -> Duration {
        self.pass_time(now);
        let after = i128::from(self.live_bytes.wrapping_sub(place.0)) * TOKENS_PER_BYTE;
        let lacks = u128::try_from(-(self.live.0 + after)).unwrap_or_default();
        Duration::from_nanos(lacks.div_ceil(self.limit.max(1).into()).try_into().unwrap_or(u64::MAX))
    }

    /// Adds bytes of mirrored traffic that have passed. They never delay live traffic.
    pub fn add_mirrored_bytes(&mut self, bytes: u64, now: Instant) {
        self.pass_time(now);
        if !self.is_unlimited {
            self.total_tokens.take(bytes);
        }
    }

    /// Returns whether more may be mirrored: live and mirrored traffic together keep to the limit, and mirroring stops
    /// before live traffic has to wait.
    pub fn has_room(&mut self, now: Instant) -> bool {
        self.pass_time(now);
        self.is_unlimited || self.total_tokens.0 >= max_tokens(self.limit) / 2
    }

    fn pass_time(&mut self, now: Instant) {
        let made = tokens_for(self.limit, now.saturating_duration_since(self.at));
        for room in [&mut self.live, &mut self.total_tokens] {
            room.0 = room.0.saturating_add(made).min(max_tokens(self.limit));
        }
        self.at = self.at.max(now);
    }
}

impl Tokens {
    fn take(&mut self, bytes: u64) {
        self.0 -= i128::from(bytes) * TOKENS_PER_BYTE;
    }

    /// Converts tokens to another limit. Tokens keep the time that they are worth; missing tokens keep their bytes.
    fn rescale(&mut self, before: u64, limit: u64) {
        if self.0 > 0 {
            self.0 = self.0 * i128::from(limit) / i128::from(before.max(1));
        }
    }
}

/// Returns the tokens that a limit creates in `time`.
fn tokens_for(limit: u64, time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX).saturating_mul(limit.into())
}

/// Returns the largest number of tokens.
fn max_tokens(limit: u64) -> i128 {
    tokens_for(limit, BURST_DURATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::VecDeque;

    const LIMIT: u64 = 1_000_000;

    fn new(now: Instant) -> Bandwidth {
        Bandwidth::new(LIMIT, now)
    }

    /// Adds live bytes and returns how long they have to wait.
    fn live(bandwidth: &mut Bandwidth, bytes: u64, now: Instant) -> Duration {
        let place = bandwidth.live(bytes, now);
        bandwidth.remaining_wait(place, now)
    }

    #[test]
    fn over_time_the_limit_is_exact() {
        for piece in [1_000, 64_000, 3_000_000] {
            let start = Instant::now();
            let (mut now, mut passed, mut bandwidth) = (start, 0, new(start));
            while now < start + Duration::from_secs(60) {
                now += live(&mut bandwidth, piece, now);
                passed += piece;
            }
            let seconds = now.duration_since(start).as_secs_f64();
            let most = (seconds + BURST_DURATION.as_secs_f64()) * LIMIT as f64;
            assert!(passed as f64 <= most * 1.000_001, "{passed} in {seconds}");
            assert!(passed as f64 >= most - piece as f64 - 1.0, "{passed} in {seconds}");
        }
    }

    #[test]
    fn what_keeps_to_the_limit_never_waits_and_pauses_do_not_add_up() {
        let mut now = Instant::now();
        let mut bandwidth = new(now);
        for _ in 0..1_000 {
            assert_eq!(live(&mut bandwidth, 10_000, now), Duration::ZERO);
            now += Duration::from_millis(10);
        }
        now += Duration::from_secs(3600);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::ZERO);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::from_secs(1));
    }

    #[test]
    fn copies_have_what_is_left_and_cost_live_traffic_nothing() {
        let now = Instant::now();
        let mut bandwidth = new(now);
        bandwidth.add_mirrored_bytes(5 * LIMIT, now);
        assert!(!bandwidth.has_room(now));
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::ZERO);
        // Five seconds' worth of copies and one second's worth of live traffic, half a second of which may pass at
        // once.
        assert!(!bandwidth.has_room(now + Duration::from_millis(5_499)));
        assert!(bandwidth.has_room(now + Duration::from_millis(5_500)));
    }

    #[test]
    fn another_limit_counts_for_what_waits() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut bandwidth = new(now);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::ZERO);
        let (first, second) = (bandwidth.live(10 * LIMIT, now), bandwidth.live(10 * LIMIT, now));
        let waits = |bandwidth: &mut Bandwidth, at| {
            [first, second].map(|place| bandwidth.remaining_wait(place, at).as_millis())
        };
        assert_eq!(waits(&mut bandwidth, later(4)), [6_000, 16_000]);
        assert!(bandwidth.set_limit(Some(10 * LIMIT), later(4)) && !bandwidth.set_limit(Some(10 * LIMIT), later(4)));
        assert_eq!(waits(&mut bandwidth, later(4)), [600, 1_600]);
        assert_eq!(live(&mut bandwidth, 2 * LIMIT, later(4)), Duration::from_millis(1_800), "who comes next, too");
        bandwidth.set_limit(Some(LIMIT / 2), later(4));
        assert_eq!(waits(&mut bandwidth, later(4)), [12_000, 32_000]);
        bandwidth.set_limit(None, later(4));
        assert_eq!(waits(&mut bandwidth, later(4)), [0, 0], "nobody waits without a limit");
        assert_eq!(live(&mut bandwidth, 1_000 * LIMIT, later(4)), Duration::ZERO);
    }

    #[test]
    fn changes_make_no_room_and_take_none() {
        let now = Instant::now();
        let mut bandwidth = new(now);
        assert_eq!(live(&mut bandwidth, LIMIT / 2, now), Duration::ZERO);
        for _ in 0..1_000 {
            for limit in [Some(100 * LIMIT), None, Some(LIMIT / 10), Some(LIMIT)] {
                assert!(bandwidth.set_limit(limit, now));
            }
        }
        assert_eq!(live(&mut bandwidth, LIMIT / 2, now), Duration::ZERO);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::from_secs(1));
        // A second's worth of a high limit is no debt at a low one.
        let mut bandwidth = Bandwidth::new(1_000 * LIMIT, now);
        assert_eq!(live(&mut bandwidth, 1_000 * LIMIT, now), Duration::ZERO);
        bandwidth.set_limit(Some(LIMIT), now);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::from_secs(1));
    }

    /// Whatever changes: in each stretch of time with one limit, at most its bytes and a second's worth have passed.
    #[test]
    fn no_change_lets_more_pass_than_the_limit() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let (mut limit, mut since, mut passed) = (LIMIT, now, 0);
            let mut bandwidth = new(now);
            let mut waiting: VecDeque<(QueuePosition, u64)> = VecDeque::new();
            let mut go = |bandwidth: &mut Bandwidth, new: Option<(QueuePosition, u64)>, now| {
                waiting.extend(new);
                let mut gone = 0;
                while let Some((_, bytes)) =
                    waiting.pop_front_if(|(place, _)| bandwidth.remaining_wait(*place, now).is_zero())
                {
                    gone += bytes;
                }
                gone
            };
            for _ in 0..500 {
                now += Duration::from_micros(rng.random_range(0..200_000));
                if rng.random_ratio(1, 10) {
                    go(&mut bandwidth, None, now);
                    limit = rng.random_range(LIMIT / 10..10 * LIMIT);
                    bandwidth.set_limit(Some(limit), now);
                    (since, passed) = (now, 0);
                }
                let bytes = rng.random_range(1..LIMIT / 2);
                let place = bandwidth.live(bytes, now);
                passed += go(&mut bandwidth, Some((place, bytes)), now);
                let seconds = now.duration_since(since).as_secs_f64();
                // Of the first chunk, a part may have waited at the limit before.
                let most = (seconds + BURST_DURATION.as_secs_f64()) * limit as f64 + LIMIT as f64 / 2.0;
                assert!(passed as f64 <= most, "seed {seed}: {passed} in {seconds} at {limit}");
            }
        }
    }
}
