//! Events of a deployment besides requests: replicas die, and settings change.

use rand::RngExt;

use super::{ConnectBehavior, World};
use crate::event_queue::RequestEvent;
use crate::scenario::{Scenario, pick};
use crate::{Checked, MILLISECOND};

impl World {
    pub(super) fn dies(&mut self, replica: usize) {
        let Some(running) = self.replica_behaviors.get_mut(replica) else { return };
        *running = *pick(&mut self.rng, &[ConnectBehavior::Refuses, ConnectBehavior::Blackholes]);
        for request in 0..self.requests.len() {
            if self.requests[request].stage.slot_in_use().is_some_and(|slot| slot.replica == replica) {
                let delay = self.rng.random_range(0..=MILLISECOND);
                self.schedule_for(request, delay, RequestEvent::BreaksOff);
            }
        }
    }

    pub(super) fn revives(&mut self, replica: usize) {
        if let Some(running) = self.replica_behaviors.get_mut(replica) {
            *running = ConnectBehavior::Accepts;
        }
    }

    /// One of the changes that `control::index` makes when it reads what is wanted now.
    pub(super) fn change(&mut self) -> Checked {
        let (wanted, draining) = (self.model.replicas_by_presence(true), self.model.replicas_by_presence(false));
        match self.rng.random_range(0..4) {
            0 if wanted.len() < 6 => self.add(),
            1 if !wanted.is_empty() => {
                let replica = *pick(&mut self.rng, &wanted);
                self.remove(replica)
            }
            2 if !draining.is_empty() => {
                let replica = *pick(&mut self.rng, &draining);
                self.trace_event(|_| format!("  replica {replica} is wanted again"));
                self.model.restore_replica(replica);
                let grants = self.admission.restore_replica(self.model.id(replica));
                self.deliver_grants(grants)
            }
            _ => {
                let rules = Scenario::rules(&mut self.rng);
                self.trace_event(|_| format!("  {rules:?}"));
                self.model.set_rules(rules);
                let grants = self.admission.set_rules(rules);
                self.deliver_grants(grants)
            }
        }
    }

    pub(super) fn add(&mut self) -> Checked {
        let (id, grants) = self.admission.add_replica();
        self.trace_event(|world| format!("  replica {} is added as {id:?}", world.replica_behaviors.len()));
        self.model.add_replica(id)?;
        self.replica_behaviors.push(ConnectBehavior::Accepts);
        self.deliver_grants(grants)
    }

    pub(super) fn remove(&mut self, replica: usize) -> Checked {
        self.trace_event(|_| format!("  replica {replica} is removed"));
        let gone = self.admission.remove_replica(self.model.id(replica));
        self.model.remove_replica(replica, gone)
    }
}
