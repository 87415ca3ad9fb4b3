//! What the control plane has to say of itself, for whoever asks at the admin listener.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::model::problem::Problem;

/// What can have problems while the router serves: it goes on with the last good version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Endpoint documents, and the keys they name.
    Endpoints,
    /// Certificates of listeners.
    Certificates,
    /// What the router's own tokens are signed with.
    Tokens,
    /// The Kubernetes cluster that endpoints are in.
    Cluster,
}

/// Shared by the control plane, which writes it, and the admin listener.
#[derive(Debug, Default)]
pub struct Status {
    problems: RwLock<BTreeMap<Part, Vec<Problem>>>,
    pending: RwLock<BTreeMap<(String, String), Pending>>,
}

/// Replicas of a deployment that are known but cannot take requests yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// How many.
    pub count: usize,
    /// What happened to one that is started again and again, in words.
    pub problem: Option<String>,
}

impl Status {
    /// What is wrong with files as they are now.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.read().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }

    /// Whether anything is wrong with one of these.
    pub fn has_problems(&self, parts: &[Part]) -> bool {
        let all = self.problems.read().unwrap_or_else(PoisonError::into_inner);
        parts.iter().any(|part| all.get(part).is_some_and(|problems| !problems.is_empty()))
    }

    /// Replaces what is wrong with one part, and says whether that is something else than before.
    pub fn set_problems(&self, part: Part, problems: Vec<Problem>) -> bool {
        let mut all = self.problems.write().unwrap_or_else(PoisonError::into_inner);
        let changed = all.get(&part).map_or(&[][..], Vec::as_slice) != problems;
        all.insert(part, problems);
        changed
    }

    /// Those of one deployment.
    pub fn pending(&self, endpoint: &str, deployment: &str) -> Pending {
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        pending.get(&(endpoint.to_owned(), deployment.to_owned())).cloned().unwrap_or_default()
    }

    /// Replaces those of one deployment.
    pub fn set_pending(&self, endpoint: &str, deployment: &str, pending: Pending) {
        let mut all = self.pending.write().unwrap_or_else(PoisonError::into_inner);
        let key = (endpoint.to_owned(), deployment.to_owned());
        if pending == Pending::default() {
            all.remove(&key);
        } else {
            all.insert(key, pending);
        }
    }
}
