//! A fleet of real router processes, models that count their requests in flight, and clients of every router. Whatever
//! happens to routers, no replica exceeds its cap.
//!
//! The tests take turns (see [`fleet`]), because what is measured must not be the work of others.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

#[path = "../support/authority.rs"]
mod authority;
mod counting_models;
mod deaths;
mod fleet;
mod joining;
mod load;
#[path = "../faults/message.rs"]
#[allow(dead_code, reason = "each test target uses a part of it")]
mod message;
mod partitions;
mod peer_proxy;
mod rejected_peers;
mod restarts;
mod router;
mod sharing;
mod suspension;

use std::time::{Duration, Instant};

/// Longest wait for anything in a test: only a broken router takes it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a condition that is waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// `termSeconds` of every fleet here: the shortest there is.
const TERM: Duration = Duration::from_secs(1);
/// What a member has of its coordinator.
const SLOT_LEASE: Duration = Duration::from_secs(2);
/// `requestTimeoutMs` of every group here.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits until `condition` holds, and returns how long that took.
async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < WAIT_TIMEOUT, "timed out: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    started.elapsed()
}
