//! The effects of the cluster's state on routing: which object serves an endpoint name, and which deployment owns the
//! pods of a workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::super::secret_cache::SecretData;
use super::endpoints::RevalidatedObject;
use super::group_kinds::GroupKind;
use super::objects::{ObjectKey, ScaleTargetRef};
use super::pods::{PodChange, WorkloadKey};
use super::watch::{HPA_PLURAL, WatchError, WatchKey};
use super::watch_store::{StoreChange, WatchScope};
use super::{Cluster, DeploymentKey, DirtySet, Effect, WorkloadPort};
use crate::model::endpoint::{self, DeploymentTarget};
use crate::model::name::Name;

impl Cluster {
    /// Returns the changes for routing since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = self.collect_effects();
        // Objects may wait for a workload whose owner has changed.
        for workload in std::mem::take(&mut self.dirty.released) {
            self.recheck_awaiting(|awaited| *awaited == workload);
        }
        if !self.dirty.names.is_empty() {
            effects.extend(self.collect_effects());
        }
        effects
    }

    /// Returns the changes for routing once endpoints and keys have been listed; empty before.
    fn collect_effects(&mut self) -> Vec<Effect> {
        if !self.endpoint_objects.has_synced(self.watches.scope_count())
            || !self.secrets.endpoint_keys.has_synced(self.watches.scope_count())
        {
            // The owner of a name and the valid keys are known only when all objects have been listed.
            return Vec::new();
        }
        let mut effects = Vec::new();
        if !self.has_counted_replicas && self.has_synced_hpas() {
            // Until now, the router scaled no workload.
            self.has_counted_replicas = true;
            let workloads = self.workloads_by_endpoint.values().flat_map(BTreeMap::values);
            self.dirty.workloads.extend(workloads.map(|(workload, _)| workload.clone()));
        }
        let DirtySet { names, mut workloads, pods, statuses, released } = std::mem::take(&mut self.dirty);
        (self.dirty.statuses, self.dirty.released) = (statuses, released);
        let (waiting, names): (BTreeSet<_>, BTreeSet<_>) =
            names.into_iter().partition(|name| self.is_awaiting_secret(name));
        self.dirty.names = waiting;
        for name in names {
            effects.extend(self.apply_name_change(&name, &mut workloads));
            self.dirty.statuses.extend(self.endpoints.claimants(&name).cloned());
        }
        for change in pods {
            effects.extend(self.targets.owner(&change.workload).map(|owner| self.pod_effect(owner, &change)));
            workloads.insert(change.workload);
        }
        for workload in workloads {
            effects.extend(self.replica_effects(&workload));
            let claimants = self.targets.claimants(&workload).iter();
            let keys = claimants.filter_map(|(endpoint, _)| self.endpoints.name_owner(endpoint));
            self.dirty.statuses.extend(keys.cloned());
        }
        self.has_assigned_owners = true;
        effects
    }

    /// Returns whether the object that owns a name refers to a Secret that has not been listed yet.
    fn is_awaiting_secret(&self, name: &Name) -> bool {
        let known = self.endpoints.name_owner(name).and_then(|key| self.endpoints.get(key));
        let mut scopes = known.into_iter().flat_map(|known| &known.tls_secrets).map(ObjectKey::watch_scope);
        // It is no use to wait for a Secret that the router may not watch.
        let is_denied = |scope: &WatchScope| {
            let denied = self.watch_errors.iter().filter(|(_, error)| error.is_denied);
            denied.into_iter().any(|((_, other), _)| other == scope)
        };
        scopes.any(|scope| !self.secrets.referenced.has_synced_scope(&scope) && !is_denied(&scope))
    }

    /// Marks names whose endpoint may have changed as dirty, and makes the watches equal to what validated objects
    /// refer to.
    pub(super) fn apply_revalidated(&mut self, names: Vec<Name>) {
        self.dirty.names.extend(names);
        for RevalidatedObject { key, previous_tls_secrets, previous_kinds } in self.endpoints.take_revalidated() {
            let now = self.endpoints.get(&key);
            let (secrets, kinds) =
                now.map(|known| (known.tls_secrets.clone(), known.workload_kinds.clone())).unwrap_or_default();
            for secret in secrets {
                self.tls_secret_watches.entry(secret).or_insert_with_key(|secret| self.watches.watch_secret(secret));
            }
            for (kind, version) in &kinds {
                self.targets.acquire_kind(kind, |kind| self.watches.watch_kind(kind, version));
            }
            self.stop_unused_tls_watches(previous_tls_secrets);
            for (kind, _) in &previous_kinds {
                if self.targets.release_kind(kind) {
                    self.watch_errors.retain(|(what, _), _| *what != kind.to_string());
                }
            }
        }
    }

    /// Validates the objects again that wait for a workload for which `is_affected` is true.
    pub(super) fn recheck_awaiting(&mut self, is_affected: impl Fn(&Arc<WorkloadKey>) -> bool) {
        let names = self.endpoints.recheck_awaiting(is_affected, &self.secrets, &self.targets);
        self.apply_revalidated(names);
    }

    /// Stops the watches of those Secrets in `before` to which no object refers any more.
    fn stop_unused_tls_watches(&mut self, before: Vec<ObjectKey>) {
        for secret in before.into_iter().filter(|secret| !self.endpoints.is_tls_secret(secret)) {
            if let Some(watch) = self.tls_secret_watches.remove(&secret) {
                watch.abort();
                let scope = secret.watch_scope();
                self.watch_errors.retain(|(_, other), _| *other != scope);
                if !self.is_settings_secret(&secret) {
                    self.secrets.referenced.remove_scope(&scope);
                }
            }
        }
    }

    /// Returns whether the router's own settings refer to a Secret.
    fn is_settings_secret(&self, secret: &ObjectKey) -> bool {
        *secret.namespace == *self.watches.router_namespace()
            && self.settings_secrets.names().iter().any(|name| **name == *secret.name)
    }

    /// Applies an event of the watch of a Secret that endpoints or the router's settings refer to.
    pub(super) fn apply_referenced_secret_event(
        &mut self,
        scope: &WatchScope,
        event: Event<(ObjectKey, Arc<SecretData>)>,
    ) {
        for change in self.secrets.referenced.apply_event(scope, event) {
            let (StoreChange::Applied(key, _) | StoreChange::Deleted(key, _)) = change;
            let names = self.endpoints.recheck_secret_users(&key, &self.secrets, &self.targets);
            self.apply_revalidated(names);
        }
        let Some((namespace, name)) = scope.split_once('/').filter(|_| self.secrets.referenced.has_synced_scope(scope))
        else {
            return;
        };
        let key = ObjectKey { namespace: namespace.into(), name: name.into() };
        if self.is_settings_secret(&key) {
            let missing = || format!("there is no such Secret in the namespace {namespace}; create it");
            self.settings_secrets.set(name, self.secrets.referenced.get(&key).cloned().ok_or_else(missing));
        }
    }

    /// Updates the selector of a workload in the pod index. A workload without claimants has none.
    pub(super) fn update_selector(&mut self, workload: &Arc<WorkloadKey>) {
        let interned = self.targets.interned_workload(workload);
        let is_claimed = interned.is_some();
        // Uses the shared key of a claimed workload: there are tens of thousands of keys.
        let workload = interned.unwrap_or(workload);
        let selector =
            self.targets.workload(workload).and_then(|known| known.selector.as_ref().ok()).filter(|_| is_claimed);
        let changes = self.pods.set_selector(workload, selector.cloned());
        self.dirty.pods.extend(changes);
        if is_claimed {
            self.dirty.workloads.insert(workload.clone());
        }
    }

    fn apply_name_change(&mut self, name: &Name, workloads: &mut BTreeSet<Arc<WorkloadKey>>) -> Vec<Effect> {
        let desired = self.endpoints.desired_endpoint(name).cloned();
        let now = desired.as_ref().map(|desired| workloads_by_deployment(&desired.spec)).unwrap_or_default();
        let before = self.workloads_by_endpoint.remove(name).unwrap_or_default();
        if !now.is_empty() {
            self.workloads_by_endpoint.insert(name.clone(), now.clone());
        }
        // The endpoint comes first, so that its deployments exist when their pods are added.
        let mut effects = vec![Effect::Endpoint(name.clone(), desired)];
        for (deployment, target) in before.iter().filter(|(deployment, target)| now.get(*deployment) != Some(*target)) {
            let claimant = (name.clone(), deployment.clone());
            effects.extend(self.update_workload_claim(&target.0, &claimant, false));
            workloads.insert(target.0.clone());
        }
        for (deployment, target) in now.iter().filter(|(deployment, target)| before.get(*deployment) != Some(*target)) {
            let claimant = (name.clone(), deployment.clone());
            effects.extend(self.update_workload_claim(&target.0, &claimant, true));
            workloads.insert(target.0.clone());
        }
        effects
    }

    /// Adds or removes the claim of a deployment to a workload. If the owner changes, the pods move to the new owner.
    fn update_workload_claim(
        &mut self,
        workload: &Arc<WorkloadKey>,
        claimant: &DeploymentKey,
        is_claimed: bool,
    ) -> Vec<Effect> {
        let mut claimants = self.targets.claimants(workload).to_vec();
        let before = claimants.first().cloned();
        claimants.retain(|other| other != claimant);
        if is_claimed {
            claimants.push(claimant.clone());
            // An owner keeps the pods. The first assignment is to the oldest claimant.
            let kept = usize::from(self.has_assigned_owners && before.is_some());
            claimants[kept..].sort_by_cached_key(|other| {
                let known = self.endpoints.name_owner(&other.0).and_then(|key| self.endpoints.get(key));
                let age = known.map(|known| (known.object.created_at.clone(), known.object.uid.clone()));
                // After a restart, a claimant that was refused before must not win against the former owner.
                let conditions = known.iter().flat_map(|known| &known.object.status.conditions);
                let was_refused = conditions.into_iter().any(|condition| condition.reason == "TargetInUse");
                (was_refused, age, other.clone())
            });
        }
        let now = claimants.first().cloned();
        self.targets.set_claimants(workload, claimants);
        if before != now {
            self.dirty.released.push(workload.clone());
        }
        match (before, now) {
            (None, Some(owner)) => {
                let selector = self.targets.workload(workload).and_then(|known| known.selector.clone().ok());
                let added = self.pods.set_selector(workload, selector);
                added.iter().map(|change| self.pod_effect(&owner, change)).collect()
            }
            (Some(owner), None) => {
                let removed = self.pods.set_selector(workload, None);
                removed.iter().map(|change| self.pod_effect(&owner, change)).collect()
            }
            (Some(old), Some(new)) if old != new => {
                let gone = |change: &PodChange| PodChange { ip: None, ..change.clone() };
                let all: Vec<PodChange> = self.pods.available_pods(workload).collect();
                let both =
                    all.iter().flat_map(|change| [self.pod_effect(&old, &gone(change)), self.pod_effect(&new, change)]);
                both.collect()
            }
            _ => Vec::new(),
        }
    }

    fn pod_effect(&self, owner: &DeploymentKey, change: &PodChange) -> Effect {
        let workload = self.workloads_by_endpoint.get(&owner.0).and_then(|deployments| deployments.get(&owner.1));
        let address = workload.and_then(|(_, port)| change.address(*port));
        Effect::Pod { deployment: owner.clone(), uid: change.uid.clone(), address }
    }

    /// Returns a HorizontalPodAutoscaler that scales a workload, if there is one.
    pub(super) fn find_hpa(&self, workload: &WorkloadKey) -> Option<&ObjectKey> {
        let is_match = |(key, target): &(&ObjectKey, &Option<ScaleTargetRef>)| {
            let target = target.as_ref();
            target.is_some_and(|target| WorkloadKey::from_target_ref(key, target.clone()) == *workload)
        };
        self.hpas.iter().find(is_match).map(|(key, _)| key)
    }

    /// Returns whether all HorizontalPodAutoscalers have been listed, or the router may not list them.
    pub(super) fn has_synced_hpas(&self) -> bool {
        let is_denied = |(watched, error): (&WatchKey, &WatchError)| watched.0 == HPA_PLURAL && error.is_denied;
        self.hpas.has_synced(self.watches.scope_count()) || self.watch_errors.iter().any(is_denied)
    }

    fn replica_effects(&self, workload: &WorkloadKey) -> Vec<Effect> {
        let Some(owner) = self.targets.owner(workload) else { return Vec::new() };
        // Two autoscalers of one workload would work against each other.
        let is_free = self.has_synced_hpas() && self.find_hpa(workload).is_none();
        let replicas = self.targets.workload(workload).filter(|_| is_free).and_then(|known| known.replicas);
        vec![
            Effect::PendingPods(owner.clone(), self.pods.pending_count(workload)),
            Effect::WorkloadReplicas(owner.clone(), replicas),
        ]
    }
}

/// Returns the workloads that the deployments of an endpoint refer to.
pub(super) fn workloads_by_deployment(spec: &endpoint::Endpoint) -> BTreeMap<Name, WorkloadPort> {
    let namespace: Arc<str> = spec.namespace.as_deref().unwrap_or_default().into();
    let deployments = spec.deployments.iter().filter_map(|deployment| match &deployment.target {
        DeploymentTarget::Workload(target) => {
            let key = ObjectKey { namespace: namespace.clone(), name: target.name.as_str().into() };
            let workload = Arc::new(GroupKind::from_api_version(&target.api_version, &target.kind).workload_key(key));
            Some((deployment.name.clone(), (workload, target.port)))
        }
        DeploymentTarget::Instances(_) | DeploymentTarget::Process(_) => None,
    });
    deployments.collect()
}

/// Returns the kinds of workloads that deployments refer to, each once, with the lowest of the API versions used for
/// it.
pub(super) fn versioned_kinds<'s>(
    specs: impl IntoIterator<Item = &'s endpoint::Endpoint>,
) -> Vec<(GroupKind, &'s str)> {
    let deployments = specs.into_iter().flat_map(|spec| &spec.deployments);
    let kinds = deployments.filter_map(|deployment| match &deployment.target {
        DeploymentTarget::Workload(target) => {
            Some((GroupKind::from_api_version(&target.api_version, &target.kind), target.api_version.as_str()))
        }
        DeploymentTarget::Instances(_) | DeploymentTarget::Process(_) => None,
    });
    let mut all: Vec<(GroupKind, &str)> = kinds.collect();
    all.sort();
    all.dedup_by(|one, other| one.0 == other.0);
    all
}
