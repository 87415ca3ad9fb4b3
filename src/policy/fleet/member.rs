//! A router as one of a group: which slots it may use.
//!
//! The shell tells of replicas, of requests that wait and of streams; before a request goes to a replica it asks
//! [`Member::start`], at that moment, and says [`Member::finish`] at its end. After every call there may be something to
//! send ([`Member::outgoing`]); at [`Member::wake_at`] it calls [`Member::tick`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Claim, Deployment, Epoch, Queue, ReplicaKey, Settings, ToCoordinator, ToMember};

mod share;
mod talk;
use share::Share;

/// After so many heartbeats without an answer a stream is taken for dead.
const DEAF: u32 = 3;
/// So many beats may be unanswered: a later answer to an older one renews nothing.
const BEATS: usize = 16;

/// The state of one router.
#[derive(Debug, Clone, Hash)]
pub struct Member {
    settings: Settings,
    kind: Kind,
    /// The highest seen.
    epoch: Epoch,
    session: u64,
    phase: Phase,
    /// Leased slots may be spent before this.
    valid_until: Instant,
    /// A router that has just started waits as long as a lease for a coordinator.
    fallback_from: Instant,
    beats: u64,
    answered: u64,
    /// Beats that are not answered, and when they were sent.
    unanswered: VecDeque<(u64, Instant)>,
    next_beat: Instant,
    /// When the coordinator was last heard, or a session begun.
    heard: Instant,
    /// How many routers there are, and which of them this is.
    group: (u32, u32),
    shares: BTreeMap<Deployment, Share>,
    hold: BTreeMap<Deployment, Duration>,
    is_retiring: bool,
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

impl Member {
    /// Of a router that has just started: it holds nothing.
    pub fn new(settings: Settings, kind: Kind, now: Instant) -> Self {
        Self {
            settings,
            kind,
            epoch: Epoch::default(),
            session: 0,
            phase: Phase::Apart,
            valid_until: now,
            fallback_from: now + settings.lease,
            beats: 0,
            answered: 0,
            unanswered: VecDeque::new(),
            next_beat: now,
            heard: now,
            group: (1, 0),
            shares: BTreeMap::new(),
            hold: BTreeMap::new(),
            is_retiring: false,
        }
    }

    /// A replica may have `cap` requests in flight; none when it is not to be used any more. `is_fit` is whether this
    /// router can use it now. `hold` is how long a request on it may last after the lease has expired.
    pub fn set_replica(&mut self, key: &ReplicaKey, cap: u32, is_fit: bool, hold: Duration) {
        let group = self.group;
        let (open, is_retiring) = (self.is_open(), self.is_retiring);
        let share = self.share(&key.deployment);
        share.set(key, cap, is_fit && !is_retiring);
        share.spread(group.0, group.1);
        self.hold.insert(key.deployment.clone(), hold);
        if open {
            self.review(&key.deployment);
        }
    }

    /// There are `size` routers; in the order that all see, this is number `rank`, from 0.
    pub fn set_group(&mut self, size: u32, rank: u32) {
        self.group = (size, rank);
        self.shares.values_mut().for_each(|share| share.spread(size, rank));
    }

    /// Requests wait for a slot of a deployment, or none any more. To be told whenever it changes.
    pub fn set_queue(&mut self, deployment: &Deployment, queue: Option<Queue>) {
        let queue = queue.filter(|_| !self.is_retiring);
        self.share(deployment).set_queue(queue);
        if queue.is_none() && self.is_open() {
            self.review(deployment);
        }
    }

    /// What the router goes by.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.kind {
            Kind::Alone => Standing::Alone,
            _ if now < self.valid_until => Standing::Leased,
            Kind::Available if now >= self.fallback_from.max(self.valid_until) => Standing::Fallback,
            _ => Standing::Nothing,
        }
    }

    /// How many requests may be in flight on a replica from here, as of `now`.
    pub fn allowed(&self, key: &ReplicaKey, now: Instant) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.allowed(key, self.standing(now)))
    }

    /// A request is about to go to a replica. `None`: it may not. `now` is the time of this moment, not of before a wait.
    pub fn start(&mut self, key: &ReplicaKey, now: Instant) -> Option<Right> {
        let standing = self.standing(now);
        self.shares.get_mut(&key.deployment)?.start(key, standing)
    }

    /// The request has ended, or is aborted; `right` is what it was started by. The slot may be gone after that: who waits
    /// here asks [`Member::start`] again.
    pub fn finish(&mut self, key: &ReplicaKey, right: Right) {
        let may_return = self.is_open();
        let settings = self.settings;
        if let Some(share) = self.shares.get_mut(&key.deployment) {
            share.finish(key, right, may_return, &settings);
        }
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
        let is_deaf = now >= self.heard + self.settings.heartbeat * DEAF;
        self.kind != Kind::Alone && (matches!(self.phase, Phase::Apart) || is_deaf)
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The router ends: it takes no more requests, and gives back each slot as it becomes free. When nothing is in flight
    /// [`Member::outgoing`] says good-bye.
    pub fn retire(&mut self) {
        self.is_retiring = true;
        self.shares.values_mut().for_each(Share::close);
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
        let settings = self.settings;
        if self.is_open() && self.kind != Kind::Alone {
            for share in self.shares.values_mut() {
                share.retire_idle(now, &settings);
            }
        }
        let overdue = self.shares.iter().filter(|(deployment, _)| now >= self.abort_at(deployment));
        let overdue = overdue.filter(|_| self.kind != Kind::Alone);
        overdue.flat_map(|(_, share)| share.busy().cloned()).collect()
    }

    /// When to [`Member::tick`] and look at [`Member::outgoing`] at the latest, if nothing else happens.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.kind == Kind::Alone {
            return None;
        }
        let cut_off = [self.valid_until, self.fallback_from.max(self.valid_until)].into_iter().filter(|at| *at > now);
        let aborts = self.shares.iter().filter(|(_, share)| share.busy().next().is_some());
        let aborts = aborts.map(|(deployment, _)| self.abort_at(deployment));
        let open = self.is_open().then(|| {
            let shares = self.shares.values().filter_map(|share| share.wake_at(&self.settings));
            let now = self.shares.values().any(|share| share.has_news() || share.needs_window()).then_some(now);
            shares.chain([self.next_beat]).chain(now)
        });
        // Once it is over [`Member::is_lost`] says so until there is another stream: there is nothing to wake up for.
        let lost = self.session().map(|_| self.heard + self.settings.heartbeat * DEAF).filter(|at| *at > now);
        cut_off.chain(aborts).chain(open.into_iter().flatten()).chain(lost).min()
    }

    /// What is to be sent, if anything.
    pub fn outgoing(&mut self, now: Instant) -> Option<ToCoordinator> {
        match self.phase {
            Phase::Greeting => Some(self.hello(now)),
            Phase::Open => self.report(now),
            _ => None,
        }
    }

    /// Slots held, requests in flight by lease, and without, of a deployment.
    pub fn count(&self, deployment: &Deployment) -> (u32, u32, u32) {
        self.shares.get(deployment).map(Share::count).unwrap_or_default()
    }

    /// Whether every slot of a deployment that is held is busy.
    pub fn is_spent(&self, deployment: &Deployment) -> bool {
        self.shares.get(deployment).is_none_or(Share::is_spent)
    }

    /// Slots held of a replica, whether the lease is valid or not.
    pub fn held(&self, key: &ReplicaKey) -> u32 {
        self.shares.get(&key.deployment).map_or(0, |share| share.held(key))
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    fn share(&mut self, deployment: &Deployment) -> &mut Share {
        self.shares.entry(deployment.clone()).or_insert_with(Share::new)
    }

    fn review(&mut self, deployment: &Deployment) {
        let settings = self.settings;
        self.share(deployment).review_all(&settings);
    }

    /// When requests that are still in flight by the right of a lease have to be aborted, unless it is renewed before.
    pub fn abort_at(&self, deployment: &Deployment) -> Instant {
        self.valid_until + self.hold.get(deployment).copied().unwrap_or_default()
    }

    fn next_number(&mut self, now: Instant) -> u64 {
        self.beats += 1;
        self.next_beat = now + self.settings.heartbeat;
        self.unanswered.push_back((self.beats, now));
        if self.unanswered.len() > BEATS {
            self.unanswered.pop_front();
        }
        self.beats
    }

    fn review_every(&mut self) {
        let settings = self.settings;
        self.shares.values_mut().for_each(|share| share.review_all(&settings));
    }
}
