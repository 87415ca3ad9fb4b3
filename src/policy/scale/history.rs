//! Demand over the last intervals, and what of it is more than chance.
//!
//! Where replicas are too few, requests in flight say what there is, not what is needed; and those that wait are more the
//! longer they may. What all that come would take, if there were enough replicas, is how many come by how long one takes
//! (Little's law). So those that wait or are turned away count as demand up to that, and no further.
//!
//! Looks back one interval, two, four, and so on, and asks of each span: within what bounds is the demand that the
//! span's mean stands for? Longer spans say it better, as long as nothing has changed. So the spans are gone through
//! from the shortest on, and the first that contradicts the ones before, because it reaches back to another demand, ends
//! it (the intersection of confidence intervals; Goldenshluger and Nemirovski 1997).
//!
//! How much the mean of a span jumps by chance is estimated in two ways, and the lesser counts. From the intervals
//! themselves, by how much one differs from the next: nothing where requests come like clockwork. And from the requests,
//! as if they came at random (an infinite-server queue over time, bounded as by Bernstein): bursts are more than that,
//! and followed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{INTERVALS_BEFORE_DOWN, LEAST_BEFORE_DOWN, Signals};

/// How many standard deviations are more than chance. Of fewer, replicas follow what is chance; of more, they are slow
/// to follow what is not.
const SURE: f64 = 3.0;
/// Where some wait for others the mean of an interval jumps by more than if all were served at once: its variance is up
/// to so many times that.
const WAITING: f64 = 2.5;
/// What few differences say of variance is rough: it is not more than so many times that.
const ROUGH: f64 = 4.0;
/// A replica that has not started for so long, and nobody asks, is not waited for any more.
const LONGEST_START: Duration = Duration::from_secs(600);
/// Intervals that are remembered, at least: ten minutes of the usual ones.
const REMEMBERED: usize = 600;
/// Intervals by whose differences chance is estimated.
const COMPARED: usize = 64;

/// What has been asked of a deployment.
#[derive(Debug)]
pub struct History {
    interval: Duration,
    /// The newest last.
    samples: VecDeque<Sample>,
    estimate: Estimate,
    /// When there was last a request.
    asked: Instant,
    /// The same, or since when there is a replica, if that was later.
    active: Instant,
    /// Whether there was one in the last interval.
    is_active: bool,
    /// Of those that were turned away, and of all that came.
    rejected: Spread,
    offered: Spread,
}

/// Work of requests, over the time that each takes: all at once it would look like a burst.
#[derive(Debug, Default)]
struct Spread {
    /// Not yet over, in seconds.
    left: f64,
}

impl Spread {
    /// Adds what so many requests a second take, each so many seconds. Returns how many were at work in this interval, of
    /// `interval` seconds.
    fn add(&mut self, per_second: f64, service: f64, interval: f64) -> f64 {
        self.left += per_second * interval * service;
        let now = if service > 0.0 { self.left * (1.0 - (-interval / service).exp()) } else { 0.0 };
        self.left -= now;
        now / interval
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    demand: f32,
    work: f32,
    squares: f32,
    /// What demand was taken to be then.
    estimated: f32,
}

/// Demand, as far as it is known: requests that replicas should be able to take at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// What is likely.
    pub likely: f64,
    /// There is hardly more than this.
    pub high: f64,
}

impl History {
    /// Nothing has happened yet.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            samples: VecDeque::new(),
            estimate: Estimate::default(),
            asked: now,
            active: now,
            is_active: false,
            rejected: Spread::default(),
            offered: Spread::default(),
        }
    }

    /// Takes note of the last interval.
    pub fn note(&mut self, signals: &Signals, now: Instant) {
        self.is_active = signals.busy > 0.0 || signals.arrived_per_second > 0.0 || signals.waiting > 0;
        if self.is_active {
            self.asked = now;
        }
        // Who was told to come back when there is a replica cannot ask before there is one.
        if self.is_active || signals.is_cold && now.saturating_duration_since(self.asked) < LONGEST_START {
            self.active = now;
        }
        let (work, squares) = (signals.work as f32, signals.squares as f32);
        let demand = self.demand(signals) as f32;
        self.samples.push_back(Sample { demand, work, squares, estimated: 0.0 });
        while self.samples.len() > REMEMBERED.max(self.lingering(LEAST_BEFORE_DOWN)) {
            self.samples.pop_front();
        }
        self.estimate = self.estimated();
        if let Some(newest) = self.samples.back_mut() {
            newest.estimated = self.estimate.likely as f32;
        }
    }

    /// Intervals are of another length from now on; those before say nothing any more.
    pub fn set_interval(&mut self, interval: Duration) {
        if self.interval != interval {
            self.interval = interval;
            self.samples.clear();
        }
    }

    /// What is known of demand now.
    pub fn estimate(&self) -> Estimate {
        self.estimate
    }

    /// The most that demand was taken to be within this time; `None` where that much is not known.
    pub fn highest_of(&self, time: Duration) -> Option<f64> {
        let wanted = self.lingering(time);
        let newest = self.samples.iter().rev().take(wanted);
        (self.samples.len() >= wanted).then(|| newest.map(|sample| f64::from(sample.estimated)).fold(0.0, f64::max))
    }

    /// Whether there was a request in the last interval.
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// How long there has been no request, though there was a replica.
    pub fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.active)
    }

    /// Requests that replicas should have been able to take at a time.
    fn demand(&mut self, signals: &Signals) -> f64 {
        let (interval, service) = (self.interval.as_secs_f64().max(1e-6), signals.service_seconds);
        let offered = self.offered.add(signals.arrived_per_second, service, interval);
        let rejected = self.rejected.add(signals.rejected_per_second, service, interval);
        let (busy, backlog) = (signals.busy, signals.queued + rejected);
        match (signals.is_cold, service > 0.0) {
            // All that come wait: for how long says nothing of how many replicas they need.
            (true, _) => busy.max(offered),
            (false, true) => busy + backlog.min((offered - busy).max(0.0)),
            (false, false) => busy + backlog,
        }
    }

    fn lingering(&self, time: Duration) -> usize {
        let intervals = time.as_nanos().div_ceil(self.interval.as_nanos().max(1));
        usize::try_from(intervals).unwrap_or(usize::MAX).max(INTERVALS_BEFORE_DOWN as usize)
    }

    fn estimated(&self) -> Estimate {
        let seconds = self.interval.as_secs_f64().max(1e-6);
        // Requests that take longer than an interval are in several: these do not jump independently.
        let one = self.longest_mean() / seconds;
        let linked = (one.ceil() as usize).clamp(1, COMPARED / 4);
        let jumps = ROUGH * self.jumps(linked);
        let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
        let mut estimate = Estimate::default();
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
            let deviation = |variance: f64| SURE * (variance / independent).sqrt();
            let at_random = deviation(WAITING * mean * one.min(1.0)) + SURE * SURE / 3.0 * one / count as f64;
            let bound = deviation(jumps).min(at_random);
            // Sums of floating-point numbers differ a little where nothing does.
            let rounding = 1e-6 * mean;
            (low, high) = (low.max(mean - bound - rounding), high.min(mean + bound + rounding));
            if low > high {
                break;
            }
            estimate = Estimate { likely: mean.clamp(low, high), high };
        }
        estimate
    }

    /// What a request takes that is met at random, which is more often a long one, in seconds.
    fn longest_mean(&self) -> f64 {
        let newest = self.samples.iter().rev().take(COMPARED);
        let (work, squares) = newest.fold((0.0, 0.0), |(work, squares), sample| {
            (work + f64::from(sample.work), squares + f64::from(sample.squares))
        });
        if work > 0.0 { squares / work } else { 0.0 }
    }

    /// The variance of intervals by themselves: half the mean square of what they differ from those shortly before. Without
    /// the greatest, in which there may be a step.
    fn jumps(&self, apart: usize) -> f64 {
        let first = self.samples.len().saturating_sub(COMPARED + apart);
        let newer = self.samples.iter().skip(first + apart);
        let differences = newer.zip(self.samples.iter().skip(first)).map(|(new, old)| new.demand - old.demand);
        let mut squares: Vec<f32> = differences.map(|difference| difference * difference).collect();
        squares.sort_unstable_by(f32::total_cmp);
        squares.truncate(squares.len().saturating_sub(apart.min(3) + 1));
        if squares.is_empty() { 0.0 } else { f64::from(squares.iter().sum::<f32>()) / squares.len() as f64 / 2.0 }
    }
}
