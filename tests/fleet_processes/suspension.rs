//! Routers that are suspended.

use std::time::Instant;

use rustix::process::Signal;

use crate::fleet::{FleetSetup, RouterFleet};
use crate::{SLOT_LEASE, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_suspended_for_longer_than_its_lease_starts_nothing_on_it() {
    suspend_the_coordinator("strict").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_reach_each_other_use_no_fallback_while_the_coordinator_is_suspended() {
    suspend_the_coordinator("available").await;
}

async fn suspend_the_coordinator(mode: &'static str) {
    let group = RouterFleet::start(FleetSetup { mode, ..FleetSetup::default() }).await;
    let term = group.routers[1].term().await;
    let load = group.load(4);
    load.wait_for_answers(20, &[0, 1, 2]).await;
    let paused = Instant::now();
    group.routers[0].signal(Signal::STOP);
    let back = group.wait_until_all_slots_are_used(Some(0)).await;
    let has_new_coordinator =
        async || group.routers[1].is_coordinator().await || group.routers[2].is_coordinator().await;
    wait_until("another coordinator", has_new_coordinator).await;
    load.wait_for_answers(20, &[1, 2]).await;
    // It has to be longer than its lease, by its own clock too.
    wait_until("the end of its lease", || std::future::ready(paused.elapsed() > SLOT_LEASE.mul_f64(1.5))).await;
    let suspended_for = paused.elapsed();
    let borrowed = group.routers[1].fallback_requests().await + group.routers[2].fallback_requests().await;
    group.assert_never_above_cap();
    group.routers[0].signal(Signal::CONT);
    // What its clients get now was begun after the pause.
    let again = load.wait_for_answers(20, &[0, 1, 2]).await;
    let whole = group.wait_until_all_joined().await;
    let tally = load.stop().await;
    println!(
        "  {mode}: paused for {suspended_for:?}, all slots in use after {back:?}, its clients are served {again:?} after it, \
         one group {whole:?} later; of its requests failed {:?}",
        tally.failures(0).len()
    );
    tally.assert_none_failed_except_on(Some(0));
    assert!(borrowed == 0.0, "{borrowed} requests of those who reach each other");
    assert_eq!(
        group.metric_sum("fleet_fallback_requests_total").await,
        0.0,
        "who was only asleep borrows nothing either"
    );
    group.assert_never_above_cap();
    assert!(group.routers[1].term().await > term);
}
