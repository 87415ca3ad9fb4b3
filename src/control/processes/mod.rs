//! Local processes as replicas: starts them on free ports, probes them until they are ready, restarts them when they
//! end, and stops them when they are not needed any more.
//!
//! Each runs under a guard process ([`crate::guard`]), so that no replica outlives the router, however the router ends.

mod backoff;
mod guarded_process;
mod output_log;
mod port_allocator;
mod readiness_probe;
mod replica_plan;
mod replica_task;
mod supervisor_task;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::port_allocator::PortAllocator;
use self::replica_task::ReplicaContext;
use self::supervisor_task::SupervisorTask;
use crate::model::endpoint::Process;
use crate::model::name::Name;

/// How replicas are started and stopped.
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// Absolute path of the router's own program, which has the subcommand `guard`: `std::env::current_exe()`, or on
    /// Linux `/proc/self/exe`, which stays valid when the file is replaced while the router runs.
    pub router_executable: PathBuf,
    /// The time from SIGTERM to SIGKILL.
    pub termination_grace: Duration,
    /// The longest wait for requests in flight before SIGTERM.
    pub drain_timeout: Duration,
}

/// What the replicas of one deployment run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// The name of the endpoint.
    pub endpoint: Name,
    /// The name of the deployment.
    pub deployment: Name,
    /// How to start one replica.
    pub process: Process,
}

/// The replicas that a deployment should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredReplicas {
    /// What the replicas run.
    pub spec: ReplicaSpec,
    /// The number of replicas, which may be 0.
    pub count: u32,
    /// Requests in flight on the existing replicas, by index. Surplus replicas are stopped in the order of their load,
    /// idlest first.
    pub in_flight: BTreeMap<u32, u32>,
}

/// Identifies a replica. No two running processes have the same key; a restarted replica keeps its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessReplicaKey {
    /// The name of the endpoint.
    pub endpoint: Name,
    /// The name of the deployment.
    pub deployment: Name,
    /// The index, from 0. While new replicas replace old ones, indices exceed the number of replicas.
    pub index: u32,
}

/// Formats the key as in the log: `my-endpoint/blue/0`.
impl fmt::Display for ProcessReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.endpoint, self.deployment, self.index)
    }
}

/// A change of a replica. Each start sends `Pending`, then `Ready` at most once, then `Gone` once, in this order.
#[derive(Debug)]
pub enum ProcessEvent {
    /// The replica is being started, or will be after a delay because it ended.
    Pending {
        /// The key of the replica.
        key: ProcessReplicaKey,
        /// How the previous run ended, in words; `None` the first time.
        failure: Option<String>,
    },
    /// The replica takes requests.
    Ready {
        /// The key of the replica.
        key: ProcessReplicaKey,
        /// The address of the replica.
        address: SocketAddr,
    },
    /// The replica takes no requests any more: it ended, or it is about to be stopped.
    Gone {
        /// The key of the replica.
        key: ProcessReplicaKey,
        /// Present if the replica is still running and was ready. It is stopped once this is sent or dropped, which the
        /// receiver does when the last request in flight there has ended, or after [`ProcessSettings::drain_timeout`].
        drained_tx: Option<oneshot::Sender<()>>,
    },
}

/// Keeps the desired replicas running. Dropping it stops them in the background; [`ProcessSupervisor::stop`] waits for
/// that.
#[derive(Debug)]
pub struct ProcessSupervisor {
    desired: watch::Sender<Vec<DesiredReplicas>>,
    task: JoinHandle<()>,
}

impl ProcessSupervisor {
    /// Creates a supervisor without replicas. It must be called inside a tokio runtime, on which everything runs from
    /// then on. `events` may be slow or full: replicas wait and lose no event until everything is to stop.
    pub fn new(settings: ProcessSettings, events: mpsc::Sender<ProcessEvent>) -> Self {
        let (desired, changes) = watch::channel(Vec::new());
        let shared = ReplicaContext {
            settings,
            events,
            port_allocator: PortAllocator::default(),
            readiness_changed: Notify::new(),
        };
        let task = tokio::spawn(SupervisorTask::new(Arc::new(shared)).run(changes));
        Self { desired, task }
    }

    /// Sets the desired replicas of every deployment, in the background; a deployment that is missing has none.
    ///
    /// Missing replicas are started; surplus ones are drained and stopped, the idlest first. When the `process` of a
    /// deployment changed, new replicas start first, and an old one is stopped for each new one that is ready.
    pub fn apply_desired(&mut self, desired: Vec<DesiredReplicas>) {
        self.desired.send_replace(desired);
    }

    /// Stops everything without draining: SIGTERM, then SIGKILL after the grace period. Returns when all replicas are
    /// gone. Events for which the channel has no room are dropped, so nobody has to receive them.
    pub async fn stop(self) {
        drop(self.desired);
        if let Err(error) = self.task.await {
            tracing::error!("process supervisor failed: {error}");
        }
    }
}
