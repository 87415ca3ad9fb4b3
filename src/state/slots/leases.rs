//! The leases of a deployment's replicas that other routers use too: this router's share of their slots.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{DeploymentSlots, QueueGrant, SlotDelivery, SlotsState};
use crate::model::endpoint::RequestSettings;
use crate::policy::admit::ReplicaId;
use crate::policy::fleet::member::{DeploymentShare, LeaseState, SlotBasis};
use crate::policy::fleet::{DeploymentId, FleetReplicaKey, MemberLoad, QueueSnapshot};
use crate::policy::health::Availability;
use crate::policy::scale::Signals;
use crate::state::membership::Membership;

/// The leases of one deployment.
#[derive(Debug)]
pub(super) struct DeploymentLeases {
    membership: Arc<Membership>,
    deployment: DeploymentId,
    share: DeploymentShare,
    /// The keys of replicas by [`ReplicaId::index`].
    replica_keys: Vec<Option<FleetReplicaKey>>,
    /// The lease state by which limits were last set.
    lease_state: LeaseState,
    cap: u32,
    hold: Duration,
    max_queue_wait: Duration,
    /// The queue length that the share knows.
    reported_queue_length: u32,
    /// Whether the capacities of replicas have changed since the control plane last read them.
    has_replica_changes: bool,
    /// Whether the deployment is marked as dirty.
    is_marked_dirty: bool,
}

/// The capacity of a replica, as the fleet needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaCapacity {
    /// The replica.
    pub key: FleetReplicaKey,
    /// The cap of the replica.
    pub cap: u32,
    /// How long a request may last after its router was cut off.
    pub hold: Duration,
}

impl DeploymentLeases {
    pub(super) fn new(membership: Arc<Membership>, deployment: DeploymentId, settings: &RequestSettings) -> Self {
        let lease_state = membership.state().lease_state(Instant::now());
        let (cap, hold) = cap_and_hold(settings);
        let share = DeploymentShare::default();
        Self {
            membership,
            deployment,
            share,
            replica_keys: Vec::new(),
            lease_state,
            cap,
            hold,
            max_queue_wait: settings.max_queue_wait,
            reported_queue_length: 0,
            has_replica_changes: false,
            is_marked_dirty: false,
        }
    }

    pub(super) fn membership(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// Sets the name in the fleet of the replica at `id`.
    pub(super) fn set_replica_name(&mut self, id: ReplicaId, name: &str) {
        if self.replica_keys.len() <= id.index() {
            self.replica_keys.resize_with(id.index() + 1, || None);
        }
        self.replica_keys[id.index()] =
            Some(FleetReplicaKey { deployment: self.deployment.clone(), name: name.into() });
    }

    fn replica_key(&self, id: ReplicaId) -> Option<&FleetReplicaKey> {
        self.replica_keys.get(id.index()).and_then(Option::as_ref)
    }
}

fn cap_and_hold(settings: &RequestSettings) -> (u32, Duration) {
    (settings.max_concurrent_per_instance.get(), settings.timeout)
}

/// Each method does nothing if the router is alone. A request that is granted a slot must be recorded in the share
/// before the share is used otherwise, because it may give that slot back.
impl SlotsState {
    /// Advances to `now`: expired leases are not used any more.
    pub(super) fn refresh_lease_state(&mut self, now: Instant) {
        let Some(leases) = &mut self.leases else { return };
        let lease_state = match leases.membership.state().lease_state(now) {
            // Only the control plane knows whether the router was cut off or suspended.
            LeaseState::Fallback if leases.lease_state != LeaseState::Fallback => LeaseState::NoLease,
            other => other,
        };
        if lease_state != leases.lease_state {
            leases.lease_state = lease_state;
            self.apply_limits(|may, might| may < might);
        }
    }

    /// Applies changed settings of the deployment.
    pub(super) fn update_lease_settings(
        &mut self,
        slots: &Arc<DeploymentSlots>,
        settings: &RequestSettings,
    ) -> Vec<SlotDelivery> {
        if let Some(leases) = &mut self.leases {
            (leases.cap, leases.hold) = cap_and_hold(settings);
            leases.max_queue_wait = settings.max_queue_wait;
        }
        self.sync_all_replicas(slots)
    }

    /// Updates which replicas can be used.
    pub(super) fn sync_all_replicas(&mut self, slots: &Arc<DeploymentSlots>) -> Vec<SlotDelivery> {
        let ids: Vec<_> = if self.leases.is_some() { self.admission.replica_ids().collect() } else { Vec::new() };
        ids.into_iter().flat_map(|id| self.sync_replica(slots, id)).collect()
    }

    /// Updates whether a replica can be used.
    pub(super) fn sync_replica(&mut self, slots: &Arc<DeploymentSlots>, id: ReplicaId) -> Vec<SlotDelivery> {
        let Some(leases) = &mut self.leases else { return Vec::new() };
        let Some(Some(key)) = leases.replica_keys.get(id.index()) else { return Vec::new() };
        let fitness = self.admission.replica_load(id).1;
        let cap = if fitness.is_some() { leases.cap } else { 0 };
        let is_available = !matches!(fitness, Some(Availability::Ejected(_)));
        leases.share.set_replica(key, cap, is_available, leases.hold, &leases.membership.state());
        leases.has_replica_changes = true;
        let grants = self.apply_limits(|may, might| may != might);
        self.issue_slots(slots, grants, Instant::now())
    }

    /// Records that a request is sent to a replica, and returns the right by which it is. Returns `None` if the router
    /// is alone.
    pub(super) fn begin_leased_request(&mut self, id: ReplicaId) -> Option<SlotBasis> {
        let leases = self.leases.as_mut()?;
        let basis =
            leases.replica_key(id).cloned().and_then(|key| leases.share.start_request(&key, leases.lease_state));
        if basis == Some(SlotBasis::Fallback) {
            leases.membership.fallback_requests.inc();
        }
        debug_assert!(basis.is_some(), "more was admitted than is leased");
        basis
    }

    /// Records that a request has ended.
    pub(super) fn end_leased_request(&mut self, id: ReplicaId, basis: Option<SlotBasis>) {
        let Some(leases) = &mut self.leases else { return };
        let (Some(basis), Some(key)) = (basis, leases.replica_keys.get(id.index()).and_then(Option::as_ref)) else {
            return;
        };
        leases.share.finish_request(key, basis, &leases.membership.state());
        let limit = leases.share.concurrency_limit(key, leases.lease_state);
        // A raised limit is left for the next call of `with_share`: here no queued request would get the slots.
        if limit < self.admission.leased_slots(id) {
            drop(self.admission.set_leased(id, limit));
        }
    }

    /// Returns whether there is a coordinator that would answer a request for a slot.
    pub(super) fn has_lease(&self) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.lease_state == LeaseState::Leased)
    }

    /// Returns the number of requests that are queued at other routers, as far as the coordinator has reported, and for
    /// how long they wait at most.
    pub(super) fn queued_elsewhere(&self) -> (usize, Duration) {
        let Some(leases) = &self.leases else { return (0, Duration::ZERO) };
        let everywhere =
            leases.membership.fleet_status().outstanding.get(&leases.deployment).map_or(0, |(_, waiting)| *waiting);
        ((everywhere as usize).saturating_sub(self.admission.queue_length()), leases.max_queue_wait)
    }

    /// Updates the share after every change, and marks the deployment as dirty if the control plane has to read it.
    pub(super) fn sync_leases(&mut self, slots: &Arc<DeploymentSlots>) {
        let needs_attention = self.sync_queue();
        if let Some(leases) = self.leases.as_mut().filter(|leases| needs_attention && !leases.is_marked_dirty) {
            leases.is_marked_dirty = true;
            leases.membership.mark_dirty(slots);
        }
    }

    /// Tells the share the queue and applies its limits. Returns whether the control plane has to read the share.
    fn sync_queue(&mut self) -> bool {
        let Some(leases) = &mut self.leases else { return false };
        let queue_summary = self.admission.queue_summary();
        let length = queue_summary.map_or(0, |line| u32::try_from(line.length).unwrap_or(u32::MAX));
        if length > 0 || leases.reported_queue_length > 0 {
            let queue = queue_summary.map(|line| QueueSnapshot { length, oldest: line.oldest, newest: line.newest });
            leases.share.set_queue(queue, &leases.membership.state());
        }
        if leases.share.has_unsent_changes() {
            // Slots that nobody used may have been returned.
            drop(self.apply_limits(|may, might| may < might));
        }
        let Some(leases) = &mut self.leases else { return false };
        let is_longer = length > std::mem::replace(&mut leases.reported_queue_length, length);
        is_longer || leases.has_replica_changes || leases.share.has_unsent_changes() || leases.share.needs_idle_window()
    }

    /// Sets the limits that the share allows, for which `should_apply` of the new and the old limit is true. Returns
    /// the requests that get slots.
    fn apply_limits(&mut self, should_apply: impl Fn(u32, u32) -> bool) -> Vec<QueueGrant> {
        let mut grants = Vec::new();
        for id in self.admission.replica_ids().collect::<Vec<_>>() {
            let Some(leases) = &self.leases else { break };
            let limit = leases.replica_key(id).map_or(0, |key| leases.share.concurrency_limit(key, leases.lease_state));
            if should_apply(limit, self.admission.leased_slots(id)) {
                grants.extend(self.admission.set_leased(id, limit));
            }
        }
        grants
    }
}

impl DeploymentSlots {
    /// Gives access to the share, which may change it. Queued requests get the slots that are available then. Returns
    /// `None` if the router is alone.
    pub fn with_share<T>(
        self: &Arc<Self>,
        now: Instant,
        access: impl FnOnce(&DeploymentId, &mut DeploymentShare) -> T,
    ) -> Option<T> {
        let mut inner = self.lock();
        inner.advance_to(now);
        let leases = inner.leases.as_mut()?;
        leases.lease_state = leases.membership.state().lease_state(now);
        (leases.is_marked_dirty, leases.has_replica_changes) = (false, false);
        let seen = access(&leases.deployment, &mut leases.share);
        let grants = inner.apply_limits(|may, might| may != might);
        let handed = inner.issue_slots(self, grants, now);
        // The caller reads the share now, so the deployment need not be marked.
        inner.sync_queue();
        Self::deliver_slots(inner, handed);
        Some(seen)
    }

    /// Revokes requests that are in flight on a replica under the lease: see [`super::Slot::is_revoked`].
    pub fn revoke_replica(&self, key: &FleetReplicaKey) {
        let inner = self.lock();
        let Some(leases) = &inner.leases else { return };
        for id in inner.admission.replica_ids().filter(|id| leases.replica_key(*id) == Some(key)) {
            if let Some(entry) = &inner.replicas[id.index()] {
                entry.replica.revocations.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns the signals here and at all other routers since the last call. Only one caller may use it. Returns
    /// `None` if another router is the coordinator.
    pub async fn take_fleet_signals(&self, now: Instant) -> Option<Signals> {
        let shared = self.lock().leases.as_ref().map(|leases| (leases.membership.clone(), leases.deployment.clone()));
        match shared {
            None => Some(self.take_signals(now)),
            Some((membership, deployment)) => membership.request_signals(&deployment).await,
        }
    }

    /// Returns whether this router decides how many replicas there should be.
    pub fn is_coordinator(&self) -> bool {
        self.lock().leases.as_ref().is_none_or(|leases| leases.membership.is_coordinator())
    }

    /// Returns the numbers of requests in flight and queued, at all routers if that is known here.
    pub fn outstanding(&self) -> (usize, usize) {
        let inner = self.lock();
        let shared = inner.leases.as_ref().filter(|leases| leases.membership.is_coordinator());
        let everywhere = shared.and_then(|of| of.membership.fleet_status().outstanding.get(&of.deployment).copied());
        let here = inner.admission.occupancy();
        everywhere.map_or((here.busy, here.waiting), |(busy, waiting)| (busy as usize, waiting as usize))
    }

    /// Returns the load of the deployment at this router.
    pub fn member_load(&self, now: Instant) -> MemberLoad {
        let mut inner = self.lock();
        inner.advance_to(now);
        let seen = inner.admission.occupancy();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let busy = count(seen.busy + seen.busy_draining);
        MemberLoad { in_flight: busy, queued: count(seen.waiting), sums: inner.tally.sums() }
    }

    /// Returns the capacities of all replicas.
    pub fn replica_capacities(&self) -> Vec<ReplicaCapacity> {
        let inner = self.lock();
        let Some(leases) = &inner.leases else { return Vec::new() };
        let present = inner.admission.replica_ids().filter(|id| inner.admission.replica_load(*id).1.is_some());
        let keys = present.filter_map(|id| leases.replica_key(id).cloned());
        keys.map(|key| ReplicaCapacity { key, cap: leases.cap, hold: leases.hold }).collect()
    }
}
