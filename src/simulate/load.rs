//! Generated load: when requests arrive, and how long each takes.

use std::f64::consts::TAU;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedArrival {
    /// When the request arrives, from the beginning of the simulation.
    pub at: Duration,
    /// How long a replica works on the request.
    pub service: Duration,
}

/// The rate of requests per second over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArrivalRate {
    /// The lowest rate, or the only one.
    pub low: f64,
    /// The highest rate.
    pub high: f64,
    /// How the rate changes from one to the other.
    pub shape: Shape,
}

/// How a rate changes over a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The higher rate, all the time.
    Steady,
    /// From the lower to the higher rate at a third of the time, and back at two thirds.
    Step,
    /// From the lower to the higher rate, linearly.
    Ramp,
    /// The lower rate, except for a twentieth of the time in the middle.
    Spike,
    /// Up and down, three times.
    Sine,
    /// Half a minute the higher rate, half a minute the lower one.
    OnOff,
}

impl ArrivalRate {
    /// Returns the rate per second at this share of the time, of which `elapsed` is over.
    fn at(&self, share: f64, elapsed: Duration) -> f64 {
        let up = match self.shape {
            Shape::Steady => 1.0,
            Shape::Step => f64::from((1.0 / 3.0..2.0 / 3.0).contains(&share)),
            Shape::Ramp => share,
            Shape::Spike => f64::from((0.475..0.525).contains(&share)),
            Shape::Sine => 0.5 - 0.5 * (3.0 * TAU * share).cos(),
            Shape::OnOff => f64::from((elapsed.as_secs() / 30).is_multiple_of(2)),
        };
        self.low + (self.high - self.low) * up
    }
}

/// The distribution of arrivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Independent arrivals (a Poisson process).
    Random,
    /// Evenly spaced arrivals.
    Even,
}

/// The distribution of service times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Service {
    /// Uniformly distributed between the two, or constant.
    Uniform(Duration, Duration),
    /// Exponentially distributed with this mean: most are short, some long.
    Exponential(Duration),
    /// Pareto distributed with this mean and shape 2.2: most are short, few very long.
    LongTail(Duration),
}

impl Service {
    fn draw(&self, rng: &mut SmallRng) -> Duration {
        const TAIL: f64 = 2.2;
        // Never zero, so that its logarithm and its inverse are finite.
        let uniform = 1.0 - rng.random::<f64>();
        match self {
            Self::Uniform(least, most) if least == most => *least,
            Self::Uniform(least, most) => *least + most.saturating_sub(*least).mul_f64(uniform),
            Self::Exponential(mean) => mean.mul_f64(-uniform.ln()),
            Self::LongTail(mean) => mean.mul_f64((TAIL - 1.0) / TAIL * uniform.powf(-1.0 / TAIL)),
        }
    }
}

/// The requests of a load, over a time.
#[derive(Debug, Clone)]
pub struct OfferedLoad {
    rate: ArrivalRate,
    pattern: Pattern,
    service: Service,
    time: Duration,
    rng: SmallRng,
    now: f64,
}

impl OfferedLoad {
    /// Creates a load. The same `seed` creates the same requests.
    pub fn new(rate: ArrivalRate, pattern: Pattern, service: Service, time: Duration, seed: u64) -> Self {
        Self { rate, pattern, service, time, rng: SmallRng::seed_from_u64(seed), now: 0.0 }
    }
}

impl Iterator for OfferedLoad {
    type Item = SimulatedArrival;

    fn next(&mut self) -> Option<SimulatedArrival> {
        let most = self.rate.low.max(self.rate.high);
        if most <= 0.0 {
            return None;
        }
        // Drawn at the highest rate and thinned out to the current one.
        loop {
            self.now += match self.pattern {
                Pattern::Random => -(1.0 - self.rng.random::<f64>()).ln() / most,
                Pattern::Even => 1.0 / most,
            };
            let at = Duration::try_from_secs_f64(self.now).ok().filter(|at| *at < self.time)?;
            let rate = self.rate.at(at.as_secs_f64() / self.time.as_secs_f64(), at);
            if rate >= most || self.rng.random::<f64>() * most < rate {
                return Some(SimulatedArrival { at, service: self.service.draw(&mut self.rng) });
            }
        }
    }
}
