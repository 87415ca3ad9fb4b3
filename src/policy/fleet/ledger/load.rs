//! The load of all members, for the autoscaler.

use std::time::Instant;

use super::slot_pool::{MemberIndex, SlotPool};
use super::term::LedgerMember;
use super::{Ledger, MemberId};
use crate::policy::fleet::{DeploymentId, MemberLoad};
use crate::policy::scale::Signals;
use crate::policy::scale::tally::LoadSums;

/// A member that has not been heard for this many heartbeats is silent.
const SILENT_AFTER_HEARTBEATS: u32 = 2;

/// The load of a deployment that a member has reported.
#[derive(Debug, Clone, Hash)]
pub(super) struct ReportedLoad {
    load: MemberLoad,
    /// The sums that were taken last, and when.
    sampled: LoadSums,
    sampled_at: Instant,
    /// The rates per second that were taken last.
    rates: LoadSums,
}

/// State that is kept between two samples of a deployment.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct SignalBaseline {
    last_service_rates: LoadSums,
    was_cold: bool,
}

impl ReportedLoad {
    /// The load before this time does not belong to an interval.
    fn new(load: MemberLoad, now: Instant) -> Self {
        let (busy, waiting) = (f64::from(load.in_flight), f64::from(load.queued));
        let rates = LoadSums { time: 1.0, present: busy + waiting, waiting, ..LoadSums::default() };
        Self { load, sampled: load.sums, sampled_at: now, rates }
    }

    /// Updates the load. `is_next` says that no report is missing in between.
    fn update(&mut self, load: MemberLoad, is_next: bool, now: Instant) {
        if is_next && !self.load.is_active() && self.sampled == self.load.sums {
            // The time of a silence does not belong to this interval.
            let since = now.saturating_duration_since(self.sampled_at).as_secs_f64();
            self.sampled.time = self.sampled.time.max(load.sums.time - since);
        }
        self.load = load;
    }

    /// Returns the recent rates per second. A member that has reported nothing has no load, or continues as before and
    /// is not heard.
    fn sample_rates(&mut self, now: Instant) -> LoadSums {
        let elapsed = self.load.sums - std::mem::replace(&mut self.sampled, self.load.sums);
        self.sampled_at = now;
        if elapsed.time > 0.0 {
            self.rates = elapsed.per_second();
        } else if !self.load.is_active() {
            self.rates = LoadSums::default();
        }
        self.rates
    }
}

impl Ledger {
    pub(super) fn apply_loads(
        &mut self,
        index: MemberIndex,
        loads: Vec<(DeploymentId, MemberLoad)>,
        is_hello: bool,
        now: Instant,
    ) {
        let Some(member) = self.members.get_mut(&index) else { return };
        if is_hello {
            // The report contains every deployment with a load.
            member.loads.retain(|name, _| loads.iter().any(|(said, _)| said == name));
        }
        for (deployment, load) in loads {
            match member.loads.get_mut(&deployment) {
                Some(reported) => reported.update(load, !is_hello, now),
                None => _ = member.loads.insert(deployment, ReportedLoad::new(load, now)),
            }
        }
    }

    /// Returns the requests of a deployment in flight and queued, at all members whose lease has not expired.
    pub fn outstanding(&self, deployment: &DeploymentId, now: Instant) -> (u32, u32) {
        let timing = self.timing;
        let here = self.members.values().filter(|member| now < member.lease_expires_at(&timing));
        let loads = here.filter_map(|member| member.loads.get(deployment)).map(|reported| reported.load);
        loads.fold((0, 0), |(busy, waiting), load| (busy + load.in_flight, waiting + load.queued))
    }

    /// Returns the signals since the last call, at all members whose lease has not expired. Only one caller may use it.
    /// Each member's means are over its own time, so that it does not matter when it reports. The figures are those
    /// that [`LoadTally::take_signals`](crate::policy::scale::tally::LoadTally::take_signals) returns for one router.
    pub fn take_signals(&mut self, deployment: &DeploymentId, now: Instant) -> Signals {
        let (_, waiting) = self.outstanding(deployment, now);
        let timing = self.timing;
        let here = self.members.values_mut().filter(|member| now < member.lease_expires_at(&timing));
        let rates =
            here.filter_map(|member| member.loads.get_mut(deployment)).map(|reported| reported.sample_rates(now));
        let rates = rates.fold(LoadSums::default(), |sum, of| sum + of);
        let is_cold = self.pools.get(deployment).is_none_or(SlotPool::is_cold);
        let sample = self.signal_baselines.entry(deployment.clone()).or_default();
        if rates.served > 0.0 {
            sample.last_service_rates = rates;
        }
        let was_cold = std::mem::replace(&mut sample.was_cold, is_cold);
        let service_seconds = sample.last_service_rates.service_seconds().unwrap_or_default();
        Signals::from_rates(&rates, service_seconds, waiting as usize, is_cold || was_cold)
    }

    /// Returns the members that may hold slots, with their slots and queued requests.
    pub fn members(&self) -> impl Iterator<Item = (&MemberId, u32, u32)> {
        self.members.iter().map(|(&index, member)| {
            let slots = self.pools.values().map(|pool| pool.held_by(index)).sum();
            let waiting = member.loads.values().map(|reported| reported.load.queued).sum();
            (&member.id, slots, waiting)
        })
    }

    /// Returns the members that may hold slots and have not been heard for two heartbeats. Their figures are those of
    /// their last report.
    pub fn silent_members(&self, now: Instant) -> impl Iterator<Item = &MemberId> {
        let max_silence = self.timing.with_drift_margin(self.timing.heartbeat_interval * SILENT_AFTER_HEARTBEATS);
        self.members
            .values()
            .filter(move |member: &&LedgerMember| now >= member.renewed_at + max_silence)
            .map(|member| &member.id)
    }
}
