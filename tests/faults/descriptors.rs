//! A router that has no file descriptors left.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use crate::client::{Caller, EXACT, Question};
use crate::model::Replica;
use crate::program::{Program, deployment, endpoint};
use crate::soon;

/// Descriptors the router may open beyond those it has.
const ROOM: usize = 24;
/// Connections that are opened: more than it can accept.
const CROWD: usize = 60;
/// Clients that were there before, each with a connection to a replica that is kept.
const KEPT: usize = 4;

/// Contract (README, "Watching it"): `accept_errors_total` counts; nobody who is connected is disturbed, nothing spins,
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
    let before = router.warmed_up(&[&blue]).await;
    let mut kept: Vec<Caller> = (0..KEPT).map(|_| Caller::new(router.scoring)).collect();
    // All at once, so that each worker has as many connections to the replica as it can need.
    ask_all(&mut kept, 0).await;
    let limit = (router.vitals().descriptors + ROOM) as u64;
    let small = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(Pid::from_raw(router.pid() as i32), Resource::Nofile, small).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        // The system accepts for the router, which takes them over when it can.
        crowd.push(soon("a connection", TcpStream::connect(router.scoring)).await.unwrap());
    }
    until_failing(&mut router).await;
    assert!(router.vitals().descriptors as u64 >= limit, "not all that are allowed are open");
    std::fs::write(router.document(), version(2000)).unwrap();
    for number in 1..30 {
        ask_all(&mut kept, number).await;
    }
    let (errors, busy, started) = (failures(&mut router).await, router.vitals().cpu, Instant::now());
    // The time over which its use of the processor is measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (router.vitals().cpu - busy).as_secs_f64() / started.elapsed().as_secs_f64();
    let errors = failures(&mut router).await - errors;
    println!("  {:.0} % of a processor, {errors} accepts failed in a second", share * 100.0);
    assert!(share < 0.15 && errors > 0.0 && errors < 100.0, "{share} of a processor, {errors} failures");
    let waiting = tokio::spawn({
        let address = router.scoring;
        async move { Caller::new(address).ask(&Question::echo("blue", 1_000_000)).await }
    });
    drop(crowd);
    assert_eq!(waiting.await.unwrap(), EXACT, "accepted when there were descriptors again");
    router.until("the change", |all| all[0]["requestSettings"]["maxQueueLength"] == 2000).await;
    assert_eq!(router.metric("refused_documents", &[]).await, 0.0);
    ask_all(&mut kept, 1000).await;
    drop(kept);
    let load = router.load();
    load.go_on_for(100).await;
    router.recovers(load, &[], &before, &[&blue]).await;
}

/// Each asks once, all at the same time; every answer must be exact.
async fn ask_all(callers: &mut [Caller], number: u64) {
    let asking = callers.iter_mut().map(|caller| async move { caller.ask(&Question::echo("blue", number)).await });
    for outcome in futures_util::future::join_all(asking).await {
        assert_eq!(outcome, EXACT);
    }
}

async fn failures(router: &mut Program) -> f64 {
    router.metric("accept_errors_total", &[]).await
}

async fn until_failing(router: &mut Program) {
    soon("accepts that fail", async {
        while failures(router).await == 0.0 {
            tokio::time::sleep(crate::LOOK).await;
        }
    })
    .await;
}
