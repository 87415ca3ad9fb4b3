//! What goes on at all members, for the autoscaler.

use std::time::Instant;

use super::pool::{Pool, Seat};
use super::term::Member;
use super::{Ledger, MemberId};
use crate::policy::fleet::{Deployment, Load};
use crate::policy::scale::Signals;
use crate::policy::scale::tally::Sums;

/// Who has not been heard for so many heartbeats is silent.
const SILENT: u32 = 2;

/// What a member has said of the load of a deployment.
#[derive(Debug, Clone, Hash)]
pub(super) struct Reported {
    load: Load,
    /// Up to here it has been taken, and when it was.
    taken: Sums,
    taken_at: Instant,
    /// What was taken last, of one second.
    rates: Sums,
}

/// What is remembered between two samples of a deployment.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Sample {
    service_seconds: Sums,
    was_cold: bool,
}

impl Reported {
    /// What went on before this is not of an interval.
    fn new(load: Load, now: Instant) -> Self {
        let (busy, waiting) = (f64::from(load.busy), f64::from(load.waiting));
        let rates = Sums { time: 1.0, present: busy + waiting, waiting, ..Sums::default() };
        Self { load, taken: load.sums, taken_at: now, rates }
    }

    /// `is_next`: nothing was said in between that is not known here.
    fn update(&mut self, load: Load, is_next: bool, now: Instant) {
        if is_next && !self.load.is_active() && self.taken == self.load.sums {
            // Nothing went on in the silence before: its time is not of this interval.
            let since = now.saturating_duration_since(self.taken_at).as_secs_f64();
            self.taken.time = self.taken.time.max(load.sums.time - since);
        }
        self.load = load;
    }

    /// What went on lately, of one second. Who has said nothing has nothing going on, or goes on as before and is not heard.
    fn take(&mut self, now: Instant) -> Sums {
        let news = self.load.sums - std::mem::replace(&mut self.taken, self.load.sums);
        self.taken_at = now;
        if news.time > 0.0 {
            self.rates = news.per_second();
        } else if !self.load.is_active() {
            self.rates = Sums::default();
        }
        self.rates
    }
}

impl Ledger {
    pub(super) fn load(&mut self, seat: Seat, loads: Vec<(Deployment, Load)>, begins: bool, now: Instant) {
        let Some(member) = self.seats.get_mut(&seat) else { return };
        if begins {
            // It says all.
            member.loads.retain(|name, _| loads.iter().any(|(said, _)| said == name));
        }
        for (deployment, load) in loads {
            match member.loads.get_mut(&deployment) {
                Some(reported) => reported.update(load, !begins, now),
                None => _ = member.loads.insert(deployment, Reported::new(load, now)),
            }
        }
    }

    /// Requests of a deployment in flight and waiting, at all members whose lease has not expired.
    pub fn present(&self, deployment: &Deployment, now: Instant) -> (u32, u32) {
        let settings = self.settings;
        let here = self.seats.values().filter(|member| now < member.expiry(&settings));
        let loads = here.filter_map(|member| member.loads.get(deployment)).map(|reported| reported.load);
        loads.fold((0, 0), |(busy, waiting), load| (busy + load.busy, waiting + load.waiting))
    }

    /// What has gone on since this was last called, at all members whose lease has not expired; for one caller only. Each
    /// member's means are over its own time, so that it does not matter when it reports. The same figures as of one router,
    /// by [`Tally::take`](crate::policy::scale::tally::Tally::take).
    pub fn take_signals(&mut self, deployment: &Deployment, now: Instant) -> Signals {
        let (_, waiting) = self.present(deployment, now);
        let settings = self.settings;
        let here = self.seats.values_mut().filter(|member| now < member.expiry(&settings));
        let rates = here.filter_map(|member| member.loads.get_mut(deployment)).map(|reported| reported.take(now));
        let rates = rates.fold(Sums::default(), |sum, of| sum + of);
        let is_cold = self.pools.get(deployment).is_none_or(Pool::is_cold);
        let sample = self.samples.entry(deployment.clone()).or_default();
        if rates.served > 0.0 {
            sample.service_seconds = rates;
        }
        let was_cold = std::mem::replace(&mut sample.was_cold, is_cold);
        let service_seconds = sample.service_seconds.service_seconds().unwrap_or_default();
        Signals::of(&rates, service_seconds, waiting as usize, is_cold || was_cold)
    }

    /// Who may hold slots, how many they do, and how many requests wait there.
    pub fn members(&self) -> impl Iterator<Item = (&MemberId, u32, u32)> {
        self.seats.iter().map(|(&seat, member)| {
            let slots = self.pools.values().map(|pool| pool.held_by(seat)).sum();
            let waiting = member.loads.values().map(|reported| reported.load.waiting).sum();
            (&member.id, slots, waiting)
        })
    }

    /// Members that may hold slots and have not been heard for two heartbeats: what is said of them is what they last said.
    pub fn silent(&self, now: Instant) -> impl Iterator<Item = &MemberId> {
        let longest = self.settings.surely(self.settings.heartbeat * SILENT);
        self.seats.values().filter(move |member: &&Member| now >= member.renewed + longest).map(|member| &member.id)
    }
}
