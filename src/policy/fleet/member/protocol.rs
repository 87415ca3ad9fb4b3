//! The member's side of the session with its coordinator.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::{
    CoordinatorUpdate, DeploymentId, Heartbeat, Hello, MemberReport, ReplicaSlots, SlotClaim, ToCoordinator,
};
use super::{FleetMember, SessionPhase, Shares};

impl<S: Shares> FleetMember<S> {
    pub(super) fn take_hello(&mut self, now: Instant) -> ToCoordinator {
        let heartbeat = self.next_heartbeat(now);
        let state = self.membership_state();
        let is_leased = now < state.lease_expires_at;
        let (mut claims, mut unusable, mut demand) = (Vec::new(), Vec::new(), Vec::new());
        self.shares.for_each_share(|deployment, share| {
            claims.extend(share.slot_claims(is_leased, now >= state.abort_at(share.hold_duration())));
            share.begin_session();
            unusable.extend(share.unusable_replicas());
            demand.extend(share.take_demand_report(deployment, now, true, &state.timing));
        });
        let loads = self.load_reporters.iter_mut().map(|(name, news)| (name.clone(), news.report_now(now))).collect();
        let (term, session) = (self.highest_term, self.session);
        let hello = Hello { term, session, heartbeat, claims: claims.clone(), unusable, demand, loads };
        self.phase = SessionPhase::AwaitingWelcome(claims, now);
        ToCoordinator::Hello(hello)
    }

    pub(super) fn take_report(&mut self, now: Instant) -> Option<ToCoordinator> {
        let (term, session, timing) = (self.highest_term, self.session, self.state.timing);
        if self.state.is_draining {
            let mut in_flight = 0;
            self.shares.for_each_active_share(|_, share| {
                let (_, busy, fallback) = share.usage();
                in_flight += busy + fallback;
            });
            if in_flight == 0 {
                // No request may start on slots that the coordinator takes back now.
                self.end_session();
                self.state.lease_expires_at = now;
                return Some(ToCoordinator::Bye { term, session });
            }
        }
        let is_due = now >= self.next_heartbeat_at;
        // Only one message is outstanding: messages are sent as often as the coordinator answers.
        let mut needs_answer = false;
        if self.unanswered_heartbeats.is_empty() {
            self.shares.for_each_active_share(|_, share| needs_answer |= share.has_unsent_yields());
        }
        let (last_answered, next_heartbeat_at) = (self.last_answered_heartbeat, self.next_heartbeat_at);
        let heartbeat = (is_due || needs_answer).then(|| Heartbeat { number: self.next_heartbeat(now), last_answered });
        if !is_due {
            // The next heartbeat that reports everything is sent when it was due before.
            self.next_heartbeat_at = next_heartbeat_at;
        }
        let (mut returned, mut unusable_changes, mut demand) = (Vec::new(), Vec::new(), Vec::new());
        self.shares.for_each_active_share(|deployment, share| {
            returned.extend(share.take_returns());
            if let Some(heartbeat) = heartbeat {
                share.mark_yields_sent_with(heartbeat.number);
            }
            unusable_changes.extend(share.take_unusable_changes());
            demand.extend(share.take_demand_report(deployment, now, is_due, &timing));
        });
        let loads = self.load_reporters.iter_mut();
        let loads: Vec<_> =
            loads.filter_map(|(name, news)| Some((name.clone(), news.take_due(now, &timing)?))).collect();
        let has_no_changes = returned.is_empty() && unusable_changes.is_empty() && demand.is_empty();
        let is_empty = heartbeat.is_none() && has_no_changes && loads.is_empty();
        let report = MemberReport { term, session, heartbeat, returned, unusable_changes, demand, loads };
        (!is_empty).then_some(ToCoordinator::Report(report))
    }

    pub(super) fn handle_welcome(&mut self, heartbeat: u64, keep_limits: &[ReplicaSlots], now: Instant) {
        let SessionPhase::AwaitingWelcome(claims, sent) = &self.phase else { return };
        self.state.lease_expires_at = *sent + self.state.timing.lease_duration;
        let mut by_deployment: BTreeMap<&DeploymentId, Vec<&SlotClaim>> = BTreeMap::new();
        for claim in claims {
            by_deployment.entry(&claim.replica.deployment).or_default().push(claim);
        }
        self.shares.for_each_share(|deployment, share| {
            share.accept_claims(by_deployment.get(deployment).into_iter().flatten().copied())
        });
        (self.phase, self.coordinator_heard_at, self.state.has_joined) = (SessionPhase::Open, now, true);
        self.acknowledge_heartbeat(heartbeat, now);
        self.set_keep_limits(keep_limits);
        self.return_all_surplus();
    }

    pub(super) fn handle_update(&mut self, update: &CoordinatorUpdate, now: Instant) {
        self.coordinator_heard_at = now;
        if let Some(heartbeat) = update.heartbeat {
            self.acknowledge_heartbeat(heartbeat, now);
        }
        for (key, slots) in &update.granted {
            self.shares.with_share(&key.deployment, |share| share.add_grant(key, *slots));
        }
        self.set_keep_limits(&update.keep_limits);
        for wanted in &update.remote_demand {
            self.shares.with_share(&wanted.deployment, |share| share.set_remote_demand(wanted, now));
        }
        self.return_all_surplus();
    }

    /// Renews the lease. It lasts from when the heartbeat was sent, while the coordinator counts from a later time.
    pub(super) fn acknowledge_heartbeat(&mut self, heartbeat: u64, now: Instant) {
        if let Some((_, sent)) = self.unanswered_heartbeats.iter().find(|sent| sent.0 == heartbeat) {
            let rtt = now.saturating_duration_since(*sent);
            self.state.timing.steal_threshold = self.rtt.steal_threshold(rtt, self.state.timing.heartbeat_interval);
            self.state.lease_expires_at = self.state.lease_expires_at.max(*sent + self.state.timing.lease_duration);
        }
        self.unanswered_heartbeats.retain(|sent| sent.0 > heartbeat);
        self.last_answered_heartbeat = self.last_answered_heartbeat.max(heartbeat);
        self.shares.for_each_active_share(|_, share| share.acknowledge_heartbeat(heartbeat));
    }

    pub(super) fn set_keep_limits(&mut self, keep_limits: &[ReplicaSlots]) {
        for (key, keep) in keep_limits {
            self.shares.with_share(&key.deployment, |share| share.set_keep_limit(key, *keep));
        }
    }
}
