//! The ledger of the coordinator: where every slot is, and where it goes next.
//!
//! The caller says when the router is the coordinator and until when ([`Ledger::begin_term`], [`Ledger::extend_term`])
//! and which replicas there are, and passes messages of members ([`Ledger::receive`]). Then [`Ledger::outgoing`]
//! returns the messages to send. Several messages may be received before one call of it, in which slots are moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{DeploymentId, FleetReplicaKey, FleetTiming, MemberId, Term};
use super::{ToCoordinator, ToMember};

mod load;
mod protocol;
mod slot_pool;
mod term;
use load::SignalBaseline;
use slot_pool::{MAX_HOLD, MemberIndex, SlotPool};
pub use term::PreviousHolders;
use term::{LedgerMember, Outbox, TermState};

/// The number of answers that are kept, to know from a heartbeat when its member was alive.
const MAX_REMEMBERED_ANSWERS: usize = 8;

/// The state of one coordinator.
#[derive(Debug, Clone, Hash)]
pub struct Ledger {
    timing: FleetTiming,
    term: Option<TermState>,
    /// The highest term that a member has mentioned.
    highest_term: Term,
    pools: BTreeMap<DeploymentId, SlotPool>,
    members: BTreeMap<MemberIndex, LedgerMember>,
    index_by_id: BTreeMap<MemberId, MemberIndex>,
    next_index: MemberIndex,
    refusals: Vec<(MemberId, ToMember)>,
    signal_baselines: BTreeMap<DeploymentId, SignalBaseline>,
}

/// The slots of a deployment by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SlotCounts {
    /// Slots that nobody holds.
    pub free: u32,
    /// Slots of members whose lease has not expired.
    pub leased: u32,
    /// Slots of members whose lease has expired, or that members of an earlier term may hold.
    pub quarantined: u32,
}

impl Ledger {
    /// Creates the state of a router that is not the coordinator.
    pub fn new(timing: FleetTiming) -> Self {
        Self {
            timing,
            term: None,
            highest_term: Term::default(),
            pools: BTreeMap::new(),
            members: BTreeMap::new(),
            index_by_id: BTreeMap::new(),
            next_index: 0,
            refusals: Vec::new(),
            signal_baselines: BTreeMap::new(),
        }
    }

    /// Begins a term, which lasts until `term_end` unless [`Ledger::extend_term`] extends it. `now` is after the term
    /// was won, because before that an earlier coordinator may have granted slots.
    pub fn begin_term(&mut self, term: Term, term_end: Instant, previous_holders: PreviousHolders, now: Instant) {
        let has_unaccounted = previous_holders != PreviousHolders::Known(BTreeSet::new());
        self.term = Some(TermState {
            number: term,
            began_at: now,
            ends_at: term_end,
            predecessor_heard_at: None,
            awaited_holders: previous_holders,
            last_holder_ended_at: None,
        });
        self.highest_term = self.highest_term.max(term);
        (self.members, self.index_by_id) = (BTreeMap::new(), BTreeMap::new());
        for pool in self.pools.values_mut() {
            pool.reset_for_term(has_unaccounted);
        }
    }

    /// Sets when this router has last heard an earlier coordinator, see
    /// [`FleetMember::coordinator_heard_at`](super::member::FleetMember::coordinator_heard_at): its confirmation has
    /// kept no earlier term alive for longer than [`FleetTiming::confirmation_validity`] after that. Without this call,
    /// the time counts from the beginning of the term.
    pub fn set_predecessor_heard_at(&mut self, at: Instant) {
        if let Some(term) = &mut self.term {
            term.predecessor_heard_at = Some(at.min(term.began_at));
        }
    }

    /// Extends the term to `term_end`, which may be in the past already. The term was not interrupted, or no other
    /// router has coordinated since.
    pub fn extend_term(&mut self, term_end: Instant) {
        if let Some(term) = &mut self.term {
            term.ends_at = term_end;
        }
    }

    /// Ends the term. Replicas are kept.
    pub fn resign(&mut self) {
        self.term = None;
        self.refusals.extend(
            self.members.values().filter(|member| member.is_session_open).map(|member| {
                (member.id.clone(), ToMember::Refused { term: self.highest_term, session: member.session })
            }),
        );
        (self.members, self.index_by_id) = (BTreeMap::new(), BTreeMap::new());
        for pool in self.pools.values_mut() {
            pool.reset_for_term(false);
        }
    }

    /// Returns the term, while it has not ended.
    pub fn active_term(&self, now: Instant) -> Option<Term> {
        self.term.as_ref().filter(|term| now < term.ends_at).map(|term| term.number)
    }

    /// Returns a higher term than the router's own, if a member has mentioned one: the caller must resign.
    pub fn superseding_term(&self) -> Option<Term> {
        self.term.as_ref().filter(|term| term.number < self.highest_term).map(|_| self.highest_term)
    }

    /// Sets how many requests a replica may have in flight; 0 if it must not be used any more. `hold` is how long a
    /// request on a replica of the deployment may last after its router has ended or is cut off.
    pub fn set_replica(&mut self, key: &FleetReplicaKey, cap: u32, hold: Duration, now: Instant) {
        let pool = self.pool_or_insert(&key.deployment, hold, now);
        pool.extend_hold(hold);
        pool.set_cap(key, cap);
    }

    /// Removes a replica, on which nothing runs any more.
    pub fn remove_replica(&mut self, key: &FleetReplicaKey) {
        if let Some(pool) = self.pools.get_mut(&key.deployment) {
            pool.remove_replica(key);
            if pool.is_empty() {
                self.pools.remove(&key.deployment);
                self.signal_baselines.remove(&key.deployment);
            }
        }
    }

    fn pool_or_insert(&mut self, deployment: &DeploymentId, hold: Duration, now: Instant) -> &mut SlotPool {
        let unaccounted_until = self.term.as_ref().and_then(|term| term.quarantine_end(hold, &self.timing));
        let has_unaccounted = unaccounted_until.is_some_and(|until| now < until);
        self.pools.entry(deployment.clone()).or_insert_with(|| SlotPool::new(has_unaccounted))
    }

    /// Removes a deployment. Requests in flight there count until they end.
    pub fn remove_deployment(&mut self, deployment: &DeploymentId) {
        self.signal_baselines.remove(deployment);
        self.pools.retain(|_, pool| !pool.is_unused());
    }

    /// Records that the connection with a member is broken.
    pub fn session_disconnected(&mut self, id: &MemberId, session: u64) {
        let index = self.index_by_id.get(id).copied();
        if let Some(index) = index.filter(|index| self.members[index].session == session) {
            self.close_session(index);
        }
    }

    /// Records that the process of a member has ended, whether it had a session or not.
    pub fn member_ended(&mut self, id: &MemberId, now: Instant) {
        if let Some(&index) = self.index_by_id.get(id) {
            self.close_session(index);
            if let Some(member) = self.members.get_mut(&index) {
                member.ended_at.get_or_insert(now);
            }
        }
        let Some(term) = &mut self.term else { return };
        if let PreviousHolders::Known(awaited) = &mut term.awaited_holders
            && awaited.remove(id)
        {
            term.last_holder_ended_at = Some(now);
        }
    }

    /// Returns the roster: the members that may hold slots. It has to be recorded where the next coordinator will find
    /// it, before [`Ledger::receive`] gets the first message of a router that is not among them.
    pub fn roster(&self, now: Instant) -> PreviousHolders {
        let hold = self.pools.values().map(SlotPool::hold_duration).max().unwrap_or(MAX_HOLD);
        let here = self.index_by_id.keys().cloned();
        match self
            .term
            .as_ref()
            .filter(|term| now < term.latest_quarantine_end(hold, &self.timing))
            .map(|term| &term.awaited_holders)
        {
            Some(PreviousHolders::Unknown) => PreviousHolders::Unknown,
            Some(PreviousHolders::Known(awaited)) => {
                PreviousHolders::Known(awaited.iter().cloned().chain(here).collect())
            }
            None => PreviousHolders::Known(here.collect()),
        }
    }

    /// Returns the latest time at which all of these members had seen no higher term, as far as their messages prove:
    /// they answered something that was sent at that time. Returns `None` if one of them has no session.
    ///
    /// A coordinator that cannot renew its term, and is sure that no other router than these could have won another,
    /// may extend it to this time plus [`FleetTiming::confirmation_validity`].
    pub fn confirmed_at<'a>(&self, members: impl IntoIterator<Item = &'a MemberId>, now: Instant) -> Option<Instant> {
        if self.superseding_term().is_some() {
            return None;
        }
        let confirmations = members.into_iter().map(|id| {
            let member = self.members.get(self.index_by_id.get(id)?).filter(|member| member.is_session_open)?;
            member.confirmed_at
        });
        confirmations.collect::<Option<Vec<_>>>().map(|lived| lived.into_iter().min().unwrap_or(now))
    }

    /// Receives a message of a member.
    pub fn receive(&mut self, from: &MemberId, message: ToCoordinator, now: Instant) {
        let (term, session) = match &message {
            ToCoordinator::Hello(hello) => (hello.term, hello.session),
            ToCoordinator::Report(report) => (report.term, report.session),
            ToCoordinator::Bye { term, session } => (*term, *session),
        };
        self.highest_term = self.highest_term.max(term);
        let Some(active_term) = self.active_term(now).filter(|own| *own == self.highest_term) else {
            return self.refuse_session(from, session);
        };
        match message {
            ToCoordinator::Hello(hello) => self.handle_hello(from, hello, now),
            ToCoordinator::Report(_) | ToCoordinator::Bye { .. } if term != active_term => {
                self.refuse_session(from, session)
            }
            message => {
                let index = self.index_by_id.get(from).copied();
                let open_session =
                    index.filter(|index| self.members[index].session == session && self.members[index].is_session_open);
                match (open_session, message) {
                    (Some(index), ToCoordinator::Report(report)) => self.handle_report(from, index, report, now),
                    (Some(index), ToCoordinator::Bye { .. }) => self.remove_member(index),
                    _ => self.refuse_session(from, session),
                }
            }
        }
    }

    /// Advances to `now`: slots whose quarantine is over become free.
    pub fn tick(&mut self, now: Instant) {
        let Some(term) = &self.term else { return };
        for pool in self.pools.values_mut().filter(|pool| pool.has_unaccounted) {
            if term.quarantine_end(pool.hold_duration(), &self.timing).is_none_or(|until| until <= now) {
                pool.clear_unaccounted();
            }
        }
        for index in self.members.keys().copied().collect::<Vec<_>>() {
            self.expire_member(index, now);
        }
    }

    /// Returns when [`Ledger::tick`] is due at the latest, if nothing else happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let term = self.term.as_ref()?;
        let doubtful = self.pools.values().filter(|pool| pool.has_unaccounted);
        let unaccounted =
            doubtful.map(|pool| term.quarantine_end(pool.hold_duration(), &self.timing).unwrap_or(term.began_at));
        let quarantines = self.members.iter().filter_map(|(&index, member)| {
            let pools = self.pools.values().filter(|pool| pool.held_by(index) > 0);
            pools.map(|pool| member.quarantine_end(pool.hold_duration(), &self.timing)).min()
        });
        unaccounted.chain(quarantines).min()
    }

    /// Moves slots to where requests are queued, and returns the messages to send.
    pub fn outgoing(&mut self, now: Instant) -> Vec<(MemberId, ToMember)> {
        let mut messages = std::mem::take(&mut self.refusals);
        let Some(term) = self.active_term(now) else { return messages };
        if self.superseding_term().is_some() {
            return messages;
        }
        self.move_slots(now);
        for member in self.members.values_mut().filter(|member| member.is_session_open) {
            let id = &member.id;
            messages.extend(
                member.outbox.take_messages(term, member.session, now).into_iter().map(|message| (id.clone(), message)),
            );
        }
        messages
    }

    /// Counts the slots of a deployment by state.
    pub fn slot_counts(&self, deployment: &DeploymentId, now: Instant) -> SlotCounts {
        let Some(pool) = self.pools.get(deployment) else { return SlotCounts::default() };
        let (free, out, unaccounted) = pool.slot_counts();
        let expired = self.members.iter().filter(|(_, member)| now >= member.lease_expires_at(&self.timing));
        let expired: u32 = expired.map(|(&index, _)| pool.held_by(index)).sum();
        SlotCounts { free, leased: out - expired, quarantined: unaccounted + expired }
    }

    /// Returns how many slots of a replica each member holds, including expired leases.
    pub fn holders(&self, key: &FleetReplicaKey) -> Vec<(MemberId, u32)> {
        let leases = self.pools.get(&key.deployment).map(|pool| pool.leases_of(key)).unwrap_or_default();
        leases.iter().filter_map(|(index, slots)| Some((self.members.get(index)?.id.clone(), *slots))).collect()
    }

    /// Checks that redundant state is consistent; for tests.
    ///
    /// # Errors
    ///
    /// What is inconsistent, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.pools.values().try_for_each(SlotPool::audit)
    }

    /// Returns earlier processes of the same name that may hold slots.
    fn previous_incarnations(&self, id: &MemberId) -> Vec<MemberId> {
        let awaited = match self.term.as_ref().map(|term| &term.awaited_holders) {
            Some(PreviousHolders::Known(awaited)) => Some(awaited.iter()),
            _ => None,
        };
        let known = self.index_by_id.keys().chain(awaited.into_iter().flatten());
        known.filter(|other| other.name == id.name && other.incarnation < id.incarnation).cloned().collect()
    }

    fn refuse_session(&mut self, to: &MemberId, session: u64) {
        self.refusals.push((to.clone(), ToMember::Refused { term: self.highest_term, session }));
    }

    fn move_slots(&mut self, now: Instant) {
        for (deployment, pool) in self.pools.iter_mut().filter(|(_, pool)| pool.is_dirty) {
            pool.is_dirty = false;
            let members = &mut self.members;
            pool.grant_free_slots(now, |index, key| {
                if let Some(member) = members.get_mut(&index) {
                    *member.granted_slots.entry(deployment.clone()).or_default() += 1;
                    *member.outbox.granted.entry(key.clone()).or_default() += 1;
                    member.outbox.keep_limits.remove(key);
                }
            });
            pool.announce_keep_limits(|index, key, keep| {
                if let Some(member) = members.get_mut(&index) {
                    member.outbox.keep_limits.insert(key.clone(), keep);
                }
            });
            pool.announce_demand(now, &self.timing, |index, told| {
                if let Some(member) = members.get_mut(&index) {
                    member.outbox.remote_demand.insert(deployment.clone(), told);
                }
            });
            pool.is_dirty = false;
        }
    }

    fn member_index_or_insert(&mut self, id: &MemberId, now: Instant) -> MemberIndex {
        if let Some(index) = self.index_by_id.get(id) {
            return *index;
        }
        let index = self.next_index;
        self.next_index += 1;
        self.index_by_id.insert(id.clone(), index);
        self.members.insert(index, LedgerMember::new(id.clone(), now));
        index
    }

    /// Closes the session of a member. Nothing is sent to it or received from it until it begins another one.
    fn close_session(&mut self, index: MemberIndex) {
        if let Some(member) = self.members.get_mut(&index) {
            (member.is_session_open, member.outbox) = (false, Outbox::default());
            self.pools.values_mut().for_each(|pool| pool.reset_session(index));
        }
    }

    fn remove_member(&mut self, index: MemberIndex) {
        self.close_session(index);
        for pool in self.pools.values_mut() {
            pool.release_all(index);
        }
        if let Some(member) = self.members.remove(&index) {
            self.index_by_id.remove(&member.id);
        }
    }

    /// Applies the consequences of a member's silence.
    fn expire_member(&mut self, index: MemberIndex, now: Instant) {
        let Some(member) = self.members.get(&index) else { return };
        let is_expired = now >= member.lease_expires_at(&self.timing);
        let mut is_released = false;
        for pool in self.pools.values_mut().filter(|pool| pool.held_by(index) > 0) {
            if now >= member.quarantine_end(pool.hold_duration(), &self.timing) {
                pool.release_all(index);
                is_released = true;
            }
        }
        // A member that may be gone gets no more slots; it can still renew its lease.
        if is_expired && member.is_session_open {
            self.pools.values_mut().for_each(|pool| pool.set_demand(index, None, 0, now));
        }
        if is_released {
            self.close_session(index);
        }
        let gone = |member: &LedgerMember| !member.is_session_open && (is_expired || member.ended_at.is_some());
        if self.members.get(&index).is_some_and(gone) && self.pools.values().all(|pool| pool.held_by(index) == 0) {
            self.remove_member(index);
        }
    }
}
