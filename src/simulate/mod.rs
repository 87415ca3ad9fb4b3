//! Floor 2: a deployment in virtual time. Requests that are known beforehand go through the very code that admits,
//! picks and scales in the router; only time, replicas and requests are made up. Same input and seed, same outcome.

pub mod load;
pub mod outcome;
pub mod trace;
mod world;

use std::time::{Duration, Instant};

use crate::model::endpoint::{RequestSettings, ScaleSettings};
use load::Arrival;
use outcome::Outcome;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The deployment's limits of a request.
    pub requests: RequestSettings,
    /// How many replicas it has.
    pub scale: ScaleSettings,
    /// From asking for a replica until it takes requests.
    pub start: Duration,
    /// How long to simulate.
    pub time: Duration,
    /// Virtual time begins here; any moment will do.
    pub epoch: Instant,
}

impl Scenario {
    /// Has the deployment serve these requests, which come in the order of their times. Those that come after the end
    /// are left out.
    pub fn run(&self, arrivals: impl IntoIterator<Item = Arrival>) -> Outcome {
        world::World::new(self).run(arrivals.into_iter())
    }
}

#[cfg(test)]
mod tests;
