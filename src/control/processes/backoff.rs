//! How long a replica that died waits for its next start.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A replica that was ready this long had started well: its death is a new trouble, not the same one again.
const PROVEN: Duration = Duration::from_secs(30);

/// Doubles with every death, up to 10 s.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// How long to wait after a life that was ready for `ready_for`.
    pub(super) fn after(&mut self, ready_for: Duration) -> Duration {
        if ready_for >= PROVEN {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_ten_seconds_and_starts_over_after_a_long_life() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(Duration::from_secs(29)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(PROVEN), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
    }
}
