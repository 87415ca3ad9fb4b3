//! The outcome of a simulation.

use std::time::{Duration, Instant};

use super::Scenario;
use crate::policy::scale::Signals;

/// The sums of a simulation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SimulationOutcome {
    /// The number of arrivals.
    pub requests: u64,
    /// The number of requests that were answered.
    pub served: u64,
    /// The number of rejected requests: the queue was full, or the queue wait was exceeded.
    pub rejected: u64,
    /// The number of requests that took longer than `requestTimeoutMs`.
    pub timed_out: u64,
    /// The number of requests that were queued or in flight at the end.
    pub unfinished: u64,
    /// Queue waits of the requests that got a replica, ascending, in microseconds.
    waits: Vec<u32>,
    /// The time that slots were busy, divided by the time that there were slots.
    pub utilization: f64,
    /// Replica-hours, including those of starting and draining replicas.
    pub replica_hours: f64,
    /// The largest number of replicas at a time.
    pub most: u32,
    /// How often the number of replicas was changed.
    pub changes: u32,
    /// What happened in each interval.
    pub intervals: Vec<Interval>,
}

/// One interval between two decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Interval {
    /// The end of the interval, from the beginning of the simulation.
    pub at: Duration,
    /// The desired number of replicas after the decision.
    pub desired: u32,
    /// The number of ready replicas.
    pub ready: u32,
    /// The mean number of outstanding requests.
    pub demand: f64,
    /// The number of arrivals.
    pub requests: u64,
    /// The number of rejected requests.
    pub rejected: u64,
}

impl SimulationOutcome {
    /// Returns the queue wait at this percentile of the requests that got a replica.
    pub fn wait(&self, percent: usize) -> Duration {
        let place = (self.waits.len() * percent / 100).min(self.waits.len().saturating_sub(1));
        Duration::from_micros(self.waits.get(place).copied().unwrap_or_default().into())
    }

    /// Returns the longest queue wait of a request that got a replica.
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.waits.last().copied().unwrap_or_default().into())
    }

    /// Returns the share of requests that were rejected.
    pub fn rejected_share(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.rejected as f64 / self.requests as f64 }
    }
}

/// Collects the sums while the simulation runs.
pub(super) struct Recorder {
    outcome: SimulationOutcome,
    epoch: Instant,
    /// The number of existing replicas, and the time up to which they are counted.
    alive: i64,
    counted: Instant,
    replica_seconds: f64,
    worked: f64,
    slot_seconds: f64,
    interval: Duration,
    desired: u32,
    now: Interval,
}

impl Recorder {
    pub(super) fn new(scenario: &Scenario, interval: Duration, desired: u32) -> Self {
        Self {
            outcome: SimulationOutcome::default(),
            epoch: scenario.epoch,
            alive: 0,
            counted: scenario.epoch,
            replica_seconds: 0.0,
            worked: 0.0,
            slot_seconds: 0.0,
            interval,
            desired,
            now: Interval::default(),
        }
    }

    pub(super) fn arrived(&mut self) {
        self.outcome.requests += 1;
        self.now.requests += 1;
    }

    pub(super) fn rejected(&mut self) {
        self.outcome.rejected += 1;
        self.now.rejected += 1;
    }

    /// Records that a request got a replica.
    pub(super) fn granted(&mut self, waited: Duration) {
        self.outcome.waits.push(u32::try_from(waited.as_micros()).unwrap_or(u32::MAX));
    }

    /// Records that a replica has worked on a request for this time.
    pub(super) fn worked(&mut self, time: Duration, timed_out: bool) {
        self.worked += time.as_secs_f64();
        if timed_out {
            self.outcome.timed_out += 1;
        } else {
            self.outcome.served += 1;
        }
    }

    /// Changes the number of replicas from the beginning on.
    pub(super) fn alive(&mut self, more: i64) {
        self.alive += more;
        self.outcome.most = self.outcome.most.max(u32::try_from(self.alive).unwrap_or_default());
    }

    /// Changes the number of replicas from `now` on.
    pub(super) fn alive_at(&mut self, now: Instant, more: i64) {
        self.replica_seconds += (now - self.counted).as_secs_f64() * self.alive as f64;
        self.counted = now;
        self.alive(more);
    }

    pub(super) fn interval(&mut self, now: Instant, desired: u32, ready: u32, slots: u64, signals: &Signals) {
        self.outcome.changes += u32::from(self.desired != desired);
        self.desired = desired;
        self.slot_seconds += slots as f64 * self.interval.as_secs_f64();
        let this = std::mem::take(&mut self.now);
        self.outcome.intervals.push(Interval {
            at: now - self.epoch,
            desired,
            ready,
            demand: signals.busy + signals.queued,
            ..this
        });
    }

    pub(super) fn finish(mut self, end: Instant, unfinished: u64) -> SimulationOutcome {
        self.alive_at(end, 0);
        self.outcome.unfinished = unfinished;
        self.outcome.replica_hours = self.replica_seconds / 3600.0;
        self.outcome.utilization = if self.slot_seconds > 0.0 { self.worked / self.slot_seconds } else { 0.0 };
        self.outcome.waits.sort_unstable();
        self.outcome
    }
}
