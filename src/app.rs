//! Layer 4: the router as a whole. [`App::build`] checks and binds everything; [`App::run`] starts every task, owns it,
//! and ends it in order.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::admin::AdminServer;
use crate::config::{RouterSettings, SCORING_LISTENER, SCORING_TLS_LISTENER, WorkerCount};
use crate::control::certificates::ListenerCertificates;
use crate::control::cluster;
use crate::control::document_files::{DocumentFiles, DocumentSnapshot, EnvLookup, ScanScope};
use crate::control::fleet::FleetTask;
use crate::control::index::{DesiredEndpoint, Index};
use crate::control::secret_cache::SecretCache;
use crate::control::signing_keys;
use crate::model::problem::Problem;
use crate::model::router_settings::KubernetesSettings;
use crate::proxy::DataPlaneState;
use crate::proxy::listen::{BoundListener, DataPlane};
use crate::state::access_log::AccessLog;
use crate::state::comparison_queue::ComparisonQueue;
use crate::state::control_plane_status::{ControlPlaneStatus, Subsystem};
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};
use crate::state::metrics::Metrics;
use crate::state::mirror::Budget;
use crate::state::routing_table::PublishedTable;
use crate::state::tokens::TokenState;

mod control_plane;
use control_plane::ControlPlane;
pub use control_plane::STOP_GRACE_PERIOD;

mod fleet_join;

mod listeners;
mod supervise;
use listeners::{PeerSocket, bind};
use supervise::{ControlPlaneTasks, supervise};

/// Where endpoints come from.
pub enum EndpointSource {
    /// Files and folders with endpoint documents, which are watched.
    Files(Vec<PathBuf>),
    /// A fixed list.
    Fixed(Vec<DesiredEndpoint>),
    /// A Kubernetes cluster.
    Cluster(KubernetesSettings),
}

/// What an [`App`] is built from, besides its settings.
pub struct AppEnvironment {
    /// Where endpoints come from.
    pub endpoint_source: EndpointSource,
    /// Environment variables, from which keys may be read.
    pub environment: EnvLookup,
    /// The router's own program. It guards local processes, and the command `inference-router` in their documents means
    /// it.
    pub executable: PathBuf,
    /// Where the access log is written.
    pub access_log: Box<dyn io::Write + Send>,
}

/// Why an [`App`] could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The endpoint documents have these problems.
    #[error("the configuration has problems")]
    Configuration(Vec<Problem>),
    /// A listener could not be bound.
    #[error("cannot listen on {address} for {what}: {error}; is another program there? choose another address")]
    CannotListen {
        /// The name of the listener.
        what: &'static str,
        /// The address of the listener.
        address: SocketAddr,
        /// The error of the system.
        error: io::Error,
    },
    /// The system refused a resource that the process needs.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Why a run ended otherwise than in order.
#[derive(Debug, thiserror::Error)]
pub enum AppRunError {
    /// Requests were still in flight when the drain timeout was exceeded.
    #[error("the drain timeout was over with requests in flight; they were cut")]
    DrainTimedOut,
    /// A task or thread ended that must not end; this is its name.
    #[error("{0} ended unexpectedly")]
    TaskEnded(String),
    /// The system refused a resource that the process needs.
    #[error("cannot run: {0}")]
    System(#[from] io::Error),
}

/// A router whose listeners are bound and whose endpoints are known, and which does not serve yet.
pub struct App {
    settings: RouterSettings,
    listeners: Vec<BoundListener>,
    peer_socket: Option<PeerSocket>,
    certificates: ListenerCertificates,
    admin: TcpListener,
    shared: Arc<DataPlaneState>,
    status: Arc<ControlPlaneStatus>,
    endpoints: Vec<DesiredEndpoint>,
    files: Option<(DocumentFiles, Vec<PathBuf>)>,
    cluster: Option<KubernetesSettings>,
    secrets: SecretCache,
    executable: PathBuf,
    /// Threads that end when the last worker has ended and everything is written and compared.
    threads: Vec<std::thread::JoinHandle<()>>,
    on_ready: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl App {
    /// Reads the endpoints and binds the listeners.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; nothing is left behind.
    pub fn build(settings: RouterSettings, environment: AppEnvironment) -> Result<Self, BuildError> {
        let mut cluster = None;
        let (endpoints, files, mut problems) = match environment.endpoint_source {
            EndpointSource::Fixed(endpoints) => (endpoints, None, Vec::new()),
            EndpointSource::Cluster(settings) => {
                cluster = Some(settings);
                (Vec::new(), None, Vec::new())
            }
            EndpointSource::Files(places) => {
                let mut files = DocumentFiles::new(places.clone(), environment.environment);
                let loaded = files.load(&ScanScope::All, Instant::now());
                let DocumentSnapshot { endpoints, problems } = loaded.unwrap_or_default();
                (endpoints, Some((files, places)), problems)
            }
        };
        let secrets = SecretCache::new(settings.secret_references().map(|(_, name)| name));
        let status: Arc<ControlPlaneStatus> = Arc::default();
        problems.extend(signing_keys::missing_key_problems(&settings.tokens, &endpoints));
        let signing = signing_keys::read_signing_keys(&settings.tokens, &secrets).unwrap_or_else(|problem| {
            match &settings.tokens.signing_secret {
                // The Secret arrives when the cluster is known.
                Some(_) => drop(status.set_problems(Subsystem::Tokens, vec![problem])),
                None => problems.push(problem),
            }
            None
        });
        let tokens = Arc::new(TokenState::default());
        tokens.signing.store(signing.map(Arc::new));
        let metrics = Arc::new(Metrics::new().map_err(io::Error::other)?);
        let certificates = ListenerCertificates::new(metrics.clone(), status.clone(), secrets.clone());
        let (listeners, gate, certificates) = listeners::bind_all(&settings, certificates, problems)?;
        let admin = bind("admin", settings.admin)?;
        let (comparisons, comparer) = ComparisonQueue::start(metrics.clone())?;
        let mut threads = vec![comparer];
        let mut access_log = None;
        if settings.log.access {
            let (log, writer) = AccessLog::start(environment.access_log, metrics.access_log_dropped.clone())?;
            access_log = Some(log);
            threads.push(writer);
        }
        let shared = DataPlaneState {
            table: PublishedTable::default(),
            metrics,
            limits: settings.limits.clone(),
            status_codes: settings.status_codes,
            access_log,
            lifecycle: Lifecycle::default(),
            tokens,
            mirror_budget: Budget::new(settings.limits.mirror_buffer_bytes),
            comparisons,
        };
        Ok(Self {
            settings,
            listeners,
            peer_socket: gate,
            certificates,
            admin,
            shared: Arc::new(shared),
            status,
            endpoints,
            files,
            cluster,
            secrets,
            executable: environment.executable,
            threads,
            on_ready: None,
        })
    }

    /// Calls `callback` once, when every replica that was desired at the start is ready.
    pub fn on_ready(&mut self, callback: impl FnOnce() + Send + Sync + 'static) {
        self.on_ready = Some(Box::new(callback));
    }

    /// Returns the address of the scoring listener.
    ///
    /// # Errors
    ///
    /// When the system does not know the address.
    pub fn scoring_address(&self) -> io::Result<SocketAddr> {
        listeners::listener_address(&self.listeners, SCORING_LISTENER)
    }

    /// Returns the address of the scoring listener with TLS that is beside the plain one.
    ///
    /// # Errors
    ///
    /// When there is no such listener, or the system does not know the address.
    pub fn scoring_tls_address(&self) -> io::Result<SocketAddr> {
        listeners::listener_address(&self.listeners, SCORING_TLS_LISTENER)
    }

    /// Returns the address of the admin listener.
    ///
    /// # Errors
    ///
    /// When the system does not know the address.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Returns the lifecycle of this router, to watch it.
    pub fn lifecycle(&self) -> Lifecycle {
        self.shared.lifecycle.clone()
    }

    /// Serves until `stop` completes, then shuts down in order: not ready but still accepting, draining, ended. The
    /// call blocks; the calling thread becomes the control plane.
    ///
    /// # Errors
    ///
    /// [`AppRunError`].
    pub fn run(self, stop: impl Future<Output = ()>) -> Result<(), AppRunError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let workers = match self.settings.workers {
            WorkerCount::Auto => std::thread::available_parallelism()?.get(),
            WorkerCount::Count(count) => count.get(),
        };
        let client = self.cluster.as_ref().map(|_| runtime.block_on(cluster::infer_client())).transpose();
        let client = client.map_err(|what| AppRunError::System(io::Error::other(what)))?;
        let cluster = client.zip(self.cluster);
        // The routing table is published before the first connection is accepted.
        let shared = &self.shared;
        let mut index =
            Index::new(shared.table.clone(), shared.metrics.clone(), self.status.clone(), shared.tokens.clone());
        let fleet = {
            // Sockets and tasks belong to this runtime.
            let _inside = runtime.enter();
            let client = cluster.as_ref().map(|(client, _)| client);
            let fleet = fleet_join::join_fleet(&self.settings, self.peer_socket, client, shared)?;
            fleet.inspect(|fleet| index.set_membership(fleet.membership()))
        };
        let membership = fleet.as_ref().map(FleetTask::membership);
        index.replace_endpoints(self.endpoints);
        if cluster.is_none() {
            // The endpoints of a cluster are not known yet.
            self.shared.lifecycle.enter(LifecyclePhase::Serving);
        }
        let mut data_plane = DataPlane::start(self.listeners, workers, &self.shared)?;
        tracing::info!(workers, "serving");
        let admin = AdminServer {
            table: self.shared.table.clone(),
            metrics: self.shared.metrics.clone(),
            lifecycle: self.shared.lifecycle.clone(),
            status: self.status.clone(),
            tokens: self.shared.tokens.clone(),
            membership: membership.clone(),
        };
        let control = ControlPlane {
            index,
            files: self.files,
            cluster,
            secrets: self.secrets,
            lifecycle: self.shared.lifecycle.clone(),
            token_state: self.shared.tokens.clone(),
            metrics: self.shared.metrics.clone(),
            status: self.status,
            executable: self.executable,
            drain_timeout: self.settings.shutdown.drain_timeout,
            token_settings: self.settings.tokens.clone(),
            on_ready: self.on_ready,
            membership,
        };
        let tasks = ControlPlaneTasks { admin, listener: self.admin, certificates: self.certificates, control, fleet };
        let ended = runtime.block_on(supervise(tasks, &self.settings, &mut data_plane, stop));
        // Whatever ended the run, the workers end too.
        self.shared.lifecycle.enter(LifecyclePhase::Forced);
        let joined = data_plane.join();
        drop(self.shared);
        for thread in self.threads {
            let _ = thread.join();
        }
        joined.map_err(|threads| AppRunError::TaskEnded(threads.join(", ")))?;
        ended
    }
}
