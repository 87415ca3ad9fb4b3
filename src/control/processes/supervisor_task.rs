//! The task that owns all replica tasks and brings them to the desired state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use super::replica_plan::{ReplicaObservation, plan_replicas};
use super::replica_task::{DesiredReplicaState, ReplicaContext, ReplicaTask};
use super::{DesiredReplicas, ProcessReplicaKey};
use crate::model::endpoint::Process;
use crate::model::name::Name;

pub(super) struct SupervisorTask {
    shared: Arc<ReplicaContext>,
    deployments: BTreeMap<(Name, Name), SupervisedDeployment>,
    tasks: JoinSet<()>,
}

struct SupervisedDeployment {
    process: Arc<Process>,
    desired_count: u32,
    /// Requests in flight by index, at the time when the number of replicas was last set.
    in_flight: BTreeMap<u32, u32>,
    replicas: BTreeMap<u32, ReplicaHandle>,
}

/// A replica task, as the supervisor sees it.
struct ReplicaHandle {
    process: Arc<Process>,
    is_ready: Arc<AtomicBool>,
    desired_state: watch::Sender<DesiredReplicaState>,
    task_id: Id,
}

impl SupervisorTask {
    pub(super) fn new(shared: Arc<ReplicaContext>) -> Self {
        Self { shared, deployments: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Follows `desired` until its sender is dropped, then stops everything. Returns when all replicas are gone.
    pub(super) async fn run(mut self, mut desired: watch::Receiver<Vec<DesiredReplicas>>) {
        loop {
            tokio::select! {
                changed = desired.changed() => match changed {
                    Ok(()) => self.apply_desired(&desired.borrow_and_update()),
                    Err(_) => break,
                },
                () = self.shared.readiness_changed.notified() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.remove_ended_task(ended),
            }
            self.reconcile();
        }
        for replica in self.deployments.values().flat_map(|deployment| deployment.replicas.values()) {
            replica.desired_state.send_replace(DesiredReplicaState::Stop);
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.remove_ended_task(ended);
        }
    }

    fn apply_desired(&mut self, desired: &[DesiredReplicas]) {
        for deployment in self.deployments.values_mut() {
            deployment.desired_count = 0;
        }
        for DesiredReplicas { spec, count, in_flight: busy } in desired {
            let deployment =
                self.deployments.entry((spec.endpoint.clone(), spec.deployment.clone())).or_insert_with(|| {
                    SupervisedDeployment {
                        process: Arc::new(spec.process.clone()),
                        desired_count: 0,
                        in_flight: BTreeMap::new(),
                        replicas: BTreeMap::new(),
                    }
                });
            deployment.desired_count = *count;
            deployment.in_flight.clone_from(busy);
            if *deployment.process != spec.process {
                deployment.process = Arc::new(spec.process.clone());
            }
        }
    }

    fn reconcile(&mut self) {
        for ((endpoint, name), deployment) in &mut self.deployments {
            let plan = plan_replicas(deployment.desired_count, &deployment.running_replicas());
            for replica in plan.stop_indices.iter().filter_map(|index| deployment.replicas.get(index)) {
                replica.desired_state.send_replace(DesiredReplicaState::Drain);
            }
            for _ in 0..plan.start_count {
                let key = ProcessReplicaKey {
                    endpoint: endpoint.clone(),
                    deployment: name.clone(),
                    index: deployment.free_index(),
                };
                deployment.start_replica(key, &self.shared, &mut self.tasks);
            }
        }
        self.deployments.retain(|_, deployment| deployment.desired_count > 0 || !deployment.replicas.is_empty());
    }

    fn remove_ended_task(&mut self, ended: Result<(Id, ()), JoinError>) {
        let task = match ended {
            Ok((task, ())) => task,
            Err(error) => {
                tracing::error!("replica task failed; restarting it: {error}");
                error.id()
            }
        };
        for deployment in self.deployments.values_mut() {
            deployment.replicas.retain(|_, member| member.task_id != task);
        }
    }
}

impl SupervisedDeployment {
    fn running_replicas(&self) -> Vec<ReplicaObservation> {
        let running =
            self.replicas.iter().filter(|(_, member)| *member.desired_state.borrow() == DesiredReplicaState::Run);
        running
            .map(|(index, member)| ReplicaObservation {
                index: *index,
                is_current: member.process == self.process,
                is_ready: member.is_ready.load(Ordering::Acquire),
                in_flight: self.in_flight.get(index).copied().unwrap_or_default(),
            })
            .collect()
    }

    /// Returns a free index. An index stays taken until its process is gone, so that a key never means two processes.
    fn free_index(&self) -> u32 {
        (0..).find(|index| !self.replicas.contains_key(index)).unwrap_or(u32::MAX)
    }

    fn start_replica(&mut self, key: ProcessReplicaKey, shared: &Arc<ReplicaContext>, tasks: &mut JoinSet<()>) {
        let (order, receiver) = watch::channel(DesiredReplicaState::Run);
        let (index, ready) = (key.index, Arc::new(AtomicBool::new(false)));
        let replica = ReplicaTask {
            display_name: key.to_string(),
            key,
            process: Arc::clone(&self.process),
            is_ready: Arc::clone(&ready),
            desired_state: receiver,
            context: Arc::clone(shared),
        };
        let task = tasks.spawn(replica.run()).id();
        self.replicas.insert(
            index,
            ReplicaHandle { process: Arc::clone(&self.process), is_ready: ready, desired_state: order, task_id: task },
        );
    }
}
