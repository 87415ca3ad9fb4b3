//! Routers that are killed.

use std::time::Instant;

use crate::group::{Group, Plan};
use crate::load::REFUSED;
use crate::{LEASE, TERM, TIMEOUT, until};

/// After that all slots are in use again, whatever was known of the dead: the term, leases and requests are over, with what
/// clocks may be wrong by, and two seconds for a machine with other work.
fn back_within() -> std::time::Duration {
    (TERM + LEASE + TIMEOUT).mul_f64(1.1 / 0.9) + TERM * 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed_costs_its_own_requests_and_its_slots_come_back() {
    one_is_killed(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_killed_costs_its_own_requests_and_another_takes_over() {
    one_is_killed(0).await;
}

async fn one_is_killed(killed: usize) {
    // Each router has clients for all slots.
    let mut group = Group::start(Plan::default()).await;
    let coordinator = group.coordinators().await;
    assert_eq!(coordinator, [0], "the first to start");
    let survivors: Vec<usize> = (0..3).filter(|router| *router != killed).collect();
    let epoch = group.routers[1].epoch().await;
    let load = group.load(4);
    load.go_on_for(20, &[0, 1, 2]).await;
    let at_work = || std::future::ready(group.board.counts().by_router[killed] > 0);
    until("a request in flight there", at_work).await;
    group.routers[killed].kill();
    let dead = Instant::now();
    let back = group.until_all_slots_are_used(Some(killed)).await;
    load.go_on_for(20, &survivors).await;
    until("one coordinator", || async {
        let found = group.coordinators().await;
        found.len() == 1 && found[0] != killed
    })
    .await;
    let tally = load.stop().await;
    let failures = tally.failures(killed).iter().filter(|what| what.starts_with("cut")).count();
    println!("  all slots in use after {back:?}, {failures} requests cut, the slowest took {:?}", tally.slowest());
    group.never_above_the_cap();
    tally.none_failed_but_of(Some(killed));
    let later = tally.failures_since(killed, dead);
    assert!(later.iter().all(|what| what == REFUSED), "only those in flight are cut: {later:?}");
    assert!(back < back_within(), "{back:?}");
    let now = group.routers[1].epoch().await;
    assert!(if killed == 0 { now > epoch } else { now == epoch }, "epoch {now} after {epoch}");
    assert!(group.sum("fleet_fallback_total").await == 0.0);
}
