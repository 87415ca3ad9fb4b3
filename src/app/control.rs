//! The control plane: follows the endpoint files and the local processes, and keeps the routing table as they want it.

use std::collections::BTreeSet;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::control::cluster::{Cluster, Effect};
use crate::control::files::{Files, Loaded, Scope, Watch};
use crate::control::index::Index;
use crate::control::processes::{self, Supervisor, Wanted};
use crate::control::scale::local::{Local, Order};
use crate::control::scale::{Scaled, Scalers};
use crate::control::secrets::NamedSecrets;
use crate::control::signing;
use crate::model::limits::{KubernetesSettings, TokenSettings};
use crate::model::name::Name;
use crate::model::problem::Problem;
use crate::state::lifecycle::{Lifecycle, Phase};
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::status::{Part, Pending, Status};
use crate::state::tokens::Tokens;

/// How long a local model gets between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// How often statuses in a cluster are looked at.
const REPORTS: Duration = Duration::from_secs(1);
/// Events of local processes that may wait for the control plane.
const EVENTS: usize = 256;

/// The control plane's one task: it alone changes the index.
pub(super) struct Control {
    pub(super) index: Index,
    pub(super) files: Option<(Files, Vec<PathBuf>)>,
    pub(super) cluster: Option<(Client, KubernetesSettings)>,
    pub(super) secrets: NamedSecrets,
    pub(super) lifecycle: Lifecycle,
    pub(super) issued: Arc<Tokens>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<Status>,
    pub(super) executable: PathBuf,
    pub(super) drain_timeout: Duration,
    pub(super) tokens: TokenSettings,
    pub(super) when_ready: Option<Box<dyn FnOnce() + Send + Sync>>,
    pub(super) membership: Option<Arc<Membership>>,
}

impl Control {
    /// Starts the processes, then follows them and the files until `finished`; then ends the processes.
    pub(super) async fn run(mut self, mut finished: oneshot::Receiver<()>) {
        let (events, mut happened) = mpsc::channel(EVENTS);
        let settings = processes::Settings {
            executable: self.executable.clone(),
            grace: GRACE,
            drain_timeout: self.drain_timeout,
        };
        let mut supervisor = Supervisor::new(settings, events);
        let mut watch = self.files.as_ref().map(|(_, places)| Watch::new(places));
        let (orders, mut ordered) = mpsc::channel(EVENTS);
        let mut scalers = Scalers::default();
        let mut reports = tokio::time::interval(REPORTS);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.start(&mut supervisor, &mut scalers, &orders);
        let mut cluster = self
            .cluster
            .take()
            .map(|(client, settings)| Cluster::start(client, &settings, self.issued.clone(), &self.secrets));
        loop {
            if self.when_ready.is_some() && self.index.is_complete() {
                self.when_ready.take().into_iter().for_each(|tell| tell());
            }
            let look = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => pending().await,
                }
            };
            let see = async {
                match &mut cluster {
                    Some(cluster) => cluster.see().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = see => {
                    if let Some(cluster) = &mut cluster {
                        self.follow(cluster, &mut scalers);
                    }
                }
                _ = reports.tick() => {
                    if let Some(cluster) = &mut cluster {
                        self.report(cluster, &scalers);
                    }
                }
                scope = look => {
                    let began = Instant::now();
                    if self.reload(&scope) {
                        self.start(&mut supervisor, &mut scalers, &orders);
                    }
                    if let (Some(watch), Scope::Everything) = (&mut watch, scope) {
                        watch.looked(began.elapsed());
                    }
                }
                () = self.index.move_pods() => {}
                Some(event) = happened.recv() => self.index.process(event),
                Some(Order { endpoint, deployment, count, noted }) = ordered.recv() => {
                    self.index.set_count(&endpoint, &deployment, count);
                    self.start_processes(&mut supervisor);
                    // Who asked may be gone.
                    let _ = noted.send(());
                }
                _ = &mut finished => break,
            }
        }
        supervisor.stop().await;
    }

    /// Makes the index of what a cluster has, as far as that is another than before.
    fn follow(&mut self, cluster: &mut Cluster, scalers: &mut Scalers) {
        let trouble = cluster.trouble();
        let (before, is_over) = (self.status.problems(), trouble.is_empty());
        let is_news = |problem: &&Problem| !before.contains(problem);
        let news: Vec<String> = trouble.iter().filter(is_news).map(ToString::to_string).collect();
        if self.status.set_problems(Part::Cluster, trouble) {
            if !news.is_empty() {
                tracing::warn!(
                    problems = news.join("; "),
                    "something of the cluster cannot be had; what is known stays"
                );
            } else if is_over {
                tracing::info!("all of the cluster is to be had again");
            }
        }
        let (mut names, mut others) = (Vec::new(), Vec::new());
        for effect in cluster.effects() {
            match effect {
                Effect::Endpoint(name, desired) => names.push((name, desired)),
                other => others.push(other),
            }
        }
        let mut rescaled: BTreeSet<Name> = names.iter().map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            self.index.update(names);
        }
        for effect in others {
            match effect {
                Effect::Pod { of: (endpoint, deployment), uid, address } => {
                    self.index.pod(&endpoint, &deployment, &uid, address);
                }
                Effect::Pending((endpoint, deployment), count) => {
                    self.index.pending(&endpoint, &deployment, Pending { count, problem: None });
                }
                Effect::Replicas((endpoint, deployment), count) => {
                    if self.index.observe(&endpoint, &deployment, count) {
                        rescaled.insert(endpoint);
                    }
                }
                Effect::Endpoint(..) => {}
            }
        }
        for endpoint in rescaled {
            let target = |scaled: &Scaled| cluster.target(scaled, &self.status);
            scalers.apply_to(&endpoint, self.index.scaled_of(&endpoint), &self.metrics, target);
        }
        self.begin_to_serve(cluster);
    }

    /// Serves, once everything is known that there must be.
    fn begin_to_serve(&self, cluster: &Cluster) {
        let is_known = || cluster.is_complete() && !self.status.has_problems(&[Part::Certificates, Part::Tokens]);
        if self.lifecycle.phase() == Phase::Starting && is_known() {
            tracing::info!(endpoints = self.index.len(), "the cluster is known");
            self.lifecycle.enter(Phase::Serving);
        }
    }

    /// Has the cluster be told how things are.
    fn report(&self, cluster: &mut Cluster, scalers: &Scalers) {
        // Of several routers one says how things are.
        if self.membership.as_ref().is_none_or(|membership| membership.is_in_charge()) {
            cluster.report_all(|endpoint, deployment| self.index.counts(endpoint, deployment), SystemTime::now());
            scalers.scaled().for_each(|scaled| cluster.tell_scaled(scaled));
        }
        self.begin_to_serve(cluster);
    }

    /// Looks at the files, and makes the index of them. Returns whether anything has changed.
    fn reload(&mut self, scope: &Scope) -> bool {
        let loaded = self.files.as_mut().and_then(|(files, _)| files.load(scope, Instant::now()));
        let Some(Loaded { endpoints, mut problems }) = loaded else { return false };
        problems.extend(signing::missing(&self.tokens, &endpoints));
        let result = if problems.is_empty() { "ok" } else { "error" };
        self.metrics.reloads.with_label_values(&[result]).inc();
        self.metrics.refused_documents.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        let (all, are_bad) = (problems.iter().map(ToString::to_string).collect::<Vec<_>>(), !problems.is_empty());
        let are_new = self.status.set_problems(Part::Endpoints, problems);
        if !are_bad {
            tracing::info!(endpoints = endpoints.len(), "endpoint files reloaded");
        } else if are_new {
            let problems = all.join("; ");
            tracing::error!(problems, "endpoint files have problems; the last good version of each endpoint serves");
        } else {
            tracing::debug!("endpoint files changed, their problems have not");
        }
        self.index.apply(endpoints);
        true
    }

    /// Has processes run as the index wants them, and scaled where it says so.
    fn start(&self, supervisor: &mut Supervisor, scalers: &mut Scalers, orders: &mpsc::Sender<Order>) {
        self.start_processes(supervisor);
        let local = |scaled: &Scaled| Some(Local::new(scaled, self.status.clone(), orders.clone()));
        scalers.apply(self.index.scaled(), &self.metrics, local);
    }

    /// Makes the processes that run those that are wanted.
    fn start_processes(&self, supervisor: &mut Supervisor) {
        let mut processes = self.index.processes();
        for Wanted { spec, .. } in &mut processes {
            // In a document, the router's own name means this very program, wherever it is installed.
            if spec.process.command[0] == env!("CARGO_PKG_NAME") {
                spec.process.command[0] = self.executable.display().to_string();
            }
        }
        supervisor.apply(processes);
    }
}
