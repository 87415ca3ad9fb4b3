//! The status and the metrics of the fleet as this router sees it.

use std::time::Instant;

use super::FleetTask;
use crate::policy::fleet::MemberId;
use crate::policy::fleet::member::LeaseState;
use crate::state::membership::{FleetOverview, FleetStatus, MemberStatus};

/// Returns the name of a lease state in the status and in logs.
pub(super) fn lease_state_name(lease_state: LeaseState) -> &'static str {
    match lease_state {
        LeaseState::Alone | LeaseState::Leased => "leased",
        LeaseState::Fallback => "fallback",
        LeaseState::NoLease => "nothing",
    }
}

impl FleetTask {
    /// Publishes the status and the metrics of the fleet.
    pub(super) fn publish_status(&mut self, now: Instant) {
        let coordinator = self.leader_lock.coordinator();
        let member_status = |id: &MemberId| MemberStatus { name: id.name.to_string(), ..MemberStatus::default() };
        let FleetOverview { mut members, outstanding } =
            self.coordinator.overview(now).unwrap_or_else(|| self.overview.clone());
        if members.is_empty() {
            members.extend(self.leader_lock.roster().iter().map(member_status));
        }
        let status = FleetStatus {
            router: self.id.name.to_string(),
            coordinator: coordinator.map(|(holder, _)| holder.name.to_string()),
            term: coordinator.map_or(0, |(_, term)| term.0),
            lease_state: lease_state_name(self.lease_state),
            problem: self.problem(now),
            members,
            outstanding,
        };
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.members.set(count(status.members.len() as u64));
        self.metrics.term.set(count(status.term));
        self.metrics.coordinator.set(self.coordinator.is_coordinator(now).into());
        self.metrics.set_slots(self.coordinator.slot_counts(now));
        self.metrics.slots_granted.inc_by(self.coordinator.take_slots_granted());
        self.membership.set_fleet_status(status);
    }

    /// Returns what separates the router from the rest of the fleet, if anything does.
    fn problem(&self, now: Instant) -> Option<String> {
        if let Some(error) = self.leader_lock.error() {
            return Some(format!("leader lock unavailable: {error}"));
        }
        let is_disconnected = !self.coordinator.is_coordinator(now) && self.connection_error.is_some();
        is_disconnected.then(|| {
            format!("no connection to the coordinator: {}", self.connection_error.as_deref().unwrap_or_default())
        })
    }
}
