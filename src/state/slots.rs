//! The slots of one deployment, shared by all workers: [`crate::policy::admit`] behind a lock, slots as owned guards,
//! waiters that wake.
//!
//! The lock is held for a few dozen instructions and never across a wait or another lock.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::{Notify, oneshot};

use crate::model::endpoint::RequestSettings;
use crate::policy::admit::{Admission, Arrival, Avoid, Grant, Occupancy, ReplicaId, Rules, Ticket};
use crate::policy::health::Fitness;
use crate::policy::scale::Signals;
use crate::policy::scale::tally::Tally;
use crate::state::membership::Membership;

mod leases;
mod slot;
mod waiting;
use leases::Leases;
pub use leases::Lent;
pub use slot::Slot;
pub use waiting::{Acquired, Waiting};

/// One running model server.
#[derive(Debug)]
pub struct Replica {
    /// Unique over the life of the process: the key of its pooled connections.
    pub id: u64,
    /// What all routers call it.
    name: Arc<str>,
    /// `host:port` to connect to.
    pub address: String,
    /// The address, as a `host` header says it.
    pub host: HeaderValue,
    /// Whether it has failed since it last answered: a replica in good health is not asked after under the lock.
    suspect: AtomicBool,
    /// How often all that was in flight had to be cut.
    revocations: AtomicU32,
}

/// The slots of one deployment. Survives changes of the deployment's settings.
#[derive(Debug)]
pub struct Slots {
    inner: Mutex<Inner>,
    /// Told when a request waits where there is no replica.
    asked: Notify,
    membership: Option<Arc<Membership>>,
}

#[derive(Debug)]
struct Inner {
    admission: Admission<oneshot::Sender<Slot>>,
    /// By [`ReplicaId::index`]; `None` where no replica is.
    replicas: Vec<Option<Entry>>,
    tally: Tally,
    /// How long a request may wait for the first replica, where there may be none.
    cold_start_timeout: Option<Duration>,
    /// When the first replica is expected.
    expected: Option<Instant>,
    /// Where other routers use the same replicas.
    leases: Option<Box<Leases>>,
}

#[derive(Debug)]
struct Entry {
    replica: Arc<Replica>,
    /// Dropped with the entry, when the last request in flight has ended.
    drained: Option<oneshot::Sender<()>>,
}

/// Who waits, and which replica's slot is for them.
type Granted = Grant<oneshot::Sender<Slot>>;
/// The same with the slot: to be sent when the lock is free again, since who has left drops it.
type Handed = (oneshot::Sender<Slot>, Slot);

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
    /// No replicas yet; this router's alone.
    pub fn new(settings: &RequestSettings) -> Arc<Self> {
        Self::with(settings, None)
    }

    /// No replicas yet. All routers of the group call the deployment by this name.
    pub fn shared(settings: &RequestSettings, membership: Arc<Membership>, deployment: Arc<str>) -> Arc<Self> {
        Self::with(settings, Some(Leases::new(membership, deployment, settings)))
    }

    fn with(settings: &RequestSettings, leases: Option<Leases>) -> Arc<Self> {
        let admission = if leases.is_some() { Admission::shared } else { Admission::new };
        let membership = leases.as_ref().map(Leases::membership);
        let inner = Inner {
            admission: admission(rules(settings)),
            replicas: Vec::new(),
            tally: Tally::new(Instant::now()),
            cold_start_timeout: None,
            expected: None,
            leases: leases.map(Box::new),
        };
        Arc::new(Self { inner: Mutex::new(inner), asked: Notify::new(), membership })
    }

    /// How long a request that finds no replica may wait for the first; `None`: as long as any other.
    pub fn set_cold_start_timeout(&self, timeout: Option<Duration>) {
        self.lock().cold_start_timeout = timeout;
    }

    /// When the first replica is expected, for those who are turned away meanwhile.
    pub fn expect_replica(&self, at: Option<Instant>) {
        self.lock().expected = at;
    }

    /// Returns when a request waits where there is no replica, or has since this was last called.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// What went on since this was last called; for one caller only.
    pub fn take_signals(&self, now: Instant) -> Signals {
        let mut inner = self.lock();
        inner.pass(now);
        let (waiting, is_cold) = (inner.admission.waiting(), !inner.admission.any_ready());
        inner.tally.take(waiting, is_cold)
    }

    /// Applies changed settings; what is in flight is not touched.
    pub fn set_rules(self: &Arc<Self>, settings: &RequestSettings) {
        let mut inner = self.lock();
        inner.pass(Instant::now());
        let mut handed = inner.lend(self, settings);
        let grants = inner.admission.set_rules(rules(settings));
        handed.extend(inner.slots(self, grants, Instant::now()));
        self.unlock(inner, handed);
    }

    /// Adds a ready replica at `address`; `id` is unique over the life of the process, and `name` is what all routers call
    /// it. One of this name and address that is still on its way out is taken back, with what is in flight on it.
    pub fn add(self: &Arc<Self>, id: u64, name: &str, address: &str) -> ReplicaId {
        let mut inner = self.lock();
        inner.pass(Instant::now());
        let (at, grants) = match inner.draining(name, address) {
            Some(at) => (at, inner.admission.restore(at)),
            None => inner.add(Replica::new(id, name, address)),
        };
        let mut handed = inner.slots(self, grants, Instant::now());
        handed.extend(inner.refit(self, at));
        self.unlock(inner, handed);
        at
    }

    /// Gives a replica nothing new. `drained` is dropped when nothing is in flight on it any more.
    pub fn remove(self: &Arc<Self>, id: ReplicaId, drained: Option<oneshot::Sender<()>>) {
        let mut inner = self.lock();
        let gone = inner.admission.remove(id);
        let handed = inner.refit(self, id);
        let entry = &mut inner.replicas[id.index()];
        match entry {
            Some(entry) if !gone => entry.drained = drained,
            _ => *entry = None,
        }
        self.unlock(inner, handed);
    }

    /// A slot now, or a place in the queue until `deadline`, or neither.
    ///
    /// # Errors
    /// [`NoSlot::QueueFull`], or [`NoSlot::NoReplica`] where that is why the queue is full.
    pub fn acquire(self: &Arc<Self>, now: Instant, deadline: Instant, avoid: Avoid) -> Result<Acquired, NoSlot> {
        let mut inner = self.lock();
        inner.pass(now);
        self.arrive(inner, now, deadline, avoid)
    }

    fn arrive(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner>,
        now: Instant,
        deadline: Instant,
        avoid: Avoid,
    ) -> Result<Acquired, NoSlot> {
        if inner.leases.is_some() && !inner.is_leased() {
            inner.admission.ask_later(now);
        }
        let (deadline, is_first) = inner.patience(now, deadline, avoid);
        let mut receiver = None;
        let arrival = inner.admission.arrive(avoid, now, deadline, || {
            let (sender, slot) = oneshot::channel();
            receiver = Some(slot);
            sender
        });
        match (arrival, receiver) {
            (Arrival::Queued(ticket), Some(slot)) => {
                inner.tally.came();
                if is_first {
                    self.asked.notify_one();
                }
                inner.settle(self);
                Ok(Acquired::Waiting(Waiting { slots: self.clone(), ticket, deadline, slot }))
            }
            (Arrival::Granted(id), _) => {
                inner.tally.came();
                let slot = inner.slot(self, id, now);
                inner.settle(self);
                slot.map(Acquired::Slot).ok_or(NoSlot::NoReplica(Duration::from_secs(1)))
            }
            (Arrival::Full | Arrival::Queued(_), _) => {
                inner.tally.refused();
                Err(inner.turned_away(now, NoSlot::QueueFull))
            }
        }
    }

    /// A slot, if one is free now, here or at another router.
    pub fn take(self: &Arc<Self>, now: Instant) -> Option<Acquired> {
        let mut inner = self.lock();
        inner.pass(now);
        if !inner.admission.any_free() && !inner.admission.may_ask(now, 0) {
            inner.tally.refused();
            return None;
        }
        self.arrive(inner, now, now, Avoid::default()).ok()
    }

    /// Whether a replica that is not in `avoid` can take requests, now or when it is free.
    pub fn any_ready_but(&self, avoid: Avoid) -> bool {
        self.lock().admission.any_ready_but(avoid)
    }

    /// A count of everything.
    pub fn occupancy(&self) -> Occupancy {
        self.lock().admission.occupancy()
    }

    /// Requests that one replica may have in flight.
    pub fn per_replica(&self) -> u32 {
        self.lock().admission.rules().per_replica.get()
    }

    /// Requests in flight on a replica.
    pub fn busy_on(&self, id: ReplicaId) -> u32 {
        self.lock().admission.replica(id).0
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
    fn give_up(self: &Arc<Self>, ticket: Ticket, now: Instant) -> NoSlot {
        let mut inner = self.lock();
        inner.pass(now);
        let left = inner.admission.leave(ticket);
        if left.is_some() {
            inner.tally.timed_out();
            inner.admission.ask_later(now);
        }
        let told = inner.turned_away(now, NoSlot::TimedOut);
        inner.settle(self);
        drop(inner);
        drop(left);
        told
    }

    /// Lets replicas be probed whose back-off is over.
    fn tick(self: &Arc<Self>, now: Instant) {
        let mut inner = self.lock();
        inner.pass(now);
        let grants = inner.admission.tick(now);
        let mut handed = inner.slots(self, grants, now);
        handed.extend(inner.refit_all(self));
        self.unlock(inner, handed);
    }

    /// A change is complete: who was granted a slot gets it, when the lock is free again.
    fn unlock(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, handed: impl IntoIterator<Item = Handed>) {
        inner.settle(self);
        Self::hand_out(inner, handed);
    }

    fn hand_out(inner: MutexGuard<'_, Inner>, handed: impl IntoIterator<Item = Handed>) {
        drop(inner);
        for (waiter, slot) in handed {
            // A waiter that has just left drops the slot, which passes it on.
            let _ = waiter.send(slot);
        }
    }

    /// A panic elsewhere does not make the counts wrong: every change is complete before anything can fail.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    fn new(id: u64, name: &str, address: &str) -> Self {
        Self {
            id,
            name: name.into(),
            address: address.to_owned(),
            host: HeaderValue::from_str(address).unwrap_or_else(|_| HeaderValue::from_static("model")),
            suspect: AtomicBool::new(false),
            revocations: AtomicU32::new(0),
        }
    }
}

impl Inner {
    /// Time passes, before anything changes.
    fn pass(&mut self, now: Instant) {
        self.tally.pass(now, self.admission.waiting());
        self.expire(now);
    }

    fn add(&mut self, replica: Replica) -> (ReplicaId, Vec<Granted>) {
        let (at, grants) = self.admission.add();
        if let Some(leases) = &mut self.leases {
            leases.name(at, &replica.name);
        }
        if self.replicas.len() <= at.index() {
            self.replicas.resize_with(at.index() + 1, || None);
        }
        self.replicas[at.index()] = Some(Entry { replica: Arc::new(replica), drained: None });
        (at, grants)
    }

    /// What a request turned away now should be told: `why`, or that there is no replica.
    fn turned_away(&self, now: Instant, why: fn(Duration) -> NoSlot) -> NoSlot {
        let after = self.admission.retry_after(now, self.waiting_elsewhere());
        if self.admission.any_ready() {
            return why(after);
        }
        let start = self.expected.map(|at| at.saturating_duration_since(now)).unwrap_or_default();
        NoSlot::NoReplica(after.max(start))
    }

    /// A replica of this name at `address` that is on its way out.
    fn draining(&self, name: &str, address: &str) -> Option<ReplicaId> {
        self.admission.ids().find(|id| {
            let replica = self.replicas[id.index()].as_ref().map(|entry| &entry.replica);
            replica.is_some_and(|replica| (&*replica.name, &*replica.address) == (name, address))
                && self.admission.replica(*id).1.is_none()
        })
    }

    fn slot(&mut self, slots: &Arc<Slots>, id: ReplicaId, since: Instant) -> Option<Slot> {
        let replica = self.replicas[id.index()].as_ref()?.replica.clone();
        let (right, revocations) = (self.started(id), replica.revocations.load(Ordering::Relaxed));
        Some(Slot { slots: slots.clone(), id, replica, since, right, revocations })
    }

    fn slots(&mut self, slots: &Arc<Slots>, grants: Vec<Granted>, now: Instant) -> Vec<Handed> {
        grants.into_iter().filter_map(|(waiter, id)| Some((waiter, self.slot(slots, id, now)?))).collect()
    }
}

#[cfg(test)]
mod tests;
