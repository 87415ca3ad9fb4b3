//! What there is in a cluster, as what it means for routing: names, and whose pods are whose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::super::secrets::Entries;
use super::endpoints::Renamed;
use super::kinds::Kind;
use super::objects::{Key, TargetRef};
use super::pods::{PodChange, WorkloadKey};
use super::store::{Change, Scope};
use super::watch::{AUTOSCALERS, Trouble, Watched};
use super::{Cluster, Effect, Named, Touched, User};
use crate::model::endpoint::{self, Target};
use crate::model::name::Name;

impl Cluster {
    /// What has changed for routing since this was last called.
    pub fn effects(&mut self) -> Vec<Effect> {
        let mut effects = self.changes();
        // A workload that somebody else has now, or nobody, may be what others wait for.
        for workload in std::mem::take(&mut self.touched.freed) {
            self.settle(|of| *of == workload);
        }
        if !self.touched.names.is_empty() {
            effects.extend(self.changes());
        }
        effects
    }

    /// What has changed for routing, once there is something to go by.
    fn changes(&mut self) -> Vec<Effect> {
        if !self.objects.is_complete(self.watches.scopes()) || !self.secrets.keys.is_complete(self.watches.scopes()) {
            // Which of two has a name, and which keys are good, is known only when all are.
            return Vec::new();
        }
        let mut effects = Vec::new();
        if !self.has_counted && self.knows_autoscalers() {
            // Until now nobody's replicas were the router's affair.
            self.has_counted = true;
            let named = self.named.values().flat_map(BTreeMap::values);
            self.touched.workloads.extend(named.map(|(workload, _)| workload.clone()));
        }
        let Touched { names, mut workloads, pods, reports, freed } = std::mem::take(&mut self.touched);
        (self.touched.reports, self.touched.freed) = (reports, freed);
        let (waiting, names): (BTreeSet<_>, BTreeSet<_>) = names.into_iter().partition(|name| self.is_waiting(name));
        self.touched.names = waiting;
        for name in names {
            effects.extend(self.name_changed(&name, &mut workloads));
            self.touched.reports.extend(self.endpoints.claimants(&name).cloned());
        }
        for change in pods {
            effects.extend(self.targets.user(&change.workload).map(|user| self.pod(user, &change)));
            workloads.insert(change.workload);
        }
        for workload in workloads {
            effects.extend(self.counted(&workload));
            let users = self.targets.users(&workload).iter();
            let keys = users.filter_map(|(endpoint, _)| self.endpoints.holder(endpoint));
            self.touched.reports.extend(keys.cloned());
        }
        self.is_settled = true;
        effects
    }

    /// Whether a name means something that has a Secret which is not known yet.
    fn is_waiting(&self, name: &Name) -> bool {
        let known = self.endpoints.holder(name).and_then(|key| self.endpoints.get(key));
        let mut scopes = known.into_iter().flat_map(|known| &known.tls).map(Key::scope);
        // One that cannot be watched is waited for in vain.
        let is_denied = |scope: &Scope| {
            let denied = self.trouble.iter().filter(|(_, trouble)| trouble.is_denied);
            denied.into_iter().any(|((_, other), _)| other == scope)
        };
        scopes.any(|scope| !self.secrets.named.is_listed(&scope) && !is_denied(&scope))
    }

    /// These names may mean something else now; what is named by what they mean is watched, and nothing else.
    pub(super) fn renamed(&mut self, names: Vec<Name>) {
        self.touched.names.extend(names);
        for Renamed { object, tls, kinds } in self.endpoints.take_renamed() {
            let now = self.endpoints.get(&object);
            let now = now.map(|known| (known.tls.clone(), known.kinds.clone())).unwrap_or_default();
            for secret in now.0 {
                self.tls.entry(secret).or_insert_with_key(|secret| self.watches.start_secret(secret));
            }
            for (kind, version) in &now.1 {
                self.targets.follow(kind, |kind| self.watches.start_kind(kind, version));
            }
            self.unfollow_tls(tls);
            for (kind, _) in &kinds {
                if self.targets.unfollow(kind) {
                    self.trouble.retain(|(what, _), _| *what != kind.to_string());
                }
            }
        }
    }

    /// Reads those objects again that wait for a target among `which`.
    pub(super) fn settle(&mut self, which: impl Fn(&Arc<WorkloadKey>) -> bool) {
        let names = self.endpoints.settle(which, &self.secrets, &self.targets);
        self.renamed(names);
    }

    /// Has those Secrets not be watched any more that nobody names.
    fn unfollow_tls(&mut self, before: Vec<Key>) {
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
            let names = self.endpoints.secret_changed(&key, &self.secrets, &self.targets);
            self.renamed(names);
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
        let named = self.targets.named(workload);
        let is_named = named.is_some();
        // The same one where somebody names it: there are tens of thousands of them.
        let workload = named.unwrap_or(workload);
        let selector =
            self.targets.workload(workload).and_then(|known| known.selector.as_ref().ok()).filter(|_| is_named);
        let changes = self.pods.select(workload, selector.cloned());
        self.touched.pods.extend(changes);
        if is_named {
            self.touched.workloads.insert(workload.clone());
        }
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
        let mut users = self.targets.users(workload).to_vec();
        let before = users.first().cloned();
        users.retain(|other| other != user);
        if names_it {
            users.push(user.clone());
            // Who has the pods keeps them; at first that is the oldest.
            let kept = usize::from(self.is_settled && before.is_some());
            users[kept..].sort_by_cached_key(|user| {
                let known = self.endpoints.holder(&user.0).and_then(|key| self.endpoints.get(key));
                let age = known.map(|known| (known.object.created.clone(), known.object.uid.clone()));
                // Nor one that was refused them, after a restart.
                let conditions = known.iter().flat_map(|known| &known.object.status.conditions);
                let was_refused = conditions.into_iter().any(|condition| condition.reason == "TargetInUse");
                (was_refused, age, user.clone())
            });
        }
        let now = users.first().cloned();
        self.targets.set_users(workload, users);
        if before != now {
            self.touched.freed.push(workload.clone());
        }
        match (before, now) {
            (None, Some(user)) => {
                let selector = self.targets.workload(workload).and_then(|known| known.selector.clone().ok());
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

    /// Whether somebody else's scaling would be seen; without a right to look it never is.
    pub(super) fn knows_autoscalers(&self) -> bool {
        let is_denied = |(watched, trouble): (&Watched, &Trouble)| watched.0 == AUTOSCALERS && trouble.is_denied;
        self.autoscalers.is_complete(self.watches.scopes()) || self.trouble.iter().any(is_denied)
    }

    fn counted(&self, workload: &WorkloadKey) -> Vec<Effect> {
        let Some(user) = self.targets.user(workload) else { return Vec::new() };
        // Two that scale the same would fight over it.
        let is_free = self.knows_autoscalers() && self.autoscaler(workload).is_none();
        let replicas = self.targets.workload(workload).filter(|_| is_free).and_then(|known| known.replicas);
        vec![Effect::Pending(user.clone(), self.pods.pending(workload)), Effect::Replicas(user.clone(), replicas)]
    }
}

/// What the deployments of an endpoint name.
pub(super) fn named(spec: &endpoint::Endpoint) -> BTreeMap<Name, Named> {
    let namespace: Arc<str> = spec.namespace.as_deref().unwrap_or_default().into();
    let deployments = spec.deployments.iter().filter_map(|deployment| match &deployment.target {
        Target::Workload(target) => {
            let key = Key { namespace: namespace.clone(), name: target.name.as_str().into() };
            let workload = Arc::new(Kind::of(&target.api_version, &target.kind).workload(key));
            Some((deployment.name.clone(), (workload, target.port)))
        }
        Target::Instances(_) | Target::Process(_) => None,
    });
    deployments.collect()
}

/// The kinds that deployments name workloads of, each once, with the version that the first names it by.
pub(super) fn kinds_of<'s>(specs: impl IntoIterator<Item = &'s endpoint::Endpoint>) -> Vec<(Kind, &'s str)> {
    let deployments = specs.into_iter().flat_map(|spec| &spec.deployments);
    let kinds = deployments.filter_map(|deployment| match &deployment.target {
        Target::Workload(target) => Some((Kind::of(&target.api_version, &target.kind), target.api_version.as_str())),
        Target::Instances(_) | Target::Process(_) => None,
    });
    let mut all: Vec<(Kind, &str)> = kinds.collect();
    all.sort();
    all.dedup_by(|one, other| one.0 == other.0);
    all
}
