//! The coordinator: the ledger, and the connections of members. It is active only during this router's own terms.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::framing::CoordinatorFrame;

use crate::policy::fleet::ledger::{Ledger, PreviousHolders, SlotCounts};
use crate::policy::fleet::{DeploymentId, MemberId, Term, ToCoordinator, ToMember};
use crate::state::membership::{FleetOverview, MemberStatus, SignalRequest};
use crate::state::slots::ReplicaCapacity;

/// The state of a router as the coordinator.
pub(super) struct Coordinator {
    id: MemberId,
    /// A member that was heard within this time is considered alive.
    peer_timeout: Duration,
    ledger: Ledger,
    is_coordinating: bool,
    peers: BTreeMap<MemberId, MemberConnection>,
    /// The last member for which a duplicate name was logged.
    reported_duplicate: Option<MemberId>,
    /// The members on the recorded roster, which may hold slots.
    recorded_members: BTreeSet<MemberId>,
    /// Messages of members that are not on the recorded roster yet, with their connection; processed once they are.
    pending_messages: Vec<(MemberId, u64, ToCoordinator)>,
    /// The replicas of each deployment as passed to the ledger.
    replica_capacities: HashMap<DeploymentId, Vec<ReplicaCapacity>>,
    /// The slots granted since [`Self::take_slots_granted`] was last called.
    slots_granted: u64,
}

/// A connected member.
struct MemberConnection {
    connection_id: u64,
    session: Option<u64>,
    last_heard: Instant,
    sender: mpsc::Sender<CoordinatorFrame>,
}

impl Coordinator {
    /// Creates the state of a router that is not the coordinator. `heartbeat` is the interval between messages of a
    /// member.
    pub(super) fn new(id: MemberId, heartbeat: Duration, ledger: Ledger) -> Self {
        let peer_timeout = heartbeat * 3;
        let (peers, recorded_members, pending_messages, replica_capacities) =
            (BTreeMap::new(), BTreeSet::new(), Vec::new(), HashMap::new());
        Self {
            id,
            peer_timeout,
            ledger,
            is_coordinating: false,
            peers,
            reported_duplicate: None,
            recorded_members,
            pending_messages,
            replica_capacities,
            slots_granted: 0,
        }
    }

    /// Sets the replicas of a deployment. They are kept even while another router is the coordinator.
    pub(super) fn set_replicas(&mut self, deployment: &DeploymentId, capacities: Vec<ReplicaCapacity>, now: Instant) {
        let before = self.replica_capacities.remove(deployment).unwrap_or_default();
        if before != capacities {
            let gone = before.iter().filter(|replica| capacities.iter().all(|other| other.key != replica.key));
            gone.for_each(|replica| self.ledger.set_replica(&replica.key, 0, replica.hold, now));
            let changed = capacities.iter().filter(|replica| !before.contains(replica));
            changed.for_each(|replica| self.ledger.set_replica(&replica.key, replica.cap, replica.hold, now));
        }
        if !capacities.is_empty() {
            self.replica_capacities.insert(deployment.clone(), capacities);
        }
    }

    /// Removes a deployment.
    pub(super) fn remove_deployment(&mut self, deployment: &DeploymentId, now: Instant) {
        self.set_replicas(deployment, Vec::new(), now);
        self.ledger.remove_deployment(deployment);
    }

    /// Begins a term. `predecessor_heard_at` is when this router last heard the previous coordinator.
    pub(super) fn begin_term(
        &mut self,
        (term, previous_holders): (Term, PreviousHolders),
        term_end: Instant,
        predecessor_heard_at: Instant,
        now: Instant,
    ) {
        self.drop_all_peers();
        self.is_coordinating = true;
        tracing::info!(term = term.0, "became coordinator");
        self.ledger.begin_term(term, term_end, previous_holders, now);
        self.ledger.set_predecessor_heard_at(predecessor_heard_at);
    }

    /// Extends the term to `term_end`.
    pub(super) fn extend_term(&mut self, term_end: Instant) {
        if self.is_coordinating {
            self.ledger.extend_term(term_end);
        }
    }

    /// Returns until when the term may continue on the confirmation of all other members, while the leader lock is
    /// unavailable.
    pub(super) fn confirmed_until(
        &self,
        all: &BTreeSet<MemberId>,
        validity: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let others = all.iter().filter(|member| **member != self.id);
        self.ledger.confirmed_at(others, now).filter(|_| self.is_coordinating).map(|at| at + validity)
    }

    /// Ends the term. Returns whether this router was the coordinator.
    pub(super) fn resign(&mut self) -> bool {
        if self.is_coordinating {
            tracing::info!("stopped being coordinator");
            self.ledger.resign();
            self.drop_all_peers();
        }
        std::mem::take(&mut self.is_coordinating)
    }

    /// Returns whether any other member is connected.
    pub(super) fn has_members(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Returns whether a member has mentioned a later term.
    pub(super) fn is_superseded(&self) -> bool {
        self.is_coordinating && self.ledger.superseding_term().is_some()
    }

    /// Returns whether this router is the coordinator now.
    pub(super) fn is_coordinator(&self, now: Instant) -> bool {
        self.is_coordinating && self.ledger.active_term(now).is_some()
    }

    /// Sets the members on the recorded roster, and processes their pending messages.
    pub(super) fn set_recorded_members(&mut self, recorded_members: BTreeSet<MemberId>, now: Instant) {
        if self.recorded_members == recorded_members {
            return;
        }
        self.recorded_members = recorded_members;
        for (member, number, message) in std::mem::take(&mut self.pending_messages) {
            self.receive_from(member, number, message, now);
        }
    }

    /// Returns the roster to record: all members that may hold slots or want to.
    pub(super) fn roster(&self, now: Instant) -> BTreeSet<MemberId> {
        let mut roster = match self.ledger.roster(now) {
            PreviousHolders::Known(roster) => roster,
            PreviousHolders::Unknown => self.recorded_members.clone(),
        };
        roster.insert(self.id.clone());
        roster.extend(self.pending_messages.iter().map(|(member, ..)| member.clone()));
        roster
    }

    /// Accepts the connection of a member. While another router is the coordinator, the connection is closed.
    pub(super) fn member_connected(
        &mut self,
        member: MemberId,
        connection_id: u64,
        sender: mpsc::Sender<CoordinatorFrame>,
        now: Instant,
    ) {
        if self.is_coordinator(now) && member != self.id {
            let is_live_duplicate = |(other, peer): (&MemberId, &MemberConnection)| {
                is_same_name(other, &member) && now < peer.last_heard + self.peer_timeout
            };
            if is_same_name(&self.id, &member) || self.peers.iter().any(is_live_duplicate) {
                // The older process has slots in use, so the newer one is rejected.
                if self.reported_duplicate.as_ref() != Some(&member) {
                    let name = &*member.name;
                    tracing::warn!(
                        name,
                        "rejected peer connection: another router has the same name; is `fleet.peer.advertise` the same in \
                         both?"
                    );
                    self.reported_duplicate = Some(member);
                }
                return;
            }
            tracing::info!(member = &*member.name, "member connected");
            self.pending_messages.retain(|(other, ..)| *other != member);
            let before = self
                .peers
                .insert(member.clone(), MemberConnection { connection_id, session: None, last_heard: now, sender });
            if let Some(session) = before.and_then(|before| before.session) {
                self.ledger.session_disconnected(&member, session);
            }
        }
    }

    /// Receives a message of a member.
    pub(super) fn receive_from(&mut self, member: MemberId, connection_id: u64, message: ToCoordinator, now: Instant) {
        let Some(peer) = self.peers.get_mut(&member).filter(|peer| peer.connection_id == connection_id) else { return };
        peer.last_heard = now;
        if let ToCoordinator::Hello(hello) = &message {
            peer.session = Some(hello.session);
        }
        // While the first message of a member is pending, so are all that follow.
        if self.recorded_members.contains(&member) {
            self.ledger.receive(&member, message, now);
        } else {
            self.pending_messages.push((member, connection_id, message));
        }
    }

    /// Records that a connection has ended. Returns whether it was the current connection of a member.
    pub(super) fn connection_closed(&mut self, member: &MemberId, connection_id: u64) -> bool {
        let is_current = self.peers.get(member).is_some_and(|peer| peer.connection_id == connection_id);
        if is_current {
            tracing::info!(member = &*member.name, "member disconnected");
            self.drop_peer(member);
        }
        is_current
    }

    /// Records that the process of a member has ended.
    pub(super) fn member_ended(&mut self, member: &MemberId, now: Instant) {
        // The member may have connected again meanwhile.
        if self.is_coordinating && !self.peers.contains_key(member) {
            tracing::info!(member = &*member.name, "member ended");
            self.ledger.member_ended(member, now);
        }
    }

    /// Returns the members that may hold slots and are not connected.
    pub(super) fn absent_members(&self, now: Instant) -> Vec<MemberId> {
        if !self.is_coordinator(now) {
            return Vec::new();
        }
        let absent =
            self.roster(now).into_iter().filter(|member| *member != self.id && !self.peers.contains_key(member));
        absent.collect()
    }

    /// Receives a message of this router's own member.
    pub(super) fn receive_local(&mut self, message: ToCoordinator, now: Instant) {
        self.ledger.receive(&self.id, message, now);
    }

    /// Sends all messages of the ledger to the other members. Returns those for this router's own member.
    pub(super) fn send_outgoing(&mut self, now: Instant) -> Vec<ToMember> {
        let mut local_messages = Vec::new();
        if !self.is_coordinating {
            return local_messages;
        }
        for (member, message) in self.ledger.outgoing(now) {
            if let ToMember::Update(update) = &message {
                self.slots_granted += update.granted.iter().map(|(_, slots)| u64::from(*slots)).sum::<u64>();
            }
            if member == self.id {
                local_messages.push(message);
            } else if self
                .peers
                .get(&member)
                .is_some_and(|peer| peer.sender.try_send(CoordinatorFrame::Message(message)).is_err())
            {
                // The peer is gone, or so slow that a new session recovers sooner.
                self.drop_peer(&member);
            }
        }
        local_messages
    }

    /// Answers a request for the signals of a deployment. Only the coordinator answers; otherwise the request is
    /// dropped.
    pub(super) fn answer_signal_request(&mut self, request: SignalRequest) {
        let now = Instant::now();
        if self.is_coordinator(now) {
            let signals = self.ledger.take_signals(&request.deployment, now);
            // A failed send means that the requester is gone.
            let _ = request.reply.send(signals);
        }
    }

    /// Returns the overview of the fleet, and sends the other members the parts they need; `None` if another router is
    /// the coordinator.
    pub(super) fn overview(&self, now: Instant) -> Option<FleetOverview> {
        if !self.is_coordinator(now) {
            return None;
        }
        let known = self.ledger.members().map(|(id, slots, waiting)| MemberStatus {
            name: id.name.to_string(),
            slots: Some(slots),
            waiting: Some(waiting),
        });
        let all = self
            .replica_capacities
            .keys()
            .map(|deployment| (deployment.clone(), self.ledger.outstanding(deployment, now)));
        let overview = FleetOverview { members: known.collect(), outstanding: all.collect() };
        let waiting = overview.outstanding.iter().filter(|(_, (_, waiting))| *waiting > 0);
        let waiting: HashMap<_, _> = waiting.map(|(deployment, counts)| (deployment.clone(), *counts)).collect();
        for peer in self.peers.values() {
            let peer_overview = FleetOverview { members: overview.members.clone(), outstanding: waiting.clone() };
            // The overview may be dropped: peers that are too slow are detected by `send_outgoing`.
            let _ = peer.sender.try_send(CoordinatorFrame::Overview(peer_overview));
        }
        Some(overview)
    }

    /// Returns the slots of all deployments by state; zero if another router is the coordinator.
    pub(super) fn slot_counts(&self, now: Instant) -> SlotCounts {
        let all = self
            .replica_capacities
            .keys()
            .filter(|_| self.is_coordinator(now))
            .map(|deployment| self.ledger.slot_counts(deployment, now));
        all.fold(SlotCounts::default(), |sum, counts| SlotCounts {
            free: sum.free + counts.free,
            leased: sum.leased + counts.leased,
            quarantined: sum.quarantined + counts.quarantined,
        })
    }

    /// Returns the number of slots granted since the last call.
    pub(super) fn take_slots_granted(&mut self) -> u64 {
        std::mem::take(&mut self.slots_granted)
    }

    /// Advances the ledger to `now`.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.is_coordinating {
            self.ledger.tick(now);
        }
    }

    /// Returns when [`Self::tick`] is due at the latest, if nothing else happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.ledger.wake_at().filter(|_| self.is_coordinating)
    }

    fn drop_peer(&mut self, member: &MemberId) {
        self.pending_messages.retain(|(other, ..)| other != member);
        if let Some(session) = self.peers.remove(member).and_then(|peer| peer.session) {
            self.ledger.session_disconnected(member, session);
        }
    }

    /// Closes all connections: every member has to connect again.
    fn drop_all_peers(&mut self) {
        self.peers.clear();
        self.pending_messages.clear();
    }
}

/// Returns whether two processes have the same name.
fn is_same_name(one: &MemberId, other: &MemberId) -> bool {
    one.name == other.name && one.incarnation != other.incarnation
}

/// Access for tests without connections.
#[cfg(test)]
impl Coordinator {
    pub(super) fn receive_unchecked(&mut self, from: &MemberId, message: ToCoordinator, now: Instant) {
        self.ledger.receive(from, message, now);
    }

    pub(super) fn outgoing(&mut self, now: Instant) -> Vec<(MemberId, ToMember)> {
        self.ledger.audit().unwrap();
        self.ledger.outgoing(now)
    }
}
