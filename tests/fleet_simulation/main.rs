//! Slot leases in virtual time. One number, the seed, chooses everything.
//!
//! ```text
//! cargo test --release --test fleet_simulation                                  # 10,000 seeds
//! FLEET_SEEDS=100000 cargo test --release --test fleet_simulation               # more of them
//! FLEET_HARSH=1 FLEET_SEEDS=100000 cargo test --release --test fleet_simulation # only those where somebody is always cut off
//! FLEET_SEED=7 cargo test --test fleet_simulation -- --nocapture                # one seed, with all that happens in it
//! ```

mod model_check;
mod rng;
mod scenario;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use scenario::Scenario;
use world::World;

fn seed_range_from_env(default: u64) -> (std::ops::Range<u64>, bool) {
    let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
    match number("FLEET_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (0..number("FLEET_SEEDS").unwrap_or(default), false),
    }
}

#[test]
fn whatever_happens_no_replica_gets_more_than_it_may_and_no_slot_is_lost() {
    let (range, trace) = seed_range_from_env(if cfg!(debug_assertions) { 250 } else { 10_000 });
    let totals: [AtomicU64; 4] = Default::default();
    let next = AtomicU64::new(range.start);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Every third is harsh, see `Scenario::anything`.
                    let harsh_only = std::env::var("FLEET_HARSH").is_ok();
                    if harsh_only && seed % 3 != 2 && seed < range.end {
                        continue;
                    }
                    if seed >= range.end || !failed.lock().unwrap().is_empty() {
                        break;
                    }
                    let mut world = World::new(seed, Scenario::from_seed(seed), trace);
                    let began = std::time::Instant::now();
                    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
                    let run = run.unwrap_or_else(|_| Err("panic".into()));
                    for (total, of) in
                        totals.iter().zip([world.served, world.aborted, world.fallback_requests, world.messages])
                    {
                        total.fetch_add(of, Ordering::Relaxed);
                    }
                    if began.elapsed().as_secs() > 3 {
                        println!("FLEET_SEED={seed} is slow");
                    }
                    if let Err(what) = run {
                        failed.lock().unwrap().push(format!("FLEET_SEED={seed} at {} us: {what}", world.now));
                    }
                }
            });
        }
    });
    println!("served, aborted, in fallback, messages: {totals:?}");
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn in_small_cases_whatever_the_order_no_replica_gets_more_than_it_may() {
    use model_check::{Budget, Model, explore};
    let budget = |lease, ticks, requests, breaks, crashes, takeovers| Budget {
        ticks,
        requests,
        disconnects: breaks,
        crashes,
        takeovers,
        lease_and_term_seconds: lease,
    };
    let cases = [("quiet", 2, budget(2, 2, 2, 0, 0, 0)), ("partition", 2, budget(2, 3, 1, 1, 0, 0))];
    // The others take minutes without optimization.
    let large = [
        ("expiry", 2, budget(1, 3, 2, 1, 0, 0)),
        ("crash", 2, budget(1, 3, 2, 0, 1, 1)),
        ("takeover", 2, budget(1, 3, 2, 0, 0, 1)),
        ("three", 3, budget(1, 2, 2, 0, 0, 0)),
    ];
    let large = if cfg!(debug_assertions) { &large[..0] } else { &large[..] };
    for (name, routers, budget) in cases.iter().chain(large) {
        for roster in [true, false] {
            let began = std::time::Instant::now();
            let found = explore(Model::new(*routers, roster, budget.clone()), 20_000_000);
            println!("{name}, roster {roster}: {found:?} in {:?}", began.elapsed());
            assert!(found.is_ok(), "{found:?}");
        }
    }
}

/// Within a tenth, the time between two reports, where nothing stands still; and what comes is not lost nor counted twice.
#[test]
fn the_coordinator_knows_what_goes_on_at_all_routers() {
    let mut world = World::new(1, Scenario::overloaded(10), false);
    world.run_until(world::SECOND).unwrap();
    world.take_signals();
    let (mut arrived, mut rejected) = (0.0, 0.0);
    for second in 2..=11 {
        let before = world.busy_time;
        world.run_until(second * world::SECOND).unwrap();
        let busy = (world.busy_time - before) as f64 / 1e6;
        let signals = world.take_signals().unwrap();
        assert!((signals.busy - busy).abs() < 0.1 * busy, "{signals:?}, but {busy} are busy");
        assert!((signals.service_seconds - 0.01).abs() < 0.002, "{signals:?}");
        assert!(signals.queued > 20.0 && !signals.is_cold, "{signals:?}");
        arrived += signals.arrived_per_second;
        rejected += signals.rejected_per_second;
    }
    println!("arrived {arrived}, rejected {rejected} in 10 s");
    // Three times 100 a second, of which two times 100 can be served.
    assert!((2850.0..3150.0).contains(&arrived) && (850.0..1150.0).contains(&rejected), "{arrived}, {rejected}");
}

/// Three routers, two replicas of one slot each, more requests than they can serve.
#[test]
fn in_a_tight_case_replicas_are_busy_and_nobody_starves() {
    for (service, delay, least) in [(2, 50, 0.95), (10, 50, 0.95), (50, 50, 0.95), (2, 1000, 0.8), (10, 1000, 0.92)] {
        let scenario = Scenario { one_way_delay: delay, ..Scenario::overloaded(service) };
        let mut world = World::new(1, scenario, false);
        world.run_until(world::SECOND).unwrap();
        let before = world.busy_time;
        let served = world.routers.iter().map(|router| router.served).collect::<Vec<_>>();
        world.run_until(11 * world::SECOND).unwrap();
        let busy = (world.busy_time - before) as f64 / (2.0 * 10.0 * 1e6);
        let served: Vec<_> = world.routers.iter().zip(served).map(|(router, before)| router.served - before).collect();
        println!(
            "service {service} ms, {delay} us away: busy {busy:.4}, served {served:?}, messages {}",
            world.messages
        );
        assert!(busy > least, "{busy}");
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(least * 10 > most * 8, "{served:?}");
    }
}
