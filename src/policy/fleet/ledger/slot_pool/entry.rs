//! A replica and the demand of a member in a slot pool.

use std::hash::{Hash, Hasher};
use std::time::Instant;

use super::MemberIndex;
use crate::policy::fleet::QueueSnapshot;

/// The slots of one replica. Slots that are neither leased nor unaccounted for are free.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct PooledReplica {
    pub(super) cap: u32,
    /// The highest cap in this term; zero if the replica is known from claims only.
    pub(super) highest_cap: u32,
    /// Slots that a member of an earlier term may hold: they are in quarantine until it reports, or cannot report any
    /// more.
    pub(super) unaccounted: u32,
    /// Slots that members of earlier terms have claimed under their leases.
    pub(super) reclaimed: u32,
    pub(super) leases: Vec<(MemberIndex, u32)>,
    pub(super) unusable_for: Vec<MemberIndex>,
    /// The limits that members were told, or will be told, to reduce their slots to.
    pub(super) keep_limits: Vec<(MemberIndex, u32)>,
}

#[derive(Debug, Clone)]
pub(super) struct MemberDemand {
    pub(super) queue: QueueSnapshot,
    /// Granted slots that the last report did not know of.
    pub(super) unseen_grants: u32,
    /// Since when the member gets no more slots before it acknowledges these.
    pub(super) window_full_since: Option<Instant>,
}

/// A model checker tells states apart by whether the member gets more slots, not by since when it does not.
impl Hash for MemberDemand {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.queue, self.unseen_grants, self.window_full_since.is_some()).hash(state);
    }
}

impl PooledReplica {
    pub(super) fn used_slots(&self) -> u32 {
        self.unaccounted + self.leases.iter().map(|lease| lease.1).sum::<u32>()
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.cap.saturating_sub(self.used_slots())
    }

    pub(super) fn leased_to(&self, index: MemberIndex) -> u32 {
        self.leases.iter().find(|lease| lease.0 == index).map_or(0, |lease| lease.1)
    }

    pub(super) fn set_lease(&mut self, index: MemberIndex, slots: u32) {
        self.leases.retain(|lease| lease.0 != index);
        if slots > 0 {
            self.leases.push((index, slots));
        } else {
            self.keep_limits.retain(|keep| keep.0 != index);
        }
    }
}

impl MemberDemand {
    pub(super) fn unmet_slots(&self) -> u32 {
        self.queue.length.saturating_sub(self.unseen_grants)
    }

    pub(super) fn oldest_unmet(&self) -> Instant {
        self.queue.estimate_arrival_after(self.unseen_grants)
    }
}

/// The demand elsewhere that a member was told of.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
pub(in crate::policy::fleet::ledger) struct AnnouncedDemand {
    pub(in crate::policy::fleet::ledger) slots: u32,
    pub(in crate::policy::fleet::ledger) oldest: Instant,
}
