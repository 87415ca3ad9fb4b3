//! Fair sharing of slots between routers that all work.

use std::time::{Duration, Instant};

use crate::fleet::{FleetSetup, RouterFleet};
use crate::load::{Load, retry_after_of_refusal};
use crate::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_all_routers_want_are_busy_never_above_their_cap_and_shared() {
    let group = RouterFleet::start(FleetSetup { replicas: 2, ..FleetSetup::default() }).await;
    let load = group.load(3);
    load.wait_for_answers(10, &[0, 1, 2]).await;
    let (before, began) = (group.models.counts(), Instant::now());
    load.wait_for_answers(100, &[0, 1, 2]).await;
    let (after, took) = (group.models.counts(), began.elapsed());
    let tally = load.stop().await;
    let busy = (after.busy_time - before.busy_time).as_secs_f64() / (took.as_secs_f64() * 2.0);
    let shares: Vec<u64> =
        (0..3).map(|router| after.started_by_router[router] - before.started_by_router[router]).collect();
    println!("  busy {:.1} %, shares {shares:?}, the slowest took {:?}", busy * 100.0, tally.slowest());
    group.assert_never_above_cap();
    tally.assert_none_failed_except_on(None);
    // 95 % on a machine with nothing else to do; it is the models and clients, too, that share its processors.
    assert!(busy >= 0.75, "busy {busy}");
    let fair = shares.iter().sum::<u64>() / 3;
    assert!(shares.iter().all(|share| *share * 10 >= fair * 7), "shares {shares:?}");
    assert!(group.metric_sum("fleet_fallback_requests_total").await == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_slots_suffice_they_stay_where_they_are_used() {
    let group =
        RouterFleet::start(FleetSetup { cap: 2, service_time: Duration::from_millis(5), ..FleetSetup::default() })
            .await;
    let load = group.load(2);
    load.wait_for_answers(50, &[0, 1, 2]).await;
    let moves = group.metric_sum("fleet_slots_granted_total").await;
    let before: u64 = load.tally.answered_by_router().iter().sum();
    load.wait_for_answers(400, &[0, 1, 2]).await;
    let requests = load.tally.answered_by_router().iter().sum::<u64>() - before;
    let tally = load.stop().await;
    let moves = group.metric_sum("fleet_slots_granted_total").await - moves;
    println!("  {moves} moves of slots for {requests} requests, the slowest took {:?}", tally.slowest());
    group.assert_never_above_cap();
    tally.assert_none_failed_except_on(None);
    assert!(moves * 20.0 < requests as f64, "{moves} moves for {requests} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_told_how_long_the_queue_is_at_all_routers() {
    let (service_time, queue_wait) = (Duration::from_millis(300), Duration::from_secs(2));
    let group = RouterFleet::start(FleetSetup { replicas: 1, service_time, queue_wait, ..FleetSetup::default() }).await;
    // It has to know how long a request takes.
    assert_eq!(retry_after_of_refusal(group.routers[2].scoring, 2).await, None);
    let busy: Vec<_> = group.routers[..2].iter().map(|router| router.scoring).collect();
    let load = Load::start_on_each(&busy, 8);
    load.wait_for_answers(1, &[0]).await;
    let longest_retry_after = std::cell::Cell::new(Duration::ZERO);
    // Of its own queue, in which nobody is left, it would say 1 s.
    let long = async || {
        longest_retry_after.set(
            longest_retry_after
                .get()
                .max(retry_after_of_refusal(group.routers[2].scoring, 2).await.unwrap_or_default()),
        );
        longest_retry_after.get() > Duration::from_secs(1)
    };
    let after = wait_until("a refusal that knows of the others", long).await;
    println!("  told to come back in {:?}, after {after:?}", longest_retry_after.get());
    load.stop().await;
    group.assert_never_above_cap();
    assert!(
        longest_retry_after.get() <= queue_wait + service_time + Duration::from_secs(1),
        "by then all have left: {:?}",
        longest_retry_after.get()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_may_wait_a_request_has_the_slot_that_is_idle_at_another_router() {
    for plan in [
        FleetSetup { queue_length: 0, ..FleetSetup::default() },
        FleetSetup { queue_wait: Duration::ZERO, ..FleetSetup::default() },
        FleetSetup { queue_length: 0, queue_wait: Duration::ZERO, ..FleetSetup::default() },
    ] {
        let group = RouterFleet::start(FleetSetup { service_time: Duration::from_millis(5), ..plan }).await;
        for _ in 0..20 {
            for (number, router) in group.routers.iter().enumerate() {
                assert_eq!(retry_after_of_refusal(router.scoring, number).await, None, "all replicas are idle");
            }
        }
        // And no more than there are slots.
        let asked = Instant::now();
        let all = (0..12).map(|number| retry_after_of_refusal(group.routers[number % 3].scoring, number % 3));
        let refusals = futures_util::future::join_all(all).await.into_iter().flatten().count();
        println!("  {refusals} of 12 at once refused, after {:?}", asked.elapsed());
        group.assert_never_above_cap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_gets_its_share_of_what_any_router_serves() {
    let group = RouterFleet::start(FleetSetup {
        has_shadow: true,
        service_time: Duration::from_millis(2),
        ..FleetSetup::default()
    })
    .await;
    for _ in 0..40 {
        for (number, router) in group.routers.iter().enumerate() {
            assert_eq!(retry_after_of_refusal(router.scoring, number).await, None);
        }
    }
    let ended = async |result: &str| {
        let mut sum = 0.0;
        for router in &group.routers {
            sum += router.metric("mirror_requests_total", result).await;
        }
        sum
    };
    // The last copies may still be on their way.
    wait_until("all copies to end", async || ended("").await >= 50.0).await;
    let (answered, all) = (ended("answered").await, ended("").await);
    println!("  {answered} of {all} copies answered, of 120 requests");
    // A copy waits for no other copy.
    assert!(answered >= all * 0.8, "{answered} of {all}");
    group.assert_never_above_cap();
}
