//! Estimates the round-trip time to the coordinator and the steal threshold that follows from it.

use std::hash::{Hash, Hasher};
use std::time::Duration;

/// A slot that moves is out of use for about one round trip, so it should not move more often than once in this many.
const ROUND_TRIPS_PER_STEAL: u32 = 8;

#[derive(Debug, Clone)]
pub(super) struct RttEstimator {
    min_steal_threshold: Duration,
    /// The smoothed round-trip time; `None` before the first measurement.
    smoothed_rtt: Option<Duration>,
}

/// A model checker tells states apart by the steal threshold that follows.
impl Hash for RttEstimator {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl RttEstimator {
    pub(super) fn new(min_steal_threshold: Duration) -> Self {
        Self { min_steal_threshold, smoothed_rtt: None }
    }

    /// Records a round-trip time and returns the steal threshold: `max_steal_threshold`, unless the round trips require
    /// more.
    pub(super) fn steal_threshold(&mut self, rtt: Duration, max_steal_threshold: Duration) -> Duration {
        let smoothed_rtt = self.smoothed_rtt.map_or(rtt, |before| before * 7 / 8 + rtt / 8);
        self.smoothed_rtt = Some(smoothed_rtt);
        self.min_steal_threshold.max(max_steal_threshold.min(smoothed_rtt * ROUND_TRIPS_PER_STEAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steal_threshold_follows_the_round_trip_within_bounds_and_not_at_once() {
        let millis = Duration::from_millis;
        let (mut estimator, max_threshold) = (RttEstimator::new(millis(5)), millis(1000));
        assert_eq!(estimator.steal_threshold(Duration::from_micros(100), max_threshold), millis(5));
        let mut estimator = RttEstimator::new(millis(5));
        assert_eq!(estimator.steal_threshold(millis(2), max_threshold), millis(16));
        assert_eq!(estimator.steal_threshold(millis(10), max_threshold), millis(24), "one that took long");
        let settled = (0..100).map(|_| estimator.steal_threshold(millis(2), max_threshold)).last().unwrap_or_default();
        assert!(settled < millis(17), "{settled:?}");
        assert_eq!((0..100).map(|_| estimator.steal_threshold(millis(500), max_threshold)).last(), Some(max_threshold));
        assert_eq!(
            RttEstimator::new(2 * max_threshold).steal_threshold(millis(500), max_threshold),
            2 * max_threshold,
            "what is set is the least"
        );
    }
}
