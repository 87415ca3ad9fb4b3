//! What goes on in one deployment, added up as it happens.

use std::time::{Duration, Instant};

use super::Signals;

/// Adds up over an interval; whoever decides takes the sums. Before anything changes, time has to pass until then
/// ([`Tally::pass`]).
#[derive(Debug)]
pub struct Tally {
    /// When the interval began.
    since: Instant,
    /// Up to when times are added up.
    until: Instant,
    /// Requests in flight or waiting.
    present: u32,
    /// How long requests were present, and waiting, all together, in seconds.
    present_time: f64,
    waiting_time: f64,
    arrived: u64,
    rejected: u64,
    served: u64,
    /// How long they held their slots, all together, in seconds.
    held: f64,
    /// The squares of these times.
    squares: f64,
    /// Mean time that a request held a slot, when one last did.
    service_seconds: f64,
    /// Whether no replica took requests when the interval began.
    was_cold: bool,
}

impl Tally {
    /// Nobody is there yet.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            until: now,
            present: 0,
            present_time: 0.0,
            waiting_time: 0.0,
            arrived: 0,
            rejected: 0,
            served: 0,
            held: 0.0,
            squares: 0.0,
            service_seconds: 0.0,
            was_cold: false,
        }
    }

    /// Time passes, in which so many were waiting. Events of several threads may come a little out of order: time does not
    /// go back.
    pub fn pass(&mut self, now: Instant, waiting: usize) {
        let passed = now.saturating_duration_since(self.until);
        let seconds = passed.as_secs_f64();
        self.present_time += seconds * f64::from(self.present);
        self.waiting_time += seconds * waiting as f64;
        self.until += passed;
    }

    /// A request has a slot or waits for one.
    pub fn came(&mut self) {
        self.present += 1;
        self.arrived += 1;
    }

    /// A request has given up its wait.
    pub fn left(&mut self) {
        self.present = self.present.saturating_sub(1);
    }

    /// A request was turned away as it came: the queue was full.
    pub fn refused(&mut self) {
        self.arrived += 1;
        self.rejected += 1;
    }

    /// A request was turned away when it had waited long enough.
    pub fn timed_out(&mut self) {
        self.left();
        self.rejected += 1;
    }

    /// A request has given its slot back, which it had held so long.
    pub fn served(&mut self, held: Duration) {
        self.left();
        let held = held.as_secs_f64();
        self.served += 1;
        self.held += held;
        self.squares += held * held;
    }

    /// The sums since they were last taken, up to where time has passed. `waiting`: requests that wait now; `is_cold`:
    /// whether no replica takes requests now.
    pub fn take(&mut self, waiting: usize, is_cold: bool) -> Signals {
        // Two at the same moment would divide by nothing.
        let seconds = self.until.saturating_duration_since(self.since).as_secs_f64().max(1e-6);
        if self.served > 0 {
            self.service_seconds = self.held / self.served as f64;
        }
        let signals = Signals {
            busy: (self.present_time - self.waiting_time).max(0.0) / seconds,
            queued: self.waiting_time / seconds,
            arrived_per_second: self.arrived as f64 / seconds,
            rejected_per_second: self.rejected as f64 / seconds,
            service_seconds: self.service_seconds,
            work: self.held / seconds,
            squares: self.squares / seconds,
            waiting,
            is_cold: is_cold || self.was_cold,
        };
        self.was_cold = is_cold;
        (self.since, self.present_time, self.waiting_time) = (self.until, 0.0, 0.0);
        (self.arrived, self.rejected, self.served) = (0, 0, 0);
        (self.held, self.squares) = (0.0, 0.0);
        signals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_means_and_every_sum_is_taken_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut tally = Tally::new(start);
        tally.pass(at(100), 0);
        tally.came();
        tally.pass(at(200), 0);
        // It waits.
        tally.came();
        tally.refused();
        tally.pass(at(600), 1);
        tally.served(Duration::from_millis(500));
        // Of another thread, a moment late.
        tally.pass(at(599), 0);
        tally.pass(at(700), 0);
        tally.left();
        tally.pass(at(1000), 0);
        let signals = tally.take(3, false);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}: {signals:?}");
        near(signals.busy, 0.1 + 0.4 + 0.1);
        near(signals.queued, 0.4);
        near(signals.work, 0.5);
        near(signals.squares, 0.25);
        near(signals.service_seconds, 0.5);
        near(signals.utilization(4.0).unwrap(), 0.25);
        assert_eq!((signals.arrived_per_second, signals.waiting, signals.rejected_per_second), (3.0, 3, 1.0));
        tally.pass(at(2000), 0);
        let next = tally.take(0, true);
        assert_eq!(next, Signals { service_seconds: 0.5, is_cold: true, ..Signals::default() }, "what one takes stays");
        assert_eq!(next.utilization(0.0), None);
    }
}
