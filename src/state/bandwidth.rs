//! The limit of an endpoint's bandwidth, and what has passed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::policy::bandwidth::{Bandwidth, Place};

/// So many bytes a second, of requests and answers together. Outlives changes of the document, and the limit itself: what
/// waits goes by what the document says now.
#[derive(Debug)]
pub struct Limit {
    passed: Mutex<Bandwidth>,
    changed: Arc<Notify>,
}

impl Limit {
    /// The limit of a document, from now on for what waits at the one `before` too; `None`: there never was one.
    pub fn kept(before: Option<&Arc<Self>>, bytes_per_second: Option<u64>) -> Option<Arc<Self>> {
        let Some(before) = before else {
            let new = |limit| Self { passed: Bandwidth::new(limit, Instant::now()).into(), changed: Arc::default() };
            return bytes_per_second.map(|limit| Arc::new(new(limit)));
        };
        if before.with(|passed, now| passed.set(bytes_per_second, now)) {
            before.changed.notify_waiters();
        }
        Some(before.clone())
    }

    /// So many bytes of live traffic come. Returns their place, for [`Limit::wait`].
    pub fn live(&self, bytes: u64) -> Place {
        self.with(|passed, now| passed.live(bytes, now))
    }

    /// How long what has this place must still wait, up to the next change.
    pub fn wait(&self, place: Place) -> Duration {
        self.with(|passed, now| passed.wait(place, now))
    }

    /// Ends when the limit has changed after this call.
    pub fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    /// So many bytes of copies have passed.
    pub fn copied(&self, bytes: u64) {
        self.with(|passed, now| passed.copied(bytes, now));
    }

    /// Whether something more may be copied.
    pub fn has_room(&self) -> bool {
        self.with(Bandwidth::has_room)
    }

    fn with<T>(&self, with: impl FnOnce(&mut Bandwidth, Instant) -> T) -> T {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        // Not before the lock is had: time must not go back.
        with(&mut passed, Instant::now())
    }
}
