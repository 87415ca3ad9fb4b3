//! The load of one deployment, added up as it happens.

use std::hash::{Hash, Hasher};
use std::ops::{Add, Mul, Sub};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Signals;

/// Adds up the load of a deployment. The autoscaler takes what has been added since its last call. Before every change,
/// the tally has to be advanced to the present ([`LoadTally::advance_to`]).
#[derive(Debug)]
pub struct LoadTally {
    /// The time up to which durations are added up.
    counted_until: Instant,
    /// Outstanding requests: in flight or queued.
    present: u32,
    sums: LoadSums,
    /// The sums at the last [`LoadTally::take_signals`].
    last_taken: LoadSums,
    /// The last known mean time that a request held a slot, in seconds.
    service_seconds: f64,
    /// Whether no replica took requests when the interval began.
    was_cold: bool,
}

/// Sums of the load over some time. The difference of two is what came in between; the sum of those of several routers
/// is the load of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadSums {
    /// The length of the time, in seconds.
    pub time: f64,
    /// The integral of outstanding requests over time, in seconds.
    pub present: f64,
    /// The integral of queued requests over time, in seconds.
    pub waiting: f64,
    /// The number of arrivals, including rejected requests.
    pub arrived: f64,
    /// The number of requests that were rejected for want of a slot.
    pub rejected: f64,
    /// The number of requests that have freed their slot.
    pub served: f64,
    /// The sum of the times for which these held their slots, in seconds.
    pub held: f64,
    /// The sum of the squares of these times.
    pub squares: f64,
}

/// For a model checker, which has to tell states apart.
impl Hash for LoadSums {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fields().map(f64::to_bits).hash(state);
    }
}

impl LoadSums {
    fn fields(&self) -> [f64; 8] {
        [self.time, self.present, self.waiting, self.arrived, self.rejected, self.served, self.held, self.squares]
    }

    fn from_fields([time, present, waiting, arrived, rejected, served, held, squares]: [f64; 8]) -> Self {
        Self { time, present, waiting, arrived, rejected, served, held, squares }
    }

    /// Returns the sums per second.
    pub fn per_second(&self) -> Self {
        // The length of the time may be zero.
        *self * (1.0 / self.time.max(1e-6))
    }

    /// Returns the mean time that a request held a slot; `None` if none has freed one.
    pub fn service_seconds(&self) -> Option<f64> {
        (self.served > 0.0).then(|| self.held / self.served)
    }
}

impl Add for LoadSums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let other = other.fields();
        Self::from_fields(std::array::from_fn(|i| self.fields()[i] + other[i]))
    }
}

impl Sub for LoadSums {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for LoadSums {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self::from_fields(self.fields().map(|field| field * factor))
    }
}

impl Signals {
    /// Returns the signals of an interval from its rates, which are [`LoadSums::per_second`].
    pub fn from_rates(rates: &LoadSums, service_seconds: f64, waiting: usize, is_cold: bool) -> Self {
        Self {
            busy: (rates.present - rates.waiting).max(0.0),
            queued: rates.waiting,
            arrived_per_second: rates.arrived,
            rejected_per_second: rates.rejected,
            service_seconds,
            work: rates.held,
            service_time_squares: rates.squares,
            waiting,
            is_cold,
        }
    }
}

impl LoadTally {
    /// Creates an empty tally.
    pub fn new(now: Instant) -> Self {
        let (sums, taken) = (LoadSums::default(), LoadSums::default());
        Self { counted_until: now, present: 0, sums, last_taken: taken, service_seconds: 0.0, was_cold: false }
    }

    /// Advances to `now`. `waiting` requests have been queued since the last call. Events of several threads may come
    /// slightly out of order; time does not go back.
    pub fn advance_to(&mut self, now: Instant, waiting: usize) {
        let passed = now.saturating_duration_since(self.counted_until);
        let seconds = passed.as_secs_f64();
        self.sums.time += seconds;
        self.sums.present += seconds * f64::from(self.present);
        self.sums.waiting += seconds * waiting as f64;
        self.counted_until += passed;
    }

    /// Records a request that has a slot or is queued.
    pub fn record_arrival(&mut self) {
        self.present += 1;
        self.sums.arrived += 1.0;
    }

    /// Records a request that left the queue.
    pub fn record_departure(&mut self) {
        self.present = self.present.saturating_sub(1);
    }

    /// Records a request that was rejected at once, because the queue was full.
    pub fn record_rejection(&mut self) {
        self.sums.arrived += 1.0;
        self.sums.rejected += 1.0;
    }

    /// Records a request that was rejected because its queue wait was exceeded.
    pub fn record_timeout(&mut self) {
        self.record_departure();
        self.sums.rejected += 1.0;
    }

    /// Records a request that has freed its slot after it held it for `held`.
    pub fn record_completion(&mut self, held: Duration) {
        self.record_departure();
        let held = held.as_secs_f64();
        self.sums.served += 1.0;
        self.sums.held += held;
        self.sums.squares += held * held;
    }

    /// Returns the sums up to the time that the tally was advanced to.
    pub fn sums(&self) -> LoadSums {
        self.sums
    }

    /// Returns the signals since the last call, up to the time that the tally was advanced to. `waiting` is the number
    /// of queued requests now, `is_cold` says whether no replica takes requests now.
    pub fn take_signals(&mut self, waiting: usize, is_cold: bool) -> Signals {
        let sums = self.sums - std::mem::replace(&mut self.last_taken, self.sums);
        self.service_seconds = sums.service_seconds().unwrap_or(self.service_seconds);
        let was_cold = std::mem::replace(&mut self.was_cold, is_cold);
        Signals::from_rates(&sums.per_second(), self.service_seconds, waiting, is_cold || was_cold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_means_and_every_sum_is_taken_once() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut tally = LoadTally::new(start);
        tally.advance_to(at(100), 0);
        tally.record_arrival();
        tally.advance_to(at(200), 0);
        // It is queued.
        tally.record_arrival();
        tally.record_rejection();
        tally.advance_to(at(600), 1);
        tally.record_completion(Duration::from_millis(500));
        // From another thread, a moment late.
        tally.advance_to(at(599), 0);
        tally.advance_to(at(700), 0);
        tally.record_departure();
        tally.advance_to(at(1000), 0);
        let signals = tally.take_signals(3, false);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}: {signals:?}");
        near(signals.busy, 0.1 + 0.4 + 0.1);
        near(signals.queued, 0.4);
        near(signals.work, 0.5);
        near(signals.service_time_squares, 0.25);
        near(signals.service_seconds, 0.5);
        near(signals.utilization(4.0).unwrap(), 0.25);
        assert_eq!((signals.arrived_per_second, signals.waiting, signals.rejected_per_second), (3.0, 3, 1.0));
        tally.advance_to(at(2000), 0);
        let next = tally.take_signals(0, true);
        assert_eq!(next, Signals { service_seconds: 0.5, is_cold: true, ..Signals::default() }, "what one takes stays");
        assert_eq!(next.utilization(0.0), None);
    }
}
