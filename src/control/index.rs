//! One index of what is wanted, whatever it comes from; publishes the routing table when that changes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use http::uri::PathAndQuery;

use super::processes::ReplicaKey;
use super::scale::Scaled;
use crate::model::endpoint::{self, Target};
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::split::Split;
use crate::state::bandwidth::Limit;
use crate::state::comparisons::Compared;
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::mirror::{Budget, Mirror};
use crate::state::status::{Pending, Status};
use crate::state::table::{Deployment, Endpoint, Published, Table};
use crate::state::tls::Connector;
use crate::state::tokens::Tokens;

mod live;
mod moves;
mod processes;
use live::{Live, Source};
use moves::Moves;

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

/// How things are with a deployment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Replicas that take requests.
    pub ready: u32,
    /// Replicas there should be, where that is known.
    pub desired: Option<u32>,
    /// Requests in flight and waiting, of what ready replicas can take; `None` without any.
    pub utilization: Option<f64>,
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
    moves: Moves,
    /// Memory for what comparisons have shown.
    compared: Arc<Budget>,
    /// Of a router that is one of several.
    membership: Option<Arc<Membership>>,
    next_replica: u64,
    next_generation: u64,
}

impl Index {
    /// An index of nothing.
    pub fn new(table: Published, metrics: Arc<Metrics>, status: Arc<Status>, tokens: Arc<Tokens>) -> Self {
        let (endpoints, live) = (BTreeMap::new(), HashMap::new());
        let (moves, compared) = (Moves::default(), Compared::memory());
        let (membership, next_replica, next_generation) = (None, 0, 0);
        Self {
            table,
            metrics,
            status,
            tokens,
            endpoints,
            live,
            moves,
            compared,
            membership,
            next_replica,
            next_generation,
        }
    }

    /// Other routers use the same replicas: slots are used as the group allows. To be called before there is an endpoint.
    pub fn share(&mut self, membership: Arc<Membership>) {
        self.membership = Some(membership);
    }

    /// Makes `desired` the whole truth. Requests in flight keep what they have.
    pub fn apply(&mut self, desired: Vec<Desired>) {
        let mut changed = desired.len() != self.endpoints.len();
        let mut endpoints = BTreeMap::new();
        for wanted in desired {
            let name = wanted.spec.name.clone();
            let before = self.endpoints.remove(&name);
            let same = before.clone().filter(|now| is_same(now, &wanted));
            changed |= same.is_none();
            endpoints.insert(name, same.unwrap_or_else(|| Arc::new(self.build(wanted, before.as_deref()))));
        }
        self.endpoints = endpoints;
        if changed {
            self.table.store(Arc::new(Table::new(self.endpoints.values().cloned())));
        }
        self.forget();
    }

    /// Changes what some names mean; all others stay. Requests in flight keep what they have.
    pub fn update(&mut self, names: impl IntoIterator<Item = (Name, Option<Desired>)>) {
        let mut changes = Vec::new();
        for (name, desired) in names {
            let before = self.endpoints.remove(&name);
            let Some(wanted) = desired else {
                changes.extend(before.map(|_| (name, None)));
                continue;
            };
            let same = before.clone().filter(|now| is_same(now, &wanted));
            let endpoint = same.unwrap_or_else(|| {
                let endpoint = Arc::new(self.build(wanted, before.as_deref()));
                changes.push((name.clone(), Some(endpoint.clone())));
                endpoint
            });
            self.endpoints.insert(name, endpoint);
        }
        if !changes.is_empty() {
            let table = self.table.load().with(changes);
            self.table.store(Arc::new(table));
        }
        self.forget();
    }

    /// A pod of a deployment takes requests at `address`, or takes none any more.
    pub fn pod(&mut self, endpoint: &Name, deployment: &Name, uid: &Arc<str>, address: Option<SocketAddr>) {
        let user = (endpoint.clone(), deployment.clone());
        let id = self.next_replica();
        let Some(live) = self.live.get_mut(&user) else { return self.moves.give_up(uid, &user) };
        if let Some((before, drained)) = live.leave_pod(uid, address) {
            self.moves.left(uid, (user.clone(), before), drained);
        }
        match address {
            Some(address) if self.moves.may_have(uid, &user, address) => live.add_pod(uid, address, id),
            Some(_) => {}
            None => self.moves.give_up(uid, &user),
        }
    }

    /// Waits for pods that are another deployment's now and still had requests in flight, and hands them over; never ends.
    pub async fn move_pods(&mut self) {
        loop {
            let (uid, (endpoint, deployment), address) = self.moves.next().await;
            self.pod(&endpoint, &deployment, &uid, Some(address));
        }
    }

    /// A deployment's workload is told to have so many replicas, by whomever; `None`: there is no such workload. Returns
    /// whether it can be scaled now and could not before, or the other way round.
    pub fn observe(&mut self, endpoint: &Name, deployment: &Name, count: Option<u32>) -> bool {
        let Some(live) = self.live.get_mut(&(endpoint.clone(), deployment.clone())) else { return false };
        let is_news = live.observed.is_some() != count.is_some();
        live.observed = count;
        if let (Some(scaling), Some(count)) = (&live.scaling, count) {
            scaling.observed(count, SystemTime::now());
        }
        is_news
    }

    /// How things are with a deployment.
    pub fn counts(&self, endpoint: &Name, deployment: &Name) -> Option<Counts> {
        let live = self.live.get(&(endpoint.clone(), deployment.clone()))?;
        let now = live.slots.occupancy();
        let (busy, waiting) = live.slots.present();
        let slots = now.ready * live.slots.per_replica() as usize;
        Some(Counts {
            ready: u32::try_from(now.ready).unwrap_or(u32::MAX),
            desired: live.scaling.as_ref().map(|scaling| scaling.desired()).or(live.observed),
            utilization: (slots > 0).then(|| (busy + waiting) as f64 / slots as f64),
        })
    }

    /// The deployments whose number of replicas is decided as they go.
    pub fn scaled(&self) -> Vec<Scaled> {
        self.endpoints.keys().flat_map(|endpoint| self.scaled_of(endpoint)).collect()
    }

    /// Those of one endpoint.
    pub fn scaled_of(&self, endpoint: &Name) -> Vec<Scaled> {
        let scaled = self.deployments_of(endpoint).filter_map(|(endpoint, deployment, live)| {
            let is_there = live.observed.is_some() || !matches!(deployment.target, Target::Workload(_));
            if !is_there {
                return None;
            }
            let (endpoint, deployment) = (endpoint.clone(), deployment.name.clone());
            Some(Scaled { endpoint, deployment, scaling: live.scaling.clone()?, slots: live.slots.clone() })
        });
        scaled.collect()
    }

    /// So many processes are wanted, where that is decided as things go.
    pub fn set_count(&mut self, endpoint: &Name, deployment: &Name, count: u32) {
        let live = self.live.get_mut(&(endpoint.clone(), deployment.clone()));
        // Its document may just have changed.
        if let Some(live) = live.filter(|live| live.scaling.is_some()) {
            live.count = count;
        }
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Whether every local process that is wanted is ready.
    pub fn is_complete(&self) -> bool {
        self.deployments().all(|(_, deployment, live)| match deployment.target {
            Target::Process(_) => live.replicas.len() >= live.count as usize,
            Target::Instances(_) | Target::Workload(_) => true,
        })
    }

    /// Every deployment, with its endpoint's name.
    fn deployments(&self) -> impl Iterator<Item = (&Name, &endpoint::Deployment, &Live)> {
        self.endpoints.keys().flat_map(|endpoint| self.deployments_of(endpoint))
    }

    /// Those of one endpoint.
    fn deployments_of(&self, endpoint: &Name) -> impl Iterator<Item = (&Name, &endpoint::Deployment, &Live)> {
        let endpoint = self.endpoints.get(endpoint).map(|endpoint| &endpoint.spec);
        let all =
            endpoint.into_iter().flat_map(|spec| spec.deployments.iter().map(|deployment| (&spec.name, deployment)));
        all.filter_map(|(endpoint, deployment)| {
            let live = self.live.get(&(endpoint.clone(), deployment.name.clone()))?;
            Some((endpoint, deployment, live))
        })
    }

    /// Takes note of replicas that do not take requests yet.
    pub fn pending(&self, endpoint: &Name, deployment: &Name, pending: Pending) {
        self.status.set_pending(endpoint.as_str(), deployment.as_str(), pending);
    }

    fn live_of(&mut self, key: &ReplicaKey) -> Option<&mut Live> {
        self.live.get_mut(&(key.endpoint.clone(), key.deployment.clone()))
    }

    fn next_replica(&mut self) -> u64 {
        self.next_replica += 1;
        self.next_replica
    }

    /// `before`: what the name meant so far.
    fn build(&mut self, wanted: Desired, before: Option<&Endpoint>) -> Endpoint {
        let name = wanted.spec.name.clone();
        let deployments = wanted.spec.deployments.iter().map(|spec| {
            let tls = wanted.tls.iter().find(|(of, _)| *of == spec.name).map(|(_, connector)| connector.clone());
            Arc::new(self.build_deployment(&name, spec, tls))
        });
        let deployments: Vec<_> = deployments.collect();
        let limit = Limit::kept(before.and_then(|before| before.limit.as_ref()), wanted.spec.bandwidth);
        let mirror = wanted.spec.mirror.clone().map(|settings| {
            let before = before.and_then(|before| before.mirror.as_deref());
            let to = deployments[settings.to].clone();
            let compared = Compared::kept(before, &name, &to, &settings, &self.compared);
            let share = before.map(|mirror| mirror.share.clone()).unwrap_or_default();
            Arc::new(Mirror { to, settings, share, compared, limit: limit.clone() })
        });
        let issuers = match &wanted.access {
            Access::IssuerTokens(issuers) => issuers.as_slice(),
            _ => &[],
        };
        self.next_generation += 1;
        Endpoint {
            deployments,
            mirror,
            limit,
            key_sets: issuers.iter().map(|issuer| self.tokens.key_sets.of(&issuer.keys)).collect(),
            generation: self.next_generation,
            split: Split::new(&wanted.spec.traffic),
            metrics: self.metrics.endpoint(name.as_str()),
            access: wanted.access,
            spec: wanted.spec,
        }
    }

    fn build_deployment(&mut self, endpoint: &Name, spec: &endpoint::Deployment, tls: Option<Connector>) -> Deployment {
        let key = (endpoint.clone(), spec.name.clone());
        let is_shared = live::is_shared(spec, self.membership.as_ref());
        if self.live.get(&key).is_some_and(|live| live.is_shared != is_shared) {
            // Whose replicas they are has changed: nothing of before is of use.
            self.live.remove(&key).into_iter().for_each(|mut live| live.end());
        }
        let metrics = &self.metrics;
        let live = self.live.entry(key).or_insert_with(|| Live::new(endpoint, spec, metrics, self.membership.as_ref()));
        live.slots.set_rules(&spec.requests);
        live.set_scale(spec);
        live.set_addresses(&spec.target, &mut self.next_replica);
        Deployment {
            slots: live.slots.clone(),
            scaling: live.scaling.clone(),
            metrics: live.metrics.clone(),
            header: header(spec.name.as_str()),
            tls,
            host: spec.host.as_deref().map(header),
            scoring_path: path(&spec.scoring_path),
            swagger_path: path(&spec.swagger_path),
            spec: spec.clone(),
        }
    }

    /// Drops what is left of deployments that are gone, once nothing is in flight there, and has nobody wait for a
    /// replica that will not come.
    fn forget(&mut self) {
        let endpoints = &self.endpoints;
        if self.live.len() == endpoints.values().map(|endpoint| endpoint.deployments.len()).sum::<usize>() {
            // Every deployment that is wanted is live, so no other is.
            return;
        }
        self.live.retain(|(endpoint, deployment), live| {
            let wanted = endpoints.get(endpoint.key()).is_some_and(|e| e.deployment(deployment.key()).is_some());
            if wanted {
                return true;
            }
            live.slots.abandon();
            let processes = live.replicas.keys().any(|source| matches!(source, Source::Process(_)));
            let now = live.slots.occupancy();
            let stays = processes || !live.pending.is_empty() || now.busy + now.busy_draining + now.waiting > 0;
            if !stays {
                // What is held of them goes back to the group.
                live.end();
                self.status.set_pending(endpoint.as_str(), deployment.as_str(), Pending::default());
            }
            stays
        });
    }
}

/// Whether an endpoint is what is wanted; what was not read again is the same object, and most was not.
fn is_same(now: &Endpoint, wanted: &Desired) -> bool {
    let spec = Arc::ptr_eq(&now.spec, &wanted.spec) || now.spec == wanted.spec;
    spec && now.access == wanted.access && now.has_tls(&wanted.tls)
}

/// Names and hosts are checked to be fit for a header when their document is.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("model"))
}

/// Paths are checked when their document is.
fn path(text: &str) -> PathAndQuery {
    PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
