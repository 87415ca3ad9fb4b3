//! A router that does not reach the coordinator.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gate::Gate;
use crate::group::{Group, Peer, Plan};
use crate::{LEASE, TERM, TIMEOUT, until};

/// How long a request may wait for a slot; a router that has none answers 503 after that. Longer than what the other held is
/// in quarantine: this costs the one that coordinates no request.
const WAITS: Duration = Duration::from_secs(5);

/// The one that coordinates, behind a gate, and another.
async fn two(plan: Plan) -> (Group, Gate) {
    let mut group = Group::empty(plan).await;
    let gate = Gate::shut_from_the_start().await;
    group.add(&Peer::at(gate.address));
    group.routers[0].until_ready().await;
    gate.open(group.routers[0].peer);
    group.add(&Peer::default());
    group.routers[1].until_ready().await;
    group.until_whole().await;
    (group, gate)
}

async fn until_standing(group: &Group, standing: &str) {
    until(standing, || async { group.routers[1].fleet().await["standing"] == standing }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_router_that_is_cut_off_answers_503_until_it_is_back() {
    let (group, gate) = two(Plan { waits: WAITS, ..Plan::default() }).await;
    let load = group.load(4);
    load.go_on_for(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.shut();
    until("a request that is refused", || {
        std::future::ready(load.tally.failures(1).iter().any(|what| what.starts_with("503 ")))
    })
    .await;
    let refused = cut.elapsed();
    until_standing(&group, "nothing").await;
    let (status, text) = group.routers[1].try_get("/readyz").await.unwrap();
    assert_eq!((status, text.contains("cut off from its group")), (503, true), "{text}");
    assert!(text.contains("no connection to the coordinator"), "why is said: {text}");
    // Its slots are the other's when nothing can be in flight on them any more.
    let back = group.until_all_slots_are_used(Some(1)).await;
    group.never_above_the_cap();
    gate.open(group.routers[0].peer);
    let again = load.go_on_for(20, &[0, 1]).await;
    until("the router is ready again", async || group.routers[1].at_admin().is_ready().await).await;
    let tally = load.stop().await;
    println!("  503 after {refused:?}, all slots at the other {back:?} later; {again:?} after the cut served again");
    group.never_above_the_cap();
    tally.none_failed_but_of(Some(1));
    let failures = tally.failures(1);
    assert!(failures.iter().all(|what| what.starts_with("503 ")), "{failures:#?}");
    // By its own clock the lease began with a beat that was sent before the cut.
    assert!(refused < LEASE + WAITS + TERM, "{refused:?}");
    assert!(group.sum("fleet_fallback_total").await == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_says_nothing_is_cut_before_another_router_has_its_slot() {
    let (group, gate) = two(Plan { waits: WAITS, ..Plan::default() }).await;
    let mut stream = TcpStream::connect(group.routers[1].scoring).await.unwrap();
    let head = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(format!("{head}1 stream").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\r\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let load = group.load(4);
    load.go_on_for(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.shut();
    let ended = async {
        while stream.read_buf(&mut answer).await.is_ok_and(|length| length > 0) {}
        cut.elapsed()
    };
    let (ended, back) = tokio::join!(ended, group.until_all_slots_are_used(Some(1)));
    load.stop().await.none_failed_but_of(Some(1));
    println!("  cut after {ended:?}, all slots at the other {back:?} after the routers were parted");
    group.never_above_the_cap();
    assert!(answer.ends_with(b"\r\n\r\n2\r\nok\r\n"), "its client is not told that it is complete");
    assert!(ended < LEASE + TIMEOUT + TERM, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_available_router_that_is_cut_off_serves_and_counts_what_it_borrows() {
    let (group, gate) = two(Plan { mode: "available", ..Plan::default() }).await;
    let load = group.load(4);
    load.go_on_for(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.shut();
    until("a request that is borrowed", || async { group.routers[1].borrowed().await > 0.0 }).await;
    let borrows = cut.elapsed();
    until_standing(&group, "fallback").await;
    load.go_on_for(20, &[0, 1]).await;
    gate.open(group.routers[0].peer);
    until_standing(&group, "leased").await;
    let borrowed = group.routers[1].borrowed().await;
    load.go_on_for(20, &[0, 1]).await;
    let tally = load.stop().await;
    let highest = group.board.counts().highest;
    println!("  borrows after {borrows:?}, {borrowed} requests, at once at replicas {highest:?}");
    tally.none_failed_but_of(None);
    assert!(borrows >= LEASE / 2, "{borrows:?}");
    assert!(group.routers[1].borrowed().await == borrowed, "borrows though it has a lease");
    assert!(group.routers[0].borrowed().await == 0.0, "the coordinator is not cut off");
    assert!(highest.iter().all(|highest| *highest <= 2), "each router keeps the cap: {highest:?}");
}
