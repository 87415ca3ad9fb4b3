//! Routers that stand still.

use std::time::Instant;

use rustix::process::Signal;

use crate::group::{Group, Plan};
use crate::{LEASE, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_paused_for_longer_than_its_lease_starts_nothing_on_it() {
    the_coordinator_is_paused("strict").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_reach_each_other_borrow_nothing_while_the_coordinator_is_paused() {
    the_coordinator_is_paused("available").await;
}

async fn the_coordinator_is_paused(mode: &'static str) {
    let group = Group::start(Plan { mode, ..Plan::default() }).await;
    let epoch = group.routers[1].epoch().await;
    let load = group.load(4);
    load.go_on_for(20, &[0, 1, 2]).await;
    let paused = Instant::now();
    group.routers[0].signal(Signal::STOP);
    let back = group.until_all_slots_are_used(Some(0)).await;
    let follower = async || group.routers[1].coordinates().await || group.routers[2].coordinates().await;
    until("another coordinator", follower).await;
    load.go_on_for(20, &[1, 2]).await;
    // It has to be longer than its lease, by its own clock too.
    until("the end of its lease", || std::future::ready(paused.elapsed() > LEASE.mul_f64(1.5))).await;
    let stood = paused.elapsed();
    let borrowed = group.routers[1].borrowed().await + group.routers[2].borrowed().await;
    group.never_above_the_cap();
    group.routers[0].signal(Signal::CONT);
    // What its clients get now was begun after the pause.
    let again = load.go_on_for(20, &[0, 1, 2]).await;
    let whole = group.until_whole().await;
    let tally = load.stop().await;
    println!(
        "  {mode}: paused for {stood:?}, all slots in use after {back:?}, its clients are served {again:?} after it, \
         one group {whole:?} later; of its requests failed {:?}",
        tally.failures(0).len()
    );
    tally.none_failed_but_of(Some(0));
    assert!(borrowed == 0.0, "{borrowed} requests of those who reach each other");
    assert_eq!(group.sum("fleet_fallback_total").await, 0.0, "who was only asleep borrows nothing either");
    group.never_above_the_cap();
    assert!(group.routers[1].epoch().await > epoch);
}
