//! Where the shares of this router are: each behind the lock of its deployment's slots.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::policy::fleet::member::{Share, Shares};
use crate::policy::fleet::{Deployment, Load};
use crate::state::slots::Slots;

/// Every share.
#[derive(Debug)]
pub(super) struct Registry {
    /// What time it is for whoever looks. Not by the clock: the process may stand still while it is at it, and what is to be
    /// done then is decided before anything is looked at.
    now: Instant,
    /// A deployment that is gone is nobody's any more.
    all: HashMap<Deployment, Weak<Slots>>,
    /// Those that are looked at: of ten thousand deployments most rest.
    restless: BTreeMap<Deployment, Arc<Slots>>,
    /// Of deployments that are not known here, or not any more: what is granted of them goes back.
    strays: BTreeMap<Deployment, Share>,
    /// Of deployments that were made again, what they were before, until nothing is left of that.
    former: Vec<(Deployment, Arc<Slots>)>,
}

impl Registry {
    /// Of nothing.
    pub(super) fn new(now: Instant) -> Self {
        let (all, restless, strays, former) = (HashMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { now, all, restless, strays, former }
    }

    /// It is so late now.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// A deployment has something to say.
    pub(super) fn note(&mut self, deployment: &Deployment, slots: Arc<Slots>) {
        let known = self.all.get(deployment).is_some_and(|known| known.as_ptr() == Arc::as_ptr(&slots));
        if !known {
            self.all.insert(deployment.clone(), Arc::downgrade(&slots));
        }
        if let Some(before) = self.restless.insert(deployment.clone(), slots.clone())
            && !Arc::ptr_eq(&before, &slots)
        {
            self.former.push((deployment.clone(), before));
        }
    }

    /// The slots of a deployment, if it is known.
    pub(super) fn slots(&self, deployment: &Deployment) -> Option<Arc<Slots>> {
        self.all.get(deployment).and_then(Weak::upgrade)
    }

    /// Whether any does not rest.
    pub(super) fn is_lively(&self) -> bool {
        !self.restless.is_empty()
    }

    /// What goes on in those that do not rest.
    pub(super) fn loads(&self, now: Instant) -> Vec<(Deployment, Load)> {
        self.restless.iter().map(|(deployment, slots)| (deployment.clone(), slots.load(now))).collect()
    }

    /// What is not behind the lock of a deployment that is known by its name.
    fn others(&mut self, now: Instant, mut with: impl FnMut(&Deployment, &mut Share)) {
        for (_, slots) in &self.former {
            slots.look(now, &mut with);
        }
        self.strays.iter_mut().for_each(|(deployment, share)| with(deployment, share));
    }

    /// Leaves out those that have come to rest. Returns deployments that are gone.
    pub(super) fn settle(&mut self) -> Vec<Deployment> {
        let now = self.now;
        self.restless.retain(|_, slots| slots.look(now, |_, share| !share.is_at_rest()).unwrap_or(false));
        self.strays.retain(|_, share| !share.is_at_rest());
        self.former.retain(|(_, slots)| slots.look(now, |_, share| !share.is_at_rest()).unwrap_or(false));
        self.all.extract_if(|_, slots| slots.strong_count() == 0).map(|(deployment, _)| deployment).collect()
    }
}

impl Shares for Registry {
    fn each(&mut self, mut with: impl FnMut(&Deployment, &mut Share)) {
        let now = self.now;
        for slots in self.all.values().filter_map(Weak::upgrade) {
            slots.look(now, &mut with);
        }
        self.others(now, with);
    }

    fn restless(&mut self, mut with: impl FnMut(&Deployment, &mut Share)) {
        let now = self.now;
        for slots in self.restless.values() {
            slots.look(now, &mut with);
        }
        self.others(now, with);
    }

    fn of(&mut self, deployment: &Deployment, with: impl FnOnce(&mut Share)) {
        let mut with = Some(with);
        if let Some(slots) = self.slots(deployment) {
            slots.look(self.now, |_, share| with.take().into_iter().for_each(|with| with(share)));
            self.restless.insert(deployment.clone(), slots);
        }
        if let Some(with) = with {
            with(self.strays.entry(deployment.clone()).or_default());
        }
    }
}
