//! Which pods belong to which workloads: by selectors, as the workloads' own controllers see it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kube::core::{Expression, Selector, SelectorExt};
use kube::runtime::watcher::Event;

use super::kinds::Kind;
use super::objects::{Key, Pod, TargetRef};
use super::store::{Change, Scope, Store};

/// Pods, and the workloads that want them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pods: Store<Pod>,
    /// Pods by each of their labels, so that a workload that comes late finds its own among many.
    labelled: HashMap<Label, HashSet<Key>>,
    wanted: HashMap<Arc<WorkloadKey>, Wanted>,
    /// Workloads by one label that their pods must have: a pod is compared with those few that it can belong to.
    by_label: HashMap<Label, Vec<Arc<WorkloadKey>>>,
    /// Those whose selector has no such label, by namespace.
    others: HashMap<Arc<str>, Vec<Arc<WorkloadKey>>>,
}

/// A workload of some kind, in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WorkloadKey {
    /// As `apps`; empty: the core.
    pub(super) group: String,
    /// As `Deployment`.
    pub(super) kind: String,
    /// Its place.
    pub(super) key: Key,
}

impl WorkloadKey {
    /// What an object at `key` points to.
    pub(super) fn of(key: &Key, target: TargetRef) -> Self {
        let TargetRef { api_version, kind, name } = target;
        Kind::of(&api_version, &kind).workload(Key { namespace: key.namespace.clone(), name: name.into() })
    }

    /// What it is one of.
    pub(super) fn kind(&self) -> Kind {
        Kind { group: self.group.clone(), kind: self.kind.clone() }
    }
}

#[derive(Debug)]
struct Wanted {
    selector: Selector,
    label: Option<Label>,
    pods: BTreeSet<Key>,
}

/// A namespace, a label's name and its value.
type Label = (Arc<str>, Box<str>, Box<str>);

/// What has become of a pod of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodChange {
    /// Whose pod it is.
    pub(super) workload: Arc<WorkloadKey>,
    /// Its `metadata.uid`.
    pub(super) uid: Arc<str>,
    /// Where it takes requests; `None`: it takes none.
    pub(super) ip: Option<IpAddr>,
}

impl PodChange {
    /// Where it takes requests on `port`.
    pub(super) fn address(&self, port: u16) -> Option<SocketAddr> {
        self.ip.map(|ip| SocketAddr::new(ip, port))
    }
}

impl Pods {
    /// Takes note of what a watch says. Returns what that changes for workloads that are wanted, and those whose pods have
    /// changed in whatever way.
    pub(super) fn note(
        &mut self,
        scope: &Scope,
        event: Event<(Key, Pod)>,
    ) -> (Vec<PodChange>, BTreeSet<Arc<WorkloadKey>>) {
        let (mut changes, mut touched) = (Vec::new(), BTreeSet::new());
        for change in self.pods.note(scope, event) {
            let (key, before) = match change {
                Change::Is(key, before) => (key, before),
                Change::Gone(key, before) => (key, Some(before)),
            };
            self.changed(&key, before.as_ref(), &mut changes, &mut touched);
        }
        (changes, touched)
    }

    /// Whether so many scopes have been listed.
    pub(super) fn is_complete(&self, scopes: usize) -> bool {
        self.pods.is_complete(scopes)
    }

    fn changed(
        &mut self,
        key: &Key,
        before: Option<&Pod>,
        changes: &mut Vec<PodChange>,
        touched: &mut BTreeSet<Arc<WorkloadKey>>,
    ) {
        let now = self.pods.get(key).cloned();
        let now = now.as_ref();
        self.label(key, before, now);
        let owners = |pod: Option<&Pod>| pod.map(|pod| self.owners(key, pod)).unwrap_or_default();
        let (left, has) = (owners(before), owners(now));
        let available = |pod: Option<&Pod>| pod.filter(|pod| pod.is_available()).map(|pod| (pod.uid.clone(), pod.ip));
        let (was, is) = (available(before), available(now));
        for workload in &left {
            let stays = has.contains(workload) && was.as_ref().map(|was| &was.0) == now.map(|pod| &pod.uid);
            if let (Some((uid, _)), false) = (&was, stays) {
                changes.push(PodChange { workload: workload.clone(), uid: uid.clone(), ip: None });
            }
        }
        for workload in &has {
            let is_known = left.contains(workload) && before.map(|pod| &pod.uid) == now.map(|pod| &pod.uid);
            let was = was.as_ref().filter(|_| is_known);
            if let Some(pod) = now
                && was != is.as_ref()
            {
                let ip = is.as_ref().and_then(|(_, ip)| *ip);
                changes.push(PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip });
            }
        }
        for workload in &left {
            if let Some(wanted) = self.wanted.get_mut(workload) {
                wanted.pods.remove(key);
            }
        }
        for workload in &has {
            if let Some(wanted) = self.wanted.get_mut(workload) {
                wanted.pods.insert(key.clone());
            }
        }
        touched.extend(left.into_iter().chain(has));
    }

    /// A workload is wanted, with this selector; or not any more, or it is not there. Returns what that changes.
    pub(super) fn select(&mut self, workload: &Arc<WorkloadKey>, selector: Option<Selector>) -> Vec<PodChange> {
        if self.wanted.get(workload).map(|wanted| &wanted.selector) == selector.as_ref() {
            return Vec::new();
        }
        let before = self.remove(workload);
        let now = selector.map(|selector| self.insert(workload, selector)).unwrap_or_default();
        let available = |key: &Key| self.pods.get(key).filter(|pod| pod.is_available());
        let left = before.difference(&now).filter_map(available).map(|pod| leaves(workload, pod));
        let came = now.difference(&before).filter_map(available);
        let came = came.map(|pod| PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip: pod.ip });
        left.chain(came).collect()
    }

    /// Those of a workload that take requests, as changes.
    pub(super) fn available<'p>(&'p self, workload: &'p Arc<WorkloadKey>) -> impl Iterator<Item = PodChange> + 'p {
        self.of(workload).filter(|(_, pod)| pod.is_available()).map(|(_, pod)| PodChange {
            workload: workload.clone(),
            uid: pod.uid.clone(),
            ip: pod.ip,
        })
    }

    /// How many of a workload's pods do not take requests yet.
    pub(super) fn pending(&self, workload: &WorkloadKey) -> usize {
        self.of(workload).filter(|(_, pod)| !pod.is_available() && !pod.is_leaving).count()
    }

    /// The pods of a workload.
    pub(super) fn of(&self, workload: &WorkloadKey) -> impl Iterator<Item = (&Key, &Pod)> {
        let keys = self.wanted.get(workload).into_iter().flat_map(|wanted| &wanted.pods);
        keys.filter_map(|key| Some((key, self.pods.get(key)?)))
    }

    /// The workloads whose selector takes a pod.
    fn owners(&self, key: &Key, pod: &Pod) -> Vec<Arc<WorkloadKey>> {
        let labels = pod.labels.iter();
        let named =
            labels.filter_map(|(name, value)| self.by_label.get(&(key.namespace.clone(), name.clone(), value.clone())));
        let candidates = named.chain(self.others.get(&key.namespace)).flatten();
        let labels: std::cell::OnceCell<BTreeMap<String, String>> = std::cell::OnceCell::new();
        let is_its = |workload: &&Arc<WorkloadKey>| {
            let labels = labels.get_or_init(|| owned(pod));
            self.wanted.get(*workload).is_some_and(|wanted| wanted.selector.matches(labels))
        };
        candidates.filter(is_its).cloned().collect()
    }

    fn insert(&mut self, workload: &Arc<WorkloadKey>, selector: Selector) -> BTreeSet<Key> {
        let namespace = &workload.key.namespace;
        let labels = selector.clone().into_iter().filter_map(|expression| match expression {
            Expression::Equal(name, value) => Some((namespace.clone(), name.into(), value.into())),
            _ => None,
        });
        // The one that says most.
        let size = |label: &Label| {
            (self.by_label.get(label).map_or(0, Vec::len), self.labelled.get(label).map_or(0, HashSet::len))
        };
        let label = labels.min_by_key(size);
        let is_its = |key: &&Key| self.pods.get(key).is_some_and(|pod| selector.matches(&owned(pod)));
        let pods: BTreeSet<Key> = match &label {
            Some(label) => self.labelled.get(label).into_iter().flatten().filter(is_its).cloned().collect(),
            None => self.pods.keys().filter(|key| key.namespace == *namespace).filter(is_its).cloned().collect(),
        };
        let places = match &label {
            Some(label) => self.by_label.entry(label.clone()).or_default(),
            None => self.others.entry(namespace.clone()).or_default(),
        };
        places.push(workload.clone());
        self.wanted.insert(workload.clone(), Wanted { selector, label, pods: pods.clone() });
        pods
    }

    /// Has a pod be found by its labels of now.
    fn label(&mut self, key: &Key, before: Option<&Pod>, now: Option<&Pod>) {
        if before.map(|pod| &pod.labels) == now.map(|pod| &pod.labels) {
            return;
        }
        let labels = |pod: Option<&'_ Pod>| -> Vec<Label> {
            let labels = pod.into_iter().flat_map(|pod| pod.labels.iter());
            labels.map(|(name, value)| (key.namespace.clone(), name.clone(), value.clone())).collect()
        };
        for label in labels(before) {
            if let Some(keys) = self.labelled.get_mut(&label) {
                keys.remove(key);
                if keys.is_empty() {
                    self.labelled.remove(&label);
                }
            }
        }
        for label in labels(now) {
            self.labelled.entry(label).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, workload: &Arc<WorkloadKey>) -> BTreeSet<Key> {
        let Some(wanted) = self.wanted.remove(workload) else { return BTreeSet::new() };
        let without = |places: &mut Vec<Arc<WorkloadKey>>| {
            places.retain(|other| other != workload);
            places.is_empty()
        };
        match &wanted.label {
            Some(label) if self.by_label.get_mut(label).is_some_and(without) => drop(self.by_label.remove(label)),
            None if self.others.get_mut(&workload.key.namespace).is_some_and(without) => {
                self.others.remove(&workload.key.namespace);
            }
            _ => {}
        }
        wanted.pods
    }
}

fn leaves(workload: &Arc<WorkloadKey>, pod: &Pod) -> PodChange {
    PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip: None }
}

/// Its labels as selectors take them.
fn owned(pod: &Pod) -> BTreeMap<String, String> {
    pod.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[cfg(test)]
mod tests;
