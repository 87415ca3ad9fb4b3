//! The state of a router in its fleet, which all of its deployments share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use super::slots::DeploymentSlots;
use crate::policy::fleet::DeploymentId;
use crate::policy::fleet::member::{LeaseState, MembershipState};
use crate::policy::scale::Signals;

/// The number of requests for signals that may wait.
const SIGNAL_REQUEST_CAPACITY: usize = 1024;

/// The state of a router in its fleet, and the deployments that have changes to report.
#[derive(Debug)]
pub struct Membership {
    state: ArcSwap<MembershipState>,
    dirty: Mutex<Vec<Arc<DeploymentSlots>>>,
    dirty_notify: Notify,
    /// Whether this router is the coordinator.
    is_coordinator: AtomicBool,
    /// Whether the router has ever had slots to use.
    has_joined: AtomicBool,
    /// Whether the router may use no slots now.
    is_without_slots: AtomicBool,
    fleet_status: ArcSwap<FleetStatus>,
    signal_requests_tx: mpsc::Sender<SignalRequest>,
    signal_requests_rx: Mutex<Option<mpsc::Receiver<SignalRequest>>>,
    /// Requests started without a lease.
    pub fallback_requests: IntCounter,
}

/// A request for the signals of a deployment at all routers, since the last such request.
#[derive(Debug)]
pub struct SignalRequest {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Where the signals are sent. A router that is not the coordinator drops it.
    pub reply: oneshot::Sender<Signals>,
}

/// The fleet, as this router sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetStatus {
    /// The name of this router in the fleet.
    pub router: String,
    /// The name of the coordinator, as far as known.
    pub coordinator: Option<String>,
    /// Number of the coordinator's term.
    pub term: u64,
    /// Right by which this router uses slots: `leased`, `fallback` (its fair share, while cut off) or `nothing`.
    pub lease_state: &'static str,
    /// Why the router cannot reach the others, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The members that may hold slots.
    pub members: Vec<MemberStatus>,
    /// Requests in flight and queued at all routers: of every deployment at the coordinator, elsewhere of those with
    /// queued requests.
    #[serde(skip)]
    pub outstanding: HashMap<DeploymentId, (u32, u32)>,
}

/// The overview that the coordinator sends to the members once per second.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FleetOverview {
    /// The members that may hold slots.
    pub members: Vec<MemberStatus>,
    /// Requests in flight and queued at all routers.
    pub outstanding: HashMap<DeploymentId, (u32, u32)>,
}

/// A member of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemberStatus {
    /// The name of the member in the fleet.
    pub name: String,
    /// The number of slots that it holds, if the coordinator has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The number of queued requests there, if the coordinator has reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
}

/// Creates the counter of requests that a router starts in fallback.
///
/// # Errors
/// Never, since the name is a valid metric name.
pub fn fallback_counter() -> prometheus::Result<IntCounter> {
    IntCounter::new(
        "fleet_fallback_requests_total",
        "Requests started without a lease by a router that is cut off from its coordinator; replicas may exceed their cap.",
    )
}

impl Membership {
    /// Creates the shared state.
    ///
    /// # Errors
    ///
    /// Never, since the name of the counter is a valid metric name.
    pub fn new(state: MembershipState) -> prometheus::Result<Arc<Self>> {
        let (signal_requests_tx, signal_requests_rx) = mpsc::channel(SIGNAL_REQUEST_CAPACITY);
        Ok(Arc::new(Self {
            state: ArcSwap::from_pointee(state),
            dirty: Mutex::default(),
            dirty_notify: Notify::new(),
            is_coordinator: AtomicBool::new(false),
            has_joined: AtomicBool::new(false),
            is_without_slots: AtomicBool::new(true),
            fleet_status: ArcSwap::default(),
            signal_requests_tx,
            signal_requests_rx: Mutex::new(Some(signal_requests_rx)),
            fallback_requests: fallback_counter()?,
        }))
    }

    /// Returns the current state of the member.
    pub fn state(&self) -> MembershipState {
        **self.state.load()
    }

    /// Replaces the state of the member.
    pub fn set_state(&self, state: MembershipState) {
        if self.state() != state {
            self.state.store(Arc::new(state));
        }
    }

    /// Sets the right by which this router uses slots, and whether it is the coordinator.
    pub fn set_lease_state(&self, lease_state: LeaseState, is_coordinator: bool) {
        self.is_coordinator.store(is_coordinator, Ordering::Relaxed);
        self.is_without_slots.store(lease_state == LeaseState::NoLease, Ordering::Relaxed);
        if lease_state != LeaseState::NoLease {
            self.has_joined.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether this router is the coordinator, which scales and writes statuses.
    pub fn is_coordinator(&self) -> bool {
        self.is_coordinator.load(Ordering::Relaxed)
    }

    /// Returns why the router cannot serve as a member of its fleet; `None` if it can.
    pub fn not_ready_reason(&self) -> Option<&'static str> {
        if !self.has_joined.load(Ordering::Relaxed) {
            return Some("joining its fleet");
        }
        self.is_without_slots.load(Ordering::Relaxed).then_some("cut off from its fleet")
    }

    /// Returns the fleet as it was last seen.
    pub fn fleet_status(&self) -> Arc<FleetStatus> {
        self.fleet_status.load_full()
    }

    /// Sets the fleet as it is seen now.
    pub fn set_fleet_status(&self, fleet_status: FleetStatus) {
        self.fleet_status.store(Arc::new(fleet_status));
    }

    /// Returns the signals of a deployment at all routers since the last call; `None` if another router is the
    /// coordinator.
    pub async fn request_signals(&self, deployment: &DeploymentId) -> Option<Signals> {
        let (reply, reply_rx) = oneshot::channel();
        self.signal_requests_tx.try_send(SignalRequest { deployment: deployment.clone(), reply }).ok()?;
        reply_rx.await.ok()
    }

    /// Returns the receiver of requests for signals; `None` if it was taken before.
    pub fn take_signal_requests(&self) -> Option<mpsc::Receiver<SignalRequest>> {
        self.signal_requests_rx.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Marks a deployment as dirty: its replicas, its queue or its held slots have changed.
    pub(super) fn mark_dirty(&self, slots: &Arc<DeploymentSlots>) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(slots.clone());
        self.dirty_notify.notify_one();
    }

    /// Waits for dirty deployments, and returns each once until [`DeploymentSlots::with_share`] is called for it. Only
    /// one caller may use it.
    pub async fn next_dirty(&self) -> Vec<Arc<DeploymentSlots>> {
        loop {
            let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
            if !dirty.is_empty() {
                return dirty;
            }
            self.dirty_notify.notified().await;
        }
    }
}
