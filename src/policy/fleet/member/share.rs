//! The share of one router in the slots of one deployment, and its queue.
//!
//! This is the part of a member that a request uses: [`DeploymentShare::start_request`] and
//! [`DeploymentShare::finish_request`] look at one replica.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::policy::fleet::{
    DeploymentId, FleetReplicaKey, FleetTiming, QueueSnapshot, RemoteDemand, ReplicaSlots, SlotClaim, SlotDemand,
    flow_control_window,
};

use super::{LeaseState, MembershipState, SlotBasis};

mod replica_lease;
use replica_lease::{ReplicaLease, UnacknowledgedYields};

/// The share of a router in the slots of one deployment.
#[derive(Debug, Clone, Default, Hash)]
pub struct DeploymentShare {
    leases: BTreeMap<FleetReplicaKey, ReplicaLease>,
    /// How long a request may last after the lease has expired.
    hold: Duration,
    queue: Option<QueueSnapshot>,
    /// The queue that was last reported to the coordinator, and when.
    last_reported_queue: Option<(Option<QueueSnapshot>, Instant)>,
    /// Slots granted since that report.
    granted_since_report: u32,
    /// Slots granted in this session.
    granted_in_session: u64,
    /// Remote demand: the slots that requests at other members would take, and since when these wait.
    remote_demand: Option<(u32, Instant)>,
    /// The held slots of all replicas.
    held_slots: u32,
    unacknowledged_yields: UnacknowledgedYields,
    unsent_returns: BTreeMap<FleetReplicaKey, u32>,
    unsent_unusable_changes: BTreeMap<FleetReplicaKey, bool>,
    idle_window_end: Option<Instant>,
}

impl DeploymentShare {
    /// Sets how many requests a replica may have in flight; 0 if it must not be used any more. `is_available` says
    /// whether this router can use it now. `hold` is how long a request on it may last after the lease has expired.
    pub fn set_replica(
        &mut self,
        key: &FleetReplicaKey,
        cap: u32,
        is_available: bool,
        hold: Duration,
        state: &MembershipState,
    ) {
        self.set_cap(key, cap, is_available && !state.is_draining);
        self.hold = hold;
        self.divide_fair_shares(state.fleet_position.0, state.fleet_position.1);
        if state.is_session_open {
            self.return_all_surplus(&state.timing);
        }
    }

    /// Sets the queue of the deployment. It must be called whenever the queue changes.
    pub fn set_queue(&mut self, queue: Option<QueueSnapshot>, state: &MembershipState) {
        self.queue = queue.filter(|queue| queue.length > 0 && !state.is_draining);
        if queue.is_none() && state.is_session_open {
            self.return_all_surplus(&state.timing);
        }
    }

    /// Returns how many requests may be in flight on a replica from here, in this lease state.
    pub fn concurrency_limit(&self, key: &FleetReplicaKey, lease_state: LeaseState) -> u32 {
        self.leases.get(key).map_or(0, |stock| stock.concurrency_limit(lease_state))
    }

    pub(super) fn set_cap(&mut self, key: &FleetReplicaKey, cap: u32, is_available: bool) {
        let lease = self.leases.entry(key.clone()).or_default();
        // The coordinator may remember from an earlier session that the replica could not be used here.
        let was_usable = lease.is_usable();
        (lease.cap, lease.is_unavailable) = (cap, !is_available);
        if was_usable != lease.is_usable() {
            self.unsent_unusable_changes.insert(key.clone(), was_usable);
        }
        self.remove_if_unused(key);
    }

    /// Removes a replica of which nothing is left.
    fn remove_if_unused(&mut self, key: &FleetReplicaKey) {
        if self.leases.get(key).is_some_and(|stock| stock.cap == 0 && stock.held == 0 && stock.in_flight() == 0) {
            self.leases.remove(key);
        }
    }

    /// Divides the slots among `size` routers, as well as that is possible without communication. This router has
    /// position `rank`.
    pub(super) fn divide_fair_shares(&mut self, size: u32, rank: u32) {
        let known: Vec<_> = self.leases.values_mut().filter(|stock| stock.cap > 0).collect();
        let (count, total) = (known.len(), known.iter().map(|stock| stock.cap).sum::<u32>());
        let most = known.iter().map(|stock| stock.cap).max().unwrap_or_default();
        let mut remaining = (total / size.max(1)).max(most);
        let first = count * rank as usize / size.max(1) as usize;
        let mut known = known;
        known.rotate_left(first.min(count));
        for stock in known {
            stock.fair_share = stock.cap.min(remaining);
            remaining -= stock.fair_share;
        }
    }

    /// Records that a request is about to be sent to a replica. Returns `None` if it must not be sent. `lease_state` is
    /// that of this moment, not of before a wait.
    pub fn start_request(&mut self, key: &FleetReplicaKey, lease_state: LeaseState) -> Option<SlotBasis> {
        let lease =
            self.leases.get_mut(key).filter(|stock| stock.in_flight() < stock.concurrency_limit(lease_state))?;
        lease.unused_grants = lease.unused_grants.saturating_sub(1);
        if lease_state == LeaseState::Fallback {
            lease.fallback_in_flight += 1;
            return Some(SlotBasis::Fallback);
        }
        lease.leased_in_flight += 1;
        lease.min_idle[1] = lease.min_idle[1].min(lease.idle());
        Some(SlotBasis::Leased)
    }

    /// Records that a request has ended or was aborted; `basis` is the right under which it was started. Whether the
    /// slot stays here is decided now, before a queued request here could get it: such a request calls
    /// [`DeploymentShare::start_request`] again.
    pub fn finish_request(&mut self, key: &FleetReplicaKey, basis: SlotBasis, state: &MembershipState) {
        let Some(lease) = self.leases.get_mut(key) else { return };
        match basis {
            SlotBasis::Leased => lease.leased_in_flight = lease.leased_in_flight.saturating_sub(1),
            SlotBasis::Fallback => lease.fallback_in_flight = lease.fallback_in_flight.saturating_sub(1),
        }
        if state.is_session_open {
            self.return_surplus(key, &state.timing);
        }
        self.remove_if_unused(key);
    }

    /// Returns idle slots of a replica that should not be here.
    fn return_surplus(&mut self, key: &FleetReplicaKey, timing: &FleetTiming) {
        let to_yield = self.slots_to_yield(timing);
        let Some(lease) = self.leases.get_mut(key) else { return };
        let idle = lease.idle();
        let surplus = match lease.keep_limit {
            _ if !lease.is_usable() => idle,
            Some(keep) => idle.min(lease.held.saturating_sub(keep)),
            None => 0,
        };
        let reserved = if self.queue.is_some() { lease.unused_grants } else { 0 };
        let to_yield = idle.saturating_sub(reserved).min(to_yield).saturating_sub(surplus);
        if !lease.is_usable() && (lease.held > 0 || idle > 0) {
            self.unsent_unusable_changes.insert(key.clone(), true);
        }
        self.unacknowledged_yields.unsent += to_yield;
        self.return_slots(key, surplus + to_yield);
    }

    /// Returns how many idle slots should go to other members, where requests have waited longer.
    fn slots_to_yield(&self, timing: &FleetTiming) -> u32 {
        match (self.remote_demand, self.queue) {
            (Some((_, since)), Some(queue)) if queue.oldest <= since + timing.steal_threshold => 0,
            (Some((slots, _)), _) => slots.min(self.unacknowledged_yields.remaining_window(self.held_slots)),
            (None, _) => 0,
        }
    }

    /// Returns whether the next message needs an answer of the coordinator.
    pub(super) fn has_unsent_yields(&self) -> bool {
        self.unacknowledged_yields.unsent > 0
    }

    /// Records that all yielded slots are sent with this heartbeat.
    pub(super) fn mark_yields_sent_with(&mut self, heartbeat: u64) {
        self.unacknowledged_yields.mark_sent_with(heartbeat);
    }

    /// Records that the coordinator has answered this heartbeat.
    pub(super) fn acknowledge_heartbeat(&mut self, heartbeat: u64) {
        self.unacknowledged_yields.acknowledge(heartbeat);
    }

    pub(super) fn return_all_surplus(&mut self, timing: &FleetTiming) {
        let keys: Vec<_> =
            self.leases.iter().filter(|(_, stock)| stock.idle() > 0).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.return_surplus(&key, timing);
            self.remove_if_unused(&key);
        }
    }

    fn return_slots(&mut self, key: &FleetReplicaKey, slots: u32) {
        let Some(lease) = self.leases.get_mut(key) else { return };
        if slots > 0 {
            lease.held -= slots;
            self.held_slots -= slots;
            lease.unused_grants = lease.unused_grants.min(lease.idle());
            lease.min_idle = lease.min_idle.map(|low| low.min(lease.idle()));
            *self.unsent_returns.entry(key.clone()).or_default() += slots;
            self.remote_demand =
                self.remote_demand.map(|(wanted, since)| (wanted.saturating_sub(slots), since)).filter(|w| w.0 > 0);
        }
        if lease.keep_limit.is_some_and(|keep| lease.held <= keep) {
            lease.keep_limit = None;
        }
    }

    /// Returns slots that have been idle for a whole window or longer.
    pub(super) fn return_idle(&mut self, now: Instant, timing: &FleetTiming) {
        match self.idle_window_end {
            None if self.leases.values().any(|stock| stock.idle() > 0) => {
                self.idle_window_end = Some(now + timing.idle_slot_timeout / 2)
            }
            Some(end) if end <= now => {
                for key in self.leases.keys().cloned().collect::<Vec<_>>() {
                    let Some(lease) = self.leases.get_mut(&key) else { continue };
                    let surplus = lease.min_idle[0].min(lease.min_idle[1]).min(lease.idle());
                    lease.min_idle = [lease.min_idle[1], lease.idle()];
                    // The request that it was granted for has left, or cannot use it.
                    lease.unused_grants = 0;
                    self.return_slots(&key, surplus);
                    if let Some(lease) = self.leases.get_mut(&key) {
                        lease.min_idle[1] = lease.idle();
                    }
                    self.remove_if_unused(&key);
                }
                let any = self.leases.values().any(|stock| stock.idle() > 0);
                self.idle_window_end = any.then(|| now + timing.idle_slot_timeout / 2);
            }
            _ => {}
        }
    }

    pub(super) fn add_grant(&mut self, key: &FleetReplicaKey, slots: u32) {
        let lease = self.leases.entry(key.clone()).or_default();
        lease.held += slots;
        self.held_slots += slots;
        lease.unused_grants += slots;
        // A grant implies that the cap is not exceeded, so any pending reduction is void.
        lease.keep_limit = None;
        self.granted_in_session += u64::from(slots);
        self.granted_since_report += slots;
    }

    pub(super) fn set_keep_limit(&mut self, key: &FleetReplicaKey, keep_limit: u32) {
        if let Some(lease) = self.leases.get_mut(key).filter(|stock| stock.held > keep_limit) {
            lease.keep_limit = Some(keep_limit);
        }
    }

    pub(super) fn set_remote_demand(&mut self, wanted: &RemoteDemand, now: Instant) {
        let since = now.checked_sub(wanted.oldest_age).unwrap_or(now);
        self.remote_demand = (wanted.wanted_slots > 0).then_some((wanted.wanted_slots, since));
    }

    /// Starts no more requests.
    pub(super) fn stop_requests(&mut self) {
        self.queue = None;
        self.leases.values_mut().for_each(|stock| stock.is_unavailable = true);
    }

    /// Returns the claims for a new session: the leased slots while the lease is valid, and what is in flight in any
    /// case. If that is overdue, there is no right to it any more, because the slots may be leased to another member.
    pub(super) fn slot_claims(&self, is_leased: bool, is_overdue: bool) -> impl Iterator<Item = SlotClaim> {
        self.leases.iter().filter_map(move |(key, stock)| {
            let held = if is_leased { stock.held.min(stock.keep_limit.unwrap_or(u32::MAX)) } else { 0 };
            let leased_slots = held.max(if is_overdue { 0 } else { stock.leased_in_flight });
            let taken_slots = leased_slots.max(stock.in_flight());
            (taken_slots > 0).then(|| SlotClaim { replica: key.clone(), leased_slots, taken_slots })
        })
    }

    /// Begins a session: nothing that was to be sent before counts.
    pub(super) fn begin_session(&mut self) {
        (self.last_reported_queue, self.remote_demand, self.granted_in_session, self.granted_since_report) =
            (None, None, 0, 0);
        self.unsent_returns.clear();
        self.unsent_unusable_changes.clear();
        self.unacknowledged_yields = UnacknowledgedYields::default();
    }

    /// Applies the claims that the coordinator has accepted. What is not claimed any more is not held.
    pub(super) fn accept_claims<'a>(&mut self, claims: impl Iterator<Item = &'a SlotClaim>) {
        self.leases.values_mut().for_each(|stock| stock.held = 0);
        for claim in claims {
            // Requests that were in flight may have ended since.
            self.leases.entry(claim.replica.clone()).or_default().held = claim.taken_slots;
        }
        self.held_slots = self.leases.values().map(|stock| stock.held).sum();
        for stock in self.leases.values_mut() {
            (stock.keep_limit, stock.unused_grants) = (None, 0);
            stock.min_idle = [0, stock.idle()];
        }
        let gone: Vec<_> = self.leases.keys().cloned().collect();
        gone.iter().for_each(|key| self.remove_if_unused(key));
    }

    pub(super) fn unusable_replicas(&self) -> impl Iterator<Item = FleetReplicaKey> {
        self.leases.iter().filter(|(_, stock)| !stock.is_usable()).map(|(key, _)| key.clone())
    }

    /// Returns the demand to report to the coordinator, if it has changed. With a heartbeat it is reported in any case.
    pub(super) fn take_demand_report(
        &mut self,
        deployment: &DeploymentId,
        now: Instant,
        with_heartbeat: bool,
        timing: &FleetTiming,
    ) -> Option<SlotDemand> {
        let is_due = self.demand_report_at(timing).is_some_and(|at| at <= now);
        let expected = self.last_reported_queue.is_some_and(|(queue, _)| queue.is_some());
        if !is_due && !(with_heartbeat && (expected || self.queue.is_some())) {
            return None;
        }
        (self.last_reported_queue, self.granted_since_report) = (Some((self.queue, now)), 0);
        let age = |came: Instant| now.saturating_duration_since(came);
        Some(SlotDemand {
            deployment: deployment.clone(),
            queued: self.queue.map_or(0, |queue| queue.length),
            oldest_age: self.queue.map(|queue| age(queue.oldest)).unwrap_or_default(),
            newest_age: self.queue.map(|queue| age(queue.newest)).unwrap_or_default(),
            grants_seen: self.granted_in_session,
        })
    }

    /// Returns when the demand has to be reported: at once if more requests are queued than the coordinator knows of.
    pub(super) fn demand_report_at(&self, timing: &FleetTiming) -> Option<Instant> {
        let length = self.queue.map_or(0, |queue| queue.length);
        let Some((reported, at)) = self.last_reported_queue else { return self.queue.map(|queue| queue.newest) };
        let expected = reported.map_or(0, |told| told.length.saturating_sub(self.granted_since_report));
        // The coordinator grants no more slots until it knows that these have arrived.
        let needs_acknowledgment = self.granted_since_report > 0 && {
            let slots = self.leases.values().map(|stock| stock.cap).sum();
            self.granted_since_report * 2 >= flow_control_window(slots, self.held_slots)
        };
        if length > expected || needs_acknowledgment {
            return Some(at);
        }
        if let (Some(queue), Some(reported)) = (self.queue, reported) {
            let believed = reported.estimate_arrival_after(self.granted_since_report);
            let error = queue.oldest.max(believed).duration_since(queue.oldest.min(believed));
            if error >= timing.steal_threshold {
                return Some(at + timing.steal_threshold);
            }
        }
        (length != expected).then(|| at + timing.report_interval)
    }

    pub(super) fn wake_at(&self, timing: &FleetTiming) -> Option<Instant> {
        [self.demand_report_at(timing), self.idle_window_end].into_iter().flatten().min()
    }

    /// Returns whether there are idle slots for which no time to return them is set.
    pub fn needs_idle_window(&self) -> bool {
        self.idle_window_end.is_none() && self.leases.values().any(|stock| stock.idle() > 0)
    }

    pub(super) fn take_returns(&mut self) -> impl Iterator<Item = ReplicaSlots> {
        std::mem::take(&mut self.unsent_returns).into_iter()
    }

    pub(super) fn take_unusable_changes(&mut self) -> impl Iterator<Item = (FleetReplicaKey, bool)> {
        std::mem::take(&mut self.unsent_unusable_changes).into_iter()
    }

    /// Returns whether slots were returned, or the usable replicas have changed, without a report to the coordinator.
    pub fn has_unsent_changes(&self) -> bool {
        !self.unsent_returns.is_empty() || !self.unsent_unusable_changes.is_empty()
    }

    /// Returns the replicas with requests in flight under the lease.
    pub(super) fn leased_busy_replicas(&self) -> impl Iterator<Item = &FleetReplicaKey> {
        self.leases.iter().filter(|(_, stock)| stock.leased_in_flight > 0).map(|(key, _)| key)
    }

    /// Returns whether nothing is held, in flight, queued or to be reported.
    pub fn is_idle(&self) -> bool {
        let is_empty = self.leases.values().all(|stock| stock.held + stock.in_flight() == 0);
        let is_told = self.last_reported_queue.is_none_or(|(queue, _)| queue.is_none());
        is_empty && is_told && self.queue.is_none() && self.remote_demand.is_none() && !self.has_unsent_changes()
    }

    /// Returns how long a request may last after the lease has expired.
    pub(super) fn hold_duration(&self) -> Duration {
        self.hold
    }

    /// Returns the held slots, the requests in flight under the lease, and those without.
    pub(super) fn usage(&self) -> (u32, u32, u32) {
        let sum = |of: fn(&ReplicaLease) -> u32| self.leases.values().map(of).sum();
        (sum(|stock| stock.held), sum(|stock| stock.leased_in_flight), sum(|stock| stock.fallback_in_flight))
    }

    pub(super) fn is_fully_used(&self) -> bool {
        self.leases.values().all(|stock| stock.idle() == 0)
    }

    pub(super) fn held_slots(&self, key: &FleetReplicaKey) -> u32 {
        self.leases.get(key).map_or(0, |stock| stock.held)
    }
}
