use std::num::NonZeroU32;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::load::{ArrivalRate, OfferedLoad, Pattern, Service, Shape};
use super::outcome::Interval;
use super::*;
use crate::model::endpoint::TargetUtilization;

const MINUTE: Duration = Duration::from_secs(60);

/// From 1 to 200 replicas that take one request each, at 70 %, decided every second; they start in 30 s.
fn scenario(change: impl FnOnce(&mut TargetUtilization, &mut RequestSettings)) -> Scenario {
    let mut settings = TargetUtilization {
        min_replicas: 1,
        max_replicas: 200,
        target_percent: 70,
        polling_interval: Duration::from_secs(1),
        idle_before_zero: 10 * MINUTE,
        cold_start_timeout: MINUTE,
    };
    let mut requests = RequestSettings {
        timeout: 5 * MINUTE,
        stream_idle_timeout: MINUTE,
        max_concurrent_per_instance: NonZeroU32::MIN,
        max_queue_wait: Duration::from_millis(500),
        max_queue_length: 10_000,
    };
    change(&mut settings, &mut requests);
    let scale = ScaleSettings::TargetUtilization(settings);
    Scenario { requests, scale, start: MINUTE / 2, time: 60 * MINUTE, epoch: Instant::now() }
}

fn as_it_is(_: &mut TargetUtilization, _: &mut RequestSettings) {}

fn all_take(millis: u64) -> Service {
    Service::Uniform(Duration::from_millis(millis), Duration::from_millis(millis))
}

fn steady(rps: f64) -> ArrivalRate {
    ArrivalRate { low: rps, high: rps, shape: Shape::Steady }
}

/// An hour of random requests that take 250 ms.
fn hour(low: f64, high: f64, shape: Shape) -> SimulationOutcome {
    let scenario = scenario(as_it_is);
    scenario.run(OfferedLoad::new(ArrivalRate { low, high, shape }, Pattern::Random, all_take(250), scenario.time, 1))
}

/// Replicas asked for at the end of each interval within these minutes.
fn desired(outcome: &SimulationOutcome, minutes: std::ops::Range<u32>) -> Vec<u32> {
    let within = |at: Duration| at >= MINUTE * minutes.start && at < MINUTE * minutes.end;
    outcome.intervals.iter().filter(|interval| within(interval.at)).map(|interval| interval.desired).collect()
}

fn changes(desired: &[u32]) -> usize {
    desired.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// A load, what serves it, and how many replicas that needs by the sizing rule.
struct Case {
    scenario: Scenario,
    rps: f64,
    millis: u64,
    needed: u32,
}

/// Loads over all that may be set, and start times from none to two minutes. Those that need a whole number of replicas
/// all but exactly are left out: there rounding decides.
fn cases(seed: u64) -> impl Iterator<Item = Case> {
    let mut rng = SmallRng::seed_from_u64(seed);
    std::iter::repeat_with(move || {
        let (rps, millis) = (rng.random_range(0.5..50.0), rng.random_range(20..3000));
        let (percent, each) = (rng.random_range(30..=95), rng.random_range(1..=8));
        let exact = rps * millis as f64 / 1000.0 / f64::from(percent) * 100.0 / f64::from(each);
        let mut scenario = scenario(|scale, requests| {
            scale.target_percent = percent;
            requests.max_concurrent_per_instance = NonZeroU32::new(each).unwrap();
        });
        scenario.start = Duration::from_secs(rng.random_range(0..=120));
        (exact % 1.0 > 0.04 && exact % 1.0 < 0.96).then_some(Case {
            scenario,
            rps,
            millis,
            needed: exact.ceil() as u32,
        })
    })
    .flatten()
}

#[test]
fn a_steady_load_settles_on_exactly_what_the_sizing_rule_says_and_stays_there() {
    for Case { mut scenario, rps, millis, needed } in cases(1).take(40) {
        scenario.time = 20 * MINUTE;
        let load = OfferedLoad::new(steady(rps), Pattern::Even, all_take(millis), scenario.time, 1);
        let desired = desired(&scenario.run(load), 12..20);
        let settled = desired.iter().all(|count| *count == needed);
        assert!(settled, "{rps} rps of {millis} ms need {needed} of {scenario:?}: {desired:?}");
    }
}

/// Requests at random are now more, now fewer; replicas do not follow that.
#[test]
fn chance_is_not_followed() {
    for (number, Case { mut scenario, rps, millis, needed }) in cases(2).take(30).enumerate() {
        scenario.time = 45 * MINUTE;
        let mean = Duration::from_millis(millis);
        let service = match number % 3 {
            0 => all_take(millis),
            1 => Service::Uniform(mean / 2, mean * 3 / 2),
            _ => Service::Exponential(mean),
        };
        let load = OfferedLoad::new(steady(rps), Pattern::Random, service, scenario.time, 3);
        let desired = desired(&scenario.run(load), 15..45);
        let what = format!("{rps} rps of {service:?} need {needed} of {scenario:?}: {desired:?}");
        assert!(changes(&desired) <= 12, "{} changes; {what}", changes(&desired));
        let near = needed.saturating_sub(1)..=needed + 1 + needed / 10;
        let share = desired.iter().filter(|count| near.contains(count)).count() as f64 / desired.len() as f64;
        assert!(share > 0.9, "near for {share}; {what}");
    }
}

#[test]
fn a_step_is_followed_at_once_up_and_after_a_minute_down() {
    let outcome = hour(4.0, 40.0, Shape::Step);
    let (low, high) = (2, 15);
    assert!(desired(&outcome, 10..20).iter().all(|count| (low..=low + 1).contains(count)), "{outcome:?}");
    let after = |count| {
        let there = |interval: &&Interval| interval.at > 20 * MINUTE && interval.desired >= count;
        outcome.intervals.iter().find(there).expect("it goes up").at - 20 * MINUTE
    };
    let (most, all) = (after(high * 2 / 3), after(high));
    assert!(most <= Duration::from_secs(1), "{most:?}");
    assert!(all <= Duration::from_secs(20), "{all:?}");
    assert!(desired(&outcome, 25..40).iter().all(|count| (high..=high + 2).contains(count)), "{outcome:?}");
    assert!(desired(&outcome, 40..41).iter().all(|count| *count >= high), "nothing goes within a minute");
    assert!(desired(&outcome, 43..60).iter().all(|count| (low..=low + 1).contains(count)), "{outcome:?}");
}

#[test]
fn a_ramp_is_followed_with_hardly_anybody_turned_away() {
    let outcome = hour(2.0, 60.0, Shape::Ramp);
    assert!(outcome.rejected_share() < 0.001, "{}", outcome.rejected_share());
    let last = desired(&outcome, 59..60);
    assert!(last.iter().all(|count| (20..=26).contains(count)), "{last:?}");
    assert!((7.0..14.0).contains(&outcome.replica_hours), "{}", outcome.replica_hours);
}

/// Nobody can start replicas before they are needed: who comes meanwhile waits as long as may be, then is turned away.
#[test]
fn a_spike_costs_as_long_as_replicas_take_to_start() {
    let outcome = hour(4.0, 40.0, Shape::Spike);
    // Half a minute of three minutes' spike, and what the queue does to that.
    let spike = 3.0 * 60.0 * 40.0;
    let share = outcome.rejected as f64 / spike;
    assert!((0.05..0.22).contains(&share), "{share}");
    assert!(desired(&outcome, 36..60).iter().all(|count| (2..=3).contains(count)), "{outcome:?}");
}

#[test]
fn a_sine_is_followed_up_and_down() {
    let outcome = hour(4.0, 40.0, Shape::Sine);
    assert!(outcome.rejected_share() < 0.006, "{}", outcome.rejected_share());
    // Following exactly would take 7.9.
    assert!((7.9..10.5).contains(&outcome.replica_hours), "{}", outcome.replica_hours);
}

/// What is needed again within a minute is kept.
#[test]
fn on_and_off_every_half_minute_keeps_the_replicas() {
    let outcome = hour(0.0, 40.0, Shape::OnOff);
    let kept = desired(&outcome, 5..60);
    assert!(kept.iter().all(|count| (13..=17).contains(count)), "{kept:?}");
}

#[test]
fn few_requests_that_take_very_long_are_no_reason_for_many_replicas() {
    let scenario = scenario(as_it_is);
    let service = Service::LongTail(Duration::from_millis(250));
    let outcome = scenario.run(OfferedLoad::new(steady(20.0), Pattern::Random, service, scenario.time, 1));
    let settled = desired(&outcome, 15..60);
    let most = settled.iter().filter(|count| (7..=10).contains(*count)).count() as f64 / settled.len() as f64;
    assert!(most > 0.9 && changes(&settled) < 20, "{most} {settled:?}");
}

#[test]
fn who_finds_no_replica_waits_for_the_first_and_the_last_goes_when_nobody_asks() {
    let scenario = scenario(|scale, _| scale.min_replicas = 0);
    let one = |minutes| SimulatedArrival { at: MINUTE * minutes, service: Duration::from_millis(100) };
    let outcome = scenario.run([one(5), one(14), one(40)]);
    assert_eq!((outcome.served, outcome.rejected), (3, 0));
    assert_eq!((outcome.wait(0), outcome.longest_wait()), (Duration::ZERO, scenario.start), "the second found one");
    let up = |minutes| desired(&outcome, minutes).iter().all(|count| *count == 1);
    assert!(up(6..24) && up(41..50), "{outcome:?}");
    let down = |minutes| desired(&outcome, minutes).iter().all(|count| *count == 0);
    assert!(down(0..5) && down(25..40) && down(51..60), "{outcome:?}");
}

#[test]
fn a_cold_start_that_takes_too_long_turns_away() {
    let mut scenario = scenario(|scale, _| scale.min_replicas = 0);
    scenario.start = 2 * MINUTE;
    let outcome = scenario.run([SimulatedArrival { at: MINUTE, service: MINUTE / 60 }]);
    assert_eq!((outcome.served, outcome.rejected), (0, 1));
}

/// Who is turned away while it starts comes back when it should be there, and finds it.
#[test]
fn a_start_longer_than_the_idle_time_is_seen_through() {
    let mut scenario = scenario(|scale, _| (scale.min_replicas, scale.idle_before_zero) = (0, MINUTE / 4));
    scenario.start = 3 * MINUTE;
    let one = |minutes| SimulatedArrival { at: MINUTE * minutes + MINUTE / 10, service: MINUTE / 60 };
    let outcome = scenario.run([one(1), one(4), one(10)]);
    assert_eq!((outcome.served, outcome.rejected), (1, 2), "{outcome:?}");
}

#[test]
fn the_same_seed_is_the_same_outcome() {
    let scenario = scenario(as_it_is);
    let run = |seed| {
        let service = Service::Exponential(Duration::from_millis(200));
        scenario.run(OfferedLoad::new(steady(10.0), Pattern::Random, service, 10 * MINUTE, seed))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_fixed_number_stays_and_every_request_is_accounted_for() {
    let mut scenario = scenario(as_it_is);
    scenario.scale = ScaleSettings::Fixed { instances: 2 };
    scenario.time = 10 * MINUTE;
    let load = OfferedLoad::new(steady(20.0), Pattern::Random, all_take(200), scenario.time - MINUTE, 1);
    let outcome = scenario.run(load);
    assert_eq!((outcome.requests, outcome.unfinished), (outcome.served + outcome.rejected, 0));
    assert!((0.4..0.6).contains(&outcome.rejected_share()), "two replicas serve ten a second");
    assert!((outcome.replica_hours - 2.0 * 10.0 / 60.0).abs() < 1e-6, "{}", outcome.replica_hours);
    assert!((0.85..0.91).contains(&outcome.utilization), "a minute of ten is without load: {}", outcome.utilization);
}
