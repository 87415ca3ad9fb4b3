//! How long bytes wait where an endpoint has so many a second and no more.
//!
//! The limit makes room as time passes, for [`BURST`] at most; bytes take it in the order they come, and wait where there is
//! none: over time the limit is exact, whatever the pieces are. What waits is counted in bytes, so that a limit which
//! changes meanwhile counts for it too; room is worth the time it took to become, so that changes make none.

use std::time::{Duration, Instant};

/// So much may pass at once, after a time with less than the limit.
pub const BURST: Duration = Duration::from_secs(1);
/// Room is counted in parts of a byte, of which a limit makes a whole number in a nanosecond.
const PARTS: i128 = 1_000_000_000;

/// What has passed of one endpoint.
#[derive(Debug, Clone)]
pub struct Bandwidth {
    /// Bytes a second; the last there was, once there is none.
    limit: u64,
    /// Nothing waits: the limit has been taken away.
    is_open: bool,
    /// Bytes of live traffic so far, those included that wait.
    come: u64,
    live: Room,
    /// Of live traffic and copies together.
    all: Room,
    /// Until when time has made room.
    at: Instant,
}

/// The place of bytes among all of live traffic.
#[derive(Debug, Clone, Copy)]
pub struct Place(u64);

/// For so many parts of a byte more; less than none: so much waits.
#[derive(Debug, Clone, Copy)]
struct Room(i128);

impl Bandwidth {
    /// Nothing has passed yet, at `limit` bytes a second.
    pub fn new(limit: u64, now: Instant) -> Self {
        let full = Room(most(limit));
        Self { limit, is_open: false, come: 0, live: full, all: full, at: now }
    }

    /// From now on so many bytes a second; `None`: as many as come. Returns whether that is another limit than before.
    pub fn set(&mut self, limit: Option<u64>, now: Instant) -> bool {
        if limit == (!self.is_open).then_some(self.limit) {
            return false;
        }
        self.pass_time(now);
        self.is_open = limit.is_none();
        for room in [&mut self.live, &mut self.all] {
            match limit {
                Some(limit) => room.rescale(self.limit, limit),
                // What waits goes, and nothing else is to be had for it should there be a limit again.
                None => room.0 = room.0.max(0),
            }
        }
        self.limit = limit.unwrap_or(self.limit);
        true
    }

    /// So many bytes of live traffic come. Returns their place, for [`Bandwidth::wait`].
    pub fn live(&mut self, bytes: u64, now: Instant) -> Place {
        self.copied(bytes, now);
        self.come = self.come.wrapping_add(bytes);
        if !self.is_open {
            self.live.take(bytes);
        }
        Place(self.come)
    }

    /// How long what has this place must still wait, if the limit stays.
    pub fn wait(&mut self, place: Place, now: Instant) -> Duration {
        self.pass_time(now);
        let after = i128::from(self.come.wrapping_sub(place.0)) * PARTS;
        let lacks = u128::try_from(-(self.live.0 + after)).unwrap_or_default();
        Duration::from_nanos(lacks.div_ceil(self.limit.max(1).into()).try_into().unwrap_or(u64::MAX))
    }

    /// So many bytes of copies have passed. They never make live ones wait.
    pub fn copied(&mut self, bytes: u64, now: Instant) {
        self.pass_time(now);
        if !self.is_open {
            self.all.take(bytes);
        }
    }

    /// Whether something more may be copied: live traffic and copies together keep to the limit, and copies end before
    /// live traffic has to wait.
    pub fn has_room(&mut self, now: Instant) -> bool {
        self.pass_time(now);
        self.is_open || self.all.0 >= most(self.limit) / 2
    }

    fn pass_time(&mut self, now: Instant) {
        let made = parts(self.limit, now.saturating_duration_since(self.at));
        for room in [&mut self.live, &mut self.all] {
            room.0 = room.0.saturating_add(made).min(most(self.limit));
        }
        self.at = self.at.max(now);
    }
}

impl Room {
    fn take(&mut self, bytes: u64) {
        self.0 -= i128::from(bytes) * PARTS;
    }

    /// What there is was made in so much time, and is worth that; what lacks is bytes.
    fn rescale(&mut self, before: u64, limit: u64) {
        if self.0 > 0 {
            self.0 = self.0 * i128::from(limit) / i128::from(before.max(1));
        }
    }
}

/// What a limit makes room for in so much time.
fn parts(limit: u64, time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX).saturating_mul(limit.into())
}

/// The most room there can be.
fn most(limit: u64) -> i128 {
    parts(limit, BURST)
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

    /// How long bytes that come now must wait.
    fn live(bandwidth: &mut Bandwidth, bytes: u64, now: Instant) -> Duration {
        let place = bandwidth.live(bytes, now);
        bandwidth.wait(place, now)
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
            let most = (seconds + BURST.as_secs_f64()) * LIMIT as f64;
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
        bandwidth.copied(5 * LIMIT, now);
        assert!(!bandwidth.has_room(now));
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::ZERO);
        // Five seconds' worth of copies and one of live traffic, half a second of which may be at once.
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
        let waits = |bandwidth: &mut Bandwidth, at| [first, second].map(|place| bandwidth.wait(place, at).as_millis());
        assert_eq!(waits(&mut bandwidth, later(4)), [6_000, 16_000]);
        assert!(bandwidth.set(Some(10 * LIMIT), later(4)) && !bandwidth.set(Some(10 * LIMIT), later(4)));
        assert_eq!(waits(&mut bandwidth, later(4)), [600, 1_600]);
        assert_eq!(live(&mut bandwidth, 2 * LIMIT, later(4)), Duration::from_millis(1_800), "who comes next, too");
        bandwidth.set(Some(LIMIT / 2), later(4));
        assert_eq!(waits(&mut bandwidth, later(4)), [12_000, 32_000]);
        bandwidth.set(None, later(4));
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
                assert!(bandwidth.set(limit, now));
            }
        }
        assert_eq!(live(&mut bandwidth, LIMIT / 2, now), Duration::ZERO);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::from_secs(1));
        // A second's worth of a high limit is no debt at a low one.
        let mut bandwidth = Bandwidth::new(1_000 * LIMIT, now);
        assert_eq!(live(&mut bandwidth, 1_000 * LIMIT, now), Duration::ZERO);
        bandwidth.set(Some(LIMIT), now);
        assert_eq!(live(&mut bandwidth, LIMIT, now), Duration::from_secs(1));
    }

    /// Whatever the changes: in each stretch of time with one limit, so much and a second's worth of it has passed.
    #[test]
    fn no_change_lets_more_pass_than_the_limit() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let (mut limit, mut since, mut passed) = (LIMIT, now, 0);
            let mut bandwidth = new(now);
            let mut waiting: VecDeque<(Place, u64)> = VecDeque::new();
            let mut go = |bandwidth: &mut Bandwidth, new: Option<(Place, u64)>, now| {
                waiting.extend(new);
                let mut gone = 0;
                while let Some((_, bytes)) = waiting.pop_front_if(|(place, _)| bandwidth.wait(*place, now).is_zero()) {
                    gone += bytes;
                }
                gone
            };
            for _ in 0..500 {
                now += Duration::from_micros(rng.random_range(0..200_000));
                if rng.random_ratio(1, 10) {
                    go(&mut bandwidth, None, now);
                    limit = rng.random_range(LIMIT / 10..10 * LIMIT);
                    bandwidth.set(Some(limit), now);
                    (since, passed) = (now, 0);
                }
                let bytes = rng.random_range(1..LIMIT / 2);
                let place = bandwidth.live(bytes, now);
                passed += go(&mut bandwidth, Some((place, bytes)), now);
                let seconds = now.duration_since(since).as_secs_f64();
                // Of the piece that goes first, some may have been waited for at the limit before.
                let most = (seconds + BURST.as_secs_f64()) * limit as f64 + LIMIT as f64 / 2.0;
                assert!(passed as f64 <= most, "seed {seed}: {passed} in {seconds} at {limit}");
            }
        }
    }
}
