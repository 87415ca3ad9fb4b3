//! Floor 4: the router as a whole. [`App::build`] checks and binds everything, [`App::run`] starts every task, owns it,
//! and ends it in order.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::admin::Admin;
use crate::config::{SCORING, SCORING_TLS, Settings, Workers};
use crate::control::certificates::Certificates;
use crate::control::cluster;
use crate::control::files::{Environment, Files, Loaded, Scope};
use crate::control::fleet::Fleet;
use crate::control::index::{Desired, Index};
use crate::control::secrets::NamedSecrets;
use crate::control::signing;
use crate::model::limits::KubernetesSettings;
use crate::model::problem::Problem;
use crate::proxy::Shared;
use crate::proxy::listen::{DataPlane, Listener};
use crate::state::access_log::AccessLog;
use crate::state::comparisons::Comparisons;
use crate::state::lifecycle::{Lifecycle, Phase};
use crate::state::metrics::Metrics;
use crate::state::mirror::Budget;
use crate::state::status::{Part, Status};
use crate::state::table::Published;
use crate::state::tokens::Tokens;

mod control;
use control::Control;
pub use control::GRACE;

mod join;

mod listeners;
mod supervise;
use listeners::{Gate, bind};
use supervise::{Tasks, supervise};

/// Where endpoints come from.
pub enum Source {
    /// Files and folders, watched.
    Files(Vec<PathBuf>),
    /// These, for good.
    Fixed(Vec<Desired>),
    /// A Kubernetes cluster.
    Cluster(KubernetesSettings),
}

/// What an [`App`] is made from, besides its settings.
pub struct Surroundings {
    /// Where endpoints come from.
    pub source: Source,
    /// Environment variables, for keys.
    pub environment: Environment,
    /// The router's own program: guards local processes, and is what the command `inference-router` in them means.
    pub executable: PathBuf,
    /// Where the access log goes.
    pub access_log: Box<dyn io::Write + Send>,
}

/// Why there is no [`App`].
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Endpoint documents are wrong.
    #[error("the configuration has problems")]
    Configuration(Vec<Problem>),
    /// A listener could not be bound.
    #[error("cannot listen on {address} for {what}: {error}; is another program there? choose another address")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// Something the process needs could not be had.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// How a run ended, when not as it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Requests were still in flight when the drain timeout was over.
    #[error("the drain timeout was over with requests in flight; they were cut")]
    Forced,
    /// A task or thread that must not end did.
    #[error("{0} ended unexpectedly")]
    Ended(String),
    /// Something the process needs could not be had.
    #[error("cannot run: {0}")]
    System(#[from] io::Error),
}

/// A router whose listeners are bound and whose endpoints are known, not yet serving.
pub struct App {
    settings: Settings,
    listeners: Vec<Listener>,
    gate: Option<Gate>,
    certificates: Certificates,
    admin: TcpListener,
    shared: Arc<Shared>,
    status: Arc<Status>,
    endpoints: Vec<Desired>,
    files: Option<(Files, Vec<PathBuf>)>,
    cluster: Option<KubernetesSettings>,
    secrets: NamedSecrets,
    executable: PathBuf,
    /// They end when the last worker has gone and everything is written and compared.
    threads: Vec<std::thread::JoinHandle<()>>,
    when_ready: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl App {
    /// Reads the endpoints and binds the listeners.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn build(settings: Settings, surroundings: Surroundings) -> Result<Self, BuildError> {
        let mut cluster = None;
        let (endpoints, files, mut problems) = match surroundings.source {
            Source::Fixed(endpoints) => (endpoints, None, Vec::new()),
            Source::Cluster(settings) => {
                cluster = Some(settings);
                (Vec::new(), None, Vec::new())
            }
            Source::Files(places) => {
                let mut files = Files::new(places.clone(), surroundings.environment);
                let loaded = files.load(&Scope::Everything, Instant::now());
                let Loaded { endpoints, problems } = loaded.unwrap_or_default();
                (endpoints, Some((files, places)), problems)
            }
        };
        let secrets = NamedSecrets::new(settings.secrets().map(|(_, name)| name));
        let status: Arc<Status> = Arc::default();
        problems.extend(signing::missing(&settings.tokens, &endpoints));
        let signing = signing::read(&settings.tokens, &secrets).unwrap_or_else(|problem| {
            match &settings.tokens.signing_secret {
                // It comes when the cluster is known.
                Some(_) => drop(status.set_problems(Part::Tokens, vec![problem])),
                None => problems.push(problem),
            }
            None
        });
        let tokens = Arc::new(Tokens::default());
        tokens.signing.store(signing.map(Arc::new));
        let metrics = Arc::new(Metrics::new().map_err(io::Error::other)?);
        let certificates = Certificates::new(metrics.clone(), status.clone(), secrets.clone());
        let (listeners, gate, certificates) = listeners::bind_all(&settings, certificates, problems)?;
        let admin = bind("admin", settings.admin)?;
        let (comparisons, comparer) = Comparisons::start(metrics.clone())?;
        let mut threads = vec![comparer];
        let mut access_log = None;
        if settings.log.access {
            let (log, writer) = AccessLog::start(surroundings.access_log, metrics.access_log_dropped.clone())?;
            access_log = Some(log);
            threads.push(writer);
        }
        let shared = Shared {
            table: Published::default(),
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
            gate,
            certificates,
            admin,
            shared: Arc::new(shared),
            status,
            endpoints,
            files,
            cluster,
            secrets,
            executable: surroundings.executable,
            threads,
            when_ready: None,
        })
    }

    /// Calls `tell` once, when every replica that was wanted at the start is ready.
    pub fn when_ready(&mut self, tell: impl FnOnce() + Send + Sync + 'static) {
        self.when_ready = Some(Box::new(tell));
    }

    /// Where clients connect.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn scoring_address(&self) -> io::Result<SocketAddr> {
        listeners::address(&self.listeners, SCORING)
    }

    /// Where clients connect with TLS, beside the plain listener.
    ///
    /// # Errors
    /// When there is no such listener, or the system does not know.
    pub fn scoring_tls_address(&self) -> io::Result<SocketAddr> {
        listeners::address(&self.listeners, SCORING_TLS)
    }

    /// Where operators connect.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The life of this router, to watch it.
    pub fn lifecycle(&self) -> Lifecycle {
        self.shared.lifecycle.clone()
    }

    /// Serves until `stop` is ready, then leaves in order: unready, still accepting, draining, gone. Blocks; the calling
    /// thread becomes the control plane.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let workers = match self.settings.workers {
            Workers::Auto => std::thread::available_parallelism()?.get(),
            Workers::Count(count) => count.get(),
        };
        let client = self.cluster.as_ref().map(|_| runtime.block_on(cluster::connect())).transpose();
        let client = client.map_err(|what| RunError::System(io::Error::other(what)))?;
        let cluster = client.zip(self.cluster);
        // The table is there before the first connection is accepted.
        let shared = &self.shared;
        let mut index =
            Index::new(shared.table.clone(), shared.metrics.clone(), self.status.clone(), shared.tokens.clone());
        let fleet = {
            // Sockets and tasks are of this runtime.
            let _inside = runtime.enter();
            let client = cluster.as_ref().map(|(client, _)| client);
            let fleet = join::join(&self.settings, self.gate, client, shared)?;
            fleet.inspect(|fleet| index.share(fleet.membership()))
        };
        let membership = fleet.as_ref().map(Fleet::membership);
        index.apply(self.endpoints);
        if cluster.is_none() {
            // What a cluster has is not known yet.
            self.shared.lifecycle.enter(Phase::Serving);
        }
        let mut data_plane = DataPlane::start(self.listeners, workers, &self.shared)?;
        tracing::info!(workers, "serving");
        let admin = Admin {
            table: self.shared.table.clone(),
            metrics: self.shared.metrics.clone(),
            lifecycle: self.shared.lifecycle.clone(),
            status: self.status.clone(),
            tokens: self.shared.tokens.clone(),
            membership: membership.clone(),
        };
        let control = Control {
            index,
            files: self.files,
            cluster,
            secrets: self.secrets,
            lifecycle: self.shared.lifecycle.clone(),
            issued: self.shared.tokens.clone(),
            metrics: self.shared.metrics.clone(),
            status: self.status,
            executable: self.executable,
            drain_timeout: self.settings.shutdown.drain_timeout,
            tokens: self.settings.tokens.clone(),
            when_ready: self.when_ready,
            membership,
        };
        let tasks = Tasks { admin, listener: self.admin, certificates: self.certificates, control, fleet };
        let ended = runtime.block_on(supervise(tasks, &self.settings, &mut data_plane, stop));
        // Whatever ended it, the workers end too.
        self.shared.lifecycle.enter(Phase::Forced);
        let joined = data_plane.join();
        drop(self.shared);
        for thread in self.threads {
            let _ = thread.join();
        }
        joined.map_err(|threads| RunError::Ended(threads.join(", ")))?;
        ended
    }
}
