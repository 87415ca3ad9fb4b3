//! A member whose shares are all in one place, and that has no other threads: as simulations and models use it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Member, Right, Share, Shares, Standing};
use crate::policy::fleet::{Deployment, Queue, ReplicaKey};

/// Shares by their deployments.
pub type AllShares = BTreeMap<Deployment, Share>;

impl Shares for AllShares {
    fn each(&mut self, mut with: impl FnMut(&Deployment, &mut Share)) {
        self.iter_mut().for_each(|(deployment, share)| with(deployment, share));
    }

    fn of(&mut self, deployment: &Deployment, with: impl FnOnce(&mut Share)) {
        with(self.entry(deployment.clone()).or_default());
    }
}

impl Member<AllShares> {
    /// [`Share::set_replica`].
    pub fn set_replica(&mut self, key: &ReplicaKey, cap: u32, is_fit: bool, hold: Duration) {
        let terms = self.terms();
        self.shares.of(&key.deployment, |share| share.set_replica(key, cap, is_fit, hold, &terms));
    }

    /// [`Share::set_queue`].
    pub fn set_queue(&mut self, deployment: &Deployment, queue: Option<Queue>) {
        let terms = self.terms();
        self.shares.of(deployment, |share| share.set_queue(queue, &terms));
    }

    /// What the router goes by.
    pub fn standing(&self, now: Instant) -> Standing {
        self.terms.standing(now)
    }

    /// [`Share::allowed`].
    pub fn allowed(&self, key: &ReplicaKey, now: Instant) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.allowed(key, self.standing(now)))
    }

    /// [`Share::start`].
    pub fn start(&mut self, key: &ReplicaKey, now: Instant) -> Option<Right> {
        let standing = self.standing(now);
        self.shares.get_mut(&key.deployment)?.start(key, standing)
    }

    /// [`Share::finish`].
    pub fn finish(&mut self, key: &ReplicaKey, right: Right) {
        let terms = self.terms();
        if let Some(share) = self.shares.get_mut(&key.deployment) {
            share.finish(key, right, &terms);
        }
    }

    /// Slots held, requests in flight by lease, and without, of a deployment.
    pub fn count(&self, deployment: &Deployment) -> (u32, u32, u32) {
        self.shares.get(deployment).map(Share::count).unwrap_or_default()
    }

    /// Whether every slot of a deployment that is held is busy.
    pub fn is_spent(&self, deployment: &Deployment) -> bool {
        self.shares.get(deployment).is_none_or(Share::is_spent)
    }

    /// Slots held of a replica, whether the lease is valid or not.
    pub fn held(&self, key: &ReplicaKey) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.held(key))
    }

    /// When requests that are still in flight by the right of a lease have to be aborted, unless it is renewed before.
    pub fn abort_at(&self, deployment: &Deployment) -> Instant {
        self.terms.abort_at(self.shares.get(deployment).map(Share::hold_time).unwrap_or_default())
    }
}
