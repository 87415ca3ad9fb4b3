//! Is a replica fit for requests? Judged only by connections that fail; what a model answers is not our business.

use std::time::{Duration, Instant};

/// This many failures in a row set a replica aside.
pub const FAILURES: u32 = 3;
/// First and longest time a replica is set aside.
pub const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// What is known of one replica.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Failures since the last success.
    failures: u32,
    aside: Option<Aside>,
}

#[derive(Debug, Clone)]
struct Aside {
    until: Instant,
    /// Whether the back-off is over and one request may try.
    probing: bool,
}

/// How much a replica may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// Up to its cap.
    Fit,
    /// By one request, to find out.
    Probe,
    /// Not before then.
    Aside(Instant),
}

impl Health {
    /// A replica has answered, or accepted a connection.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A connection failed, or broke before an answer. Returns when the replica may be probed, if this set it aside.
    pub fn failed(&mut self, now: Instant) -> Option<Instant> {
        // Requests that were in flight when a replica was set aside fail too; they must not lengthen the back-off.
        if self.aside.as_ref().is_some_and(|aside| !aside.probing) {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return None;
        }
        let until = now + back_off(self.failures - FAILURES);
        self.aside = Some(Aside { until, probing: false });
        Some(until)
    }

    /// Lets a probe through when the back-off is over. Returns whether this call is what changed it.
    pub fn tick(&mut self, now: Instant) -> bool {
        match &mut self.aside {
            Some(aside) if !aside.probing && now >= aside.until => {
                aside.probing = true;
                true
            }
            _ => false,
        }
    }

    /// Whether it has failed since it last succeeded.
    pub fn is_suspect(&self) -> bool {
        self.failures > 0
    }

    /// How much the replica may be used now.
    pub fn fitness(&self) -> Fitness {
        match &self.aside {
            None => Fitness::Fit,
            Some(Aside { probing: true, .. }) => Fitness::Probe,
            Some(Aside { until, .. }) => Fitness::Aside(*until),
        }
    }
}

fn back_off(step: u32) -> Duration {
    BACK_OFF.0.saturating_mul(1 << step.min(16)).min(BACK_OFF.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_set_aside() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(health.failed(now), None);
            assert_eq!(health.failed(now), None);
            health.succeeded();
        }
        assert_eq!(health.fitness(), Fitness::Fit);
        health.failed(now);
        health.failed(now);
        let until = now + Duration::from_millis(250);
        assert_eq!(health.failed(now), Some(until));
        assert_eq!(health.fitness(), Fitness::Aside(until));
    }

    #[test]
    fn back_off_grows_with_each_failed_probe_to_a_bound_and_a_success_ends_it() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for _ in 1..FAILURES {
            health.failed(now);
        }
        for expected in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            let until = health.failed(now).unwrap();
            assert_eq!(until - now, Duration::from_millis(expected));
            assert_eq!(health.failed(now), None, "a late failure does not count");
            assert!(!health.tick(until - Duration::from_millis(1)));
            assert!(health.tick(until));
            assert!(!health.tick(until));
            assert_eq!(health.fitness(), Fitness::Probe);
            now = until;
        }
        health.succeeded();
        assert_eq!(health.fitness(), Fitness::Fit);
    }
}
