//! A router as one of a group: which slots it may use.
//!
//! A [`Share`] is what it holds of one deployment, and all that a request touches: before it goes to a replica,
//! [`Share::start`], at that moment, and [`Share::finish`] at its end; both go by the member's [`Terms`]. The [`Member`]
//! itself is the rest: its session with the coordinator, and how long the lease is valid. Where the shares are is the
//! shell's affair ([`Shares`]): each behind the lock of its deployment. After every call there may be something to send
//! ([`Member::outgoing`]); at [`Member::wake_at`] the shell calls [`Member::tick`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::{Claim, Deployment, Epoch, Load, ReplicaKey, Settings, ToCoordinator, ToMember};

mod news;
mod pace;
mod share;
mod talk;
mod terms;
mod whole;
use news::News;
use pace::Pace;
pub use share::Share;
pub use terms::Terms;
pub use whole::AllShares;

/// After so many heartbeats without an answer a stream is taken for dead.
const DEAF: u32 = 3;
/// So many beats may be unanswered: a later answer to an older one renews nothing.
const BEATS: usize = 16;

/// Where the shares of a member are.
pub trait Shares {
    /// Every share that there is.
    fn each(&mut self, with: impl FnMut(&Deployment, &mut Share));

    /// The same; those that are at rest ([`Share::is_at_rest`]) may be left out.
    fn restless(&mut self, with: impl FnMut(&Deployment, &mut Share)) {
        self.each(with);
    }

    /// That of a deployment, a new one where there is none.
    fn of(&mut self, deployment: &Deployment, with: impl FnOnce(&mut Share));
}

/// The state of one router.
#[derive(Debug, Clone, Hash)]
pub struct Member<S> {
    /// With patience as it is now, see [`Pace`].
    terms: Terms,
    pace: Pace,
    /// The highest seen.
    epoch: Epoch,
    session: u64,
    phase: Phase,
    beats: u64,
    answered: u64,
    /// Beats that are not answered, and when they were sent.
    unanswered: VecDeque<(u64, Instant)>,
    next_beat: Instant,
    /// When the coordinator was last heard, or a session begun.
    heard: Instant,
    shares: S,
    loads: BTreeMap<Deployment, News>,
}

/// How a router belongs to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// There are no others: every slot is its own.
    Alone,
    /// A member that is cut off for longer than its lease serves on with its fair share: clients are served, and a
    /// replica may get more than it should.
    Available,
    /// A member that is cut off for longer than its lease serves nobody.
    Strict,
}

/// What a router goes by at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// All slots are its own.
    Alone,
    /// Its lease is valid.
    Leased,
    /// Cut off: its fair share.
    Fallback,
    /// Cut off, and strict; or not long enough here to know.
    Nothing,
}

/// By what right a request is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Its slot is leased.
    Leased,
    /// In fallback: the replica may have more than it should.
    Borrowed,
}

#[derive(Debug, Clone, Hash)]
enum Phase {
    /// No stream.
    Apart,
    /// A stream, and nothing said yet.
    Greeting,
    /// Hello was said, with these claims, at that time.
    Greeted(Vec<Claim>, Instant),
    Open,
}

impl<S: Shares> Member<S> {
    /// Of a router that has just started: it holds nothing.
    pub fn new(settings: Settings, kind: Kind, shares: S, now: Instant) -> Self {
        Self {
            terms: Terms::new(settings, kind, now),
            pace: Pace::new(settings.patience),
            epoch: Epoch::default(),
            session: 0,
            phase: Phase::Apart,
            beats: 0,
            answered: 0,
            unanswered: VecDeque::new(),
            next_beat: now,
            heard: now,
            shares,
            loads: BTreeMap::new(),
        }
    }

    /// What shares go by, as of now: to be had again after every call.
    pub fn terms(&self) -> Terms {
        Terms { is_open: self.is_open(), ..self.terms }
    }

    /// Where its shares are.
    pub fn shares(&mut self) -> &mut S {
        &mut self.shares
    }

    /// There are `size` routers; in the order that all see, this is number `rank`, from 0.
    pub fn set_group(&mut self, size: u32, rank: u32) {
        self.terms.group = (size, rank);
        self.shares.each(|_, share| share.spread(size, rank));
    }

    /// What goes on in a deployment. To be told about once per [`Settings::report`] while anything does, at once when
    /// something begins to.
    pub fn set_load(&mut self, deployment: &Deployment, load: Load) {
        match self.loads.get_mut(deployment) {
            Some(news) => news.set(load),
            None => _ = self.loads.insert(deployment.clone(), News::new(load)),
        }
    }

    /// There is no such deployment any more.
    pub fn forget_load(&mut self, deployment: &Deployment) {
        self.loads.remove(deployment);
    }

    /// There is a stream to the coordinator. Returns the number of the session that begins.
    pub fn connected(&mut self, now: Instant) -> u64 {
        self.session += 1;
        (self.phase, self.heard) = (Phase::Greeting, now);
        (self.answered, self.unanswered) = (self.beats, VecDeque::new());
        self.session
    }

    /// There is none any more. What is held may be spent until the lease expires.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Apart;
    }

    /// The session, if there is one.
    pub fn session(&self) -> Option<u64> {
        (!matches!(self.phase, Phase::Apart)).then_some(self.session)
    }

    /// Whether there is no stream that is worth keeping: look for the coordinator.
    pub fn is_lost(&self, now: Instant) -> bool {
        let is_deaf = now >= self.heard + self.terms.settings.heartbeat * DEAF;
        self.terms.kind != Kind::Alone && (matches!(self.phase, Phase::Apart) || is_deaf)
    }

    /// When a coordinator was last heard, or a stream to one begun, at the latest: what [`Ledger::last_heard`] wants to know
    /// when this router leads.
    ///
    /// [`Ledger::last_heard`]: super::ledger::Ledger::last_heard
    pub fn heard_at(&self) -> Instant {
        self.heard
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The router ends: it takes no more requests, and gives back each slot as it becomes free. When nothing is in flight
    /// [`Member::outgoing`] says good-bye.
    pub fn retire(&mut self) {
        self.terms.is_retiring = true;
        self.shares.each(|_, share| share.close());
        if self.is_open() {
            self.review_every();
        }
    }

    /// The coordinator says something. Who waits may find a slot after it.
    pub fn receive(&mut self, message: ToMember, now: Instant) {
        let (epoch, session) = match &message {
            ToMember::Welcome { epoch, session, .. } | ToMember::Refused { epoch, session } => (*epoch, *session),
            ToMember::Update(update) => (update.epoch, update.session),
        };
        if session != self.session || matches!(self.phase, Phase::Apart) {
            return;
        }
        if epoch < self.epoch {
            // A coordinator of the past.
            return self.disconnected();
        }
        self.epoch = epoch;
        match message {
            ToMember::Refused { .. } => self.disconnected(),
            ToMember::Welcome { beat, keep, .. } => self.welcome(beat, &keep, now),
            ToMember::Update(update) if self.is_open() => self.update(&update, now),
            ToMember::Update(_) => {}
        }
    }

    /// Time passes. Returns replicas on which requests are in flight by leases that expired so long ago that the slots are
    /// about to be given to others: all requests with [`Right::Leased`] there have to be aborted now.
    pub fn tick(&mut self, now: Instant) -> Vec<ReplicaKey> {
        let (terms, mut overdue) = (self.terms(), Vec::new());
        if terms.kind == Kind::Alone {
            return overdue;
        }
        self.shares.restless(|_, share| {
            if terms.is_open {
                share.retire_idle(now, &terms.settings);
            }
            if now >= terms.abort_at(share.hold_time()) {
                overdue.extend(share.busy().cloned());
            }
        });
        overdue
    }

    /// When to [`Member::tick`] and look at [`Member::outgoing`] at the latest, if nothing else happens.
    pub fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let terms = self.terms();
        if terms.kind == Kind::Alone {
            return None;
        }
        let mut first = terms.is_open.then_some(self.next_beat);
        let mut at = |time: Instant| first = Some(first.map_or(time, |first| first.min(time)));
        if terms.is_open {
            self.loads.values().filter_map(|news| news.due_at(&terms.settings)).for_each(&mut at);
        }
        let cut_off = [terms.valid_until, terms.fallback_from.max(terms.valid_until)];
        // Once it is over [`Member::is_lost`] says so until there is another stream: there is nothing to wake up for.
        let lost = self.session().map(|_| self.heard + terms.settings.heartbeat * DEAF);
        cut_off.into_iter().chain(lost).filter(|time| *time > now).for_each(&mut at);
        self.shares.restless(|_, share| {
            if share.busy().next().is_some() {
                // Those that are overdue are told of at every tick.
                Some(terms.abort_at(share.hold_time())).filter(|time| *time > now).into_iter().for_each(&mut at);
            }
            if terms.is_open {
                share.wake_at(&terms.settings).into_iter().for_each(&mut at);
                if share.has_news() || share.needs_window() {
                    at(now);
                }
            }
        });
        first
    }

    /// The router was asleep for a time, and does not know what happened meanwhile: before it serves by its fair share it
    /// waits whether it hears of its coordinator.
    pub fn woken(&mut self, now: Instant) {
        self.terms.fallback_from = self.terms.fallback_from.max(now + self.terms.settings.lease / 2);
    }

    /// What is to be sent, if anything.
    pub fn outgoing(&mut self, now: Instant) -> Option<ToCoordinator> {
        match self.phase {
            Phase::Greeting => Some(self.hello(now)),
            Phase::Open => self.report(now),
            _ => None,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    fn next_number(&mut self, now: Instant) -> u64 {
        self.beats += 1;
        self.next_beat = now + self.terms.settings.heartbeat;
        self.unanswered.push_back((self.beats, now));
        if self.unanswered.len() > BEATS {
            self.unanswered.pop_front();
        }
        self.beats
    }

    fn review_every(&mut self) {
        let settings = self.terms.settings;
        self.shares.restless(|_, share| share.review_all(&settings));
    }
}
