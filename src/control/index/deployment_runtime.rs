//! The runtime of a deployment: its replicas and slots, which outlive changes of its document.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::processes::ProcessReplicaKey;
use crate::model::endpoint::{self, DeploymentTarget, ScaleSettings, WorkloadRef};
use crate::model::name::Name;
use crate::policy::admit::ReplicaId;
use crate::state::membership::Membership;
use crate::state::metrics::{DeploymentMetrics, Metrics};
use crate::state::scaling::{Scaling, ScalingRules};
use crate::state::slots::DeploymentSlots;

/// The state of a deployment that outlives changes of its document.
#[derive(Debug)]
pub(super) struct DeploymentRuntime {
    pub(super) slots: Arc<DeploymentSlots>,
    /// Whether other routers use the replicas too.
    pub(super) is_shared: bool,
    pub(super) metrics: Arc<DeploymentMetrics>,
    pub(super) replicas: HashMap<ReplicaSource, ReplicaId>,
    /// The processes that are not ready yet, each with its last failure if it is being restarted.
    pub(super) pending_processes: BTreeMap<ProcessReplicaKey, Option<String>>,
    /// The desired number of processes.
    pub(super) process_count: u32,
    /// The workload that has the pods. If it changes, `observed_replicas` and `scaling` are reset.
    pub(super) workload: Option<WorkloadRef>,
    /// The number of replicas in the workload's spec, if it is known and the router may scale the workload.
    pub(super) observed_replicas: Option<u32>,
    /// The scaling state; `None` if the number of replicas is fixed or managed elsewhere.
    pub(super) scaling: Option<Arc<Scaling>>,
}

/// The identity of a replica in its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ReplicaSource {
    Address(String),
    Process(ProcessReplicaKey),
    /// A pod, by its UID (`metadata.uid`).
    Pod(Arc<str>),
}

/// Returns whether other routers use the replicas of a deployment too. Processes are never shared: each router has its
/// own.
pub(super) fn is_shared(spec: &endpoint::Deployment, membership: Option<&Arc<Membership>>) -> bool {
    membership.is_some() && !matches!(spec.target, DeploymentTarget::Process(_))
}

impl DeploymentRuntime {
    /// Removes all replicas: the deployment takes no more requests, and those in flight finish.
    pub(super) fn drain(&mut self) {
        self.replicas.drain().for_each(|(_, at)| self.slots.remove_replica(at, None));
        self.slots.abandon_cold_start();
    }

    /// Creates the runtime of a deployment without replicas.
    pub(super) fn new(
        endpoint: &Name,
        spec: &endpoint::Deployment,
        metrics: &Arc<Metrics>,
        membership: Option<&Arc<Membership>>,
    ) -> Self {
        let slots = match membership.filter(|_| is_shared(spec, membership)) {
            Some(membership) => {
                let name = format!("{}/{}", endpoint.key(), spec.name.key());
                DeploymentSlots::new_shared(&spec.request_settings, membership.clone(), name.into())
            }
            None => DeploymentSlots::new(&spec.request_settings),
        };
        Self {
            slots,
            is_shared: is_shared(spec, membership),
            metrics: Arc::new(metrics.deployment_metrics(endpoint.as_str(), spec.name.as_str())),
            replicas: HashMap::new(),
            pending_processes: BTreeMap::new(),
            process_count: 0,
            workload: None,
            observed_replicas: None,
            scaling: None,
        }
    }

    /// Adds a pod that takes requests at `address`. `id` is unique over the life of the router's process.
    pub(super) fn add_pod(&mut self, uid: &Arc<str>, address: SocketAddr, id: u64) {
        let slots = &self.slots;
        self.replicas
            .entry(ReplicaSource::Pod(uid.clone()))
            .or_insert_with(|| slots.add_replica(id, uid, &address.to_string()));
    }

    /// Removes a pod unless its address is `address`. Returns its address so far and a receiver that completes when
    /// nothing is in flight there any more; `None` if nothing was removed.
    pub(super) fn remove_pod(
        &mut self,
        uid: &Arc<str>,
        address: Option<SocketAddr>,
    ) -> Option<(String, oneshot::Receiver<()>)> {
        let source = ReplicaSource::Pod(uid.clone());
        let at = *self.replicas.get(&source)?;
        let before =
            self.slots.replica_address(at).filter(|before| address.is_none_or(|now| now.to_string() != *before))?;
        let (drained_tx, drained_rx) = oneshot::channel();
        self.slots.remove_replica(at, Some(drained_tx));
        self.replicas.remove(&source);
        Some((before, drained_rx))
    }

    /// Applies the scale settings of the document. Autoscaling starts from the current number of replicas.
    pub(super) fn set_scale_settings(&mut self, spec: &endpoint::Deployment) {
        let workload = match &spec.target {
            DeploymentTarget::Workload(workload) => Some(workload),
            DeploymentTarget::Process(_) | DeploymentTarget::Instances(_) => None,
        };
        if self.workload.as_ref() != workload {
            self.workload = workload.cloned();
            (self.observed_replicas, self.scaling) = (None, None);
        }
        let settings = match &spec.scale_settings {
            ScaleSettings::Fixed { instances } => {
                (self.process_count, self.scaling) = (*instances, None);
                self.slots.set_cold_start_timeout(None);
                return;
            }
            ScaleSettings::Unmanaged => {
                (self.process_count, self.scaling) = (0, None);
                self.slots.set_cold_start_timeout(None);
                return;
            }
            ScaleSettings::TargetUtilization(settings) => settings,
        };
        self.slots.set_cold_start_timeout((settings.min_replicas == 0).then_some(settings.cold_start_timeout));
        let per_replica = spec.request_settings.max_concurrent_per_instance.get();
        let rules = ScalingRules { settings: settings.clone(), replica_cap: per_replica };
        match &self.scaling {
            Some(scaling) => scaling.set_rules(rules),
            None => {
                let count = match spec.target {
                    // Starts from the observed count, even outside of the limits: the workload has these replicas.
                    DeploymentTarget::Workload(_) => self.observed_replicas.unwrap_or_default(),
                    DeploymentTarget::Process(_) | DeploymentTarget::Instances(_) => {
                        self.process_count.clamp(settings.min_replicas, settings.max_replicas)
                    }
                };
                self.process_count = count;
                self.scaling = Some(Arc::new(Scaling::new(rules, count)));
            }
        }
    }

    /// Returns the number of requests in flight on each process, by its index.
    pub(super) fn busy_by_process(&self) -> BTreeMap<u32, u32> {
        let busy = self.replicas.iter().filter_map(|(source, at)| match source {
            ReplicaSource::Process(key) => Some((key.index, self.slots.in_flight_on(*at))),
            ReplicaSource::Address(_) | ReplicaSource::Pod(_) => None,
        });
        busy.collect()
    }

    /// Makes the replicas at fixed addresses equal to those that `target` lists. Processes and pods are not affected.
    pub(super) fn set_addresses(&mut self, target: &DeploymentTarget, last_replica_id: &mut u64) {
        let wanted: &[String] = match target {
            DeploymentTarget::Instances(addresses) => addresses,
            DeploymentTarget::Process(_) | DeploymentTarget::Workload(_) => &[],
        };
        let slots = &self.slots;
        self.replicas.retain(|source, at| {
            let stays = match source {
                ReplicaSource::Address(address) => wanted.contains(address),
                ReplicaSource::Process(_) | ReplicaSource::Pod(_) => true,
            };
            if !stays {
                slots.remove_replica(*at, None);
            }
            stays
        });
        for address in wanted {
            self.replicas.entry(ReplicaSource::Address(address.clone())).or_insert_with(|| {
                *last_replica_id += 1;
                slots.add_replica(*last_replica_id, address, address)
            });
        }
    }
}
