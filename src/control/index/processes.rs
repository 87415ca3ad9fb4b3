//! Local processes as replicas: the index returns the desired processes and applies the events of their supervisor.

use std::net::SocketAddr;

use tokio::sync::oneshot;

use super::Index;
use super::deployment_runtime::ReplicaSource;
use crate::control::processes::{self, DesiredReplicas, ProcessReplicaKey, ReplicaSpec};
use crate::model::endpoint::DeploymentTarget;
use crate::state::control_plane_status::PendingReplicas;

impl Index {
    /// Returns the desired local processes of all deployments, with the requests in flight on each.
    pub fn desired_processes(&self) -> Vec<DesiredReplicas> {
        let wanted = self.deployments().filter_map(|(endpoint, deployment, runtime)| {
            let DeploymentTarget::Process(process) = &deployment.target else { return None };
            let (endpoint, process) = (endpoint.clone(), process.clone());
            let spec = ReplicaSpec { endpoint, deployment: deployment.name.clone(), process };
            Some(DesiredReplicas { spec, count: runtime.process_count, in_flight: runtime.busy_by_process() })
        });
        wanted.collect()
    }

    /// Applies an event of a local process.
    pub fn apply_process_event(&mut self, event: processes::ProcessEvent) {
        let (processes::ProcessEvent::Pending { key, .. }
        | processes::ProcessEvent::Ready { key, .. }
        | processes::ProcessEvent::Gone { key, .. }) = &event;
        let key = key.clone();
        match event {
            processes::ProcessEvent::Pending { key, failure } => {
                if let Some(runtime) = self.runtime_mut(&key) {
                    runtime.pending_processes.insert(key, failure);
                }
            }
            processes::ProcessEvent::Ready { key, address } => self.add_process(key, address),
            processes::ProcessEvent::Gone { key, drained_tx } => self.remove_process(&key, drained_tx),
        }
        if let Some(runtime) = self.runtime_mut(&key) {
            let problem = runtime.pending_processes.values().flatten().next().cloned();
            let pending = PendingReplicas { count: runtime.pending_processes.len(), problem };
            self.set_pending(&key.endpoint, &key.deployment, pending);
        }
        self.remove_idle_runtimes();
    }

    fn add_process(&mut self, key: ProcessReplicaKey, address: SocketAddr) {
        let id = self.next_replica_id();
        if let Some(runtime) = self.runtime_mut(&key) {
            runtime.pending_processes.remove(&key);
            let address = address.to_string();
            let at = runtime.slots.add_replica(id, &address, &address);
            runtime.replicas.insert(ReplicaSource::Process(key), at);
        }
    }

    fn remove_process(&mut self, key: &ProcessReplicaKey, drained_tx: Option<oneshot::Sender<()>>) {
        let Some(runtime) = self.runtime_mut(key) else { return };
        runtime.pending_processes.remove(key);
        if let Some(at) = runtime.replicas.remove(&ReplicaSource::Process(key.clone())) {
            runtime.slots.remove_replica(at, drained_tx);
        }
    }
}
