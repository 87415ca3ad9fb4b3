//! The router as the coordinator, while it is: the ledger, and the members that have come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::wire::Down;

use crate::policy::fleet::ledger::{Former, Ledger, Slots};
use crate::policy::fleet::{Deployment, Epoch, MemberId, ToCoordinator, ToMember};
use crate::state::membership::{GroupMember, Overview, Question};
use crate::state::slots::Lent;

/// What a router does as the coordinator.
pub(super) struct Leader {
    id: MemberId,
    /// Who was heard since then is alive.
    alive: Duration,
    ledger: Ledger,
    is_leading: bool,
    peers: BTreeMap<MemberId, Peer>,
    /// The last of whom it was said that another has its name.
    twin: Option<MemberId>,
    /// Who is written down as one who may hold slots.
    recorded: BTreeSet<MemberId>,
    /// Who is not yet, and what they have said.
    waiting: Vec<(MemberId, u64, ToCoordinator)>,
    /// What the ledger knows of replicas.
    lent: HashMap<Deployment, Vec<Lent>>,
    /// Slots granted that nobody has counted yet.
    moves: u64,
}

/// A member that has come.
struct Peer {
    number: u64,
    session: Option<u64>,
    heard: Instant,
    to: mpsc::Sender<Down>,
}

impl Leader {
    /// Members say something once in a `heartbeat`.
    pub(super) fn new(id: MemberId, heartbeat: Duration, ledger: Ledger) -> Self {
        let alive = heartbeat * 3;
        let (peers, recorded, waiting, lent) = (BTreeMap::new(), BTreeSet::new(), Vec::new(), HashMap::new());
        Self { id, alive, ledger, is_leading: false, peers, twin: None, recorded, waiting, lent, moves: 0 }
    }

    /// What a deployment has of replicas, whoever coordinates.
    pub(super) fn lend(&mut self, deployment: &Deployment, now_lent: Vec<Lent>, now: Instant) {
        let before = self.lent.remove(deployment).unwrap_or_default();
        if before != now_lent {
            let gone = before.iter().filter(|lent| now_lent.iter().all(|other| other.key != lent.key));
            gone.for_each(|lent| self.ledger.set_replica(&lent.key, 0, lent.hold, now));
            let changed = now_lent.iter().filter(|lent| !before.contains(lent));
            changed.for_each(|lent| self.ledger.set_replica(&lent.key, lent.cap, lent.hold, now));
        }
        if !now_lent.is_empty() {
            self.lent.insert(deployment.clone(), now_lent);
        }
    }

    /// There is no such deployment any more.
    pub(super) fn forget(&mut self, deployment: &Deployment, now: Instant) {
        self.lend(deployment, Vec::new(), now);
        self.ledger.forget(deployment);
    }

    /// A term begins. `heard`: when this router was last told anything by the coordinator of before.
    pub(super) fn lead(&mut self, (epoch, former): (Epoch, Former), until: Instant, heard: Instant, now: Instant) {
        self.dismiss();
        self.is_leading = true;
        tracing::info!(epoch = epoch.0, "this router coordinates its group");
        self.ledger.lead(epoch, until, former, now);
        self.ledger.last_heard(heard);
    }

    /// The term goes on.
    pub(super) fn extend(&mut self, until: Instant) {
        if self.is_leading {
            self.ledger.extend(until);
        }
    }

    /// Until when it may go on by the word of all others, without the record.
    pub(super) fn vouched(&self, all: &BTreeSet<MemberId>, vouch: Duration, now: Instant) -> Option<Instant> {
        let others = all.iter().filter(|member| **member != self.id);
        self.ledger.vouched(others, now).filter(|_| self.is_leading).map(|at| at + vouch)
    }

    /// It does not coordinate any more. Returns whether it did.
    pub(super) fn resign(&mut self) -> bool {
        if self.is_leading {
            tracing::info!("this router does not coordinate its group any more");
            self.ledger.resign();
            self.dismiss();
        }
        std::mem::take(&mut self.is_leading)
    }

    /// Whether any member is here.
    pub(super) fn has_company(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Whether a member has heard of a later term.
    pub(super) fn superseded(&self) -> bool {
        self.is_leading && self.ledger.superseded().is_some()
    }

    /// Whether it coordinates now.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.is_leading && self.ledger.leads(now).is_some()
    }

    /// These are written down; what they have said counts.
    pub(super) fn admit(&mut self, recorded: BTreeSet<MemberId>, now: Instant) {
        if self.recorded == recorded {
            return;
        }
        self.recorded = recorded;
        for (member, number, message) in std::mem::take(&mut self.waiting) {
            self.said(member, number, message, now);
        }
    }

    /// Who has to be written down.
    pub(super) fn roster(&self, now: Instant) -> BTreeSet<MemberId> {
        let mut roster = match self.ledger.roster(now) {
            Former::Only(roster) => roster,
            Former::Anybody => self.recorded.clone(),
        };
        roster.insert(self.id.clone());
        roster.extend(self.waiting.iter().map(|(member, ..)| member.clone()));
        roster
    }

    /// A member has come in. Whoever comes while somebody else coordinates is sent away.
    pub(super) fn came(&mut self, member: MemberId, number: u64, to: mpsc::Sender<Down>, now: Instant) {
        if self.leads(now) && member != self.id {
            let is_alive = |(other, peer): (&MemberId, &Peer)| is_twin(other, &member) && now < peer.heard + self.alive;
            if is_twin(&self.id, &member) || self.peers.iter().any(is_alive) {
                // The older one has slots in use.
                if self.twin.as_ref() != Some(&member) {
                    let name = &*member.name;
                    tracing::warn!(
                        name,
                        "two routers call themselves this: is `fleet.peer.advertise` the same in both?"
                    );
                    self.twin = Some(member);
                }
                return;
            }
            tracing::info!(member = &*member.name, "a router has joined");
            self.waiting.retain(|(other, ..)| *other != member);
            let before = self.peers.insert(member.clone(), Peer { number, session: None, heard: now, to });
            if let Some(session) = before.and_then(|before| before.session) {
                self.ledger.disconnected(&member, session);
            }
        }
    }

    /// A member says something.
    pub(super) fn said(&mut self, member: MemberId, number: u64, message: ToCoordinator, now: Instant) {
        let Some(peer) = self.peers.get_mut(&member).filter(|peer| peer.number == number) else { return };
        peer.heard = now;
        if let ToCoordinator::Hello(hello) = &message {
            peer.session = Some(hello.session);
        }
        // What follows a first word that has to wait, waits too.
        if self.recorded.contains(&member) {
            self.ledger.receive(&member, message, now);
        } else {
            self.waiting.push((member, number, message));
        }
    }

    /// A connection has ended. Returns whether it was that of a member.
    pub(super) fn left(&mut self, member: &MemberId, number: u64) -> bool {
        let is_it = self.peers.get(member).is_some_and(|peer| peer.number == number);
        if is_it {
            tracing::info!(member = &*member.name, "the connection to a router has ended");
            self.drop_peer(member);
        }
        is_it
    }

    /// A member's process has ended.
    pub(super) fn ended(&mut self, member: &MemberId, now: Instant) {
        // It may have come back under the same name meanwhile.
        if self.is_leading && !self.peers.contains_key(member) {
            tracing::info!(member = &*member.name, "a router has ended");
            self.ledger.ended(member, now);
        }
    }

    /// Who may hold slots and is not here.
    pub(super) fn absent(&self, now: Instant) -> Vec<MemberId> {
        if !self.leads(now) {
            return Vec::new();
        }
        let absent =
            self.roster(now).into_iter().filter(|member| *member != self.id && !self.peers.contains_key(member));
        absent.collect()
    }

    /// This router says something to itself.
    pub(super) fn say(&mut self, message: ToCoordinator, now: Instant) {
        self.ledger.receive(&self.id, message, now);
    }

    /// Sends what there is to be told. Returns what this router is told.
    pub(super) fn flush(&mut self, now: Instant) -> Vec<ToMember> {
        let mut own = Vec::new();
        if !self.is_leading {
            return own;
        }
        for (member, message) in self.ledger.outgoing(now) {
            if let ToMember::Update(update) = &message {
                self.moves += update.granted.iter().map(|(_, slots)| u64::from(*slots)).sum::<u64>();
            }
            if member == self.id {
                own.push(message);
            } else if self.peers.get(&member).is_some_and(|peer| peer.to.try_send(Down::Member(message)).is_err()) {
                // Gone, or so slow that a new session is sooner of use.
                self.drop_peer(&member);
            }
        }
        own
    }

    /// Somebody scales a deployment; only the coordinator answers.
    pub(super) fn answer(&mut self, question: Question) {
        let now = Instant::now();
        if self.leads(now) {
            let signals = self.ledger.take_signals(&question.deployment, now);
            // Who asked may be gone.
            let _ = question.answer.send(signals);
        }
    }

    /// How the group is; has the others know what matters to them. `None`: another router knows.
    pub(super) fn overview(&self, now: Instant) -> Option<Overview> {
        if !self.leads(now) {
            return None;
        }
        let known = self.ledger.members().map(|(id, slots, waiting)| GroupMember {
            name: id.name.to_string(),
            slots: Some(slots),
            waiting: Some(waiting),
        });
        let all = self.lent.keys().map(|deployment| (deployment.clone(), self.ledger.present(deployment, now)));
        let overview = Overview { members: known.collect(), present: all.collect() };
        let waiting = overview.present.iter().filter(|(_, (_, waiting))| *waiting > 0);
        let waiting: HashMap<_, _> = waiting.map(|(deployment, present)| (deployment.clone(), *present)).collect();
        for peer in self.peers.values() {
            let told = Overview { members: overview.members.clone(), present: waiting.clone() };
            // Who takes too little of what matters is found out by that.
            let _ = peer.to.try_send(Down::Group(told));
        }
        Some(overview)
    }

    /// Where the slots of all deployments are.
    pub(super) fn slots(&self, now: Instant) -> Slots {
        let all = self.lent.keys().filter(|_| self.leads(now)).map(|deployment| self.ledger.slots(deployment, now));
        all.fold(Slots::default(), |sum, of| Slots {
            free: sum.free + of.free,
            leased: sum.leased + of.leased,
            quarantined: sum.quarantined + of.quarantined,
        })
    }

    /// Slots granted since this was last called.
    pub(super) fn take_moves(&mut self) -> u64 {
        std::mem::take(&mut self.moves)
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.is_leading {
            self.ledger.tick(now);
        }
    }

    /// When to look again, if nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.ledger.wake_at().filter(|_| self.is_leading)
    }

    fn drop_peer(&mut self, member: &MemberId) {
        self.waiting.retain(|(other, ..)| other != member);
        if let Some(session) = self.peers.remove(member).and_then(|peer| peer.session) {
            self.ledger.disconnected(member, session);
        }
    }

    /// Everybody has to come anew.
    fn dismiss(&mut self) {
        self.peers.clear();
        self.waiting.clear();
    }
}

/// Whether these are two processes of one name.
fn is_twin(one: &MemberId, other: &MemberId) -> bool {
    one.name == other.name && one.incarnation != other.incarnation
}

/// Without connections.
#[cfg(test)]
impl Leader {
    pub(super) fn hear(&mut self, from: &MemberId, message: ToCoordinator, now: Instant) {
        self.ledger.receive(from, message, now);
    }

    pub(super) fn outgoing(&mut self, now: Instant) -> Vec<(MemberId, ToMember)> {
        self.ledger.audit().unwrap();
        self.ledger.outgoing(now)
    }
}
