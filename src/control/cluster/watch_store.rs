//! A store of the objects of one kind, kept up to date by the events of watches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::objects::ObjectKey;

/// The scope of a watch: one namespace, all namespaces if it is empty, or one object, as `namespace/name`.
pub(super) type WatchScope = Arc<str>;

/// Returns whether an object is in the scope of a watch.
fn is_within(scope: &str, key: &ObjectKey) -> bool {
    match scope.split_once('/') {
        None => scope.is_empty() || *key.namespace == *scope,
        Some((namespace, name)) => *key.namespace == *namespace && *key.name == *name,
    }
}

/// The objects of one kind as they were last observed.
#[derive(Debug)]
pub(super) struct WatchStore<T> {
    objects: HashMap<ObjectKey, T>,
    /// The objects received so far in each unfinished list. Stored objects that are missing when it ends are deleted.
    relists: HashMap<WatchScope, HashSet<ObjectKey>>,
    synced_scopes: HashSet<WatchScope>,
}

impl<T> Default for WatchStore<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), relists: HashMap::new(), synced_scopes: HashSet::new() }
    }
}

/// A change of a stored object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoreChange<T> {
    /// The object was added or replaced; the value is the object before, if there was one.
    Applied(ObjectKey, Option<T>),
    /// The object was deleted; the value is the object before.
    Deleted(ObjectKey, T),
}

impl<T: Clone + PartialEq> WatchStore<T> {
    /// Applies an event of the watch of `scope`. Returns the changes with the objects before.
    pub(super) fn apply_event(&mut self, scope: &WatchScope, event: Event<(ObjectKey, T)>) -> Vec<StoreChange<T>> {
        match event {
            Event::Init => {
                self.relists.insert(scope.clone(), HashSet::new());
                Vec::new()
            }
            Event::InitApply((key, object)) => {
                if let Some(listed) = self.relists.get_mut(scope) {
                    listed.insert(key.clone());
                }
                self.apply_object(key, object)
            }
            Event::Apply((key, object)) => self.apply_object(key, object),
            Event::Delete((key, _)) => self.remove_object(key).into_iter().collect(),
            Event::InitDone => {
                self.synced_scopes.insert(scope.clone());
                let listed = self.relists.remove(scope).unwrap_or_default();
                let within = self.objects.keys().filter(|key| is_within(scope, key));
                let missing = within.filter(|key| !listed.contains(*key));
                let missing: Vec<ObjectKey> = missing.cloned().collect();
                missing.into_iter().filter_map(|key| self.remove_object(key)).collect()
            }
        }
    }

    /// Returns whether `scopes` scopes have been listed once.
    pub(super) fn has_synced(&self, scopes: usize) -> bool {
        self.synced_scopes.len() >= scopes
    }

    /// Returns whether the objects in `scope` have been listed once.
    pub(super) fn has_synced_scope(&self, scope: &WatchScope) -> bool {
        self.synced_scopes.contains(scope)
    }

    /// Removes the objects in `scope`, which is not watched any more.
    pub(super) fn remove_scope(&mut self, scope: &WatchScope) {
        self.synced_scopes.remove(scope);
        self.relists.remove(scope);
        self.objects.retain(|key, _| !is_within(scope, key));
    }

    /// Returns the object at `key`.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&T> {
        self.objects.get(key)
    }

    /// Returns the keys of all objects.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys()
    }

    /// Returns all objects with their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &T)> {
        self.objects.iter()
    }

    fn apply_object(&mut self, key: ObjectKey, object: T) -> Vec<StoreChange<T>> {
        if self.objects.get(&key) == Some(&object) {
            return Vec::new();
        }
        let before = self.objects.insert(key.clone(), object);
        vec![StoreChange::Applied(key, before)]
    }

    fn remove_object(&mut self, key: ObjectKey) -> Option<StoreChange<T>> {
        let before = self.objects.remove(&key)?;
        Some(StoreChange::Deleted(key, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn what_vanished_while_nobody_watched_is_gone_when_the_list_is_complete() {
        let (all, mut store) = (WatchScope::from(""), WatchStore::default());
        let (one, two) = (key("a", "one"), key("b", "two"));
        store.apply_event(&all, Event::Init);
        store.apply_event(&all, Event::InitApply((one.clone(), 1)));
        store.apply_event(&all, Event::InitApply((two.clone(), 2)));
        assert!(!store.has_synced(1));
        assert_eq!(store.apply_event(&all, Event::InitDone), []);
        assert!(store.has_synced(1));
        // The watch is interrupted. When it works again, `one` is deleted and `two` has changed.
        assert_eq!(store.apply_event(&all, Event::Init), []);
        assert_eq!(store.get(&one), Some(&1), "nothing is gone before the list is complete");
        assert_eq!(store.apply_event(&all, Event::InitApply((two.clone(), 3))), [StoreChange::Applied(two, Some(2))]);
        assert_eq!(store.apply_event(&all, Event::InitDone), [StoreChange::Deleted(one, 1)]);
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_of_others() {
        let (a, b, mut store) = (WatchScope::from("a"), WatchScope::from("b"), WatchStore::default());
        for (scope, key) in [(&a, key("a", "one")), (&b, key("b", "two"))] {
            store.apply_event(scope, Event::Init);
            store.apply_event(scope, Event::InitApply((key, 1)));
            store.apply_event(scope, Event::InitDone);
        }
        store.apply_event(&a, Event::Init);
        assert_eq!(store.apply_event(&a, Event::InitDone), [StoreChange::Deleted(key("a", "one"), 1)]);
        assert_eq!(store.get(&key("b", "two")), Some(&1));
    }

    #[test]
    fn of_an_object_watched_by_its_name_nothing_stays_when_nobody_watches_it() {
        let (scope, mut store) = (WatchScope::from("a/one"), WatchStore::default());
        store.apply_event(&scope, Event::Apply((key("a", "two"), 2)));
        for event in [Event::Init, Event::InitApply((key("a", "one"), 1)), Event::InitDone] {
            store.apply_event(&scope, event);
        }
        assert!(
            store.has_synced_scope(&scope) && store.get(&key("a", "two")).is_some(),
            "only its own object is listed"
        );
        store.remove_scope(&scope);
        assert!(!store.has_synced_scope(&scope) && store.get(&key("a", "one")).is_none());
        store.apply_event(&scope, Event::Init);
        assert_eq!(store.apply_event(&scope, Event::InitDone), []);
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let (all, mut store) = (WatchScope::from(""), WatchStore::default());
        let one = key("a", "one");
        assert_eq!(store.apply_event(&all, Event::Apply((one.clone(), 1))), [StoreChange::Applied(one.clone(), None)]);
        assert_eq!(store.apply_event(&all, Event::Apply((one.clone(), 1))), []);
        assert_eq!(store.apply_event(&all, Event::Delete((one.clone(), 1))), [StoreChange::Deleted(one.clone(), 1)]);
        assert_eq!(store.apply_event(&all, Event::Delete((one, 1))), []);
    }
}
