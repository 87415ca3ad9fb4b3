//! The connection of this router to the coordinator, if that is another router.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::framing::PeerHandshake;
use super::peers::{self, FleetSecret, PeerEvent};
use crate::control::certificates::upstream_connector;
use crate::model::tls::UpstreamTls;
use crate::policy::fleet::{MemberId, ToCoordinator};

/// The first and the longest delay between attempts to connect; the actual delay has jitter.
const BACKOFF_RANGE: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Connects to the coordinator, and reconnects with backoff.
pub(super) struct CoordinatorConnection {
    id: MemberId,
    secret: FleetSecret,
    tls: Option<UpstreamTls>,
    events: mpsc::Sender<PeerEvent>,
    /// The number of the last connection. Events of other connections are ignored.
    connection_id: u64,
    /// The coordinator, if it is known and is another router.
    coordinator: Option<MemberId>,
    state: ConnectionState,
    /// The number of failed attempts since the last useful message.
    failures: u32,
    /// Whether a failure was logged since then.
    is_error_logged: bool,
}

enum ConnectionState {
    /// There is no connection; the next attempt is due at this time.
    BackingOff(Instant),
    Connecting(AbortHandle),
    Connected(mpsc::Sender<ToCoordinator>),
}

impl CoordinatorConnection {
    pub(super) fn new(
        id: MemberId,
        secret: FleetSecret,
        tls: Option<UpstreamTls>,
        events: mpsc::Sender<PeerEvent>,
    ) -> Self {
        let state = ConnectionState::BackingOff(Instant::now());
        Self {
            id,
            secret,
            tls,
            events,
            connection_id: 0,
            coordinator: None,
            state,
            failures: 0,
            is_error_logged: false,
        }
    }

    /// Sets the coordinator, and connects to it when an attempt is due. `needs_connection` means that the current
    /// connection is unusable. Returns whether an open connection was closed, so that the session has ended.
    pub(super) fn set_coordinator(
        &mut self,
        coordinator: Option<&MemberId>,
        needs_connection: bool,
        now: Instant,
    ) -> bool {
        let was_open = matches!(self.state, ConnectionState::Connected(_));
        if self.coordinator.as_ref() != coordinator {
            self.close();
            self.coordinator = coordinator.cloned();
            self.reset_failures();
        } else if was_open && needs_connection {
            self.close();
            self.back_off(now);
        }
        if let (Some(coordinator), ConnectionState::BackingOff(retry_at)) = (&self.coordinator, &self.state)
            && *retry_at <= now
        {
            self.connection_id += 1;
            let opening = PeerHandshake { secret: self.secret.text(), member: self.id.clone() };
            let name = coordinator.name.clone();
            // Built for each attempt, because certificates are replaced while the router runs.
            let connect =
                |tls| peers::connect_to_coordinator(name, tls, opening, self.connection_id, self.events.clone());
            let no_secrets = |_: &str| Err("peers have no Secret".to_owned());
            match self.tls.as_ref().map(|tls| upstream_connector::build_connector(tls, no_secrets)).transpose() {
                Ok(tls) => self.state = ConnectionState::Connecting(tokio::spawn(connect(tls)).abort_handle()),
                Err((field, problem)) => drop(self.connection_closed(
                    self.connection_id,
                    Some(format!("fleet.peer.tls.{field} {problem}")),
                    now,
                )),
            }
        }
        was_open && !matches!(self.state, ConnectionState::Connected(_))
    }

    /// Closes the connection, if there is one.
    pub(super) fn close(&mut self) {
        if let ConnectionState::Connecting(task) = &self.state {
            task.abort();
        }
        // Events of the closed connection that are still queued have a different number and are ignored.
        self.connection_id += 1;
        self.state = ConnectionState::BackingOff(Instant::now());
    }

    /// Records that a connection is open. Returns whether it is the current one.
    pub(super) fn connection_opened(&mut self, connection_id: u64, sender: mpsc::Sender<ToCoordinator>) -> bool {
        let is_current = self.is_current(connection_id);
        if is_current {
            self.state = ConnectionState::Connected(sender);
        }
        is_current
    }

    /// Resets the backoff, because a useful message was received.
    pub(super) fn reset_failures(&mut self) {
        (self.failures, self.is_error_logged) = (0, false);
    }

    /// Returns whether a connection is the current one.
    pub(super) fn is_current(&self, connection_id: u64) -> bool {
        self.connection_id == connection_id
    }

    /// Records that a connection has ended, or could not be opened (`error`). The end without an error is normal when
    /// the coordinator changes. Returns whether it was the current connection.
    pub(super) fn connection_closed(&mut self, connection_id: u64, error: Option<String>, now: Instant) -> bool {
        if !self.is_current(connection_id) {
            return false;
        }
        match error {
            None if self.failures == 0 => {
                tracing::info!("disconnected from the coordinator; using held slots until the lease expires");
            }
            Some(error) if !std::mem::replace(&mut self.is_error_logged, true) => {
                tracing::warn!(error, "no connection to the coordinator; using held slots until the lease expires");
            }
            _ => {}
        }
        self.back_off(now);
        true
    }

    /// Sends a message. Returns whether it was queued for sending; if not, the connection is closed.
    pub(super) fn send(&mut self, message: ToCoordinator) -> bool {
        let is_sent = matches!(&self.state, ConnectionState::Connected(sender) if sender.try_send(message).is_ok());
        if !is_sent && matches!(self.state, ConnectionState::Connected(_)) {
            self.close();
        }
        is_sent
    }

    /// Returns when the next attempt to connect is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            ConnectionState::BackingOff(retry_at) if self.coordinator.is_some() => Some(*retry_at),
            _ => None,
        }
    }

    fn back_off(&mut self, now: Instant) {
        let max_delay = (BACKOFF_RANGE[0] * 2_u32.saturating_pow(self.failures.min(10))).min(BACKOFF_RANGE[1]);
        self.failures += 1;
        // Jitter, so that not all members connect at the same moment.
        self.state = ConnectionState::BackingOff(now + max_delay.mul_f64(rand::rng().random_range(0.5..1.0)));
    }
}
