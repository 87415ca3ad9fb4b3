//! Routers that are killed.

use std::time::Instant;

use crate::fleet::{FleetSetup, RouterFleet};
use crate::load::CONNECTION_REFUSED;
use crate::{REQUEST_TIMEOUT, SLOT_LEASE, TERM, wait_until};

/// After that all slots are in use again, whatever was known of the dead: the term, leases and requests are over, with what
/// clocks may be wrong by, and two seconds for a machine with other work.
fn slots_back_timeout() -> std::time::Duration {
    (TERM + SLOT_LEASE + REQUEST_TIMEOUT).mul_f64(1.1 / 0.9) + TERM * 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed_costs_its_own_requests_and_its_slots_come_back() {
    kill_one_of_three(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_costs_its_own_requests_and_another_takes_over() {
    kill_one_of_three(0).await;
}

async fn kill_one_of_three(killed: usize) {
    // Each router has clients for all slots.
    let mut group = RouterFleet::start(FleetSetup::default()).await;
    let coordinator = group.coordinators().await;
    assert_eq!(coordinator, [0], "the first to start");
    let survivors: Vec<usize> = (0..3).filter(|router| *router != killed).collect();
    let term = group.routers[1].term().await;
    let load = group.load(4);
    load.wait_for_answers(20, &[0, 1, 2]).await;
    let at_work = || std::future::ready(group.models.counts().by_router[killed] > 0);
    wait_until("a request in flight there", at_work).await;
    group.routers[killed].kill();
    let dead = Instant::now();
    let back = group.wait_until_all_slots_are_used(Some(killed)).await;
    load.wait_for_answers(20, &survivors).await;
    wait_until("one coordinator", || async {
        let found = group.coordinators().await;
        found.len() == 1 && found[0] != killed
    })
    .await;
    let tally = load.stop().await;
    let failures = tally.failures(killed).iter().filter(|what| what.starts_with("cut")).count();
    println!("  all slots in use after {back:?}, {failures} requests cut, the slowest took {:?}", tally.slowest());
    group.assert_never_above_cap();
    tally.assert_none_failed_except_on(Some(killed));
    let later = tally.failures_since(killed, dead);
    assert!(later.iter().all(|what| what == CONNECTION_REFUSED), "only those in flight are cut: {later:?}");
    assert!(back < slots_back_timeout(), "{back:?}");
    let now = group.routers[1].term().await;
    assert!(if killed == 0 { now > term } else { now == term }, "epoch {now} after {term}");
    assert!(group.metric_sum("fleet_fallback_requests_total").await == 0.0);
}
