//! The life of one replica: start, ready, died, again; until it is told to stop.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::child::Running;
use super::ports::{Port, Ports};
use super::{Event, ReplicaKey, Settings, probe};
use crate::guard::NOT_STARTED;
use crate::model::endpoint::Process;

/// What a replica is told, in rising urgency; never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Run,
    /// Let requests in flight finish, then stop.
    Drain,
    /// Stop at once; nobody needs to listen to events any more.
    Stop,
}

/// What all replicas of a supervisor have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) ports: Ports,
    /// A replica became ready, or is not ready any more.
    pub(super) changed: Notify,
}

/// One replica, over all its restarts.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) key: ReplicaKey,
    /// The key as the log shows it.
    pub(super) name: String,
    pub(super) process: Arc<Process>,
    pub(super) ready: Arc<AtomicBool>,
    pub(super) order: watch::Receiver<Order>,
    pub(super) shared: Arc<Shared>,
}

/// How one start of a replica ended.
enum End {
    /// As ordered.
    Ordered,
    /// By itself.
    Died { why: Death, ready_for: Duration },
}

enum Death {
    NoPort(io::Error),
    NoGuard(io::Error),
    Exited(io::Result<ExitStatus>),
}

impl Replica {
    /// Keeps the replica alive until it is ordered to stop; returns when its process is gone.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut last_port = None;
        self.pending(None).await;
        while let End::Died { why, ready_for } = self.live(&mut last_port).await {
            let wait = backoff.after(ready_for);
            let trouble = self.report(&why, wait);
            self.pending(Some(trouble)).await;
            tokio::select! {
                () = self.ordered(Order::Drain) => return self.gone(None).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// One start, from the port to the last `Gone`. `last_port` is given back only after a new one was taken, so that
    /// a restart never gets the port that may have been the trouble.
    async fn live(&self, last_port: &mut Option<Port>) -> End {
        let (mut running, address) = match self.start(last_port) {
            Ok(started) => started,
            Err(why) => {
                self.gone(None).await;
                return End::Died { why, ready_for: Duration::ZERO };
            }
        };
        match self.follow(&mut running, address).await {
            Some((status, ready_for)) => {
                // First of all no more requests must come here.
                self.gone(None).await;
                running.last_words().await;
                End::Died { why: Death::Exited(status), ready_for }
            }
            None => {
                running.stop(&self.name).await;
                tracing::info!(replica = self.name, "replica is stopped");
                End::Ordered
            }
        }
    }

    fn start(&self, last_port: &mut Option<Port>) -> Result<(Running, SocketAddr), Death> {
        let Settings { executable, grace, .. } = &self.shared.settings;
        let port = self.shared.ports.take().map_err(Death::NoPort)?;
        let (number, address) = (port.number(), port.address());
        *last_port = Some(port);
        let running = Running::start(executable, *grace, &self.process, number, &self.name).map_err(Death::NoGuard)?;
        Ok((running, address))
    }

    /// Waits for readiness and then for the end: how the replica died and how long it was ready, or `None` when it is
    /// to be stopped, its `Gone` sent and nothing in flight.
    async fn follow(&self, running: &mut Running, address: SocketAddr) -> Option<(io::Result<ExitStatus>, Duration)> {
        tokio::select! {
            status = running.ended() => return Some((status, Duration::ZERO)),
            () = self.ordered(Order::Drain) => {
                self.gone(None).await;
                return None;
            }
            () = probe::until_ready(address, &self.process.readiness_path, &self.name) => {}
        }
        let since = Instant::now();
        tracing::info!(replica = self.name, %address, "replica is ready");
        self.emit(Event::Ready { key: self.key.clone(), address }).await;
        self.set_ready(true);
        let died = tokio::select! {
            status = running.ended() => Some((status, since.elapsed())),
            () = self.ordered(Order::Drain) => None,
        };
        self.set_ready(false);
        if died.is_none() {
            self.drain(running).await;
        }
        died
    }

    /// Tells the receiver to route nothing more here and waits for what is in flight, unless the replica dies over it.
    async fn drain(&self, running: &mut Running) {
        let (drained, none_in_flight) = oneshot::channel();
        self.gone(Some(drained)).await;
        let longest = self.shared.settings.drain_timeout;
        tokio::select! {
            // Sent or dropped: either way the receiver is done with this replica.
            answer = timeout(longest, none_in_flight) => if answer.is_err() {
                tracing::warn!(replica = self.name, "requests are still in flight after {longest:?}; stopping anyway");
            },
            _ = running.ended() => {}
            () = self.ordered(Order::Stop) => {}
        }
    }

    async fn pending(&self, trouble: Option<String>) {
        self.emit(Event::Pending { key: self.key.clone(), trouble }).await;
    }

    async fn gone(&self, drained: Option<oneshot::Sender<()>>) {
        self.emit(Event::Gone { key: self.key.clone(), drained }).await;
    }

    /// Sends `event`, however long its receiver takes, so none is lost; except once everything is to stop: then it is
    /// dropped when there is no room, since the receiver may well be the one who waits for the end.
    async fn emit(&self, event: Event) {
        tokio::select! {
            biased;
            // Without a receiver nobody wants to know.
            _ = self.shared.events.send(event) => {}
            () = self.ordered(Order::Stop) => {}
        }
    }

    /// Returns when the order is `at_least` this urgent. A supervisor that is gone wants everything stopped.
    async fn ordered(&self, at_least: Order) {
        let _ = self.order.clone().wait_for(|order| *order >= at_least).await;
    }

    fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.shared.changed.notify_one();
    }

    /// Logs how it died, and says it.
    fn report(&self, why: &Death, wait: Duration) -> String {
        let (replica, program) = (&self.name, self.process.command.first().map_or("", String::as_str));
        if let Death::Exited(Ok(status)) = why
            && status.code() != Some(i32::from(NOT_STARTED))
        {
            tracing::warn!(replica, program, "replica ended by itself: {why}; next start in {wait:?}");
            format!("replica {replica} ended by itself: {why}")
        } else {
            let folder = self.process.working_dir.as_deref().map(|folder| folder.display().to_string());
            tracing::error!(replica, program, folder, "replica cannot be started: {why}; next start in {wait:?}");
            format!("replica {replica} cannot be started: {why}")
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPort(error) => write!(f, "no free port on 127.0.0.1 ({error}); end programs that hold ports"),
            Self::NoGuard(error) => {
                write!(f, "{error}; check that the working folder exists and that this router's own program file does")
            }
            Self::Exited(Ok(status)) if status.code() == Some(i32::from(NOT_STARTED)) => f.write_str(
                "a program was not found or cannot be run, its last line in the log says which; \
                 check `command`, PATH and the working folder",
            ),
            Self::Exited(Ok(status)) => match status.code() {
                // How the guard, like a shell, reports a signal.
                Some(code @ 129..=192) => write!(f, "killed by signal {}", code - 128),
                Some(code) => write!(f, "exit code {code}"),
                None => write!(f, "its guard was killed ({status}); the replica itself may still be running"),
            },
            Self::Exited(Err(error)) => write!(f, "cannot wait for its guard: {error}"),
        }
    }
}
