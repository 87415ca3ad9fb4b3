//! How long bytes wait where an endpoint has so many a second and no more.
//!
//! A clock of its own runs ahead of the real one by the time that what has passed takes at the limit. What would put it
//! ahead by more than [`BURST`] waits, in the order it came: over time the limit is exact, whatever the pieces are.

use std::time::{Duration, Instant};

/// So much may pass at once, after a time with less than the limit.
pub const BURST: Duration = Duration::from_secs(1);

/// What has passed of one endpoint.
#[derive(Debug, Default, Clone)]
pub struct Bandwidth {
    live: Clock,
    /// Of copies too.
    all: Clock,
}

/// When what has passed is over, at the limit.
#[derive(Debug, Default, Clone, Copy)]
struct Clock(Option<Instant>);

impl Bandwidth {
    /// So many bytes of live traffic come, at `limit` bytes a second. Returns how long they must wait.
    pub fn live(&mut self, limit: u64, bytes: u64, now: Instant) -> Duration {
        self.all.pass(limit, bytes, now);
        self.live.pass(limit, bytes, now).saturating_sub(BURST)
    }

    /// So many bytes of copies have passed. They never make live ones wait.
    pub fn copied(&mut self, limit: u64, bytes: u64, now: Instant) {
        self.all.pass(limit, bytes, now);
    }

    /// Whether something more may be copied: live traffic and copies together keep to the limit, and copies end before
    /// live traffic has to wait.
    pub fn has_room(&self, now: Instant) -> bool {
        self.all.ahead(now) <= BURST / 2
    }
}

impl Clock {
    fn ahead(self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Returns by how much it is ahead with these bytes.
    fn pass(&mut self, limit: u64, bytes: u64, now: Instant) -> Duration {
        let ahead = self.ahead(now) + Duration::from_secs_f64(bytes as f64 / limit as f64);
        self.0 = now.checked_add(ahead);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000_000;

    #[test]
    fn over_time_the_limit_is_exact() {
        for piece in [1_000, 64_000, 3_000_000] {
            let (start, mut bandwidth) = (Instant::now(), Bandwidth::default());
            let (mut now, mut passed) = (start, 0);
            while now < start + Duration::from_secs(60) {
                now += bandwidth.live(LIMIT, piece, now);
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
        let (mut now, mut bandwidth) = (Instant::now(), Bandwidth::default());
        for _ in 0..1_000 {
            assert_eq!(bandwidth.live(LIMIT, 10_000, now), Duration::ZERO);
            now += Duration::from_millis(10);
        }
        now += Duration::from_secs(3600);
        assert_eq!(bandwidth.live(LIMIT, LIMIT, now), Duration::ZERO);
        assert_eq!(bandwidth.live(LIMIT, LIMIT, now), Duration::from_secs(1));
    }

    #[test]
    fn copies_have_what_is_left_and_cost_live_traffic_nothing() {
        let (now, mut bandwidth) = (Instant::now(), Bandwidth::default());
        bandwidth.copied(LIMIT, 5 * LIMIT, now);
        assert!(!bandwidth.has_room(now));
        assert_eq!(bandwidth.live(LIMIT, LIMIT, now), Duration::ZERO);
        // Five seconds' worth of copies and one of live traffic, half a second of which may be at once.
        assert!(!bandwidth.has_room(now + Duration::from_millis(5_499)));
        assert!(bandwidth.has_room(now + Duration::from_millis(5_500)));
    }
}
