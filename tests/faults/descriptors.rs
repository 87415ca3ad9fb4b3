//! A router that has no file descriptors left.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use crate::client::{CheckedRequest, CheckingClient, OUTCOME_EXACT};
use crate::model::Replica;
use crate::program::{Program, deployment, endpoint};
use crate::with_timeout;

/// Descriptors the router may open beyond those it has.
const SPARE_DESCRIPTORS: usize = 24;
/// Connections that are opened: more than it can accept.
const EXCESS_CONNECTIONS: usize = 60;
/// Clients that were there before, each with a connection to a replica that is kept.
const KEPT_CLIENTS: usize = 4;

/// Promise: `accept_errors_total` counts; nobody who is connected is disturbed, nothing spins,
/// and when there are descriptors again all goes on, a change of a document that could not be read included.
#[tokio::test]
async fn without_file_descriptors_the_router_goes_on_and_recovers() {
    let blue = Replica::echo("blue", Duration::from_millis(20)).await;
    let version = |queue: usize| {
        endpoint(&[deployment(
            "blue",
            &[&blue],
            &format!("maxConcurrentRequestsPerInstance: 8, maxQueueLength: {queue}"),
        )])
    };
    let mut router = Program::start(version(1000), "").await;
    let before = router.warm_up(&[&blue]).await;
    let mut kept: Vec<CheckingClient> = (0..KEPT_CLIENTS).map(|_| CheckingClient::new(router.scoring)).collect();
    // All at once, so that each worker has as many connections to the replica as it can need.
    send_from_all(&mut kept, 0).await;
    let limit = (router.process_stats().descriptors + SPARE_DESCRIPTORS) as u64;
    let small = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(Pid::from_raw(router.pid() as i32), Resource::Nofile, small).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..EXCESS_CONNECTIONS {
        // The system accepts for the router, which takes them over when it can.
        crowd.push(with_timeout("a connection", TcpStream::connect(router.scoring)).await.unwrap());
    }
    wait_until_accepts_fail(&mut router).await;
    assert!(router.process_stats().descriptors as u64 >= limit, "not all that are allowed are open");
    std::fs::write(router.document(), version(2000)).unwrap();
    for number in 1..30 {
        send_from_all(&mut kept, number).await;
    }
    let (errors, busy, started) = (accept_errors(&mut router).await, router.process_stats().cpu, Instant::now());
    // The time over which its use of the processor is measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (router.process_stats().cpu - busy).as_secs_f64() / started.elapsed().as_secs_f64();
    let errors = accept_errors(&mut router).await - errors;
    println!("  {:.0} % of a processor, {errors} accepts failed in a second", share * 100.0);
    assert!(share < 0.15 && errors > 0.0 && errors < 100.0, "{share} of a processor, {errors} failures");
    let waiting = tokio::spawn({
        let address = router.scoring;
        async move { CheckingClient::new(address).send(&CheckedRequest::echo("blue", 1_000_000)).await }
    });
    drop(crowd);
    assert_eq!(waiting.await.unwrap(), OUTCOME_EXACT, "accepted when there were descriptors again");
    router.wait_until("the change", |all| all[0]["requestSettings"]["maxQueueLength"] == 2000).await;
    assert_eq!(router.metric("config_invalid_documents", &[]).await, 0.0);
    send_from_all(&mut kept, 1000).await;
    drop(kept);
    let load = router.load();
    load.wait_for_answers(100).await;
    router.assert_recovers(load, &[], &before, &[&blue]).await;
}

/// Each asks once, all at the same time; every answer must be exact.
async fn send_from_all(callers: &mut [CheckingClient], number: u64) {
    let asking =
        callers.iter_mut().map(|caller| async move { caller.send(&CheckedRequest::echo("blue", number)).await });
    for outcome in futures_util::future::join_all(asking).await {
        assert_eq!(outcome, OUTCOME_EXACT);
    }
}

async fn accept_errors(router: &mut Program) -> f64 {
    router.metric("accept_errors_total", &[]).await
}

async fn wait_until_accepts_fail(router: &mut Program) {
    with_timeout("accepts that fail", async {
        while accept_errors(router).await == 0.0 {
            tokio::time::sleep(crate::POLL_INTERVAL).await;
        }
    })
    .await;
}
