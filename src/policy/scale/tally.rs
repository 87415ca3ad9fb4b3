//! What goes on in one deployment, added up as it happens.

use std::hash::{Hash, Hasher};
use std::ops::{Add, Mul, Sub};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Signals;

/// Adds up as things happen; whoever decides takes what has come since. Before anything changes, time has to pass until
/// then ([`Tally::pass`]).
#[derive(Debug)]
pub struct Tally {
    /// Up to when times are added up.
    until: Instant,
    /// Requests in flight or waiting.
    present: u32,
    sums: Sums,
    /// These were taken before.
    taken: Sums,
    /// Mean time that a request held a slot, when one last did.
    service_seconds: f64,
    /// Whether no replica took requests when the interval began.
    was_cold: bool,
}

/// What has gone on in some time: what came later is the difference of two, what went on at several routers is the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// How long it was, in seconds.
    pub time: f64,
    /// How long requests were in flight or waiting, all together, in seconds.
    pub present: f64,
    /// How long they were waiting, all together, in seconds.
    pub waiting: f64,
    /// Requests that came, those turned away among them.
    pub arrived: f64,
    /// Requests turned away for want of a slot.
    pub rejected: f64,
    /// Requests that have given their slot back.
    pub served: f64,
    /// How long these held their slots, all together, in seconds.
    pub held: f64,
    /// The squares of these times.
    pub squares: f64,
}

/// So that a model checker can tell states apart.
impl Hash for Sums {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fields().map(f64::to_bits).hash(state);
    }
}

impl Sums {
    fn fields(&self) -> [f64; 8] {
        [self.time, self.present, self.waiting, self.arrived, self.rejected, self.served, self.held, self.squares]
    }

    fn of([time, present, waiting, arrived, rejected, served, held, squares]: [f64; 8]) -> Self {
        Self { time, present, waiting, arrived, rejected, served, held, squares }
    }

    /// The same of one second.
    pub fn per_second(&self) -> Self {
        // Two at the same moment would divide by nothing.
        *self * (1.0 / self.time.max(1e-6))
    }

    /// Mean time that a request held a slot; `None` where none has given it back.
    pub fn service_seconds(&self) -> Option<f64> {
        (self.served > 0.0).then(|| self.held / self.served)
    }
}

impl Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let other = other.fields();
        Self::of(std::array::from_fn(|i| self.fields()[i] + other[i]))
    }
}

impl Sub for Sums {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Sums {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self::of(self.fields().map(|field| field * factor))
    }
}

impl Signals {
    /// Of what goes on in one second, by [`Sums::per_second`].
    pub fn of(rates: &Sums, service_seconds: f64, waiting: usize, is_cold: bool) -> Self {
        Self {
            busy: (rates.present - rates.waiting).max(0.0),
            queued: rates.waiting,
            arrived_per_second: rates.arrived,
            rejected_per_second: rates.rejected,
            service_seconds,
            work: rates.held,
            squares: rates.squares,
            waiting,
            is_cold,
        }
    }
}

impl Tally {
    /// Nobody is there yet.
    pub fn new(now: Instant) -> Self {
        let (sums, taken) = (Sums::default(), Sums::default());
        Self { until: now, present: 0, sums, taken, service_seconds: 0.0, was_cold: false }
    }

    /// Time passes, in which so many were waiting. Events of several threads may come a little out of order: time does not
    /// go back.
    pub fn pass(&mut self, now: Instant, waiting: usize) {
        let passed = now.saturating_duration_since(self.until);
        let seconds = passed.as_secs_f64();
        self.sums.time += seconds;
        self.sums.present += seconds * f64::from(self.present);
        self.sums.waiting += seconds * waiting as f64;
        self.until += passed;
    }

    /// A request has a slot or waits for one.
    pub fn came(&mut self) {
        self.present += 1;
        self.sums.arrived += 1.0;
    }

    /// A request has given up its wait.
    pub fn left(&mut self) {
        self.present = self.present.saturating_sub(1);
    }

    /// A request was turned away as it came: the queue was full.
    pub fn refused(&mut self) {
        self.sums.arrived += 1.0;
        self.sums.rejected += 1.0;
    }

    /// A request was turned away when it had waited long enough.
    pub fn timed_out(&mut self) {
        self.left();
        self.sums.rejected += 1.0;
    }

    /// A request has given its slot back, which it had held so long.
    pub fn served(&mut self, held: Duration) {
        self.left();
        let held = held.as_secs_f64();
        self.sums.served += 1.0;
        self.sums.held += held;
        self.sums.squares += held * held;
    }

    /// All that has gone on, up to where time has passed.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// What has come since this was last called, up to where time has passed. `waiting`: requests that wait now; `is_cold`:
    /// whether no replica takes requests now.
    pub fn take(&mut self, waiting: usize, is_cold: bool) -> Signals {
        let sums = self.sums - std::mem::replace(&mut self.taken, self.sums);
        self.service_seconds = sums.service_seconds().unwrap_or(self.service_seconds);
        let was_cold = std::mem::replace(&mut self.was_cold, is_cold);
        Signals::of(&sums.per_second(), self.service_seconds, waiting, is_cold || was_cold)
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
