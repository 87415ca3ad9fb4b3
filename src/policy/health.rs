//! Ejection of replicas whose connections fail. The answers of a model do not count.

use std::time::{Duration, Instant};

/// This many failures in a row eject a replica.
pub const EJECTION_FAILURES: u32 = 3;
/// The backoff after the first ejection, and the longest backoff.
pub const EJECTION_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// The health of one replica.
#[derive(Debug, Clone, Default)]
pub struct ReplicaHealth {
    /// Failures since the last success.
    failures: u32,
    ejection: Option<Ejection>,
}

#[derive(Debug, Clone)]
struct Ejection {
    until: Instant,
    /// Whether the backoff is over and one request may probe the replica.
    is_probing: bool,
}

/// How much a replica may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Up to its cap.
    Available,
    /// By one request, which probes it.
    Probe,
    /// Not before this time.
    Ejected(Instant),
}

impl ReplicaHealth {
    /// Records that the replica answered, or accepted a connection.
    pub fn record_success(&mut self) {
        *self = Self::default();
    }

    /// Records that a connection failed or broke before an answer. Returns when the replica may be probed, if it is
    /// ejected now.
    pub fn record_failure(&mut self, now: Instant) -> Option<Instant> {
        // Requests that were in flight when the replica was ejected fail too. They must not lengthen the backoff.
        if self.ejection.as_ref().is_some_and(|aside| !aside.is_probing) {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < EJECTION_FAILURES {
            return None;
        }
        let until = now + ejection_backoff(self.failures - EJECTION_FAILURES);
        self.ejection = Some(Ejection { until, is_probing: false });
        Some(until)
    }

    /// Allows a probe once the backoff is over. Returns whether this call made the change.
    pub fn start_due_probe(&mut self, now: Instant) -> bool {
        match &mut self.ejection {
            Some(aside) if !aside.is_probing && now >= aside.until => {
                aside.is_probing = true;
                true
            }
            _ => false,
        }
    }

    /// Returns whether the replica has failed since its last success.
    pub fn is_suspect(&self) -> bool {
        self.failures > 0
    }

    /// Returns how much the replica may be used now.
    pub fn availability(&self) -> Availability {
        match &self.ejection {
            None => Availability::Available,
            Some(Ejection { is_probing: true, .. }) => Availability::Probe,
            Some(Ejection { until, .. }) => Availability::Ejected(*until),
        }
    }
}

fn ejection_backoff(step: u32) -> Duration {
    EJECTION_BACKOFF.0.saturating_mul(1 << step.min(16)).min(EJECTION_BACKOFF.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_set_aside() {
        let (mut health, now) = (ReplicaHealth::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(health.record_failure(now), None);
            assert_eq!(health.record_failure(now), None);
            health.record_success();
        }
        assert_eq!(health.availability(), Availability::Available);
        health.record_failure(now);
        health.record_failure(now);
        let until = now + Duration::from_millis(250);
        assert_eq!(health.record_failure(now), Some(until));
        assert_eq!(health.availability(), Availability::Ejected(until));
    }

    #[test]
    fn back_off_grows_with_each_failed_probe_to_a_bound_and_a_success_ends_it() {
        let (mut health, mut now) = (ReplicaHealth::default(), Instant::now());
        for _ in 1..EJECTION_FAILURES {
            health.record_failure(now);
        }
        for expected in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            let until = health.record_failure(now).unwrap();
            assert_eq!(until - now, Duration::from_millis(expected));
            assert_eq!(health.record_failure(now), None, "a late failure does not count");
            assert!(!health.start_due_probe(until - Duration::from_millis(1)));
            assert!(health.start_due_probe(until));
            assert!(!health.start_due_probe(until));
            assert_eq!(health.availability(), Availability::Probe);
            now = until;
        }
        health.record_success();
        assert_eq!(health.availability(), Availability::Available);
    }
}
