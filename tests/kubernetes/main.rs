//! The router in a Kubernetes cluster: the real program, with real model servers where the pods' addresses are.
//!
//! Against an API server in memory, or, with `KUBECONFIG` set, against a real cluster, in a namespace of its own. No
//! kubelet is needed: the tests write the pods' status themselves.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod cluster;
mod endpoints;
mod fleet;
mod kubeconfig_users;
mod large_cluster;
mod pods;
mod router;
mod scaling;
mod secrets;

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for anything in a test: only a broken router takes it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a condition that is waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `look` finds something, and says how long that took.
async fn wait_until<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return (found, started.elapsed());
        }
        assert!(started.elapsed() < WAIT_TIMEOUT, "timed out: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
