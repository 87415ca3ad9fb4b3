//! The task that owns all replica tasks and brings them to what is desired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use super::plan::{Seen, plan};
use super::replica::{Order, Replica, Shared};
use super::{ReplicaKey, Wanted};
use crate::model::endpoint::Process;
use crate::model::name::Name;

pub(super) struct Crew {
    shared: Arc<Shared>,
    deployments: BTreeMap<(Name, Name), Deployment>,
    tasks: JoinSet<()>,
}

struct Deployment {
    process: Arc<Process>,
    count: u32,
    /// Requests in flight, by index, when the count was last set.
    busy: BTreeMap<u32, u32>,
    members: BTreeMap<u32, Member>,
}

/// A replica task as its owner sees it.
struct Member {
    process: Arc<Process>,
    ready: Arc<AtomicBool>,
    order: watch::Sender<Order>,
    task: Id,
}

impl Crew {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, deployments: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Follows `desired` until its sender is dropped, then stops everything; returns when all replicas are gone.
    pub(super) async fn run(mut self, mut desired: watch::Receiver<Vec<Wanted>>) {
        loop {
            tokio::select! {
                changed = desired.changed() => match changed {
                    Ok(()) => self.adopt(&desired.borrow_and_update()),
                    Err(_) => break,
                },
                () = self.shared.changed.notified() => {}
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
            }
            self.reconcile();
        }
        for member in self.deployments.values().flat_map(|deployment| deployment.members.values()) {
            member.order.send_replace(Order::Stop);
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended);
        }
    }

    fn adopt(&mut self, desired: &[Wanted]) {
        for deployment in self.deployments.values_mut() {
            deployment.count = 0;
        }
        for Wanted { spec, count, busy } in desired {
            let deployment =
                self.deployments.entry((spec.endpoint.clone(), spec.deployment.clone())).or_insert_with(|| {
                    Deployment {
                        process: Arc::new(spec.process.clone()),
                        count: 0,
                        busy: BTreeMap::new(),
                        members: BTreeMap::new(),
                    }
                });
            deployment.count = *count;
            deployment.busy.clone_from(busy);
            if *deployment.process != spec.process {
                deployment.process = Arc::new(spec.process.clone());
            }
        }
    }

    fn reconcile(&mut self) {
        for ((endpoint, name), deployment) in &mut self.deployments {
            let plan = plan(deployment.count, &deployment.seen());
            for member in plan.stop.iter().filter_map(|index| deployment.members.get(index)) {
                member.order.send_replace(Order::Drain);
            }
            for _ in 0..plan.start {
                let key =
                    ReplicaKey { endpoint: endpoint.clone(), deployment: name.clone(), index: deployment.free_index() };
                deployment.start(key, &self.shared, &mut self.tasks);
            }
        }
        self.deployments.retain(|_, deployment| deployment.count > 0 || !deployment.members.is_empty());
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let task = match ended {
            Ok((task, ())) => task,
            Err(error) => {
                tracing::error!("a replica's task failed, it is started anew: {error}");
                error.id()
            }
        };
        for deployment in self.deployments.values_mut() {
            deployment.members.retain(|_, member| member.task != task);
        }
    }
}

impl Deployment {
    fn seen(&self) -> Vec<Seen> {
        let running = self.members.iter().filter(|(_, member)| *member.order.borrow() == Order::Run);
        running
            .map(|(index, member)| Seen {
                index: *index,
                current: member.process == self.process,
                ready: member.ready.load(Ordering::Acquire),
                busy: self.busy.get(index).copied().unwrap_or_default(),
            })
            .collect()
    }

    /// An index stays taken until its process is gone, so that a key never means two processes.
    fn free_index(&self) -> u32 {
        (0..).find(|index| !self.members.contains_key(index)).unwrap_or(u32::MAX)
    }

    fn start(&mut self, key: ReplicaKey, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
        let (order, receiver) = watch::channel(Order::Run);
        let (index, ready) = (key.index, Arc::new(AtomicBool::new(false)));
        let replica = Replica {
            name: key.to_string(),
            key,
            process: Arc::clone(&self.process),
            ready: Arc::clone(&ready),
            order: receiver,
            shared: Arc::clone(shared),
        };
        let task = tasks.spawn(replica.run()).id();
        self.members.insert(index, Member { process: Arc::clone(&self.process), ready, order, task });
    }
}
