//! Replicas that a repeated request is not given to again.

use super::ReplicaId;

/// Other replicas that a request is given to when nothing of it can have reached the first.
pub const RETRIES: usize = 2;

/// Replicas that could not be reached for a request. Empty for nearly all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Avoid([Option<ReplicaId>; RETRIES]);

impl Avoid {
    /// One more to avoid. Beyond [`RETRIES`] there is no further try, and nothing is added.
    pub fn add(&mut self, id: ReplicaId) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(id);
        }
    }

    /// Whether nothing has failed the request yet.
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
