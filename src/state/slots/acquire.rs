//! Waiting for a slot.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{AcquireError, DeploymentSlots, Slot, SlotsState};
use crate::policy::admit::{AvoidedReplicas, LEASE_WAIT, ReplicaId, Ticket};

/// The result of [`DeploymentSlots::acquire`].
#[derive(Debug)]
pub enum AcquireOutcome {
    /// A slot was free.
    Granted(Slot),
    /// The request is queued.
    Queued(QueuedAcquire),
}

/// A place in the queue, given up on drop.
#[derive(Debug)]
pub struct QueuedAcquire {
    pub(super) slots: Arc<DeploymentSlots>,
    pub(super) ticket: Ticket,
    pub(super) deadline: Instant,
    pub(super) slot_rx: oneshot::Receiver<Slot>,
}

impl QueuedAcquire {
    /// Waits for a slot until the deadline.
    ///
    /// # Errors
    ///
    /// [`AcquireError`] when the deadline passes first, or when no replica is expected any more.
    pub async fn wait_for_slot(mut self) -> Result<Slot, AcquireError> {
        match tokio::time::timeout_at(self.deadline.into(), &mut self.slot_rx).await {
            Ok(Ok(slot)) => Ok(slot),
            // The sender lives in the queue until it is used, this request leaves, or the queue is abandoned.
            Ok(Err(_)) | Err(_) => Err(self.slots.time_out_queued(self.ticket, Instant::now())),
        }
    }
}

impl SlotsState {
    /// Returns the deadline of a request that is queued now, and whether it waits for the first replica, which it does
    /// if no replica exists, ready or ejected.
    pub(super) fn queue_deadline(&self, now: Instant, deadline: Instant, avoid: AvoidedReplicas) -> (Instant, bool) {
        let admission = &self.admission;
        match self.cold_start_timeout {
            Some(timeout) if !admission.has_ready_replica() && admission.occupancy().ejected == 0 => {
                (now + timeout, true)
            }
            _ if !self.has_lease() => (deadline, false),
            // The request does not wait for others to be served, only for an answer of the coordinator.
            _ if avoid.is_empty() && admission.queue_length() >= admission.rules().queue_length => {
                (now + LEASE_WAIT, false)
            }
            _ => (deadline.max(now + LEASE_WAIT), false),
        }
    }
}

impl DeploymentSlots {
    /// Returns the `host:port` of a replica.
    pub fn replica_address(&self, id: ReplicaId) -> Option<String> {
        let inner = self.lock();
        let entry = inner.replicas.get(id.index()).and_then(Option::as_ref)?;
        Some(entry.replica.address.clone())
    }

    /// Rejects queued requests at once if no replica is ready, because no replica is expected any more.
    pub fn abandon_cold_start(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.advance_to(Instant::now());
        (inner.cold_start_timeout, inner.first_replica_expected_at) = (None, None);
        let dismissed = if inner.admission.has_ready_replica() { Vec::new() } else { inner.admission.dismiss_queue() };
        dismissed.iter().for_each(|_| inner.tally.record_departure());
        inner.sync_leases(self);
        drop(inner);
        // Each queued request sees that its sender is gone, and that nothing can grant it a slot any more.
        drop(dismissed);
    }
}

impl Drop for QueuedAcquire {
    fn drop(&mut self) {
        let mut inner = self.slots.lock();
        inner.advance_to(Instant::now());
        let removed = inner.admission.cancel_queued(self.ticket);
        if removed.is_some() {
            inner.tally.record_departure();
            inner.sync_leases(&self.slots);
        }
        drop(inner);
        drop(removed);
        // A slot that was granted in the meantime is in the channel and is freed when the channel is dropped.
    }
}
