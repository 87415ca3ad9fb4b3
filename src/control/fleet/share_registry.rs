//! Access to the shares of this router. Each share is protected by the lock of its deployment's slots.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::policy::fleet::member::{DeploymentShare, Shares};
use crate::policy::fleet::{DeploymentId, MemberLoad};
use crate::state::slots::DeploymentSlots;

/// All shares of this router.
#[derive(Debug)]
pub(super) struct ShareRegistry {
    /// The time of the current loop iteration. The clock is not read again, because the process may be suspended during
    /// the iteration, and a suspension is handled at the beginning of the next one.
    now: Instant,
    /// The slots of every known deployment; weak, so that a removed deployment is freed.
    slots_by_deployment: HashMap<DeploymentId, Weak<DeploymentSlots>>,
    /// The deployments that are not idle. Only these are visited regularly: of ten thousand deployments, most are idle.
    active: BTreeMap<DeploymentId, Arc<DeploymentSlots>>,
    /// The shares of deployments that are not known here, or not any more. Slots granted to them are returned.
    orphaned: BTreeMap<DeploymentId, DeploymentShare>,
    /// The former slots of deployments that were created again, until they are idle.
    superseded: Vec<(DeploymentId, Arc<DeploymentSlots>)>,
}

impl ShareRegistry {
    /// Creates an empty registry.
    pub(super) fn new(now: Instant) -> Self {
        let (slots_by_deployment, active, orphaned, superseded) =
            (HashMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { now, slots_by_deployment, active, orphaned, superseded }
    }

    /// Sets the time of the current loop iteration.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Marks a deployment as active. If it was created again, its former slots are superseded.
    pub(super) fn mark_active(&mut self, deployment: &DeploymentId, slots: Arc<DeploymentSlots>) {
        let is_known =
            self.slots_by_deployment.get(deployment).is_some_and(|known| known.as_ptr() == Arc::as_ptr(&slots));
        if !is_known {
            self.slots_by_deployment.insert(deployment.clone(), Arc::downgrade(&slots));
        }
        if let Some(before) = self.active.insert(deployment.clone(), slots.clone())
            && !Arc::ptr_eq(&before, &slots)
        {
            self.superseded.push((deployment.clone(), before));
        }
    }

    /// Returns the slots of a deployment, if it is known.
    pub(super) fn slots(&self, deployment: &DeploymentId) -> Option<Arc<DeploymentSlots>> {
        self.slots_by_deployment.get(deployment).and_then(Weak::upgrade)
    }

    /// Returns whether any deployment is active.
    pub(super) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Returns the loads of active deployments.
    pub(super) fn loads(&self, now: Instant) -> Vec<(DeploymentId, MemberLoad)> {
        self.active.iter().map(|(deployment, slots)| (deployment.clone(), slots.member_load(now))).collect()
    }

    /// Calls `with` for every superseded or orphaned share, which cannot be found by the name of its deployment.
    fn for_each_detached(&mut self, now: Instant, mut with: impl FnMut(&DeploymentId, &mut DeploymentShare)) {
        for (_, slots) in &self.superseded {
            slots.with_share(now, &mut with);
        }
        self.orphaned.iter_mut().for_each(|(deployment, share)| with(deployment, share));
    }

    /// Removes idle shares from the active, orphaned and superseded ones. Returns the deployments that are gone.
    pub(super) fn remove_idle(&mut self) -> Vec<DeploymentId> {
        let now = self.now;
        self.active.retain(|_, slots| slots.with_share(now, |_, share| !share.is_idle()).unwrap_or(false));
        self.orphaned.retain(|_, share| !share.is_idle());
        self.superseded.retain(|(_, slots)| slots.with_share(now, |_, share| !share.is_idle()).unwrap_or(false));
        self.slots_by_deployment
            .extract_if(|_, slots| slots.strong_count() == 0)
            .map(|(deployment, _)| deployment)
            .collect()
    }
}

impl Shares for ShareRegistry {
    fn for_each_share(&mut self, mut with: impl FnMut(&DeploymentId, &mut DeploymentShare)) {
        let now = self.now;
        for slots in self.slots_by_deployment.values().filter_map(Weak::upgrade) {
            slots.with_share(now, &mut with);
        }
        self.for_each_detached(now, with);
    }

    fn for_each_active_share(&mut self, mut with: impl FnMut(&DeploymentId, &mut DeploymentShare)) {
        let now = self.now;
        for slots in self.active.values() {
            slots.with_share(now, &mut with);
        }
        self.for_each_detached(now, with);
    }

    fn with_share(&mut self, deployment: &DeploymentId, with: impl FnOnce(&mut DeploymentShare)) {
        let mut with = Some(with);
        if let Some(slots) = self.slots(deployment) {
            slots.with_share(self.now, |_, share| with.take().into_iter().for_each(|with| with(share)));
            self.active.insert(deployment.clone(), slots);
        }
        if let Some(with) = with {
            with(self.orphaned.entry(deployment.clone()).or_default());
        }
    }
}
