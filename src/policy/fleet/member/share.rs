//! What one router holds of one deployment, and what waits there.
//!
//! The part of a member that a request touches: [`Share::start`] and [`Share::finish`] look at one replica.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::policy::fleet::{Claim, Demand, Deployment, Lot, Queue, ReplicaKey, Settings, Wanted, window};

use super::{Right, Standing, Terms};

mod stock;
use stock::{Stock, Yielded};

/// What a router holds of one deployment.
#[derive(Debug, Clone, Default, Hash)]
pub struct Share {
    stocks: BTreeMap<ReplicaKey, Stock>,
    /// How long a request may last after the lease has expired.
    hold: Duration,
    queue: Option<Queue>,
    /// What the coordinator was told of the queue, and when.
    told: Option<(Option<Queue>, Instant)>,
    /// Slots granted since that.
    granted_since: u32,
    /// Slots granted in this session.
    granted: u64,
    /// Slots that others would take, and since when they wait.
    wanted: Option<(u32, Instant)>,
    /// Of all replicas.
    held: u32,
    yielded: Yielded,
    returned: BTreeMap<ReplicaKey, u32>,
    barred: BTreeMap<ReplicaKey, bool>,
    window: Option<Instant>,
}

impl Share {
    /// A replica may have `cap` requests in flight; none when it is not to be used any more. `is_fit` is whether this
    /// router can use it now. `hold` is how long a request on it may last after the lease has expired.
    pub fn set_replica(&mut self, key: &ReplicaKey, cap: u32, is_fit: bool, hold: Duration, terms: &Terms) {
        self.set(key, cap, is_fit && !terms.is_retiring);
        self.hold = hold;
        self.spread(terms.group.0, terms.group.1);
        if terms.is_open {
            self.review_all(&terms.settings);
        }
    }

    /// Requests wait for a slot, or none any more. To be told whenever it changes.
    pub fn set_queue(&mut self, queue: Option<Queue>, terms: &Terms) {
        self.queue = queue.filter(|queue| queue.length > 0 && !terms.is_retiring);
        if queue.is_none() && terms.is_open {
            self.review_all(&terms.settings);
        }
    }

    /// How many requests may be in flight on a replica from here, for a router that stands so.
    pub fn allowed(&self, key: &ReplicaKey, standing: Standing) -> u32 {
        self.stocks.get(key).map_or(0, |stock| stock.allowed(standing))
    }

    pub(super) fn set(&mut self, key: &ReplicaKey, cap: u32, is_fit: bool) {
        let stock = self.stocks.entry(key.clone()).or_default();
        // The coordinator may remember from before that it was of no use here.
        let was_usable = stock.is_usable();
        (stock.cap, stock.is_unfit) = (cap, !is_fit);
        if was_usable != stock.is_usable() {
            self.barred.insert(key.clone(), was_usable);
        }
        self.forget(key);
    }

    /// Forgets a replica of which nothing is left.
    fn forget(&mut self, key: &ReplicaKey) {
        if self.stocks.get(key).is_some_and(|stock| stock.cap == 0 && stock.held == 0 && stock.in_flight() == 0) {
            self.stocks.remove(key);
        }
    }

    /// Divides the slots among `size` routers as well as can be done without talking: this one is number `rank`.
    pub(super) fn spread(&mut self, size: u32, rank: u32) {
        let known: Vec<_> = self.stocks.values_mut().filter(|stock| stock.cap > 0).collect();
        let (count, total) = (known.len(), known.iter().map(|stock| stock.cap).sum::<u32>());
        let most = known.iter().map(|stock| stock.cap).max().unwrap_or_default();
        let mut left = (total / size.max(1)).max(most);
        let first = count * rank as usize / size.max(1) as usize;
        let mut known = known;
        known.rotate_left(first.min(count));
        for stock in known {
            stock.fair = stock.cap.min(left);
            left -= stock.fair;
        }
    }

    /// A request is about to go to a replica. `None`: it may not. `standing` is as of this moment, not of before a wait.
    pub fn start(&mut self, key: &ReplicaKey, standing: Standing) -> Option<Right> {
        let stock = self.stocks.get_mut(key).filter(|stock| stock.in_flight() < stock.allowed(standing))?;
        stock.fresh = stock.fresh.saturating_sub(1);
        if standing == Standing::Fallback {
            stock.borrowed += 1;
            return Some(Right::Borrowed);
        }
        stock.busy += 1;
        stock.low[1] = stock.low[1].min(stock.idle());
        Some(Right::Leased)
    }

    /// The request has ended, or is aborted; `right` is what it was started by. Whether the slot stays here is decided now,
    /// before somebody who waits here could get it: who does asks [`Share::start`] again.
    pub fn finish(&mut self, key: &ReplicaKey, right: Right, terms: &Terms) {
        let Some(stock) = self.stocks.get_mut(key) else { return };
        match right {
            Right::Leased => stock.busy = stock.busy.saturating_sub(1),
            Right::Borrowed => stock.borrowed = stock.borrowed.saturating_sub(1),
        }
        if terms.is_open {
            self.review(key, &terms.settings);
        }
        self.forget(key);
    }

    /// Returns idle slots of a replica that should not be here.
    fn review(&mut self, key: &ReplicaKey, settings: &Settings) {
        let yields = self.yields(settings);
        let Some(stock) = self.stocks.get_mut(key) else { return };
        let idle = stock.idle();
        let surplus = match stock.keep {
            _ if !stock.is_usable() => idle,
            Some(keep) => idle.min(stock.held.saturating_sub(keep)),
            None => 0,
        };
        let spoken_for = if self.queue.is_some() { stock.fresh } else { 0 };
        let yields = idle.saturating_sub(spoken_for).min(yields).saturating_sub(surplus);
        if !stock.is_usable() && (stock.held > 0 || idle > 0) {
            self.barred.insert(key.clone(), true);
        }
        self.yielded.unsaid += yields;
        self.give_back(key, surplus + yields);
    }

    /// How many idle slots should rather go where requests have waited longer.
    fn yields(&self, settings: &Settings) -> u32 {
        match (self.wanted, self.queue) {
            (Some((_, since)), Some(queue)) if queue.oldest <= since + settings.patience => 0,
            (Some((slots, _)), _) => slots.min(self.yielded.room(self.held)),
            (None, _) => 0,
        }
    }

    /// Whether it matters that the coordinator answers what is said next.
    pub(super) fn has_yielded(&self) -> bool {
        self.yielded.unsaid > 0
    }

    /// All that was given up is said with this beat.
    pub(super) fn said_with(&mut self, beat: u64) {
        self.yielded.said_with(beat);
    }

    /// The coordinator has answered this beat.
    pub(super) fn heard(&mut self, beat: u64) {
        self.yielded.heard(beat);
    }

    pub(super) fn review_all(&mut self, settings: &Settings) {
        let wants: Vec<_> =
            self.stocks.iter().filter(|(_, stock)| stock.idle() > 0).map(|(key, _)| key.clone()).collect();
        for key in wants {
            self.review(&key, settings);
            self.forget(&key);
        }
    }

    fn give_back(&mut self, key: &ReplicaKey, slots: u32) {
        let Some(stock) = self.stocks.get_mut(key) else { return };
        if slots > 0 {
            stock.held -= slots;
            self.held -= slots;
            stock.fresh = stock.fresh.min(stock.idle());
            stock.low = stock.low.map(|low| low.min(stock.idle()));
            *self.returned.entry(key.clone()).or_default() += slots;
            self.wanted = self.wanted.map(|(wanted, since)| (wanted.saturating_sub(slots), since)).filter(|w| w.0 > 0);
        }
        if stock.keep.is_some_and(|keep| stock.held <= keep) {
            stock.keep = None;
        }
    }

    /// Returns what has been idle for a whole window and longer.
    pub(super) fn retire_idle(&mut self, now: Instant, settings: &Settings) {
        match self.window {
            None if self.stocks.values().any(|stock| stock.idle() > 0) => self.window = Some(now + settings.idle / 2),
            Some(end) if end <= now => {
                for key in self.stocks.keys().cloned().collect::<Vec<_>>() {
                    let Some(stock) = self.stocks.get_mut(&key) else { continue };
                    let surplus = stock.low[0].min(stock.low[1]).min(stock.idle());
                    stock.low = [stock.low[1], stock.idle()];
                    // Who it was for has left, or cannot use it.
                    stock.fresh = 0;
                    self.give_back(&key, surplus);
                    if let Some(stock) = self.stocks.get_mut(&key) {
                        stock.low[1] = stock.idle();
                    }
                    self.forget(&key);
                }
                let any = self.stocks.values().any(|stock| stock.idle() > 0);
                self.window = any.then(|| now + settings.idle / 2);
            }
            _ => {}
        }
    }

    pub(super) fn grant(&mut self, key: &ReplicaKey, slots: u32) {
        let stock = self.stocks.entry(key.clone()).or_default();
        stock.held += slots;
        self.held += slots;
        stock.fresh += slots;
        // There would be none to grant, if any of those that are here were too many.
        stock.keep = None;
        self.granted += u64::from(slots);
        self.granted_since += slots;
    }

    pub(super) fn keep(&mut self, key: &ReplicaKey, keep: u32) {
        if let Some(stock) = self.stocks.get_mut(key).filter(|stock| stock.held > keep) {
            stock.keep = Some(keep);
        }
    }

    pub(super) fn want(&mut self, wanted: &Wanted, now: Instant) {
        let since = now.checked_sub(wanted.oldest).unwrap_or(now);
        self.wanted = (wanted.slots > 0).then_some((wanted.slots, since));
    }

    /// Nothing more is started.
    pub(super) fn close(&mut self) {
        self.queue = None;
        self.stocks.values_mut().for_each(|stock| stock.is_unfit = true);
    }

    /// What is to be claimed in a new session: the leased slots while the lease is valid, and what is in flight anyway. When
    /// that is overdue, there is no right to it any more: the slots may be another's.
    pub(super) fn claims(&self, is_leased: bool, is_overdue: bool) -> impl Iterator<Item = Claim> {
        self.stocks.iter().filter_map(move |(key, stock)| {
            let held = if is_leased { stock.held.min(stock.keep.unwrap_or(u32::MAX)) } else { 0 };
            let slots = held.max(if is_overdue { 0 } else { stock.busy });
            let out = slots.max(stock.in_flight());
            (out > 0).then(|| Claim { replica: key.clone(), slots, out })
        })
    }

    /// A session begins: nothing that was to be said before counts.
    pub(super) fn begin(&mut self) {
        (self.told, self.wanted, self.granted, self.granted_since) = (None, None, 0, 0);
        self.returned.clear();
        self.barred.clear();
        self.yielded = Yielded::default();
    }

    /// The claims count. What is no longer claimed is not held.
    pub(super) fn hold<'a>(&mut self, claims: impl Iterator<Item = &'a Claim>) {
        self.stocks.values_mut().for_each(|stock| stock.held = 0);
        for claim in claims {
            // What was in flight may have ended since.
            self.stocks.entry(claim.replica.clone()).or_default().held = claim.out;
        }
        self.held = self.stocks.values().map(|stock| stock.held).sum();
        for stock in self.stocks.values_mut() {
            (stock.keep, stock.fresh) = (None, 0);
            stock.low = [0, stock.idle()];
        }
        let gone: Vec<_> = self.stocks.keys().cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
    }

    pub(super) fn unusable(&self) -> impl Iterator<Item = ReplicaKey> {
        self.stocks.iter().filter(|(_, stock)| !stock.is_usable()).map(|(key, _)| key.clone())
    }

    /// What the coordinator has to be told of the queue, if anything. With a beat it is told in any case.
    pub(super) fn demand(
        &mut self,
        deployment: &Deployment,
        now: Instant,
        with_beat: bool,
        settings: &Settings,
    ) -> Option<Demand> {
        let due = self.report_at(settings).is_some_and(|at| at <= now);
        let expected = self.told.is_some_and(|(queue, _)| queue.is_some());
        if !due && !(with_beat && (expected || self.queue.is_some())) {
            return None;
        }
        (self.told, self.granted_since) = (Some((self.queue, now)), 0);
        let age = |came: Instant| now.saturating_duration_since(came);
        Some(Demand {
            deployment: deployment.clone(),
            waiting: self.queue.map_or(0, |queue| queue.length),
            oldest: self.queue.map(|queue| age(queue.oldest)).unwrap_or_default(),
            newest: self.queue.map(|queue| age(queue.newest)).unwrap_or_default(),
            granted: self.granted,
        })
    }

    /// When the coordinator has to be told of the queue: at once where more wait than it knows of.
    pub(super) fn report_at(&self, settings: &Settings) -> Option<Instant> {
        let length = self.queue.map_or(0, |queue| queue.length);
        let Some((told, at)) = self.told else { return self.queue.map(|queue| queue.newest) };
        let expected = told.map_or(0, |told| told.length.saturating_sub(self.granted_since));
        // Until it is known that these have arrived there are no more.
        let is_awaited = self.granted_since > 0 && {
            let slots = self.stocks.values().map(|stock| stock.cap).sum();
            self.granted_since * 2 >= window(slots, self.held)
        };
        if length > expected || is_awaited {
            return Some(at);
        }
        if let (Some(queue), Some(told)) = (self.queue, told) {
            let believed = told.first_after(self.granted_since);
            let off = queue.oldest.max(believed).duration_since(queue.oldest.min(believed));
            if off >= settings.patience {
                return Some(at + settings.patience);
            }
        }
        (length != expected).then(|| at + settings.report)
    }

    pub(super) fn wake_at(&self, settings: &Settings) -> Option<Instant> {
        [self.report_at(settings), self.window].into_iter().flatten().min()
    }

    /// Idle slots for which no time to return them is set.
    pub fn needs_window(&self) -> bool {
        self.window.is_none() && self.stocks.values().any(|stock| stock.idle() > 0)
    }

    pub(super) fn take_returned(&mut self) -> impl Iterator<Item = Lot> {
        std::mem::take(&mut self.returned).into_iter()
    }

    pub(super) fn take_barred(&mut self) -> impl Iterator<Item = (ReplicaKey, bool)> {
        std::mem::take(&mut self.barred).into_iter()
    }

    /// Whether slots were returned, or what can be used has changed, and the coordinator has not been told.
    pub fn has_news(&self) -> bool {
        !self.returned.is_empty() || !self.barred.is_empty()
    }

    /// Replicas with requests in flight by the right of a lease.
    pub(super) fn busy(&self) -> impl Iterator<Item = &ReplicaKey> {
        self.stocks.iter().filter(|(_, stock)| stock.busy > 0).map(|(key, _)| key)
    }

    /// Whether nothing is held, in flight, waited for or to be said.
    pub fn is_at_rest(&self) -> bool {
        let is_empty = self.stocks.values().all(|stock| stock.held + stock.in_flight() == 0);
        let is_told = self.told.is_none_or(|(queue, _)| queue.is_none());
        is_empty && is_told && self.queue.is_none() && self.wanted.is_none() && !self.has_news()
    }

    /// How long a request may last after the lease has expired.
    pub(super) fn hold_time(&self) -> Duration {
        self.hold
    }

    /// Held, in flight by lease, in flight without.
    pub(super) fn count(&self) -> (u32, u32, u32) {
        let sum = |of: fn(&Stock) -> u32| self.stocks.values().map(of).sum();
        (sum(|stock| stock.held), sum(|stock| stock.busy), sum(|stock| stock.borrowed))
    }

    pub(super) fn is_spent(&self) -> bool {
        self.stocks.values().all(|stock| stock.idle() == 0)
    }

    pub(super) fn held(&self, key: &ReplicaKey) -> u32 {
        self.stocks.get(key).map_or(0, |stock| stock.held)
    }
}
