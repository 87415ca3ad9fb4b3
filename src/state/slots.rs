//! The slots of one deployment, shared by all workers: [`crate::policy::admit`] behind a lock, slots as owned guards,
//! waiters that wake.
//!
//! The lock is held for a few dozen instructions and never across a wait or another lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::oneshot;

use crate::model::endpoint::RequestSettings;
use crate::policy::admit::{Admission, Arrival, Avoid, Grant, Occupancy, ReplicaId, Rules, Ticket};
use crate::policy::health::Fitness;

/// One running model server.
#[derive(Debug)]
pub struct Replica {
    /// Unique over the life of the process: the key of its pooled connections.
    pub id: u64,
    /// `host:port` to connect to.
    pub address: String,
    /// The address, as a `host` header says it.
    pub host: HeaderValue,
    /// Whether it has failed since it last answered: a replica in good health is not asked after under the lock.
    suspect: AtomicBool,
}

/// The slots of one deployment. Survives changes of the deployment's settings.
#[derive(Debug)]
pub struct Slots {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    admission: Admission<oneshot::Sender<Slot>>,
    /// By [`ReplicaId::index`]; `None` where no replica is.
    replicas: Vec<Option<Entry>>,
}

#[derive(Debug)]
struct Entry {
    replica: Arc<Replica>,
    /// Dropped with the entry, when the last request in flight has ended.
    drained: Option<oneshot::Sender<()>>,
}

/// The right to have one request in flight on one replica; ends when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    id: ReplicaId,
    replica: Arc<Replica>,
    since: Instant,
}

/// Why there was no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSlot {
    /// As many wait as may; try again after this long.
    QueueFull(Duration),
    /// The longest wait was over; try again after this long.
    TimedOut(Duration),
    /// The same, and no replica could take requests; try again after this long.
    NoReplica(Duration),
}

/// A replica as seen from outside.
#[derive(Debug, Clone)]
pub struct ReplicaView {
    /// `host:port`.
    pub address: String,
    /// Requests in flight.
    pub busy: u32,
    /// `ready`, `set_aside` or `draining`.
    pub state: &'static str,
}

fn rules(settings: &RequestSettings) -> Rules {
    Rules { per_replica: settings.max_concurrent_per_instance, queue_length: settings.max_queue_length }
}

impl Slots {
    /// No replicas yet.
    pub fn new(settings: &RequestSettings) -> Arc<Self> {
        let inner = Inner { admission: Admission::new(rules(settings)), replicas: Vec::new() };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// Applies changed settings; what is in flight is not touched.
    pub fn set_rules(self: &Arc<Self>, settings: &RequestSettings) {
        let grants = self.lock().admission.set_rules(rules(settings));
        self.hand_out(grants);
    }

    /// Adds a ready replica at `address`; `id` is unique over the life of the process. One at this address that is still
    /// on its way out is taken back, with what is in flight on it.
    pub fn add(self: &Arc<Self>, id: u64, address: &str) -> ReplicaId {
        let mut inner = self.lock();
        let (at, grants) = match inner.draining(address) {
            Some(at) => (at, inner.admission.restore(at)),
            None => inner.add(Replica::new(id, address)),
        };
        drop(inner);
        self.hand_out(grants);
        at
    }

    /// Gives a replica nothing new. `drained` is dropped when nothing is in flight on it any more.
    pub fn remove(&self, id: ReplicaId, drained: Option<oneshot::Sender<()>>) {
        let mut inner = self.lock();
        let gone = inner.admission.remove(id);
        let entry = &mut inner.replicas[id.index()];
        match entry {
            Some(entry) if !gone => entry.drained = drained,
            _ => *entry = None,
        }
    }

    /// A slot now, or a place in the queue until `deadline`, or neither.
    ///
    /// # Errors
    /// [`NoSlot::QueueFull`], or [`NoSlot::NoReplica`] where that is why the queue is full.
    pub fn acquire(self: &Arc<Self>, now: Instant, deadline: Instant, avoid: Avoid) -> Result<Acquired, NoSlot> {
        let mut inner = self.lock();
        let mut receiver = None;
        let arrival = inner.admission.arrive(avoid, deadline, || {
            let (sender, slot) = oneshot::channel();
            receiver = Some(slot);
            sender
        });
        match (arrival, receiver) {
            (Arrival::Queued(ticket), Some(slot)) => {
                Ok(Acquired::Waiting(Waiting { slots: self.clone(), ticket, deadline, slot }))
            }
            (Arrival::Granted(id), _) => {
                inner.slot(self, id, now).map(Acquired::Slot).ok_or(NoSlot::NoReplica(Duration::from_secs(1)))
            }
            (Arrival::Full | Arrival::Queued(_), _) => Err(inner.turned_away(now, NoSlot::QueueFull)),
        }
    }

    /// Whether a replica that is not in `avoid` can take requests, now or when it is free.
    pub fn any_ready_but(&self, avoid: Avoid) -> bool {
        self.lock().admission.any_ready_but(avoid)
    }

    /// A count of everything.
    pub fn occupancy(&self) -> Occupancy {
        self.lock().admission.occupancy()
    }

    /// Every replica, those on their way out included.
    pub fn replicas(&self) -> Vec<ReplicaView> {
        let inner = self.lock();
        let entries = inner.replicas.iter().flatten();
        let view = |entry: &Entry, id| {
            let (busy, presence) = inner.admission.replica(id);
            let state = match presence {
                None => "draining",
                Some(Fitness::Aside(_)) => "set_aside",
                Some(Fitness::Fit | Fitness::Probe) => "ready",
            };
            ReplicaView { address: entry.replica.address.clone(), busy, state }
        };
        let ids = inner.admission.ids();
        entries.zip(ids).map(|(entry, id)| view(entry, id)).collect()
    }

    /// Takes out of the queue who has waited long enough. Returns what it should be told, which is about the others:
    /// it does not wait for itself.
    fn give_up(&self, ticket: Ticket, now: Instant) -> NoSlot {
        let mut inner = self.lock();
        let left = inner.admission.leave(ticket);
        let told = inner.turned_away(now, NoSlot::TimedOut);
        drop(inner);
        drop(left);
        told
    }

    /// Lets replicas be probed whose back-off is over.
    fn tick(self: &Arc<Self>, now: Instant) {
        let grants = self.lock().admission.tick(now);
        self.hand_out(grants);
    }

    fn hand_out(self: &Arc<Self>, grants: impl IntoIterator<Item = Grant<oneshot::Sender<Slot>>>) {
        for (waiter, id) in grants {
            let slot = self.lock().slot(self, id, Instant::now());
            if let Some(slot) = slot {
                // A waiter that has just left drops the slot, which passes it on.
                let _ = waiter.send(slot);
            }
        }
    }

    /// A panic elsewhere does not make the counts wrong: every change is complete before anything can fail.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    fn new(id: u64, address: &str) -> Self {
        Self {
            id,
            address: address.to_owned(),
            host: HeaderValue::from_str(address).unwrap_or_else(|_| HeaderValue::from_static("model")),
            suspect: AtomicBool::new(false),
        }
    }
}

impl Inner {
    fn add(&mut self, replica: Replica) -> (ReplicaId, Vec<Grant<oneshot::Sender<Slot>>>) {
        let (at, grants) = self.admission.add();
        if self.replicas.len() <= at.index() {
            self.replicas.resize_with(at.index() + 1, || None);
        }
        self.replicas[at.index()] = Some(Entry { replica: Arc::new(replica), drained: None });
        (at, grants)
    }

    /// What a request turned away now should be told: `why`, or that there is no replica.
    fn turned_away(&self, now: Instant, why: fn(Duration) -> NoSlot) -> NoSlot {
        let after = self.admission.retry_after(now);
        if self.admission.any_ready() { why(after) } else { NoSlot::NoReplica(after) }
    }

    /// A replica at `address` that is on its way out.
    fn draining(&self, address: &str) -> Option<ReplicaId> {
        self.admission.ids().find(|id| {
            let entry = self.replicas[id.index()].as_ref();
            entry.is_some_and(|entry| entry.replica.address == address) && self.admission.replica(*id).1.is_none()
        })
    }

    fn slot(&self, slots: &Arc<Slots>, id: ReplicaId, since: Instant) -> Option<Slot> {
        let entry = self.replicas[id.index()].as_ref()?;
        Some(Slot { slots: slots.clone(), id, replica: entry.replica.clone(), since })
    }
}

impl Slot {
    /// Where the request goes.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The replica's place in the deployment, to avoid it the next time.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// The replica has answered, or at least accepted.
    pub fn succeeded(&self) {
        if !self.replica.suspect.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.slots.lock();
        self.replica.suspect.store(false, Ordering::Relaxed);
        let grants = inner.admission.succeeded(self.id);
        drop(inner);
        self.slots.hand_out(grants);
    }

    /// The replica could not be reached, or broke off before an answer.
    pub fn failed(&self, now: Instant) {
        let mut inner = self.slots.lock();
        let until = inner.admission.failed(self.id, now);
        // Under the lock: a success at the same time must not make a replica unsuspected that is then set aside.
        self.replica.suspect.store(true, Ordering::Relaxed);
        drop(inner);
        if let Some(until) = until {
            let back_off = until.saturating_duration_since(now);
            tracing::warn!(replica = self.replica.address, ?back_off, "replica set aside: its connections fail");
            let slots = self.slots.clone();
            // Rare, and short-lived: one sleep each time a replica is set aside.
            tokio::spawn(async move {
                tokio::time::sleep_until(until.into()).await;
                slots.tick(until.max(Instant::now()));
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.slots.lock();
        let (grant, gone) = inner.admission.release(self.id, self.since.elapsed());
        let entry = if gone { inner.replicas[self.id.index()].take() } else { None };
        drop(inner);
        drop(entry);
        self.slots.hand_out(grant);
    }
}

/// What [`Slots::acquire`] gives.
#[derive(Debug)]
pub enum Acquired {
    /// Go ahead.
    Slot(Slot),
    /// Wait for it.
    Waiting(Waiting),
}

/// A place in the queue; given up when dropped.
#[derive(Debug)]
pub struct Waiting {
    slots: Arc<Slots>,
    ticket: Ticket,
    deadline: Instant,
    slot: oneshot::Receiver<Slot>,
}

impl Waiting {
    /// Waits for a slot, until the deadline.
    ///
    /// # Errors
    /// [`NoSlot`] when the deadline passes first.
    pub async fn slot(mut self) -> Result<Slot, NoSlot> {
        match tokio::time::timeout_at(self.deadline.into(), &mut self.slot).await {
            Ok(Ok(slot)) => Ok(slot),
            // The sender lives in the queue until it is used or this waiter leaves.
            Ok(Err(_)) | Err(_) => Err(self.slots.give_up(self.ticket, Instant::now())),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let left = self.slots.lock().admission.leave(self.ticket);
        drop(left);
        // A slot that was granted in the meantime is in the channel, and goes back when that is dropped.
    }
}

#[cfg(test)]
mod tests;
