//! The workloads that deployments refer to, by kind, and the ownership of each workload by one deployment.

use std::collections::HashMap;
use std::sync::Arc;

use kube::runtime::watcher::Event;
use tokio::task::AbortHandle;

use super::DeploymentKey;
use super::group_kinds::GroupKind;
use super::objects::ObjectKey;
use super::pods::WorkloadKey;
use super::watch_store::{StoreChange, WatchScope, WatchStore};
use super::workloads::ObservedWorkload;

/// Kinds of workloads, each with the API version in which deployments refer to it.
pub(super) type VersionedKinds = Box<[(Arc<GroupKind>, Box<str>)]>;

/// All workloads of the kinds that deployments refer to.
#[derive(Debug)]
pub(super) struct TargetWorkloads {
    /// The number of watches of each kind.
    scope_count: usize,
    kinds: HashMap<Arc<GroupKind>, WatchedKind>,
    /// The deployments that refer to a workload; the first one owns it. Ownership is sticky.
    claimants: HashMap<Arc<WorkloadKey>, Vec<DeploymentKey>>,
}

/// A watched kind, to which at least one object refers.
#[derive(Debug)]
struct WatchedKind {
    store: WatchStore<ObservedWorkload>,
    /// Why workloads of the kind cannot be targets, if they cannot.
    unusable_reason: Option<String>,
    /// The number of objects that refer to the kind.
    reference_count: usize,
    watches: Vec<AbortHandle>,
}

/// Whether a workload can be the target of a deployment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TargetState {
    /// The workload can be the target.
    Usable,
    /// The state is not known yet.
    Unknown,
    /// The workload cannot be the target: the condition reason and the message.
    Unusable(&'static str, String),
}

impl TargetWorkloads {
    /// Creates the value without any kinds. Each kind will have `scope_count` watches.
    pub(super) fn new(scope_count: usize) -> Self {
        Self { scope_count, kinds: HashMap::new(), claimants: HashMap::new() }
    }

    /// Adds a reference to a kind. If it is the first, `start` starts the watches of the kind.
    pub(super) fn acquire_kind(
        &mut self,
        kind: &Arc<GroupKind>,
        start: impl FnOnce(&Arc<GroupKind>) -> Vec<AbortHandle>,
    ) {
        if let Some(watched_kind) = self.kinds.get_mut(kind) {
            watched_kind.reference_count += 1;
            return;
        }
        let watches = start(kind);
        self.kinds.insert(
            kind.clone(),
            WatchedKind { store: WatchStore::default(), unusable_reason: None, reference_count: 1, watches },
        );
    }

    /// Returns the shared value of a kind, which saves memory: ten thousand endpoints usually refer to one kind.
    pub(super) fn interned_kind(&self, kind: GroupKind) -> Arc<GroupKind> {
        self.kinds.get_key_value(&kind).map_or_else(|| Arc::new(kind), |(known, _)| known.clone())
    }

    /// Removes a reference to a kind, and stops its watches if it was the last. Returns whether it was.
    pub(super) fn release_kind(&mut self, kind: &GroupKind) -> bool {
        let Some(watched_kind) = self.kinds.get_mut(kind) else { return false };
        watched_kind.reference_count -= 1;
        let is_last = watched_kind.reference_count == 0;
        if is_last && let Some(watched_kind) = self.kinds.remove(kind) {
            watched_kind.watches.iter().for_each(AbortHandle::abort);
        }
        is_last
    }

    /// Applies an event of a watch of a kind. Returns the workloads that have changed.
    pub(super) fn apply_event(
        &mut self,
        kind: &GroupKind,
        scope: &WatchScope,
        event: Event<(ObjectKey, ObservedWorkload)>,
    ) -> Vec<Arc<WorkloadKey>> {
        let Some(watched_kind) = self.kinds.get_mut(kind) else { return Vec::new() };
        let key = |change| match change {
            StoreChange::Applied(key, _) | StoreChange::Deleted(key, _) => Arc::new(kind.workload_key(key)),
        };
        watched_kind.store.apply_event(scope, event).into_iter().map(key).collect()
    }

    /// Sets why workloads of a kind cannot be targets; `None` if they can.
    pub(super) fn set_kind_unusable(&mut self, kind: &GroupKind, why: Option<String>) {
        if let Some(watched_kind) = self.kinds.get_mut(kind) {
            watched_kind.unusable_reason = why;
        }
    }

    /// As [`Self::set_kind_unusable`], for the displayed name of a kind. Returns whether that is a change.
    pub(super) fn set_kind_unusable_by_name(&mut self, name: &str, why: Option<String>) -> bool {
        let Some((_, watched_kind)) = self.kinds.iter_mut().find(|(kind, _)| kind.to_string() == name) else {
            return false;
        };
        let is_changed = watched_kind.unusable_reason != why;
        watched_kind.unusable_reason = why;
        is_changed
    }

    /// Returns whether the workloads of all usable kinds have been listed once.
    pub(super) fn has_synced(&self) -> bool {
        self.kinds.values().all(|watched_kind| {
            watched_kind.unusable_reason.is_some() || watched_kind.store.has_synced(self.scope_count)
        })
    }

    /// Returns a workload as it was last observed.
    pub(super) fn workload(&self, workload: &WorkloadKey) -> Option<&ObservedWorkload> {
        self.kinds.get(&workload.group_kind()).and_then(|watched_kind| watched_kind.store.get(&workload.key))
    }

    /// Returns the deployment that owns a workload. There is only one owner, because two deployments could together
    /// exceed the caps of its pods.
    pub(super) fn owner(&self, workload: &WorkloadKey) -> Option<&DeploymentKey> {
        self.claimants(workload).first()
    }

    /// Returns the shared key of a workload, if any deployment refers to it.
    pub(super) fn interned_workload(&self, workload: &WorkloadKey) -> Option<&Arc<WorkloadKey>> {
        self.claimants.get_key_value(workload).map(|(known, _)| known)
    }

    /// Returns the deployments that refer to a workload, the owner first.
    pub(super) fn claimants(&self, workload: &WorkloadKey) -> &[DeploymentKey] {
        self.claimants.get(workload).map_or(&[], Vec::as_slice)
    }

    /// Sets the deployments that refer to a workload, the owner first.
    pub(super) fn set_claimants(&mut self, workload: &Arc<WorkloadKey>, claimants: Vec<DeploymentKey>) {
        if claimants.is_empty() {
            self.claimants.remove(workload);
        } else {
            self.claimants.insert(workload.clone(), claimants);
        }
    }

    /// Returns whether a workload can be the target of `claimant`. It cannot if its owner is one for which
    /// `is_other_owner` is true.
    pub(super) fn target_state(
        &self,
        workload: &WorkloadKey,
        claimant: &DeploymentKey,
        is_other_owner: impl Fn(&DeploymentKey) -> bool,
    ) -> TargetState {
        let Some(watched_kind) = self.kinds.get(&workload.group_kind()) else { return TargetState::Unknown };
        let (what, deployment) = (format!("{} {}", workload.kind, workload.key.name), &claimant.1);
        if let Some(why) = &watched_kind.unusable_reason {
            return TargetState::Unusable("BadTarget", format!("{what}, the target of {deployment}: {why}"));
        }
        if !watched_kind.store.has_synced(self.scope_count) {
            return TargetState::Unknown;
        }
        if let Some((endpoint, other)) = self.owner(workload).filter(|owner| is_other_owner(owner)) {
            let what = format!(
                "the pods of {what} belong to the deployment {other} of {endpoint}: two could send them more than they \
                 take; give {deployment} a workload of its own"
            );
            return TargetState::Unusable("TargetInUse", what);
        }
        match watched_kind.store.get(&workload.key).map(|known| &known.selector) {
            Some(Ok(_)) => TargetState::Usable,
            Some(Err(why)) => TargetState::Unusable("BadTarget", format!("{what}, the target of {deployment}: {why}")),
            None => {
                let what = format!("there is no {what}, the target of {deployment}; create it, or correct targetRef");
                TargetState::Unusable("TargetNotFound", what)
            }
        }
    }
}
