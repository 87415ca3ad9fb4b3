//! Routers that are replaced under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::fleet::{FleetSetup, RouterFleet};
use crate::load::Load;
use crate::{POLL_INTERVAL, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_all_routers_are_restarted_one_after_the_other() {
    // Long enough for a load balancer that asks as often as the one below.
    let mut group = RouterFleet::start(FleetSetup { unready_delay: "300ms", ..FleetSetup::default() }).await;
    let addresses: Vec<_> = group.routers.iter().map(|router| router.scoring).collect();
    let ready: Arc<Vec<AtomicBool>> = Arc::new((0..3).map(|_| AtomicBool::new(true)).collect());
    let balancer = spawn_readiness_poller(&group, &ready);
    let load = Load::start_on_ready(&addresses, &ready, 8);
    load.wait_for_answers(20, &[0, 1, 2]).await;
    for turn in 0..3 {
        let coordinator = group.coordinators().await;
        let term = group.routers[turn].term().await;
        let before = group.lock_holder();
        let logs: Vec<_> = group.routers.iter().map(|router| router.log().len()).collect();
        group.routers[turn].signal(Signal::TERM);
        if coordinator == [turn] {
            let other = || std::future::ready(group.lock_holder().is_some_and(|now| Some(&now) != before.as_ref()));
            let handed = wait_until("another coordinator", other).await;
            let told = wait_until("another that says so", || async {
                let found = group.coordinators().await;
                found.iter().any(|router| *router != turn)
            });
            let told = handed + told.await;
            println!("  router {turn} hands over in {handed:?}, the metric says so after {told:?}");
            assert!(handed < Duration::from_secs(1), "{handed:?}");
        } else {
            println!("  router {turn} does not coordinate in epoch {term}");
        }
        let status = group.routers[turn].wait_for_exit().await;
        assert!(status.success(), "{status}");
        for (router, before) in group.routers.iter().zip(logs) {
            let log = router.log().split_off(before);
            assert!(!log.contains("WARN"), "nothing is wrong where a router is told to stop: {log}");
        }
        group.routers[turn].spawn();
        let started = group.routers[turn].wait_until_ready().await;
        let everybody = || std::future::ready(ready.iter().all(|ready| ready.load(Ordering::Relaxed)));
        wait_until("the load balancer", everybody).await;
        load.wait_for_answers(20, &[0, 1, 2]).await;
        println!("  and is ready {started:?} after its start");
    }
    let all = group.wait_until_all_slots_are_used(None).await;
    let tally = load.stop().await;
    balancer.abort();
    println!(
        "  answers {:?}, the slowest took {:?}, all slots in use after {all:?}",
        tally.answered_by_router(),
        tally.slowest()
    );
    group.assert_never_above_cap();
    tally.assert_none_failed_except_on(None);
    assert!(group.metric_sum("fleet_fallback_requests_total").await == 0.0);
}

/// What a load balancer does: asks each router again and again whether it is ready.
fn spawn_readiness_poller(group: &RouterFleet, ready: &Arc<Vec<AtomicBool>>) -> tokio::task::JoinHandle<()> {
    let (ready, routers) =
        (ready.clone(), group.routers.iter().map(crate::router::Router::admin_client).collect::<Vec<_>>());
    tokio::spawn(async move {
        loop {
            for (router, ready) in routers.iter().zip(ready.iter()) {
                ready.store(router.is_ready().await, Ordering::Relaxed);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
}
