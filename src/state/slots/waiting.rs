//! Waiting for a slot.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Inner, NoSlot, Slot, Slots};
use crate::policy::admit::{ASK, Avoid, ReplicaId, Ticket};

/// What [`Slots::acquire`] gives.
#[derive(Debug)]
pub enum Acquired {
    /// Go ahead.
    Slot(Slot),
    /// Wait for it.
    Waiting(Waiting),
}

/// A place in the queue; given up when dropped.
#[derive(Debug)]
pub struct Waiting {
    pub(super) slots: Arc<Slots>,
    pub(super) ticket: Ticket,
    pub(super) deadline: Instant,
    pub(super) slot: oneshot::Receiver<Slot>,
}

impl Waiting {
    /// Waits for a slot, until the deadline.
    ///
    /// # Errors
    /// [`NoSlot`] when the deadline passes first, or no replica will come any more.
    pub async fn slot(mut self) -> Result<Slot, NoSlot> {
        match tokio::time::timeout_at(self.deadline.into(), &mut self.slot).await {
            Ok(Ok(slot)) => Ok(slot),
            // The sender lives in the queue until it is used, this waiter leaves or the queue is abandoned.
            Ok(Err(_)) | Err(_) => Err(self.slots.give_up(self.ticket, Instant::now())),
        }
    }
}

impl Inner {
    /// How long a request that comes now may wait, and whether it waits for the first replica: of those that there are,
    /// it is none, fit or not.
    pub(super) fn patience(&self, now: Instant, deadline: Instant, avoid: Avoid) -> (Instant, bool) {
        let admission = &self.admission;
        match self.cold_start_timeout {
            Some(timeout) if !admission.any_ready() && admission.occupancy().set_aside == 0 => (now + timeout, true),
            _ if !self.is_leased() => (deadline, false),
            // It waits for nobody to be served, only for an answer.
            _ if avoid.is_empty() && admission.waiting() >= admission.rules().queue_length => (now + ASK, false),
            _ => (deadline.max(now + ASK), false),
        }
    }
}

impl Slots {
    /// Where a replica is: `host:port`.
    pub fn address(&self, id: ReplicaId) -> Option<String> {
        let inner = self.lock();
        let entry = inner.replicas.get(id.index()).and_then(Option::as_ref)?;
        Some(entry.replica.address.clone())
    }

    /// No replica will come any more: without one that takes requests, those who wait are told so at once.
    pub fn abandon(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.pass(Instant::now());
        (inner.cold_start_timeout, inner.expected) = (None, None);
        let dismissed = if inner.admission.any_ready() { Vec::new() } else { inner.admission.dismiss() };
        dismissed.iter().for_each(|_| inner.tally.left());
        inner.settle(self);
        drop(inner);
        // Each hears that there is nobody any more who could give it a slot.
        drop(dismissed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.slots.lock();
        inner.pass(Instant::now());
        let left = inner.admission.leave(self.ticket);
        if left.is_some() {
            inner.tally.left();
            inner.settle(&self.slots);
        }
        drop(inner);
        drop(left);
        // A slot that was granted in the meantime is in the channel, and goes back when that is dropped.
    }
}
