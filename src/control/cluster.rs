//! The Kubernetes integration: endpoints, their keys and the pods of their workloads, followed through one watch each.
//!
//! Input and output are in `watch`, `group_kinds`, `writer`, `reviews`, `scale_subresource` and `endpoint_client`. The
//! other modules decide what the observed objects mean: changes that concern routing are returned as [`Effect`]s, which
//! the control plane applies to its index. While the API server is unavailable, the last known state stays in use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::runtime::watcher::Event;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::autoscaler::ScaledDeployment;
use super::index::{DeploymentCounts, DeploymentKey, DesiredEndpoint};
use super::secret_cache::SecretCache;
use crate::model::name::Name;
use crate::model::problem::Problem;
use crate::model::router_settings::KubernetesSettings;
use crate::state::control_plane_status::ControlPlaneStatus;
use crate::state::scaling::ScalingDecision;
use crate::state::tokens::TokenState;

pub mod endpoint_client;
mod endpoint_status;
mod endpoints;
pub(in crate::control) mod error_text;
mod group_kinds;
mod key_secrets;
mod objects;
mod pods;
mod reviews;
mod router_service;
mod routing;
mod scale_subresource;
mod targets;
mod watch;
mod watch_store;
mod workloads;
mod writer;

use endpoints::{EndpointCatalog, SecretStores};

use objects::{EndpointObject, ObjectKey, ScaleTargetRef};
use routing::versioned_kinds;
use targets::TargetWorkloads;

use pods::{PodChange, PodIndex, WorkloadKey};
pub use scale_subresource::WorkloadTarget;
use watch_store::{StoreChange, WatchScope, WatchStore};

use watch::{ClusterEvent, ClusterWatches, WatchError, WatchKey};
use writer::{EventDraft, Writer};

/// The field manager for server-side apply and patches, and the controller in Events.
const FIELD_MANAGER: &str = "inference-router";
/// The number of endpoints whose status is checked in each round, whether they have changed or not.
const MAX_STATUS_CHECKS_PER_ROUND: usize = 500;
/// How long a connection to the API server may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The capacity of the channel of watch events, in events.
const CLUSTER_EVENT_CHANNEL_CAPACITY: usize = 1024;

/// A change in the cluster that concerns routing.
#[derive(Debug)]
pub enum Effect {
    /// The desired endpoint of a name; `None` if the name has none any more.
    Endpoint(Name, Option<DesiredEndpoint>),
    /// A pod of a deployment has become available at an address, or unavailable.
    Pod {
        /// The deployment that owns the pod.
        deployment: DeploymentKey,
        /// The UID of the pod (`metadata.uid`).
        uid: Arc<str>,
        /// The address at which the pod takes requests; `None` if it takes none any more.
        address: Option<SocketAddr>,
    },
    /// The number of pods of a deployment that do not take requests yet.
    PendingPods(DeploymentKey, usize),
    /// The number of replicas in the spec of a deployment's workload; `None` if the workload does not exist or must not
    /// be scaled.
    WorkloadReplicas(DeploymentKey, Option<u32>),
}

/// A workload and the port at which its pods take requests.
type WorkloadPort = (Arc<WorkloadKey>, u16);

/// The state of the cluster as far as it concerns the router, with its watches and its writer.
pub struct Cluster {
    client: Client,
    events: mpsc::Receiver<ClusterEvent>,
    watches: ClusterWatches,
    endpoint_objects: WatchStore<EndpointObject>,
    secrets: SecretStores,
    /// The watches of Secrets for TLS towards replicas.
    tls_secret_watches: HashMap<ObjectKey, AbortHandle>,
    /// The Secrets that the router's own settings refer to.
    settings_secrets: SecretCache,
    hpas: WatchStore<Option<ScaleTargetRef>>,
    targets: TargetWorkloads,
    pods: PodIndex,
    endpoints: EndpointCatalog,
    /// The workloads that deployments refer to, by endpoint and deployment.
    workloads_by_endpoint: HashMap<Name, BTreeMap<Name, WorkloadPort>>,
    watch_errors: BTreeMap<WatchKey, WatchError>,
    /// What has changed since the last call of `take_effects` or `report_statuses`.
    dirty: DirtySet,
    /// Whether workloads were assigned to deployments once. From then on, an owner keeps its workload.
    has_assigned_owners: bool,
    /// Whether everything has been listed once. Before, no status is written.
    has_synced_once: bool,
    /// Whether replicas were counted while HorizontalPodAutoscalers were known. Before, the router scales no workload.
    has_counted_replicas: bool,
    writer: Writer,
    /// The signing key of tokens, and the reviews of those who request one.
    tokens: Arc<TokenState>,
    /// The base URL of scoring URIs, if it is known.
    scoring_url: Option<String>,
    /// Whether the base URL is that of the router's Service.
    has_service: bool,
    /// The object with which the next round of status checks begins.
    next_status_key: Option<ObjectKey>,
    /// The time of the last scaling decision for which an Event was written, by deployment.
    last_scale_events: HashMap<DeploymentKey, SystemTime>,
}

/// What has changed and is not processed yet.
#[derive(Debug, Default)]
struct DirtySet {
    /// Objects whose status may have changed.
    statuses: BTreeSet<ObjectKey>,
    /// Endpoint names whose meaning may have changed.
    names: BTreeSet<Name>,
    workloads: BTreeSet<Arc<WorkloadKey>>,
    pods: Vec<PodChange>,
    /// Workloads that have another owner now, or none.
    released: Vec<Arc<WorkloadKey>>,
}

/// Creates a client of the API server that `KUBECONFIG` names, or else of the cluster that the pod runs in. It sends no
/// request yet.
///
/// # Errors
/// Fails if there is neither, or if the configuration cannot be read.
pub async fn infer_client() -> Result<Client, String> {
    let how = "set KUBECONFIG to a file that says where the API server is, or run in a pod with a service account";
    let mut config = kube::Config::infer().await.map_err(|error| format!("no Kubernetes cluster: {error}; {how}"))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // A connection that died silently must not be waited for much longer than a watch lasts.
    config.read_timeout = Some(Duration::from_secs(u64::from(watch::WATCH_TIMEOUT_SECONDS)) + CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| format!("the Kubernetes cluster cannot be spoken to: {error}; {how}"))
}

impl Cluster {
    /// Starts the watches and the writer. Must be called inside a tokio runtime.
    pub fn start(
        client: Client,
        settings: &KubernetesSettings,
        tokens: Arc<TokenState>,
        settings_secrets: &SecretCache,
    ) -> Self {
        let (sender, events) = mpsc::channel(CLUSTER_EVENT_CHANNEL_CAPACITY);
        let mut scopes: Vec<WatchScope> = settings.namespaces.iter().map(|name| name.as_str().into()).collect();
        if scopes.is_empty() {
            scopes.push("".into());
        }
        let mut watches = ClusterWatches::new(client.clone(), scopes, sender);
        let scopes = watches.scope_count();
        watches.start_default_watches();
        let namespace: Arc<str> = watches.router_namespace().into();
        for name in settings_secrets.names() {
            watches.watch_secret(&ObjectKey { namespace: namespace.clone(), name: name.into() });
        }
        if let Some(name) = &settings.service {
            watches.watch_service(&ObjectKey { namespace, name: name.as_str().into() });
        }
        if let Some(review_requests) = tokens.access_reviews.take_receiver() {
            watches.spawn(reviews::run(client.clone(), review_requests));
        }
        Self {
            client: client.clone(),
            events,
            watches,
            endpoint_objects: WatchStore::default(),
            secrets: SecretStores::default(),
            tls_secret_watches: HashMap::new(),
            settings_secrets: settings_secrets.clone(),
            hpas: WatchStore::default(),
            targets: TargetWorkloads::new(scopes),
            pods: PodIndex::default(),
            endpoints: EndpointCatalog::default(),
            workloads_by_endpoint: HashMap::new(),
            watch_errors: BTreeMap::new(),
            dirty: DirtySet::default(),
            has_assigned_owners: false,
            has_synced_once: false,
            has_counted_replicas: false,
            writer: Writer::start(client),
            tokens,
            scoring_url: settings.scoring_url.clone(),
            has_service: settings.service.is_some(),
            next_status_key: None,
            last_scale_events: HashMap::new(),
        }
    }

    /// Returns the scale target of a deployment; `None` if the deployment has no workload.
    pub fn workload_target(
        &self,
        scaled: &ScaledDeployment,
        status: &Arc<ControlPlaneStatus>,
    ) -> Option<WorkloadTarget> {
        let deployment_key = (scaled.endpoint.clone(), scaled.deployment.clone());
        let (workload, _) = self.workloads_by_endpoint.get(&deployment_key.0)?.get(&deployment_key.1)?;
        let spec = &self.endpoints.desired_endpoint(&deployment_key.0)?.spec;
        let (_, version) = versioned_kinds([&**spec]).into_iter().find(|(kind, _)| *kind == workload.group_kind())?;
        let (client, target) = (self.client.clone(), (workload.clone(), version.to_owned()));
        Some(WorkloadTarget::new(client, target, deployment_key, scaled.slots.clone(), status.clone()))
    }

    /// Queues the statuses that differ from what is in the cluster. Each call checks the endpoints that have changed
    /// and the next `MAX_STATUS_CHECKS_PER_ROUND` of all others, so that every endpoint is checked regularly. `counts`
    /// returns the counts of a deployment of an endpoint.
    pub fn report_statuses(&mut self, counts: impl Fn(&Name, &Name) -> Option<DeploymentCounts>, now: SystemTime) {
        // Once synced, statuses are written even while a newly referenced kind or Secret is still being listed.
        self.has_synced_once |= self.has_synced();
        if !self.has_synced_once {
            return;
        }
        let mut keys = std::mem::take(&mut self.dirty.statuses);
        let from = self.next_status_key.take().unwrap_or_else(ObjectKey::lowest);
        let mut in_turn: Vec<ObjectKey> =
            self.endpoints.keys_from(&from).take(MAX_STATUS_CHECKS_PER_ROUND + 1).cloned().collect();
        self.next_status_key = if in_turn.len() > MAX_STATUS_CHECKS_PER_ROUND { in_turn.pop() } else { None };
        keys.extend(in_turn);
        let later = keys.split_off(&from);
        let mut keys = later.into_iter().chain(keys);
        while let Some(key) = keys.next() {
            if self.writer.is_full() {
                // The objects that had no turn are first in the next round.
                self.next_status_key = Some(key.clone());
                self.dirty.statuses.extend([key].into_iter().chain(keys));
                return;
            }
            let Some(known) = self.endpoints.get(&key) else {
                self.writer.remove_status(&key);
                continue;
            };
            let status = self.endpoint_status(&key, known, &counts, now);
            let EndpointObject { uid, status: observed, .. } = &known.object;
            self.writer.queue_status(&key, uid, observed, status);
        }
    }

    /// Queues an Event for the last change of a deployment's number of replicas, unless there was one already.
    pub fn record_scale_event(&mut self, scaled: &ScaledDeployment) {
        let Some(last) = scaled.scaling.last_change() else { return };
        let deployment_key = (scaled.endpoint.clone(), scaled.deployment.clone());
        let object = self.endpoints.name_owner(&deployment_key.0).and_then(|key| Some((key, self.endpoints.get(key)?)));
        if let Some((key, known)) = object
            && self.last_scale_events.insert(deployment_key, last.decided_at) != Some(last.decided_at)
        {
            let ScalingDecision { previous_replicas: before, desired_replicas: wanted, reason, demand, .. } = &last;
            let message = format!(
                "scaled deployment {} from {before} to {wanted} replicas ({}; demand {demand:.1})",
                scaled.deployment,
                reason.as_str()
            );
            let reason = if wanted > before { "ScaledUp" } else { "ScaledDown" };
            self.writer.queue_event(
                key,
                &known.object.uid,
                EventDraft { is_warning: false, reason: reason.to_owned(), message },
            );
        }
    }

    /// Waits for the next watch event, then applies it and up to `CLUSTER_EVENT_CHANNEL_CAPACITY` that have arrived
    /// already.
    pub async fn receive_events(&mut self) {
        match self.events.recv().await {
            Some(event) => self.apply_event(event),
            // Unreachable, because `self` owns a sender: the watches.
            None => std::future::pending().await,
        }
        for _ in 0..CLUSTER_EVENT_CHANNEL_CAPACITY {
            match self.events.try_recv() {
                Ok(event) => self.apply_event(event),
                Err(_) => break,
            }
        }
    }

    /// Returns whether everything has been listed once. Before, the known state may be incomplete.
    pub fn has_synced(&self) -> bool {
        let scopes = self.watches.scope_count();
        self.endpoint_objects.has_synced(scopes)
            && self.secrets.endpoint_keys.has_synced(scopes)
            && self.pods.has_synced(scopes)
            && self.has_synced_hpas()
            && self.targets.has_synced()
            && self.dirty.names.is_empty()
    }

    /// Returns the current problems of the watches.
    pub fn problems(&self) -> Vec<Problem> {
        self.watch_errors.values().map(|it| Problem::new("", it.message.clone()).from_source("kubernetes")).collect()
    }

    fn apply_event(&mut self, cluster_event: ClusterEvent) {
        match cluster_event {
            ClusterEvent::Endpoint(scope, event) => {
                for change in self.endpoint_objects.apply_event(&scope, event) {
                    let (key, before) = match change {
                        StoreChange::Applied(key, before) => (key, before),
                        StoreChange::Deleted(key, _) => (key, None),
                    };
                    match (self.endpoint_objects.get(&key), before) {
                        // Usually the echo of a status that the router itself has written.
                        (Some(now), Some(before)) if now.is_same_but_for_status(&before) => {
                            self.endpoints.set_status(&key, now);
                        }
                        (now, _) => {
                            let names = self.endpoints.set_object(&key, now.cloned(), &self.secrets, &self.targets);
                            self.apply_revalidated(names);
                        }
                    }
                    self.dirty.statuses.insert(key);
                }
            }
            ClusterEvent::KeySecret(scope, event) => {
                for change in self.secrets.endpoint_keys.apply_event(&scope, event) {
                    let (StoreChange::Applied(key, _) | StoreChange::Deleted(key, _)) = change;
                    let names = self.endpoints.recheck_secret_users(&key, &self.secrets, &self.targets);
                    self.apply_revalidated(names);
                }
            }
            ClusterEvent::ReferencedSecret(scope, event) => self.apply_referenced_secret_event(&scope, event),
            ClusterEvent::Service(scope, event) => self.apply_service_event(&scope, event),
            ClusterEvent::Pod(scope, event) => {
                let (changes, workloads) = self.pods.apply_event(&scope, event);
                self.dirty.pods.extend(changes);
                self.dirty.workloads.extend(workloads);
            }
            ClusterEvent::Workload(kind, scope, event) => {
                let is_list_complete = matches!(event, Event::InitDone);
                for workload in self.targets.apply_event(&kind, &scope, event) {
                    self.update_selector(&workload);
                    self.recheck_awaiting(|awaited| **awaited == *workload);
                }
                if is_list_complete {
                    self.recheck_awaiting(|awaited| awaited.group_kind() == *kind);
                }
            }
            ClusterEvent::KindState(kind, unusable_reason) => {
                self.targets.set_kind_unusable(&kind, unusable_reason);
                self.recheck_awaiting(|awaited| awaited.group_kind() == *kind);
                // The next round checks the statuses of all endpoints, of which any may refer to the kind.
                self.next_status_key = None;
            }
            ClusterEvent::Hpa(scope, event) => {
                for change in self.hpas.apply_event(&scope, event) {
                    let (key, before) = match change {
                        StoreChange::Applied(key, before) => (key, before),
                        StoreChange::Deleted(key, before) => (key, Some(before)),
                    };
                    let now = self.hpas.get(&key).cloned();
                    let targets = [before, now].into_iter().flatten().flatten();
                    self.dirty
                        .workloads
                        .extend(targets.map(|target| Arc::new(WorkloadKey::from_target_ref(&key, target))));
                }
            }
            ClusterEvent::WatchState(watched, error) => {
                // A kind that the router may not watch cannot be a target.
                let denied = error.as_ref().filter(|error| error.is_denied).map(|error| error.message.clone());
                if self.targets.set_kind_unusable_by_name(&watched.0, denied) {
                    self.recheck_awaiting(|awaited| awaited.group_kind().to_string() == watched.0);
                }
                match error {
                    Some(error) => drop(self.watch_errors.insert(watched, error)),
                    None => drop(self.watch_errors.remove(&watched)),
                }
            }
        }
    }
}
