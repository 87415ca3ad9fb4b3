//! A member whose shares are in one map, without other threads, for simulations and model checks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{DeploymentShare, FleetMember, LeaseState, Shares, SlotBasis};
use crate::policy::fleet::{DeploymentId, FleetReplicaKey, QueueSnapshot};

/// Shares by deployment.
pub type InMemoryShares = BTreeMap<DeploymentId, DeploymentShare>;

impl Shares for InMemoryShares {
    fn for_each_share(&mut self, mut with: impl FnMut(&DeploymentId, &mut DeploymentShare)) {
        self.iter_mut().for_each(|(deployment, share)| with(deployment, share));
    }

    fn with_share(&mut self, deployment: &DeploymentId, with: impl FnOnce(&mut DeploymentShare)) {
        with(self.entry(deployment.clone()).or_default());
    }
}

impl FleetMember<InMemoryShares> {
    /// As [`DeploymentShare::set_replica`].
    pub fn set_replica(&mut self, key: &FleetReplicaKey, cap: u32, is_available: bool, hold: Duration) {
        let state = self.membership_state();
        self.shares.with_share(&key.deployment, |share| share.set_replica(key, cap, is_available, hold, &state));
    }

    /// As [`DeploymentShare::set_queue`].
    pub fn set_queue(&mut self, deployment: &DeploymentId, queue: Option<QueueSnapshot>) {
        let state = self.membership_state();
        self.shares.with_share(deployment, |share| share.set_queue(queue, &state));
    }

    /// Returns the right by which the router may use slots.
    pub fn lease_state(&self, now: Instant) -> LeaseState {
        self.state.lease_state(now)
    }

    /// As [`DeploymentShare::concurrency_limit`].
    pub fn concurrency_limit(&self, key: &FleetReplicaKey, now: Instant) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.concurrency_limit(key, self.lease_state(now)))
    }

    /// As [`DeploymentShare::start_request`].
    pub fn start_request(&mut self, key: &FleetReplicaKey, now: Instant) -> Option<SlotBasis> {
        let lease_state = self.lease_state(now);
        self.shares.get_mut(&key.deployment)?.start_request(key, lease_state)
    }

    /// As [`DeploymentShare::finish_request`].
    pub fn finish_request(&mut self, key: &FleetReplicaKey, basis: SlotBasis) {
        let state = self.membership_state();
        if let Some(share) = self.shares.get_mut(&key.deployment) {
            share.finish_request(key, basis, &state);
        }
    }

    /// Returns the held slots of a deployment, its requests in flight under the lease, and those without.
    pub fn usage(&self, deployment: &DeploymentId) -> (u32, u32, u32) {
        self.shares.get(deployment).map(DeploymentShare::usage).unwrap_or_default()
    }

    /// Returns whether every held slot of a deployment is busy.
    pub fn is_fully_used(&self, deployment: &DeploymentId) -> bool {
        self.shares.get(deployment).is_none_or(DeploymentShare::is_fully_used)
    }

    /// Returns the held slots of a replica, whether the lease is valid or not.
    pub fn held_slots(&self, key: &FleetReplicaKey) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.held_slots(key))
    }

    /// Returns when requests that are in flight under the lease have to be aborted, unless it is renewed before.
    pub fn abort_at(&self, deployment: &DeploymentId) -> Instant {
        self.state.abort_at(self.shares.get(deployment).map(DeploymentShare::hold_duration).unwrap_or_default())
    }
}
