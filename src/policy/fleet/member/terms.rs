//! What a request has to know of its router as a member: the part of it that all shares go by.

use std::time::{Duration, Instant};

use super::{Kind, Standing};
use crate::policy::fleet::Settings;

/// How things are between a router and its group. To be had anew after whatever has happened to the member.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
pub struct Terms {
    /// Of the group.
    pub(super) settings: Settings,
    pub(super) kind: Kind,
    /// Leased slots may be spent before this.
    pub(super) valid_until: Instant,
    /// A router that was asleep waits whether it hears of the coordinator.
    pub(super) fallback_from: Instant,
    /// Whether a coordinator has ever let it in: who was never in the group has no share of its slots.
    pub(super) has_joined: bool,
    /// Whether the coordinator hears of slots that are returned.
    pub(super) is_open: bool,
    pub(super) is_retiring: bool,
    /// How many routers there are, and which of them this is.
    pub(super) group: (u32, u32),
}

impl Terms {
    /// Of a router that has just started: it holds nothing.
    pub fn new(settings: Settings, kind: Kind, now: Instant) -> Self {
        let (is_open, is_retiring, has_joined) = (false, false, false);
        Self { settings, kind, valid_until: now, fallback_from: now, has_joined, is_open, is_retiring, group: (1, 0) }
    }

    /// What the router goes by.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.kind {
            Kind::Alone => Standing::Alone,
            _ if now < self.valid_until => Standing::Leased,
            Kind::Available if !self.has_joined || self.is_retiring => Standing::Nothing,
            Kind::Available if now >= self.fallback_from => Standing::Fallback,
            _ => Standing::Nothing,
        }
    }

    /// How many routers there are, and which of them this is.
    pub fn group(&self) -> (u32, u32) {
        self.group
    }

    /// When requests that are still in flight by the right of a lease have to be aborted, unless it is renewed before;
    /// `hold` is how long one may last after the lease has expired.
    pub fn abort_at(&self, hold: Duration) -> Instant {
        self.valid_until + hold
    }
}
