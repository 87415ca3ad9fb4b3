//! The scenario of a seed: the deployment, its clients, its replicas, and the faults.

use std::num::NonZeroU32;

use inference_router::policy::admit::AdmissionRules;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::{MILLISECOND, SECOND, Time};

/// The whole of a run, but for chance.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) replicas: usize,
    pub(crate) rules: AdmissionRules,
    pub(crate) queue_wait: Time,
    /// From dispatch to response head, and how long a response that nobody wants is waited for.
    pub(crate) timeout: Time,
    pub(crate) service_time: ServiceTime,
    pub(crate) arrivals: Arrivals,
    pub(crate) requests: usize,
    /// The share of clients that go away, and when at the latest.
    pub(crate) abort_share_and_latest: (f64, Time),
    /// The share of connections to a running replica that fail nevertheless.
    pub(crate) connect_failure_share: f64,
    /// Changes of the deployment and deaths of replicas, spread over the run.
    pub(crate) changes: usize,
    pub(crate) deaths: usize,
    /// Longest time in which something that happens at once is noticed.
    pub(crate) delay: Time,
    /// Nothing happens but requests, and what clients are told is compared with what comes true.
    pub(crate) is_stationary: bool,
}

/// How long replicas take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ServiceTime {
    Constant(Time),
    /// Mean.
    Exponential(Time),
    /// Mean; one in a thousand takes more than thirty times as long.
    HeavyTailed(Time),
    /// Short, long, and the share of the long.
    Bimodal(Time, Time, f64),
}

/// When clients come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arrivals {
    /// Independently of each other, so long apart on average.
    Steady(Time),
    /// So many at once, so long apart on average.
    Bursts(usize, Time),
    /// More than can be served, then nobody, in turns of so many requests; so long apart, and so long a silence.
    Waves(usize, Time, Time),
}

impl Scenario {
    /// Small, crowded and unlucky: what is rare in life happens in a few hundred events.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let rules = Self::rules(rng);
        let replicas = rng.random_range(0..=5);
        let service = ServiceTime::any(rng, 5 * MILLISECOND, 2 * SECOND);
        let slots = (replicas.max(1) as u32 * rules.replica_cap.get()) as f64;
        // From far too few requests to four times too many.
        let load = slots * rng.random_range(0.2..4.0);
        let requests = rng.random_range(20..=180);
        let calm = rng.random_bool(0.15);
        Self {
            replicas,
            rules,
            queue_wait: *pick(rng, &[0, 20 * MILLISECOND, 500 * MILLISECOND, 5 * SECOND, 60 * SECOND]),
            timeout: *pick(rng, &[200 * MILLISECOND, 5 * SECOND, 60 * SECOND]),
            service_time: service,
            arrivals: Arrivals::any(rng, (service.mean() as f64 / load) as Time),
            requests,
            abort_share_and_latest: (*pick(rng, &[0.0, 0.1, 0.5]), log_uniform_time(rng, MILLISECOND, 3 * SECOND)),
            connect_failure_share: if calm { 0.0 } else { *pick(rng, &[0.0, 0.0, 0.1, 0.5, 0.9]) },
            changes: if calm { 0 } else { rng.random_range(0..=12) },
            deaths: if calm { 0 } else { rng.random_range(0..=6) },
            delay: *pick(rng, &[0, 1, 3 * MILLISECOND]),
            is_stationary: false,
        }
    }

    /// Nothing changes and nobody leaves early: what happens next can be foretold, on average. Always too many requests.
    pub(crate) fn stationary_from_seed(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let per_replica = NonZeroU32::new(rng.random_range(1..=4)).expect("at least one");
        let replicas = rng.random_range(1..=6);
        let service = ServiceTime::any(rng, SECOND, 60 * SECOND);
        let slots = replicas as u32 * per_replica.get();
        let apart = service.mean() as f64 / f64::from(slots) / rng.random_range(1.3..4.0);
        let queue_length = rng.random_range(0..=8 * slots as usize);
        // Whoever waits for slots that work in step is to see at least one round of them.
        let patience = if let ServiceTime::Constant(_) = service { 1.0 } else { 0.5 };
        let arrivals = match rng.random_range(0..3) {
            0 => Arrivals::Bursts(1 + slots as usize, apart as Time * (1 + Time::from(slots))),
            _ => Arrivals::Steady(apart as Time),
        };
        Self {
            replicas,
            rules: AdmissionRules { replica_cap: per_replica, queue_length },
            queue_wait: (service.mean() as f64 * rng.random_range(patience..20.0)) as Time,
            timeout: 86_400 * SECOND,
            service_time: service,
            arrivals,
            requests: 1500,
            abort_share_and_latest: (0.0, 1),
            connect_failure_share: 0.0,
            changes: 0,
            deaths: 0,
            delay: 0,
            is_stationary: true,
        }
    }

    /// Rules as they are at first, and as they are changed to.
    pub(crate) fn rules(rng: &mut SmallRng) -> AdmissionRules {
        AdmissionRules {
            replica_cap: NonZeroU32::new(rng.random_range(1..=4)).expect("at least one"),
            queue_length: *pick(rng, &[0, 1, 3, 10, 40]),
        }
    }
}

impl ServiceTime {
    fn any(rng: &mut SmallRng, least: Time, most: Time) -> Self {
        let mean = log_uniform_time(rng, least, most);
        match rng.random_range(0..4) {
            0 => Self::Constant(mean),
            1 => Self::Exponential(mean),
            2 => Self::HeavyTailed(mean),
            _ => Self::Bimodal(mean / 2, 5 * mean, 1.0 / 9.0),
        }
    }

    pub(crate) fn mean(self) -> Time {
        match self {
            Self::Constant(mean) | Self::Exponential(mean) | Self::HeavyTailed(mean) => mean,
            Self::Bimodal(short, long, share) => ((1.0 - share) * short as f64 + share * long as f64) as Time,
        }
    }

    pub(crate) fn draw(self, rng: &mut SmallRng) -> Time {
        let time = match self {
            Self::Constant(time) => time as f64,
            Self::Exponential(mean) => exponential(rng, mean),
            // Pareto with exponent 1.5, cut off where its mean has all but come together.
            Self::HeavyTailed(mean) => {
                let least = mean as f64 / 2.885;
                least * (1.0 - rng.random::<f64>()).powf(-1.0 / 1.5).min(300.0)
            }
            Self::Bimodal(short, long, share) => (if rng.random_bool(share) { long } else { short }) as f64,
        };
        (time as Time).max(1)
    }
}

impl Arrivals {
    fn any(rng: &mut SmallRng, apart: Time) -> Self {
        let size = rng.random_range(2..=30);
        match rng.random_range(0..3) {
            0 => Self::Steady(apart),
            1 => Self::Bursts(size, apart * size as Time),
            _ => Self::Waves(size, apart / 4, apart * size as Time),
        }
    }

    /// How far apart requests are on average.
    pub(crate) fn mean_pause(self) -> Time {
        match self {
            Self::Steady(apart) => apart,
            Self::Bursts(size, pause) => pause / size as Time,
            Self::Waves(size, apart, silence) => apart + silence / size as Time,
        }
    }

    /// How long after the request with this number the next one comes.
    pub(crate) fn pause_after(self, number: usize, rng: &mut SmallRng) -> Time {
        let last_of = |size: usize| number % size == size - 1;
        let mean = match self {
            Self::Steady(apart) => apart,
            Self::Bursts(size, pause) => {
                if last_of(size) {
                    pause
                } else {
                    0
                }
            }
            Self::Waves(size, apart, silence) => {
                if last_of(size) {
                    silence
                } else {
                    apart
                }
            }
        };
        if mean == 0 { 0 } else { exponential(rng, mean) as Time }
    }
}

pub(crate) fn exponential(rng: &mut SmallRng, mean: Time) -> f64 {
    -(mean as f64) * (1.0 - rng.random::<f64>()).ln()
}

/// Between two times, each order of magnitude as likely as the next.
fn log_uniform_time(rng: &mut SmallRng, least: Time, most: Time) -> Time {
    ((least as f64).ln() + rng.random::<f64>() * (most as f64 / least as f64).ln()).exp() as Time
}

pub(crate) fn pick<'a, T>(rng: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}
