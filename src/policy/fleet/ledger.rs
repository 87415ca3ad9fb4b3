//! The coordinator: where every slot is, and where it goes.
//!
//! The shell says when the router leads and until when ([`Ledger::lead`], [`Ledger::extend`]), what replicas there are,
//! and hands over what members say ([`Ledger::receive`]); then [`Ledger::outgoing`] says what to send. Messages may be
//! taken in together and answered together: slots are moved when it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Deployment, Epoch, MemberId, ReplicaKey, Settings};
use super::{ToCoordinator, ToMember};

mod load;
mod pool;
mod receive;
mod term;
use load::Sample;
use pool::{LONGEST, Pool, Seat};
pub use term::Former;
use term::{Member, Outbox, Term};

/// How many answers are remembered, to know by a beat when its member lived.
const ANSWERS: usize = 8;

/// The state of one coordinator.
#[derive(Debug, Clone, Hash)]
pub struct Ledger {
    settings: Settings,
    term: Option<Term>,
    /// The highest epoch that a member has spoken of.
    highest: Epoch,
    pools: BTreeMap<Deployment, Pool>,
    seats: BTreeMap<Seat, Member>,
    by_id: BTreeMap<MemberId, Seat>,
    next_seat: Seat,
    refusals: Vec<(MemberId, ToMember)>,
    samples: BTreeMap<Deployment, Sample>,
}

/// Where the slots of a deployment are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Slots {
    /// With the coordinator.
    pub free: u32,
    /// With members whose lease has not expired.
    pub leased: u32,
    /// With members whose lease has expired, or perhaps with members of an earlier term.
    pub quarantined: u32,
}

impl Ledger {
    /// Of a router that does not lead.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            term: None,
            highest: Epoch::default(),
            pools: BTreeMap::new(),
            seats: BTreeMap::new(),
            by_id: BTreeMap::new(),
            next_seat: 0,
            refusals: Vec::new(),
            samples: BTreeMap::new(),
        }
    }

    /// The router leads, until `until` unless [`Ledger::extend`] says later. `now` is after the term was won: before, an
    /// earlier coordinator may have granted slots by its own right.
    pub fn lead(&mut self, epoch: Epoch, until: Instant, former: Former, now: Instant) {
        let in_doubt = former != Former::Only(BTreeSet::new());
        self.term = Some(Term { epoch, since: now, until, heard: None, awaited: former, ended: None });
        self.highest = self.highest.max(epoch);
        (self.seats, self.by_id) = (BTreeMap::new(), BTreeMap::new());
        for pool in self.pools.values_mut() {
            pool.restart(in_doubt);
        }
    }

    /// This router has last heard an earlier coordinator then, see [`Member::heard_at`](super::member::Member::heard_at): its
    /// word has kept no earlier term alive for longer than [`Settings::vouch`] after that. Where it is not said, that is
    /// counted from when the term began.
    pub fn last_heard(&mut self, at: Instant) {
        if let Some(term) = &mut self.term {
            term.heard = Some(at.min(term.since));
        }
    }

    /// The term goes on until `until`, which may be over already: without a break, or nobody else has led since.
    pub fn extend(&mut self, until: Instant) {
        if let Some(term) = &mut self.term {
            term.until = until;
        }
    }

    /// The router does not lead any more. Replicas are remembered.
    pub fn resign(&mut self) {
        self.term = None;
        self.refusals.extend(
            self.seats
                .values()
                .filter(|member| member.is_open)
                .map(|member| (member.id.clone(), ToMember::Refused { epoch: self.highest, session: member.session })),
        );
        (self.seats, self.by_id) = (BTreeMap::new(), BTreeMap::new());
        for pool in self.pools.values_mut() {
            pool.restart(false);
        }
    }

    /// The term, while it has not ended.
    pub fn leads(&self, now: Instant) -> Option<Epoch> {
        self.term.as_ref().filter(|term| now < term.until).map(|term| term.epoch)
    }

    /// A higher epoch than the router's own, if a member has spoken of one: the shell must resign.
    pub fn superseded(&self) -> Option<Epoch> {
        self.term.as_ref().filter(|term| term.epoch < self.highest).map(|_| self.highest)
    }

    /// A replica may have `cap` requests in flight; none when it is not to be used any more. `hold` is how long a request
    /// on a replica of the deployment may last after its router has ended or is cut off.
    pub fn set_replica(&mut self, key: &ReplicaKey, cap: u32, hold: Duration, now: Instant) {
        let pool = self.pool(&key.deployment, hold, now);
        pool.extend_hold(hold);
        pool.set(key, cap);
    }

    /// A replica is gone: nothing runs on it any more.
    pub fn forget_replica(&mut self, key: &ReplicaKey) {
        if let Some(pool) = self.pools.get_mut(&key.deployment) {
            pool.forget(key);
            if pool.is_empty() {
                self.pools.remove(&key.deployment);
                self.samples.remove(&key.deployment);
            }
        }
    }

    fn pool(&mut self, deployment: &Deployment, hold: Duration, now: Instant) -> &mut Pool {
        let doubt = self.term.as_ref().and_then(|term| term.doubt_until(hold, &self.settings));
        let in_doubt = doubt.is_some_and(|until| now < until);
        self.pools.entry(deployment.clone()).or_insert_with(|| Pool::new(in_doubt))
    }

    /// There is no such deployment any more. What is in flight there counts to its end, and is forgotten with the next.
    pub fn forget(&mut self, deployment: &Deployment) {
        self.samples.remove(deployment);
        self.pools.retain(|_, pool| !pool.is_unused());
    }

    /// The stream with a member is broken.
    pub fn disconnected(&mut self, id: &MemberId, session: u64) {
        let seat = self.by_id.get(id).copied();
        if let Some(seat) = seat.filter(|seat| self.seats[seat].session == session) {
            self.close(seat);
        }
    }

    /// A member's process has surely ended, whether it had a session or not.
    pub fn ended(&mut self, id: &MemberId, now: Instant) {
        if let Some(&seat) = self.by_id.get(id) {
            self.close(seat);
            if let Some(member) = self.seats.get_mut(&seat) {
                member.ended.get_or_insert(now);
            }
        }
        let Some(term) = &mut self.term else { return };
        if let Former::Only(awaited) = &mut term.awaited
            && awaited.remove(id)
        {
            term.ended = Some(now);
        }
    }

    /// Who may hold slots. Has to be recorded where the next coordinator will find it, before [`Ledger::receive`] is given
    /// the first message of somebody who is not among them.
    pub fn roster(&self, now: Instant) -> Former {
        let hold = self.pools.values().map(Pool::hold).max().unwrap_or(LONGEST);
        let here = self.by_id.keys().cloned();
        match self.term.as_ref().filter(|term| now < term.silent(hold, &self.settings)).map(|term| &term.awaited) {
            Some(Former::Anybody) => Former::Anybody,
            Some(Former::Only(awaited)) => Former::Only(awaited.iter().cloned().chain(here).collect()),
            None => Former::Only(here.collect()),
        }
    }

    /// When all of these had last seen no higher epoch, as far as they have proven it: they heard of it after they had been
    /// told something at that time. `None` where one of them has no session.
    ///
    /// A coordinator that cannot renew its term, and is sure that nobody but these could have won another, may extend it
    /// to this and [`Settings::vouch`].
    pub fn vouched<'a>(&self, members: impl IntoIterator<Item = &'a MemberId>, now: Instant) -> Option<Instant> {
        if self.superseded().is_some() {
            return None;
        }
        let lived = members.into_iter().map(|id| {
            let member = self.seats.get(self.by_id.get(id)?).filter(|member| member.is_open)?;
            member.lived
        });
        lived.collect::<Option<Vec<_>>>().map(|lived| lived.into_iter().min().unwrap_or(now))
    }

    /// A member says something.
    pub fn receive(&mut self, from: &MemberId, message: ToCoordinator, now: Instant) {
        let (epoch, session) = match &message {
            ToCoordinator::Hello(hello) => (hello.epoch, hello.session),
            ToCoordinator::Report(report) => (report.epoch, report.session),
            ToCoordinator::Bye { epoch, session } => (*epoch, *session),
        };
        self.highest = self.highest.max(epoch);
        let Some(term_epoch) = self.leads(now).filter(|own| *own == self.highest) else {
            return self.refuse(from, session);
        };
        match message {
            ToCoordinator::Hello(hello) => self.hello(from, hello, now),
            ToCoordinator::Report(_) | ToCoordinator::Bye { .. } if epoch != term_epoch => self.refuse(from, session),
            message => {
                let seat = self.by_id.get(from).copied();
                let known = seat.filter(|seat| self.seats[seat].session == session && self.seats[seat].is_open);
                match (known, message) {
                    (Some(seat), ToCoordinator::Report(report)) => self.report(from, seat, report, now),
                    (Some(seat), ToCoordinator::Bye { .. }) => self.remove(seat),
                    _ => self.refuse(from, session),
                }
            }
        }
    }

    /// Time passes: what was in quarantine is free when it surely is.
    pub fn tick(&mut self, now: Instant) {
        let Some(term) = &self.term else { return };
        for pool in self.pools.values_mut().filter(|pool| pool.in_doubt) {
            if term.doubt_until(pool.hold(), &self.settings).is_none_or(|until| until <= now) {
                pool.settle();
            }
        }
        for seat in self.seats.keys().copied().collect::<Vec<_>>() {
            self.expire(seat, now);
        }
    }

    /// When to [`Ledger::tick`] at the latest, if nothing else happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let term = self.term.as_ref()?;
        let doubtful = self.pools.values().filter(|pool| pool.in_doubt);
        let doubt = doubtful.map(|pool| term.doubt_until(pool.hold(), &self.settings).unwrap_or(term.since));
        let lapses = self.seats.iter().filter_map(|(&seat, member)| {
            let pools = self.pools.values().filter(|pool| pool.held_by(seat) > 0);
            pools.map(|pool| member.lapse(pool.hold(), &self.settings)).min()
        });
        doubt.chain(lapses).min()
    }

    /// Moves slots to where requests wait, and returns what is to be sent.
    pub fn outgoing(&mut self, now: Instant) -> Vec<(MemberId, ToMember)> {
        let mut messages = std::mem::take(&mut self.refusals);
        let Some(epoch) = self.leads(now) else { return messages };
        if self.superseded().is_some() {
            return messages;
        }
        self.move_slots(now);
        for member in self.seats.values_mut().filter(|member| member.is_open) {
            let id = &member.id;
            messages.extend(
                member.outbox.flush(epoch, member.session, now).into_iter().map(|message| (id.clone(), message)),
            );
        }
        messages
    }

    /// Where the slots of a deployment are.
    pub fn slots(&self, deployment: &Deployment, now: Instant) -> Slots {
        let Some(pool) = self.pools.get(deployment) else { return Slots::default() };
        let (free, out, unaccounted) = pool.count();
        let expired = self.seats.iter().filter(|(_, member)| now >= member.expiry(&self.settings));
        let expired: u32 = expired.map(|(&seat, _)| pool.held_by(seat)).sum();
        Slots { free, leased: out - expired, quarantined: unaccounted + expired }
    }

    /// How many slots of a replica each member holds, expired leases included.
    pub fn holders(&self, key: &ReplicaKey) -> Vec<(MemberId, u32)> {
        let leases = self.pools.get(&key.deployment).map(|pool| pool.leases(key)).unwrap_or_default();
        leases.iter().filter_map(|(seat, slots)| Some((self.seats.get(seat)?.id.clone(), *slots))).collect()
    }

    /// Checks that what is kept twice is equal; for tests.
    ///
    /// # Errors
    /// What does not add up, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.pools.values().try_for_each(Pool::audit)
    }

    /// Earlier processes of the same name that may hold slots.
    fn before(&self, id: &MemberId) -> Vec<MemberId> {
        let awaited = match self.term.as_ref().map(|term| &term.awaited) {
            Some(Former::Only(awaited)) => Some(awaited.iter()),
            _ => None,
        };
        let known = self.by_id.keys().chain(awaited.into_iter().flatten());
        known.filter(|other| other.name == id.name && other.incarnation < id.incarnation).cloned().collect()
    }

    fn refuse(&mut self, to: &MemberId, session: u64) {
        self.refusals.push((to.clone(), ToMember::Refused { epoch: self.highest, session }));
    }

    fn move_slots(&mut self, now: Instant) {
        for (deployment, pool) in self.pools.iter_mut().filter(|(_, pool)| pool.changed) {
            pool.changed = false;
            let seats = &mut self.seats;
            pool.distribute(now, |seat, key| {
                if let Some(member) = seats.get_mut(&seat) {
                    *member.granted.entry(deployment.clone()).or_default() += 1;
                    *member.outbox.granted.entry(key.clone()).or_default() += 1;
                    member.outbox.keep.remove(key);
                }
            });
            pool.reduce(|seat, key, keep| {
                if let Some(member) = seats.get_mut(&seat) {
                    member.outbox.keep.insert(key.clone(), keep);
                }
            });
            pool.tell(now, &self.settings, |seat, told| {
                if let Some(member) = seats.get_mut(&seat) {
                    member.outbox.wanted.insert(deployment.clone(), told);
                }
            });
            pool.changed = false;
        }
    }

    fn seat(&mut self, id: &MemberId, now: Instant) -> Seat {
        if let Some(seat) = self.by_id.get(id) {
            return *seat;
        }
        let seat = self.next_seat;
        self.next_seat += 1;
        self.by_id.insert(id.clone(), seat);
        self.seats.insert(seat, Member::new(id.clone(), now));
        seat
    }

    /// Nothing more is sent to a member or taken from it, until it begins a session.
    fn close(&mut self, seat: Seat) {
        if let Some(member) = self.seats.get_mut(&seat) {
            (member.is_open, member.outbox) = (false, Outbox::default());
            self.pools.values_mut().for_each(|pool| pool.unseat(seat));
        }
    }

    fn remove(&mut self, seat: Seat) {
        self.close(seat);
        for pool in self.pools.values_mut() {
            pool.release(seat);
        }
        if let Some(member) = self.seats.remove(&seat) {
            self.by_id.remove(&member.id);
        }
    }

    /// What follows from a member's silence.
    fn expire(&mut self, seat: Seat, now: Instant) {
        let Some(member) = self.seats.get(&seat) else { return };
        let silent = now >= member.expiry(&self.settings);
        let mut lapsed = false;
        for pool in self.pools.values_mut().filter(|pool| pool.held_by(seat) > 0) {
            if now >= member.lapse(pool.hold(), &self.settings) {
                pool.release(seat);
                lapsed = true;
            }
        }
        // Nothing more for who may be gone; it can still renew.
        if silent && member.is_open {
            self.pools.values_mut().for_each(|pool| pool.want(seat, None, 0, now));
        }
        if lapsed {
            self.close(seat);
        }
        let gone = |member: &Member| !member.is_open && (silent || member.ended.is_some());
        if self.seats.get(&seat).is_some_and(gone) && self.pools.values().all(|pool| pool.held_by(seat) == 0) {
            self.remove(seat);
        }
    }
}
