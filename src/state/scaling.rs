//! State of a deployment's autoscaling: its rules, its latest decisions, and what keeps it from being scaled.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::model::endpoint::TargetUtilization;
use crate::policy::scale::{ScalingReason, Signals};

/// After a change, observed replica counts that contradict it are taken as outdated for this long.
const STALE_OBSERVATION_WINDOW: Duration = Duration::from_secs(5);
/// Number of decisions kept for display.
const MAX_CHANGES_KEPT: usize = 100;

/// The autoscaling of one deployment: the rules it follows and what it has decided.
#[derive(Debug)]
pub struct Scaling {
    state: Mutex<ScalingState>,
    rules_changed: Notify,
}

#[derive(Debug)]
struct ScalingState {
    rules: ScalingRules,
    snapshot: ScalingSnapshot,
}

/// The rules that decisions follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalingRules {
    /// The scale settings of the document.
    pub settings: TargetUtilization,
    /// Cap of a replica: the requests that it takes at a time.
    pub replica_cap: u32,
}

/// The current state of a deployment's autoscaling.
#[derive(Debug, Clone, Default)]
pub struct ScalingSnapshot {
    /// The desired number of replicas.
    pub desired: u32,
    /// The latest decision, which may be to change nothing.
    pub latest_decision: Option<ScalingDecision>,
    /// The last decisions that changed the number of replicas, oldest first.
    pub changes: VecDeque<ScalingDecision>,
    /// Why the number of replicas cannot be changed, if it cannot.
    pub problem: Option<String>,
}

/// One decision, with the values that it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingDecision {
    /// When the decision was made.
    pub decided_at: SystemTime,
    /// The desired number of replicas before.
    pub previous_replicas: u32,
    /// The desired number of replicas from now on.
    pub desired_replicas: u32,
    /// The reason for the decision.
    pub reason: ScalingReason,
    /// Signals of the interval before the decision.
    pub signals: Signals,
    /// The demand that was assumed: requests that the replicas should be able to take at a time.
    pub demand: f64,
    /// The number of ready replicas.
    pub ready: u32,
    /// The number of replicas that were still starting.
    pub starting: u32,
    /// Outstanding requests divided by what ready replicas can take; `None` without ready replicas.
    pub utilization: Option<f64>,
}

impl Scaling {
    /// Creates the state before any decision, with `desired` replicas.
    pub fn new(rules: ScalingRules, desired: u32) -> Self {
        let view = ScalingSnapshot { desired, ..ScalingSnapshot::default() };
        Self { state: Mutex::new(ScalingState { rules, snapshot: view }), rules_changed: Notify::new() }
    }

    /// Returns the current rules.
    pub fn rules(&self) -> ScalingRules {
        self.lock().rules.clone()
    }

    /// Replaces the rules and wakes the autoscaler.
    pub fn set_rules(&self, rules: ScalingRules) {
        let mut inner = self.lock();
        if inner.rules != rules {
            inner.rules = rules;
            drop(inner);
            self.rules_changed.notify_one();
        }
    }

    /// Waits until the rules have changed since the last call.
    pub async fn wait_for_rules_change(&self) {
        self.rules_changed.notified().await;
    }

    /// Returns the desired number of replicas.
    pub fn desired(&self) -> u32 {
        self.lock().snapshot.desired
    }

    /// Records that the workload is set to `count` replicas, whoever set it. For a while after a decision, counts that
    /// contradict it are ignored as outdated.
    pub fn set_observed_replicas(&self, count: u32, now: SystemTime) {
        let view = &mut self.lock().snapshot;
        let is_old = view.changes.back().is_some_and(|last| {
            let is_young = now.duration_since(last.decided_at).is_ok_and(|age| age < STALE_OBSERVATION_WINDOW);
            is_young && last.previous_replicas == count && last.desired_replicas == view.desired
        });
        if !is_old {
            view.desired = count;
        }
    }

    /// Returns the current state.
    pub fn snapshot(&self) -> ScalingSnapshot {
        self.lock().snapshot.clone()
    }

    /// Returns the last decision that changed the number of replicas.
    pub fn last_change(&self) -> Option<ScalingDecision> {
        self.lock().snapshot.changes.back().cloned()
    }

    /// Records a decision.
    pub fn record_decision(&self, decision: ScalingDecision) {
        self.lock().snapshot.latest_decision = Some(decision);
    }

    /// Records that a decision was carried out.
    pub fn record_scaling_change(&self, decision: ScalingDecision) {
        let view = &mut self.lock().snapshot;
        view.desired = decision.desired_replicas;
        view.problem = None;
        view.changes.push_back(decision);
        if view.changes.len() > MAX_CHANGES_KEPT {
            view.changes.pop_front();
        }
    }

    /// Records that a decision cannot be carried out. Returns whether the reason is a new one.
    pub fn record_failure(&self, why: String) -> bool {
        let view = &mut self.lock().snapshot;
        let is_news = view.problem.as_ref() != Some(&why);
        view.problem = Some(why);
        is_news
    }

    fn lock(&self) -> MutexGuard<'_, ScalingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
