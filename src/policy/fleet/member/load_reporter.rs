//! Reports of a deployment's load to the coordinator.

use std::time::Instant;

use crate::policy::fleet::{FleetTiming, MemberLoad};

#[derive(Debug, Clone, Hash)]
pub(super) struct LoadReporter {
    load: MemberLoad,
    /// The load that was last reported in this session, and when.
    last_reported: Option<(MemberLoad, Instant)>,
}

impl LoadReporter {
    pub(super) fn new(load: MemberLoad) -> Self {
        Self { load, last_reported: None }
    }

    pub(super) fn set_load(&mut self, load: MemberLoad) {
        self.load = load;
    }

    /// Returns when the load has to be reported if it has changed. Returns `None` also if nothing was ever reported:
    /// then it is reported at once.
    pub(super) fn due_at(&self, timing: &FleetTiming) -> Option<Instant> {
        self.last_reported
            .filter(|(told, _)| self.load.has_changed_since(told))
            .map(|(_, at)| at + timing.report_interval)
    }

    /// Begins a session, in which everything is reported.
    pub(super) fn report_now(&mut self, now: Instant) -> MemberLoad {
        self.last_reported = Some((self.load, now));
        self.load
    }

    pub(super) fn take_due(&mut self, now: Instant, timing: &FleetTiming) -> Option<MemberLoad> {
        let is_due = self.last_reported.is_none() || self.due_at(timing).is_some_and(|at| at <= now);
        is_due.then(|| self.report_now(now))
    }
}
