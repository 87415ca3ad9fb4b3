//! What a coordinator makes of what members say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::{Demand, Hello, MemberId, Queue, ReplicaKey, Report};
use super::pool::{LONGEST, Pool, Seat};
use super::term::{Former, Outbox, Term};
use super::{ANSWERS, Ledger};

impl Ledger {
    pub(super) fn hello(&mut self, from: &MemberId, hello: Hello, now: Instant) {
        // Processes that had its name before are no more.
        for id in self.before(from) {
            self.ended(&id, now);
        }
        let seat = self.seat(from, now);
        let Some(member) = self.seats.get_mut(&seat) else { return };
        if hello.session <= member.session || member.ended.is_some() {
            return self.refuse(from, hello.session);
        }
        (member.session, member.is_open, member.renewed) = (hello.session, true, now);
        (member.answers, member.lived) = (VecDeque::from([(hello.beat, now)]), None);
        (member.granted, member.outbox) = (BTreeMap::new(), Outbox::default());
        let claims: BTreeMap<_, _> =
            hello.claims.into_iter().map(|claim| (claim.replica, (claim.slots, claim.out))).collect();
        let mut keep = Vec::new();
        for pool in self.pools.values_mut() {
            pool.unseat(seat);
            for key in pool.replicas_of(seat).iter().filter(|key| !claims.contains_key(*key)) {
                pool.claim(seat, key, 0, 0);
            }
        }
        for (key, (slots, claimed)) in claims {
            // Of a deployment that is known here later: nothing can be free there.
            let pool = self.pools.entry(key.deployment.clone()).or_insert_with(|| Pool::new(true));
            let may_keep = pool.claim(seat, &key, slots, claimed);
            if may_keep < claimed {
                keep.push((key, may_keep));
            }
        }
        if let Some(Term { awaited: Former::Only(awaited), .. }) = &mut self.term {
            awaited.remove(from);
        }
        if let Some(member) = self.seats.get_mut(&seat) {
            member.outbox.welcome = Some((hello.beat, keep));
        }
        self.load(seat, hello.loads, true, now);
        self.bar(seat, hello.barred.into_iter().map(|key| (key, true)));
        self.want(seat, hello.demand, now);
        self.tick(now);
    }

    pub(super) fn report(&mut self, from: &MemberId, seat: Seat, report: Report, now: Instant) {
        self.expire(seat, now);
        let Some(member) = self.seats.get_mut(&seat).filter(|member| member.is_open) else {
            return self.refuse(from, report.session);
        };
        if let Some(beat) = report.beat {
            member.renewed = now;
            let answer = member.answers.iter().find(|answer| answer.0 == beat.answered);
            member.lived = answer.map(|answer| answer.1).or(member.lived);
            member.answers.push_back((beat.number, now));
            if member.answers.len() > ANSWERS {
                member.answers.pop_front();
            }
            member.outbox.beat = Some(beat.number);
        }
        for (key, slots) in report.returned {
            if let Some(pool) = self.pools.get_mut(&key.deployment) {
                pool.give_back(seat, &key, slots);
            }
        }
        self.load(seat, report.loads, false, now);
        self.bar(seat, report.barred);
        self.want(seat, report.demand, now);
    }

    pub(super) fn bar(&mut self, seat: Seat, barred: impl IntoIterator<Item = (ReplicaKey, bool)>) {
        for (key, barred) in barred {
            if let Some(pool) = self.pools.get_mut(&key.deployment) {
                pool.bar(seat, &key, barred);
            }
        }
    }

    pub(super) fn want(&mut self, seat: Seat, demand: Vec<Demand>, now: Instant) {
        for demand in demand {
            let Some(member) = self.seats.get(&seat) else { return };
            let ago = |age| now.checked_sub(age).unwrap_or(now);
            let queue = Queue { length: demand.waiting, oldest: ago(demand.oldest), newest: ago(demand.newest) };
            let granted = member.granted.get(&demand.deployment).copied().unwrap_or_default();
            let unknown = granted.saturating_sub(demand.granted).min(u64::from(u32::MAX)) as u32;
            if queue.length == 0 && !self.pools.contains_key(&demand.deployment) {
                continue;
            }
            // Of a deployment that may be known here later: nobody says it again then.
            let pool = self.pool(&demand.deployment, LONGEST, now);
            pool.want(seat, (queue.length > 0).then_some(queue), unknown, now);
        }
    }
}
