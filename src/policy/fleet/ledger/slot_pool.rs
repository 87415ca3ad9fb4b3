//! The slots of one deployment: which member holds them, which one wants them, and which one has to return some.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::policy::fleet::{FleetReplicaKey, FleetTiming, QueueSnapshot, flow_control_window};

mod entry;
pub(super) use entry::AnnouncedDemand;
use entry::{MemberDemand, PooledReplica};

/// The longest that a request may last, for deployments that are known from members only.
pub(super) const MAX_HOLD: Duration = Duration::from_secs(300);

/// Index of a member, as long as the ledger knows it. It is never reused in the same term.
pub(super) type MemberIndex = u32;

#[derive(Debug, Clone, Hash)]
pub(super) struct SlotPool {
    /// How long a request may be in flight after its router has ended or is cut off.
    hold: Option<Duration>,
    /// Whether slots may be unaccounted for.
    pub(super) has_unaccounted: bool,
    replicas: BTreeMap<FleetReplicaKey, PooledReplica>,
    /// The slots of all replicas.
    total_slots: u32,
    /// The replicas with a free slot, those with the most free slots first.
    free_replicas: BTreeSet<(Reverse<u32>, FleetReplicaKey)>,
    demand: BTreeMap<MemberIndex, MemberDemand>,
    /// Leased slots of all replicas, by member.
    held_slots: BTreeMap<MemberIndex, u32>,
    /// The demand elsewhere that members were told of.
    announced: BTreeMap<MemberIndex, AnnouncedDemand>,
    /// Dirty flag: whether there is anything to grant or to announce.
    pub(super) is_dirty: bool,
    /// Whether more slots of a replica are held than its cap allows.
    is_overdrawn: bool,
}

impl SlotPool {
    pub(super) fn new(has_unaccounted: bool) -> Self {
        Self {
            hold: None,
            has_unaccounted,
            replicas: BTreeMap::new(),
            total_slots: 0,
            free_replicas: BTreeSet::new(),
            demand: BTreeMap::new(),
            held_slots: BTreeMap::new(),
            announced: BTreeMap::new(),
            is_dirty: true,
            is_overdrawn: false,
        }
    }

    pub(super) fn hold_duration(&self) -> Duration {
        self.hold.unwrap_or(MAX_HOLD)
    }

    /// Extends the hold time. It never becomes shorter, because slots are held that were taken while requests might
    /// last longer.
    pub(super) fn extend_hold(&mut self, hold: Duration) {
        self.hold = Some(self.hold.map_or(hold, |before| before.max(hold)));
    }

    /// Changes a replica and moves it to its number of free slots.
    fn update_replica<T>(&mut self, key: &FleetReplicaKey, change: impl FnOnce(&mut PooledReplica) -> T) -> Option<T> {
        let entry = self.replicas.get_mut(key)?;
        let (before, cap) = (entry.free_slots(), entry.cap);
        let result = change(entry);
        let after = entry.free_slots();
        self.total_slots = self.total_slots + entry.cap - cap;
        self.is_overdrawn |= entry.used_slots() > entry.cap;
        if entry.cap == 0 && entry.used_slots() == 0 {
            self.replicas.remove(key);
        }
        if before != after {
            self.free_replicas.remove(&(Reverse(before), key.clone()));
            if after > 0 {
                self.free_replicas.insert((Reverse(after), key.clone()));
            }
        }
        self.is_dirty = true;
        Some(result)
    }

    /// Sets the cap of a replica. If the replica, or a part of its cap, was not known, an earlier coordinator may have
    /// known it before: while slots may be unaccounted for, the new slots may be in use already.
    pub(super) fn set_cap(&mut self, key: &FleetReplicaKey, cap: u32) {
        let has_unaccounted = self.has_unaccounted;
        if cap > 0 {
            self.replicas.entry(key.clone()).or_default();
            self.update_replica(key, |entry| {
                if has_unaccounted {
                    entry.unaccounted += cap.saturating_sub(entry.highest_cap.max(entry.reclaimed));
                }
                (entry.cap, entry.highest_cap) = (cap, entry.highest_cap.max(cap));
            });
        } else {
            self.update_replica(key, |entry| entry.cap = 0);
        }
    }

    /// Removes a replica, on which nothing can be in flight.
    pub(super) fn remove_replica(&mut self, key: &FleetReplicaKey) {
        let Some(entry) = self.replicas.get(key) else { return };
        for (index, slots) in entry.leases.clone() {
            self.set_lease(index, key, slots, 0);
        }
        self.update_replica(key, |entry| (entry.cap, entry.unaccounted) = (0, 0));
    }

    fn set_lease(&mut self, index: MemberIndex, key: &FleetReplicaKey, from: u32, to: u32) {
        if from != to {
            self.update_replica(key, |entry| entry.set_lease(index, to));
            let held = self.held_slots.entry(index).or_default();
            *held = held.saturating_sub(from) + to;
            if *held == 0 {
                self.held_slots.remove(&index);
            }
        }
    }

    fn leased_to(&self, index: MemberIndex, key: &FleetReplicaKey) -> u32 {
        self.replicas.get(key).map_or(0, |entry| entry.leased_to(index))
    }

    /// Returns slots of a member. It cannot return slots that it never had.
    pub(super) fn return_slots(&mut self, index: MemberIndex, key: &FleetReplicaKey, slots: u32) {
        let leased = self.leased_to(index, key);
        // The member counts down what it was told to yield, see `DeploymentShare`.
        if let Some(told) = self.announced.get_mut(&index) {
            told.slots = told.slots.saturating_sub(slots);
        }
        self.set_lease(index, key, leased, leased.saturating_sub(slots));
    }

    /// Applies the claim of a member when a session begins: the slots of a replica that it holds. Returns how many it
    /// may keep.
    ///
    /// Slots that it had and does not claim were granted and got lost, or were returned and that message got lost.
    /// Slots that it claims beyond that were leased in an earlier term, or are in flight without a lease (see
    /// fallback), or the claim comes so late that the slot is leased to another member. In each case they are in use
    /// and are counted until they are returned. Only the `slots` that it claims under a lease are those of an earlier
    /// term: requests in flight without a lease may be in flight beside them.
    pub(super) fn apply_claim(&mut self, index: MemberIndex, key: &FleetReplicaKey, slots: u32, claimed: u32) -> u32 {
        if claimed > 0 {
            // The replica is registered later, or is gone.
            self.replicas.entry(key.clone()).or_default();
        }
        let leased = self.leased_to(index, key);
        let (entitled, free) = self
            .update_replica(key, |entry| {
                let by_right = slots.saturating_sub(leased);
                entry.reclaimed += by_right;
                let accounted = by_right.min(entry.unaccounted);
                entry.unaccounted -= accounted;
                // What the member had to give up in another session it may not use in this one.
                let kept =
                    entry.keep_limits.iter().find(|keep| keep.0 == index).map_or(leased, |keep| keep.1.min(leased));
                entry.keep_limits.retain(|keep| keep.0 != index);
                (kept + accounted, entry.cap.saturating_sub(entry.used_slots() + accounted))
            })
            .unwrap_or_default();
        let keep = claimed.min(entitled + free);
        if claimed > 0 {
            self.replicas.entry(key.clone()).or_default();
        }
        self.set_lease(index, key, leased, claimed);
        if keep < claimed {
            self.update_replica(key, |entry| entry.keep_limits.push((index, keep)));
        }
        keep
    }

    /// Returns the replicas of which a member holds slots.
    pub(super) fn replicas_held_by(&self, index: MemberIndex) -> Vec<FleetReplicaKey> {
        if !self.held_slots.contains_key(&index) {
            return Vec::new();
        }
        self.replicas.iter().filter(|(_, entry)| entry.leased_to(index) > 0).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn held_by(&self, index: MemberIndex) -> u32 {
        self.held_slots.get(&index).copied().unwrap_or_default()
    }

    /// Frees all slots of a member.
    pub(super) fn release_all(&mut self, index: MemberIndex) {
        for key in self.replicas_held_by(index) {
            let leased = self.leased_to(index, &key);
            self.set_lease(index, &key, leased, 0);
        }
    }

    /// Resets what a member reported and was told, when a session begins or ends, except what it may keep.
    pub(super) fn reset_session(&mut self, index: MemberIndex) {
        self.demand.remove(&index);
        self.announced.remove(&index);
        for entry in self.replicas.values_mut() {
            entry.unusable_for.retain(|barred| *barred != index);
        }
        self.is_dirty = true;
    }

    /// Records whether a member can use a replica.
    pub(super) fn set_unusable(&mut self, index: MemberIndex, key: &FleetReplicaKey, is_unusable: bool) {
        self.update_replica(key, |entry| {
            entry.unusable_for.retain(|other| *other != index);
            if is_unusable {
                entry.unusable_for.push(index);
            }
        });
    }

    /// Sets the queued requests of a member; `unseen` slots were granted that it did not know of when it reported them.
    pub(super) fn set_demand(
        &mut self,
        index: MemberIndex,
        queue: Option<QueueSnapshot>,
        unseen_grants: u32,
        now: Instant,
    ) {
        let before = self.demand.remove(&index).and_then(|before| before.window_full_since);
        if let Some(queue) = queue {
            let window_full_since = (unseen_grants >= flow_control_window(self.total_slots, self.held_by(index)))
                .then(|| before.unwrap_or(now));
            self.demand.insert(index, MemberDemand { queue, unseen_grants, window_full_since });
        }
        self.is_dirty = true;
    }

    /// Records that no slot is unaccounted for any more.
    pub(super) fn clear_unaccounted(&mut self) {
        self.has_unaccounted = false;
        for key in self.replicas.keys().cloned().collect::<Vec<_>>() {
            self.update_replica(&key, |entry| entry.unaccounted = 0);
        }
    }

    /// Begins a term in which nobody is known to hold anything. With `has_unaccounted`, members of earlier terms may
    /// hold every slot.
    pub(super) fn reset_for_term(&mut self, has_unaccounted: bool) {
        (self.demand, self.held_slots, self.announced) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        self.has_unaccounted = has_unaccounted;
        for key in self.replicas.keys().cloned().collect::<Vec<_>>() {
            self.update_replica(&key, |entry| {
                let unaccounted = if has_unaccounted { entry.cap } else { 0 };
                *entry =
                    PooledReplica { cap: entry.cap, highest_cap: entry.cap, unaccounted, ..PooledReplica::default() };
            });
        }
    }

    /// Grants free slots to queued requests, oldest first, limited by each member's unacknowledged window, so that a
    /// stalled member cannot absorb the pool.
    pub(super) fn grant_free_slots(&mut self, now: Instant, mut grant: impl FnMut(MemberIndex, &FleetReplicaKey)) {
        // These cannot use the replicas that are free now.
        let mut skipped = Vec::new();
        while !self.free_replicas.is_empty() {
            let waiting = self.demand.iter().filter(|(index, demand)| {
                demand.unmet_slots() > 0 && demand.window_full_since.is_none() && !skipped.contains(*index)
            });
            let Some((&index, _)) = waiting.min_by_key(|(_, demand)| demand.oldest_unmet()) else { break };
            let usable = |key: &FleetReplicaKey| {
                !self.replicas.get(key).is_some_and(|entry| entry.unusable_for.contains(&index))
            };
            let Some(key) = self.free_replicas.iter().map(|(_, key)| key).find(|key| usable(key)).cloned() else {
                skipped.push(index);
                continue;
            };
            let leased = self.leased_to(index, &key);
            self.set_lease(index, &key, leased, leased + 1);
            self.update_replica(&key, |entry| entry.keep_limits.retain(|keep| keep.0 != index));
            let window = flow_control_window(self.total_slots, self.held_by(index));
            if let Some(demand) = self.demand.get_mut(&index) {
                demand.unseen_grants += 1;
                demand.window_full_since = (demand.unseen_grants >= window).then_some(now);
            }
            grant(index, &key);
        }
    }

    /// Tells members of the demand elsewhere, where that changes what they should do.
    pub(super) fn announce_demand(
        &mut self,
        now: Instant,
        timing: &FleetTiming,
        mut announce: impl FnMut(MemberIndex, AnnouncedDemand),
    ) {
        // The member whose requests have waited longest, and the second one: every member that holds slots is told of
        // one of them.
        let (mut total, mut first, mut second) = (0, None, None);
        let is_stuck =
            |demand: &MemberDemand| demand.window_full_since.is_some_and(|since| now >= since + timing.report_interval);
        for (&index, demand) in self.demand.iter().filter(|(_, demand)| demand.unmet_slots() > 0 && !is_stuck(demand)) {
            total += u64::from(demand.unmet_slots());
            let this = Some((demand.oldest_unmet(), index));
            if first.is_none() || this < first {
                (first, second) = (this, first);
            } else if second.is_none() || this < second {
                second = this;
            }
        }
        for (&index, &held) in &self.held_slots {
            let own = self.demand.get(&index).filter(|own| !is_stuck(own)).map_or(0, MemberDemand::unmet_slots);
            let slots = (total - u64::from(own)).min(u64::from(held)) as u32;
            let elsewhere = if first.is_some_and(|first| first.1 == index) { second } else { first };
            let oldest = elsewhere.map_or(now, |elsewhere| elsewhere.0);
            let before = self.announced.get(&index).copied().unwrap_or(AnnouncedDemand { slots: 0, oldest: now });
            let moved = oldest.max(before.oldest).duration_since(oldest.min(before.oldest));
            let is_news =
                if slots == 0 { before.slots > 0 } else { slots > before.slots || moved >= timing.steal_threshold };
            if is_news {
                self.announced.insert(index, AnnouncedDemand { slots, oldest });
                announce(index, AnnouncedDemand { slots, oldest });
            }
        }
    }

    /// Tells members how many slots they may keep of replicas of which more are held than the cap allows. Members with
    /// the most slots give up theirs first.
    pub(super) fn announce_keep_limits(&mut self, mut announce: impl FnMut(MemberIndex, &FleetReplicaKey, u32)) {
        if !self.is_overdrawn {
            return;
        }
        self.is_overdrawn = false;
        for (key, entry) in &mut self.replicas {
            if entry.used_slots() <= entry.cap {
                entry.keep_limits.clear();
                continue;
            }
            self.is_overdrawn = true;
            // Members that were told already come first.
            let mut remaining = entry.leases.clone();
            for (index, slots) in &mut remaining {
                let told = entry.keep_limits.iter().find(|told| told.0 == *index);
                *slots = told.map_or(*slots, |told| told.1.min(*slots));
            }
            let promised = entry.unaccounted + remaining.iter().map(|lease| lease.1).sum::<u32>();
            for _ in entry.cap..promised {
                let Some(most) = remaining.iter_mut().max_by_key(|lease| lease.1).filter(|lease| lease.1 > 0) else {
                    break;
                };
                most.1 -= 1;
            }
            for (index, keep) in remaining {
                let leased = entry.leased_to(index);
                let told = entry.keep_limits.iter_mut().find(|told| told.0 == index);
                if keep < leased && told.as_ref().is_none_or(|told| told.1 != keep) {
                    match told {
                        Some(told) => told.1 = keep,
                        None => entry.keep_limits.push((index, keep)),
                    }
                    announce(index, key, keep);
                }
            }
        }
    }

    /// Returns the numbers of slots that are free, leased, and unaccounted for.
    pub(super) fn slot_counts(&self) -> (u32, u32, u32) {
        let sum = |of: fn(&PooledReplica) -> u32| self.replicas.values().map(of).sum();
        (
            sum(PooledReplica::free_slots),
            sum(|entry| entry.leases.iter().map(|lease| lease.1).sum()),
            sum(|entry| entry.unaccounted),
        )
    }

    /// Returns which members hold slots of a replica, and how many.
    pub(super) fn leases_of(&self, key: &FleetReplicaKey) -> &[(MemberIndex, u32)] {
        self.replicas.get(key).map_or(&[], |entry| &entry.leases)
    }

    /// Returns whether no replica may have requests in flight.
    pub(super) fn is_cold(&self) -> bool {
        self.replicas.values().all(|entry| entry.cap == 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replicas.is_empty()
    }

    /// Returns whether the pool holds nothing that anybody needs.
    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && self.demand.is_empty()
    }

    /// Returns what is inconsistent, if anything.
    pub(super) fn audit(&self) -> Result<(), String> {
        let shelved = self.replicas.iter().filter(|(_, entry)| entry.free_slots() > 0);
        let shelved: BTreeSet<_> = shelved.map(|(key, entry)| (Reverse(entry.free_slots()), key.clone())).collect();
        if shelved != self.free_replicas {
            return Err(format!("the free replicas differ: {shelved:?}, {:?}", self.free_replicas));
        }
        let mut held = BTreeMap::new();
        for (index, slots) in self.replicas.values().flat_map(|entry| &entry.leases) {
            *held.entry(*index).or_insert(0) += slots;
        }
        if held != self.held_slots {
            return Err(format!("held is not the sum of the leases: {held:?}, {:?}", self.held_slots));
        }
        if self.total_slots != self.replicas.values().map(|entry| entry.cap).sum::<u32>() {
            return Err(format!("{} slots are not those of all replicas", self.total_slots));
        }
        let over = self.replicas.iter().find(|(_, entry)| entry.used_slots() > entry.cap);
        match over {
            Some((key, entry)) if !self.is_overdrawn => Err(format!("{key:?} is overdrawn, unnoticed: {entry:?}")),
            _ => Ok(()),
        }
    }
}
