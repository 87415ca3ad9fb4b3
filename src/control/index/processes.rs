//! Local processes as replicas.

use std::net::SocketAddr;

use tokio::sync::oneshot;

use super::Index;
use super::live::Source;
use crate::control::processes::{self, ReplicaKey, ReplicaSpec, Wanted};
use crate::model::endpoint::Target;
use crate::state::status::Pending;

impl Index {
    /// The local processes that are wanted.
    pub fn processes(&self) -> Vec<Wanted> {
        let wanted = self.deployments().filter_map(|(endpoint, deployment, live)| {
            let Target::Process(process) = &deployment.target else { return None };
            let (endpoint, process) = (endpoint.clone(), process.clone());
            let spec = ReplicaSpec { endpoint, deployment: deployment.name.clone(), process };
            Some(Wanted { spec, count: live.count, busy: live.busy() })
        });
        wanted.collect()
    }

    /// Takes note of a local process.
    pub fn process(&mut self, event: processes::Event) {
        let (processes::Event::Pending { key, .. }
        | processes::Event::Ready { key, .. }
        | processes::Event::Gone { key, .. }) = &event;
        let key = key.clone();
        match event {
            processes::Event::Pending { key, trouble } => {
                if let Some(live) = self.live_of(&key) {
                    live.pending.insert(key, trouble);
                }
            }
            processes::Event::Ready { key, address } => self.process_ready(key, address),
            processes::Event::Gone { key, drained } => self.process_gone(&key, drained),
        }
        if let Some(live) = self.live_of(&key) {
            let problem = live.pending.values().flatten().next().cloned();
            let pending = Pending { count: live.pending.len(), problem };
            self.pending(&key.endpoint, &key.deployment, pending);
        }
        self.forget();
    }

    fn process_ready(&mut self, key: ReplicaKey, address: SocketAddr) {
        let id = self.next_replica();
        if let Some(live) = self.live_of(&key) {
            live.pending.remove(&key);
            let address = address.to_string();
            let at = live.slots.add(id, &address, &address);
            live.replicas.insert(Source::Process(key), at);
        }
    }

    fn process_gone(&mut self, key: &ReplicaKey, drained: Option<oneshot::Sender<()>>) {
        let Some(live) = self.live_of(key) else { return };
        live.pending.remove(key);
        if let Some(at) = live.replicas.remove(&Source::Process(key.clone())) {
            live.slots.remove(at, drained);
        }
    }
}
