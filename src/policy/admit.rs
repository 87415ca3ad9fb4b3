//! Admission of one deployment: which request gets a slot, which one is queued, and which one is rejected.
//!
//! A state machine without a clock. Each call says what happened and when, and returns what follows. These rules hold:
//! a replica never has more requests in flight than its limit; requests are served in the order of their arrival; no
//! request is queued while a slot is free that it may use; the least loaded replica is chosen, and among equals the one
//! that was used last, whose connections are warm.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::health::{Availability, ReplicaHealth};

mod avoid;
mod free_replicas;
mod views;
pub use avoid::{AvoidedReplicas, MAX_RETRIES};
use free_replicas::FreeReplicas;
pub use views::{Occupancy, QueueSummary};

/// Identifies a replica as long as it is known or has requests in flight. An id is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    index: u32,
    /// Counts the replicas that had this index one after the other. It is never zero, so that an optional id is not
    /// larger.
    generation: NonZeroU32,
}

impl ReplicaId {
    /// Returns a small and dense index for tables of replicas. It is reused when the replica is gone.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// A place in the queue. Lower tickets are served earlier: retries before other requests, and both in the order of
/// their arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    first_try: bool,
    /// Never reused: a request that was granted a slot may still cancel its old ticket.
    number: u64,
}

/// The limits of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionRules {
    /// The cap: requests that one replica may have in flight.
    pub replica_cap: NonZeroU32,
    /// The largest number of queued requests.
    pub queue_length: usize,
}

/// The result of asking for a slot.
#[derive(Debug, PartialEq, Eq)]
pub enum AdmissionOutcome {
    /// The request has a slot; [`Admission::release_slot`] ends it.
    Granted(ReplicaId),
    /// The request is queued until a grant carries it, or [`Admission::cancel_queued`].
    Queued(Ticket),
    /// The queue is full.
    Full,
}

/// A slot that is granted to a queued request.
pub type Grant<W> = (W, ReplicaId);

/// The admission state of one deployment. `W` is what the caller needs to wake a queued request.
#[derive(Debug)]
pub struct Admission<W> {
    rules: AdmissionRules,
    replicas: Vec<ReplicaState>,
    vacant: Vec<ReplicaId>,
    /// The replicas that have a free slot.
    free_replicas: FreeReplicas,
    queue: VecDeque<QueuedRequest<W>>,
    /// The number of tickets issued so far.
    last_ticket_number: u64,
    /// The slots of all replicas together, free or not: the sum of their limits.
    total_slots: u64,
    /// The mean time that recent requests held a slot, in seconds.
    mean_service_seconds: f64,
    /// The number of requests in that mean, at most [`MAX_SERVICE_TIME_SAMPLES`].
    sample_count: u32,
    /// The slots that are leased of a replica that is added.
    initial_lease: u32,
    /// Slots that other routers hold: for each replica, its cap minus the leased slots.
    elsewhere: u64,
    /// Until this time no request is queued only to wait for a lease: the last such request was refused, or the
    /// coordinator is unreachable.
    lease_requests_suppressed_until: Option<Instant>,
}

/// How long a request waits for a lease of a slot that may be idle at another router.
pub const LEASE_WAIT: Duration = Duration::from_millis(100);
/// The mean service time is that of about so many requests: enough to be steady, few enough to follow a change.
const MAX_SERVICE_TIME_SAMPLES: u32 = 32;

#[derive(Debug)]
struct ReplicaState {
    id: ReplicaId,
    busy: u32,
    /// Requests that the replica may have in flight now; 0 when it must not be used.
    limit: u32,
    /// The slots of the replica that this router may use, in a fleet.
    leased: u32,
    /// The slots of the replica that other routers may use.
    elsewhere: u32,
    health: ReplicaHealth,
    /// Indices of `Vacant` entries are kept for reuse.
    presence: ReplicaPresence,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum ReplicaPresence {
    Vacant,
    Present,
    Draining,
}

#[derive(Debug)]
struct QueuedRequest<W> {
    ticket: Ticket,
    avoid: AvoidedReplicas,
    came: Instant,
    deadline: Instant,
    waiter: W,
}

impl<W> Admission<W> {
    /// Creates the state of a deployment without replicas.
    pub fn new(rules: AdmissionRules) -> Self {
        Self {
            rules,
            replicas: Vec::new(),
            vacant: Vec::new(),
            free_replicas: FreeReplicas::default(),
            queue: VecDeque::new(),
            last_ticket_number: 0,
            total_slots: 0,
            mean_service_seconds: 0.0,
            sample_count: 0,
            initial_lease: u32::MAX,
            elsewhere: 0,
            lease_requests_suppressed_until: None,
        }
    }

    /// Creates the state of a deployment whose replicas are shared with other routers: no slot is used until it is
    /// leased.
    pub fn new_leased(rules: AdmissionRules) -> Self {
        Self { initial_lease: 0, ..Self::new(rules) }
    }

    /// Changes the limits. Requests above a lowered limit finish.
    pub fn set_rules(&mut self, rules: AdmissionRules) -> Vec<Grant<W>> {
        self.rules = rules;
        for index in 0..self.replicas.len() {
            self.reindex(self.replicas[index].id);
        }
        self.dispatch_queue()
    }

    /// Adds a ready replica.
    pub fn add_replica(&mut self) -> (ReplicaId, Vec<Grant<W>>) {
        let id = match self.vacant.pop() {
            Some(ReplicaId { index, generation: life }) => ReplicaId { index, generation: life.saturating_add(1) },
            None => ReplicaId { index: self.replicas.len() as u32, generation: NonZeroU32::MIN },
        };
        let replica = ReplicaState {
            id,
            busy: 0,
            limit: 0,
            leased: self.initial_lease,
            elsewhere: 0,
            health: ReplicaHealth::default(),
            presence: ReplicaPresence::Present,
        };
        match self.replicas.get_mut(id.index()) {
            Some(vacant) => *vacant = replica,
            None => self.replicas.push(replica),
        }
        self.reindex(id);
        (id, self.dispatch_queue())
    }

    /// Starts to drain a replica. Returns whether it is gone already because nothing was in flight on it. Otherwise the
    /// [`Admission::release_slot`] that ends the last request says so.
    pub fn remove_replica(&mut self, id: ReplicaId) -> bool {
        self.replicas[id.index()].presence = ReplicaPresence::Draining;
        self.reindex(id);
        self.vacate_if_idle(id)
    }

    /// Takes a draining replica back, with the requests that are in flight on it.
    pub fn restore_replica(&mut self, id: ReplicaId) -> Vec<Grant<W>> {
        self.replicas[id.index()].presence = ReplicaPresence::Present;
        self.reindex(id);
        self.dispatch_queue()
    }

    /// Sets how many requests a replica may have in flight from this router, if its cap is not less; [`u32::MAX`]
    /// stands for the whole cap. Requests above a lowered limit finish.
    pub fn set_leased(&mut self, id: ReplicaId, leased: u32) -> Vec<Grant<W>> {
        let replica = &mut self.replicas[id.index()];
        let is_more = leased > replica.leased;
        replica.leased = leased;
        self.reindex(id);
        if is_more { self.dispatch_queue() } else { Vec::new() }
    }

    /// Asks for a slot, but not on the replicas in `avoid`, which have just failed the request. Such a retry goes
    /// before queued requests, because it arrived before them. `waiter` is called only for a request that is queued;
    /// the caller must call [`Admission::cancel_queued`] at the deadline.
    pub fn request_slot(
        &mut self,
        avoid: AvoidedReplicas,
        now: Instant,
        deadline: Instant,
        waiter: impl FnOnce() -> W,
    ) -> AdmissionOutcome {
        // This overtakes no queued request: a slot that is free beside a queue is one that all queued requests avoid.
        if let Some(id) = self.try_take_slot(avoid) {
            return AdmissionOutcome::Granted(id);
        }
        let first_try = avoid.is_empty();
        if first_try
            && self.queue.len() >= self.rules.queue_length
            && !self.may_wait_for_lease(now, self.rules.queue_length)
        {
            return AdmissionOutcome::Full;
        }
        self.last_ticket_number += 1;
        let ticket = Ticket { first_try, number: self.last_ticket_number };
        let place =
            if first_try { self.queue.len() } else { self.queue.partition_point(|waiter| waiter.ticket < ticket) };
        self.queue.insert(place, QueuedRequest { ticket, avoid, came: now, deadline, waiter: waiter() });
        AdmissionOutcome::Queued(ticket)
    }

    /// Takes a slot that is free now, for a request that is not queued.
    pub fn try_take_slot(&mut self, avoid: AvoidedReplicas) -> Option<ReplicaId> {
        let id = self.free_replicas.least_loaded(avoid)?;
        self.occupy(id);
        Some(id)
    }

    /// Stops queueing requests for a lease for a while, because the last one was refused or nobody would answer.
    pub fn suppress_lease_requests(&mut self, now: Instant) {
        self.lease_requests_suppressed_until = Some(now + LEASE_WAIT);
    }

    /// Removes a request from the queue. Returns `None` if it was granted a slot before.
    pub fn cancel_queued(&mut self, ticket: Ticket) -> Option<W> {
        let place = self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.queue.remove(place).map(|waiter| waiter.waiter)
    }

    /// Removes all requests from the queue.
    pub fn dismiss_queue(&mut self) -> Vec<W> {
        self.queue.drain(..).map(|waiter| waiter.waiter).collect()
    }

    /// Frees a slot that was held for `held`. Returns the request that it is granted to, and whether the replica, which
    /// was draining, is gone.
    pub fn release_slot(&mut self, id: ReplicaId, held: Duration) -> (Option<Grant<W>>, bool) {
        let replica = &mut self.replicas[id.index()];
        replica.busy -= 1;
        // A request that its replica failed says nothing about how long a request takes.
        if !replica.health.is_suspect() {
            self.sample_count = MAX_SERVICE_TIME_SAMPLES.min(self.sample_count + 1);
            self.mean_service_seconds +=
                (held.as_secs_f64() - self.mean_service_seconds) / f64::from(self.sample_count);
        }
        self.reindex(id);
        (self.grant_to_first_eligible(id), self.vacate_if_idle(id))
    }

    /// Records that the replica answered.
    pub fn record_success(&mut self, id: ReplicaId) -> Vec<Grant<W>> {
        let health = &mut self.replicas[id.index()].health;
        let was_fit = health.availability() == Availability::Available;
        health.record_success();
        if was_fit {
            return Vec::new();
        }
        self.reindex(id);
        self.dispatch_queue()
    }

    /// Records that the replica could not be reached or closed the connection before an answer. Returns when to call
    /// [`Admission::start_due_probes`], if the replica is ejected now.
    pub fn record_failure(&mut self, id: ReplicaId, now: Instant) -> Option<Instant> {
        let until = self.replicas[id.index()].health.record_failure(now);
        self.reindex(id);
        until
    }

    /// Makes ejected replicas available for a probe once their backoff is over.
    pub fn start_due_probes(&mut self, now: Instant) -> Vec<Grant<W>> {
        for index in 0..self.replicas.len() {
            if self.replicas[index].health.start_due_probe(now) {
                self.reindex(self.replicas[index].id);
            }
        }
        self.dispatch_queue()
    }

    fn occupy(&mut self, id: ReplicaId) {
        self.replicas[id.index()].busy += 1;
        self.reindex(id);
    }

    /// Moves a replica to its load in `free_replicas`, or removes it there if it has no free slot.
    fn reindex(&mut self, id: ReplicaId) {
        let replica = &mut self.replicas[id.index()];
        let limit = match (replica.presence, replica.health.availability()) {
            (ReplicaPresence::Present, Availability::Available) => self.rules.replica_cap.get(),
            (ReplicaPresence::Present, Availability::Probe) => 1,
            _ => 0,
        };
        self.total_slots = self.total_slots + u64::from(limit) - u64::from(replica.limit);
        replica.limit = limit;
        let elsewhere = limit.saturating_sub(replica.leased);
        self.elsewhere = self.elsewhere + u64::from(elsewhere) - u64::from(replica.elsewhere);
        replica.elsewhere = elsewhere;
        let is_free = replica.busy < limit.min(replica.leased);
        self.free_replicas.set_load(id, is_free.then_some(replica.busy));
    }

    /// Grants a free slot of `id`, if there is one, to the first queued request that may use it.
    fn grant_to_first_eligible(&mut self, id: ReplicaId) -> Option<Grant<W>> {
        if !self.free_replicas.contains(id) {
            return None;
        }
        let place = self.queue.iter().position(|waiter| !waiter.avoid.contains(id))?;
        self.grant(place, id)
    }

    /// Grants free slots to queued requests in their order, until no slot is left that one of them may use.
    fn dispatch_queue(&mut self) -> Vec<Grant<W>> {
        let (mut grants, mut place) = (Vec::new(), 0);
        while let Some(avoid) = self.queue.get(place).map(|waiter| waiter.avoid) {
            match self.free_replicas.least_loaded(avoid) {
                Some(id) => grants.extend(self.grant(place, id)),
                None if avoid.is_empty() => break,
                // There may be free slots, but not for this request.
                None => place += 1,
            }
        }
        grants
    }

    fn grant(&mut self, place: usize, id: ReplicaId) -> Option<Grant<W>> {
        let waiter = self.queue.remove(place)?.waiter;
        self.occupy(id);
        Some((waiter, id))
    }

    fn vacate_if_idle(&mut self, id: ReplicaId) -> bool {
        let replica = &mut self.replicas[id.index()];
        let gone = replica.presence == ReplicaPresence::Draining && replica.busy == 0;
        if gone {
            replica.presence = ReplicaPresence::Vacant;
            self.vacant.push(id);
        }
        gone
    }
}

#[cfg(test)]
mod tests;
