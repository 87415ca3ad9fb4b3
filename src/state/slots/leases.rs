//! The slots of replicas that other routers use too: what this router may use of them is its share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Granted, Handed, Inner, Slots};
use crate::model::endpoint::RequestSettings;
use crate::policy::admit::ReplicaId;
use crate::policy::fleet::member::{Right, Share, Standing};
use crate::policy::fleet::{Deployment, Load, Queue, ReplicaKey};
use crate::policy::health::Fitness;
use crate::policy::scale::Signals;
use crate::state::membership::Membership;

/// Of one deployment.
#[derive(Debug)]
pub(super) struct Leases {
    membership: Arc<Membership>,
    deployment: Deployment,
    share: Share,
    /// By [`ReplicaId::index`].
    keys: Vec<Option<ReplicaKey>>,
    /// What limits were last set by.
    standing: Standing,
    cap: u32,
    hold: Duration,
    max_queue_wait: Duration,
    /// Of the queue, as the share knows it.
    waiting: u32,
    /// Whether what the group has to know of replicas is another than when it was last looked at.
    is_changed: bool,
    /// Whether the control plane has been told that there is something to look at.
    is_told: bool,
}

/// What the group has to know of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lent {
    /// Which.
    pub key: ReplicaKey,
    /// Requests it may have in flight, from all routers.
    pub cap: u32,
    /// How long one may last after its router was cut off.
    pub hold: Duration,
}

impl Leases {
    pub(super) fn new(membership: Arc<Membership>, deployment: Deployment, settings: &RequestSettings) -> Self {
        let standing = membership.terms().standing(Instant::now());
        let (cap, hold) = terms_of(settings);
        let share = Share::default();
        Self {
            membership,
            deployment,
            share,
            keys: Vec::new(),
            standing,
            cap,
            hold,
            max_queue_wait: settings.max_queue_wait,
            waiting: 0,
            is_changed: false,
            is_told: false,
        }
    }

    pub(super) fn membership(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// What all routers call the replica at `id`.
    pub(super) fn name(&mut self, id: ReplicaId, name: &str) {
        if self.keys.len() <= id.index() {
            self.keys.resize_with(id.index() + 1, || None);
        }
        self.keys[id.index()] = Some(ReplicaKey { deployment: self.deployment.clone(), name: name.into() });
    }

    fn key(&self, id: ReplicaId) -> Option<&ReplicaKey> {
        self.keys.get(id.index()).and_then(Option::as_ref)
    }
}

fn terms_of(settings: &RequestSettings) -> (u32, Duration) {
    (settings.max_concurrent_per_instance.get(), settings.timeout)
}

/// Each does nothing where the router is alone. Whoever is granted a slot has to be in flight for the share before it is
/// asked anything else, or it may give that slot back.
impl Inner {
    /// Time passes: what may not be used any more is not.
    pub(super) fn expire(&mut self, now: Instant) {
        let Some(leases) = &mut self.leases else { return };
        let standing = match leases.membership.terms().standing(now) {
            // Only the control plane knows whether the router was cut off, or asleep.
            Standing::Fallback if leases.standing != Standing::Fallback => Standing::Nothing,
            other => other,
        };
        if standing != leases.standing {
            leases.standing = standing;
            self.limit_all(|may, might| may < might);
        }
    }

    /// Changed settings of the deployment.
    pub(super) fn lend(&mut self, slots: &Arc<Slots>, settings: &RequestSettings) -> Vec<Handed> {
        if let Some(leases) = &mut self.leases {
            (leases.cap, leases.hold) = terms_of(settings);
            leases.max_queue_wait = settings.max_queue_wait;
        }
        self.refit_all(slots)
    }

    /// Whether replicas can be used has changed.
    pub(super) fn refit_all(&mut self, slots: &Arc<Slots>) -> Vec<Handed> {
        let ids: Vec<_> = if self.leases.is_some() { self.admission.ids().collect() } else { Vec::new() };
        ids.into_iter().flat_map(|id| self.refit(slots, id)).collect()
    }

    /// Whether a replica can be used has changed.
    pub(super) fn refit(&mut self, slots: &Arc<Slots>, id: ReplicaId) -> Vec<Handed> {
        let Some(leases) = &mut self.leases else { return Vec::new() };
        let Some(Some(key)) = leases.keys.get(id.index()) else { return Vec::new() };
        let fitness = self.admission.replica(id).1;
        let cap = if fitness.is_some() { leases.cap } else { 0 };
        let is_fit = !matches!(fitness, Some(Fitness::Aside(_)));
        leases.share.set_replica(key, cap, is_fit, leases.hold, &leases.membership.terms());
        leases.is_changed = true;
        let grants = self.limit_all(|may, might| may != might);
        self.slots(slots, grants, Instant::now())
    }

    /// A request goes to a replica: by what right. `None`: the router is alone.
    pub(super) fn started(&mut self, id: ReplicaId) -> Option<Right> {
        let leases = self.leases.as_mut()?;
        let right = leases.key(id).cloned().and_then(|key| leases.share.start(&key, leases.standing));
        if right == Some(Right::Borrowed) {
            leases.membership.borrowed.inc();
        }
        debug_assert!(right.is_some(), "more was admitted than is leased");
        right
    }

    /// A request has ended.
    pub(super) fn finished(&mut self, id: ReplicaId, right: Option<Right>) {
        let Some(leases) = &mut self.leases else { return };
        let (Some(right), Some(key)) = (right, leases.keys.get(id.index()).and_then(Option::as_ref)) else { return };
        leases.share.finish(key, right, &leases.membership.terms());
        let allowed = leases.share.allowed(key, leases.standing);
        // More than before is for who looks next: here nobody would be given what is granted by it.
        if allowed < self.admission.leased(id) {
            drop(self.admission.set_leased(id, allowed));
        }
    }

    /// Whether there is a coordinator that would answer who asks for a slot.
    pub(super) fn is_leased(&self) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.standing == Standing::Leased)
    }

    /// Requests that wait at other routers, as far as the coordinator has said, and for how long they do at most.
    pub(super) fn waiting_elsewhere(&self) -> (usize, Duration) {
        let Some(leases) = &self.leases else { return (0, Duration::ZERO) };
        let everywhere = leases.membership.group().present.get(&leases.deployment).map_or(0, |(_, waiting)| *waiting);
        ((everywhere as usize).saturating_sub(self.admission.waiting()), leases.max_queue_wait)
    }

    /// After every change: has the share know of the queue, and the control plane look where that is due.
    pub(super) fn settle(&mut self, slots: &Arc<Slots>) {
        let is_news = self.note();
        if let Some(leases) = self.leases.as_mut().filter(|leases| is_news && !leases.is_told) {
            leases.is_told = true;
            leases.membership.tell(slots);
        }
    }

    /// Has the share know of the queue, and limits be what it allows. Returns whether the control plane has to look.
    fn note(&mut self) -> bool {
        let Some(leases) = &mut self.leases else { return false };
        let line = self.admission.line();
        let length = line.map_or(0, |line| u32::try_from(line.length).unwrap_or(u32::MAX));
        if length > 0 || leases.waiting > 0 {
            let queue = line.map(|line| Queue { length, oldest: line.oldest, newest: line.newest });
            leases.share.set_queue(queue, &leases.membership.terms());
        }
        if leases.share.has_news() {
            // Slots may have gone back that nobody used.
            drop(self.limit_all(|may, might| may < might));
        }
        let Some(leases) = &mut self.leases else { return false };
        let is_longer = length > std::mem::replace(&mut leases.waiting, length);
        is_longer || leases.is_changed || leases.share.has_news() || leases.share.needs_window()
    }

    /// Sets limits by what the share allows, as far as `when` says of what is allowed and what was. Returns who gets slots.
    fn limit_all(&mut self, when: impl Fn(u32, u32) -> bool) -> Vec<Granted> {
        let mut grants = Vec::new();
        for id in self.admission.ids().collect::<Vec<_>>() {
            let Some(leases) = &self.leases else { break };
            let allowed = leases.key(id).map_or(0, |key| leases.share.allowed(key, leases.standing));
            if when(allowed, self.admission.leased(id)) {
                grants.extend(self.admission.set_leased(id, allowed));
            }
        }
        grants
    }
}

impl Slots {
    /// The control plane looks at the share, or changes it; who waits gets what there is then. `None`: the router is alone.
    pub fn look<T>(self: &Arc<Self>, now: Instant, with: impl FnOnce(&Deployment, &mut Share) -> T) -> Option<T> {
        let mut inner = self.lock();
        inner.pass(now);
        let leases = inner.leases.as_mut()?;
        leases.standing = leases.membership.terms().standing(now);
        (leases.is_told, leases.is_changed) = (false, false);
        let seen = with(&leases.deployment, &mut leases.share);
        let grants = inner.limit_all(|may, might| may != might);
        let handed = inner.slots(self, grants, now);
        // Whoever looks need not be told.
        inner.note();
        Self::hand_out(inner, handed);
        Some(seen)
    }

    /// What is in flight on a replica by the right of a lease must not be any more: see [`super::Slot::is_revoked`].
    pub fn revoke(&self, key: &ReplicaKey) {
        let inner = self.lock();
        let Some(leases) = &inner.leases else { return };
        for id in inner.admission.ids().filter(|id| leases.key(*id) == Some(key)) {
            if let Some(entry) = &inner.replicas[id.index()] {
                entry.replica.revocations.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What has gone on here and at all other routers since this was last called; for one caller only. `None`: another
    /// router knows, and is in charge.
    pub async fn signals_everywhere(&self, now: Instant) -> Option<Signals> {
        let shared = self.lock().leases.as_ref().map(|leases| (leases.membership.clone(), leases.deployment.clone()));
        match shared {
            None => Some(self.take_signals(now)),
            Some((membership, deployment)) => membership.signals(&deployment).await,
        }
    }

    /// Whether this router decides how many replicas there should be.
    pub fn is_in_charge(&self) -> bool {
        self.lock().leases.as_ref().is_none_or(|leases| leases.membership.is_in_charge())
    }

    /// Requests in flight and waiting, everywhere if that is known here.
    pub fn present(&self) -> (usize, usize) {
        let inner = self.lock();
        let shared = inner.leases.as_ref().filter(|leases| leases.membership.is_in_charge());
        let everywhere = shared.and_then(|of| of.membership.group().present.get(&of.deployment).copied());
        let here = inner.admission.occupancy();
        everywhere.map_or((here.busy, here.waiting), |(busy, waiting)| (busy as usize, waiting as usize))
    }

    /// What goes on here.
    pub fn load(&self, now: Instant) -> Load {
        let mut inner = self.lock();
        inner.pass(now);
        let seen = inner.admission.occupancy();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let busy = count(seen.busy + seen.busy_draining);
        Load { busy, waiting: count(seen.waiting), sums: inner.tally.sums() }
    }

    /// What the group has to know of the replicas that there are.
    pub fn lent(&self) -> Vec<Lent> {
        let inner = self.lock();
        let Some(leases) = &inner.leases else { return Vec::new() };
        let present = inner.admission.ids().filter(|id| inner.admission.replica(*id).1.is_some());
        let keys = present.filter_map(|id| leases.key(id).cloned());
        keys.map(|key| Lent { key, cap: leases.cap, hold: leases.hold }).collect()
    }
}
