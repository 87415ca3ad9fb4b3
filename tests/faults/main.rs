//! Faults under load: the real program as a process of its own, so that its memory, file descriptors, threads and
//! processor time can be read from outside, while clients score through it and check every answer.
//!
//! The tests take turns (see [`program`]): each measures a process, and what it measures is not to be the others' work.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

mod client;
mod client_disconnects;
mod descriptors;
mod load;
mod many_connections;
mod message;
mod model;
mod process_stats;
mod processes;
mod program;
mod reload;
mod replicas;
mod scaling;
mod shadow;
mod signals;
mod slow;
mod soak;

use std::future::Future;
use std::time::Duration;

/// Longest wait for anything in a test: only a broken router takes it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a condition that is waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `future`, or a panic that says what did not come.
async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_TIMEOUT, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}
