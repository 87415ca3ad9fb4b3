//! What a share knows of one replica, and of slots that are on their way to the coordinator.

use crate::policy::fleet::member::Standing;
use crate::policy::fleet::window;

/// One replica.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Stock {
    /// Zero where the replica is not known, or is not to be used any more.
    pub(super) cap: u32,
    pub(super) is_unfit: bool,
    pub(super) held: u32,
    /// The most that may be held: what is more goes back as it becomes free.
    pub(super) keep: Option<u32>,
    /// In flight by the right of a lease.
    pub(super) busy: u32,
    /// In flight without.
    pub(super) borrowed: u32,
    /// Granted for who waits, and not used yet.
    pub(super) fresh: u32,
    /// The most that may be in flight without a lease, in fallback.
    pub(super) fair: u32,
    /// The least that was idle, in the window before and in this one.
    pub(super) low: [u32; 2],
}

impl Stock {
    pub(super) fn in_flight(&self) -> u32 {
        self.busy + self.borrowed
    }

    pub(super) fn idle(&self) -> u32 {
        self.held.saturating_sub(self.in_flight())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.cap > 0 && !self.is_unfit
    }

    pub(super) fn allowed(&self, standing: Standing) -> u32 {
        match standing {
            _ if !self.is_usable() => 0,
            Standing::Alone => self.cap,
            Standing::Leased => self.cap.min(self.held).min(self.keep.unwrap_or(u32::MAX)),
            Standing::Fallback => self.cap.min(self.fair),
            Standing::Nothing => 0,
        }
    }
}

/// Slots given up for others that are not known to have arrived: a coordinator that stands still must not take all there are
/// with it.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Yielded {
    /// Not said yet, or without a beat.
    pub(super) unsaid: u32,
    /// Said with or before a beat that is not answered yet, and which.
    unheard: (u32, u64),
}

impl Yielded {
    /// How many may be on their way, of a member that holds so many beside them.
    pub(super) fn room(&self, held: u32) -> u32 {
        window(0, held).saturating_sub(self.unsaid + self.unheard.0)
    }

    /// All that was given up is said with this beat.
    pub(super) fn said_with(&mut self, beat: u64) {
        if self.unsaid > 0 {
            self.unheard = (self.unheard.0 + std::mem::take(&mut self.unsaid), beat);
        }
    }

    /// The coordinator has answered this beat.
    pub(super) fn heard(&mut self, beat: u64) {
        if beat >= self.unheard.1 {
            self.unheard = (0, 0);
        }
    }
}
