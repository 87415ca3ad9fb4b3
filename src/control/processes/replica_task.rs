//! The lifecycle of one replica: it is started, becomes ready, ends, and is started again, until it is told to stop.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::backoff::RestartBackoff;
use super::guarded_process::GuardedProcess;
use super::port_allocator::{PortAllocator, ReservedPort};
use super::{ProcessEvent, ProcessReplicaKey, ProcessSettings, readiness_probe};
use crate::guard::EXIT_CODE_NOT_STARTED;
use crate::model::endpoint::Process;

/// What a replica is told to do, in rising urgency. An order is never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DesiredReplicaState {
    Run,
    /// Let requests in flight finish, then stop.
    Drain,
    /// Stop at once. Events need not be received any more.
    Stop,
}

/// What all replicas of a supervisor share.
#[derive(Debug)]
pub(super) struct ReplicaContext {
    pub(super) settings: ProcessSettings,
    pub(super) events: mpsc::Sender<ProcessEvent>,
    pub(super) port_allocator: PortAllocator,
    /// Notified when a replica becomes ready, or is not ready any more.
    pub(super) readiness_changed: Notify,
}

/// One replica, over all its restarts.
#[derive(Debug)]
pub(super) struct ReplicaTask {
    pub(super) key: ProcessReplicaKey,
    /// The key as the log shows it.
    pub(super) display_name: String,
    pub(super) process: Arc<Process>,
    pub(super) is_ready: Arc<AtomicBool>,
    pub(super) desired_state: watch::Receiver<DesiredReplicaState>,
    pub(super) context: Arc<ReplicaContext>,
}

/// How one run of a replica ended.
enum ProcessEnd {
    /// It was stopped as ordered.
    Stopped,
    /// It ended by itself.
    Failed { failure: ReplicaFailure, ready_for: Duration },
}

enum ReplicaFailure {
    NoFreePort(io::Error),
    GuardNotStarted(io::Error),
    Exited(io::Result<ExitStatus>),
}

impl ReplicaTask {
    /// Keeps the replica running until it is ordered to stop. Returns when its process is gone.
    pub(super) async fn run(self) {
        let mut backoff = RestartBackoff::default();
        let mut last_port = None;
        self.send_pending(None).await;
        while let ProcessEnd::Failed { failure: why, ready_for } = self.run_once(&mut last_port).await {
            let wait = backoff.next_delay(ready_for);
            let failure_text = self.log_failure(&why, wait);
            self.send_pending(Some(failure_text)).await;
            tokio::select! {
                () = self.wait_for_desired_state(DesiredReplicaState::Drain) => return self.send_gone(None).await,
                () = sleep(wait) => {}
            }
        }
    }

    /// Runs the replica once, from the choice of a port to the event `Gone`. `last_port` is released only after a new
    /// port is reserved, so that a restart never gets the port that may have caused the failure.
    async fn run_once(&self, last_port: &mut Option<ReservedPort>) -> ProcessEnd {
        let (mut process, address) = match self.start_process(last_port) {
            Ok(started) => started,
            Err(why) => {
                self.send_gone(None).await;
                return ProcessEnd::Failed { failure: why, ready_for: Duration::ZERO };
            }
        };
        match self.monitor_process(&mut process, address).await {
            Some((status, ready_for)) => {
                // New requests must be kept away first.
                self.send_gone(None).await;
                process.drain_output().await;
                ProcessEnd::Failed { failure: ReplicaFailure::Exited(status), ready_for }
            }
            None => {
                process.stop(&self.display_name).await;
                tracing::info!(replica = self.display_name, "stopped replica");
                ProcessEnd::Stopped
            }
        }
    }

    fn start_process(
        &self,
        last_port: &mut Option<ReservedPort>,
    ) -> Result<(GuardedProcess, SocketAddr), ReplicaFailure> {
        let ProcessSettings { router_executable: executable, termination_grace: grace, .. } = &self.context.settings;
        let port = self.context.port_allocator.reserve_port().map_err(ReplicaFailure::NoFreePort)?;
        let (number, address) = (port.number(), port.address());
        *last_port = Some(port);
        let running = GuardedProcess::start(executable, *grace, &self.process, number, &self.display_name)
            .map_err(ReplicaFailure::GuardNotStarted)?;
        Ok((running, address))
    }

    /// Waits until the replica is ready and then until it ends. Returns how it ended and how long it was ready, or
    /// `None` when it is to be stopped, `Gone` has been sent, and nothing is in flight.
    async fn monitor_process(
        &self,
        process: &mut GuardedProcess,
        address: SocketAddr,
    ) -> Option<(io::Result<ExitStatus>, Duration)> {
        tokio::select! {
            status = process.wait_for_exit() => return Some((status, Duration::ZERO)),
            () = self.wait_for_desired_state(DesiredReplicaState::Drain) => {
                self.send_gone(None).await;
                return None;
            }
            () = readiness_probe::wait_until_ready(address, &self.process.readiness_path, &self.display_name) => {}
        }
        let since = Instant::now();
        tracing::info!(replica = self.display_name, %address, "replica is ready");
        self.send_event(ProcessEvent::Ready { key: self.key.clone(), address }).await;
        self.set_ready(true);
        let died = tokio::select! {
            status = process.wait_for_exit() => Some((status, since.elapsed())),
            () = self.wait_for_desired_state(DesiredReplicaState::Drain) => None,
        };
        self.set_ready(false);
        if died.is_none() {
            self.drain(process).await;
        }
        died
    }

    /// Has no more requests routed to the replica and waits for those in flight, unless the replica ends meanwhile.
    async fn drain(&self, process: &mut GuardedProcess) {
        let (drained_tx, drained_rx) = oneshot::channel();
        self.send_gone(Some(drained_tx)).await;
        let longest = self.context.settings.drain_timeout;
        tokio::select! {
            // Whether the channel was used or dropped, the receiver is done with this replica.
            answer = timeout(longest, drained_rx) => if answer.is_err() {
                tracing::warn!(replica = self.display_name, "drain timeout of {longest:?} exceeded; stopping the replica with requests in flight");
            },
            _ = process.wait_for_exit() => {}
            () = self.wait_for_desired_state(DesiredReplicaState::Stop) => {}
        }
    }

    async fn send_pending(&self, failure: Option<String>) {
        self.send_event(ProcessEvent::Pending { key: self.key.clone(), failure }).await;
    }

    async fn send_gone(&self, drained_tx: Option<oneshot::Sender<()>>) {
        self.send_event(ProcessEvent::Gone { key: self.key.clone(), drained_tx }).await;
    }

    /// Sends `event` and waits for room in the channel, so that no event is lost. Once everything is to stop, an event
    /// is dropped if there is no room, because the receiver may be waiting for the end.
    async fn send_event(&self, event: ProcessEvent) {
        tokio::select! {
            biased;
            // Without a receiver the event is of no use.
            _ = self.context.events.send(event) => {}
            () = self.wait_for_desired_state(DesiredReplicaState::Stop) => {}
        }
    }

    /// Waits until the order is at least as urgent as `at_least`. If the supervisor is gone, everything is to stop.
    async fn wait_for_desired_state(&self, at_least: DesiredReplicaState) {
        let _ = self.desired_state.clone().wait_for(|order| *order >= at_least).await;
    }

    fn set_ready(&self, ready: bool) {
        self.is_ready.store(ready, Ordering::Release);
        self.context.readiness_changed.notify_one();
    }

    /// Logs how the replica ended and returns the text.
    fn log_failure(&self, why: &ReplicaFailure, wait: Duration) -> String {
        let (replica, program) = (&self.display_name, self.process.command.first().map_or("", String::as_str));
        if let ReplicaFailure::Exited(Ok(status)) = why
            && status.code() != Some(i32::from(EXIT_CODE_NOT_STARTED))
        {
            tracing::warn!(replica, program, "replica exited: {why}; restarting in {wait:?}");
            format!("replica {replica} ended by itself: {why}")
        } else {
            let folder = self.process.working_dir.as_deref().map(|folder| folder.display().to_string());
            tracing::error!(replica, program, folder, "replica failed to start: {why}; retrying in {wait:?}");
            format!("replica {replica} cannot be started: {why}")
        }
    }
}

impl fmt::Display for ReplicaFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFreePort(error) => write!(f, "no free port on 127.0.0.1 ({error}); end programs that hold ports"),
            Self::GuardNotStarted(error) => {
                write!(f, "{error}; check that the working folder exists and that this router's own program file does")
            }
            Self::Exited(Ok(status)) if status.code() == Some(i32::from(EXIT_CODE_NOT_STARTED)) => f.write_str(
                "a program was not found or cannot be run, its last line in the log says which; \
                 check `command`, PATH and the working folder",
            ),
            Self::Exited(Ok(status)) => match status.code() {
                // The guard reports a signal as a shell does.
                Some(code @ 129..=192) => write!(f, "killed by signal {}", code - 128),
                Some(code) => write!(f, "exit code {code}"),
                None => write!(f, "its guard was killed ({status}); the replica itself may still be running"),
            },
            Self::Exited(Err(error)) => write!(f, "cannot wait for its guard: {error}"),
        }
    }
}
