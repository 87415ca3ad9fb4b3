//! The router as one of several: finds out who coordinates, speaks with the coordinator or coordinates, and has slots
//! be used as the group allows. What is decided is in [`crate::policy::fleet`]; here are clocks, connections and tasks.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use crate::model::fleet::PeerTls;
use crate::policy::fleet::election::{self, Election};
use crate::policy::fleet::ledger::Ledger;
use crate::policy::fleet::member::{Member, Shares, Standing};
use crate::policy::fleet::{MemberId, ToMember};
use crate::state::lifecycle::{Lifecycle, Phase};
use crate::state::membership::{Membership, Overview};
use crate::state::slots::Slots;

mod gauges;
mod leader;
mod parts;
mod peers;
mod record;
mod registry;
mod store;
mod upstream;
mod view;
mod wire;
use gauges::Gauges;
use leader::Leader;
pub use parts::{Parts, membership, secret};
use parts::{kind, timing};
use peers::{Door, Event, Secret};
use record::RecordKeeper;
use registry::Registry;
pub use store::Store;
use upstream::Upstream;
use wire::Down;

/// Events of connections that may wait.
const EVENTS: usize = 1024;
/// How often it is looked which deployments have come to rest, and told how the group is.
const SETTLE: Duration = Duration::from_secs(1);
/// Exchanges between this router and itself, at a time.
const ROUNDS: usize = 8;
/// The task looks around more often than this, if the process runs.
const ASLEEP: Duration = Duration::from_millis(1_500);
/// How often it is told what goes on here.
const LOADS: Duration = Duration::from_millis(100);

/// The one task that speaks for the router.
pub struct Fleet {
    id: MemberId,
    membership: Arc<Membership>,
    lifecycle: Lifecycle,
    member: Member<Registry>,
    leader: Leader,
    record: RecordKeeper,
    upstream: Upstream,
    events: mpsc::Receiver<Event>,
    said: mpsc::Sender<Event>,
    door: Option<Door>,
    /// When this task was last awake.
    looked: Instant,
    /// What the coordinator has said of the group.
    told: Overview,
    /// Why there was no connection to the coordinator, if there is none.
    why_apart: Option<String>,
    /// What slots were last limited by.
    standing: Standing,
    /// How long this router may coordinate by the word of others after they have given it.
    vouch: Duration,
    /// For how long after its term, at most.
    alone: Duration,
    gauges: Gauges,
}

impl Fleet {
    /// Nothing is known yet. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not take the socket.
    pub fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { settings, socket, acceptor, secret, store, membership, lifecycle, registry } = parts;
        let (timing, now) = (timing(settings.term), Instant::now());
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let incarnation = u64::try_from(incarnation).unwrap_or(u64::MAX);
        let id = MemberId { name: settings.advertise.as_str().into(), incarnation };
        let (sender, events) = mpsc::channel(EVENTS);
        let secret = Secret::new(&secret);
        registry.register(Box::new(membership.borrowed.clone())).map_err(std::io::Error::other)?;
        let gauges = Gauges::new(&registry).map_err(std::io::Error::other)?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let member = Member::new(timing, kind(settings.mode), Registry::new(now), now);
        let standing = member.terms().standing(now);
        Ok(Self {
            membership,
            lifecycle,
            leader: Leader::new(id.clone(), timing.heartbeat, Ledger::new(timing)),
            record: RecordKeeper::new(Election::new(id.clone(), settings.term, timing), store, settings.term),
            upstream: Upstream::new(
                id.clone(),
                secret.clone(),
                settings.tls.as_ref().map(PeerTls::client),
                sender.clone(),
            ),
            said: sender.clone(),
            door: Some(Door { socket, tls: acceptor, secret, events: sender }),
            id,
            member,
            events,
            looked: now,
            told: Overview::default(),
            why_apart: None,
            standing,
            vouch: timing.vouch,
            alone: election::STRANGER.div_f64(timing.surely(Duration::from_secs(1)).as_secs_f64()),
            gauges,
        })
    }

    /// What deployments go by.
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// Speaks for the router until `leave`; then gives back what it holds, and ends. Its term it gives back before, when the
    /// router is told to stop, if there is somebody to take it: from then on it is a member like others.
    pub async fn run(mut self, mut leave: oneshot::Receiver<()>) {
        let door = self.door.take().map(|door| tokio::spawn(door.run()));
        let (membership, lifecycle) = (self.membership.clone(), self.lifecycle.clone());
        let (mut is_stopping, mut is_leaving) = (false, false);
        let (mut settled, mut loaded, mut led) = (Instant::now(), Instant::now(), false);
        let mut questions = membership.questions();
        loop {
            let now = self.awake();
            self.pump(now);
            if now >= loaded + LOADS {
                loaded = now;
                self.tell_loads(now);
            }
            if now >= settled + SETTLE || self.leader.leads(now) != led {
                (settled, led) = (now, self.leader.leads(now));
                for member in self.leader.absent(now) {
                    tokio::spawn(peers::probe(member, self.said.clone()));
                }
                self.tell_group(now);
                // Of those that come to rest, that nothing goes on there any more.
                self.tell_loads(now);
                for deployment in self.member.shares().settle() {
                    self.leader.forget(&deployment, now);
                    self.member.forget_load(&deployment);
                }
            }
            if is_leaving && self.member.session().is_none() && self.record.has_left() {
                break;
            }
            let wake = self.wake_at(Instant::now()).map_or(settled + SETTLE, |at| at.min(settled + SETTLE));
            let wake = if self.member.shares().is_lively() { wake.min(loaded + LOADS) } else { wake };
            tokio::select! {
                biased;
                () = lifecycle.reached(Phase::Unready), if !is_stopping => {
                    is_stopping = true;
                    if !self.leader.leads(now) || self.leader.has_company() {
                        self.record.leave();
                    }
                }
                _ = &mut leave, if !is_leaving => {
                    is_leaving = true;
                    self.member.retire();
                    self.membership.set_terms(self.member.terms());
                    self.record.leave();
                }
                Some(event) = self.events.recv() => {
                    self.awake();
                    self.take(event);
                    // No more than that: the lease has to be looked after too.
                    for event in std::iter::from_fn(|| self.events.try_recv().ok()).take(EVENTS).collect::<Vec<_>>() {
                        self.take(event);
                    }
                }
                news = membership.news() => {
                    self.awake();
                    news.into_iter().for_each(|slots| self.note(slots));
                }
                outcome = self.record.next() => self.record.take(outcome),
                question = async {
                    match &mut questions {
                        Some(questions) => questions.recv().await,
                        None => pending().await,
                    }
                } => question.into_iter().for_each(|question| self.leader.answer(question)),
                () = sleep_until(wake.into()) => {}
            }
        }
        door.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// What time it is. Whether the process stood still has to be known before anything else is done.
    fn awake(&mut self) -> Instant {
        let now = Instant::now();
        if now > std::mem::replace(&mut self.looked, now) + ASLEEP {
            self.member.woken(now);
            self.membership.set_terms(self.member.terms());
        }
        self.member.shares().set_now(now);
        now
    }

    /// A deployment has something to say.
    fn note(&mut self, slots: Arc<Slots>) {
        let now = self.looked;
        let Some(deployment) = slots.look(now, |deployment, _| deployment.clone()) else { return };
        self.leader.lend(&deployment, slots.lent(), now);
        self.member.shares().note(&deployment, slots);
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Came(member, number, to) => self.leader.came(member, number, to, now),
            Event::Said(member, number, message) => self.leader.said(member, number, message, now),
            Event::Left(member, number) => {
                if self.leader.left(&member, number) {
                    tokio::spawn(peers::probe(member, self.said.clone()));
                }
            }
            Event::Ended(member) => self.leader.ended(&member, now),
            Event::Connected(number, to) => {
                if self.upstream.connected(number, to) {
                    self.member.connected(now);
                }
            }
            Event::Told(number, message) => {
                if self.upstream.is_current(number) {
                    if !matches!(message, Down::Member(ToMember::Refused { .. })) {
                        self.upstream.is_well();
                        self.why_apart = None;
                    }
                    match message {
                        Down::Member(message) => self.member.receive(message, now),
                        Down::Group(overview) => self.told = overview,
                    }
                }
            }
            Event::Lost(number, why) => {
                if self.upstream.lost(number, why.clone(), now) {
                    self.why_apart = why;
                    self.member.disconnected();
                    self.told = Overview::default();
                    // Perhaps it has gone, and somebody else is there by now.
                    self.record.look();
                }
            }
        }
    }

    /// Everything that follows from what has happened, until nothing does any more.
    fn pump(&mut self, now: Instant) {
        self.follow(now);
        // Of each that is in flight where it must not be any more, nothing is left to do but to cut it.
        for key in self.member.tick(now) {
            if let Some(slots) = self.member.shares().slots(&key.deployment) {
                slots.revoke(&key);
            }
        }
        self.leader.tick(now);
        // What workers do meanwhile may go on for ever: the rest is for the next time, which is now.
        for _ in 0..ROUNDS {
            let mut is_quiet = true;
            while let Some(message) = self.member.outgoing(now) {
                // Nothing may be started on what is given back by it.
                self.membership.set_terms(self.member.terms());
                is_quiet = false;
                if self.leader.leads(now) {
                    self.leader.say(message, now);
                } else if !self.upstream.say(message) {
                    self.member.disconnected();
                }
            }
            for message in self.leader.flush(now) {
                is_quiet = false;
                self.member.receive(message, now);
            }
            if is_quiet {
                break;
            }
        }
        let terms = self.member.terms();
        self.membership.set_terms(terms);
        let standing = terms.standing(now);
        self.membership.stands(standing, self.leader.leads(now));
        if standing != self.standing {
            let (from, to) = (view::word(self.standing), view::word(standing));
            tracing::info!(from, to, "how this router may use slots has changed");
            self.standing = standing;
            // Who waits may be served now.
            self.member.shares().restless(|_, _| {});
        }
        self.record.keep(&self.leader.roster(now), now);
        // Whom it strikes off is let in no more from here on.
        self.leader.admit(self.record.surely_on_it(), now);
    }

    /// Makes sessions what the record says of who coordinates.
    fn follow(&mut self, now: Instant) {
        self.follow_record(now);
        // Before anything is said: what ends meanwhile must not be given back in a session that is over.
        self.membership.set_terms(self.member.terms());
    }

    fn follow_record(&mut self, now: Instant) {
        if let Some(won) = self.record.take_won() {
            // First of all: nobody may vouch for the coordinator of before any more.
            self.upstream.end();
            let heard = self.member.heard_at();
            self.member.disconnected();
            self.leader.lead(won, self.record.until().unwrap_or(now), heard, now);
        }
        match self.record.until() {
            Some(until) => {
                let others = self.record.trouble().map(|_| self.record.perhaps_on_it());
                let vouched = others.and_then(|others| self.leader.vouched(&others, self.vouch, now));
                // Not for longer than somebody waits who is none of those that vouch.
                let vouched = vouched.map_or(until, |vouched| vouched.min(until + self.alone));
                self.leader.extend(until.max(vouched));
            }
            None => {
                if self.leader.resign() {
                    self.member.disconnected();
                }
            }
        }
        if self.leader.superseded() {
            self.record.resign();
            self.leader.resign();
            self.member.disconnected();
        }
        self.leader.admit(self.record.surely_on_it(), now);
        if self.leader.leads(now) {
            self.upstream.follow(None, false, now);
            if self.member.session().is_none() {
                self.member.connected(now);
            }
        } else {
            let coordinator = self.record.leader().map(|(leader, _)| leader).filter(|leader| **leader != self.id);
            if self.upstream.follow(coordinator, self.member.is_lost(now), now) {
                self.member.disconnected();
            }
        }
        let group: BTreeSet<MemberId> = self.record.roster();
        let size = u32::try_from(group.len().max(1)).unwrap_or(u32::MAX);
        let rank = group.iter().position(|member| *member == self.id).unwrap_or_default();
        let rank = u32::try_from(rank).unwrap_or_default();
        if self.member.terms().group() != (size, rank) {
            self.member.set_group(size, rank);
        }
    }

    /// Has the coordinator know what goes on here.
    fn tell_loads(&mut self, now: Instant) {
        for (deployment, load) in self.member.shares().loads(now) {
            self.member.set_load(&deployment, load);
        }
    }

    fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let others = [self.leader.wake_at(), self.record.wake_at(), self.upstream.wake_at()];
        others.into_iter().flatten().chain(self.member.wake_at(now)).min()
    }
}

#[cfg(test)]
mod tests;
