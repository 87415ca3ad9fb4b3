//! A request on its way.

use inference_router::policy::admit::{AvoidedReplicas, Ticket};

use crate::Time;

/// A request, from its client's first byte to the end of what its replica does for it.
#[derive(Debug)]
pub(crate) struct Request {
    /// How long a replica works on it, and how long until it answers.
    pub(crate) service_time: Time,
    pub(crate) time_to_head: Time,
    /// Replicas that failed it.
    pub(crate) avoid: Vec<usize>,
    pub(crate) avoid_ids: AvoidedReplicas,
    /// Goes up whenever what was planned for it no longer counts.
    pub(crate) generation: u32,
    pub(crate) stage: Stage,
    /// What its client saw in the end.
    pub(crate) outcome: Option<Outcome>,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not in anybody's hands: before, between and after the others.
    Idle,
    Queued(Ticket),
    /// Granted a slot, and does not know yet. Still has the ticket.
    Granted(Ticket, HeldSlot),
    Connecting(HeldSlot),
    /// Sent; no answer yet.
    Sent(HeldSlot),
    /// The answer is coming.
    Answered(HeldSlot),
    /// Sent, answered or not, and nobody wants it any more.
    Abandoned(HeldSlot),
}

/// A slot that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldSlot {
    pub(crate) replica: usize,
    pub(crate) since: Time,
}

/// How a request ends for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Served,
    Rejected,
    TimedOut,
    Aborted,
    Failed,
}

impl Stage {
    /// The slot of a request that a replica may be working on.
    pub(crate) fn slot_in_use(self) -> Option<HeldSlot> {
        match self {
            Self::Sent(slot) | Self::Answered(slot) | Self::Abandoned(slot) => Some(slot),
            _ => None,
        }
    }
}
