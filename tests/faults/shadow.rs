//! Shadows that die, hang and come back under load, and the memory of a copy of the largest body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

use crate::client::{connect_and_send, head};
use crate::message::Message;
use crate::model::{Replica, RouterConnection};
use crate::program::{Program, deployment, endpoint};
use crate::{WAIT_TIMEOUT, with_timeout};

const LENGTH: usize = 100 * 1024 * 1024;
const PIECE: usize = 64 * 1024;
/// How far ahead of the slower model the client gets.
const MAX_AHEAD_BYTES: usize = 4 * PIECE;

/// The endpoint with half of the live requests copied.
fn mirrored_document(live: &Replica, shadow: &Replica, of_shadow: &str) -> String {
    let deployments = [
        deployment("blue", &[live], "maxConcurrentRequestsPerInstance: 8"),
        deployment("shadow", &[shadow], &format!("maxConcurrentRequestsPerInstance: 8{of_shadow}")),
    ];
    endpoint(&deployments).replace("traffic: {blue: 100}", "traffic: {blue: 100}\n  mirrorTraffic: {shadow: 50}")
}

/// A model that takes bodies and says how far it is.
async fn start_sink_model() -> (Replica, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let replica = Replica::new(move |mut peer: RouterConnection| {
        let taken = counted.clone();
        async move {
            let mut room = vec![0; PIECE];
            while let Ok(request) = Message::read_head(&mut peer).await {
                let mut left = request.length();
                while left > 0 {
                    match peer.read(&mut room[..left.min(PIECE)]).await {
                        Ok(0) | Err(_) => return,
                        Ok(read) => left -= read,
                    }
                    taken.store(request.length() - left, Ordering::Relaxed);
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                if peer.get_mut().write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    });
    (replica.await, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_of_the_largest_body_takes_little_memory() {
    let ((live, at_live), (shadow, at_shadow)) = (start_sink_model().await, start_sink_model().await);
    let mut router = Program::start(mirrored_document(&live, &shadow, ""), "").await;
    let (mut before, mut most) = (0, 0);
    // The first is not: it shows what a body takes without a copy. One of two at most is copied, at the latest one of six.
    while router.metric("mirror_requests_total", &["answered"]).await == 0.0 {
        [&at_live, &at_shadow].iter().for_each(|taken| taken.store(0, Ordering::Relaxed));
        let mut stream = connect_and_send(router.scoring, head("score", "", LENGTH)).await;
        let (piece, begun) = (vec![b'x'; PIECE], Instant::now());
        for from in (0..LENGTH).step_by(PIECE) {
            with_timeout("room for more", stream.write_all(&piece)).await.unwrap();
            let waits = || {
                let [live, shadow] = [&at_live, &at_shadow].map(|taken| taken.load(Ordering::Relaxed));
                let may_begin = from == 0 && shadow == 0 && begun.elapsed() < Duration::from_millis(200);
                may_begin || from > live + MAX_AHEAD_BYTES || shadow > 0 && from > shadow + MAX_AHEAD_BYTES
            };
            while waits() {
                assert!(begun.elapsed() < WAIT_TIMEOUT, "timed out: the models");
                tokio::task::yield_now().await;
            }
            if from % (16 * PIECE) == 0 {
                most = most.max(router.process_stats().memory_kib);
                if at_shadow.load(Ordering::Relaxed) == 0 {
                    before = before.max(most);
                }
            }
        }
        let mut stream = BufReader::new(stream);
        assert_eq!(with_timeout("an answer", Message::read(&mut stream)).await.unwrap().status(), 200);
        // The copy has had the last of it too, if there is one.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(router.metric("mirror_requests_total", &["lagging"]).await, 0.0);
    assert!(most - before <= 8 * 1024, "{before} KiB at most without a copy, {most} with one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_that_dies_and_comes_back_costs_no_live_answer() {
    let live = Replica::echo("blue", Duration::from_millis(1)).await;
    let mut shadow = Replica::echo("shadow", Duration::from_millis(5)).await;
    let mut router = Program::start(mirrored_document(&live, &shadow, ", requestTimeoutMs: 200"), "").await;
    let load = router.load();
    load.wait_for_answers(300).await;
    let copies = router.metric("mirror_requests_total", &["answered"]).await;
    assert!(copies > 0.0);
    for _ in 0..3 {
        shadow.close_connections();
        load.wait_for_answers(100).await;
        shadow.stop_listening().await;
        load.wait_for_answers(100).await;
        shadow.listen_again().await;
        load.wait_for_answers(100).await;
    }
    load.stop().await.assert_only(&[]);
    let failed = router.metric("mirror_requests_total", &[]).await - copies;
    assert!(failed > 0.0 && router.metric("mirror_requests_total", &["closed"]).await > 0.0);
    let blue = &router.deployments().await[0];
    assert_eq!(blue["replicas"][0]["state"], "ready");
}
