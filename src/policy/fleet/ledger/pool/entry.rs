//! A replica, and the demand of a member, in a pool.

use std::hash::{Hash, Hasher};
use std::time::Instant;

use super::Seat;
use crate::policy::fleet::Queue;

/// One replica. What is neither leased nor unaccounted for is free.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Entry {
    pub(super) cap: u32,
    /// The highest cap in this term; zero where it is known from claims only.
    pub(super) most: u32,
    /// Slots that a member of an earlier term may hold: in quarantine until it reports, or cannot any more.
    pub(super) unaccounted: u32,
    /// Slots that members of earlier terms have claimed by right.
    pub(super) accounted: u32,
    pub(super) leases: Vec<(Seat, u32)>,
    pub(super) barred: Vec<Seat>,
    /// What members were told to reduce to, or are to be told.
    pub(super) keep: Vec<(Seat, u32)>,
}

#[derive(Debug, Clone)]
pub(super) struct Demand {
    pub(super) queue: Queue,
    /// Slots granted that the report did not know of.
    pub(super) outstanding: u32,
    /// Since when it gets no more before it has said that it knows of these.
    pub(super) held_up: Option<Instant>,
}

/// A model checker tells states apart by whether it gets more, not by since when it does not.
impl Hash for Demand {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.queue, self.outstanding, self.held_up.is_some()).hash(state);
    }
}

impl Entry {
    pub(super) fn used(&self) -> u32 {
        self.unaccounted + self.leases.iter().map(|lease| lease.1).sum::<u32>()
    }

    pub(super) fn free(&self) -> u32 {
        self.cap.saturating_sub(self.used())
    }

    pub(super) fn leased_to(&self, seat: Seat) -> u32 {
        self.leases.iter().find(|lease| lease.0 == seat).map_or(0, |lease| lease.1)
    }

    pub(super) fn set_lease(&mut self, seat: Seat, slots: u32) {
        self.leases.retain(|lease| lease.0 != seat);
        if slots > 0 {
            self.leases.push((seat, slots));
        } else {
            self.keep.retain(|keep| keep.0 != seat);
        }
    }
}

impl Demand {
    pub(super) fn unmet(&self) -> u32 {
        self.queue.length.saturating_sub(self.outstanding)
    }

    pub(super) fn oldest(&self) -> Instant {
        self.queue.first_after(self.outstanding)
    }
}

/// What a member was told of those who wait elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
pub(in crate::policy::fleet::ledger) struct Told {
    pub(in crate::policy::fleet::ledger) slots: u32,
    pub(in crate::policy::fleet::ledger) oldest: Instant,
}
