//! The guard of a slot while a request uses it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{DeploymentSlots, Replica};
use crate::policy::admit::ReplicaId;
use crate::policy::fleet::member::{LeaseState, SlotBasis};

/// The right to have one request in flight on one replica. Dropping it frees the slot.
#[derive(Debug)]
pub struct Slot {
    pub(super) slots: Arc<DeploymentSlots>,
    pub(super) replica_id: ReplicaId,
    pub(super) replica: Arc<Replica>,
    pub(super) acquired_at: Instant,
    /// The right by which the slot was granted, in a fleet.
    pub(super) grant_basis: Option<SlotBasis>,
    /// The `revocations` of the replica when the request began.
    pub(super) revocations_at_start: u32,
}

impl Slot {
    /// Returns the replica that the request is sent to.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Returns the replica's id in the deployment, so that a retry can avoid it.
    pub fn replica_id(&self) -> ReplicaId {
        self.replica_id
    }

    /// Returns whether nothing may be sent any more under the right by which the slot was granted. The process may have
    /// been suspended since, and may have new leases by now.
    pub fn is_expired(&self) -> bool {
        if self.is_revoked() {
            return true;
        }
        let (Some(right), Some(membership)) = (self.grant_basis, &self.slots.membership) else { return false };
        let standing = membership.state().lease_state(Instant::now());
        standing != if right == SlotBasis::Leased { LeaseState::Leased } else { LeaseState::Fallback }
    }

    /// Returns whether the slot has been, or is about to be, granted to another router, so that the request must be
    /// cut.
    pub fn is_revoked(&self) -> bool {
        self.grant_basis == Some(SlotBasis::Leased)
            && self.replica.revocations.load(Ordering::Relaxed) != self.revocations_at_start
    }

    /// Returns `deadline`, or the earlier time at which the slot may be granted to another router unless the lease is
    /// renewed before. `hold` is how long a request may last after its lease ends.
    pub fn effective_deadline(&self, deadline: Instant, hold: Duration) -> Instant {
        match &self.slots.membership {
            // The lease was valid when the request began.
            Some(membership) if self.grant_basis == Some(SlotBasis::Leased) && deadline > self.acquired_at + hold => {
                deadline.min(membership.state().abort_at(hold))
            }
            _ => deadline,
        }
    }

    /// Records that the replica answered, or at least accepted the connection.
    pub fn record_success(&self) {
        if !self.replica.is_suspect.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.slots.lock();
        inner.advance_to(Instant::now());
        self.replica.is_suspect.store(false, Ordering::Relaxed);
        let grants = inner.admission.record_success(self.replica_id);
        let mut handed = inner.issue_slots(&self.slots, grants, Instant::now());
        handed.extend(inner.sync_replica(&self.slots, self.replica_id));
        self.slots.unlock_and_deliver(inner, handed);
    }

    /// Records that the replica could not be reached, or closed the connection before an answer.
    pub fn record_failure(&self, now: Instant) {
        let mut inner = self.slots.lock();
        let ejected_until = inner.admission.record_failure(self.replica_id, now);
        // Set under the lock, so that a concurrent success does not mark a replica as healthy that is then ejected.
        self.replica.is_suspect.store(true, Ordering::Relaxed);
        let handed = inner.sync_replica(&self.slots, self.replica_id);
        self.slots.unlock_and_deliver(inner, handed);
        if let Some(until) = ejected_until {
            let backoff = until.saturating_duration_since(now);
            tracing::warn!(
                replica = self.replica.address,
                ?backoff,
                "ejected replica after repeated connection failures"
            );
            let slots = self.slots.clone();
            // One short-lived task for each ejection, which is rare.
            tokio::spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                slots.start_due_probes(until.max(Instant::now()));
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = Instant::now();
        let held = now.saturating_duration_since(self.acquired_at);
        let mut inner = self.slots.lock();
        inner.advance_to(now);
        inner.tally.record_completion(held);
        inner.end_leased_request(self.replica_id, self.grant_basis);
        let (grant, gone) = inner.admission.release_slot(self.replica_id, held);
        let entry = if gone { inner.replicas[self.replica_id.index()].take() } else { None };
        let granted = grant.and_then(|(waiter, id)| Some((waiter, inner.issue_slot(&self.slots, id, now)?)));
        self.slots.unlock_and_deliver(inner, granted);
        drop(entry);
    }
}
