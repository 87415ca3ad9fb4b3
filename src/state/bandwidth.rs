//! The bandwidth limit of an endpoint and the bytes that have passed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::policy::bandwidth::{Bandwidth, QueuePosition};

/// The limit of an endpoint in bytes per second, for requests and responses together. It outlives changes of the
/// document, and the limit itself, so that queued chunks follow the current document.
#[derive(Debug)]
pub struct BandwidthLimit {
    bandwidth: Mutex<Bandwidth>,
    limit_changed: Arc<Notify>,
}

impl BandwidthLimit {
    /// Returns the limit for a document: `before` with the new rate if there was one, so that chunks queued there
    /// follow it. Returns `None` if the endpoint has never had a limit.
    pub fn reuse_or_new(before: Option<&Arc<Self>>, bytes_per_second: Option<u64>) -> Option<Arc<Self>> {
        let Some(before) = before else {
            let new =
                |limit| Self { bandwidth: Bandwidth::new(limit, Instant::now()).into(), limit_changed: Arc::default() };
            return bytes_per_second.map(|limit| Arc::new(new(limit)));
        };
        if before.with_bandwidth(|passed, now| passed.set_limit(bytes_per_second, now)) {
            before.limit_changed.notify_waiters();
        }
        Some(before.clone())
    }

    /// Adds `bytes` of live traffic and returns their position in the queue, for [`BandwidthLimit::remaining_wait`].
    pub fn add_live_bytes(&self, bytes: u64) -> QueuePosition {
        self.with_bandwidth(|passed, now| passed.live(bytes, now))
    }

    /// Returns how long the chunk at this position still has to wait if the limit does not change.
    pub fn remaining_wait(&self, place: QueuePosition) -> Duration {
        self.with_bandwidth(|passed, now| passed.remaining_wait(place, now))
    }

    /// Returns a future that completes when the limit changes after this call.
    pub fn wait_for_change(&self) -> OwnedNotified {
        self.limit_changed.clone().notified_owned()
    }

    /// Adds `bytes` of mirrored requests that have passed.
    pub fn add_mirrored_bytes(&self, bytes: u64) {
        self.with_bandwidth(|passed, now| passed.add_mirrored_bytes(bytes, now));
    }

    /// Returns whether the limit leaves room for mirrored requests.
    pub fn has_room_for_mirroring(&self) -> bool {
        self.with_bandwidth(Bandwidth::has_room)
    }

    fn with_bandwidth<T>(&self, with: impl FnOnce(&mut Bandwidth, Instant) -> T) -> T {
        let mut passed = self.bandwidth.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock is read under the lock, because time must not go backwards between two callers.
        with(&mut passed, Instant::now())
    }
}
