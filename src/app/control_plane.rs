//! The task of the control plane: it follows the sources of endpoints and the local processes, and keeps the routing
//! table up to date.

use std::collections::BTreeSet;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::control::autoscaler::process_target::{ProcessCountRequest, ProcessTarget};
use crate::control::autoscaler::{AutoscalerTasks, ScaledDeployment};
use crate::control::cluster::{Cluster, Effect};
use crate::control::document_files::{DocumentFiles, DocumentSnapshot, FileWatcher, ScanScope};
use crate::control::index::Index;
use crate::control::processes::{self, DesiredReplicas, ProcessSupervisor};
use crate::control::secret_cache::SecretCache;
use crate::control::signing_keys;
use crate::model::name::Name;
use crate::model::problem::Problem;
use crate::model::router_settings::{KubernetesSettings, TokenSettings};
use crate::state::control_plane_status::{ControlPlaneStatus, PendingReplicas, Subsystem};
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::tokens::TokenState;

/// How long a local model gets between SIGTERM and SIGKILL.
pub const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// The interval in which statuses in a cluster are checked.
const STATUS_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Capacity of the channel of process events.
const PROCESS_CHANNEL_CAPACITY: usize = 256;

/// The control plane's one task. Only this task changes the index.
pub(super) struct ControlPlane {
    pub(super) index: Index,
    pub(super) files: Option<(DocumentFiles, Vec<PathBuf>)>,
    pub(super) cluster: Option<(Client, KubernetesSettings)>,
    pub(super) secrets: SecretCache,
    pub(super) lifecycle: Lifecycle,
    pub(super) token_state: Arc<TokenState>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<ControlPlaneStatus>,
    pub(super) executable: PathBuf,
    pub(super) drain_timeout: Duration,
    pub(super) token_settings: TokenSettings,
    pub(super) on_ready: Option<Box<dyn FnOnce() + Send + Sync>>,
    pub(super) membership: Option<Arc<Membership>>,
}

impl ControlPlane {
    /// Starts the local processes, then follows them and the sources of endpoints until `finished`; then stops the
    /// processes.
    pub(super) async fn run(mut self, mut finished: oneshot::Receiver<()>) {
        let (events, mut events_rx) = mpsc::channel(PROCESS_CHANNEL_CAPACITY);
        let settings = processes::ProcessSettings {
            router_executable: self.executable.clone(),
            termination_grace: STOP_GRACE_PERIOD,
            drain_timeout: self.drain_timeout,
        };
        let mut supervisor = ProcessSupervisor::new(settings, events);
        let mut watch = self.files.as_ref().map(|(_, places)| FileWatcher::new(places));
        let (orders, mut orders_rx) = mpsc::channel(PROCESS_CHANNEL_CAPACITY);
        let mut scalers = AutoscalerTasks::default();
        let mut reports = tokio::time::interval(STATUS_REPORT_INTERVAL);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.apply_deployments(&mut supervisor, &mut scalers, &orders);
        let mut cluster = self
            .cluster
            .take()
            .map(|(client, settings)| Cluster::start(client, &settings, self.token_state.clone(), &self.secrets));
        loop {
            if self.on_ready.is_some() && self.index.has_all_processes_ready() {
                self.on_ready.take().into_iter().for_each(|tell| tell());
            }
            let file_change = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => pending().await,
                }
            };
            let cluster_change = async {
                match &mut cluster {
                    Some(cluster) => cluster.receive_events().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = cluster_change => {
                    if let Some(cluster) = &mut cluster {
                        self.apply_cluster_changes(cluster, &mut scalers);
                    }
                }
                _ = reports.tick() => {
                    if let Some(cluster) = &mut cluster {
                        self.report_to_cluster(cluster, &scalers);
                    }
                }
                scope = file_change => {
                    let began = Instant::now();
                    if self.reload_files(&scope) {
                        self.apply_deployments(&mut supervisor, &mut scalers, &orders);
                    }
                    if let (Some(watch), ScanScope::All) = (&mut watch, scope) {
                        watch.schedule_next_poll(began.elapsed());
                    }
                }
                () = self.index.run_pod_transfers() => {}
                Some(event) = events_rx.recv() => self.index.apply_process_event(event),
                Some(ProcessCountRequest { endpoint, deployment, count, ack }) = orders_rx.recv() => {
                    self.index.set_process_count(&endpoint, &deployment, count);
                    self.apply_processes(&mut supervisor);
                    // The autoscaler that sent the request may have ended.
                    let _ = ack.send(());
                }
                _ = &mut finished => break,
            }
        }
        supervisor.stop().await;
    }

    /// Applies changes of the cluster to the index, and publishes the problems of the cluster.
    fn apply_cluster_changes(&mut self, cluster: &mut Cluster, scalers: &mut AutoscalerTasks) {
        let problems = cluster.problems();
        let (before, is_over) = (self.status.problems(), problems.is_empty());
        let is_news = |problem: &&Problem| !before.contains(problem);
        let new_problems: Vec<String> = problems.iter().filter(is_news).map(ToString::to_string).collect();
        if self.status.set_problems(Subsystem::Cluster, problems) {
            if !new_problems.is_empty() {
                tracing::warn!(
                    problems = new_problems.join("; "),
                    "kubernetes watch failed; serving the last known state"
                );
            } else if is_over {
                tracing::info!("kubernetes watches recovered");
            }
        }
        let (mut names, mut others) = (Vec::new(), Vec::new());
        for effect in cluster.take_effects() {
            match effect {
                Effect::Endpoint(name, desired) => names.push((name, desired)),
                other => others.push(other),
            }
        }
        let mut rescaled: BTreeSet<Name> = names.iter().map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            self.index.update_endpoints(names);
        }
        for effect in others {
            match effect {
                Effect::Pod { deployment: (endpoint, deployment), uid, address } => {
                    self.index.update_pod(&endpoint, &deployment, &uid, address);
                }
                Effect::PendingPods((endpoint, deployment), count) => {
                    self.index.set_pending(&endpoint, &deployment, PendingReplicas { count, problem: None });
                }
                Effect::WorkloadReplicas((endpoint, deployment), count) => {
                    if self.index.set_observed_replicas(&endpoint, &deployment, count) {
                        rescaled.insert(endpoint);
                    }
                }
                Effect::Endpoint(..) => {}
            }
        }
        for endpoint in rescaled {
            let target = |scaled: &ScaledDeployment| cluster.workload_target(scaled, &self.status);
            scalers.set_endpoint_deployments(
                &endpoint,
                self.index.autoscaled_in_endpoint(&endpoint),
                &self.metrics,
                target,
            );
        }
        self.enter_serving_if_complete(cluster);
    }

    /// Enters the serving phase once everything that is needed for it is known.
    fn enter_serving_if_complete(&self, cluster: &Cluster) {
        let is_known =
            || cluster.has_synced() && !self.status.has_problems(&[Subsystem::Certificates, Subsystem::Tokens]);
        if self.lifecycle.phase() == LifecyclePhase::Starting && is_known() {
            tracing::info!(endpoints = self.index.len(), "synchronized with the cluster");
            self.lifecycle.enter(LifecyclePhase::Serving);
        }
    }

    /// Writes statuses to the cluster.
    fn report_to_cluster(&self, cluster: &mut Cluster, scalers: &AutoscalerTasks) {
        // In a fleet only the coordinator writes statuses.
        if self.membership.as_ref().is_none_or(|membership| membership.is_coordinator()) {
            cluster.report_statuses(
                |endpoint, deployment| self.index.deployment_counts(endpoint, deployment),
                SystemTime::now(),
            );
            scalers.deployments().for_each(|scaled| cluster.record_scale_event(scaled));
        }
        self.enter_serving_if_complete(cluster);
    }

    /// Scans the files and applies what they say to the index. Returns whether anything has changed.
    fn reload_files(&mut self, scope: &ScanScope) -> bool {
        let loaded = self.files.as_mut().and_then(|(files, _)| files.load(scope, Instant::now()));
        let Some(DocumentSnapshot { endpoints, mut problems }) = loaded else { return false };
        problems.extend(signing_keys::missing_key_problems(&self.token_settings, &endpoints));
        let result = if problems.is_empty() { "ok" } else { "error" };
        self.metrics.config_reloads.with_label_values(&[result]).inc();
        self.metrics.config_invalid_documents.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        let (all, are_bad) = (problems.iter().map(ToString::to_string).collect::<Vec<_>>(), !problems.is_empty());
        let are_new = self.status.set_problems(Subsystem::Endpoints, problems);
        if !are_bad {
            tracing::info!(endpoints = endpoints.len(), "reloaded endpoint files");
        } else if are_new {
            let problems = all.join("; ");
            tracing::error!(problems, "invalid endpoint files; serving the last known good version of each endpoint");
        } else {
            tracing::debug!("endpoint files changed; their problems are the same");
        }
        self.index.replace_endpoints(endpoints);
        true
    }

    /// Has local processes run and autoscalers work as the index says.
    fn apply_deployments(
        &self,
        supervisor: &mut ProcessSupervisor,
        scalers: &mut AutoscalerTasks,
        orders: &mpsc::Sender<ProcessCountRequest>,
    ) {
        self.apply_processes(supervisor);
        let local = |scaled: &ScaledDeployment| Some(ProcessTarget::new(scaled, self.status.clone(), orders.clone()));
        scalers.set_deployments(self.index.autoscaled_deployments(), &self.metrics, local);
    }

    /// Sets the desired local processes.
    fn apply_processes(&self, supervisor: &mut ProcessSupervisor) {
        let mut processes = self.index.desired_processes();
        for DesiredReplicas { spec, .. } in &mut processes {
            // In a document, the name of the router's program means this very program, wherever it is installed.
            if spec.process.command[0] == env!("CARGO_PKG_NAME") {
                spec.process.command[0] = self.executable.display().to_string();
            }
        }
        supervisor.apply_desired(processes);
    }
}
