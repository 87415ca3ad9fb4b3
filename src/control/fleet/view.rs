//! How the group is, for people and for metrics.

use std::time::Instant;

use super::Fleet;
use crate::policy::fleet::MemberId;
use crate::policy::fleet::member::Standing;
use crate::state::membership::{Group, GroupMember, Overview};

/// What a router goes by, in a word.
pub(super) fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Alone | Standing::Leased => "leased",
        Standing::Fallback => "fallback",
        Standing::Nothing => "nothing",
    }
}

impl Fleet {
    /// Has people and metrics know how the group is.
    pub(super) fn tell_group(&mut self, now: Instant) {
        let leader = self.record.leader();
        let named = |id: &MemberId| GroupMember { name: id.name.to_string(), ..GroupMember::default() };
        let Overview { mut members, present } = self.leader.overview(now).unwrap_or_else(|| self.told.clone());
        if members.is_empty() {
            members.extend(self.record.roster().iter().map(named));
        }
        let group = Group {
            router: self.id.name.to_string(),
            coordinator: leader.map(|(leader, _)| leader.name.to_string()),
            epoch: leader.map_or(0, |(_, epoch)| epoch.0),
            standing: word(self.standing),
            problem: self.problem(now),
            members,
            present,
        };
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.gauges.members.set(count(group.members.len() as u64));
        self.gauges.epoch.set(count(group.epoch));
        self.gauges.coordinator.set(self.leader.leads(now).into());
        self.gauges.set_slots(self.leader.slots(now));
        self.gauges.moves.inc_by(self.leader.take_moves());
        self.membership.set_group(group);
    }

    /// What keeps the router from the others, if anything does.
    fn problem(&self, now: Instant) -> Option<String> {
        if let Some(trouble) = self.record.trouble() {
            return Some(format!("it cannot be read or written who coordinates: {trouble}"));
        }
        let is_apart = !self.leader.leads(now) && self.why_apart.is_some();
        is_apart.then(|| format!("no connection to the coordinator: {}", self.why_apart.as_deref().unwrap_or_default()))
    }
}
