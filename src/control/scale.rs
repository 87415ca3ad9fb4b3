//! Autoscaling: one task for each deployment that scales, which looks at it once an interval, decides
//! ([`crate::policy::scale`]) and has the [`Target`] follow. A target that hangs holds up nobody else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::name::Name;
use crate::policy::scale::history::History;
use crate::policy::scale::{Signals, decide};
use crate::state::metrics::Metrics;
use crate::state::scaling::{Decision, Scaling};
use crate::state::slots::Slots;

pub mod local;

/// How long a target may take to accept another number of replicas.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of an earlier start in what is expected of the next.
const OLD_STARTS: f64 = 0.5;

/// Replicas that a target has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    /// Taking requests.
    pub ready: u32,
    /// Asked for, and not ready yet.
    pub starting: u32,
}

/// What has replicas, and can have more or fewer.
pub trait Target: Send + 'static {
    /// Those there are.
    fn replicas(&self) -> Supply;

    /// Asks for so many. Those that are too many are drained before they are stopped, the idlest first. Done when they
    /// are asked for, not when they are there. May be dropped before it is done, and then is asked again.
    ///
    /// # Errors
    /// Why not.
    fn scale_to(&mut self, count: u32) -> impl Future<Output = Result<(), String>> + Send;
}

/// A deployment that scales.
#[derive(Debug, Clone)]
pub struct Scaled {
    /// Its endpoint.
    pub endpoint: Name,
    /// Its name.
    pub deployment: Name,
    /// What it keeps to.
    pub scaling: Arc<Scaling>,
    /// What its requests go through.
    pub slots: Arc<Slots>,
}

/// The tasks. They end when this is dropped.
#[derive(Debug, Default)]
pub struct Scalers {
    tasks: JoinSet<()>,
    /// By endpoint, then by deployment.
    running: HashMap<Name, HashMap<Name, (Scaled, AbortHandle)>>,
}

impl Scalers {
    /// Scales these deployments and no others from now on, each over the target that `target` makes for it,
    /// if there is one.
    pub fn apply<T: Target>(
        &mut self,
        wanted: Vec<Scaled>,
        metrics: &Arc<Metrics>,
        target: impl Fn(&Scaled) -> Option<T>,
    ) {
        let mut by_endpoint: HashMap<Name, Vec<Scaled>> =
            self.running.keys().map(|endpoint| (endpoint.clone(), Vec::new())).collect();
        for scaled in wanted {
            by_endpoint.entry(scaled.endpoint.clone()).or_default().push(scaled);
        }
        for (endpoint, wanted) in by_endpoint {
            self.apply_to(&endpoint, wanted, metrics, &target);
        }
    }

    /// The same for the deployments of one endpoint; those of others go on as they are.
    pub fn apply_to<T: Target>(
        &mut self,
        endpoint: &Name,
        wanted: Vec<Scaled>,
        metrics: &Arc<Metrics>,
        target: impl Fn(&Scaled) -> Option<T>,
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
                let scaler = Scaler::new(target, scaled.clone(), metrics.clone());
                (scaled.clone(), self.tasks.spawn(scaler.run()))
            };
            if let Some(now) = same.or_else(|| target(&scaled).map(start)) {
                running.insert(scaled.deployment.clone(), now);
            }
        }
        before.into_values().for_each(|(_, task)| task.abort());
        if !running.is_empty() {
            self.running.insert(endpoint.clone(), running);
        }
        // What has ended is taken out.
        while self.tasks.try_join_next().is_some() {}
    }

    /// What is scaled.
    pub fn scaled(&self) -> impl Iterator<Item = &Scaled> {
        self.running.values().flat_map(HashMap::values).map(|(scaled, _)| scaled)
    }
}

/// Scales one deployment.
struct Scaler<T> {
    target: T,
    scaled: Scaled,
    metrics: Arc<Metrics>,
    history: History,
    signals: Signals,
    /// Since when the first replica is waited for.
    cold_since: Option<Instant>,
    /// How long that took before.
    cold_start: Option<Duration>,
}

impl<T: Target> Scaler<T> {
    fn new(target: T, scaled: Scaled, metrics: Arc<Metrics>) -> Self {
        let interval = scaled.scaling.rules().settings.interval;
        let history = History::new(interval, Instant::now().into_std());
        Self { target, scaled, metrics, history, signals: Signals::default(), cold_since: None, cold_start: None }
    }

    async fn run(mut self) {
        // What went on before is not of an interval.
        let mut noted = Instant::now();
        self.scaled.slots.take_signals(noted.into_std());
        loop {
            let interval = self.scaled.scaling.rules().settings.interval;
            tokio::select! {
                () = sleep_until(noted + interval) => {
                    noted = Instant::now();
                    match self.scaled.slots.signals_everywhere(noted.into_std()).await {
                        Some(signals) => {
                            self.signals = signals;
                            self.history.set_interval(interval);
                            self.history.note(&self.signals, noted.into_std());
                        }
                        // Another router decides. Should it be this one later, it has seen nothing of before.
                        None => self.history = History::new(interval, noted.into_std()),
                    }
                }
                () = self.scaled.scaling.changed() => {}
                () = self.scaled.slots.asked() => {}
            }
            if self.scaled.slots.is_in_charge() {
                self.step().await;
            }
        }
    }

    /// Decides, and has it done.
    async fn step(&mut self) {
        let now = Instant::now();
        let scaling = self.scaled.scaling.clone();
        let (rules, before) = (scaling.rules(), scaling.desired());
        let (_, waiting) = self.scaled.slots.present();
        let supply = self.target.replicas();
        self.expect(supply, before, now);
        let (wanted, reason) =
            decide(&rules.settings, rules.per_replica, &self.history, before, waiting, now.into_std());
        let slots = f64::from(supply.ready) * f64::from(rules.per_replica);
        let decision = Decision {
            at: SystemTime::now(),
            before,
            wanted,
            reason,
            signals: Signals { waiting, ..self.signals },
            demand: self.history.estimate().likely,
            ready: supply.ready,
            starting: supply.starting,
            utilization: self.signals.utilization(slots),
        };
        scaling.decided(decision.clone());
        if wanted != before {
            self.follow(decision).await;
        }
    }

    async fn follow(&mut self, decision: Decision) {
        let Scaled { endpoint, deployment, scaling, .. } = &self.scaled;
        let Decision { before, wanted, reason, signals, demand, utilization, .. } = decision;
        let asked = timeout(PATIENCE, self.target.scale_to(wanted)).await;
        let why_not = match asked {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        match why_not {
            None => {
                let percent = utilization.map(|ratio| (ratio * 100.0).round());
                let [demand, rejected] = [demand, signals.rejected_per_second].map(|value| format!("{value:.1}"));
                tracing::info!(
                    %endpoint, %deployment, before, wanted, reason = reason.word(), demand, utilization_percent = percent,
                    rejected_per_second = rejected, waiting = signals.waiting, "replicas: another number"
                );
                self.metrics.scaled(endpoint.as_str(), deployment.as_str(), wanted > before, reason.word());
                scaling.done(decision);
            }
            Some(why) => {
                if scaling.failed(why.clone()) {
                    tracing::warn!(
                        %endpoint, %deployment, before, wanted, reason = reason.word(), why,
                        "replicas: another number is wanted and cannot be had; trying again"
                    );
                }
            }
        }
    }

    /// Learns how long the first replica takes, and tells those who are turned away meanwhile.
    fn expect(&mut self, supply: Supply, desired: u32, now: Instant) {
        let expected = if supply.ready > 0 || desired == 0 {
            if let (Some(since), true) = (self.cold_since.take(), supply.ready > 0) {
                let took = now - since;
                self.cold_start = Some(match self.cold_start {
                    None => took,
                    Some(before) => before.mul_f64(OLD_STARTS) + took.mul_f64(1.0 - OLD_STARTS),
                });
            }
            None
        } else {
            let since = *self.cold_since.get_or_insert(now);
            let waited = now - since;
            // Overdue, or never seen: as long again as it has taken already is a fair guess.
            let left = self.cold_start.and_then(|usual| usual.checked_sub(waited)).unwrap_or(waited);
            Some((now + left).into_std())
        };
        self.scaled.slots.expect_replica(expected);
    }
}

#[cfg(test)]
mod tests;
