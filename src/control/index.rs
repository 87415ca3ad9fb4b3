//! One index of what is wanted, whatever it comes from; publishes the routing table when that changes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::PathAndQuery;
use tokio::sync::oneshot;

use super::processes::{self, ReplicaKey, ReplicaSpec};
use crate::model::endpoint::{self, ScaleSettings, Target};
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::admit::ReplicaId;
use crate::policy::split::Split;
use crate::state::metrics::{DeploymentMetrics, Metrics};
use crate::state::slots::Slots;
use crate::state::status::Status;
use crate::state::table::{Deployment, Endpoint, Published, Table};
use crate::state::tls::Connector;
use crate::state::tokens::Tokens;

/// An endpoint that is wanted, its keys resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// As in its document.
    pub spec: Arc<endpoint::Endpoint>,
    /// Who may call.
    pub access: Access,
    /// TLS towards replicas, by the names of deployments.
    pub tls: Vec<(Name, Connector)>,
}

/// Keeps the published table equal to what is wanted, and the replicas of each deployment to what is there.
#[derive(Debug)]
pub struct Index {
    table: Published,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    tokens: Arc<Tokens>,
    endpoints: BTreeMap<Name, Arc<Endpoint>>,
    /// By endpoint and deployment. Stays, when a deployment goes, until nothing is in flight: one that comes back finds
    /// its slots as they are.
    live: HashMap<(Name, Name), Live>,
    next_replica: u64,
    next_generation: u64,
}

/// What outlives a change of a deployment's document.
#[derive(Debug)]
struct Live {
    slots: Arc<Slots>,
    metrics: Arc<DeploymentMetrics>,
    replicas: HashMap<Source, ReplicaId>,
    /// Processes that are started but not ready.
    pending: Vec<ReplicaKey>,
}

/// What a replica is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Address(String),
    Process(ReplicaKey),
}

impl Index {
    /// An index of nothing.
    pub fn new(table: Published, metrics: Arc<Metrics>, status: Arc<Status>, tokens: Arc<Tokens>) -> Self {
        let (endpoints, live) = (BTreeMap::new(), HashMap::new());
        Self { table, metrics, status, tokens, endpoints, live, next_replica: 0, next_generation: 0 }
    }

    /// Makes `desired` the whole truth. Requests in flight keep what they have.
    pub fn apply(&mut self, desired: Vec<Desired>) {
        let mut changed = desired.len() != self.endpoints.len();
        let mut endpoints = BTreeMap::new();
        for wanted in desired {
            let name = wanted.spec.name.clone();
            // What was not read again is the same object, and most was not.
            let is_wanted = |spec: &Arc<endpoint::Endpoint>| Arc::ptr_eq(spec, &wanted.spec) || *spec == wanted.spec;
            let now = self.endpoints.remove(&name);
            let same =
                now.filter(|now| is_wanted(&now.spec) && now.access == wanted.access && now.has_tls(&wanted.tls));
            changed |= same.is_none();
            endpoints.insert(name, same.unwrap_or_else(|| Arc::new(self.build(wanted))));
        }
        self.endpoints = endpoints;
        if changed {
            self.table.store(Arc::new(Table::new(self.endpoints.values().cloned())));
        }
        self.forget();
    }

    /// The local processes that are wanted, and how many of each.
    pub fn processes(&self) -> Vec<(ReplicaSpec, u32)> {
        let deployments = self.endpoints.values().flat_map(|endpoint| {
            endpoint.spec.deployments.iter().map(|deployment| (endpoint.spec.name.clone(), deployment))
        });
        let wanted = deployments.filter_map(|(endpoint, deployment)| {
            let Target::Process(process) = &deployment.target else { return None };
            let ScaleSettings::Fixed { instances } = deployment.scale;
            let spec = ReplicaSpec { endpoint, deployment: deployment.name.clone(), process: process.clone() };
            Some((spec, instances))
        });
        wanted.collect()
    }

    /// Whether every local process that is wanted is ready.
    pub fn is_complete(&self) -> bool {
        self.processes().iter().all(|(spec, count)| {
            let live = self.live.get(&(spec.endpoint.clone(), spec.deployment.clone()));
            live.is_some_and(|live| live.replicas.len() >= *count as usize)
        })
    }

    /// Takes note of a local process.
    pub fn process(&mut self, event: processes::Event) {
        match event {
            processes::Event::Pending { key } => {
                if let Some(live) = self.live_of(&key) {
                    live.pending.push(key);
                }
            }
            processes::Event::Ready { key, address } => self.process_ready(key, address),
            processes::Event::Gone { key, drained } => self.process_gone(&key, drained),
        }
        let count = |((endpoint, deployment), live): (&(Name, Name), &Live)| {
            ((endpoint.as_str().to_owned(), deployment.as_str().to_owned()), live.pending.len())
        };
        self.status.set_pending(self.live.iter().map(count).collect());
        self.forget();
    }

    fn process_ready(&mut self, key: ReplicaKey, address: SocketAddr) {
        let id = self.next_replica();
        if let Some(live) = self.live_of(&key) {
            live.pending.retain(|pending| *pending != key);
            let at = live.slots.add(id, &address.to_string());
            live.replicas.insert(Source::Process(key), at);
        }
    }

    fn process_gone(&mut self, key: &ReplicaKey, drained: Option<oneshot::Sender<()>>) {
        let Some(live) = self.live_of(key) else { return };
        live.pending.retain(|pending| pending != key);
        if let Some(at) = live.replicas.remove(&Source::Process(key.clone())) {
            live.slots.remove(at, drained);
        }
    }

    fn live_of(&mut self, key: &ReplicaKey) -> Option<&mut Live> {
        self.live.get_mut(&(key.endpoint.clone(), key.deployment.clone()))
    }

    fn next_replica(&mut self) -> u64 {
        self.next_replica += 1;
        self.next_replica
    }

    fn build(&mut self, wanted: Desired) -> Endpoint {
        let name = wanted.spec.name.clone();
        let deployments = wanted.spec.deployments.iter().map(|spec| {
            let tls = wanted.tls.iter().find(|(of, _)| *of == spec.name).map(|(_, connector)| connector.clone());
            Arc::new(self.build_deployment(&name, spec, tls))
        });
        let deployments = deployments.collect();
        let issuers = match &wanted.access {
            Access::IssuerTokens(issuers) => issuers.as_slice(),
            _ => &[],
        };
        self.next_generation += 1;
        Endpoint {
            deployments,
            key_sets: issuers.iter().map(|issuer| self.tokens.key_sets.of(&issuer.keys)).collect(),
            generation: self.next_generation,
            split: Split::new(&wanted.spec.traffic),
            metrics: self.metrics.endpoint(name.as_str()),
            access: wanted.access,
            spec: wanted.spec,
        }
    }

    fn build_deployment(&mut self, endpoint: &Name, spec: &endpoint::Deployment, tls: Option<Connector>) -> Deployment {
        let metrics = &self.metrics;
        let live = self.live.entry((endpoint.clone(), spec.name.clone())).or_insert_with(|| Live {
            slots: Slots::new(&spec.requests),
            metrics: Arc::new(metrics.deployment(endpoint.as_str(), spec.name.as_str())),
            replicas: HashMap::new(),
            pending: Vec::new(),
        });
        live.slots.set_rules(&spec.requests);
        live.set_addresses(&spec.target, &mut self.next_replica);
        Deployment {
            slots: live.slots.clone(),
            metrics: live.metrics.clone(),
            header: header(spec.name.as_str()),
            tls,
            host: spec.host.as_deref().map(header),
            scoring_path: path(&spec.scoring_path),
            swagger_path: path(&spec.swagger_path),
            spec: spec.clone(),
        }
    }

    /// Drops what is left of deployments that are gone, once nothing is in flight or waiting there.
    fn forget(&mut self) {
        let endpoints = &self.endpoints;
        if self.live.len() == endpoints.values().map(|endpoint| endpoint.deployments.len()).sum::<usize>() {
            // Every deployment that is wanted is live, so no other is.
            return;
        }
        self.live.retain(|(endpoint, deployment), live| {
            let wanted = endpoints.get(endpoint.key()).is_some_and(|e| e.deployment(deployment.key()).is_some());
            let processes = live.replicas.keys().any(|source| matches!(source, Source::Process(_)));
            let now = live.slots.occupancy();
            wanted || processes || !live.pending.is_empty() || now.busy + now.busy_draining + now.waiting > 0
        });
    }
}

impl Live {
    /// Makes the replicas at fixed addresses what `target` lists; processes come and go by themselves.
    fn set_addresses(&mut self, target: &Target, next_replica: &mut u64) {
        let wanted: &[String] = match target {
            Target::Instances(addresses) => addresses,
            Target::Process(_) => &[],
        };
        let slots = &self.slots;
        self.replicas.retain(|source, at| {
            let stays = match source {
                Source::Address(address) => wanted.contains(address),
                Source::Process(_) => true,
            };
            if !stays {
                slots.remove(*at, None);
            }
            stays
        });
        for address in wanted {
            self.replicas.entry(Source::Address(address.clone())).or_insert_with(|| {
                *next_replica += 1;
                slots.add(*next_replica, address)
            });
        }
    }
}

/// Names and hosts are checked to be fit for a header when their document is.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("model"))
}

/// Paths are checked when their document is.
fn path(text: &str) -> PathAndQuery {
    PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
