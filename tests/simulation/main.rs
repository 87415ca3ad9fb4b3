//! Admission, the choice of a replica and its health in virtual time: whatever clients, replicas and operators do, and
//! in whatever order, what the router promises about slots and the queue holds after every step.
//!
//! One number, the seed, chooses everything: the deployment, who comes when, how long things take, what breaks. A run is
//! a few hundred events, played into `policy::admit` the way `state::slots` and `proxy` do it ([`world`]), and checked
//! against a model that shares no code with it and counts by looking ([`model`]). What a client is told to wait is
//! compared with what it would really have waited ([`foresight`]).
//!
//! ```text
//! cargo test --test simulation                                    # every seed
//! SIMULATION_SEEDS=1000000 cargo test --test simulation           # more of them
//! SIMULATION_SEED=7 cargo test --test simulation -- --nocapture   # one seed, with all that happens in it
//! ```

mod event_queue;
mod model;
mod request;
mod retry_after;
mod runs;
mod scenario;
mod world;

use runs::run_every_seed;
use scenario::Scenario;
use world::World;

/// Virtual microseconds since the start of a run.
type Time = u64;
const MILLISECOND: Time = 1_000;
const SECOND: Time = 1_000_000;

/// What went wrong, in words; whoever runs the seed adds which and when.
type Checked<T = ()> = Result<T, String>;

/// Says what went wrong unless `holds`.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

#[test]
fn whatever_happens_every_promise_about_slots_and_the_queue_holds() {
    run_every_seed("whatever_happens", 10_000, |seed, trace| {
        World::new(seed, Scenario::from_seed(seed), trace).run(|_| Ok(()))
    });
}

#[test]
fn retry_after_is_honest_within_a_factor_of_two() {
    run_every_seed("retry_after", 200, |seed, trace| {
        let scenario = Scenario::stationary_from_seed(seed);
        let service = scenario.service_time;
        World::new(seed, scenario, trace).run(|told| retry_after::check_retry_after(told, service))
    });
}
