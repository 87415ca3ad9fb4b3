//! The part of a member's state that all shares of deployments depend on.

use std::time::{Duration, Instant};

use super::{LeaseState, MembershipMode};
use crate::policy::fleet::FleetTiming;

/// The state of a router in its fleet. It has to be read again after every call of the member.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
pub struct MembershipState {
    /// Timing of the fleet.
    pub(super) timing: FleetTiming,
    pub(super) mode: MembershipMode,
    /// Leased slots may be used before this time.
    pub(super) lease_expires_at: Instant,
    /// When fallback begins. After a suspend it is later, so that the router can hear of its coordinator first.
    pub(super) fallback_from: Instant,
    /// Whether a coordinator has ever accepted the router. A router that was never a member has no share of the slots.
    pub(super) has_joined: bool,
    /// Whether the coordinator learns of slots that are returned.
    pub(super) is_session_open: bool,
    pub(super) is_draining: bool,
    /// The number of routers in the fleet, and the position of this one.
    pub(super) fleet_position: (u32, u32),
}

impl MembershipState {
    /// Creates the state of a router that has just started and holds nothing.
    pub fn new(timing: FleetTiming, mode: MembershipMode, now: Instant) -> Self {
        let (is_session_open, is_draining, has_joined) = (false, false, false);
        Self {
            timing,
            mode,
            lease_expires_at: now,
            fallback_from: now,
            has_joined,
            is_session_open,
            is_draining,
            fleet_position: (1, 0),
        }
    }

    /// Returns the right by which the router may use slots.
    pub fn lease_state(&self, now: Instant) -> LeaseState {
        match self.mode {
            MembershipMode::Alone => LeaseState::Alone,
            _ if now < self.lease_expires_at => LeaseState::Leased,
            MembershipMode::Available if !self.has_joined || self.is_draining => LeaseState::NoLease,
            MembershipMode::Available if now >= self.fallback_from => LeaseState::Fallback,
            _ => LeaseState::NoLease,
        }
    }

    /// Returns the number of routers in the fleet and the position of this one.
    pub fn fleet_position(&self) -> (u32, u32) {
        self.fleet_position
    }

    /// Returns when requests that are in flight under the lease have to be aborted, unless it is renewed before. `hold`
    /// is how long a request may last after the lease has expired.
    pub fn abort_at(&self, hold: Duration) -> Instant {
        self.lease_expires_at + hold
    }
}
