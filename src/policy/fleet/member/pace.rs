//! How long a round trip to the coordinator takes, and what patience follows from it.

use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Of round trips: a slot that moves is out of use for about one, so it should not move more often than once in some.
const ROUND_TRIPS: u32 = 8;

#[derive(Debug, Clone)]
pub(super) struct Pace {
    least: Duration,
    /// Smoothed; `None` before the first.
    round_trip: Option<Duration>,
}

/// A model checker tells states apart by the patience that follows.
impl Hash for Pace {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Pace {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, round_trip: None }
    }

    /// How much older a request elsewhere must be, after an answer that took so long; `most` unless more was asked for.
    pub(super) fn patience(&mut self, took: Duration, most: Duration) -> Duration {
        let smoothed = self.round_trip.map_or(took, |before| before * 7 / 8 + took / 8);
        self.round_trip = Some(smoothed);
        self.least.max(most.min(smoothed * ROUND_TRIPS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_round_trip_within_bounds_and_not_at_once() {
        let millis = Duration::from_millis;
        let (mut pace, most) = (Pace::new(millis(5)), millis(1000));
        assert_eq!(pace.patience(Duration::from_micros(100), most), millis(5));
        let mut pace = Pace::new(millis(5));
        assert_eq!(pace.patience(millis(2), most), millis(16));
        assert_eq!(pace.patience(millis(10), most), millis(24), "one that took long");
        let settled = (0..100).map(|_| pace.patience(millis(2), most)).last().unwrap_or_default();
        assert!(settled < millis(17), "{settled:?}");
        assert_eq!((0..100).map(|_| pace.patience(millis(500), most)).last(), Some(most));
        assert_eq!(Pace::new(2 * most).patience(millis(500), most), 2 * most, "what is set is the least");
    }
}
