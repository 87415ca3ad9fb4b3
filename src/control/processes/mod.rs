//! Local processes as replicas: starts them on free ports, finds out when they can take requests, restarts them when
//! they die, and stops them when they are not wanted any more.
//!
//! Each runs under a guard process ([`crate::guard`]), so that none outlives the router, however that ends.

mod backoff;
mod child;
mod crew;
mod output;
mod plan;
mod ports;
mod probe;
mod replica;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::crew::Crew;
use self::ports::Ports;
use self::replica::Shared;
use crate::model::endpoint::Process;
use crate::model::name::Name;

/// How replicas are started and stopped.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute path of the router's own program, which has the subcommand `guard`: `std::env::current_exe()`, or on
    /// Linux better `/proc/self/exe`, which stays right when the file is replaced while the router runs.
    pub executable: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Longest wait for requests in flight before SIGTERM.
    pub drain_timeout: Duration,
}

/// What the replicas of one deployment run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSpec {
    /// The endpoint.
    pub endpoint: Name,
    /// One of its deployments.
    pub deployment: Name,
    /// How to start one replica.
    pub process: Process,
}

/// The replicas that a deployment should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What they run.
    pub spec: ReplicaSpec,
    /// How many; 0 means none.
    pub count: u32,
    /// Requests in flight on those there are, by index: of those that are too many, the idlest go.
    pub busy: BTreeMap<u32, u32>,
}

/// Which replica. No two living processes have the same key; a restarted one keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaKey {
    /// The endpoint.
    pub endpoint: Name,
    /// One of its deployments.
    pub deployment: Name,
    /// From 0. While old replicas make room for new ones, indices go beyond the number of replicas.
    pub index: u32,
}

/// As in the log: `my-endpoint/blue/0`.
impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.endpoint, self.deployment, self.index)
    }
}

/// What became of a replica. Each start says `Pending`, then `Ready` at most once, then `Gone` once, in this order.
#[derive(Debug)]
pub enum Event {
    /// It is being started, or will be in a moment after it died.
    Pending {
        /// Which one.
        key: ReplicaKey,
        /// How it died, in words; `None` the first time.
        trouble: Option<String>,
    },
    /// It takes requests.
    Ready {
        /// Which one.
        key: ReplicaKey,
        /// Where.
        address: SocketAddr,
    },
    /// It takes no requests any more: it died, or it is about to be stopped.
    Gone {
        /// Which one.
        key: ReplicaKey,
        /// Present when the replica is still alive and was ready: it is stopped once this is sent or dropped, which
        /// the receiver does when the last request in flight there has ended, or after [`Settings::drain_timeout`].
        drained: Option<oneshot::Sender<()>>,
    },
}

/// Keeps the desired replicas running. Dropping it stops them in the background; [`Supervisor::stop`] waits for that.
#[derive(Debug)]
pub struct Supervisor {
    desired: watch::Sender<Vec<Wanted>>,
    crew: JoinHandle<()>,
}

impl Supervisor {
    /// Without any replica yet. To be called inside a tokio runtime, which runs everything from here on. `events` may
    /// be slow or full: replicas wait for it and lose nothing, until everything is to stop.
    pub fn new(settings: Settings, events: mpsc::Sender<Event>) -> Self {
        let (desired, changes) = watch::channel(Vec::new());
        let shared = Shared { settings, events, ports: Ports::default(), changed: Notify::new() };
        let crew = tokio::spawn(Crew::new(Arc::new(shared)).run(changes));
        Self { desired, crew }
    }

    /// Makes the replicas of every deployment what `desired` says, in the background; a deployment that is missing has
    /// none.
    ///
    /// Missing ones are started; surplus ones are drained and stopped, the idlest first. When the `process` of
    /// a deployment changed, new replicas start first, and an old one is stopped for each new one that is ready.
    pub fn apply(&mut self, desired: Vec<Wanted>) {
        self.desired.send_replace(desired);
    }

    /// Stops everything without draining: SIGTERM, SIGKILL after the grace. Returns when all replicas are gone; events
    /// that find no room meanwhile are dropped, so nobody has to receive them.
    pub async fn stop(self) {
        drop(self.desired);
        if let Err(error) = self.crew.await {
            tracing::error!("the supervisor of local processes failed: {error}");
        }
    }
}
