//! The assignment of pods to workloads by label selectors, as the controllers of the workloads do it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kube::core::{Expression, Selector, SelectorExt};
use kube::runtime::watcher::Event;

use super::group_kinds::GroupKind;
use super::objects::{ObjectKey, Pod, ScaleTargetRef};
use super::watch_store::{StoreChange, WatchScope, WatchStore};

/// All pods, and the workloads whose pods are wanted.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    pods: WatchStore<Pod>,
    /// The pods by each of their labels, so that the pods of a new workload are found without a scan of all pods.
    pods_by_label: HashMap<NamespacedLabel, HashSet<ObjectKey>>,
    selections: HashMap<Arc<WorkloadKey>, WorkloadSelection>,
    /// The workloads by one label that their pods must have, so that a pod is compared with few workloads only.
    workloads_by_label: HashMap<NamespacedLabel, Vec<Arc<WorkloadKey>>>,
    /// The workloads whose selector requires no label value, by namespace.
    workloads_without_label: HashMap<Arc<str>, Vec<Arc<WorkloadKey>>>,
}

/// The identity of a workload: its kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WorkloadKey {
    /// The API group, such as `apps`; empty for the core group.
    pub(super) group: String,
    /// The kind, such as `Deployment`.
    pub(super) kind: String,
    /// The namespace and the name.
    pub(super) key: ObjectKey,
}

impl WorkloadKey {
    /// Returns the workload to which the object at `key` refers in its own namespace.
    pub(super) fn from_target_ref(key: &ObjectKey, target: ScaleTargetRef) -> Self {
        let ScaleTargetRef { api_version, kind, name } = target;
        GroupKind::from_api_version(&api_version, &kind)
            .workload_key(ObjectKey { namespace: key.namespace.clone(), name: name.into() })
    }

    /// Returns the kind of the workload.
    pub(super) fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.group.clone(), kind: self.kind.clone() }
    }
}

#[derive(Debug)]
struct WorkloadSelection {
    selector: Selector,
    index_label: Option<NamespacedLabel>,
    pods: BTreeSet<ObjectKey>,
}

/// A namespace, a label's name and its value.
type NamespacedLabel = (Arc<str>, Box<str>, Box<str>);

/// A change of the availability of a pod of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodChange {
    /// The workload to which the pod belongs or belonged.
    pub(super) workload: Arc<WorkloadKey>,
    /// The UID of the pod (`metadata.uid`).
    pub(super) uid: Arc<str>,
    /// The IP address at which the pod takes requests; `None` if it takes none any more.
    pub(super) ip: Option<IpAddr>,
}

impl PodChange {
    /// Returns the address at which the pod takes requests, with `port`.
    pub(super) fn address(&self, port: u16) -> Option<SocketAddr> {
        self.ip.map(|ip| SocketAddr::new(ip, port))
    }
}

impl PodIndex {
    /// Applies an event of the pod watch of `scope`. Returns the availability changes of pods of wanted workloads, and
    /// the workloads of which any pod has changed in any way.
    pub(super) fn apply_event(
        &mut self,
        scope: &WatchScope,
        event: Event<(ObjectKey, Pod)>,
    ) -> (Vec<PodChange>, BTreeSet<Arc<WorkloadKey>>) {
        let (mut changes, mut touched) = (Vec::new(), BTreeSet::new());
        for change in self.pods.apply_event(scope, event) {
            let (key, before) = match change {
                StoreChange::Applied(key, before) => (key, before),
                StoreChange::Deleted(key, before) => (key, Some(before)),
            };
            self.update_pod(&key, before.as_ref(), &mut changes, &mut touched);
        }
        (changes, touched)
    }

    /// Returns whether the pods of `scopes` scopes have been listed.
    pub(super) fn has_synced(&self, scopes: usize) -> bool {
        self.pods.has_synced(scopes)
    }

    fn update_pod(
        &mut self,
        key: &ObjectKey,
        before: Option<&Pod>,
        changes: &mut Vec<PodChange>,
        touched: &mut BTreeSet<Arc<WorkloadKey>>,
    ) {
        let now = self.pods.get(key).cloned();
        let now = now.as_ref();
        self.reindex_labels(key, before, now);
        let owners = |pod: Option<&Pod>| pod.map(|pod| self.matching_workloads(key, pod)).unwrap_or_default();
        let (workloads_before, workloads_now) = (owners(before), owners(now));
        let available = |pod: Option<&Pod>| pod.filter(|pod| pod.is_available()).map(|pod| (pod.uid.clone(), pod.ip));
        let (available_before, available_now) = (available(before), available(now));
        for workload in &workloads_before {
            let stays = workloads_now.contains(workload)
                && available_before.as_ref().map(|was| &was.0) == now.map(|pod| &pod.uid);
            if let (Some((uid, _)), false) = (&available_before, stays) {
                changes.push(PodChange { workload: workload.clone(), uid: uid.clone(), ip: None });
            }
        }
        for workload in &workloads_now {
            let is_known = workloads_before.contains(workload) && before.map(|pod| &pod.uid) == now.map(|pod| &pod.uid);
            let known_before = available_before.as_ref().filter(|_| is_known);
            if let Some(pod) = now
                && known_before != available_now.as_ref()
            {
                let ip = available_now.as_ref().and_then(|(_, ip)| *ip);
                changes.push(PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip });
            }
        }
        for workload in &workloads_before {
            if let Some(selection) = self.selections.get_mut(workload) {
                selection.pods.remove(key);
            }
        }
        for workload in &workloads_now {
            if let Some(selection) = self.selections.get_mut(workload) {
                selection.pods.insert(key.clone());
            }
        }
        touched.extend(workloads_before.into_iter().chain(workloads_now));
    }

    /// Sets the selector of a wanted workload; `None` if it is not wanted any more or does not exist. Returns the
    /// resulting changes of pods.
    pub(super) fn set_selector(&mut self, workload: &Arc<WorkloadKey>, selector: Option<Selector>) -> Vec<PodChange> {
        if self.selections.get(workload).map(|selection| &selection.selector) == selector.as_ref() {
            return Vec::new();
        }
        let before = self.remove_workload(workload);
        let now = selector.map(|selector| self.insert_workload(workload, selector)).unwrap_or_default();
        let available = |key: &ObjectKey| self.pods.get(key).filter(|pod| pod.is_available());
        let removed = before.difference(&now).filter_map(available).map(|pod| removed_pod_change(workload, pod));
        let added = now.difference(&before).filter_map(available);
        let added = added.map(|pod| PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip: pod.ip });
        removed.chain(added).collect()
    }

    /// Returns the available pods of a workload, each as a change that adds it.
    pub(super) fn available_pods<'p>(&'p self, workload: &'p Arc<WorkloadKey>) -> impl Iterator<Item = PodChange> + 'p {
        self.workload_pods(workload).filter(|(_, pod)| pod.is_available()).map(|(_, pod)| PodChange {
            workload: workload.clone(),
            uid: pod.uid.clone(),
            ip: pod.ip,
        })
    }

    /// Returns the number of a workload's pods that do not take requests yet.
    pub(super) fn pending_count(&self, workload: &WorkloadKey) -> usize {
        self.workload_pods(workload).filter(|(_, pod)| !pod.is_available() && !pod.is_terminating).count()
    }

    /// Returns the pods of a workload.
    pub(super) fn workload_pods(&self, workload: &WorkloadKey) -> impl Iterator<Item = (&ObjectKey, &Pod)> {
        let keys = self.selections.get(workload).into_iter().flat_map(|selection| &selection.pods);
        keys.filter_map(|key| Some((key, self.pods.get(key)?)))
    }

    /// Returns the workloads whose selector matches a pod.
    fn matching_workloads(&self, key: &ObjectKey, pod: &Pod) -> Vec<Arc<WorkloadKey>> {
        let labels = pod.labels.iter();
        let named = labels.filter_map(|(name, value)| {
            self.workloads_by_label.get(&(key.namespace.clone(), name.clone(), value.clone()))
        });
        let candidates = named.chain(self.workloads_without_label.get(&key.namespace)).flatten();
        let labels: std::cell::OnceCell<BTreeMap<String, String>> = std::cell::OnceCell::new();
        let is_match = |workload: &&Arc<WorkloadKey>| {
            let labels = labels.get_or_init(|| label_map(pod));
            self.selections.get(*workload).is_some_and(|selection| selection.selector.matches(labels))
        };
        candidates.filter(is_match).cloned().collect()
    }

    fn insert_workload(&mut self, workload: &Arc<WorkloadKey>, selector: Selector) -> BTreeSet<ObjectKey> {
        let namespace = &workload.key.namespace;
        let labels = selector.clone().into_iter().filter_map(|expression| match expression {
            Expression::Equal(name, value) => Some((namespace.clone(), name.into(), value.into())),
            _ => None,
        });
        // The most selective label: with the fewest workloads, then with the fewest pods.
        let size = |label: &NamespacedLabel| {
            (
                self.workloads_by_label.get(label).map_or(0, Vec::len),
                self.pods_by_label.get(label).map_or(0, HashSet::len),
            )
        };
        let label = labels.min_by_key(size);
        let is_match = |key: &&ObjectKey| self.pods.get(key).is_some_and(|pod| selector.matches(&label_map(pod)));
        let pods: BTreeSet<ObjectKey> = match &label {
            Some(label) => self.pods_by_label.get(label).into_iter().flatten().filter(is_match).cloned().collect(),
            None => self.pods.keys().filter(|key| key.namespace == *namespace).filter(is_match).cloned().collect(),
        };
        let workloads = match &label {
            Some(label) => self.workloads_by_label.entry(label.clone()).or_default(),
            None => self.workloads_without_label.entry(namespace.clone()).or_default(),
        };
        workloads.push(workload.clone());
        self.selections
            .insert(workload.clone(), WorkloadSelection { selector, index_label: label, pods: pods.clone() });
        pods
    }

    /// Updates the label index when the labels of a pod have changed.
    fn reindex_labels(&mut self, key: &ObjectKey, before: Option<&Pod>, now: Option<&Pod>) {
        if before.map(|pod| &pod.labels) == now.map(|pod| &pod.labels) {
            return;
        }
        let labels = |pod: Option<&'_ Pod>| -> Vec<NamespacedLabel> {
            let labels = pod.into_iter().flat_map(|pod| pod.labels.iter());
            labels.map(|(name, value)| (key.namespace.clone(), name.clone(), value.clone())).collect()
        };
        for label in labels(before) {
            if let Some(keys) = self.pods_by_label.get_mut(&label) {
                keys.remove(key);
                if keys.is_empty() {
                    self.pods_by_label.remove(&label);
                }
            }
        }
        for label in labels(now) {
            self.pods_by_label.entry(label).or_default().insert(key.clone());
        }
    }

    fn remove_workload(&mut self, workload: &Arc<WorkloadKey>) -> BTreeSet<ObjectKey> {
        let Some(selection) = self.selections.remove(workload) else { return BTreeSet::new() };
        let without = |workloads: &mut Vec<Arc<WorkloadKey>>| {
            workloads.retain(|other| other != workload);
            workloads.is_empty()
        };
        match &selection.index_label {
            Some(label) if self.workloads_by_label.get_mut(label).is_some_and(without) => {
                drop(self.workloads_by_label.remove(label))
            }
            None if self.workloads_without_label.get_mut(&workload.key.namespace).is_some_and(without) => {
                self.workloads_without_label.remove(&workload.key.namespace);
            }
            _ => {}
        }
        selection.pods
    }
}

fn removed_pod_change(workload: &Arc<WorkloadKey>, pod: &Pod) -> PodChange {
    PodChange { workload: workload.clone(), uid: pod.uid.clone(), ip: None }
}

/// Returns the labels of a pod in the form that selectors need.
fn label_map(pod: &Pod) -> BTreeMap<String, String> {
    pod.labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[cfg(test)]
mod tests;
