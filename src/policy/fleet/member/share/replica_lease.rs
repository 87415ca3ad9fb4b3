//! The lease of one replica, and slots that are being returned.

use crate::policy::fleet::flow_control_window;
use crate::policy::fleet::member::LeaseState;

/// The lease of one replica.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct ReplicaLease {
    /// The cap of the replica; zero if the replica is unknown or must not be used any more.
    pub(super) cap: u32,
    pub(super) is_unavailable: bool,
    pub(super) held: u32,
    /// The largest number of slots that may be held. Further slots are returned as they become free.
    pub(super) keep_limit: Option<u32>,
    /// Requests in flight under the lease.
    pub(super) leased_in_flight: u32,
    /// Requests in flight without a lease.
    pub(super) fallback_in_flight: u32,
    /// Granted slots that the requests they were granted for have not used yet. They do not count as idle.
    pub(super) unused_grants: u32,
    /// The largest number of requests that may be in flight in fallback.
    pub(super) fair_share: u32,
    /// The smallest number of idle slots in the previous and in the current window.
    pub(super) min_idle: [u32; 2],
}

impl ReplicaLease {
    pub(super) fn in_flight(&self) -> u32 {
        self.leased_in_flight + self.fallback_in_flight
    }

    pub(super) fn idle(&self) -> u32 {
        self.held.saturating_sub(self.in_flight())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.cap > 0 && !self.is_unavailable
    }

    pub(super) fn concurrency_limit(&self, lease_state: LeaseState) -> u32 {
        match lease_state {
            _ if !self.is_usable() => 0,
            LeaseState::Alone => self.cap,
            LeaseState::Leased => self.cap.min(self.held).min(self.keep_limit.unwrap_or(u32::MAX)),
            LeaseState::Fallback => self.cap.min(self.fair_share),
            LeaseState::NoLease => 0,
        }
    }
}

/// Slots that were yielded to other members and whose arrival is not acknowledged. Their number is limited, so that a
/// stalled coordinator cannot absorb all slots.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct UnacknowledgedYields {
    /// Yielded slots that were not sent yet, or were sent without a heartbeat.
    pub(super) unsent: u32,
    /// Yielded slots that were sent with or before an unanswered heartbeat, and the number of that heartbeat.
    sent: (u32, u64),
}

impl UnacknowledgedYields {
    /// Returns how many more slots a member that holds `held` others may yield.
    pub(super) fn remaining_window(&self, held: u32) -> u32 {
        flow_control_window(0, held).saturating_sub(self.unsent + self.sent.0)
    }

    /// Records that all yielded slots are sent with this heartbeat.
    pub(super) fn mark_sent_with(&mut self, heartbeat: u64) {
        if self.unsent > 0 {
            self.sent = (self.sent.0 + std::mem::take(&mut self.unsent), heartbeat);
        }
    }

    /// Records that the coordinator has answered this heartbeat.
    pub(super) fn acknowledge(&mut self, heartbeat: u64) {
        if heartbeat >= self.sent.1 {
            self.sent = (0, 0);
        }
    }
}
