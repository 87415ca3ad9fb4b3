//! Several routers as one: real processes of the program, models that count what they have at once, and clients of every
//! router. Whatever happens to routers, no replica gets more than its cap.
//!
//! The tests take turns (see [`group`]): what is measured is not to be the others' work.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

#[path = "../support/authority.rs"]
mod authority;
mod counting_models;
mod partitions;
mod deaths;
mod peer_proxy;
mod fleet;
mod joining;
mod load;
#[path = "../faults/message.rs"]
#[allow(dead_code, reason = "each test target uses a part of it")]
mod message;
mod suspension;
mod restarts;
mod router;
mod sharing;
mod rejected_peers;

use std::time::{Duration, Instant};

/// Longest wait for anything in a test: only a broken router takes it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a condition that is waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// `leaseSeconds` of every group here: the shortest there is.
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
