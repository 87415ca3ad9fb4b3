//! Objects of one kind as a watch tells of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::runtime::watcher::Event;

use super::objects::Key;

/// What is watched: one namespace, all where it is empty, or one object of a namespace, `namespace/name`.
pub(super) type Scope = Arc<str>;

/// Whether an object is among what is watched.
fn is_within(scope: &str, key: &Key) -> bool {
    match scope.split_once('/') {
        None => scope.is_empty() || *key.namespace == *scope,
        Some((namespace, name)) => *key.namespace == *namespace && *key.name == *name,
    }
}

/// Objects of one kind, as they were last seen.
#[derive(Debug)]
pub(super) struct Store<T> {
    objects: HashMap<Key, T>,
    /// What a list that is not over yet has had; what it has not is gone.
    listing: HashMap<Scope, HashSet<Key>>,
    complete: HashSet<Scope>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listing: HashMap::new(), complete: HashSet::new() }
    }
}

/// What has become of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<T> {
    /// It is like this now, and was perhaps another before.
    Is(Key, Option<T>),
    /// It is gone, and was this.
    Gone(Key, T),
}

impl<T: Clone + PartialEq> Store<T> {
    /// Takes note of what a watch of `scope` says. Returns what has changed by it, with what was before.
    pub(super) fn note(&mut self, scope: &Scope, event: Event<(Key, T)>) -> Vec<Change<T>> {
        match event {
            Event::Init => {
                self.listing.insert(scope.clone(), HashSet::new());
                Vec::new()
            }
            Event::InitApply((key, object)) => {
                if let Some(listed) = self.listing.get_mut(scope) {
                    listed.insert(key.clone());
                }
                self.is(key, object)
            }
            Event::Apply((key, object)) => self.is(key, object),
            Event::Delete((key, _)) => self.gone(key).into_iter().collect(),
            Event::InitDone => {
                self.complete.insert(scope.clone());
                let listed = self.listing.remove(scope).unwrap_or_default();
                let within = self.objects.keys().filter(|key| is_within(scope, key));
                let missing = within.filter(|key| !listed.contains(*key));
                let missing: Vec<Key> = missing.cloned().collect();
                missing.into_iter().filter_map(|key| self.gone(key)).collect()
            }
        }
    }

    /// Whether all of so many scopes have been listed once.
    pub(super) fn is_complete(&self, scopes: usize) -> bool {
        self.complete.len() >= scopes
    }

    /// Whether what there is in `scope` has been listed once.
    pub(super) fn is_listed(&self, scope: &Scope) -> bool {
        self.complete.contains(scope)
    }

    /// Nobody watches `scope` any more.
    pub(super) fn forget(&mut self, scope: &Scope) {
        self.complete.remove(scope);
        self.listing.remove(scope);
        self.objects.retain(|key, _| !is_within(scope, key));
    }

    /// The object at `key`.
    pub(super) fn get(&self, key: &Key) -> Option<&T> {
        self.objects.get(key)
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// All objects.
    pub(super) fn values(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.objects.iter()
    }

    fn is(&mut self, key: Key, object: T) -> Vec<Change<T>> {
        if self.objects.get(&key) == Some(&object) {
            return Vec::new();
        }
        let before = self.objects.insert(key.clone(), object);
        vec![Change::Is(key, before)]
    }

    fn gone(&mut self, key: Key) -> Option<Change<T>> {
        let before = self.objects.remove(&key)?;
        Some(Change::Gone(key, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn what_vanished_while_nobody_watched_is_gone_when_the_list_is_complete() {
        let (all, mut store) = (Scope::from(""), Store::default());
        let (one, two) = (key("a", "one"), key("b", "two"));
        store.note(&all, Event::Init);
        store.note(&all, Event::InitApply((one.clone(), 1)));
        store.note(&all, Event::InitApply((two.clone(), 2)));
        assert!(!store.is_complete(1));
        assert_eq!(store.note(&all, Event::InitDone), []);
        assert!(store.is_complete(1));
        // The watch broke; when it is back, one is gone, and two is another one.
        assert_eq!(store.note(&all, Event::Init), []);
        assert_eq!(store.get(&one), Some(&1), "nothing is gone before the list is complete");
        assert_eq!(store.note(&all, Event::InitApply((two.clone(), 3))), [Change::Is(two, Some(2))]);
        assert_eq!(store.note(&all, Event::InitDone), [Change::Gone(one, 1)]);
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_of_others() {
        let (a, b, mut store) = (Scope::from("a"), Scope::from("b"), Store::default());
        for (scope, key) in [(&a, key("a", "one")), (&b, key("b", "two"))] {
            store.note(scope, Event::Init);
            store.note(scope, Event::InitApply((key, 1)));
            store.note(scope, Event::InitDone);
        }
        store.note(&a, Event::Init);
        assert_eq!(store.note(&a, Event::InitDone), [Change::Gone(key("a", "one"), 1)]);
        assert_eq!(store.get(&key("b", "two")), Some(&1));
    }

    #[test]
    fn of_an_object_watched_by_its_name_nothing_stays_when_nobody_watches_it() {
        let (scope, mut store) = (Scope::from("a/one"), Store::default());
        store.note(&scope, Event::Apply((key("a", "two"), 2)));
        for event in [Event::Init, Event::InitApply((key("a", "one"), 1)), Event::InitDone] {
            store.note(&scope, event);
        }
        assert!(store.is_listed(&scope) && store.get(&key("a", "two")).is_some(), "only its own object is listed");
        store.forget(&scope);
        assert!(!store.is_listed(&scope) && store.get(&key("a", "one")).is_none());
        store.note(&scope, Event::Init);
        assert_eq!(store.note(&scope, Event::InitDone), []);
    }

    #[test]
    fn what_is_the_same_is_no_change() {
        let (all, mut store) = (Scope::from(""), Store::default());
        let one = key("a", "one");
        assert_eq!(store.note(&all, Event::Apply((one.clone(), 1))), [Change::Is(one.clone(), None)]);
        assert_eq!(store.note(&all, Event::Apply((one.clone(), 1))), []);
        assert_eq!(store.note(&all, Event::Delete((one.clone(), 1))), [Change::Gone(one.clone(), 1)]);
        assert_eq!(store.note(&all, Event::Delete((one, 1))), []);
    }
}
