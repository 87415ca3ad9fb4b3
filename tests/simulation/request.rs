//! A request on its way.

use inference_router::policy::admit::{Avoid, Ticket};

use crate::Time;

/// A request, from its client's first byte to the end of what its replica does for it.
#[derive(Debug)]
pub(crate) struct Request {
    /// How long a replica works on it, and how long until it answers.
    pub(crate) service: Time,
    pub(crate) head: Time,
    /// Replicas that failed it.
    pub(crate) avoid: Vec<usize>,
    pub(crate) avoid_ids: Avoid,
    /// Goes up whenever what was planned for it no longer counts.
    pub(crate) step: u32,
    pub(crate) stage: Stage,
    /// What its client saw in the end.
    pub(crate) outcome: Option<Outcome>,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not in anybody's hands: before, between and after the others.
    Elsewhere,
    Waiting(Ticket),
    /// Granted a slot, and does not know yet. Still has the ticket.
    Granted(Ticket, Slot),
    Connecting(Slot),
    /// Sent; no answer yet.
    Sent(Slot),
    /// The answer is coming.
    Answered(Slot),
    /// Sent, answered or not, and nobody wants it any more.
    SeenOut(Slot),
}

/// A slot that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) replica: usize,
    pub(crate) since: Time,
}

/// How a request ends for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Served,
    TurnedAway,
    TimedOut,
    Aborted,
    Failed,
}

impl Stage {
    /// The slot of a request that a replica may be working on.
    pub(crate) fn sent(self) -> Option<Slot> {
        match self {
            Self::Sent(slot) | Self::Answered(slot) | Self::SeenOut(slot) => Some(slot),
            _ => None,
        }
    }
}
