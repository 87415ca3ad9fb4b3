//! What happens to a deployment besides requests: replicas die, and somebody changes what is wanted.

use rand::RngExt;

use super::{Running, World};
use crate::agenda::What;
use crate::scenario::{Scenario, pick};
use crate::{Checked, MILLISECOND};

impl World {
    pub(super) fn dies(&mut self, replica: usize) {
        let Some(running) = self.replicas.get_mut(replica) else { return };
        *running = *pick(&mut self.rng, &[Running::Refuses, Running::Swallows]);
        for request in 0..self.requests.len() {
            if self.requests[request].stage.sent().is_some_and(|slot| slot.replica == replica) {
                let delay = self.rng.random_range(0..=MILLISECOND);
                self.plan(request, delay, What::BreaksOff);
            }
        }
    }

    pub(super) fn revives(&mut self, replica: usize) {
        if let Some(running) = self.replicas.get_mut(replica) {
            *running = Running::Well;
        }
    }

    /// One of the changes that `control::index` makes when it reads what is wanted now.
    pub(super) fn change(&mut self) -> Checked {
        let (wanted, draining) = (self.model.wanted(true), self.model.wanted(false));
        match self.rng.random_range(0..4) {
            0 if wanted.len() < 6 => self.add(),
            1 if !wanted.is_empty() => {
                let replica = *pick(&mut self.rng, &wanted);
                self.remove(replica)
            }
            2 if !draining.is_empty() => {
                let replica = *pick(&mut self.rng, &draining);
                self.say(|_| format!("  replica {replica} is wanted again"));
                self.model.restored(replica);
                let grants = self.admission.restore(self.model.id(replica));
                self.hand_out(grants)
            }
            _ => {
                let rules = Scenario::rules(&mut self.rng);
                self.say(|_| format!("  {rules:?}"));
                self.model.changed(rules);
                let grants = self.admission.set_rules(rules);
                self.hand_out(grants)
            }
        }
    }

    pub(super) fn add(&mut self) -> Checked {
        let (id, grants) = self.admission.add();
        self.say(|world| format!("  replica {} is added as {id:?}", world.replicas.len()));
        self.model.added(id)?;
        self.replicas.push(Running::Well);
        self.hand_out(grants)
    }

    pub(super) fn remove(&mut self, replica: usize) -> Checked {
        self.say(|_| format!("  replica {replica} is removed"));
        let gone = self.admission.remove(self.model.id(replica));
        self.model.removed(replica, gone)
    }
}
