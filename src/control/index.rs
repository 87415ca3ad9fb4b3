//! The index of desired endpoints, whatever their source: it owns the replicas of every deployment and publishes the
//! routing table when the endpoints change.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use http::uri::PathAndQuery;

use super::autoscaler::ScaledDeployment;
use super::processes::ProcessReplicaKey;
use crate::model::endpoint::{self, DeploymentTarget};
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::split::Split;
use crate::state::bandwidth::BandwidthLimit;
use crate::state::comparison_queue::ComparisonResults;
use crate::state::control_plane_status::{ControlPlaneStatus, PendingReplicas};
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::mirror::{Budget, MirrorEntry};
use crate::state::routing_table::{DeploymentEntry, EndpointEntry, PublishedTable, RoutingTable};
use crate::state::tls::Connector;
use crate::state::tokens::TokenState;

mod deployment_runtime;
mod pod_transfers;
mod processes;
use deployment_runtime::{DeploymentRuntime, ReplicaSource};
use pod_transfers::PodTransfers;

/// A desired endpoint with resolved credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredEndpoint {
    /// The endpoint as in its document.
    pub spec: Arc<endpoint::Endpoint>,
    /// The access rules: which callers may send requests.
    pub access: Access,
    /// The TLS connectors towards replicas, by deployment name.
    pub connectors: Vec<(Name, Connector)>,
}

/// Identifies a deployment by the names of its endpoint and of itself.
pub type DeploymentKey = (Name, Name);

/// The replica counts and the utilization of a deployment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DeploymentCounts {
    /// The number of replicas that take requests.
    pub ready: u32,
    /// The desired number of replicas, if it is known.
    pub desired: Option<u32>,
    /// The requests in flight and queued as a fraction of the slots of ready replicas; `None` if no replica is ready.
    pub utilization: Option<f64>,
}

/// Keeps the published routing table equal to the desired endpoints, and the replicas of each deployment equal to those
/// that exist.
#[derive(Debug)]
pub struct Index {
    table: PublishedTable,
    metrics: Arc<Metrics>,
    status: Arc<ControlPlaneStatus>,
    tokens: Arc<TokenState>,
    endpoints: BTreeMap<Name, Arc<EndpointEntry>>,
    /// The runtimes of deployments. The runtime of a removed deployment stays until nothing is in flight: if the
    /// deployment comes back, it finds its slots as they are.
    runtimes: HashMap<DeploymentKey, DeploymentRuntime>,
    pod_transfers: PodTransfers,
    /// The memory budget for comparison results.
    comparison_memory: Arc<Budget>,
    /// The membership of a router that belongs to a fleet.
    membership: Option<Arc<Membership>>,
    last_replica_id: u64,
    last_generation: u64,
}

impl Index {
    /// Creates an empty index.
    pub fn new(
        table: PublishedTable,
        metrics: Arc<Metrics>,
        status: Arc<ControlPlaneStatus>,
        tokens: Arc<TokenState>,
    ) -> Self {
        Self {
            table,
            metrics,
            status,
            tokens,
            endpoints: BTreeMap::new(),
            runtimes: HashMap::new(),
            pod_transfers: PodTransfers::default(),
            comparison_memory: ComparisonResults::new_budget(),
            membership: None,
            last_replica_id: 0,
            last_generation: 0,
        }
    }

    /// Sets the membership of a router that shares replicas with the other members of its fleet: slots are then used
    /// under leases. Must be called before the first endpoint is added.
    pub fn set_membership(&mut self, membership: Arc<Membership>) {
        self.membership = Some(membership);
    }

    /// Replaces all endpoints with `desired`. Requests in flight keep their endpoint and their slot.
    pub fn replace_endpoints(&mut self, desired: Vec<DesiredEndpoint>) {
        let mut changed = desired.len() != self.endpoints.len();
        let mut endpoints = BTreeMap::new();
        for wanted in desired {
            let name = wanted.spec.name.clone();
            let before = self.endpoints.remove(&name);
            let same = before.clone().filter(|now| is_up_to_date(now, &wanted));
            changed |= same.is_none();
            endpoints.insert(name, same.unwrap_or_else(|| Arc::new(self.build_endpoint(wanted, before.as_deref()))));
        }
        self.endpoints = endpoints;
        if changed {
            self.table.store(Arc::new(RoutingTable::new(self.endpoints.values().cloned())));
        }
        self.remove_idle_runtimes();
    }

    /// Sets the endpoints of some names, or removes them (`None`); all others stay. Requests in flight keep their
    /// endpoint and their slot.
    pub fn update_endpoints(&mut self, names: impl IntoIterator<Item = (Name, Option<DesiredEndpoint>)>) {
        let mut changes = Vec::new();
        for (name, desired) in names {
            let before = self.endpoints.remove(&name);
            let Some(wanted) = desired else {
                changes.extend(before.map(|_| (name, None)));
                continue;
            };
            let same = before.clone().filter(|now| is_up_to_date(now, &wanted));
            let endpoint = same.unwrap_or_else(|| {
                let endpoint = Arc::new(self.build_endpoint(wanted, before.as_deref()));
                changes.push((name.clone(), Some(endpoint.clone())));
                endpoint
            });
            self.endpoints.insert(name, endpoint);
        }
        if !changes.is_empty() {
            let table = self.table.load().with_changes(changes);
            self.table.store(Arc::new(table));
        }
        self.remove_idle_runtimes();
    }

    /// Records that a pod of a deployment takes requests at `address`, or takes none any more.
    pub fn update_pod(&mut self, endpoint: &Name, deployment: &Name, uid: &Arc<str>, address: Option<SocketAddr>) {
        let deployment_key = (endpoint.clone(), deployment.clone());
        let id = self.next_replica_id();
        let Some(runtime) = self.runtimes.get_mut(&deployment_key) else {
            return self.pod_transfers.cancel_claim(uid, &deployment_key);
        };
        if let Some((before, drained)) = runtime.remove_pod(uid, address) {
            self.pod_transfers.release_pod(uid, (deployment_key.clone(), before), drained);
        }
        match address {
            Some(address) if self.pod_transfers.try_claim_pod(uid, &deployment_key, address) => {
                runtime.add_pod(uid, address, id)
            }
            Some(_) => {}
            None => self.pod_transfers.cancel_claim(uid, &deployment_key),
        }
    }

    /// Transfers pods to their new deployment or address as soon as nothing is in flight on them any more. Never
    /// returns.
    pub async fn run_pod_transfers(&mut self) {
        loop {
            let (uid, (endpoint, deployment), address) = self.pod_transfers.next().await;
            self.update_pod(&endpoint, &deployment, &uid, Some(address));
        }
    }

    /// Sets the observed number of replicas in the spec of a deployment's workload; `None` if there is no workload that
    /// the router may scale. Returns whether the deployment has become scalable, or is not scalable any more.
    pub fn set_observed_replicas(&mut self, endpoint: &Name, deployment: &Name, count: Option<u32>) -> bool {
        let Some(runtime) = self.runtimes.get_mut(&(endpoint.clone(), deployment.clone())) else { return false };
        let is_changed = runtime.observed_replicas.is_some() != count.is_some();
        runtime.observed_replicas = count;
        if let (Some(scaling), Some(count)) = (&runtime.scaling, count) {
            scaling.set_observed_replicas(count, SystemTime::now());
        }
        is_changed
    }

    /// Returns the replica counts and the utilization of a deployment, if it exists.
    pub fn deployment_counts(&self, endpoint: &Name, deployment: &Name) -> Option<DeploymentCounts> {
        let runtime = self.runtimes.get(&(endpoint.clone(), deployment.clone()))?;
        let now = runtime.slots.occupancy();
        let (busy, waiting) = runtime.slots.outstanding();
        let slots = now.ready * runtime.slots.replica_cap() as usize;
        Some(DeploymentCounts {
            ready: u32::try_from(now.ready).unwrap_or(u32::MAX),
            desired: runtime.scaling.as_ref().map(|scaling| scaling.desired()).or(runtime.observed_replicas),
            utilization: (slots > 0).then(|| (busy + waiting) as f64 / slots as f64),
        })
    }

    /// Returns the autoscaled deployments of all endpoints.
    pub fn autoscaled_deployments(&self) -> Vec<ScaledDeployment> {
        self.endpoints.keys().flat_map(|endpoint| self.autoscaled_in_endpoint(endpoint)).collect()
    }

    /// Returns the autoscaled deployments of one endpoint.
    pub fn autoscaled_in_endpoint(&self, endpoint: &Name) -> Vec<ScaledDeployment> {
        let scaled = self.endpoint_deployments(endpoint).filter_map(|(endpoint, deployment, runtime)| {
            let is_scalable =
                runtime.observed_replicas.is_some() || !matches!(deployment.target, DeploymentTarget::Workload(_));
            if !is_scalable {
                return None;
            }
            let (endpoint, deployment) = (endpoint.clone(), deployment.name.clone());
            Some(ScaledDeployment {
                endpoint,
                deployment,
                scaling: runtime.scaling.clone()?,
                slots: runtime.slots.clone(),
            })
        });
        scaled.collect()
    }

    /// Sets the desired number of processes of an autoscaled deployment.
    pub fn set_process_count(&mut self, endpoint: &Name, deployment: &Name, count: u32) {
        let runtime = self.runtimes.get_mut(&(endpoint.clone(), deployment.clone()));
        // The document may just have changed, so that the deployment is not autoscaled any more.
        if let Some(runtime) = runtime.filter(|runtime| runtime.scaling.is_some()) {
            runtime.process_count = count;
        }
    }

    /// Returns the number of endpoints.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Returns whether there are no endpoints.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Returns whether every desired local process is ready.
    pub fn has_all_processes_ready(&self) -> bool {
        self.deployments().all(|(_, deployment, runtime)| match deployment.target {
            DeploymentTarget::Process(_) => runtime.replicas.len() >= runtime.process_count as usize,
            DeploymentTarget::Instances(_) | DeploymentTarget::Workload(_) => true,
        })
    }

    /// Returns every deployment with the name of its endpoint and its runtime.
    fn deployments(&self) -> impl Iterator<Item = (&Name, &endpoint::Deployment, &DeploymentRuntime)> {
        self.endpoints.keys().flat_map(|endpoint| self.endpoint_deployments(endpoint))
    }

    /// Returns the deployments of one endpoint with its name and their runtimes.
    fn endpoint_deployments(
        &self,
        endpoint: &Name,
    ) -> impl Iterator<Item = (&Name, &endpoint::Deployment, &DeploymentRuntime)> {
        let endpoint = self.endpoints.get(endpoint).map(|endpoint| &endpoint.spec);
        let all =
            endpoint.into_iter().flat_map(|spec| spec.deployments.iter().map(|deployment| (&spec.name, deployment)));
        all.filter_map(|(endpoint, deployment)| {
            let runtime = self.runtimes.get(&(endpoint.clone(), deployment.name.clone()))?;
            Some((endpoint, deployment, runtime))
        })
    }

    /// Records the replicas of a deployment that do not take requests yet.
    pub fn set_pending(&self, endpoint: &Name, deployment: &Name, pending: PendingReplicas) {
        self.status.set_pending_replicas(endpoint.as_str(), deployment.as_str(), pending);
    }

    fn runtime_mut(&mut self, key: &ProcessReplicaKey) -> Option<&mut DeploymentRuntime> {
        self.runtimes.get_mut(&(key.endpoint.clone(), key.deployment.clone()))
    }

    fn next_replica_id(&mut self) -> u64 {
        self.last_replica_id += 1;
        self.last_replica_id
    }

    /// Builds the table entry of an endpoint. `before` is the current entry of the name, whose bandwidth limit and
    /// comparison results are kept if they still fit.
    fn build_endpoint(&mut self, wanted: DesiredEndpoint, before: Option<&EndpointEntry>) -> EndpointEntry {
        let name = wanted.spec.name.clone();
        let deployments = wanted.spec.deployments.iter().map(|spec| {
            let tls = wanted
                .connectors
                .iter()
                .find(|(deployment, _)| *deployment == spec.name)
                .map(|(_, connector)| connector.clone());
            Arc::new(self.build_deployment(&name, spec, tls))
        });
        let deployments: Vec<_> = deployments.collect();
        let limit = BandwidthLimit::reuse_or_new(
            before.and_then(|before| before.bandwidth_limit.as_ref()),
            wanted.spec.bandwidth_bytes_per_second,
        );
        let mirror = wanted.spec.mirror.clone().map(|settings| {
            let before = before.and_then(|before| before.mirror.as_deref());
            let to = deployments[settings.shadow_index].clone();
            let results = ComparisonResults::reuse_or_new(before, &name, &to, &settings, &self.comparison_memory);
            let share = before.map(|mirror| mirror.share.clone()).unwrap_or_default();
            Arc::new(MirrorEntry {
                shadow: to,
                settings,
                share,
                comparison_results: results,
                bandwidth_limit: limit.clone(),
            })
        });
        let issuers = match &wanted.access {
            Access::IssuerTokens(issuers) => issuers.as_slice(),
            _ => &[],
        };
        self.last_generation += 1;
        EndpointEntry {
            deployments,
            mirror,
            bandwidth_limit: limit,
            key_sets: issuers.iter().map(|issuer| self.tokens.key_sets.get_or_create(&issuer.key_set)).collect(),
            generation: self.last_generation,
            split: Split::new(&wanted.spec.traffic),
            metrics: self.metrics.endpoint_metrics(name.as_str()),
            access: wanted.access,
            spec: wanted.spec,
        }
    }

    fn build_deployment(
        &mut self,
        endpoint: &Name,
        spec: &endpoint::Deployment,
        tls: Option<Connector>,
    ) -> DeploymentEntry {
        let key = (endpoint.clone(), spec.name.clone());
        let is_shared = deployment_runtime::is_shared(spec, self.membership.as_ref());
        if self.runtimes.get(&key).is_some_and(|runtime| runtime.is_shared != is_shared) {
            // The replicas become shared with other routers, or private: the old slots cannot be kept.
            self.runtimes.remove(&key).into_iter().for_each(|mut runtime| runtime.drain());
        }
        let metrics = &self.metrics;
        let runtime = self
            .runtimes
            .entry(key)
            .or_insert_with(|| DeploymentRuntime::new(endpoint, spec, metrics, self.membership.as_ref()));
        runtime.slots.apply_settings(&spec.request_settings);
        runtime.set_scale_settings(spec);
        runtime.set_addresses(&spec.target, &mut self.last_replica_id);
        DeploymentEntry {
            slots: runtime.slots.clone(),
            scaling: runtime.scaling.clone(),
            metrics: runtime.metrics.clone(),
            name_header: header_value(spec.name.as_str()),
            tls,
            host_header: spec.host.as_deref().map(header_value),
            scoring_path: path_or_root(&spec.scoring_path),
            swagger_path: path_or_root(&spec.swagger_path),
            spec: spec.clone(),
        }
    }

    /// Removes the runtimes of removed deployments in which nothing is in flight or queued any more. Requests that wait
    /// there for a first replica are abandoned, because it will not come.
    fn remove_idle_runtimes(&mut self) {
        let endpoints = &self.endpoints;
        if self.runtimes.len() == endpoints.values().map(|endpoint| endpoint.deployments.len()).sum::<usize>() {
            // Every desired deployment has a runtime, so no other runtime exists.
            return;
        }
        self.runtimes.retain(|(endpoint, deployment), runtime| {
            let wanted = endpoints.get(endpoint.key()).is_some_and(|e| e.deployment(deployment.key()).is_some());
            if wanted {
                return true;
            }
            runtime.slots.abandon_cold_start();
            let has_processes = runtime.replicas.keys().any(|source| matches!(source, ReplicaSource::Process(_)));
            let now = runtime.slots.occupancy();
            let stays = has_processes
                || !runtime.pending_processes.is_empty()
                || now.busy + now.busy_draining + now.waiting > 0;
            if !stays {
                // The slots that are held here return to the fleet.
                runtime.drain();
                self.status.set_pending_replicas(endpoint.as_str(), deployment.as_str(), PendingReplicas::default());
            }
            stays
        });
    }
}

/// Returns whether an endpoint equals the desired one. The pointers are compared first, because most documents were not
/// read again and are the same object.
fn is_up_to_date(now: &EndpointEntry, wanted: &DesiredEndpoint) -> bool {
    let spec = Arc::ptr_eq(&now.spec, &wanted.spec) || now.spec == wanted.spec;
    spec && now.access == wanted.access && now.has_same_tls(&wanted.connectors)
}

/// Returns a name or host as a header value. It always is one, because that is checked when its document is validated.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("model"))
}

/// Returns a path as a URI part. It always is one, because that is checked when its document is validated.
fn path_or_root(text: &str) -> PathAndQuery {
    PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
