//! Admission of one deployment: who gets a slot, who waits, who is turned away.
//!
//! A state machine without a clock: each call says what happened and when; what follows from it comes back. The rules:
//! a replica never has more requests than its limit; whoever came first is served first; nobody waits while a slot is
//! free that it may use; the least loaded replica is taken, and of equals the one used last, whose connections are warm.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::health::{Fitness, Health};

mod shelf;
use shelf::Shelf;

/// A replica, for as long as it is known or has requests in flight. Reused afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u32);

impl ReplicaId {
    /// Small and dense: fit to index a table of replicas.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Replicas that could not be reached for a request: it is not given to them again. Empty for nearly all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Avoid([Option<ReplicaId>; RETRIES]);

/// Other replicas that a request is given to when nothing of it can have reached the first.
pub const RETRIES: usize = 2;

impl Avoid {
    /// One more to avoid. Beyond [`RETRIES`] there is no further try, and nothing is added.
    pub fn add(&mut self, id: ReplicaId) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(id);
        }
    }

    fn is_empty(self) -> bool {
        self.0[0].is_none()
    }

    fn contains(self, id: ReplicaId) -> bool {
        self.0.contains(&Some(id))
    }
}

/// A place in the queue. Lower is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(i64);

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

/// How many replicas are in which state, how many slots are taken, who waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Replicas that may be used, probes included.
    pub ready: usize,
    /// Replicas set aside after failures.
    pub set_aside: usize,
    /// Replicas on their way out, with requests still in flight.
    pub draining: usize,
    /// Slots taken on replicas that are not draining.
    pub busy: usize,
    /// Slots free now.
    pub free: usize,
    /// Slots taken on draining replicas.
    pub busy_draining: usize,
    /// Requests that wait.
    pub waiting: usize,
}

/// The state of one deployment. `W` is whatever the caller needs to wake a waiter.
#[derive(Debug)]
pub struct Admission<W> {
    rules: Rules,
    replicas: Vec<Replica>,
    vacant: Vec<ReplicaId>,
    /// The replicas with a free slot.
    shelf: Shelf,
    queue: VecDeque<Waiter<W>>,
    /// The earliest and the latest ticket given so far.
    first_ticket: i64,
    last_ticket: i64,
    /// Slots of all replicas together, free or not: the sum of their limits.
    slots: u64,
    /// Smoothed time a request holds a slot, in seconds.
    service_time: f64,
}

#[derive(Debug, Default)]
struct Replica {
    busy: u32,
    /// Requests it may have in flight now; 0 when it may not be used.
    limit: u32,
    health: Health,
    /// `Vacant` ids are kept for reuse.
    presence: Presence,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Presence {
    #[default]
    Vacant,
    Present,
    Draining,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: Ticket,
    avoid: Avoid,
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
            first_ticket: 0,
            last_ticket: 0,
            slots: 0,
            service_time: 0.0,
        }
    }

    /// Changes the rules; what no longer fits finishes first.
    pub fn set_rules(&mut self, rules: Rules) -> Vec<Grant<W>> {
        self.rules = rules;
        for index in 0..self.replicas.len() {
            self.reshelve(ReplicaId(index as u32));
        }
        self.dispatch()
    }

    /// Adds a ready replica.
    pub fn add(&mut self) -> (ReplicaId, Vec<Grant<W>>) {
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.replicas.push(Replica::default());
            ReplicaId(self.replicas.len() as u32 - 1)
        });
        self.replicas[id.index()] = Replica { presence: Presence::Present, ..Replica::default() };
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

    /// A request wants a slot, but not on those in `avoid`, which have just failed it. Such a repeated request goes
    /// before those that wait: it came before them. `waiter` is only made for one that has to wait.
    pub fn arrive(&mut self, avoid: Avoid, waiter: impl FnOnce() -> W) -> Arrival {
        // Nobody may overtake: a free slot beside a queue is one that those who wait avoid.
        if self.queue.is_empty() || !avoid.is_empty() {
            if let Some(id) = self.shelf.least_loaded(avoid) {
                self.occupy(id);
                return Arrival::Granted(id);
            }
        } else if let Some(id) = self.shelf.least_loaded(Avoid::default())
            && self.queue.iter().all(|waiter| waiter.avoid.contains(id))
        {
            self.occupy(id);
            return Arrival::Granted(id);
        }
        if avoid.is_empty() && self.queue.len() >= self.rules.queue_length {
            return Arrival::Full;
        }
        // A ticket is never given twice: who was granted a slot may still hold an old one, and leave with it.
        let ticket = if avoid.is_empty() {
            self.last_ticket += 1;
            Ticket(self.last_ticket)
        } else {
            self.first_ticket -= 1;
            Ticket(self.first_ticket)
        };
        let waiter = Waiter { ticket, avoid, waiter: waiter() };
        if !avoid.is_empty() {
            self.queue.push_front(waiter)
        } else {
            self.queue.push_back(waiter)
        }
        Arrival::Queued(ticket)
    }

    /// Takes a waiter out of the queue. `None`: it was granted a slot before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let place = self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.queue.remove(place).map(|waiter| waiter.waiter)
    }

    /// A slot comes back after `held`. Returns who gets it, and whether the replica, which was on its way out, is gone.
    pub fn release(&mut self, id: ReplicaId, held: Duration) -> (Option<Grant<W>>, bool) {
        self.replicas[id.index()].busy -= 1;
        let held = held.as_secs_f64();
        self.service_time += (held - self.service_time) / if self.service_time == 0.0 { 1.0 } else { 16.0 };
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
                self.reshelve(ReplicaId(index as u32));
            }
        }
        self.dispatch()
    }

    /// Whether any replica may be used, now or when it is free.
    pub fn any_ready(&self) -> bool {
        self.slots > 0
    }

    /// Whether a replica that is not in `avoid` may be used, now or when it is free.
    pub fn any_ready_but(&self, avoid: Avoid) -> bool {
        let avoided = avoid.0.iter().flatten().map(|id| u64::from(self.replicas[id.index()].limit));
        self.slots > avoided.sum()
    }

    /// How long a client that is turned away now should wait: until those who wait have been served, or a replica
    /// that is set aside may be probed. At least 1 s.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let wait = if self.slots > 0 {
            // A mean service time is only known once something was served, and never beyond reason.
            Duration::from_secs_f64(
                ((self.queue.len() + 1) as f64 * self.service_time / self.slots as f64).clamp(0.0, 3600.0),
            )
        } else {
            let probes = self.replicas.iter().filter_map(|replica| match replica.health.fitness() {
                Fitness::Aside(until) => Some(until.saturating_duration_since(now)),
                _ => None,
            });
            probes.min().unwrap_or_default()
        };
        wait.max(Duration::from_secs(1))
    }

    /// A count of everything.
    pub fn occupancy(&self) -> Occupancy {
        let mut sum = Occupancy { waiting: self.queue.len(), ..Occupancy::default() };
        for replica in &self.replicas {
            let busy = replica.busy as usize;
            match (replica.presence, replica.limit > 0) {
                (Presence::Vacant, _) => {}
                (Presence::Draining, _) => {
                    (sum.draining, sum.busy_draining) = (sum.draining + 1, sum.busy_draining + busy)
                }
                (Presence::Present, ready) => {
                    sum.busy += busy;
                    sum.free += replica.limit.saturating_sub(replica.busy) as usize;
                    if ready { sum.ready += 1 } else { sum.set_aside += 1 }
                }
            }
        }
        sum
    }

    /// The replicas there are, those on their way out included, in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> {
        let known = self.replicas.iter().enumerate().filter(|(_, replica)| replica.presence != Presence::Vacant);
        known.map(|(index, _)| ReplicaId(index as u32))
    }

    /// Requests in flight on a replica, and how much it may be used; `None` when it is on its way out.
    pub fn replica(&self, id: ReplicaId) -> (u32, Option<Fitness>) {
        let replica = &self.replicas[id.index()];
        (replica.busy, (replica.presence == Presence::Present).then(|| replica.health.fitness()))
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
        self.shelf.place(id, (replica.busy < limit).then_some(replica.busy));
    }

    /// Gives a slot of `id`, if it has a free one, to the first who may use it.
    fn serve_next(&mut self, id: ReplicaId) -> Option<Grant<W>> {
        if !self.shelf.holds(id) {
            return None;
        }
        let place = self.queue.iter().position(|waiter| !waiter.avoid.contains(id))?;
        let waiter = self.queue.remove(place)?;
        self.occupy(id);
        Some((waiter.waiter, id))
    }

    /// Gives free slots to those who wait, until one of both runs out.
    fn dispatch(&mut self) -> Vec<Grant<W>> {
        let mut grants = Vec::new();
        while let Some(first) = self.queue.front() {
            let Some(id) = self.shelf.least_loaded(first.avoid).or_else(|| self.shelf.least_loaded(Avoid::default()))
            else {
                break;
            };
            match self.serve_next(id) {
                Some(grant) => grants.push(grant),
                None => break,
            }
        }
        grants
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
