//! A term of a coordinator, and a member as it knows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::{Deployment, Epoch, Lot, MemberId, ReplicaKey, Settings, ToMember, Update, Wanted};
use super::load::Reported;
use super::pool::Told;

/// Who may hold slots from earlier terms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Former {
    /// No member but these: [`Ledger::roster`](super::Ledger::roster), as the last coordinator has recorded it. None of
    /// them, where there was no term before.
    Only(BTreeSet<MemberId>),
    /// It is not known.
    Anybody,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Term {
    pub(super) epoch: Epoch,
    /// When it began here.
    pub(super) since: Instant,
    /// When this router had last heard an earlier coordinator.
    pub(super) heard: Option<Instant>,
    /// From when on nothing is granted or renewed.
    pub(super) until: Instant,
    /// Who may hold slots from earlier terms and has not reported yet.
    pub(super) awaited: Former,
    /// When the last of those that are known to have ended had surely ended.
    pub(super) ended: Option<Instant>,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) session: u64,
    /// Whether its messages count. If not, it has to begin a new session.
    pub(super) is_open: bool,
    /// Of the lease.
    pub(super) renewed: Instant,
    /// When its process had surely ended.
    pub(super) ended: Option<Instant>,
    /// Beats that were answered lately, and when.
    pub(super) answers: VecDeque<(u64, Instant)>,
    /// Its last beat was sent after this.
    pub(super) lived: Option<Instant>,
    /// Slots granted in this session, by deployment.
    pub(super) granted: BTreeMap<Deployment, u64>,
    pub(super) loads: BTreeMap<Deployment, Reported>,
    pub(super) outbox: Outbox,
}

#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Outbox {
    pub(super) welcome: Option<(u64, Vec<Lot>)>,
    pub(super) beat: Option<u64>,
    pub(super) granted: BTreeMap<ReplicaKey, u32>,
    pub(super) keep: BTreeMap<ReplicaKey, u32>,
    pub(super) wanted: BTreeMap<Deployment, Told>,
}

impl Term {
    /// When nobody who has not reported can have anything in flight on a replica, whoever it is.
    pub(super) fn silent(&self, hold: Duration, settings: &Settings) -> Instant {
        // The last coordinator renewed leases until this term began, or until its members' word was too old: this router's,
        // which is one of them.
        let vouched = self.heard.unwrap_or(self.since) + settings.surely(settings.vouch);
        self.since.max(vouched) + settings.surely(settings.lease) + settings.surely(hold)
    }

    /// The same, by what is known of who it can be. `None`: nobody.
    pub(super) fn doubt_until(&self, hold: Duration, settings: &Settings) -> Option<Instant> {
        let silent = self.silent(hold, settings);
        match &self.awaited {
            Former::Only(awaited) if awaited.is_empty() => {
                self.ended.map(|ended| (ended + settings.surely(hold)).min(silent))
            }
            _ => Some(silent),
        }
    }
}

impl Member {
    pub(super) fn new(id: MemberId, now: Instant) -> Self {
        Self {
            id,
            session: 0,
            is_open: false,
            renewed: now,
            ended: None,
            answers: VecDeque::new(),
            lived: None,
            granted: BTreeMap::new(),
            loads: BTreeMap::new(),
            outbox: Outbox::default(),
        }
    }

    /// When it has surely stopped to spend its slots, if it is not heard of again.
    pub(super) fn expiry(&self, settings: &Settings) -> Instant {
        self.renewed + settings.surely(settings.lease)
    }

    /// When nothing can be in flight on its slots any more, if it is not heard of again.
    pub(super) fn lapse(&self, hold: Duration, settings: &Settings) -> Instant {
        let hold = settings.surely(hold);
        let silent = self.expiry(settings) + hold;
        self.ended.map_or(silent, |ended| silent.min(ended + hold))
    }
}

impl Outbox {
    pub(super) fn flush(&mut self, epoch: Epoch, session: u64, now: Instant) -> Vec<ToMember> {
        let outbox = std::mem::take(self);
        let mut messages = Vec::new();
        if let Some((beat, keep)) = outbox.welcome {
            messages.push(ToMember::Welcome { epoch, session, beat, keep });
        }
        let age = |told: &Told| now.saturating_duration_since(told.oldest);
        let wanted = outbox.wanted.iter().map(|(deployment, told)| Wanted {
            deployment: deployment.clone(),
            slots: told.slots,
            oldest: age(told),
        });
        let update = Update {
            epoch,
            session,
            beat: outbox.beat,
            granted: outbox.granted.into_iter().collect(),
            keep: outbox.keep.into_iter().collect(),
            wanted: wanted.collect(),
        };
        let is_empty = update.granted.is_empty() && update.keep.is_empty() && update.wanted.is_empty();
        if update.beat.is_some() || !is_empty {
            messages.push(ToMember::Update(update));
        }
        messages
    }
}
