//! Endpoints, keys and pods of a Kubernetes cluster, through one watch each.
//!
//! `watch` sees, the rest decides what that means and does no input or output: what of it concerns routing comes out as
//! [`Effect`]s, which the control plane applies to its index. While the API server is away everything stays as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::runtime::watcher::Event;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::index::{Counts, Desired};
use super::scale::Scaled;
use super::secrets::NamedSecrets;
use crate::model::limits::KubernetesSettings;
use crate::model::name::Name;
use crate::model::problem::Problem;
use crate::state::scaling::Decision;
use crate::state::status::Status;
use crate::state::tokens::Tokens;

pub mod caller;
mod endpoints;
mod kinds;
mod objects;
mod pods;
mod report;
mod reviews;
mod routing;
mod scale;
mod secrets;
mod service;
mod store;
mod targets;
mod watch;
pub(in crate::control) mod words;
mod workloads;
mod writer;

use endpoints::{Endpoints, Secrets};

use objects::{EndpointObject, Key, TargetRef};
use routing::kinds_of;
use targets::Targets;

use pods::{PodChange, Pods, WorkloadKey};
pub use scale::WorkloadTarget;
use store::{Change, Scope, Store};

use watch::{Seen, Trouble, Watched, Watches};
use writer::{Note, Writer};

/// As what the router writes into the cluster.
const MANAGER: &str = "inference-router";
/// Endpoints whose status is looked at each time, changed or not.
const REPORTED: usize = 500;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is seen and not yet looked at.
const SEEN: usize = 1024;

/// What something in the cluster means for routing.
#[derive(Debug)]
pub enum Effect {
    /// What a name means now.
    Endpoint(Name, Option<Desired>),
    /// A pod of a deployment takes requests at this address, or takes none any more.
    Pod {
        /// Whose.
        of: User,
        /// Which.
        uid: Arc<str>,
        /// Where.
        address: Option<SocketAddr>,
    },
    /// So many pods of a deployment do not take requests yet.
    Pending(User, usize),
    /// So many replicas a deployment's workload is told to have; `None`: there is no such workload.
    Replicas(User, Option<u32>),
}

/// An endpoint's deployment.
pub type User = (Name, Name);

/// A workload, and the port of its pods.
type Named = (Arc<WorkloadKey>, u16);

/// A cluster, as far as it concerns the router.
pub struct Cluster {
    client: Client,
    seen: mpsc::Receiver<Seen>,
    watches: Watches,
    objects: Store<EndpointObject>,
    secrets: Secrets,
    /// Watches of Secrets for TLS towards replicas.
    tls: HashMap<Key, AbortHandle>,
    /// Secrets that the router's own settings name.
    own: NamedSecrets,
    autoscalers: Store<Option<TargetRef>>,
    targets: Targets,
    pods: Pods,
    endpoints: Endpoints,
    /// What deployments name, by endpoint.
    named: HashMap<Name, BTreeMap<Name, Named>>,
    trouble: BTreeMap<Watched, Trouble>,
    /// Names that may mean something else, workloads of which something has changed.
    touched: Touched,
    /// Whether it has been said once who has what.
    is_settled: bool,
    /// Whether everything has been listed once.
    was_complete: bool,
    /// Whether autoscalers were known when replicas were counted.
    has_counted: bool,
    writer: Writer,
    /// Whether any can be made, and who asks for one.
    tokens: Arc<Tokens>,
    /// What scoring URIs begin with.
    scoring_url: Option<String>,
    /// Whether they are those of the router's Service.
    has_service: bool,
    /// Whose status is looked at next.
    next_report: Option<Key>,
    /// The last change of a deployment's replicas that there was an Event of.
    told: HashMap<User, SystemTime>,
}

#[derive(Debug, Default)]
struct Touched {
    /// Objects whose status may be another one now.
    reports: BTreeSet<Key>,
    names: BTreeSet<Name>,
    workloads: BTreeSet<Arc<WorkloadKey>>,
    pods: Vec<PodChange>,
    /// Workloads that somebody else has now, or nobody.
    freed: Vec<Arc<WorkloadKey>>,
}

/// A client of the API server that `KUBECONFIG` names, or else of the pod's own. Nothing is asked of it yet.
///
/// # Errors
/// There is neither, or it cannot be read.
pub async fn connect() -> Result<Client, String> {
    let how = "set KUBECONFIG to a file that says where the API server is, or run in a pod with a service account";
    let mut config = kube::Config::infer().await.map_err(|error| format!("no Kubernetes cluster: {error}; {how}"))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A connection that has died without a word must not be waited for much longer than a watch lasts.
    config.read_timeout = Some(Duration::from_secs(u64::from(watch::LONGEST_WATCH)) + CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| format!("the Kubernetes cluster cannot be spoken to: {error}; {how}"))
}

impl Cluster {
    /// Begins to watch. To be called inside a tokio runtime.
    pub fn start(client: Client, settings: &KubernetesSettings, tokens: Arc<Tokens>, own: &NamedSecrets) -> Self {
        let (sender, seen) = mpsc::channel(SEEN);
        let mut scopes: Vec<Scope> = settings.namespaces.iter().map(|name| name.as_str().into()).collect();
        if scopes.is_empty() {
            scopes.push("".into());
        }
        let mut watches = Watches::new(client.clone(), scopes, sender);
        let scopes = watches.scopes();
        watches.start();
        let namespace: Arc<str> = watches.own_namespace().into();
        for name in own.names() {
            watches.start_secret(&Key { namespace: namespace.clone(), name: name.into() });
        }
        if let Some(name) = &settings.service {
            watches.start_service(&Key { namespace, name: name.as_str().into() });
        }
        if let Some(asked) = tokens.reviews.take() {
            watches.spawn(reviews::run(client.clone(), asked));
        }
        Self {
            client: client.clone(),
            seen,
            watches,
            objects: Store::default(),
            secrets: Secrets::default(),
            tls: HashMap::new(),
            own: own.clone(),
            autoscalers: Store::default(),
            targets: Targets::new(scopes),
            pods: Pods::default(),
            endpoints: Endpoints::default(),
            named: HashMap::new(),
            trouble: BTreeMap::new(),
            touched: Touched::default(),
            is_settled: false,
            was_complete: false,
            has_counted: false,
            writer: Writer::start(client),
            tokens,
            scoring_url: settings.scoring_url.clone(),
            has_service: settings.service.is_some(),
            next_report: None,
            told: HashMap::new(),
        }
    }

    /// What has the replicas of a deployment that scales; `None`: it has no workload of its own.
    pub fn target(&self, scaled: &Scaled, status: &Arc<Status>) -> Option<WorkloadTarget> {
        let user = (scaled.endpoint.clone(), scaled.deployment.clone());
        let (workload, _) = self.named.get(&user.0)?.get(&user.1)?;
        let spec = &self.endpoints.of(&user.0)?.spec;
        let (_, version) = kinds_of([&**spec]).into_iter().find(|(kind, _)| *kind == workload.kind())?;
        let (client, target) = (self.client.clone(), (workload.clone(), version.to_owned()));
        Some(WorkloadTarget::new(client, target, user, scaled.slots.clone(), status.clone()))
    }

    /// Has statuses be written that are not what they should be: of some endpoints each time, so that all are looked at
    /// within a while, and of those in which something has changed.
    pub fn report_all(&mut self, counts: impl Fn(&Name, &Name) -> Option<Counts>, now: SystemTime) {
        // Something new that is not known yet is no reason to be silent of all else.
        self.was_complete |= self.is_complete();
        if !self.was_complete {
            return;
        }
        let mut keys = std::mem::take(&mut self.touched.reports);
        let from = self.next_report.take().unwrap_or_else(Key::first);
        let mut in_turn: Vec<Key> = self.endpoints.keys_from(&from).take(REPORTED + 1).cloned().collect();
        self.next_report = if in_turn.len() > REPORTED { in_turn.pop() } else { None };
        keys.extend(in_turn);
        let later = keys.split_off(&from);
        let mut keys = later.into_iter().chain(keys);
        while let Some(key) = keys.next() {
            if self.writer.is_full() {
                // Whoever has had no turn is first the next time.
                self.next_report = Some(key.clone());
                self.touched.reports.extend([key].into_iter().chain(keys));
                return;
            }
            let Some(known) = self.endpoints.get(&key) else {
                self.writer.forget(&key);
                continue;
            };
            let status = self.report(&key, known, &counts, now);
            let EndpointObject { uid, status: there, .. } = &known.object;
            self.writer.status(&key, uid, there, status);
        }
    }

    /// Has an Event tell of the last change of a deployment's replicas.
    pub fn tell_scaled(&mut self, scaled: &Scaled) {
        let Some(last) = scaled.scaling.last_change() else { return };
        let user = (scaled.endpoint.clone(), scaled.deployment.clone());
        let object = self.endpoints.holder(&user.0).and_then(|key| Some((key, self.endpoints.get(key)?)));
        if let Some((key, known)) = object
            && self.told.insert(user, last.at) != Some(last.at)
        {
            let Decision { before, wanted, reason, demand, .. } = &last;
            let note = format!(
                "deployment {}: from {before} to {wanted} replicas ({}; demand {demand:.1})",
                scaled.deployment,
                reason.word()
            );
            let reason = if wanted > before { "ScaledUp" } else { "ScaledDown" };
            self.writer.event(key, &known.object.uid, Note { is_warning: false, reason: reason.to_owned(), note });
        }
    }

    /// The next that is seen, and whatever else there is already; never ends.
    pub async fn see(&mut self) {
        match self.seen.recv().await {
            Some(seen) => self.note(seen),
            // The sender is in `self`.
            None => std::future::pending().await,
        }
        for _ in 0..SEEN {
            match self.seen.try_recv() {
                Ok(seen) => self.note(seen),
                Err(_) => break,
            }
        }
    }

    /// Whether everything has been listed once: before, what is known may be the half of it.
    pub fn is_complete(&self) -> bool {
        let scopes = self.watches.scopes();
        self.objects.is_complete(scopes)
            && self.secrets.keys.is_complete(scopes)
            && self.pods.is_complete(scopes)
            && self.knows_autoscalers()
            && self.targets.is_complete()
            && self.touched.names.is_empty()
    }

    /// What does not work.
    pub fn trouble(&self) -> Vec<Problem> {
        self.trouble.values().map(|it| Problem::new("", it.what.clone()).from_source("kubernetes")).collect()
    }

    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Endpoint(scope, event) => {
                for change in self.objects.note(&scope, event) {
                    let (key, before) = match change {
                        Change::Is(key, before) => (key, before),
                        Change::Gone(key, _) => (key, None),
                    };
                    match (self.objects.get(&key), before) {
                        // Mostly what the router itself has written.
                        (Some(now), Some(before)) if now.is_same_but_for_status(&before) => {
                            self.endpoints.set_status(&key, now);
                        }
                        (now, _) => {
                            let names = self.endpoints.set(&key, now.cloned(), &self.secrets, &self.targets);
                            self.renamed(names);
                        }
                    }
                    self.touched.reports.insert(key);
                }
            }
            Seen::Secret(scope, event) => {
                for change in self.secrets.keys.note(&scope, event) {
                    let (Change::Is(key, _) | Change::Gone(key, _)) = change;
                    let names = self.endpoints.secret_changed(&key, &self.secrets, &self.targets);
                    self.renamed(names);
                }
            }
            Seen::Named(scope, event) => self.named_secret(&scope, event),
            Seen::Service(scope, event) => self.service(&scope, event),
            Seen::Pod(scope, event) => {
                let (changes, workloads) = self.pods.note(&scope, event);
                self.touched.pods.extend(changes);
                self.touched.workloads.extend(workloads);
            }
            Seen::Workload(kind, scope, event) => {
                let is_whole = matches!(event, Event::InitDone);
                for workload in self.targets.note(&kind, &scope, event) {
                    self.select(&workload);
                    self.settle(|of| **of == *workload);
                }
                if is_whole {
                    self.settle(|of| of.kind() == *kind);
                }
            }
            Seen::Kind(kind, unfit) => {
                self.targets.set_unfit(&kind, unfit);
                self.settle(|of| of.kind() == *kind);
                // Whoever names it is told.
                self.next_report = None;
            }
            Seen::Autoscaler(scope, event) => {
                for change in self.autoscalers.note(&scope, event) {
                    let (key, before) = match change {
                        Change::Is(key, before) => (key, before),
                        Change::Gone(key, before) => (key, Some(before)),
                    };
                    let now = self.autoscalers.get(&key).cloned();
                    let targets = [before, now].into_iter().flatten().flatten();
                    self.touched.workloads.extend(targets.map(|target| Arc::new(WorkloadKey::of(&key, target))));
                }
            }
            Seen::Trouble(watched, trouble) => {
                // What nobody may look at cannot be a target.
                let denied = trouble.as_ref().filter(|trouble| trouble.is_denied).map(|trouble| trouble.what.clone());
                if self.targets.set_unfit_as(&watched.0, denied) {
                    self.settle(|of| of.kind().to_string() == watched.0);
                }
                match trouble {
                    Some(trouble) => drop(self.trouble.insert(watched, trouble)),
                    None => drop(self.trouble.remove(&watched)),
                }
            }
        }
    }
}
