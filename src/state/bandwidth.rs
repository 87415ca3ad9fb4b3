//! The limit of an endpoint's bandwidth, and what has passed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::policy::bandwidth::Bandwidth;

/// So many bytes a second, of requests and answers together.
#[derive(Debug)]
pub struct Limit {
    bytes_per_second: u64,
    /// Outlives changes of the document.
    passed: Arc<Mutex<Bandwidth>>,
}

impl Limit {
    /// The limit of a document; what has passed so far counts.
    pub fn kept(before: Option<&Self>, bytes_per_second: Option<u64>) -> Option<Arc<Self>> {
        let passed = before.map(|before| before.passed.clone()).unwrap_or_default();
        bytes_per_second.map(|bytes_per_second| Arc::new(Self { bytes_per_second, passed }))
    }

    /// So many bytes of live traffic come. Returns how long they must wait.
    pub fn live(&self, bytes: u64) -> Duration {
        self.with(|passed| passed.live(self.bytes_per_second, bytes, Instant::now()))
    }

    /// So many bytes of copies have passed.
    pub fn copied(&self, bytes: u64) {
        self.with(|passed| passed.copied(self.bytes_per_second, bytes, Instant::now()));
    }

    /// Whether something more may be copied.
    pub fn has_room(&self) -> bool {
        self.with(|passed| passed.has_room(Instant::now()))
    }

    fn with<T>(&self, with: impl FnOnce(&mut Bandwidth) -> T) -> T {
        with(&mut self.passed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
