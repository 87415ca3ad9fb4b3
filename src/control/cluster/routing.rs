//! What there is in a cluster, as what it means for routing: names, and whose pods are whose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::super::secrets::Entries;
use super::objects::{Key, TargetRef};
use super::pods::{PodChange, WorkloadKey};
use super::store::{Change, Scope, Store};
use super::workloads::Workload;
use super::{Cluster, Effect, Named, Touched, User};
use crate::model::endpoint::{self, Target};
use crate::model::name::Name;

impl Cluster {
    /// What has changed for routing since this was last called.
    pub fn effects(&mut self) -> Vec<Effect> {
        if !self.objects.is_complete(self.watches.scopes()) || !self.secrets.keys.is_complete(self.watches.scopes()) {
            // Which of two has a name, and which keys are good, is known only when all are.
            return Vec::new();
        }
        let mut effects = Vec::new();
        let Touched { names, mut workloads, pods, reports } = std::mem::take(&mut self.touched);
        self.touched.reports = reports;
        let (waiting, names): (BTreeSet<_>, BTreeSet<_>) = names.into_iter().partition(|name| self.is_waiting(name));
        self.touched.names = waiting;
        for name in names {
            effects.extend(self.name_changed(&name, &mut workloads));
            self.touched.reports.extend(self.endpoints.claimants(&name).cloned());
        }
        for change in pods {
            effects.extend(self.user(&change.workload).map(|user| self.pod(user, &change)));
            workloads.insert(change.workload);
        }
        for workload in workloads {
            effects.extend(self.counted(&workload));
            let users = self.users.get(&workload).into_iter().flatten();
            let keys = users.filter_map(|(endpoint, _)| self.endpoints.holder(endpoint));
            self.touched.reports.extend(keys.cloned());
        }
        effects
    }

    /// Whether a name means something that has a Secret which is not known yet.
    fn is_waiting(&self, name: &Name) -> bool {
        let known = self.endpoints.holder(name).and_then(|key| self.endpoints.get(key));
        let mut scopes = known.into_iter().flat_map(|known| &known.tls).map(Key::scope);
        // One that cannot be watched is waited for in vain.
        let is_denied = |scope: &Scope| self.trouble.keys().any(|(_, other)| other == scope);
        scopes.any(|scope| !self.secrets.named.is_listed(&scope) && !is_denied(&scope))
    }

    /// Has the Secrets for TLS that an object names be watched, and those not any more that only it has named `before`.
    pub(super) fn follow_tls(&mut self, object: &Key, before: Vec<Key>) {
        let now = self.endpoints.get(object).map(|known| known.tls.clone()).unwrap_or_default();
        for secret in now {
            self.tls.entry(secret).or_insert_with_key(|secret| self.watches.start_secret(secret));
        }
        for secret in before.into_iter().filter(|secret| !self.endpoints.is_for_tls(secret)) {
            if let Some(watch) = self.tls.remove(&secret) {
                watch.abort();
                let scope = secret.scope();
                self.trouble.retain(|(_, other), _| *other != scope);
                if !self.is_own(&secret) {
                    self.secrets.named.forget(&scope);
                }
            }
        }
    }

    /// Whether the router's own settings name a Secret.
    fn is_own(&self, secret: &Key) -> bool {
        *secret.namespace == *self.watches.own_namespace() && self.own.names().iter().any(|name| **name == *secret.name)
    }

    /// A watch tells of a Secret that is named.
    pub(super) fn named_secret(&mut self, scope: &Scope, event: Event<(Key, Arc<Entries>)>) {
        for change in self.secrets.named.note(scope, event) {
            let (Change::Is(key, _) | Change::Gone(key, _)) = change;
            self.touched.names.extend(self.endpoints.secret_changed(&key, &self.secrets));
        }
        let Some((namespace, name)) = scope.split_once('/').filter(|_| self.secrets.named.is_listed(scope)) else {
            return;
        };
        let key = Key { namespace: namespace.into(), name: name.into() };
        if self.is_own(&key) {
            let missing = || format!("there is no such Secret in the namespace {namespace}; create it");
            self.own.set(name, self.secrets.named.get(&key).cloned().ok_or_else(missing));
        }
    }

    /// Has the pods of a workload be found, if anybody names it.
    pub(super) fn select(&mut self, workload: &Arc<WorkloadKey>) {
        let is_named = self.users.contains_key(workload);
        let selector = self.workload(workload).and_then(|known| known.selector.as_ref().ok()).filter(|_| is_named);
        let changes = self.pods.select(workload, selector.cloned());
        self.touched.pods.extend(changes);
        if is_named {
            self.touched.workloads.insert(workload.clone());
        }
    }

    pub(super) fn workload(&self, of: &WorkloadKey) -> Option<&Workload> {
        self.workloads.get(&of.kind()).and_then(|store| store.get(&of.key))
    }

    /// The deployment that has a workload: of those that name it, the one whose endpoint is the oldest. Two could together exceed what its pods can take.
    pub(super) fn user(&self, workload: &WorkloadKey) -> Option<&User> {
        self.users.get(workload).and_then(|users| users.first())
    }

    fn name_changed(&mut self, name: &Name, workloads: &mut BTreeSet<Arc<WorkloadKey>>) -> Vec<Effect> {
        let desired = self.endpoints.of(name).cloned();
        let now = desired.as_ref().map(|desired| named(&desired.spec)).unwrap_or_default();
        let before = self.named.remove(name).unwrap_or_default();
        if !now.is_empty() {
            self.named.insert(name.clone(), now.clone());
        }
        // First the endpoint, so that its deployments are there when their pods come.
        let mut effects = vec![Effect::Endpoint(name.clone(), desired)];
        for (deployment, target) in before.iter().filter(|(deployment, target)| now.get(*deployment) != Some(*target)) {
            let user = (name.clone(), deployment.clone());
            effects.extend(self.hand_over(&target.0, &user, false));
            workloads.insert(target.0.clone());
        }
        for (deployment, target) in now.iter().filter(|(deployment, target)| before.get(*deployment) != Some(*target)) {
            let user = (name.clone(), deployment.clone());
            effects.extend(self.hand_over(&target.0, &user, true));
            workloads.insert(target.0.clone());
        }
        effects
    }

    /// A deployment names a workload, or does not any more. The workload's pods go from who had it to who has it then.
    fn hand_over(&mut self, workload: &Arc<WorkloadKey>, user: &User, names_it: bool) -> Vec<Effect> {
        let mut users = self.users.remove(workload).unwrap_or_default();
        let before = users.first().cloned();
        users.retain(|other| other != user);
        if names_it {
            users.push(user.clone());
            // A new endpoint must not take the pods of one that serves, whatever it is called.
            users.sort_by_cached_key(|user| {
                let known = self.endpoints.holder(&user.0).and_then(|key| self.endpoints.get(key));
                (known.map(|known| (known.object.created.clone(), known.object.uid.clone())), user.clone())
            });
        }
        let now = users.first().cloned();
        if !users.is_empty() {
            self.users.insert(workload.clone(), users);
        }
        match (before, now) {
            (None, Some(user)) => {
                self.follow(workload);
                let selector = self.workload(workload).and_then(|known| known.selector.clone().ok());
                let came = self.pods.select(workload, selector);
                came.iter().map(|change| self.pod(&user, change)).collect()
            }
            (Some(user), None) => {
                let left = self.pods.select(workload, None);
                left.iter().map(|change| self.pod(&user, change)).collect()
            }
            (Some(old), Some(new)) if old != new => {
                let gone = |change: &PodChange| PodChange { ip: None, ..change.clone() };
                let all: Vec<PodChange> = self.pods.available(workload).collect();
                let both = all.iter().flat_map(|change| [self.pod(&old, &gone(change)), self.pod(&new, change)]);
                both.collect()
            }
            _ => Vec::new(),
        }
    }

    /// Has workloads of its kind be watched.
    fn follow(&mut self, workload: &WorkloadKey) {
        let kind = Arc::new(workload.kind());
        if !self.workloads.contains_key(&kind) {
            self.watches.start_kind(&kind);
            self.workloads.insert(kind, Store::default());
        }
    }

    fn pod(&self, user: &User, change: &PodChange) -> Effect {
        let named = self.named.get(&user.0).and_then(|deployments| deployments.get(&user.1));
        let address = named.and_then(|(_, port)| change.address(*port));
        Effect::Pod { of: user.clone(), uid: change.uid.clone(), address }
    }

    /// A HorizontalPodAutoscaler that scales a workload.
    pub(super) fn autoscaler(&self, workload: &WorkloadKey) -> Option<&Key> {
        let is_its = |(key, target): &(&Key, &Option<TargetRef>)| {
            let target = target.as_ref();
            target.is_some_and(|target| WorkloadKey::of(key, target.clone()) == *workload)
        };
        self.autoscalers.values().find(is_its).map(|(key, _)| key)
    }

    fn counted(&self, workload: &WorkloadKey) -> Vec<Effect> {
        let Some(user) = self.user(workload) else { return Vec::new() };
        // Two that scale the same would fight over it.
        let is_free = self.autoscaler(workload).is_none();
        let replicas = self.workload(workload).filter(|_| is_free).and_then(|known| known.replicas);
        vec![Effect::Pending(user.clone(), self.pods.pending(workload)), Effect::Replicas(user.clone(), replicas)]
    }
}

/// What the deployments of an endpoint name.
pub(super) fn named(spec: &endpoint::Endpoint) -> BTreeMap<Name, Named> {
    let namespace: Arc<str> = spec.namespace.as_deref().unwrap_or_default().into();
    let deployments = spec.deployments.iter().filter_map(|deployment| match &deployment.target {
        Target::Workload(target) => {
            let key = Key { namespace: namespace.clone(), name: target.name.as_str().into() };
            let (api_version, kind) = (target.api_version.clone(), target.kind.clone());
            let workload = Arc::new(WorkloadKey { api_version, kind, key });
            Some((deployment.name.clone(), (workload, target.port)))
        }
        Target::Instances(_) | Target::Process(_) => None,
    });
    deployments.collect()
}
