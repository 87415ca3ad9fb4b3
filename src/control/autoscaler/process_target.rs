//! The scale target of deployments whose replicas are local processes.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{ReplicaCounts, ScaleTarget, ScaledDeployment};
use crate::model::name::Name;
use crate::state::control_plane_status::ControlPlaneStatus;
use crate::state::slots::DeploymentSlots;

/// A request to change the number of processes of one deployment.
#[derive(Debug)]
pub struct ProcessCountRequest {
    /// The name of the endpoint.
    pub endpoint: Name,
    /// The name of the deployment.
    pub deployment: Name,
    /// The desired number of processes.
    pub count: u32,
    /// Completes when the number has been recorded.
    pub ack: oneshot::Sender<()>,
}

/// The scale target of one deployment with local processes.
#[derive(Debug)]
pub struct ProcessTarget {
    endpoint: Name,
    deployment: Name,
    slots: Arc<DeploymentSlots>,
    status: Arc<ControlPlaneStatus>,
    requests: mpsc::Sender<ProcessCountRequest>,
}

impl ProcessTarget {
    /// Creates the target of a deployment. The receiver of `requests` starts and stops the processes.
    pub fn new(
        scaled: &ScaledDeployment,
        status: Arc<ControlPlaneStatus>,
        requests: mpsc::Sender<ProcessCountRequest>,
    ) -> Self {
        let ScaledDeployment { endpoint, deployment, slots, .. } = scaled.clone();
        Self { endpoint, deployment, slots, status, requests }
    }
}

impl ScaleTarget for ProcessTarget {
    fn replica_counts(&self) -> ReplicaCounts {
        let starting = self.status.pending_replicas(self.endpoint.as_str(), self.deployment.as_str()).count;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        ReplicaCounts { ready: count(self.slots.occupancy().ready), starting: count(starting) }
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let (ack, ack_rx) = oneshot::channel();
        let request =
            ProcessCountRequest { endpoint: self.endpoint.clone(), deployment: self.deployment.clone(), count, ack };
        let stopping = |_| "the router is stopping".to_owned();
        self.requests.send(request).await.map_err(|_| stopping(()))?;
        ack_rx.await.map_err(|_| stopping(()))
    }
}
