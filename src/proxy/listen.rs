//! Accepting connections and spreading them over the workers.
//!
//! One thread accepts and gives each connection to the worker with the fewest: even also when there are few, which the
//! kernel's own spreading by hash is not.

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

use super::worker::{Shared, Worker};
use super::{connection, request_id, respond};
use crate::model::refusal::Refusal;
use crate::state::lifecycle::Phase;
use crate::state::tls::Acceptor;

/// Connections that may wait to be accepted.
pub const BACKLOG: i32 = 4096;
/// Connections that may wait for their worker.
const HAND_OVER: usize = 1024;
/// Rest after an accept that failed: without file descriptors, trying again at once only burns time.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// The nice value of a thread that must not hold up the others.
const BACKGROUND: i32 = 10;
/// How often idle connections to replicas are looked after.
const SWEEP: Duration = Duration::from_secs(1);

/// Where one worker's connections come from.
struct Seat {
    connections: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Acceptor>>,
    open: Counted,
}

/// A socket that clients connect to.
pub struct Listener {
    /// What it is called in metrics.
    pub name: &'static str,
    /// Bound already.
    pub socket: TcpListener,
    /// TLS on it, or plain HTTP.
    pub tls: Option<Arc<Acceptor>>,
}

/// One open connection, counted until dropped.
struct Counted {
    worker: Arc<AtomicUsize>,
    listener: prometheus::IntGauge,
}

impl Counted {
    fn new(worker: &Arc<AtomicUsize>, listener: &prometheus::IntGauge) -> Self {
        worker.fetch_add(1, Ordering::Relaxed);
        listener.inc();
        Self { worker: worker.clone(), listener: listener.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.fetch_sub(1, Ordering::Relaxed);
        self.listener.dec();
    }
}

/// The threads of the data plane; they end by themselves after [`Phase::Draining`].
pub struct DataPlane {
    threads: Vec<JoinHandle<()>>,
    /// Closes when the last thread has ended.
    running: mpsc::Receiver<()>,
}

impl DataPlane {
    /// Starts `workers` workers and the thread that accepts for them.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub fn start(listeners: Vec<Listener>, workers: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        for listener in &listeners {
            listener.socket.set_nonblocking(true)?;
        }
        let mut threads = Vec::with_capacity(workers + 1);
        let mut seats = Vec::with_capacity(workers);
        let (alive, running) = mpsc::channel(1);
        for number in 0..workers {
            let (connections, accepted) = mpsc::channel(HAND_OVER);
            seats.push(Seat { connections, open: Arc::default() });
            let shared = shared.clone();
            let name = format!("worker-{number}");
            threads.push(spawn(&name, Some(&alive), move |runtime| runtime.block_on(work(shared, accepted)))?);
        }
        let shared = shared.clone();
        let checker = shared.clone();
        let accepting = move |runtime: LocalRuntime| runtime.block_on(accept_all(listeners, seats, shared));
        threads.push(spawn("accept", Some(&alive), accepting)?);
        // Whoever waits for a check keeps a worker alive; this thread keeps nobody.
        threads.push(spawn("tokens", None, move |runtime| runtime.block_on(check_tokens(checker)))?);
        Ok(Self { threads, running })
    }

    /// Waits for every thread to end, without blocking.
    pub async fn ended(&mut self) {
        // Nothing is ever sent.
        let _ = self.running.recv().await;
    }

    /// Waits for every thread to end.
    ///
    /// # Errors
    /// The names of threads that panicked.
    pub fn join(self) -> Result<(), Vec<String>> {
        let name = |thread: &JoinHandle<()>| thread.thread().name().unwrap_or("data plane").to_owned();
        let ended = self.threads.into_iter().map(|thread| (name(&thread), thread.join()));
        let panicked: Vec<String> = ended.filter(|(_, ended)| ended.is_err()).map(|(name, _)| name).collect();
        if panicked.is_empty() { Ok(()) } else { Err(panicked) }
    }

    /// Whether any thread has ended.
    pub fn any_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

fn spawn(
    name: &str,
    alive: Option<&mpsc::Sender<()>>,
    run: impl FnOnce(LocalRuntime) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let alive = alive.cloned();
    let mut builder = Builder::new_current_thread();
    builder.enable_all();
    // A runtime that cannot start should be known here, not on its thread.
    builder.build_local(LocalOptions::default())?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Ok(runtime) = builder.build_local(LocalOptions::default()) {
            run(runtime);
        }
        drop(alive);
    })
}

/// Checks signatures, one after the other. They come second: with no core to spare, workers go first.
async fn check_tokens(shared: Arc<Shared>) {
    let Some(mut waiting) = shared.tokens.checks.take() else { return };
    // Of this thread alone, on Linux.
    if let Err(error) = rustix::process::setpriority_process(None, BACKGROUND) {
        tracing::debug!(%error, "signatures are checked with the priority of requests");
    }
    let forced = shared.lifecycle.reached(Phase::Forced);
    tokio::pin!(forced);
    loop {
        tokio::select! {
            Some(check) = waiting.recv() => check.run(),
            () = &mut forced => return,
        }
    }
}

async fn accept_all(listeners: Vec<Listener>, seats: Vec<Seat>, shared: Arc<Shared>) {
    let seats: Rc<[Seat]> = seats.into();
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn_local(accept(listener, seats.clone(), shared.clone()));
    }
    drop(seats);
    // One that panics ends the thread, which is looked after.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn accept(listener: Listener, seats: Rc<[Seat]>, shared: Arc<Shared>) {
    let Listener { name, socket, tls } = listener;
    let Ok(listener) = tokio::net::TcpListener::from_std(socket) else { return };
    let gauge = shared.metrics.connections.with_label_values(&[name]);
    let draining = shared.lifecycle.reached(Phase::Draining);
    tokio::pin!(draining);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut draining => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                seat(stream, peer, tls.as_ref(), &seats, &gauge, &shared).await;
            }
            Err(error) => {
                shared.metrics.accept_errors.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "connections cannot be accepted; is the limit of open files too low?");
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    // The system accepts for us: who connected before the end must not find a reset instead of an answer. No more than
    // can have waited: others may come without end.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, peer)) = listener.accept() else { return };
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) {
            seat(stream, peer, tls.as_ref(), &seats, &gauge, &shared).await;
        }
    }
}

/// Gives a connection to the worker with the fewest.
async fn seat(
    mut stream: tokio::net::TcpStream,
    peer: SocketAddr,
    tls: Option<&Arc<Acceptor>>,
    seats: &[Seat],
    gauge: &prometheus::IntGauge,
    shared: &Shared,
) {
    let open: usize = seats.iter().map(|seat| seat.open.load(Ordering::Relaxed)).sum();
    if open >= shared.limits.max_connections {
        let refusal = Refusal::TooManyConnections;
        shared.metrics.no_endpoint().rejected(respond::code(refusal));
        if tls.is_some() {
            // A handshake to say so would be the dearest refusal.
            return;
        }
        // One write into an empty socket buffer; nobody is waited for.
        let _ = stream.write_all(&respond::raw(refusal, &request_id::fresh(&mut rand::rng()))).await;
        return;
    }
    let Some(seat) = seats.iter().min_by_key(|seat| seat.open.load(Ordering::Relaxed)) else { return };
    let open = Counted::new(&seat.open, gauge);
    if let Ok(stream) = stream.into_std() {
        // Fails only when the worker has ended, and then the whole process does.
        let _ = seat.connections.send(Accepted { stream, peer, tls: tls.cloned(), open }).await;
    }
}

/// One worker's life.
async fn work(shared: Arc<Shared>, mut accepted: mpsc::Receiver<Accepted>) {
    let lifecycle = shared.lifecycle.clone();
    let (worker, mut ended) = Worker::new(shared);
    let sweeper = tokio::task::spawn_local(sweep(worker.clone()));
    // Ends when the accepting thread does, after handing over everything it accepted.
    while let Some(Accepted { stream, peer, tls, open }) = accepted.recv().await {
        let (worker, alive) = (worker.clone(), worker.alive());
        tokio::task::spawn_local(async move {
            if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                connection::serve(worker, stream, peer, tls).await;
            }
            drop((open, alive));
        });
    }
    // Requests that have come by now are seen first: the runtime looks at the sockets before this goes on.
    tokio::task::yield_now().await;
    worker.drain();
    tokio::select! {
        _ = ended.recv() => {}
        () = lifecycle.reached(Phase::Forced) => {}
    }
    sweeper.abort();
}

async fn sweep(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        worker.pool.sweep(Instant::now());
    }
}
