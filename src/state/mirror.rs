//! What copies of live requests have in common: the share that traffic has earned, what comparing their answers has shown,
//! and the memory that copies may hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::bandwidth::Limit;
use super::comparisons::Compared;
use super::table::Deployment;
use crate::model::endpoint;
use crate::policy::mirror::Share;

/// Where an endpoint's copies go, and how many there have been.
#[derive(Debug)]
pub struct Mirror {
    /// Who gets them.
    pub to: Arc<Deployment>,
    /// As in the document.
    pub settings: endpoint::Mirror,
    /// Outlives changes of the document.
    pub share: Arc<Mutex<Share>>,
    /// What comparing answers has shown, if they are compared.
    pub compared: Option<Arc<Compared>>,
    /// How many bytes a second the endpoint has, copies included; once it has had a limit.
    pub limit: Option<Arc<Limit>>,
}

impl Mirror {
    /// Whether a live request, with a body of at least `length` bytes, is copied.
    pub fn decide(&self, hash: u64, length: u64) -> bool {
        self.with_share(|share| share.decide(self.settings.percent, hash, length))
    }

    /// A live body had so many more bytes than was known when it was decided on.
    pub fn earn(&self, bytes: u64) {
        self.with_share(|share| share.earn(self.settings.percent, bytes));
    }

    /// A copy had so many more bytes than was known when it was decided on.
    pub fn spend(&self, bytes: u64) {
        self.with_share(|share| share.spend(bytes));
    }

    fn with_share<T>(&self, with: impl FnOnce(&mut Share) -> T) -> T {
        with(&mut self.share.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Memory that all copies together may hold while they lag behind, in bytes.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// So much.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    /// Takes so much, or nothing where there is less.
    pub fn take(&self, bytes: usize) -> bool {
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Memory taken from a budget, given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Takes so much more, or nothing where there is less.
    pub fn take(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }

    /// Gives so much of it back.
    pub fn give(&mut self, bytes: usize) {
        self.budget.give(bytes);
        self.bytes -= bytes;
    }

    /// So much is held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, for somebody else to hold.
    #[must_use]
    pub fn hand_over(&mut self) -> Self {
        Self { budget: self.budget.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is() {
        let budget = Budget::new(100);
        assert!(budget.take(60) && !budget.take(41) && budget.take(40));
        budget.give(60);
        assert!(budget.take(60));
    }
}
