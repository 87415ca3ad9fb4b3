//! The coordinator's side of the sessions with its members.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::{FleetReplicaKey, Hello, MemberId, MemberReport, QueueSnapshot, SlotDemand};
use super::slot_pool::{MAX_HOLD, MemberIndex, SlotPool};
use super::term::{Outbox, PreviousHolders, TermState};
use super::{Ledger, MAX_REMEMBERED_ANSWERS};

impl Ledger {
    pub(super) fn handle_hello(&mut self, from: &MemberId, hello: Hello, now: Instant) {
        // Earlier processes with the name of this one have ended.
        for id in self.previous_incarnations(from) {
            self.member_ended(&id, now);
        }
        let index = self.member_index_or_insert(from, now);
        let Some(member) = self.members.get_mut(&index) else { return };
        if hello.session <= member.session || member.ended_at.is_some() {
            return self.refuse_session(from, hello.session);
        }
        (member.session, member.is_session_open, member.renewed_at) = (hello.session, true, now);
        (member.answered_heartbeats, member.confirmed_at) = (VecDeque::from([(hello.heartbeat, now)]), None);
        (member.granted_slots, member.outbox) = (BTreeMap::new(), Outbox::default());
        let claims: BTreeMap<_, _> =
            hello.claims.into_iter().map(|claim| (claim.replica, (claim.leased_slots, claim.taken_slots))).collect();
        let mut keep = Vec::new();
        for pool in self.pools.values_mut() {
            pool.reset_session(index);
            for key in pool.replicas_held_by(index).iter().filter(|key| !claims.contains_key(*key)) {
                pool.apply_claim(index, key, 0, 0);
            }
        }
        for (key, (slots, claimed)) in claims {
            // The deployment is registered later; none of its slots can be free now.
            let pool = self.pools.entry(key.deployment.clone()).or_insert_with(|| SlotPool::new(true));
            let may_keep = pool.apply_claim(index, &key, slots, claimed);
            if may_keep < claimed {
                keep.push((key, may_keep));
            }
        }
        if let Some(TermState { awaited_holders: PreviousHolders::Known(awaited), .. }) = &mut self.term {
            awaited.remove(from);
        }
        if let Some(member) = self.members.get_mut(&index) {
            member.outbox.welcome = Some((hello.heartbeat, keep));
        }
        self.apply_loads(index, hello.loads, true, now);
        self.set_unusable(index, hello.unusable.into_iter().map(|key| (key, true)));
        self.set_demand(index, hello.demand, now);
        self.tick(now);
    }

    pub(super) fn handle_report(&mut self, from: &MemberId, index: MemberIndex, report: MemberReport, now: Instant) {
        self.expire_member(index, now);
        let Some(member) = self.members.get_mut(&index).filter(|member| member.is_session_open) else {
            return self.refuse_session(from, report.session);
        };
        if let Some(heartbeat) = report.heartbeat {
            member.renewed_at = now;
            let answer = member.answered_heartbeats.iter().find(|answer| answer.0 == heartbeat.last_answered);
            member.confirmed_at = answer.map(|answer| answer.1).or(member.confirmed_at);
            member.answered_heartbeats.push_back((heartbeat.number, now));
            if member.answered_heartbeats.len() > MAX_REMEMBERED_ANSWERS {
                member.answered_heartbeats.pop_front();
            }
            member.outbox.heartbeat = Some(heartbeat.number);
        }
        for (key, slots) in report.returned {
            if let Some(pool) = self.pools.get_mut(&key.deployment) {
                pool.return_slots(index, &key, slots);
            }
        }
        self.apply_loads(index, report.loads, false, now);
        self.set_unusable(index, report.unusable_changes);
        self.set_demand(index, report.demand, now);
    }

    pub(super) fn set_unusable(
        &mut self,
        index: MemberIndex,
        changes: impl IntoIterator<Item = (FleetReplicaKey, bool)>,
    ) {
        for (key, is_unusable) in changes {
            if let Some(pool) = self.pools.get_mut(&key.deployment) {
                pool.set_unusable(index, &key, is_unusable);
            }
        }
    }

    pub(super) fn set_demand(&mut self, index: MemberIndex, demand: Vec<SlotDemand>, now: Instant) {
        for demand in demand {
            let Some(member) = self.members.get(&index) else { return };
            let ago = |age| now.checked_sub(age).unwrap_or(now);
            let queue =
                QueueSnapshot { length: demand.queued, oldest: ago(demand.oldest_age), newest: ago(demand.newest_age) };
            let granted = member.granted_slots.get(&demand.deployment).copied().unwrap_or_default();
            let unseen_grants = granted.saturating_sub(demand.grants_seen).min(u64::from(u32::MAX)) as u32;
            if queue.length == 0 && !self.pools.contains_key(&demand.deployment) {
                continue;
            }
            // The deployment may be registered later, and the member will not report this demand again then.
            let pool = self.pool_or_insert(&demand.deployment, MAX_HOLD, now);
            pool.set_demand(index, (queue.length > 0).then_some(queue), unseen_grants, now);
        }
    }
}
