//! What the control plane has to say of itself, for whoever asks at the admin listener.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;

use crate::model::problem::Problem;

/// Shared by the control plane, which writes it, and the admin listener.
#[derive(Debug, Default)]
pub struct Status {
    problems: ArcSwap<Vec<Problem>>,
    pending: RwLock<BTreeMap<(String, String), usize>>,
}

impl Status {
    /// What is wrong with the endpoint documents as they are now.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.load_full()
    }

    /// Replaces what is wrong.
    pub fn set_problems(&self, problems: Vec<Problem>) {
        self.problems.store(Arc::new(problems));
    }

    /// Replicas of a deployment that are known but cannot take requests yet.
    pub fn pending(&self, endpoint: &str, deployment: &str) -> usize {
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        pending.get(&(endpoint.to_owned(), deployment.to_owned())).copied().unwrap_or_default()
    }

    /// Replaces the counts of such replicas, by endpoint and deployment.
    pub fn set_pending(&self, pending: BTreeMap<(String, String), usize>) {
        *self.pending.write().unwrap_or_else(PoisonError::into_inner) = pending;
    }
}
