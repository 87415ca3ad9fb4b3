//! The delay before a replica that ended is started again.

use std::time::Duration;

const INITIAL_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);
/// A replica that was ready for this long had started well, so its end begins a new series of failures.
const RESET_AFTER_READY: Duration = Duration::from_secs(30);

/// The delay, which doubles with every end up to 10 s.
#[derive(Debug)]
pub(super) struct RestartBackoff {
    delay: Duration,
}

impl Default for RestartBackoff {
    fn default() -> Self {
        Self { delay: INITIAL_DELAY }
    }
}

impl RestartBackoff {
    /// Returns the next delay, after a run in which the replica was ready for `ready_for`.
    pub(super) fn next_delay(&mut self, ready_for: Duration) -> Duration {
        if ready_for >= RESET_AFTER_READY {
            self.delay = INITIAL_DELAY;
        }
        let wait = self.delay;
        self.delay = (wait * 2).min(MAX_DELAY);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_ten_seconds_and_starts_over_after_a_long_life() {
        let mut backoff = RestartBackoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next_delay(Duration::from_secs(29)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next_delay(RESET_AFTER_READY), INITIAL_DELAY);
        assert_eq!(backoff.next_delay(Duration::ZERO), INITIAL_DELAY * 2);
    }
}
