//! The slots of one deployment: who has them, who waits for them, who is to give some back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::policy::fleet::{Queue, ReplicaKey, Settings, window};

mod entry;
pub(super) use entry::Told;
use entry::{Demand, Entry};

/// The longest that a request may last, for deployments that are known from members only.
pub(super) const LONGEST: Duration = Duration::from_secs(300);

/// A member, as long as the ledger knows of it. Never given to another in the same term.
pub(super) type Seat = u32;

#[derive(Debug, Clone, Hash)]
pub(super) struct Pool {
    /// How long a request may be in flight when its router has ended or is cut off.
    hold: Option<Duration>,
    /// Whether slots may be unaccounted for.
    pub(super) in_doubt: bool,
    entries: BTreeMap<ReplicaKey, Entry>,
    /// Of all replicas.
    slots: u32,
    /// The replicas with a free slot, the freest first.
    shelf: BTreeSet<(Reverse<u32>, ReplicaKey)>,
    demand: BTreeMap<Seat, Demand>,
    /// Slots leased, of all replicas.
    held: BTreeMap<Seat, u32>,
    /// What members were told of those that wait elsewhere.
    told: BTreeMap<Seat, Told>,
    /// Whether there is anything to [`Pool::distribute`] or to tell.
    pub(super) changed: bool,
    /// Whether a replica has more slots out than it may take.
    overdrawn: bool,
}

impl Pool {
    pub(super) fn new(in_doubt: bool) -> Self {
        Self {
            hold: None,
            in_doubt,
            entries: BTreeMap::new(),
            slots: 0,
            shelf: BTreeSet::new(),
            demand: BTreeMap::new(),
            held: BTreeMap::new(),
            told: BTreeMap::new(),
            changed: true,
            overdrawn: false,
        }
    }

    pub(super) fn hold(&self) -> Duration {
        self.hold.unwrap_or(LONGEST)
    }

    /// Slots are out that were taken while requests might last longer: it never becomes less.
    pub(super) fn extend_hold(&mut self, hold: Duration) {
        self.hold = Some(self.hold.map_or(hold, |before| before.max(hold)));
    }

    /// Changes an entry, and puts it where its free slots say.
    fn alter<T>(&mut self, key: &ReplicaKey, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        let (before, cap) = (entry.free(), entry.cap);
        let result = change(entry);
        let after = entry.free();
        self.slots = self.slots + entry.cap - cap;
        self.overdrawn |= entry.used() > entry.cap;
        if entry.cap == 0 && entry.used() == 0 {
            self.entries.remove(key);
        }
        if before != after {
            self.shelf.remove(&(Reverse(before), key.clone()));
            if after > 0 {
                self.shelf.insert((Reverse(after), key.clone()));
            }
        }
        self.changed = true;
        Some(result)
    }

    /// A replica may have `cap` requests in flight. Of one that was not known, or not with so many, an earlier coordinator
    /// may have known before: while in doubt the slots that are new here may be in use already.
    pub(super) fn set(&mut self, key: &ReplicaKey, cap: u32) {
        let in_doubt = self.in_doubt;
        if cap > 0 {
            self.entries.entry(key.clone()).or_default();
            self.alter(key, |entry| {
                if in_doubt {
                    entry.unaccounted += cap.saturating_sub(entry.most.max(entry.accounted));
                }
                (entry.cap, entry.most) = (cap, entry.most.max(cap));
            });
        } else {
            self.alter(key, |entry| entry.cap = 0);
        }
    }

    /// A replica is gone, and nothing can be in flight on it.
    pub(super) fn forget(&mut self, key: &ReplicaKey) {
        let Some(entry) = self.entries.get(key) else { return };
        for (seat, slots) in entry.leases.clone() {
            self.lease(seat, key, slots, 0);
        }
        self.alter(key, |entry| (entry.cap, entry.unaccounted) = (0, 0));
    }

    fn lease(&mut self, seat: Seat, key: &ReplicaKey, from: u32, to: u32) {
        if from != to {
            self.alter(key, |entry| entry.set_lease(seat, to));
            let held = self.held.entry(seat).or_default();
            *held = held.saturating_sub(from) + to;
            if *held == 0 {
                self.held.remove(&seat);
            }
        }
    }

    fn leased_to(&self, seat: Seat, key: &ReplicaKey) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.leased_to(seat))
    }

    /// A member gives slots back. What it never had it cannot give.
    pub(super) fn give_back(&mut self, seat: Seat, key: &ReplicaKey, slots: u32) {
        let leased = self.leased_to(seat, key);
        // It counts down what it was told to give, see `Share`.
        if let Some(told) = self.told.get_mut(&seat) {
            told.slots = told.slots.saturating_sub(slots);
        }
        self.lease(seat, key, leased, leased.saturating_sub(slots));
    }

    /// A member says how many slots it holds: all it has, as this begins a session. Returns how many it may keep.
    ///
    /// What it had and does not claim was granted and got lost, or was returned and that got lost. What it claims beyond
    /// was leased in an earlier term, or it is in flight without a lease (see fallback), or the claim comes so late that
    /// the slot is another's. Whatever it is, it is out there: it is counted until it is returned. Only the `slots` that it
    /// claims by right are those of an earlier term: what is in flight without may be in flight beside them.
    pub(super) fn claim(&mut self, seat: Seat, key: &ReplicaKey, slots: u32, claimed: u32) -> u32 {
        if claimed > 0 {
            // A replica that is known here later, or no more.
            self.entries.entry(key.clone()).or_default();
        }
        let leased = self.leased_to(seat, key);
        let (right, free) = self
            .alter(key, |entry| {
                let by_right = slots.saturating_sub(leased);
                entry.accounted += by_right;
                let accounted = by_right.min(entry.unaccounted);
                entry.unaccounted -= accounted;
                // What it was to give up in another session it may not use in this one.
                let kept = entry.keep.iter().find(|keep| keep.0 == seat).map_or(leased, |keep| keep.1.min(leased));
                entry.keep.retain(|keep| keep.0 != seat);
                (kept + accounted, entry.cap.saturating_sub(entry.used() + accounted))
            })
            .unwrap_or_default();
        let keep = claimed.min(right + free);
        if claimed > 0 {
            self.entries.entry(key.clone()).or_default();
        }
        self.lease(seat, key, leased, claimed);
        if keep < claimed {
            self.alter(key, |entry| entry.keep.push((seat, keep)));
        }
        keep
    }

    /// The replicas of which a member holds slots.
    pub(super) fn replicas_of(&self, seat: Seat) -> Vec<ReplicaKey> {
        if !self.held.contains_key(&seat) {
            return Vec::new();
        }
        self.entries.iter().filter(|(_, entry)| entry.leased_to(seat) > 0).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn held_by(&self, seat: Seat) -> u32 {
        self.held.get(&seat).copied().unwrap_or_default()
    }

    /// All that a member held is free.
    pub(super) fn release(&mut self, seat: Seat) {
        for key in self.replicas_of(seat) {
            let leased = self.leased_to(seat, &key);
            self.lease(seat, &key, leased, 0);
        }
    }

    /// A session is over, or begins: what the member said and was told before counts no more, but what it may keep.
    pub(super) fn unseat(&mut self, seat: Seat) {
        self.demand.remove(&seat);
        self.told.remove(&seat);
        for entry in self.entries.values_mut() {
            entry.barred.retain(|barred| *barred != seat);
        }
        self.changed = true;
    }

    /// A replica is of no use to a member, or is again.
    pub(super) fn bar(&mut self, seat: Seat, key: &ReplicaKey, barred: bool) {
        self.alter(key, |entry| {
            entry.barred.retain(|other| *other != seat);
            if barred {
                entry.barred.push(seat);
            }
        });
    }

    /// What waits at a member; `unknown` slots were granted that it did not know of when it said so.
    pub(super) fn want(&mut self, seat: Seat, queue: Option<Queue>, unknown: u32, now: Instant) {
        let before = self.demand.remove(&seat).and_then(|before| before.held_up);
        if let Some(queue) = queue {
            let held_up = (unknown >= window(self.slots, self.held_by(seat))).then(|| before.unwrap_or(now));
            self.demand.insert(seat, Demand { queue, outstanding: unknown, held_up });
        }
        self.changed = true;
    }

    /// No slot is unaccounted for any more.
    pub(super) fn settle(&mut self) {
        self.in_doubt = false;
        for key in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.alter(&key, |entry| entry.unaccounted = 0);
        }
    }

    /// A term begins: nobody holds anything that is known; every slot may be held by somebody of before, where `in_doubt`.
    pub(super) fn restart(&mut self, in_doubt: bool) {
        (self.demand, self.held, self.told) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        self.in_doubt = in_doubt;
        for key in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.alter(&key, |entry| {
                let unaccounted = if in_doubt { entry.cap } else { 0 };
                *entry = Entry { cap: entry.cap, most: entry.cap, unaccounted, ..Entry::default() };
            });
        }
    }

    /// Gives free slots to those who wait, who came first before the others, as far as they are heard of: who stands still
    /// must not take all there are with it.
    pub(super) fn distribute(&mut self, now: Instant, mut grant: impl FnMut(Seat, &ReplicaKey)) {
        // Of no use for what is free now.
        let mut skipped = Vec::new();
        while !self.shelf.is_empty() {
            let waiting = self
                .demand
                .iter()
                .filter(|(seat, demand)| demand.unmet() > 0 && demand.held_up.is_none() && !skipped.contains(*seat));
            let Some((&seat, _)) = waiting.min_by_key(|(_, demand)| demand.oldest()) else { break };
            let usable = |key: &ReplicaKey| !self.entries.get(key).is_some_and(|entry| entry.barred.contains(&seat));
            let Some(key) = self.shelf.iter().map(|(_, key)| key).find(|key| usable(key)).cloned() else {
                skipped.push(seat);
                continue;
            };
            let leased = self.leased_to(seat, &key);
            self.lease(seat, &key, leased, leased + 1);
            self.alter(&key, |entry| entry.keep.retain(|keep| keep.0 != seat));
            let window = window(self.slots, self.held_by(seat));
            if let Some(demand) = self.demand.get_mut(&seat) {
                demand.outstanding += 1;
                demand.held_up = (demand.outstanding >= window).then_some(now);
            }
            grant(seat, &key);
        }
    }

    /// Tells members what waits elsewhere, where that makes a difference to what they should do.
    pub(super) fn tell(&mut self, now: Instant, settings: &Settings, mut tell: impl FnMut(Seat, Told)) {
        // Who waits longest, and who does beside it: whoever holds slots is told of one of them.
        let (mut total, mut first, mut second) = (0, None, None);
        let is_stuck = |demand: &Demand| demand.held_up.is_some_and(|since| now >= since + settings.report);
        for (&seat, demand) in self.demand.iter().filter(|(_, demand)| demand.unmet() > 0 && !is_stuck(demand)) {
            total += u64::from(demand.unmet());
            let this = Some((demand.oldest(), seat));
            if first.is_none() || this < first {
                (first, second) = (this, first);
            } else if second.is_none() || this < second {
                second = this;
            }
        }
        for (&seat, &held) in &self.held {
            let own = self.demand.get(&seat).filter(|own| !is_stuck(own)).map_or(0, Demand::unmet);
            let slots = (total - u64::from(own)).min(u64::from(held)) as u32;
            let elsewhere = if first.is_some_and(|first| first.1 == seat) { second } else { first };
            let oldest = elsewhere.map_or(now, |elsewhere| elsewhere.0);
            let before = self.told.get(&seat).copied().unwrap_or(Told { slots: 0, oldest: now });
            let moved = oldest.max(before.oldest).duration_since(oldest.min(before.oldest));
            let news = if slots == 0 { before.slots > 0 } else { slots > before.slots || moved >= settings.patience };
            if news {
                self.told.insert(seat, Told { slots, oldest });
                tell(seat, Told { slots, oldest });
            }
        }
    }

    /// Tells members how many slots they may keep of replicas that have more out than they may take: those who have most
    /// give first.
    pub(super) fn reduce(&mut self, mut tell: impl FnMut(Seat, &ReplicaKey, u32)) {
        if !self.overdrawn {
            return;
        }
        self.overdrawn = false;
        for (key, entry) in &mut self.entries {
            if entry.used() <= entry.cap {
                entry.keep.clear();
                continue;
            }
            self.overdrawn = true;
            // Those who were told already come first.
            let mut left = entry.leases.clone();
            for (seat, slots) in &mut left {
                let told = entry.keep.iter().find(|told| told.0 == *seat);
                *slots = told.map_or(*slots, |told| told.1.min(*slots));
            }
            let promised = entry.unaccounted + left.iter().map(|lease| lease.1).sum::<u32>();
            for _ in entry.cap..promised {
                let Some(most) = left.iter_mut().max_by_key(|lease| lease.1).filter(|lease| lease.1 > 0) else { break };
                most.1 -= 1;
            }
            for (seat, keep) in left {
                let leased = entry.leased_to(seat);
                let told = entry.keep.iter_mut().find(|told| told.0 == seat);
                if keep < leased && told.as_ref().is_none_or(|told| told.1 != keep) {
                    match told {
                        Some(told) => told.1 = keep,
                        None => entry.keep.push((seat, keep)),
                    }
                    tell(seat, key, keep);
                }
            }
        }
    }

    /// Slots that are free, leased, and unaccounted for.
    pub(super) fn count(&self) -> (u32, u32, u32) {
        let sum = |of: fn(&Entry) -> u32| self.entries.values().map(of).sum();
        (sum(Entry::free), sum(|entry| entry.leases.iter().map(|lease| lease.1).sum()), sum(|entry| entry.unaccounted))
    }

    /// Who holds slots of a replica, and how many.
    pub(super) fn leases(&self, key: &ReplicaKey) -> &[(Seat, u32)] {
        self.entries.get(key).map_or(&[], |entry| &entry.leases)
    }

    /// Whether no replica may have requests in flight.
    pub(super) fn is_cold(&self) -> bool {
        self.entries.values().all(|entry| entry.cap == 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is nothing in it that anybody might miss.
    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && self.demand.is_empty()
    }

    /// What does not add up, if anything.
    pub(super) fn audit(&self) -> Result<(), String> {
        let shelved = self.entries.iter().filter(|(_, entry)| entry.free() > 0);
        let shelved: BTreeSet<_> = shelved.map(|(key, entry)| (Reverse(entry.free()), key.clone())).collect();
        if shelved != self.shelf {
            return Err(format!("the shelf is not what is free: {shelved:?}, {:?}", self.shelf));
        }
        let mut held = BTreeMap::new();
        for (seat, slots) in self.entries.values().flat_map(|entry| &entry.leases) {
            *held.entry(*seat).or_insert(0) += slots;
        }
        if held != self.held {
            return Err(format!("held is not the sum of the leases: {held:?}, {:?}", self.held));
        }
        if self.slots != self.entries.values().map(|entry| entry.cap).sum::<u32>() {
            return Err(format!("{} slots are not those of all replicas", self.slots));
        }
        let over = self.entries.iter().find(|(_, entry)| entry.used() > entry.cap);
        match over {
            Some((key, entry)) if !self.overdrawn => Err(format!("{key:?} is overdrawn, unnoticed: {entry:?}")),
            _ => Ok(()),
        }
    }
}
