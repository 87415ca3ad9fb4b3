//! State of one data-plane thread, and state that all of them share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::Cache;
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;

use super::connection_pool::ConnectionPool;
use super::{error_response, request_id};
use crate::model::refusal::Refusal;
use crate::model::router_settings::{Limits, StatusCodes};
use crate::state::access_log::AccessLog;
use crate::state::comparison_queue::ComparisonQueue;
use crate::state::lifecycle::Lifecycle;
use crate::state::metrics::{EndpointMetrics, Metrics};
use crate::state::mirror::Budget;
use crate::state::routing_table::{PublishedTable, RoutingTable};
use crate::state::tokens::TokenState;

/// State that all workers share.
#[derive(Debug)]
pub struct DataPlaneState {
    /// The current routing table.
    pub table: PublishedTable,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Limits for requests of clients.
    pub limits: Limits,
    /// The status codes of errors.
    pub status_codes: StatusCodes,
    /// The access log; `None` if requests are not logged.
    pub access_log: Option<AccessLog>,
    /// The lifecycle of the process.
    pub lifecycle: Lifecycle,
    /// State of token authentication.
    pub tokens: Arc<TokenState>,
    /// Memory budget for mirrored requests.
    pub mirror_budget: Arc<Budget>,
    /// The queue of answers to compare.
    pub comparisons: ComparisonQueue,
}

/// State of one data-plane thread. No other thread ever accesses it.
pub(super) struct Worker {
    pub(super) shared: Arc<DataPlaneState>,
    /// Metrics of requests that name no endpoint.
    pub(super) unrouted_metrics: EndpointMetrics,
    pub(super) pool: ConnectionPool,
    /// Whether connections finish their requests and close.
    pub(super) is_draining: Cell<bool>,
    /// When the last warning was logged that could apply to every request.
    last_warning_at: Cell<Option<Instant>>,
    table: RefCell<Cache<PublishedTable, Arc<RoutingTable>>>,
    rng: RefCell<SmallRng>,
    connection_wakers: RefCell<HashMap<u64, Waker>>,
    next_connection_id: Cell<u64>,
    /// Kept until draining starts.
    own_shutdown_guard: Cell<Option<mpsc::Sender<()>>>,
    /// Guards are created from this, also while draining.
    weak_shutdown_guard: mpsc::WeakSender<()>,
}

impl Worker {
    /// Creates a worker, and a receiver that closes when nothing is left to wait for after [`Worker::drain`].
    pub(super) fn new(shared: Arc<DataPlaneState>) -> (Rc<Self>, mpsc::Receiver<()>) {
        let (shutdown_guard, ended) = mpsc::channel(1);
        let worker = Self {
            unrouted_metrics: shared.metrics.unrouted_metrics(),
            pool: ConnectionPool::default(),
            is_draining: Cell::new(false),
            last_warning_at: Cell::default(),
            table: RefCell::new(Cache::new(shared.table.clone())),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            connection_wakers: RefCell::default(),
            next_connection_id: Cell::new(0),
            weak_shutdown_guard: shutdown_guard.downgrade(),
            own_shutdown_guard: Cell::new(Some(shutdown_guard)),
            shared,
        };
        (Rc::new(worker), ended)
    }

    /// Reads the current routing table.
    pub(super) fn with_table<T>(&self, read: impl FnOnce(&RoutingTable) -> T) -> T {
        read(self.table.borrow_mut().load())
    }

    /// Draws a random number from the generator of this worker.
    pub(super) fn with_rng<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.rng.borrow_mut())
    }

    /// Counts the refusal of a request that could not be parsed, and returns the HTTP/1 response.
    pub(super) fn reject_unparsed(&self, refusal: Refusal) -> Bytes {
        self.unrouted_metrics.record_rejection(error_response::error_code(refusal));
        self.unrouted_metrics.record_response(error_response::status_code(refusal, self.shared.status_codes).as_u16());
        error_response::raw_http1_response(refusal, &self.with_rng(request_id::generate))
    }

    /// Returns whether to log a warning that could apply to every request: at most once per second.
    pub(super) fn should_warn(&self) -> bool {
        let now = Instant::now();
        let is_due = self.last_warning_at.get().is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1));
        if is_due {
            self.last_warning_at.set(Some(now));
        }
        is_due
    }

    /// Returns a guard whose life delays the end of the worker; `None` when the worker is ending.
    pub(super) fn shutdown_guard(&self) -> Option<mpsc::Sender<()>> {
        self.weak_shutdown_guard.upgrade()
    }

    /// Registers a connection, which is woken when draining starts, as long as the result lives.
    pub(super) fn register_connection(self: &Rc<Self>, waker: Waker) -> RegisteredConnection {
        let id = self.next_connection_id.get();
        self.next_connection_id.set(id + 1);
        self.connection_wakers.borrow_mut().insert(id, waker);
        RegisteredConnection { worker: self.clone(), id }
    }

    /// Makes every connection finish its requests and close.
    pub(super) fn drain(&self) {
        self.is_draining.set(true);
        self.own_shutdown_guard.take();
        for waker in self.connection_wakers.borrow().values() {
            waker.wake_by_ref();
        }
    }
}

/// A connection that is woken when draining starts.
pub(super) struct RegisteredConnection {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for RegisteredConnection {
    fn drop(&mut self) {
        self.worker.connection_wakers.borrow_mut().remove(&self.id);
    }
}
