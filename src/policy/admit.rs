//! Admission of one deployment: who gets a slot, who waits, who is turned away.
//!
//! A state machine without a clock: each call says what happened and when; what follows from it comes back. The rules:
//! a replica never has more requests than its limit; whoever came first is served first; nobody waits while a slot is
//! free that it may use; the least loaded replica is taken, and of equals the one used last, whose connections are warm.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::health::{Fitness, Health};

mod avoid;
mod shelf;
mod views;
pub use avoid::{Avoid, RETRIES};
use shelf::Shelf;
pub use views::{Line, Occupancy};

/// A replica, for as long as it is known or has requests in flight. Never given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    index: u32,
    /// Counts the replicas that had this index one after the other. Never zero, so that an optional id is not larger.
    life: NonZeroU32,
}

impl ReplicaId {
    /// Small and dense: fit to index a table of replicas. Reused when the replica is gone.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// A place in the queue. Lower is earlier: repeated requests before others, and both in the order they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    first_try: bool,
    /// Never given twice: who was granted a slot may still hold an old ticket, and leave with it.
    number: u64,
}

/// What a deployment allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Requests one replica may have in flight.
    pub per_replica: NonZeroU32,
    /// Requests that may wait.
    pub queue_length: usize,
}

/// The answer to a request that wants a slot.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Go ahead; [`Admission::release`] when done.
    Granted(ReplicaId),
    /// Wait until a grant carries the waiter, or [`Admission::leave`].
    Queued(Ticket),
    /// The queue is full.
    Full,
}

/// A slot given to a waiter.
pub type Grant<W> = (W, ReplicaId);

/// The state of one deployment. `W` is whatever the caller needs to wake a waiter.
#[derive(Debug)]
pub struct Admission<W> {
    rules: Rules,
    replicas: Vec<Replica>,
    vacant: Vec<ReplicaId>,
    /// The replicas with a free slot.
    shelf: Shelf,
    queue: VecDeque<Waiter<W>>,
    /// Tickets given so far.
    tickets: u64,
    /// Slots of all replicas together, free or not: the sum of their limits.
    slots: u64,
    /// Mean time that the last requests held a slot, in seconds.
    service_time: f64,
    /// How many requests that is, [`MEASURED`] at most.
    measured: u32,
    /// What is leased of a replica that comes.
    at_first: u32,
    /// Slots that are other routers' now: of each replica what its limit is above what is leased.
    elsewhere: u64,
    /// Until when nobody asks for these: somebody has in vain, or nobody would answer.
    no_asking: Option<Instant>,
}

/// How long whoever knows of idle slots elsewhere may take to answer, at most.
pub const ASK: Duration = Duration::from_millis(100);
/// The mean service time is that of about so many requests: enough to be steady, few enough to follow a change.
const MEASURED: u32 = 32;

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    busy: u32,
    /// Requests it may have in flight now; 0 when it may not be used.
    limit: u32,
    /// How many of these may be this router's, where there are several.
    leased: u32,
    /// How many are others'.
    elsewhere: u32,
    health: Health,
    /// `Vacant` ids are kept for reuse.
    presence: Presence,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Presence {
    Vacant,
    Present,
    Draining,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: Ticket,
    avoid: Avoid,
    came: Instant,
    deadline: Instant,
    waiter: W,
}

impl<W> Admission<W> {
    /// A deployment without replicas.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            replicas: Vec::new(),
            vacant: Vec::new(),
            shelf: Shelf::default(),
            queue: VecDeque::new(),
            tickets: 0,
            slots: 0,
            service_time: 0.0,
            measured: 0,
            at_first: u32::MAX,
            elsewhere: 0,
            no_asking: None,
        }
    }

    /// The same, whose replicas are other routers' too: nothing of one is used until it is leased.
    pub fn shared(rules: Rules) -> Self {
        Self { at_first: 0, ..Self::new(rules) }
    }

    /// Changes the rules; what no longer fits finishes first.
    pub fn set_rules(&mut self, rules: Rules) -> Vec<Grant<W>> {
        self.rules = rules;
        for index in 0..self.replicas.len() {
            self.reshelve(self.replicas[index].id);
        }
        self.dispatch()
    }

    /// Adds a ready replica.
    pub fn add(&mut self) -> (ReplicaId, Vec<Grant<W>>) {
        let id = match self.vacant.pop() {
            Some(ReplicaId { index, life }) => ReplicaId { index, life: life.saturating_add(1) },
            None => ReplicaId { index: self.replicas.len() as u32, life: NonZeroU32::MIN },
        };
        let replica = Replica {
            id,
            busy: 0,
            limit: 0,
            leased: self.at_first,
            elsewhere: 0,
            health: Health::default(),
            presence: Presence::Present,
        };
        match self.replicas.get_mut(id.index()) {
            Some(vacant) => *vacant = replica,
            None => self.replicas.push(replica),
        }
        self.reshelve(id);
        (id, self.dispatch())
    }

    /// A replica gets nothing new. Returns whether it is gone already: nothing was in flight on it. Otherwise the
    /// [`Admission::release`] that ends the last of it says so.
    pub fn remove(&mut self, id: ReplicaId) -> bool {
        self.replicas[id.index()].presence = Presence::Draining;
        self.reshelve(id);
        self.vacate_if_idle(id)
    }

    /// A replica that was on its way out is wanted again, with what is still in flight on it.
    pub fn restore(&mut self, id: ReplicaId) -> Vec<Grant<W>> {
        self.replicas[id.index()].presence = Presence::Present;
        self.reshelve(id);
        self.dispatch()
    }

    /// A replica may have so many requests in flight from this router, if its limit is not less; [`u32::MAX`]: that is all
    /// there is to it. What is more ends first.
    pub fn set_leased(&mut self, id: ReplicaId, leased: u32) -> Vec<Grant<W>> {
        let replica = &mut self.replicas[id.index()];
        let is_more = leased > replica.leased;
        replica.leased = leased;
        self.reshelve(id);
        if is_more { self.dispatch() } else { Vec::new() }
    }

    /// A request wants a slot, but not on those in `avoid`, which have just failed it. Such a repeated request goes
    /// before those that wait: it came before them. `waiter` is only made for one that has to wait; it must
    /// [`Admission::leave`] at the deadline.
    pub fn arrive(&mut self, avoid: Avoid, now: Instant, deadline: Instant, waiter: impl FnOnce() -> W) -> Arrival {
        // This overtakes nobody: a slot that is free beside a queue is one that all who wait avoid.
        if let Some(id) = self.take(avoid) {
            return Arrival::Granted(id);
        }
        let first_try = avoid.is_empty();
        if first_try && self.queue.len() >= self.rules.queue_length && !self.may_ask(now, self.rules.queue_length) {
            return Arrival::Full;
        }
        self.tickets += 1;
        let ticket = Ticket { first_try, number: self.tickets };
        let place =
            if first_try { self.queue.len() } else { self.queue.partition_point(|waiter| waiter.ticket < ticket) };
        self.queue.insert(place, Waiter { ticket, avoid, came: now, deadline, waiter: waiter() });
        Arrival::Queued(ticket)
    }

    /// A slot that is free now, for somebody who does not wait.
    pub fn take(&mut self, avoid: Avoid) -> Option<ReplicaId> {
        let id = self.shelf.least_loaded(avoid)?;
        self.occupy(id);
        Some(id)
    }

    /// Nobody asks for slots that are other routers' for a while: somebody has in vain, or nobody would answer.
    pub fn ask_later(&mut self, now: Instant) {
        self.no_asking = Some(now + ASK);
    }

    /// Takes a waiter out of the queue. `None`: it was granted a slot before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let place = self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.queue.remove(place).map(|waiter| waiter.waiter)
    }

    /// Takes all waiters out of the queue.
    pub fn dismiss(&mut self) -> Vec<W> {
        self.queue.drain(..).map(|waiter| waiter.waiter).collect()
    }

    /// A slot comes back after `held`. Returns who gets it, and whether the replica, which was on its way out, is gone.
    pub fn release(&mut self, id: ReplicaId, held: Duration) -> (Option<Grant<W>>, bool) {
        let replica = &mut self.replicas[id.index()];
        replica.busy -= 1;
        // A request that its replica failed says nothing of how long one takes.
        if !replica.health.is_suspect() {
            self.measured = MEASURED.min(self.measured + 1);
            self.service_time += (held.as_secs_f64() - self.service_time) / f64::from(self.measured);
        }
        self.reshelve(id);
        (self.serve_next(id), self.vacate_if_idle(id))
    }

    /// The replica has answered.
    pub fn succeeded(&mut self, id: ReplicaId) -> Vec<Grant<W>> {
        let health = &mut self.replicas[id.index()].health;
        let was_fit = health.fitness() == Fitness::Fit;
        health.succeeded();
        if was_fit {
            return Vec::new();
        }
        self.reshelve(id);
        self.dispatch()
    }

    /// The replica could not be reached, or broke off before an answer. Returns when to [`Admission::tick`], if that
    /// has set it aside.
    pub fn failed(&mut self, id: ReplicaId, now: Instant) -> Option<Instant> {
        let until = self.replicas[id.index()].health.failed(now);
        self.reshelve(id);
        until
    }

    /// Lets replicas whose back-off is over be probed.
    pub fn tick(&mut self, now: Instant) -> Vec<Grant<W>> {
        for index in 0..self.replicas.len() {
            if self.replicas[index].health.tick(now) {
                self.reshelve(self.replicas[index].id);
            }
        }
        self.dispatch()
    }

    fn occupy(&mut self, id: ReplicaId) {
        self.replicas[id.index()].busy += 1;
        self.reshelve(id);
    }

    /// Puts a replica where its load says, or takes it off the shelf when it has no free slot.
    fn reshelve(&mut self, id: ReplicaId) {
        let replica = &mut self.replicas[id.index()];
        let limit = match (replica.presence, replica.health.fitness()) {
            (Presence::Present, Fitness::Fit) => self.rules.per_replica.get(),
            (Presence::Present, Fitness::Probe) => 1,
            _ => 0,
        };
        self.slots = self.slots + u64::from(limit) - u64::from(replica.limit);
        replica.limit = limit;
        let elsewhere = limit.saturating_sub(replica.leased);
        self.elsewhere = self.elsewhere + u64::from(elsewhere) - u64::from(replica.elsewhere);
        replica.elsewhere = elsewhere;
        let is_free = replica.busy < limit.min(replica.leased);
        self.shelf.place(id, is_free.then_some(replica.busy));
    }

    /// Gives a slot of `id`, if it has a free one, to the first who may use it.
    fn serve_next(&mut self, id: ReplicaId) -> Option<Grant<W>> {
        if !self.shelf.holds(id) {
            return None;
        }
        let place = self.queue.iter().position(|waiter| !waiter.avoid.contains(id))?;
        self.grant(place, id)
    }

    /// Gives free slots to those who wait, first come first served, until no slot is left that one of them may use.
    fn dispatch(&mut self) -> Vec<Grant<W>> {
        let (mut grants, mut place) = (Vec::new(), 0);
        while let Some(avoid) = self.queue.get(place).map(|waiter| waiter.avoid) {
            match self.shelf.least_loaded(avoid) {
                Some(id) => grants.extend(self.grant(place, id)),
                None if avoid.is_empty() => break,
                // There may be free slots, but not for this one.
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
        let gone = replica.presence == Presence::Draining && replica.busy == 0;
        if gone {
            replica.presence = Presence::Vacant;
            self.vacant.push(id);
        }
        gone
    }
}

#[cfg(test)]
mod tests;
