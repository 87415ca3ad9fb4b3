//! Accepts client connections and spreads them over the workers.
//!
//! One thread accepts and gives each connection to the worker that has the fewest. The spread is even also when there
//! are few connections, unlike that of the kernel, which goes by a hash.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc;

use super::worker::{DataPlaneState, Worker};
use super::{connection, error_response, request_id};
use crate::model::refusal::Refusal;
use crate::state::lifecycle::LifecyclePhase;
use crate::state::tls::Acceptor;

/// Connections that may wait in the kernel to be accepted.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Accepted connections that may wait for their worker.
const WORKER_CHANNEL_CAPACITY: usize = 1024;
/// Pause after a failed accept. Without file descriptors, an immediate retry would only burn CPU.
const ACCEPT_ERROR_BACKOFF: Duration = Duration::from_millis(50);
/// Nice value of a thread that must not delay the others.
const BACKGROUND_NICE_VALUE: i32 = 10;
/// The interval in which idle upstream connections are checked.
const POOL_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The acceptor's side of one worker.
struct WorkerHandle {
    connections: mpsc::Sender<AcceptedConnection>,
    open_connections: Arc<AtomicUsize>,
}

struct AcceptedConnection {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Acceptor>>,
    connection_guard: ConnectionCountGuard,
}

/// A bound socket that clients connect to.
pub struct BoundListener {
    /// The name of the listener in metrics.
    pub name: &'static str,
    /// The bound socket.
    pub socket: TcpListener,
    /// TLS on the listener; `None`: plain HTTP.
    pub tls: Option<Arc<Acceptor>>,
}

/// Counts one open connection until it is dropped.
struct ConnectionCountGuard {
    worker_connections: Arc<AtomicUsize>,
    listener_gauge: prometheus::IntGauge,
}

impl ConnectionCountGuard {
    fn new(worker: &Arc<AtomicUsize>, listener: &prometheus::IntGauge) -> Self {
        worker.fetch_add(1, Ordering::Relaxed);
        listener.inc();
        Self { worker_connections: worker.clone(), listener_gauge: listener.clone() }
    }
}

impl Drop for ConnectionCountGuard {
    fn drop(&mut self) {
        self.worker_connections.fetch_sub(1, Ordering::Relaxed);
        self.listener_gauge.dec();
    }
}

/// The threads of the data plane. They end by themselves after
/// [`LifecyclePhase::Draining`].
pub struct DataPlane {
    threads: Vec<JoinHandle<()>>,
    /// Closes when the last thread has ended.
    ended_rx: mpsc::Receiver<()>,
}

impl DataPlane {
    /// Starts `workers` workers and the thread that accepts for them.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be started.
    pub fn start(listeners: Vec<BoundListener>, workers: usize, shared: &Arc<DataPlaneState>) -> io::Result<Self> {
        for listener in &listeners {
            listener.socket.set_nonblocking(true)?;
        }
        let mut threads = Vec::with_capacity(workers + 1);
        let mut worker_handles = Vec::with_capacity(workers);
        let (running_guard, running) = mpsc::channel(1);
        for number in 0..workers {
            let (connections, accepted) = mpsc::channel(WORKER_CHANNEL_CAPACITY);
            worker_handles.push(WorkerHandle { connections, open_connections: Arc::default() });
            let shared = shared.clone();
            let name = format!("worker-{number}");
            threads.push(spawn_thread(&name, Some(&running_guard), move |runtime| {
                runtime.block_on(run_worker(shared, accepted))
            })?);
        }
        let shared = shared.clone();
        let verifier_state = shared.clone();
        let accepting = move |runtime: LocalRuntime| runtime.block_on(run_acceptors(listeners, worker_handles, shared));
        threads.push(spawn_thread("accept", Some(&running_guard), accepting)?);
        // A request that waits for a verification keeps its worker alive; this thread keeps nothing alive.
        threads.push(spawn_thread("tokens", None, move |runtime| runtime.block_on(verify_signatures(verifier_state)))?);
        Ok(Self { threads, ended_rx: running })
    }

    /// Waits for every thread to end, without blocking.
    pub async fn wait_until_ended(&mut self) {
        // Nothing is ever sent on this channel.
        let _ = self.ended_rx.recv().await;
    }

    /// Waits for every thread to end.
    ///
    /// # Errors
    ///
    /// The names of threads that panicked.
    pub fn join(self) -> Result<(), Vec<String>> {
        let name = |thread: &JoinHandle<()>| thread.thread().name().unwrap_or("data plane").to_owned();
        let ended = self.threads.into_iter().map(|thread| (name(&thread), thread.join()));
        let panicked: Vec<String> = ended.filter(|(_, ended)| ended.is_err()).map(|(name, _)| name).collect();
        if panicked.is_empty() { Ok(()) } else { Err(panicked) }
    }

    /// Returns whether any thread has ended.
    pub fn has_ended_thread(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

fn spawn_thread(
    name: &str,
    running_guard: Option<&mpsc::Sender<()>>,
    run: impl FnOnce(LocalRuntime) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let running_guard = running_guard.cloned();
    let mut builder = Builder::new_current_thread();
    builder.enable_all();
    // A runtime that cannot start should be an error here and not on its thread.
    builder.build_local(LocalOptions::default())?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Ok(runtime) = builder.build_local(LocalOptions::default()) {
            run(runtime);
        }
        drop(running_guard);
    })
}

/// Verifies signatures one after the other, with lower priority: where no core is idle, workers go first.
async fn verify_signatures(shared: Arc<DataPlaneState>) {
    let Some(mut jobs) = shared.tokens.verification.take_receiver() else { return };
    // On Linux this changes the calling thread alone.
    if let Err(error) = rustix::process::setpriority_process(None, BACKGROUND_NICE_VALUE) {
        tracing::debug!(%error, "verifying signatures with normal thread priority");
    }
    let forced = shared.lifecycle.wait_for_phase(LifecyclePhase::Forced);
    tokio::pin!(forced);
    loop {
        tokio::select! {
            Some(job) = jobs.recv() => job.run(),
            () = &mut forced => return,
        }
    }
}

async fn run_acceptors(listeners: Vec<BoundListener>, worker_handles: Vec<WorkerHandle>, shared: Arc<DataPlaneState>) {
    let worker_handles: Rc<[WorkerHandle]> = worker_handles.into();
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn_local(accept_connections(listener, worker_handles.clone(), shared.clone()));
    }
    drop(worker_handles);
    // A task that panics ends the thread, which is monitored.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn accept_connections(listener: BoundListener, worker_handles: Rc<[WorkerHandle]>, shared: Arc<DataPlaneState>) {
    let BoundListener { name, socket, tls } = listener;
    let Ok(listener) = tokio::net::TcpListener::from_std(socket) else { return };
    let gauge = shared.metrics.connections.with_label_values(&[name]);
    let draining = shared.lifecycle.wait_for_phase(LifecyclePhase::Draining);
    tokio::pin!(draining);
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut draining => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_failing = false;
                assign_to_worker(stream, peer, tls.as_ref(), &worker_handles, &gauge, &shared).await;
            }
            Err(error) => {
                shared.metrics.accept_errors.inc();
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "accept failed; is the limit of open files too low?");
                }
                tokio::time::sleep(ACCEPT_ERROR_BACKOFF).await;
            }
        }
    }
    // The kernel has accepted these connections for the router, so their clients must get an answer instead of a reset.
    // No more are taken than can have waited, because others may arrive without end.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..LISTEN_BACKLOG {
        let Ok((stream, peer)) = listener.accept() else { return };
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) {
            assign_to_worker(stream, peer, tls.as_ref(), &worker_handles, &gauge, &shared).await;
        }
    }
}

/// Gives a connection to the worker that has the fewest.
async fn assign_to_worker(
    mut stream: tokio::net::TcpStream,
    peer: SocketAddr,
    tls: Option<&Arc<Acceptor>>,
    worker_handles: &[WorkerHandle],
    gauge: &prometheus::IntGauge,
    shared: &DataPlaneState,
) {
    let open_connections: usize =
        worker_handles.iter().map(|worker| worker.open_connections.load(Ordering::Relaxed)).sum();
    if open_connections >= shared.limits.max_connections {
        let refusal = Refusal::TooManyConnections;
        shared.metrics.unrouted_metrics().record_rejection(error_response::error_code(refusal));
        if tls.is_some() {
            // A TLS handshake just to refuse the connection would cost too much.
            return;
        }
        // This is one write into an empty socket buffer, which does not wait for the client.
        let _ = stream
            .write_all(&error_response::raw_http1_response(refusal, &request_id::generate(&mut rand::rng())))
            .await;
        return;
    }
    let Some(worker) = worker_handles.iter().min_by_key(|candidate| candidate.open_connections.load(Ordering::Relaxed))
    else {
        return;
    };
    let connection_guard = ConnectionCountGuard::new(&worker.open_connections, gauge);
    if let Ok(stream) = stream.into_std() {
        // Fails only when the worker has ended, and then the whole process ends.
        let _ = worker.connections.send(AcceptedConnection { stream, peer, tls: tls.cloned(), connection_guard }).await;
    }
}

/// Runs one worker.
async fn run_worker(shared: Arc<DataPlaneState>, mut accepted: mpsc::Receiver<AcceptedConnection>) {
    let lifecycle = shared.lifecycle.clone();
    let (worker, mut ended) = Worker::new(shared);
    let sweeper = tokio::task::spawn_local(sweep_idle_connections(worker.clone()));
    // Ends when the accepting thread does, after it has handed over everything it accepted.
    while let Some(AcceptedConnection { stream, peer, tls, connection_guard: open }) = accepted.recv().await {
        let (worker, shutdown_guard) = (worker.clone(), worker.shutdown_guard());
        tokio::task::spawn_local(async move {
            if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                connection::serve_connection(worker, stream, peer, tls).await;
            }
            drop((open, shutdown_guard));
        });
    }
    // Requests that have arrived by now are seen first: the runtime polls the sockets before this continues.
    tokio::task::yield_now().await;
    worker.drain();
    tokio::select! {
        _ = ended.recv() => {}
        () = lifecycle.wait_for_phase(LifecyclePhase::Forced) => {}
    }
    sweeper.abort();
}

async fn sweep_idle_connections(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(POOL_SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        worker.pool.close_stale_connections(Instant::now());
    }
}
