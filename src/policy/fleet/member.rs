//! A router as a member of its fleet: which slots it may use.
//!
//! A [`DeploymentShare`] is what the router holds of one deployment, and all that a request uses:
//! [`DeploymentShare::start_request`] right before it is sent to a replica, and [`DeploymentShare::finish_request`] at
//! its end. Both depend on the [`MembershipState`]. The [`FleetMember`] itself is the rest: its session with the
//! coordinator, and how long the lease is valid. The caller decides where shares are ([`Shares`]), for instance behind
//! the lock of each deployment. After every call there may be a message to send ([`FleetMember::outgoing`]); at
//! [`FleetMember::wake_at`] the caller has to call [`FleetMember::tick`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::{DeploymentId, FleetReplicaKey, FleetTiming, MemberLoad, SlotClaim, Term, ToCoordinator, ToMember};

mod in_memory_shares;
mod load_reporter;
mod membership_state;
mod protocol;
mod rtt;
mod share;
pub use in_memory_shares::InMemoryShares;
use load_reporter::LoadReporter;
pub use membership_state::MembershipState;
use rtt::RttEstimator;
pub use share::DeploymentShare;

/// A connection counts as dead after this many heartbeats without an answer.
const MAX_MISSED_HEARTBEATS: u32 = 3;
/// The largest number of unanswered heartbeats that are kept. A late answer to an older one renews nothing.
const MAX_UNANSWERED_HEARTBEATS: usize = 16;

/// Access to the shares of a member.
pub trait Shares {
    /// Calls `with` for every share.
    fn for_each_share(&mut self, with: impl FnMut(&DeploymentId, &mut DeploymentShare));

    /// As `for_each_share`, but idle shares ([`DeploymentShare::is_idle`]) may be left out.
    fn for_each_active_share(&mut self, with: impl FnMut(&DeploymentId, &mut DeploymentShare)) {
        self.for_each_share(with);
    }

    /// Calls `with` for the share of a deployment, which is created if there is none.
    fn with_share(&mut self, deployment: &DeploymentId, with: impl FnOnce(&mut DeploymentShare));
}

/// The state of one member.
#[derive(Debug, Clone, Hash)]
pub struct FleetMember<S> {
    /// The state with the current steal threshold, see [`RttEstimator`].
    state: MembershipState,
    rtt: RttEstimator,
    /// The highest term that was seen.
    highest_term: Term,
    session: u64,
    phase: SessionPhase,
    heartbeats_sent: u64,
    last_answered_heartbeat: u64,
    /// Heartbeats that are not answered, and when they were sent.
    unanswered_heartbeats: VecDeque<(u64, Instant)>,
    next_heartbeat_at: Instant,
    /// When the coordinator was last heard, or a session was begun.
    coordinator_heard_at: Instant,
    shares: S,
    load_reporters: BTreeMap<DeploymentId, LoadReporter>,
}

/// How a router relates to other routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MembershipMode {
    /// The router is alone: every slot is its own.
    Alone,
    /// A member that is cut off for longer than its lease uses its fair share: clients are served, and a replica may
    /// get more requests than its cap.
    Available,
    /// A member that is cut off for longer than its lease serves no requests.
    Strict,
}

/// The right by which a router may use slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// The router is alone, so all slots are its own.
    Alone,
    /// The lease is valid.
    Leased,
    /// The router is cut off and uses its fair share.
    Fallback,
    /// The router is cut off and strict, or has not been a member long enough.
    NoLease,
}

/// The right by which a request is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotBasis {
    /// The slot is leased.
    Leased,
    /// The router is in fallback, so the replica may exceed its cap.
    Fallback,
}

#[derive(Debug, Clone, Hash)]
enum SessionPhase {
    /// There is no connection.
    Disconnected,
    /// There is a connection, and nothing has been sent.
    Connected,
    /// `Hello` was sent, with these claims, at this time.
    AwaitingWelcome(Vec<SlotClaim>, Instant),
    Open,
}

impl<S: Shares> FleetMember<S> {
    /// Creates the state of a router that has just started and holds nothing.
    pub fn new(timing: FleetTiming, mode: MembershipMode, shares: S, now: Instant) -> Self {
        Self {
            state: MembershipState::new(timing, mode, now),
            rtt: RttEstimator::new(timing.steal_threshold),
            highest_term: Term::default(),
            session: 0,
            phase: SessionPhase::Disconnected,
            heartbeats_sent: 0,
            last_answered_heartbeat: 0,
            unanswered_heartbeats: VecDeque::new(),
            next_heartbeat_at: now,
            coordinator_heard_at: now,
            shares,
            load_reporters: BTreeMap::new(),
        }
    }

    /// Returns the state that shares depend on. It has to be read again after every call.
    pub fn membership_state(&self) -> MembershipState {
        MembershipState { is_session_open: self.is_session_open(), ..self.state }
    }

    /// Returns the shares.
    pub fn shares(&mut self) -> &mut S {
        &mut self.shares
    }

    /// Sets the number of routers, `size`, and the position of this one, `rank`, in the order that all routers see,
    /// from 0.
    pub fn set_fleet_position(&mut self, size: u32, rank: u32) {
        self.state.fleet_position = (size, rank);
        self.shares.for_each_share(|_, share| share.divide_fair_shares(size, rank));
    }

    /// Sets the load of a deployment. It has to be called once per [`FleetTiming::report_interval`] while there is any
    /// load, and at once when it begins.
    pub fn set_load(&mut self, deployment: &DeploymentId, load: MemberLoad) {
        match self.load_reporters.get_mut(deployment) {
            Some(news) => news.set_load(load),
            None => _ = self.load_reporters.insert(deployment.clone(), LoadReporter::new(load)),
        }
    }

    /// Removes the load of a deployment that is gone.
    pub fn remove_load(&mut self, deployment: &DeploymentId) {
        self.load_reporters.remove(deployment);
    }

    /// Begins a session, because there is a connection to the coordinator. Returns its number.
    pub fn begin_session(&mut self, now: Instant) -> u64 {
        self.session += 1;
        (self.phase, self.coordinator_heard_at) = (SessionPhase::Connected, now);
        (self.last_answered_heartbeat, self.unanswered_heartbeats) = (self.heartbeats_sent, VecDeque::new());
        self.session
    }

    /// Ends the session. Held slots may be used until the lease expires.
    pub fn end_session(&mut self) {
        self.phase = SessionPhase::Disconnected;
    }

    /// Returns the session, if there is one.
    pub fn current_session(&self) -> Option<u64> {
        (!matches!(self.phase, SessionPhase::Disconnected)).then_some(self.session)
    }

    /// Returns whether there is no usable connection, so that the caller should look for the coordinator.
    pub fn needs_connection(&self, now: Instant) -> bool {
        let is_timed_out =
            now >= self.coordinator_heard_at + self.state.timing.heartbeat_interval * MAX_MISSED_HEARTBEATS;
        self.state.mode != MembershipMode::Alone && (matches!(self.phase, SessionPhase::Disconnected) || is_timed_out)
    }

    /// Returns when a coordinator was last heard or a connection to one was begun, which
    /// [`Ledger::set_predecessor_heard_at`] needs when this router becomes the coordinator.
    ///
    /// [`Ledger::set_predecessor_heard_at`]: super::ledger::Ledger::set_predecessor_heard_at
    pub fn coordinator_heard_at(&self) -> Instant {
        self.coordinator_heard_at
    }

    /// Returns the highest term that was seen.
    pub fn highest_term(&self) -> Term {
        self.highest_term
    }

    /// Starts to leave the fleet: the router takes no more requests and returns each slot as it becomes free. When
    /// nothing is in flight, [`FleetMember::outgoing`] returns the farewell.
    pub fn start_draining(&mut self) {
        self.state.is_draining = true;
        self.shares.for_each_share(|_, share| share.stop_requests());
        if self.is_session_open() {
            self.return_all_surplus();
        }
    }

    /// Receives a message of the coordinator. Queued requests may find a slot after this call.
    pub fn receive(&mut self, message: ToMember, now: Instant) {
        let (term, session) = match &message {
            ToMember::Welcome { term, session, .. } | ToMember::Refused { term, session } => (*term, *session),
            ToMember::Update(update) => (update.term, update.session),
        };
        if session != self.session || matches!(self.phase, SessionPhase::Disconnected) {
            return;
        }
        if term < self.highest_term {
            // The message is from an earlier coordinator.
            return self.end_session();
        }
        self.highest_term = term;
        match message {
            ToMember::Refused { .. } => self.end_session(),
            ToMember::Welcome { heartbeat, keep_limits, .. } => self.handle_welcome(heartbeat, &keep_limits, now),
            ToMember::Update(update) if self.is_session_open() => self.handle_update(&update, now),
            ToMember::Update(_) => {}
        }
    }

    /// Advances to `now`. Returns replicas with requests in flight under leases that expired so long ago that the slots
    /// are about to be granted to others: all requests with [`SlotBasis::Leased`] there have to be aborted now.
    pub fn tick(&mut self, now: Instant) -> Vec<FleetReplicaKey> {
        let (state, mut overdue) = (self.membership_state(), Vec::new());
        if state.mode == MembershipMode::Alone {
            return overdue;
        }
        self.shares.for_each_active_share(|_, share| {
            if state.is_session_open {
                share.return_idle(now, &state.timing);
            }
            if now >= state.abort_at(share.hold_duration()) {
                overdue.extend(share.leased_busy_replicas().cloned());
            }
        });
        overdue
    }

    /// Returns when [`FleetMember::tick`] and [`FleetMember::outgoing`] are due at the latest, if nothing else happens.
    pub fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let state = self.membership_state();
        if state.mode == MembershipMode::Alone {
            return None;
        }
        let mut earliest = state.is_session_open.then_some(self.next_heartbeat_at);
        let mut consider = |time: Instant| earliest = Some(earliest.map_or(time, |first| first.min(time)));
        if state.is_session_open {
            self.load_reporters.values().filter_map(|news| news.due_at(&state.timing)).for_each(&mut consider);
        }
        let cut_off = [state.lease_expires_at, state.fallback_from.max(state.lease_expires_at)];
        // After that time [`FleetMember::needs_connection`] returns true until there is another connection, so no
        // wake-up is needed.
        let connection_timeout_at = self
            .current_session()
            .map(|_| self.coordinator_heard_at + state.timing.heartbeat_interval * MAX_MISSED_HEARTBEATS);
        cut_off.into_iter().chain(connection_timeout_at).filter(|time| *time > now).for_each(&mut consider);
        self.shares.for_each_active_share(|_, share| {
            if share.leased_busy_replicas().next().is_some() {
                // Requests that are overdue are returned by every tick.
                Some(state.abort_at(share.hold_duration()))
                    .filter(|time| *time > now)
                    .into_iter()
                    .for_each(&mut consider);
            }
            if state.is_session_open {
                share.wake_at(&state.timing).into_iter().for_each(&mut consider);
                if share.has_unsent_changes() || share.needs_idle_window() {
                    consider(now);
                }
            }
        });
        earliest
    }

    /// Records that the router was suspended and does not know what happened meanwhile. Before it uses its fair share
    /// it waits whether it hears of its coordinator.
    pub fn resume_from_suspend(&mut self, now: Instant) {
        self.state.fallback_from = self.state.fallback_from.max(now + self.state.timing.lease_duration / 2);
    }

    /// Returns the message to send, if there is one.
    pub fn outgoing(&mut self, now: Instant) -> Option<ToCoordinator> {
        match self.phase {
            SessionPhase::Connected => Some(self.take_hello(now)),
            SessionPhase::Open => self.take_report(now),
            _ => None,
        }
    }

    fn is_session_open(&self) -> bool {
        matches!(self.phase, SessionPhase::Open)
    }

    fn next_heartbeat(&mut self, now: Instant) -> u64 {
        self.heartbeats_sent += 1;
        self.next_heartbeat_at = now + self.state.timing.heartbeat_interval;
        self.unanswered_heartbeats.push_back((self.heartbeats_sent, now));
        if self.unanswered_heartbeats.len() > MAX_UNANSWERED_HEARTBEATS {
            self.unanswered_heartbeats.pop_front();
        }
        self.heartbeats_sent
    }

    fn return_all_surplus(&mut self) {
        let timing = self.state.timing;
        self.shares.for_each_active_share(|_, share| share.return_all_surplus(&timing));
    }
}
