//! What can be told of a deployment's slots and queue.

use std::time::{Duration, Instant};

use super::{ASK, Admission, Avoid, Presence, ReplicaId, Rules};
use crate::policy::health::Fitness;

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

/// Requests that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Not zero.
    pub length: usize,
    /// When the first of them came.
    pub oldest: Instant,
    /// When the last of them came.
    pub newest: Instant,
}

impl<W> Admission<W> {
    /// What the deployment allows.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Who waits, if anybody does.
    pub fn line(&self) -> Option<Line> {
        let (first, last) = (self.queue.front()?, self.queue.back()?);
        Some(Line { length: self.queue.len(), oldest: first.came, newest: last.came })
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether any slot is free now.
    pub fn any_free(&mut self) -> bool {
        self.shelf.least_loaded(Avoid::default()).is_some()
    }

    /// Whether one more may wait for a slot that is another router's now and perhaps idle, where `beside` wait for others to
    /// be served. It may for [`ASK`]: whoever has waited for so long without one knows that there is none.
    pub fn may_ask(&self, now: Instant, beside: usize) -> bool {
        self.elsewhere > 0
            && self.no_asking.is_none_or(|until| now >= until)
            && self.queue.front().is_none_or(|first| now < first.came + ASK)
            && ((self.queue.len() as u64) < beside as u64 + self.elsewhere)
    }

    /// Whether any replica may be used, now or when it is free.
    pub fn any_ready(&self) -> bool {
        self.slots > 0
    }

    /// Whether a replica that is not in `avoid` may be used, now or when it is free.
    pub fn any_ready_but(&self, avoid: Avoid) -> bool {
        let avoided = avoid.ids().map(|id| (id, &self.replicas[id.index()])).filter(|(id, replica)| replica.id == *id);
        self.slots > avoided.map(|(_, replica)| u64::from(replica.limit)).sum()
    }

    /// How long a client that is turned away now should wait: until those who wait have been served or have to leave,
    /// and one more slot has come back; or until a replica that is set aside may be probed. At least 1 s. `elsewhere`: how
    /// many wait for the same slots at other routers, and for how long they do at most.
    pub fn retry_after(&self, now: Instant, elsewhere: (usize, Duration)) -> Duration {
        let wait = if self.slots > 0 {
            let next_slot = self.service_time / self.slots as f64;
            let all_served = (self.queue.len() + elsewhere.0) as f64 * next_slot;
            let own_left = self.queue.back().map(|last| last.deadline.saturating_duration_since(now));
            // Those that only ask leave before others.
            let is_empty = self.queue.is_empty() && elsewhere.0 == 0;
            let all_left = own_left.unwrap_or_default().max(if is_empty { Duration::ZERO } else { elsewhere.1 });
            Duration::from_secs_f64(all_served.min(all_left.as_secs_f64()) + next_slot)
        } else {
            let probes =
                self.replicas.iter().filter_map(|replica| match (replica.presence, replica.health.fitness()) {
                    (Presence::Present, Fitness::Aside(until)) => Some(until.saturating_duration_since(now)),
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
                    sum.free += replica.limit.min(replica.leased).saturating_sub(replica.busy) as usize;
                    if ready { sum.ready += 1 } else { sum.set_aside += 1 }
                }
            }
        }
        sum
    }

    /// The replicas there are, those on their way out included, in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> {
        self.replicas.iter().filter(|replica| replica.presence != Presence::Vacant).map(|replica| replica.id)
    }

    /// How many of a replica's slots may be this router's; see [`Admission::set_leased`].
    pub fn leased(&self, id: ReplicaId) -> u32 {
        self.replicas[id.index()].leased
    }

    /// Requests in flight on a replica, and how much it may be used; `None` when it is on its way out.
    pub fn replica(&self, id: ReplicaId) -> (u32, Option<Fitness>) {
        let replica = &self.replicas[id.index()];
        (replica.busy, (replica.presence == Presence::Present).then(|| replica.health.fitness()))
    }
}
