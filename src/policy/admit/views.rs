//! Read access to the slots and the queue of a deployment.

use std::time::{Duration, Instant};

use super::{Admission, AdmissionRules, AvoidedReplicas, LEASE_WAIT, ReplicaId, ReplicaPresence};
use crate::policy::health::Availability;

/// Counts of replicas by state, of slots by state, and of queued requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Replicas that may be used, by probes too.
    pub ready: usize,
    /// Replicas that are ejected after failures.
    pub ejected: usize,
    /// Draining replicas with requests in flight.
    pub draining: usize,
    /// Busy slots of replicas that are not draining.
    pub busy: usize,
    /// Free slots.
    pub free: usize,
    /// Busy slots of draining replicas.
    pub busy_draining: usize,
    /// Queued requests.
    pub waiting: usize,
}

/// The length and the ages of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSummary {
    /// The number of queued requests; not zero.
    pub length: usize,
    /// When the oldest of them arrived.
    pub oldest: Instant,
    /// When the newest of them arrived.
    pub newest: Instant,
}

impl<W> Admission<W> {
    /// Returns the limits of the deployment.
    pub fn rules(&self) -> AdmissionRules {
        self.rules
    }

    /// Returns a summary of the queue; `None` if it is empty.
    pub fn queue_summary(&self) -> Option<QueueSummary> {
        let (first, last) = (self.queue.front()?, self.queue.back()?);
        Some(QueueSummary { length: self.queue.len(), oldest: first.came, newest: last.came })
    }

    /// Returns the number of queued requests.
    pub fn queue_length(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether any slot is free now.
    pub fn has_free_slot(&mut self) -> bool {
        self.free_replicas.least_loaded(AvoidedReplicas::default()).is_some()
    }

    /// Returns whether one more request may be queued for a slot that is another router's now and perhaps idle, where
    /// `beside` requests are queued to be served. It may for [`LEASE_WAIT`]: a request that has
    /// waited for so long knows that there is none.
    pub fn may_wait_for_lease(&self, now: Instant, beside: usize) -> bool {
        self.elsewhere > 0
            && self.lease_requests_suppressed_until.is_none_or(|until| now >= until)
            && self.queue.front().is_none_or(|first| now < first.came + LEASE_WAIT)
            && ((self.queue.len() as u64) < beside as u64 + self.elsewhere)
    }

    /// Returns whether any replica may be used, now or when a slot is free.
    pub fn has_ready_replica(&self) -> bool {
        self.total_slots > 0
    }

    /// Returns whether a replica that is not in `avoid` may be used, now or when a slot is free.
    pub fn has_ready_replica_except(&self, avoid: AvoidedReplicas) -> bool {
        let avoided = avoid.ids().map(|id| (id, &self.replicas[id.index()])).filter(|(id, replica)| replica.id == *id);
        self.total_slots > avoided.map(|(_, replica)| u64::from(replica.limit)).sum()
    }

    /// Returns how long a client that is rejected now should wait: until the queued requests have been served or have
    /// timed out and one more slot is free, or until an ejected replica may be probed; at least 1 s. `elsewhere` says
    /// how many requests are queued for the same slots at other routers, and for how long they wait at most.
    pub fn retry_after(&self, now: Instant, elsewhere: (usize, Duration)) -> Duration {
        let wait = if self.total_slots > 0 {
            let next_slot = self.mean_service_seconds / self.total_slots as f64;
            let all_served = (self.queue.len() + elsewhere.0) as f64 * next_slot;
            let own_left = self.queue.back().map(|last| last.deadline.saturating_duration_since(now));
            // Requests that wait for a lease only leave before others.
            let is_empty = self.queue.is_empty() && elsewhere.0 == 0;
            let all_left = own_left.unwrap_or_default().max(if is_empty { Duration::ZERO } else { elsewhere.1 });
            Duration::from_secs_f64(all_served.min(all_left.as_secs_f64()) + next_slot)
        } else {
            let probes =
                self.replicas.iter().filter_map(|replica| match (replica.presence, replica.health.availability()) {
                    (ReplicaPresence::Present, Availability::Ejected(until)) => {
                        Some(until.saturating_duration_since(now))
                    }
                    _ => None,
                });
            probes.min().unwrap_or_default()
        };
        wait.max(Duration::from_secs(1))
    }

    /// Counts everything.
    pub fn occupancy(&self) -> Occupancy {
        let mut sum = Occupancy { waiting: self.queue.len(), ..Occupancy::default() };
        for replica in &self.replicas {
            let busy = replica.busy as usize;
            match (replica.presence, replica.limit > 0) {
                (ReplicaPresence::Vacant, _) => {}
                (ReplicaPresence::Draining, _) => {
                    (sum.draining, sum.busy_draining) = (sum.draining + 1, sum.busy_draining + busy)
                }
                (ReplicaPresence::Present, ready) => {
                    sum.busy += busy;
                    sum.free += replica.limit.min(replica.leased).saturating_sub(replica.busy) as usize;
                    if ready { sum.ready += 1 } else { sum.ejected += 1 }
                }
            }
        }
        sum
    }

    /// Returns the ids of all replicas, draining ones included, in ascending order.
    pub fn replica_ids(&self) -> impl Iterator<Item = ReplicaId> {
        self.replicas.iter().filter(|replica| replica.presence != ReplicaPresence::Vacant).map(|replica| replica.id)
    }

    /// Returns how many slots of a replica this router may use; see [`Admission::set_leased`].
    pub fn leased_slots(&self, id: ReplicaId) -> u32 {
        self.replicas[id.index()].leased
    }

    /// Returns the requests in flight on a replica and its availability, which is `None` if it is draining.
    pub fn replica_load(&self, id: ReplicaId) -> (u32, Option<Availability>) {
        let replica = &self.replicas[id.index()];
        (replica.busy, (replica.presence == ReplicaPresence::Present).then(|| replica.health.availability()))
    }
}
