//! The state of a term, and of a member within it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::{
    CoordinatorUpdate, DeploymentId, FleetReplicaKey, FleetTiming, MemberId, RemoteDemand, ReplicaSlots, Term, ToMember,
};
use super::load::ReportedLoad;
use super::slot_pool::AnnouncedDemand;

/// The members that may hold slots of earlier terms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PreviousHolders {
    /// No other members than these: the [`Ledger::roster`](super::Ledger::roster) that the last coordinator has
    /// recorded. It is empty if there was no earlier term.
    Known(BTreeSet<MemberId>),
    /// The members are unknown.
    Unknown,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct TermState {
    pub(super) number: Term,
    /// When the term began here.
    pub(super) began_at: Instant,
    /// When this router had last heard an earlier coordinator.
    pub(super) predecessor_heard_at: Option<Instant>,
    /// From this time on nothing is granted or renewed.
    pub(super) ends_at: Instant,
    /// Members that may hold slots of earlier terms and have not reported yet.
    pub(super) awaited_holders: PreviousHolders,
    /// When the last of the members that are known to have ended had ended.
    pub(super) last_holder_ended_at: Option<Instant>,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct LedgerMember {
    pub(super) id: MemberId,
    pub(super) session: u64,
    /// Whether messages of the member count. If not, it has to begin a new session.
    pub(super) is_session_open: bool,
    /// When the lease was renewed.
    pub(super) renewed_at: Instant,
    /// When the process of the member had ended.
    pub(super) ended_at: Option<Instant>,
    /// Heartbeats that were answered recently, and when.
    pub(super) answered_heartbeats: VecDeque<(u64, Instant)>,
    /// The last heartbeat of the member was sent after this time.
    pub(super) confirmed_at: Option<Instant>,
    /// Slots granted in this session, by deployment.
    pub(super) granted_slots: BTreeMap<DeploymentId, u64>,
    pub(super) loads: BTreeMap<DeploymentId, ReportedLoad>,
    pub(super) outbox: Outbox,
}

#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Outbox {
    pub(super) welcome: Option<(u64, Vec<ReplicaSlots>)>,
    pub(super) heartbeat: Option<u64>,
    pub(super) granted: BTreeMap<FleetReplicaKey, u32>,
    pub(super) keep_limits: BTreeMap<FleetReplicaKey, u32>,
    pub(super) remote_demand: BTreeMap<DeploymentId, AnnouncedDemand>,
}

impl TermState {
    /// Returns when no member that has not reported can have anything in flight on a replica, whichever members there
    /// are.
    pub(super) fn latest_quarantine_end(&self, hold: Duration, timing: &FleetTiming) -> Instant {
        // The last coordinator renewed leases until this term began, or until the confirmations of its members were too
        // old, one of which is that of this router.
        let confirmed_until =
            self.predecessor_heard_at.unwrap_or(self.began_at) + timing.with_drift_margin(timing.confirmation_validity);
        self.began_at.max(confirmed_until)
            + timing.with_drift_margin(timing.lease_duration)
            + timing.with_drift_margin(hold)
    }

    /// As `latest_quarantine_end`, for the members that may hold slots. Returns `None` if there are none.
    pub(super) fn quarantine_end(&self, hold: Duration, timing: &FleetTiming) -> Option<Instant> {
        let latest_end = self.latest_quarantine_end(hold, timing);
        match &self.awaited_holders {
            PreviousHolders::Known(awaited) if awaited.is_empty() => {
                self.last_holder_ended_at.map(|ended| (ended + timing.with_drift_margin(hold)).min(latest_end))
            }
            _ => Some(latest_end),
        }
    }
}

impl LedgerMember {
    pub(super) fn new(id: MemberId, now: Instant) -> Self {
        Self {
            id,
            session: 0,
            is_session_open: false,
            renewed_at: now,
            ended_at: None,
            answered_heartbeats: VecDeque::new(),
            confirmed_at: None,
            granted_slots: BTreeMap::new(),
            loads: BTreeMap::new(),
            outbox: Outbox::default(),
        }
    }

    /// Returns when the member stops using its slots, if it is not heard again.
    pub(super) fn lease_expires_at(&self, timing: &FleetTiming) -> Instant {
        self.renewed_at + timing.with_drift_margin(timing.lease_duration)
    }

    /// Returns when nothing can be in flight on the member's slots any more, if it is not heard again.
    pub(super) fn quarantine_end(&self, hold: Duration, timing: &FleetTiming) -> Instant {
        let hold = timing.with_drift_margin(hold);
        let latest_end = self.lease_expires_at(timing) + hold;
        self.ended_at.map_or(latest_end, |ended| latest_end.min(ended + hold))
    }
}

impl Outbox {
    pub(super) fn take_messages(&mut self, term: Term, session: u64, now: Instant) -> Vec<ToMember> {
        let outbox = std::mem::take(self);
        let mut messages = Vec::new();
        if let Some((heartbeat, keep_limits)) = outbox.welcome {
            messages.push(ToMember::Welcome { term, session, heartbeat, keep_limits });
        }
        let age = |told: &AnnouncedDemand| now.saturating_duration_since(told.oldest);
        let remote_demand = outbox.remote_demand.iter().map(|(deployment, told)| RemoteDemand {
            deployment: deployment.clone(),
            wanted_slots: told.slots,
            oldest_age: age(told),
        });
        let update = CoordinatorUpdate {
            term,
            session,
            heartbeat: outbox.heartbeat,
            granted: outbox.granted.into_iter().collect(),
            keep_limits: outbox.keep_limits.into_iter().collect(),
            remote_demand: remote_demand.collect(),
        };
        let is_empty = update.granted.is_empty() && update.keep_limits.is_empty() && update.remote_demand.is_empty();
        if update.heartbeat.is_some() || !is_empty {
            messages.push(ToMember::Update(update));
        }
        messages
    }
}
