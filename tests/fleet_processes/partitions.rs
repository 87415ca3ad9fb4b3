//! A router that cannot reach the coordinator.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fleet::{FleetSetup, PeerSettings, RouterFleet};
use crate::peer_proxy::PeerProxy;
use crate::{REQUEST_TIMEOUT, SLOT_LEASE, TERM, wait_until};

/// How long a request may wait for a slot; a router that has none answers 503 after that. Longer than what the other held is
/// in quarantine: this costs the one that coordinates no request.
const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// The one that coordinates, behind a gate, and another.
async fn start_two_with_peer_proxy(plan: FleetSetup) -> (RouterFleet, PeerProxy) {
    let mut group = RouterFleet::without_routers(plan).await;
    let gate = PeerProxy::start_closed().await;
    group.add_router(&PeerSettings::advertised_at(gate.address));
    group.routers[0].wait_until_ready().await;
    gate.open_to(group.routers[0].peer);
    group.add_router(&PeerSettings::default());
    group.routers[1].wait_until_ready().await;
    group.wait_until_all_joined().await;
    (group, gate)
}

async fn wait_until_lease_state(group: &RouterFleet, lease_state: &str) {
    wait_until(lease_state, || async { group.routers[1].fleet_status().await["leaseState"] == lease_state }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_router_that_is_cut_off_answers_503_until_it_is_back() {
    let (group, gate) = start_two_with_peer_proxy(FleetSetup { queue_wait: QUEUE_WAIT, ..FleetSetup::default() }).await;
    let load = group.load(4);
    load.wait_for_answers(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.close();
    wait_until("a request that is refused", || {
        std::future::ready(load.tally.failures(1).iter().any(|what| what.starts_with("503 ")))
    })
    .await;
    let refused = cut.elapsed();
    wait_until_lease_state(&group, "nothing").await;
    let (status, text) = group.routers[1].try_get("/readyz").await.unwrap();
    assert_eq!((status, text.contains("cut off from its fleet")), (503, true), "{text}");
    assert!(text.contains("no connection to the coordinator"), "why is said: {text}");
    // Its slots are the other's when nothing can be in flight on them any more.
    let back = group.wait_until_all_slots_are_used(Some(1)).await;
    group.assert_never_above_cap();
    gate.open_to(group.routers[0].peer);
    let again = load.wait_for_answers(20, &[0, 1]).await;
    wait_until("the router is ready again", async || group.routers[1].admin_client().is_ready().await).await;
    let tally = load.stop().await;
    println!("  503 after {refused:?}, all slots at the other {back:?} later; {again:?} after the cut served again");
    group.assert_never_above_cap();
    tally.assert_none_failed_except_on(Some(1));
    let failures = tally.failures(1);
    assert!(failures.iter().all(|what| what.starts_with("503 ")), "{failures:#?}");
    // By its own clock the lease began with a beat that was sent before the cut.
    assert!(refused < SLOT_LEASE + QUEUE_WAIT + TERM, "{refused:?}");
    assert!(group.metric_sum("fleet_fallback_requests_total").await == 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_says_nothing_is_cut_before_another_router_has_its_slot() {
    let (group, gate) = start_two_with_peer_proxy(FleetSetup { queue_wait: QUEUE_WAIT, ..FleetSetup::default() }).await;
    let mut stream = TcpStream::connect(group.routers[1].scoring).await.unwrap();
    let head = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(format!("{head}1 stream").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\r\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    let load = group.load(4);
    load.wait_for_answers(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.close();
    let ended = async {
        while stream.read_buf(&mut answer).await.is_ok_and(|length| length > 0) {}
        cut.elapsed()
    };
    let (ended, back) = tokio::join!(ended, group.wait_until_all_slots_are_used(Some(1)));
    load.stop().await.assert_none_failed_except_on(Some(1));
    println!("  cut after {ended:?}, all slots at the other {back:?} after the routers were parted");
    group.assert_never_above_cap();
    assert!(answer.ends_with(b"\r\n\r\n2\r\nok\r\n"), "its client is not told that it is complete");
    assert!(ended < SLOT_LEASE + REQUEST_TIMEOUT + TERM, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_available_router_that_is_cut_off_serves_in_fallback_and_counts_it() {
    let (group, gate) = start_two_with_peer_proxy(FleetSetup { mode: "available", ..FleetSetup::default() }).await;
    let load = group.load(4);
    load.wait_for_answers(20, &[0, 1]).await;
    let cut = Instant::now();
    gate.close();
    wait_until("a request that is borrowed", || async { group.routers[1].fallback_requests().await > 0.0 }).await;
    let borrows = cut.elapsed();
    wait_until_lease_state(&group, "fallback").await;
    load.wait_for_answers(20, &[0, 1]).await;
    gate.open_to(group.routers[0].peer);
    wait_until_lease_state(&group, "leased").await;
    let borrowed = group.routers[1].fallback_requests().await;
    load.wait_for_answers(20, &[0, 1]).await;
    let tally = load.stop().await;
    let highest = group.models.counts().max_by_replica;
    println!("  borrows after {borrows:?}, {borrowed} requests, at once at replicas {highest:?}");
    tally.assert_none_failed_except_on(None);
    assert!(borrows >= SLOT_LEASE / 2, "{borrows:?}");
    assert!(group.routers[1].fallback_requests().await == borrowed, "borrows though it has a lease");
    assert!(group.routers[0].fallback_requests().await == 0.0, "the coordinator is not cut off");
    assert!(highest.iter().all(|highest| *highest <= 2), "each router keeps the cap: {highest:?}");
}
