//! The slots of one deployment, shared by all workers: [`crate::policy::admit`] behind a lock, with slots as owned
//! guards and queued requests that are woken.
//!
//! The lock is held for a few dozen instructions, and never across a wait or another lock.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::{Notify, oneshot};

use crate::model::endpoint::RequestSettings;
use crate::policy::admit::{
    Admission, AdmissionOutcome, AdmissionRules, AvoidedReplicas, Grant, Occupancy, ReplicaId, Ticket,
};
use crate::policy::health::Availability;
use crate::policy::scale::Signals;
use crate::policy::scale::tally::LoadTally;
use crate::state::membership::Membership;

mod acquire;
mod leases;
mod slot;
pub use acquire::{AcquireOutcome, QueuedAcquire};
use leases::DeploymentLeases;
pub use leases::ReplicaCapacity;
pub use slot::Slot;

/// One replica of a deployment.
#[derive(Debug)]
pub struct Replica {
    /// Unique over the life of the process; the key of the replica's pooled connections.
    pub id: u64,
    /// The name of the replica in the fleet.
    name: Arc<str>,
    /// The `host:port` to connect to.
    pub address: String,
    /// The address as a value of the `host` header.
    pub host_header: HeaderValue,
    /// Whether the replica has failed since its last answer. The success of a replica without failures takes no lock.
    is_suspect: AtomicBool,
    /// How often everything in flight on the replica had to be cut.
    revocations: AtomicU32,
}

/// The slots of one deployment. They survive changes of the deployment's settings.
#[derive(Debug)]
pub struct DeploymentSlots {
    state: Mutex<SlotsState>,
    /// Notified when a request is queued and there is no replica.
    cold_start_requested: Notify,
    membership: Option<Arc<Membership>>,
}

#[derive(Debug)]
struct SlotsState {
    admission: Admission<oneshot::Sender<Slot>>,
    /// Replicas by [`ReplicaId::index`]; `None` where there is none.
    replicas: Vec<Option<TrackedReplica>>,
    tally: LoadTally,
    /// How long a request may wait for the first replica, where the deployment scales from zero.
    cold_start_timeout: Option<Duration>,
    /// When the first replica is expected to be ready.
    first_replica_expected_at: Option<Instant>,
    /// The leases of the replicas, where other routers use the same replicas.
    leases: Option<Box<DeploymentLeases>>,
}

#[derive(Debug)]
struct TrackedReplica {
    replica: Arc<Replica>,
    /// Dropped with the entry, when the last request in flight has ended.
    drained_tx: Option<oneshot::Sender<()>>,
}

/// A queued request and the replica whose slot it was granted.
type QueueGrant = Grant<oneshot::Sender<Slot>>;
/// A slot for a queued request. It is sent after the lock is released, because a request that has left drops the slot.
type SlotDelivery = (oneshot::Sender<Slot>, Slot);

/// Why a request got no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireError {
    /// The queue is full. A retry makes sense after this time.
    QueueFull(Duration),
    /// The queue wait was exceeded. A retry makes sense after this time.
    TimedOut(Duration),
    /// The queue wait was exceeded and no replica was ready. A retry makes sense after this time.
    NoReplica(Duration),
}

/// A replica, as `/api/endpoints` shows it.
#[derive(Debug, Clone)]
pub struct ReplicaView {
    /// The `host:port` of the replica.
    pub address: String,
    /// The number of requests in flight.
    pub busy: u32,
    /// The state: `ready`, `ejected` or `draining`.
    pub state: &'static str,
}

fn admission_rules(settings: &RequestSettings) -> AdmissionRules {
    AdmissionRules { replica_cap: settings.max_concurrent_per_instance, queue_length: settings.max_queue_length }
}

impl DeploymentSlots {
    /// Creates the slots of a deployment without replicas, for a router that is alone.
    pub fn new(settings: &RequestSettings) -> Arc<Self> {
        Self::with_optional_leases(settings, None)
    }

    /// Creates the slots of a deployment without replicas, for a router of a fleet. `deployment` is the name of the
    /// deployment in the fleet.
    pub fn new_shared(settings: &RequestSettings, membership: Arc<Membership>, deployment: Arc<str>) -> Arc<Self> {
        Self::with_optional_leases(settings, Some(DeploymentLeases::new(membership, deployment, settings)))
    }

    fn with_optional_leases(settings: &RequestSettings, leases: Option<DeploymentLeases>) -> Arc<Self> {
        let admission = if leases.is_some() { Admission::new_leased } else { Admission::new };
        let membership = leases.as_ref().map(DeploymentLeases::membership);
        let inner = SlotsState {
            admission: admission(admission_rules(settings)),
            replicas: Vec::new(),
            tally: LoadTally::new(Instant::now()),
            cold_start_timeout: None,
            first_replica_expected_at: None,
            leases: leases.map(Box::new),
        };
        Arc::new(Self { state: Mutex::new(inner), cold_start_requested: Notify::new(), membership })
    }

    /// Sets how long a request that finds no replica may wait for the first one; `None`: as long as any other request.
    pub fn set_cold_start_timeout(&self, timeout: Option<Duration>) {
        self.lock().cold_start_timeout = timeout;
    }

    /// Sets when the first replica is expected, for the `retry-after` of rejected requests.
    pub fn set_first_replica_expected_at(&self, at: Option<Instant>) {
        self.lock().first_replica_expected_at = at;
    }

    /// Waits until a request is queued while there is no replica, or returns at once if that happened since the last
    /// call.
    pub async fn wait_for_cold_start_request(&self) {
        self.cold_start_requested.notified().await;
    }

    /// Returns the signals since the last call. Only the autoscaler of the deployment may call it.
    pub fn take_signals(&self, now: Instant) -> Signals {
        let mut inner = self.lock();
        inner.advance_to(now);
        let (waiting, is_cold) = (inner.admission.queue_length(), !inner.admission.has_ready_replica());
        inner.tally.take_signals(waiting, is_cold)
    }

    /// Applies changed settings. Requests in flight are not touched.
    pub fn apply_settings(self: &Arc<Self>, settings: &RequestSettings) {
        let mut inner = self.lock();
        inner.advance_to(Instant::now());
        let mut handed = inner.update_lease_settings(self, settings);
        let grants = inner.admission.set_rules(admission_rules(settings));
        handed.extend(inner.issue_slots(self, grants, Instant::now()));
        self.unlock_and_deliver(inner, handed);
    }

    /// Adds a ready replica at `address`. `id` is unique over the life of the process; `name` is the replica's name in
    /// the fleet. A draining replica with this name and address is taken back, with the requests in flight on it.
    pub fn add_replica(self: &Arc<Self>, id: u64, name: &str, address: &str) -> ReplicaId {
        let mut inner = self.lock();
        inner.advance_to(Instant::now());
        let (at, grants) = match inner.find_draining_replica(name, address) {
            Some(at) => (at, inner.admission.restore_replica(at)),
            None => inner.add_replica(Replica::new(id, name, address)),
        };
        let mut handed = inner.issue_slots(self, grants, Instant::now());
        handed.extend(inner.sync_replica(self, at));
        self.unlock_and_deliver(inner, handed);
        at
    }

    /// Starts to drain a replica: it gets no new requests. `drained` is dropped when nothing is in flight on it any
    /// more.
    pub fn remove_replica(self: &Arc<Self>, id: ReplicaId, drained: Option<oneshot::Sender<()>>) {
        let mut inner = self.lock();
        let gone = inner.admission.remove_replica(id);
        let handed = inner.sync_replica(self, id);
        let entry = &mut inner.replicas[id.index()];
        match entry {
            Some(entry) if !gone => entry.drained_tx = drained,
            _ => *entry = None,
        }
        self.unlock_and_deliver(inner, handed);
    }

    /// Returns a slot, or a place in the queue until `deadline`.
    ///
    /// # Errors
    ///
    /// [`AcquireError::QueueFull`], or [`AcquireError::NoReplica`] if the queue is full because no replica is ready.
    pub fn acquire(
        self: &Arc<Self>,
        now: Instant,
        deadline: Instant,
        avoid: AvoidedReplicas,
    ) -> Result<AcquireOutcome, AcquireError> {
        let mut inner = self.lock();
        inner.advance_to(now);
        self.acquire_or_enqueue(inner, now, deadline, avoid)
    }

    fn acquire_or_enqueue(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, SlotsState>,
        now: Instant,
        deadline: Instant,
        avoid: AvoidedReplicas,
    ) -> Result<AcquireOutcome, AcquireError> {
        if inner.leases.is_some() && !inner.has_lease() {
            inner.admission.suppress_lease_requests(now);
        }
        let (deadline, is_first) = inner.queue_deadline(now, deadline, avoid);
        let mut receiver = None;
        let arrival = inner.admission.request_slot(avoid, now, deadline, || {
            let (sender, slot) = oneshot::channel();
            receiver = Some(slot);
            sender
        });
        match (arrival, receiver) {
            (AdmissionOutcome::Queued(ticket), Some(slot)) => {
                inner.tally.record_arrival();
                if is_first {
                    self.cold_start_requested.notify_one();
                }
                inner.sync_leases(self);
                Ok(AcquireOutcome::Queued(QueuedAcquire { slots: self.clone(), ticket, deadline, slot_rx: slot }))
            }
            (AdmissionOutcome::Granted(id), _) => {
                inner.tally.record_arrival();
                let slot = inner.issue_slot(self, id, now);
                inner.sync_leases(self);
                slot.map(AcquireOutcome::Granted).ok_or(AcquireError::NoReplica(Duration::from_secs(1)))
            }
            (AdmissionOutcome::Full | AdmissionOutcome::Queued(_), _) => {
                inner.tally.record_rejection();
                Err(inner.rejection_error(now, AcquireError::QueueFull))
            }
        }
    }

    /// Returns a slot if one is free now, here or at another router.
    pub fn try_acquire(self: &Arc<Self>, now: Instant) -> Option<AcquireOutcome> {
        let mut inner = self.lock();
        inner.advance_to(now);
        if !inner.admission.has_free_slot() && !inner.admission.may_wait_for_lease(now, 0) {
            inner.tally.record_rejection();
            return None;
        }
        self.acquire_or_enqueue(inner, now, now, AvoidedReplicas::default()).ok()
    }

    /// Returns whether a replica that is not in `avoid` can take requests, now or when a slot is free.
    pub fn has_ready_replica_except(&self, avoid: AvoidedReplicas) -> bool {
        self.lock().admission.has_ready_replica_except(avoid)
    }

    /// Counts replicas, slots and queued requests by state.
    pub fn occupancy(&self) -> Occupancy {
        self.lock().admission.occupancy()
    }

    /// Returns the cap: the requests that one replica may have in flight.
    pub fn replica_cap(&self) -> u32 {
        self.lock().admission.rules().replica_cap.get()
    }

    /// Returns the number of requests in flight on a replica.
    pub fn in_flight_on(&self, id: ReplicaId) -> u32 {
        self.lock().admission.replica_load(id).0
    }

    /// Returns every replica, draining ones included.
    pub fn replicas(&self) -> Vec<ReplicaView> {
        let inner = self.lock();
        let entries = inner.replicas.iter().flatten();
        let view = |entry: &TrackedReplica, id| {
            let (busy, presence) = inner.admission.replica_load(id);
            let state = match presence {
                None => "draining",
                Some(Availability::Ejected(_)) => "ejected",
                Some(Availability::Available | Availability::Probe) => "ready",
            };
            ReplicaView { address: entry.replica.address.clone(), busy, state }
        };
        let ids = inner.admission.replica_ids();
        entries.zip(ids).map(|(entry, id)| view(entry, id)).collect()
    }

    /// Removes a queued request whose deadline has passed. Returns its error, in which `retry-after` counts only the
    /// other queued requests.
    fn time_out_queued(self: &Arc<Self>, ticket: Ticket, now: Instant) -> AcquireError {
        let mut inner = self.lock();
        inner.advance_to(now);
        let removed = inner.admission.cancel_queued(ticket);
        if removed.is_some() {
            inner.tally.record_timeout();
            inner.admission.suppress_lease_requests(now);
        }
        let error = inner.rejection_error(now, AcquireError::TimedOut);
        inner.sync_leases(self);
        drop(inner);
        drop(removed);
        error
    }

    /// Makes ejected replicas available for a probe once their backoff is over.
    fn start_due_probes(self: &Arc<Self>, now: Instant) {
        let mut inner = self.lock();
        inner.advance_to(now);
        let grants = inner.admission.start_due_probes(now);
        let mut handed = inner.issue_slots(self, grants, now);
        handed.extend(inner.sync_all_replicas(self));
        self.unlock_and_deliver(inner, handed);
    }

    /// Releases the lock after a complete change, then delivers slots to the queued requests that they were granted to.
    fn unlock_and_deliver(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, SlotsState>,
        handed: impl IntoIterator<Item = SlotDelivery>,
    ) {
        inner.sync_leases(self);
        Self::deliver_slots(inner, handed);
    }

    fn deliver_slots(inner: MutexGuard<'_, SlotsState>, handed: impl IntoIterator<Item = SlotDelivery>) {
        drop(inner);
        for (waiter, slot) in handed {
            // A request that has just left drops the slot, which passes to the next one.
            let _ = waiter.send(slot);
        }
    }

    /// A panic elsewhere cannot leave the counts wrong, because every change is complete before anything can fail.
    fn lock(&self) -> MutexGuard<'_, SlotsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    fn new(id: u64, name: &str, address: &str) -> Self {
        Self {
            id,
            name: name.into(),
            address: address.to_owned(),
            host_header: HeaderValue::from_str(address).unwrap_or_else(|_| HeaderValue::from_static("model")),
            is_suspect: AtomicBool::new(false),
            revocations: AtomicU32::new(0),
        }
    }
}

impl SlotsState {
    /// Advances the clock before a change.
    fn advance_to(&mut self, now: Instant) {
        self.tally.advance_to(now, self.admission.queue_length());
        self.refresh_lease_state(now);
    }

    fn add_replica(&mut self, replica: Replica) -> (ReplicaId, Vec<QueueGrant>) {
        let (at, grants) = self.admission.add_replica();
        if let Some(leases) = &mut self.leases {
            leases.set_replica_name(at, &replica.name);
        }
        if self.replicas.len() <= at.index() {
            self.replicas.resize_with(at.index() + 1, || None);
        }
        self.replicas[at.index()] = Some(TrackedReplica { replica: Arc::new(replica), drained_tx: None });
        (at, grants)
    }

    /// Returns the error of a request that is rejected now: `error`, or that there is no ready replica.
    fn rejection_error(&self, now: Instant, error: fn(Duration) -> AcquireError) -> AcquireError {
        let after = self.admission.retry_after(now, self.queued_elsewhere());
        if self.admission.has_ready_replica() {
            return error(after);
        }
        let start = self.first_replica_expected_at.map(|at| at.saturating_duration_since(now)).unwrap_or_default();
        AcquireError::NoReplica(after.max(start))
    }

    /// Returns the draining replica with this name and address.
    fn find_draining_replica(&self, name: &str, address: &str) -> Option<ReplicaId> {
        self.admission.replica_ids().find(|id| {
            let replica = self.replicas[id.index()].as_ref().map(|entry| &entry.replica);
            replica.is_some_and(|replica| (&*replica.name, &*replica.address) == (name, address))
                && self.admission.replica_load(*id).1.is_none()
        })
    }

    fn issue_slot(&mut self, slots: &Arc<DeploymentSlots>, id: ReplicaId, since: Instant) -> Option<Slot> {
        let replica = self.replicas[id.index()].as_ref()?.replica.clone();
        let (right, revocations) = (self.begin_leased_request(id), replica.revocations.load(Ordering::Relaxed));
        Some(Slot {
            slots: slots.clone(),
            replica_id: id,
            replica,
            acquired_at: since,
            grant_basis: right,
            revocations_at_start: revocations,
        })
    }

    fn issue_slots(
        &mut self,
        slots: &Arc<DeploymentSlots>,
        grants: Vec<QueueGrant>,
        now: Instant,
    ) -> Vec<SlotDelivery> {
        grants.into_iter().filter_map(|(waiter, id)| Some((waiter, self.issue_slot(slots, id, now)?))).collect()
    }
}

#[cfg(test)]
mod tests;
