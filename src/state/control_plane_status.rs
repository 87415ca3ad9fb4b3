//! Problems and pending replicas that the control plane reports on the admin listener.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::model::problem::Problem;

/// Parts of the control plane that can have problems while the router serves with the last known good version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    /// Endpoint documents and the keys that they name.
    Endpoints,
    /// Certificates of the listeners.
    Certificates,
    /// Signing keys of the router's own tokens.
    Tokens,
    /// The Kubernetes cluster that endpoints come from.
    Cluster,
}

/// Status of the control plane, written by its tasks and read by the admin listener.
#[derive(Debug, Default)]
pub struct ControlPlaneStatus {
    problems: RwLock<BTreeMap<Subsystem, Vec<Problem>>>,
    pending_replicas: RwLock<BTreeMap<(String, String), PendingReplicas>>,
}

/// Replicas of a deployment that exist but cannot take requests yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PendingReplicas {
    /// The number of pending replicas.
    pub count: usize,
    /// Why a replica is restarted again and again, in words for the operator.
    pub problem: Option<String>,
}

impl ControlPlaneStatus {
    /// Returns everything that is wrong at present.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.read().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }

    /// Returns whether one of these subsystems has a problem.
    pub fn has_problems(&self, parts: &[Subsystem]) -> bool {
        let all = self.problems.read().unwrap_or_else(PoisonError::into_inner);
        parts.iter().any(|part| all.get(part).is_some_and(|problems| !problems.is_empty()))
    }

    /// Replaces the problems of one subsystem. Returns whether they differ from the problems before.
    pub fn set_problems(&self, part: Subsystem, problems: Vec<Problem>) -> bool {
        let mut all = self.problems.write().unwrap_or_else(PoisonError::into_inner);
        let changed = all.get(&part).map_or(&[][..], Vec::as_slice) != problems;
        all.insert(part, problems);
        changed
    }

    /// Returns the pending replicas of a deployment.
    pub fn pending_replicas(&self, endpoint: &str, deployment: &str) -> PendingReplicas {
        let pending = self.pending_replicas.read().unwrap_or_else(PoisonError::into_inner);
        pending.get(&(endpoint.to_owned(), deployment.to_owned())).cloned().unwrap_or_default()
    }

    /// Replaces the pending replicas of a deployment.
    pub fn set_pending_replicas(&self, endpoint: &str, deployment: &str, pending: PendingReplicas) {
        let mut all = self.pending_replicas.write().unwrap_or_else(PoisonError::into_inner);
        let key = (endpoint.to_owned(), deployment.to_owned());
        if pending == PendingReplicas::default() {
            all.remove(&key);
        } else {
            all.insert(key, pending);
        }
    }
}
