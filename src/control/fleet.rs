//! The router as a member of a fleet: one task runs the election, the connection to the coordinator or the coordinator
//! itself, and applies slot leases to the slots of deployments. All decisions are in [`crate::policy::fleet`]; this
//! module adds clocks, connections and tasks.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use crate::model::fleet::PeerTls;
use crate::policy::fleet::leader_election::{self, Election};
use crate::policy::fleet::ledger::Ledger;
use crate::policy::fleet::member::{FleetMember, LeaseState, Shares};
use crate::policy::fleet::{MemberId, ToMember};
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};
use crate::state::membership::{FleetOverview, Membership};
use crate::state::slots::DeploymentSlots;

mod coordinator;
mod coordinator_connection;
mod framing;
mod leader_lock;
mod leader_lock_store;
mod metrics;
mod peers;
mod setup;
mod share_registry;
mod status;
use coordinator::Coordinator;
use coordinator_connection::CoordinatorConnection;
use framing::CoordinatorFrame;
use leader_lock::LeaderLock;
pub use leader_lock_store::LeaderLockStore;
use metrics::FleetMetrics;
pub use metrics::describe_fleet_metrics;
use peers::{FleetSecret, PeerEvent, PeerListener};
pub use setup::{FleetParts, new_membership, read_secret};
use setup::{fleet_timing, membership_mode};
use share_registry::ShareRegistry;

/// The capacity of the channel of connection events, in events.
const EVENT_CHANNEL_CAPACITY: usize = 1024;
/// The interval at which idle deployments are removed and the status of the fleet is published.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// The largest number of message rounds between this router's member and its own coordinator per loop iteration.
const MAX_LOCAL_ROUNDS: usize = 8;
/// A longer time between two loop iterations means that the process was suspended.
const SUSPEND_THRESHOLD: Duration = Duration::from_millis(1_500);
/// The interval at which the loads of active deployments are updated.
const LOAD_REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// The task that represents the router in its fleet.
pub struct FleetTask {
    id: MemberId,
    membership: Arc<Membership>,
    lifecycle: Lifecycle,
    member: FleetMember<ShareRegistry>,
    coordinator: Coordinator,
    leader_lock: LeaderLock,
    coordinator_connection: CoordinatorConnection,
    events: mpsc::Receiver<PeerEvent>,
    events_tx: mpsc::Sender<PeerEvent>,
    peer_listener: Option<PeerListener>,
    /// When the last loop iteration or event began.
    last_wakeup: Instant,
    /// The last overview of the fleet that the coordinator has sent.
    overview: FleetOverview,
    /// Why the last connection to the coordinator failed, if it did and there is none.
    connection_error: Option<String>,
    /// The last lease state, to log changes.
    lease_state: LeaseState,
    /// How long a confirmation by the members is valid.
    confirmation_validity: Duration,
    /// How long confirmations may extend a term beyond its recorded end, at most.
    max_confirmed_extension: Duration,
    metrics: FleetMetrics,
}

impl FleetTask {
    /// Creates the task of a router that has not joined its fleet yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Fails if the operating system cannot switch the socket to non-blocking mode.
    pub fn new(parts: FleetParts) -> std::io::Result<Self> {
        let FleetParts {
            settings,
            socket,
            acceptor,
            secret,
            leader_lock_store: store,
            membership,
            lifecycle,
            metrics_registry: registry,
        } = parts;
        let (timing, now) = (fleet_timing(settings.term_duration), Instant::now());
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let incarnation = u64::try_from(incarnation).unwrap_or(u64::MAX);
        let id = MemberId { name: settings.advertise.as_str().into(), incarnation };
        let (sender, events) = mpsc::channel(EVENT_CHANNEL_CAPACITY);
        let secret = FleetSecret::new(&secret);
        let metrics = FleetMetrics::new(&registry, &membership.fallback_requests).map_err(std::io::Error::other)?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let member = FleetMember::new(timing, membership_mode(settings.mode), ShareRegistry::new(now), now);
        let lease_state = member.membership_state().lease_state(now);
        Ok(Self {
            membership,
            lifecycle,
            coordinator: Coordinator::new(id.clone(), timing.heartbeat_interval, Ledger::new(timing)),
            leader_lock: LeaderLock::new(
                Election::new(id.clone(), settings.term_duration, timing),
                store,
                settings.term_duration,
            ),
            coordinator_connection: CoordinatorConnection::new(
                id.clone(),
                secret.clone(),
                settings.tls.as_ref().map(PeerTls::client),
                sender.clone(),
            ),
            events_tx: sender.clone(),
            peer_listener: Some(PeerListener { socket, tls: acceptor, secret, events: sender }),
            id,
            member,
            events,
            last_wakeup: now,
            overview: FleetOverview::default(),
            connection_error: None,
            lease_state,
            confirmation_validity: timing.confirmation_validity,
            max_confirmed_extension: leader_election::NON_MEMBER_DELAY
                .div_f64(timing.with_drift_margin(Duration::from_secs(1)).as_secs_f64()),
            metrics,
        })
    }

    /// Returns the membership, which is shared with the slots of all deployments.
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// Runs until `leave` completes, then returns all held slots and ends. A coordinator gives its term back earlier,
    /// as soon as the router becomes unready, if there is a member that can take over: from then on it is an ordinary
    /// member.
    pub async fn run(mut self, mut leave: oneshot::Receiver<()>) {
        let listener_task = self.peer_listener.take().map(|listener| tokio::spawn(listener.run()));
        let (membership, lifecycle) = (self.membership.clone(), self.lifecycle.clone());
        let (mut is_stopping, mut is_leaving) = (false, false);
        let (mut last_housekeeping, mut last_load_report, mut was_coordinator) =
            (Instant::now(), Instant::now(), false);
        let mut signal_requests = membership.take_signal_requests();
        loop {
            let now = self.observe_wakeup();
            self.process_pending(now);
            if now >= last_load_report + LOAD_REPORT_INTERVAL {
                last_load_report = now;
                self.report_loads(now);
            }
            if now >= last_housekeeping + HOUSEKEEPING_INTERVAL
                || self.coordinator.is_coordinator(now) != was_coordinator
            {
                (last_housekeeping, was_coordinator) = (now, self.coordinator.is_coordinator(now));
                for member in self.coordinator.absent_members(now) {
                    tokio::spawn(peers::probe_ended(member, self.events_tx.clone()));
                }
                self.publish_status(now);
                // Before idle deployments are removed, their final load, zero, is reported.
                self.report_loads(now);
                for deployment in self.member.shares().remove_idle() {
                    self.coordinator.remove_deployment(&deployment, now);
                    self.member.remove_load(&deployment);
                }
            }
            if is_leaving && self.member.current_session().is_none() && self.leader_lock.has_left() {
                break;
            }
            let wake = self.wake_at(Instant::now()).map_or(last_housekeeping + HOUSEKEEPING_INTERVAL, |at| {
                at.min(last_housekeeping + HOUSEKEEPING_INTERVAL)
            });
            let wake = if self.member.shares().has_active() {
                wake.min(last_load_report + LOAD_REPORT_INTERVAL)
            } else {
                wake
            };
            tokio::select! {
                biased;
                () = lifecycle.wait_for_phase(LifecyclePhase::Unready), if !is_stopping => {
                    is_stopping = true;
                    if !self.coordinator.is_coordinator(now) || self.coordinator.has_members() {
                        self.leader_lock.set_leaving();
                    }
                }
                _ = &mut leave, if !is_leaving => {
                    is_leaving = true;
                    self.member.start_draining();
                    self.membership.set_state(self.member.membership_state());
                    self.leader_lock.set_leaving();
                }
                Some(event) = self.events.recv() => {
                    self.observe_wakeup();
                    self.apply_event(event);
                    // The number is limited, because the lease has to be renewed in between.
                    let more = std::iter::from_fn(|| self.events.try_recv().ok()).take(EVENT_CHANNEL_CAPACITY);
                    for event in more.collect::<Vec<_>>() {
                        self.apply_event(event);
                    }
                }
                dirty = membership.next_dirty() => {
                    self.observe_wakeup();
                    dirty.into_iter().for_each(|slots| self.sync_deployment(slots));
                }
                outcome = self.leader_lock.next_outcome() => self.leader_lock.apply_outcome(outcome),
                signal_request = async {
                    match &mut signal_requests {
                        Some(requests) => requests.recv().await,
                        None => pending().await,
                    }
                } => signal_request.into_iter().for_each(|request| self.coordinator.answer_signal_request(request)),
                () = sleep_until(wake.into()) => {}
            }
        }
        listener_task.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// Returns the current time, after a check whether the process was suspended: that must be known before anything
    /// else is done.
    fn observe_wakeup(&mut self) -> Instant {
        let now = Instant::now();
        if now > std::mem::replace(&mut self.last_wakeup, now) + SUSPEND_THRESHOLD {
            self.member.resume_from_suspend(now);
            self.membership.set_state(self.member.membership_state());
        }
        self.member.shares().set_now(now);
        now
    }

    /// Processes a dirty deployment: its replicas and its share may have changed.
    fn sync_deployment(&mut self, slots: Arc<DeploymentSlots>) {
        let now = self.last_wakeup;
        let Some(deployment) = slots.with_share(now, |deployment, _| deployment.clone()) else { return };
        self.coordinator.set_replicas(&deployment, slots.replica_capacities(), now);
        self.member.shares().mark_active(&deployment, slots);
    }

    fn apply_event(&mut self, event: PeerEvent) {
        let now = Instant::now();
        match event {
            PeerEvent::MemberConnected(member, connection_id, sender) => {
                self.coordinator.member_connected(member, connection_id, sender, now)
            }
            PeerEvent::MemberMessage(member, connection_id, message) => {
                self.coordinator.receive_from(member, connection_id, message, now)
            }
            PeerEvent::MemberDisconnected(member, connection_id) => {
                if self.coordinator.connection_closed(&member, connection_id) {
                    tokio::spawn(peers::probe_ended(member, self.events_tx.clone()));
                }
            }
            PeerEvent::MemberEnded(member) => self.coordinator.member_ended(&member, now),
            PeerEvent::CoordinatorConnected(connection_id, sender) => {
                if self.coordinator_connection.connection_opened(connection_id, sender) {
                    self.member.begin_session(now);
                }
            }
            PeerEvent::CoordinatorMessage(connection_id, message) => {
                if self.coordinator_connection.is_current(connection_id) {
                    if !matches!(message, CoordinatorFrame::Message(ToMember::Refused { .. })) {
                        self.coordinator_connection.reset_failures();
                        self.connection_error = None;
                    }
                    match message {
                        CoordinatorFrame::Message(message) => self.member.receive(message, now),
                        CoordinatorFrame::Overview(overview) => self.overview = overview,
                    }
                }
            }
            PeerEvent::CoordinatorDisconnected(connection_id, error) => {
                if self.coordinator_connection.connection_closed(connection_id, error.clone(), now) {
                    self.connection_error = error;
                    self.member.end_session();
                    self.overview = FleetOverview::default();
                    // Another router may be the coordinator by now.
                    self.leader_lock.read_now();
                }
            }
        }
    }

    /// Advances all state machines and exchanges their messages, until there are none left or the round limit is
    /// reached.
    fn process_pending(&mut self, now: Instant) {
        self.sync_sessions(now);
        // These leases expired so long ago that others may get the slots: requests in flight there are aborted.
        for key in self.member.tick(now) {
            if let Some(slots) = self.member.shares().slots(&key.deployment) {
                slots.revoke_replica(&key);
            }
        }
        self.coordinator.tick(now);
        // Workers can cause new messages without end, so the rounds are limited. The rest follows in the next
        // iteration, which is due at once.
        for _ in 0..MAX_LOCAL_ROUNDS {
            let mut is_quiet = true;
            while let Some(message) = self.member.outgoing(now) {
                // Before the message is sent: no request may start on a slot that it returns.
                self.membership.set_state(self.member.membership_state());
                is_quiet = false;
                if self.coordinator.is_coordinator(now) {
                    self.coordinator.receive_local(message, now);
                } else if !self.coordinator_connection.send(message) {
                    self.member.end_session();
                }
            }
            for message in self.coordinator.send_outgoing(now) {
                is_quiet = false;
                self.member.receive(message, now);
            }
            if is_quiet {
                break;
            }
        }
        let state = self.member.membership_state();
        self.membership.set_state(state);
        let lease_state = state.lease_state(now);
        self.membership.set_lease_state(lease_state, self.coordinator.is_coordinator(now));
        if lease_state != self.lease_state {
            let (from, to) = (status::lease_state_name(self.lease_state), status::lease_state_name(lease_state));
            tracing::info!(from, to, "lease state changed");
            self.lease_state = lease_state;
            // Serves queued requests, which may be allowed to start now.
            self.member.shares().for_each_active_share(|_, _| {});
        }
        self.leader_lock.start_operation(&self.coordinator.roster(now), now);
        // From here on, messages of members that the write removes from the roster are not accepted.
        self.coordinator.set_recorded_members(self.leader_lock.definite_members(), now);
    }

    /// Begins and ends terms and sessions according to the leader lock.
    fn sync_sessions(&mut self, now: Instant) {
        self.sync_with_leader_lock(now);
        // Before any message is sent: slots freed meanwhile must not be returned in a session that has ended.
        self.membership.set_state(self.member.membership_state());
    }

    fn sync_with_leader_lock(&mut self, now: Instant) {
        if let Some(won_term) = self.leader_lock.take_won_term() {
            // This comes first, because this router must not confirm the previous coordinator any more.
            self.coordinator_connection.close();
            let heard = self.member.coordinator_heard_at();
            self.member.end_session();
            self.coordinator.begin_term(won_term, self.leader_lock.term_end().unwrap_or(now), heard, now);
        }
        match self.leader_lock.term_end() {
            Some(term_end) => {
                let possible_members = self.leader_lock.error().map(|_| self.leader_lock.possible_members());
                let confirmed_until = possible_members
                    .and_then(|others| self.coordinator.confirmed_until(&others, self.confirmation_validity, now));
                // Limited, because a router that is not among the confirming members may win the lock after this time.
                let confirmed_until = confirmed_until
                    .map_or(term_end, |confirmed| confirmed.min(term_end + self.max_confirmed_extension));
                self.coordinator.extend_term(term_end.max(confirmed_until));
            }
            None => {
                if self.coordinator.resign() {
                    self.member.end_session();
                }
            }
        }
        if self.coordinator.is_superseded() {
            self.leader_lock.resign();
            self.coordinator.resign();
            self.member.end_session();
        }
        self.coordinator.set_recorded_members(self.leader_lock.definite_members(), now);
        if self.coordinator.is_coordinator(now) {
            self.coordinator_connection.set_coordinator(None, false, now);
            if self.member.current_session().is_none() {
                self.member.begin_session(now);
            }
        } else {
            let coordinator =
                self.leader_lock.coordinator().map(|(holder, _)| holder).filter(|holder| **holder != self.id);
            if self.coordinator_connection.set_coordinator(coordinator, self.member.needs_connection(now), now) {
                self.member.end_session();
            }
        }
        let members: BTreeSet<MemberId> = self.leader_lock.roster();
        let size = u32::try_from(members.len().max(1)).unwrap_or(u32::MAX);
        let rank = members.iter().position(|member| *member == self.id).unwrap_or_default();
        let rank = u32::try_from(rank).unwrap_or_default();
        if self.member.membership_state().fleet_position() != (size, rank) {
            self.member.set_fleet_position(size, rank);
        }
    }

    /// Updates the loads that the member reports to the coordinator.
    fn report_loads(&mut self, now: Instant) {
        for (deployment, load) in self.member.shares().loads(now) {
            self.member.set_load(&deployment, load);
        }
    }

    fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let others = [self.coordinator.wake_at(), self.leader_lock.wake_at(), self.coordinator_connection.wake_at()];
        others.into_iter().flatten().chain(self.member.wake_at(now)).min()
    }
}

#[cfg(test)]
mod tests;
