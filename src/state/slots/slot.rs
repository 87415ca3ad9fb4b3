//! A slot while a request has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Replica, Slots};
use crate::policy::admit::ReplicaId;
use crate::policy::fleet::member::{Right, Standing};

/// The right to have one request in flight on one replica; ends when dropped.
#[derive(Debug)]
pub struct Slot {
    pub(super) slots: Arc<Slots>,
    pub(super) id: ReplicaId,
    pub(super) replica: Arc<Replica>,
    pub(super) since: Instant,
    /// By what right, where there are several routers.
    pub(super) right: Option<Right>,
    /// Those of the replica when it began.
    pub(super) revocations: u32,
}

impl Slot {
    /// Where the request goes.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The replica's place in the deployment, to avoid it the next time.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Whether nothing may be sent any more by the right that the slot was taken by: the process may have stood still since,
    /// and may have other leases by now.
    pub fn is_expired(&self) -> bool {
        if self.is_revoked() {
            return true;
        }
        let (Some(right), Some(membership)) = (self.right, &self.slots.membership) else { return false };
        let standing = membership.terms().standing(Instant::now());
        standing != if right == Right::Leased { Standing::Leased } else { Standing::Fallback }
    }

    /// Whether the slot was another router's meanwhile, or is about to be: what is in flight must not be any more.
    pub fn is_revoked(&self) -> bool {
        self.right == Some(Right::Leased) && self.replica.revocations.load(Ordering::Relaxed) != self.revocations
    }

    /// `deadline`, or when the slot is about to be another router's, if that is earlier: unless the lease that it was taken by
    /// is renewed before; `hold` is how long a request may last after that.
    pub fn until(&self, deadline: Instant, hold: Duration) -> Instant {
        match &self.slots.membership {
            // The lease was valid when it began.
            Some(membership) if self.right == Some(Right::Leased) && deadline > self.since + hold => {
                deadline.min(membership.terms().abort_at(hold))
            }
            _ => deadline,
        }
    }

    /// The replica has answered, or at least accepted.
    pub fn succeeded(&self) {
        if !self.replica.suspect.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.slots.lock();
        inner.pass(Instant::now());
        self.replica.suspect.store(false, Ordering::Relaxed);
        let grants = inner.admission.succeeded(self.id);
        let mut handed = inner.slots(&self.slots, grants, Instant::now());
        handed.extend(inner.refit(&self.slots, self.id));
        self.slots.unlock(inner, handed);
    }

    /// The replica could not be reached, or broke off before an answer.
    pub fn failed(&self, now: Instant) {
        let mut inner = self.slots.lock();
        let until = inner.admission.failed(self.id, now);
        // Under the lock: a success at the same time must not make a replica unsuspected that is then set aside.
        self.replica.suspect.store(true, Ordering::Relaxed);
        let handed = inner.refit(&self.slots, self.id);
        self.slots.unlock(inner, handed);
        if let Some(until) = until {
            let back_off = until.saturating_duration_since(now);
            tracing::warn!(replica = self.replica.address, ?back_off, "replica set aside: its connections fail");
            let slots = self.slots.clone();
            // Rare, and short-lived: one sleep each time a replica is set aside.
            tokio::spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                slots.tick(until.max(Instant::now()));
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = Instant::now();
        let held = now.saturating_duration_since(self.since);
        let mut inner = self.slots.lock();
        inner.pass(now);
        inner.tally.served(held);
        inner.finished(self.id, self.right);
        let (grant, gone) = inner.admission.release(self.id, held);
        let entry = if gone { inner.replicas[self.id.index()].take() } else { None };
        let granted = grant.and_then(|(waiter, id)| Some((waiter, inner.slot(&self.slots, id, now)?)));
        self.slots.unlock(inner, granted);
        drop(entry);
    }
}
