//! What outlives a change of a deployment's document: its replicas, with what is in flight on them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::processes::ReplicaKey;
use crate::model::endpoint::{self, ScaleSettings, Target, Workload};
use crate::model::name::Name;
use crate::policy::admit::ReplicaId;
use crate::state::membership::Membership;
use crate::state::metrics::{DeploymentMetrics, Metrics};
use crate::state::scaling::{Rules, Scaling};
use crate::state::slots::Slots;

/// What outlives a change of a deployment's document.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) slots: Arc<Slots>,
    /// Whether other routers use its replicas too.
    pub(super) is_shared: bool,
    pub(super) metrics: Arc<DeploymentMetrics>,
    pub(super) replicas: HashMap<Source, ReplicaId>,
    /// Processes that are not ready yet, with what happened to each that is started again.
    pub(super) pending: BTreeMap<ReplicaKey, Option<String>>,
    /// Processes there should be.
    pub(super) count: u32,
    /// What has the pods; what is known of another is of no use.
    pub(super) workload: Option<Workload>,
    /// Replicas that the deployment's workload is told to have, once that is known.
    pub(super) observed: Option<u32>,
    /// What decides how many there should be; `None` where that is fixed, or somebody else's affair.
    pub(super) scaling: Option<Arc<Scaling>>,
}

/// What a replica is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Address(String),
    Process(ReplicaKey),
    /// By its `metadata.uid`.
    Pod(Arc<str>),
}

/// Whether a deployment's replicas are other routers' too: each has processes of its own.
pub(super) fn is_shared(spec: &endpoint::Deployment, membership: Option<&Arc<Membership>>) -> bool {
    membership.is_some() && !matches!(spec.target, Target::Process(_))
}

impl Live {
    /// It takes no more requests; what is in flight finishes.
    pub(super) fn end(&mut self) {
        self.replicas.drain().for_each(|(_, at)| self.slots.remove(at, None));
        self.slots.abandon();
    }

    /// Nothing is there yet.
    pub(super) fn new(
        endpoint: &Name,
        spec: &endpoint::Deployment,
        metrics: &Arc<Metrics>,
        membership: Option<&Arc<Membership>>,
    ) -> Self {
        let slots = match membership.filter(|_| is_shared(spec, membership)) {
            Some(membership) => {
                let name = format!("{}/{}", endpoint.key(), spec.name.key());
                Slots::shared(&spec.requests, membership.clone(), name.into())
            }
            None => Slots::new(&spec.requests),
        };
        Self {
            slots,
            is_shared: is_shared(spec, membership),
            metrics: Arc::new(metrics.deployment(endpoint.as_str(), spec.name.as_str())),
            replicas: HashMap::new(),
            pending: BTreeMap::new(),
            count: 0,
            workload: None,
            observed: None,
            scaling: None,
        }
    }

    /// A pod takes requests at `address`. `id` is unique over the life of the process.
    pub(super) fn add_pod(&mut self, uid: &Arc<str>, address: SocketAddr, id: u64) {
        let slots = &self.slots;
        self.replicas.entry(Source::Pod(uid.clone())).or_insert_with(|| slots.add(id, uid, &address.to_string()));
    }

    /// A pod takes requests at `address` only, or none any more. Returns where it has taken some, if that was elsewhere, and
    /// what ends when nothing is in flight there any more.
    pub(super) fn leave_pod(
        &mut self,
        uid: &Arc<str>,
        address: Option<SocketAddr>,
    ) -> Option<(String, oneshot::Receiver<()>)> {
        let source = Source::Pod(uid.clone());
        let at = *self.replicas.get(&source)?;
        let before = self.slots.address(at).filter(|before| address.is_none_or(|now| now.to_string() != *before))?;
        let (drained, left) = oneshot::channel();
        self.slots.remove(at, Some(drained));
        self.replicas.remove(&source);
        Some((before, left))
    }

    /// How many processes there should be, or what decides it. Who scales goes on from what there was.
    pub(super) fn set_scale(&mut self, spec: &endpoint::Deployment) {
        let workload = match &spec.target {
            Target::Workload(workload) => Some(workload),
            Target::Process(_) | Target::Instances(_) => None,
        };
        if self.workload.as_ref() != workload {
            self.workload = workload.cloned();
            (self.observed, self.scaling) = (None, None);
        }
        let settings = match &spec.scale {
            ScaleSettings::Fixed { instances } => {
                (self.count, self.scaling) = (*instances, None);
                self.slots.set_cold_start_timeout(None);
                return;
            }
            ScaleSettings::Unmanaged => {
                (self.count, self.scaling) = (0, None);
                self.slots.set_cold_start_timeout(None);
                return;
            }
            ScaleSettings::Utilization(settings) => settings,
        };
        self.slots.set_cold_start_timeout((settings.min == 0).then_some(settings.cold_start_timeout));
        let per_replica = spec.requests.max_concurrent_per_instance.get();
        let rules = Rules { settings: settings.clone(), per_replica };
        match &self.scaling {
            Some(scaling) => scaling.set_rules(rules),
            None => {
                let count = match spec.target {
                    // What there is, there is.
                    Target::Workload(_) => self.observed.unwrap_or_default(),
                    Target::Process(_) | Target::Instances(_) => self.count.clamp(settings.min, settings.max),
                };
                self.count = count;
                self.scaling = Some(Arc::new(Scaling::new(rules, count)));
            }
        }
    }

    /// Requests in flight on each process, by its index.
    pub(super) fn busy(&self) -> BTreeMap<u32, u32> {
        let busy = self.replicas.iter().filter_map(|(source, at)| match source {
            Source::Process(key) => Some((key.index, self.slots.busy_on(*at))),
            Source::Address(_) | Source::Pod(_) => None,
        });
        busy.collect()
    }

    /// Makes the replicas at fixed addresses what `target` lists; processes come and go by themselves.
    pub(super) fn set_addresses(&mut self, target: &Target, next_replica: &mut u64) {
        let wanted: &[String] = match target {
            Target::Instances(addresses) => addresses,
            Target::Process(_) | Target::Workload(_) => &[],
        };
        let slots = &self.slots;
        self.replicas.retain(|source, at| {
            let stays = match source {
                Source::Address(address) => wanted.contains(address),
                Source::Process(_) | Source::Pod(_) => true,
            };
            if !stays {
                slots.remove(*at, None);
            }
            stays
        });
        for address in wanted {
            self.replicas.entry(Source::Address(address.clone())).or_insert_with(|| {
                *next_replica += 1;
                slots.add(*next_replica, address, address)
            });
        }
    }
}
