//! How the number of a deployment's replicas is decided, and why it is what it is: for whoever asks.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::model::endpoint::Utilization;
use crate::policy::scale::{Reason, Signals};

/// How long news of before a change may take.
const OLD_NEWS: Duration = Duration::from_secs(5);
/// Decisions that are kept.
const KEPT: usize = 100;

/// The autoscaling of one deployment: what it is to keep to, and what it has decided.
#[derive(Debug)]
pub struct Scaling {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    rules: Rules,
    view: View,
}

/// What decisions keep to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// As in the document.
    pub settings: Utilization,
    /// Requests that a replica takes at a time.
    pub per_replica: u32,
}

/// How things are.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Replicas there should be.
    pub desired: u32,
    /// The latest decision, which may be to leave everything as it is.
    pub latest: Option<Decision>,
    /// The last decisions that changed the number of replicas, the oldest first.
    pub changes: VecDeque<Decision>,
    /// What keeps the number from being changed.
    pub problem: Option<String>,
}

/// One decision, with what it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// When.
    pub at: SystemTime,
    /// Replicas asked for before.
    pub before: u32,
    /// Replicas asked for now.
    pub wanted: u32,
    /// Why.
    pub reason: Reason,
    /// What went on in the interval before.
    pub signals: Signals,
    /// What demand was taken to be: requests that replicas should be able to take at a time.
    pub demand: f64,
    /// Replicas that took requests.
    pub ready: u32,
    /// Replicas that were still starting.
    pub starting: u32,
    /// Requests in flight and waiting, over what ready replicas can take; `None` without any.
    pub utilization: Option<f64>,
}

impl Scaling {
    /// Nothing is decided yet: there should be `desired` replicas.
    pub fn new(rules: Rules, desired: u32) -> Self {
        let view = View { desired, ..View::default() };
        Self { inner: Mutex::new(Inner { rules, view }), changed: Notify::new() }
    }

    /// What to keep to.
    pub fn rules(&self) -> Rules {
        self.lock().rules.clone()
    }

    /// Decisions keep to other rules from now on; whoever makes them is told.
    pub fn set_rules(&self, rules: Rules) {
        let mut inner = self.lock();
        if inner.rules != rules {
            inner.rules = rules;
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Returns when the rules have changed since this was last called.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Replicas there should be.
    pub fn desired(&self) -> u32 {
        self.lock().view.desired
    }

    /// So many replicas there are told to be, whoever told it. What was so before the last change is old news for a while.
    pub fn observed(&self, count: u32, now: SystemTime) {
        let view = &mut self.lock().view;
        let is_old = view.changes.back().is_some_and(|last| {
            let is_young = now.duration_since(last.at).is_ok_and(|age| age < OLD_NEWS);
            is_young && last.before == count && last.wanted == view.desired
        });
        if !is_old {
            view.desired = count;
        }
    }

    /// How things are.
    pub fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// The last decision that changed the number of replicas.
    pub fn last_change(&self) -> Option<Decision> {
        self.lock().view.changes.back().cloned()
    }

    /// Something was decided.
    pub fn decided(&self, decision: Decision) {
        self.lock().view.latest = Some(decision);
    }

    /// What was decided is done.
    pub fn done(&self, decision: Decision) {
        let view = &mut self.lock().view;
        view.desired = decision.wanted;
        view.problem = None;
        view.changes.push_back(decision);
        if view.changes.len() > KEPT {
            view.changes.pop_front();
        }
    }

    /// What was decided cannot be done. Returns whether that is news.
    pub fn failed(&self, why: String) -> bool {
        let view = &mut self.lock().view;
        let is_news = view.problem.as_ref() != Some(&why);
        view.problem = Some(why);
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
