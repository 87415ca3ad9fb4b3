//! What deployments name: kinds of workloads, the workloads, and who has which.

use std::collections::HashMap;
use std::sync::Arc;

use kube::runtime::watcher::Event;
use tokio::task::AbortHandle;

use super::User;
use super::kinds::Kind;
use super::objects::Key;
use super::pods::WorkloadKey;
use super::store::{Change, Scope, Store};
use super::workloads::Workload;

/// Kinds as deployments name them, and the versions that they name them by.
pub(super) type Kinds = Box<[(Arc<Kind>, Box<str>)]>;

/// Everything that deployments name.
#[derive(Debug)]
pub(super) struct Targets {
    /// Watches of each kind.
    scopes: usize,
    kinds: HashMap<Arc<Kind>, Followed>,
    /// Which deployments name which workload; the first has it.
    users: HashMap<Arc<WorkloadKey>, Vec<User>>,
}

/// A kind that is named by somebody.
#[derive(Debug)]
struct Followed {
    store: Store<Workload>,
    /// Why it is of no use, if it is.
    unfit: Option<String>,
    /// How often it is named.
    uses: usize,
    watches: Vec<AbortHandle>,
}

/// Whether a workload can be the target of a deployment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can.
    Fit,
    /// Nobody knows yet.
    Unknown,
    /// Why not, in a word and in a sentence.
    Unfit(&'static str, String),
}

impl Targets {
    /// Nothing is named; each kind will have so many watches.
    pub(super) fn new(scopes: usize) -> Self {
        Self { scopes, kinds: HashMap::new(), users: HashMap::new() }
    }

    /// One more names a workload of this kind. `start` begins to watch it.
    pub(super) fn follow(&mut self, kind: &Arc<Kind>, start: impl FnOnce(&Arc<Kind>) -> Vec<AbortHandle>) {
        if let Some(followed) = self.kinds.get_mut(kind) {
            followed.uses += 1;
            return;
        }
        let watches = start(kind);
        self.kinds.insert(kind.clone(), Followed { store: Store::default(), unfit: None, uses: 1, watches });
    }

    /// The kind as it is known already, if it is: ten thousand endpoints mostly name one.
    pub(super) fn shared(&self, kind: Kind) -> Arc<Kind> {
        self.kinds.get_key_value(&kind).map_or_else(|| Arc::new(kind), |(known, _)| known.clone())
    }

    /// One less does. Returns whether nobody does any more.
    pub(super) fn unfollow(&mut self, kind: &Kind) -> bool {
        let Some(followed) = self.kinds.get_mut(kind) else { return false };
        followed.uses -= 1;
        let is_last = followed.uses == 0;
        if is_last && let Some(followed) = self.kinds.remove(kind) {
            followed.watches.iter().for_each(AbortHandle::abort);
        }
        is_last
    }

    /// Takes note of what a watch says. Returns the workloads that are others now.
    pub(super) fn note(&mut self, kind: &Kind, scope: &Scope, event: Event<(Key, Workload)>) -> Vec<Arc<WorkloadKey>> {
        let Some(followed) = self.kinds.get_mut(kind) else { return Vec::new() };
        let key = |change| match change {
            Change::Is(key, _) | Change::Gone(key, _) => Arc::new(kind.workload(key)),
        };
        followed.store.note(scope, event).into_iter().map(key).collect()
    }

    /// A kind is of no use, for this reason; `None`: it is.
    pub(super) fn set_unfit(&mut self, kind: &Kind, why: Option<String>) {
        if let Some(followed) = self.kinds.get_mut(kind) {
            followed.unfit = why;
        }
    }

    /// The same, of a kind as it is called in messages. Returns whether there is such a kind, and that is news.
    pub(super) fn set_unfit_as(&mut self, name: &str, why: Option<String>) -> bool {
        let Some((_, followed)) = self.kinds.iter_mut().find(|(kind, _)| kind.to_string() == name) else {
            return false;
        };
        let is_news = followed.unfit != why;
        followed.unfit = why;
        is_news
    }

    /// Whether everything that is named has been listed once, if it is of any use.
    pub(super) fn is_complete(&self) -> bool {
        self.kinds.values().all(|followed| followed.unfit.is_some() || followed.store.is_complete(self.scopes))
    }

    /// What there is of a workload.
    pub(super) fn workload(&self, of: &WorkloadKey) -> Option<&Workload> {
        self.kinds.get(&of.kind()).and_then(|followed| followed.store.get(&of.key))
    }

    /// The deployment that has a workload: of those that name it, the one whose endpoint is the oldest. Two could together
    /// exceed what its pods can take.
    pub(super) fn user(&self, workload: &WorkloadKey) -> Option<&User> {
        self.users(workload).first()
    }

    /// A workload, as it is kept, if any deployment names it.
    pub(super) fn named(&self, workload: &WorkloadKey) -> Option<&Arc<WorkloadKey>> {
        self.users.get_key_value(workload).map(|(known, _)| known)
    }

    /// Every deployment that names a workload.
    pub(super) fn users(&self, workload: &WorkloadKey) -> &[User] {
        self.users.get(workload).map_or(&[], Vec::as_slice)
    }

    /// These name a workload, the first of them has it.
    pub(super) fn set_users(&mut self, workload: &Arc<WorkloadKey>, users: Vec<User>) {
        if users.is_empty() {
            self.users.remove(workload);
        } else {
            self.users.insert(workload.clone(), users);
        }
    }

    /// Whether a workload can be the target of a deployment; where it is `others` that have it, it cannot.
    pub(super) fn standing(&self, workload: &WorkloadKey, of: &User, others: impl Fn(&User) -> bool) -> Standing {
        let Some(followed) = self.kinds.get(&workload.kind()) else { return Standing::Unknown };
        let (what, deployment) = (format!("{} {}", workload.kind, workload.key.name), &of.1);
        if let Some(why) = &followed.unfit {
            return Standing::Unfit("BadTarget", format!("{what}, the target of {deployment}: {why}"));
        }
        if !followed.store.is_complete(self.scopes) {
            return Standing::Unknown;
        }
        if let Some((endpoint, other)) = self.user(workload).filter(|user| others(user)) {
            let what = format!(
                "the pods of {what} belong to the deployment {other} of {endpoint}: two could send them more than they \
                 take; give {deployment} a workload of its own"
            );
            return Standing::Unfit("TargetInUse", what);
        }
        match followed.store.get(&workload.key).map(|known| &known.selector) {
            Some(Ok(_)) => Standing::Fit,
            Some(Err(why)) => Standing::Unfit("BadTarget", format!("{what}, the target of {deployment}: {why}")),
            None => {
                let what = format!("there is no {what}, the target of {deployment}; create it, or correct targetRef");
                Standing::Unfit("TargetNotFound", what)
            }
        }
    }
}
