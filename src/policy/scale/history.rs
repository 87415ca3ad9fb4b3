//! Demand over the last intervals, and which part of it is more than noise.
//!
//! Where there are too few replicas, requests in flight measure the capacity and not the demand, and the number of
//! queued requests grows with the allowed wait. The work of all arrivals is their rate times the time that one takes
//! (Little's law), so queued and rejected requests count as demand up to that and no further.
//!
//! Looks back over one interval, two, four, and so on, and computes for each span the bounds of the demand that its
//! mean stands for. Longer spans are more precise as long as nothing has changed. So spans are added from the shortest
//! on, and the first one that contradicts those before, because it reaches back to another demand, ends the search (the
//! intersection of confidence intervals; Goldenshluger and Nemirovski 1997).
//!
//! The random variation of a span's mean is estimated in two ways, and the smaller one counts: from the differences
//! between consecutive intervals, which are zero where requests arrive like clockwork, and from the requests as if they
//! arrived at random (an infinite-server queue over time, bounded as by Bernstein). Bursts exceed that, and are
//! followed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{MIN_STABILIZATION_WINDOW, STABILIZATION_INTERVALS, Signals};

/// How many standard deviations a change must exceed to be more than noise. With fewer, replicas follow noise; with
/// more, they follow real changes slowly.
const CONFIDENCE_SIGMAS: f64 = 3.0;
/// Where requests wait for each other, the mean of an interval varies more than if all were served at once: its
/// variance is up to this many times as large.
const QUEUE_VARIANCE_FACTOR: f64 = 2.5;
/// A variance that is estimated from few differences is inexact. The true one is taken as up to this many times as
/// large.
const MAX_VARIANCE_RATIO: f64 = 4.0;
/// A replica that has not started for so long, while no request arrives, is not waited for any more.
const MAX_START_TIME: Duration = Duration::from_secs(600);
/// The smallest number of intervals that are kept: ten minutes of the default ones.
const MIN_KEPT_INTERVALS: usize = 600;
/// The number of intervals whose differences estimate the variance.
const MAX_VARIANCE_INTERVALS: usize = 64;

/// The demand of a deployment over time.
#[derive(Debug)]
pub struct DemandHistory {
    interval: Duration,
    /// The intervals, the newest last.
    samples: VecDeque<IntervalSample>,
    estimate: DemandEstimate,
    /// When the last request arrived.
    last_request_at: Instant,
    /// When the last request arrived, or when a replica became ready, if that was later.
    last_active_at: Instant,
    /// Whether a request arrived in the last interval.
    is_active: bool,
    /// The work of rejected requests, and of all arrivals.
    rejected: WorkSpread,
    offered: WorkSpread,
}

/// The work of requests, spread over the time that each takes. All at once it would look like a burst.
#[derive(Debug, Default)]
struct WorkSpread {
    /// Work that is not done yet, in seconds.
    left: f64,
}

impl WorkSpread {
    /// Adds the work of `per_second` requests, each of which takes `service` seconds. Returns how many of them were in
    /// progress in this interval of `interval` seconds.
    fn add(&mut self, per_second: f64, service: f64, interval: f64) -> f64 {
        self.left += per_second * interval * service;
        let now = if service > 0.0 { self.left * (1.0 - (-interval / service).exp()) } else { 0.0 };
        self.left -= now;
        now / interval
    }
}

#[derive(Debug, Clone, Copy)]
struct IntervalSample {
    demand: f32,
    work: f32,
    squares: f32,
    /// The demand that was assumed at that time.
    estimated: f32,
}

/// An estimate of the demand: requests that replicas should be able to process at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DemandEstimate {
    /// The most likely demand.
    pub likely: f64,
    /// The upper bound of the demand.
    pub high: f64,
}

impl DemandHistory {
    /// Creates an empty history.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            samples: VecDeque::new(),
            estimate: DemandEstimate::default(),
            last_request_at: now,
            last_active_at: now,
            is_active: false,
            rejected: WorkSpread::default(),
            offered: WorkSpread::default(),
        }
    }

    /// Records the last interval.
    pub fn record_interval(&mut self, signals: &Signals, now: Instant) {
        self.is_active = signals.busy > 0.0 || signals.arrived_per_second > 0.0 || signals.waiting > 0;
        if self.is_active {
            self.last_request_at = now;
        }
        // A client that was told to come back when there is a replica cannot ask before there is one.
        if self.is_active || signals.is_cold && now.saturating_duration_since(self.last_request_at) < MAX_START_TIME {
            self.last_active_at = now;
        }
        let (work, squares) = (signals.work as f32, signals.service_time_squares as f32);
        let demand = self.measured_demand(signals) as f32;
        self.samples.push_back(IntervalSample { demand, work, squares, estimated: 0.0 });
        while self.samples.len() > MIN_KEPT_INTERVALS.max(self.intervals_within(MIN_STABILIZATION_WINDOW)) {
            self.samples.pop_front();
        }
        self.estimate = self.estimate_from_spans();
        if let Some(newest) = self.samples.back_mut() {
            newest.estimated = self.estimate.likely as f32;
        }
    }

    /// Changes the length of intervals. Earlier intervals do not count any more.
    pub fn set_interval(&mut self, interval: Duration) {
        if self.interval != interval {
            self.interval = interval;
            self.samples.clear();
        }
    }

    /// Returns an estimate of the demand now.
    pub fn estimate(&self) -> DemandEstimate {
        self.estimate
    }

    /// Returns the highest demand that was assumed within this time; `None` if the history is shorter.
    pub fn highest_demand_within(&self, time: Duration) -> Option<f64> {
        let wanted = self.intervals_within(time);
        let newest = self.samples.iter().rev().take(wanted);
        (self.samples.len() >= wanted).then(|| newest.map(|sample| f64::from(sample.estimated)).fold(0.0, f64::max))
    }

    /// Returns whether a request arrived in the last interval.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// Returns how long no request has arrived although there was a replica.
    pub fn idle_time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_active_at)
    }

    /// Returns the demand of an interval: requests that replicas should have been able to process at a time.
    fn measured_demand(&mut self, signals: &Signals) -> f64 {
        let (interval, service) = (self.interval.as_secs_f64().max(1e-6), signals.service_seconds);
        let offered = self.offered.add(signals.arrived_per_second, service, interval);
        let rejected = self.rejected.add(signals.rejected_per_second, service, interval);
        let (busy, backlog) = (signals.busy, signals.queued + rejected);
        match (signals.is_cold, service > 0.0) {
            // All arrivals wait. For how long says nothing about how many replicas they need.
            (true, _) => busy.max(offered),
            (false, true) => busy + backlog.min((offered - busy).max(0.0)),
            (false, false) => busy + backlog,
        }
    }

    fn intervals_within(&self, time: Duration) -> usize {
        let intervals = time.as_nanos().div_ceil(self.interval.as_nanos().max(1));
        usize::try_from(intervals).unwrap_or(usize::MAX).max(STABILIZATION_INTERVALS as usize)
    }

    fn estimate_from_spans(&self) -> DemandEstimate {
        let seconds = self.interval.as_secs_f64().max(1e-6);
        // Requests that take longer than an interval are in several of them, whose means are not independent.
        let one = self.length_biased_service_seconds() / seconds;
        let linked = (one.ceil() as usize).clamp(1, MAX_VARIANCE_INTERVALS / 4);
        let jumps = MAX_VARIANCE_RATIO * self.interval_variance(linked);
        let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
        let mut estimate = DemandEstimate::default();
        let (mut sum, mut span) = (0.0, 1);
        for (index, sample) in self.samples.iter().rev().enumerate() {
            sum += f64::from(sample.demand);
            let count = index + 1;
            if count < span && count < self.samples.len() {
                continue;
            }
            span *= 2;
            let mean = sum / count as f64;
            let independent = (count as f64 / linked as f64).max(1.0);
            let deviation = |variance: f64| CONFIDENCE_SIGMAS * (variance / independent).sqrt();
            let at_random = deviation(QUEUE_VARIANCE_FACTOR * mean * one.min(1.0))
                + CONFIDENCE_SIGMAS * CONFIDENCE_SIGMAS / 3.0 * one / count as f64;
            let bound = deviation(jumps).min(at_random);
            // Sums of floating-point numbers differ a little where the values are the same.
            let rounding = 1e-6 * mean;
            (low, high) = (low.max(mean - bound - rounding), high.min(mean + bound + rounding));
            if low > high {
                break;
            }
            estimate = DemandEstimate { likely: mean.clamp(low, high), high };
        }
        estimate
    }

    /// Returns the expected service time in seconds of a request that is met at a random time, which is more often a
    /// long one.
    fn length_biased_service_seconds(&self) -> f64 {
        let newest = self.samples.iter().rev().take(MAX_VARIANCE_INTERVALS);
        let (work, squares) = newest.fold((0.0, 0.0), |(work, squares), sample| {
            (work + f64::from(sample.work), squares + f64::from(sample.squares))
        });
        if work > 0.0 { squares / work } else { 0.0 }
    }

    /// Returns the variance between intervals as they were measured: half the mean square of the differences between
    /// intervals that are `apart`. The greatest difference is left out, since it may be a step.
    fn interval_variance(&self, apart: usize) -> f64 {
        let first = self.samples.len().saturating_sub(MAX_VARIANCE_INTERVALS + apart);
        let newer = self.samples.iter().skip(first + apart);
        let differences = newer.zip(self.samples.iter().skip(first)).map(|(new, old)| new.demand - old.demand);
        let mut squares: Vec<f32> = differences.map(|difference| difference * difference).collect();
        squares.sort_unstable_by(f32::total_cmp);
        squares.truncate(squares.len().saturating_sub(apart.min(3) + 1));
        if squares.is_empty() { 0.0 } else { f64::from(squares.iter().sum::<f32>()) / squares.len() as f64 / 2.0 }
    }
}
