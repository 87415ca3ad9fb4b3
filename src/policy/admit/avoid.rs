//! Replicas that a retry must avoid.

use super::ReplicaId;

/// The number of other replicas that a request is sent to if nothing of it can have reached the first one.
pub const MAX_RETRIES: usize = 2;

/// The replicas that could not be reached for a request. It is empty for nearly all requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AvoidedReplicas([Option<ReplicaId>; MAX_RETRIES]);

impl AvoidedReplicas {
    /// Adds a replica. Beyond [`MAX_RETRIES`] there is no further retry, and nothing is added.
    pub fn insert(&mut self, id: ReplicaId) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(id);
        }
    }

    /// Returns whether no replica has failed the request yet.
    pub fn is_empty(self) -> bool {
        self.0[0].is_none()
    }

    pub(super) fn ids(self) -> impl Iterator<Item = ReplicaId> {
        self.0.into_iter().flatten()
    }

    pub(super) fn contains(self, id: ReplicaId) -> bool {
        self.0.contains(&Some(id))
    }
}
