//! What a member has told of the load of a deployment.

use std::time::Instant;

use crate::policy::fleet::{Load, Settings};

#[derive(Debug, Clone, Hash)]
pub(super) struct News {
    load: Load,
    /// In this session, and when.
    told: Option<(Load, Instant)>,
}

impl News {
    pub(super) fn new(load: Load) -> Self {
        Self { load, told: None }
    }

    pub(super) fn set(&mut self, load: Load) {
        self.load = load;
    }

    /// When it has to be told, if it has changed. `None` also where nothing was ever told: then it is told at once.
    pub(super) fn due_at(&self, settings: &Settings) -> Option<Instant> {
        self.told.filter(|(told, _)| self.load.differs_from(told)).map(|(_, at)| at + settings.report)
    }

    /// A session begins: everything is told.
    pub(super) fn begin(&mut self, now: Instant) -> Load {
        self.told = Some((self.load, now));
        self.load
    }

    pub(super) fn take(&mut self, now: Instant, settings: &Settings) -> Option<Load> {
        let is_due = self.told.is_none() || self.due_at(settings).is_some_and(|at| at <= now);
        is_due.then(|| self.begin(now))
    }
}
