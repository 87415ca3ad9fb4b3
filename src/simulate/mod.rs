//! Layer 2: a deployment in virtual time. Known requests go through the code that admits, picks and scales in the
//! router; only time, replicas and requests are simulated. The same input and seed give the same outcome.

pub mod load;
pub mod outcome;
pub mod trace;
mod world;

use std::time::{Duration, Instant};

use crate::model::endpoint::{RequestSettings, ScaleSettings};
use load::SimulatedArrival;
use outcome::SimulationOutcome;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Limits of requests to the deployment.
    pub requests: RequestSettings,
    /// How the number of replicas is decided.
    pub scale: ScaleSettings,
    /// The time from asking for a replica until it takes requests.
    pub start: Duration,
    /// The simulated time.
    pub time: Duration,
    /// The beginning of virtual time; any moment.
    pub epoch: Instant,
}

impl Scenario {
    /// Simulates the deployment with these requests, which are in the order of their arrival. Requests that arrive
    /// after the end are left out.
    pub fn run(&self, arrivals: impl IntoIterator<Item = SimulatedArrival>) -> SimulationOutcome {
        world::World::new(self).run(arrivals.into_iter())
    }
}

#[cfg(test)]
mod tests;
