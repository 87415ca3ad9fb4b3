//! The autoscaler: one task per autoscaled deployment, which measures its load once per interval, decides the number of
//! replicas ([`crate::policy::scale`]) and applies it through a [`ScaleTarget`]. A target that hangs delays no other
//! deployment.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::name::Name;
use crate::policy::scale::history::DemandHistory;
use crate::policy::scale::{Signals, decide_replicas};
use crate::state::metrics::Metrics;
use crate::state::scaling::{Scaling, ScalingDecision};
use crate::state::slots::DeploymentSlots;

pub mod process_target;

/// How long a target may take to accept a new number of replicas.
const SCALE_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The weight of earlier cold starts in the moving average of their duration.
const COLD_START_EWMA_WEIGHT: f64 = 0.5;

/// The replicas of a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// The number of replicas that take requests.
    pub ready: u32,
    /// The number of replicas that were requested and are not ready yet.
    pub starting: u32,
}

/// Something with replicas whose number can be changed, such as a workload or local processes.
pub trait ScaleTarget: Send + 'static {
    /// Returns the current replicas.
    fn replica_counts(&self) -> ReplicaCounts;

    /// Requests `count` replicas. Surplus replicas are drained before they are stopped, the idlest first. The future
    /// completes when the target has accepted the number, not when the replicas exist. It may be dropped before it
    /// completes; the request is then repeated.
    ///
    /// # Errors
    /// Returns why the target has not accepted the number.
    fn scale_to(&mut self, count: u32) -> impl Future<Output = Result<(), String>> + Send;
}

/// An autoscaled deployment.
#[derive(Debug, Clone)]
pub struct ScaledDeployment {
    /// The name of the endpoint.
    pub endpoint: Name,
    /// The name of the deployment.
    pub deployment: Name,
    /// The scaling rules, decisions and desired number of replicas.
    pub scaling: Arc<Scaling>,
    /// The slots and the queue, from which the load is measured.
    pub slots: Arc<DeploymentSlots>,
}

/// The autoscaler tasks of all deployments. They end when this value is dropped.
#[derive(Debug, Default)]
pub struct AutoscalerTasks {
    tasks: JoinSet<()>,
    /// The running tasks by endpoint, then by deployment.
    running: HashMap<Name, HashMap<Name, (ScaledDeployment, AbortHandle)>>,
}

impl AutoscalerTasks {
    /// Makes the autoscaled deployments equal to `wanted`. `make_target` returns the target of a deployment; one
    /// without a target is not scaled. Tasks of unchanged deployments keep running.
    pub fn set_deployments<T: ScaleTarget>(
        &mut self,
        wanted: Vec<ScaledDeployment>,
        metrics: &Arc<Metrics>,
        make_target: impl Fn(&ScaledDeployment) -> Option<T>,
    ) {
        let mut by_endpoint: HashMap<Name, Vec<ScaledDeployment>> =
            self.running.keys().map(|endpoint| (endpoint.clone(), Vec::new())).collect();
        for scaled in wanted {
            by_endpoint.entry(scaled.endpoint.clone()).or_default().push(scaled);
        }
        for (endpoint, wanted) in by_endpoint {
            self.set_endpoint_deployments(&endpoint, wanted, metrics, &make_target);
        }
    }

    /// Makes the autoscaled deployments of one endpoint equal to `wanted`; those of other endpoints are not affected.
    pub fn set_endpoint_deployments<T: ScaleTarget>(
        &mut self,
        endpoint: &Name,
        wanted: Vec<ScaledDeployment>,
        metrics: &Arc<Metrics>,
        make_target: impl Fn(&ScaledDeployment) -> Option<T>,
    ) {
        let mut before = self.running.remove(endpoint).unwrap_or_default();
        let mut running = HashMap::new();
        for scaled in wanted {
            let same = before.remove(&scaled.deployment).filter(|(now, task)| {
                let is_same = Arc::ptr_eq(&now.scaling, &scaled.scaling) && !task.is_finished();
                if !is_same {
                    task.abort();
                }
                is_same
            });
            let start = |target| {
                let scaler = DeploymentAutoscaler::new(target, scaled.clone(), metrics.clone());
                (scaled.clone(), self.tasks.spawn(scaler.run()))
            };
            if let Some(now) = same.or_else(|| make_target(&scaled).map(start)) {
                running.insert(scaled.deployment.clone(), now);
            }
        }
        before.into_values().for_each(|(_, task)| task.abort());
        if !running.is_empty() {
            self.running.insert(endpoint.clone(), running);
        }
        // Removes the results of tasks that have ended.
        while self.tasks.try_join_next().is_some() {}
    }

    /// Returns the deployments that are being scaled.
    pub fn deployments(&self) -> impl Iterator<Item = &ScaledDeployment> {
        self.running.values().flat_map(HashMap::values).map(|(scaled, _)| scaled)
    }
}

/// The task that scales one deployment.
struct DeploymentAutoscaler<T> {
    target: T,
    scaled: ScaledDeployment,
    metrics: Arc<Metrics>,
    history: DemandHistory,
    signals: Signals,
    /// When the current cold start began: the deployment has waited for its first replica since then.
    cold_start_since: Option<Instant>,
    /// The moving average of the duration of earlier cold starts.
    expected_cold_start: Option<Duration>,
}

impl<T: ScaleTarget> DeploymentAutoscaler<T> {
    fn new(target: T, scaled: ScaledDeployment, metrics: Arc<Metrics>) -> Self {
        let interval = scaled.scaling.rules().settings.polling_interval;
        let history = DemandHistory::new(interval, Instant::now().into_std());
        Self {
            target,
            scaled,
            metrics,
            history,
            signals: Signals::default(),
            cold_start_since: None,
            expected_cold_start: None,
        }
    }

    async fn run(mut self) {
        // Discards the signals of the time before the first interval.
        let mut interval_start = Instant::now();
        self.scaled.slots.take_signals(interval_start.into_std());
        loop {
            let interval = self.scaled.scaling.rules().settings.polling_interval;
            tokio::select! {
                () = sleep_until(interval_start + interval) => {
                    interval_start = Instant::now();
                    match self.scaled.slots.take_fleet_signals(interval_start.into_std()).await {
                        Some(signals) => {
                            self.signals = signals;
                            self.history.set_interval(interval);
                            self.history.record_interval(&self.signals, interval_start.into_std());
                        }
                        // Another router is the coordinator and decides. If this one takes over later, its history
                        // would have a gap, so it starts with an empty one.
                        None => self.history = DemandHistory::new(interval, interval_start.into_std()),
                    }
                }
                () = self.scaled.scaling.wait_for_rules_change() => {}
                () = self.scaled.slots.wait_for_cold_start_request() => {}
            }
            if self.scaled.slots.is_coordinator() {
                self.decide_and_scale().await;
            }
        }
    }

    /// Decides the number of replicas and applies the decision if it is a change.
    async fn decide_and_scale(&mut self) {
        let now = Instant::now();
        let scaling = self.scaled.scaling.clone();
        let (rules, before) = (scaling.rules(), scaling.desired());
        let (_, waiting) = self.scaled.slots.outstanding();
        let counts = self.target.replica_counts();
        self.update_cold_start_estimate(counts, before, now);
        let (wanted, reason) =
            decide_replicas(&rules.settings, rules.replica_cap, &self.history, before, waiting, now.into_std());
        let slots = f64::from(counts.ready) * f64::from(rules.replica_cap);
        let decision = ScalingDecision {
            decided_at: SystemTime::now(),
            previous_replicas: before,
            desired_replicas: wanted,
            reason,
            signals: Signals { waiting, ..self.signals },
            demand: self.history.estimate().likely,
            ready: counts.ready,
            starting: counts.starting,
            utilization: self.signals.utilization(slots),
        };
        scaling.record_decision(decision.clone());
        if wanted != before {
            self.apply_decision(decision).await;
        }
    }

    async fn apply_decision(&mut self, decision: ScalingDecision) {
        let ScaledDeployment { endpoint, deployment, scaling, .. } = &self.scaled;
        let ScalingDecision {
            previous_replicas: before,
            desired_replicas: wanted,
            reason,
            signals,
            demand,
            utilization,
            ..
        } = decision;
        let result = timeout(SCALE_REQUEST_TIMEOUT, self.target.scale_to(wanted)).await;
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {SCALE_REQUEST_TIMEOUT:?}")),
        };
        match failure {
            None => {
                let percent = utilization.map(|ratio| (ratio * 100.0).round());
                let [demand, rejected] = [demand, signals.rejected_per_second].map(|value| format!("{value:.1}"));
                tracing::info!(
                    %endpoint, %deployment, from = before, to = wanted, reason = reason.as_str(), demand,
                    utilization_percent = percent, rejected_per_second = rejected, queued = signals.waiting,
                    "scaled deployment"
                );
                self.metrics.record_scaling(endpoint.as_str(), deployment.as_str(), wanted > before, reason.as_str());
                scaling.record_scaling_change(decision);
            }
            Some(error) => {
                if scaling.record_failure(error.clone()) {
                    tracing::warn!(
                        %endpoint, %deployment, from = before, to = wanted, reason = reason.as_str(), error,
                        "scaling failed; retrying"
                    );
                }
            }
        }
    }

    /// Updates the expected duration of a cold start, and when the first replica is expected: rejected clients are told
    /// to retry then.
    fn update_cold_start_estimate(&mut self, counts: ReplicaCounts, desired: u32, now: Instant) {
        let expected = if counts.ready > 0 || desired == 0 {
            if let (Some(since), true) = (self.cold_start_since.take(), counts.ready > 0) {
                let took = now - since;
                self.expected_cold_start = Some(match self.expected_cold_start {
                    None => took,
                    Some(before) => before.mul_f64(COLD_START_EWMA_WEIGHT) + took.mul_f64(1.0 - COLD_START_EWMA_WEIGHT),
                });
            }
            None
        } else {
            let since = *self.cold_start_since.get_or_insert(now);
            let waited = now - since;
            // If it is overdue, or the first cold start, as long again as it has taken already is a fair guess.
            let remaining = self.expected_cold_start.and_then(|usual| usual.checked_sub(waited)).unwrap_or(waited);
            Some((now + remaining).into_std())
        };
        self.scaled.slots.set_first_replica_expected_at(expected);
    }
}

#[cfg(test)]
mod tests;
