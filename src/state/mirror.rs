//! Shared state of mirrored requests: the share that live traffic has earned, the results of comparing answers, and the
//! memory that copies may hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::bandwidth::BandwidthLimit;
use super::comparison_queue::ComparisonResults;
use super::routing_table::DeploymentEntry;
use crate::model::endpoint;
use crate::policy::mirror::MirrorShare;

/// Where the mirrored requests of an endpoint go, and how many there were.
#[derive(Debug)]
pub struct MirrorEntry {
    /// The deployment that gets the copies.
    pub shadow: Arc<DeploymentEntry>,
    /// The mirror settings of the document.
    pub settings: endpoint::Mirror,
    /// The earned share. It outlives changes of the document.
    pub share: Arc<Mutex<MirrorShare>>,
    /// Results of comparing answers, if the document asks for comparison.
    pub comparison_results: Option<Arc<ComparisonResults>>,
    /// The endpoint's bandwidth limit, in which copies are included; `None` if there has never been one.
    pub bandwidth_limit: Option<Arc<BandwidthLimit>>,
}

impl MirrorEntry {
    /// Returns whether a live request with a body of at least `length` bytes is mirrored. `hash` is the hash of its
    /// request id.
    pub fn should_mirror(&self, hash: u64, length: u64) -> bool {
        self.with_share(|share| share.should_copy(self.settings.percent, hash, length))
    }

    /// Adds `bytes` that a live body had beyond the length that was known when the request was decided on.
    pub fn earn_bytes(&self, bytes: u64) {
        self.with_share(|share| share.earn_bytes(self.settings.percent, bytes));
    }

    /// Subtracts `bytes` that a copied body had beyond the length that was known when the request was decided on.
    pub fn spend_bytes(&self, bytes: u64) {
        self.with_share(|share| share.spend_bytes(bytes));
    }

    fn with_share<T>(&self, with: impl FnOnce(&mut MirrorShare) -> T) -> T {
        with(&mut self.share.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A memory budget in bytes that several holders share, such as all copies that lag behind their live request.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    /// Reserves `bytes`, or nothing if less is left. Returns whether they were reserved.
    pub fn try_reserve(&self, bytes: usize) -> bool {
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// Returns `bytes` to the budget.
    pub fn release(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Memory that is reserved in a [`Budget`], and returned to it on drop.
#[derive(Debug)]
pub struct MemoryReservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl MemoryReservation {
    /// Creates an empty reservation.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Reserves `bytes` more, or nothing if less is left. Returns whether they were reserved.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let taken = self.budget.try_reserve(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Returns `bytes` of the reservation to the budget.
    pub fn shrink(&mut self, bytes: usize) {
        self.budget.release(bytes);
        self.bytes -= bytes;
    }

    /// Returns the size of the reservation in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves the whole reservation into a new one.
    #[must_use]
    pub fn take_all(&mut self) -> Self {
        Self { budget: self.budget.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is() {
        let budget = Budget::new(100);
        assert!(budget.try_reserve(60) && !budget.try_reserve(41) && budget.try_reserve(40));
        budget.release(60);
        assert!(budget.try_reserve(60));
    }
}
