//! What one data-plane thread owns, and what all of them share.

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

use super::pool::Pool;
use super::{request_id, respond};
use crate::model::limits::{Limits, StatusCodes};
use crate::model::refusal::Refusal;
use crate::state::access_log::AccessLog;
use crate::state::comparisons::Comparisons;
use crate::state::lifecycle::Lifecycle;
use crate::state::metrics::{EndpointMetrics, Metrics};
use crate::state::mirror::Budget;
use crate::state::table::{Published, Table};
use crate::state::tokens::Tokens;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The routing table of now.
    pub table: Published,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What clients may send.
    pub limits: Limits,
    /// Which status codes errors have.
    pub status_codes: StatusCodes,
    /// Where requests are logged, if they are.
    pub access_log: Option<AccessLog>,
    /// The life of the process.
    pub lifecycle: Lifecycle,
    /// What is known about tokens.
    pub tokens: Arc<Tokens>,
    /// Memory for copies of live requests.
    pub mirror_budget: Arc<Budget>,
    /// Where answers to copied requests go.
    pub comparisons: Comparisons,
}

/// One data-plane thread's own state; nothing here is ever seen by another thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// Counters of requests that name no endpoint.
    pub(super) nowhere: EndpointMetrics,
    pub(super) pool: Pool,
    /// Connections finish what they do and close.
    pub(super) draining: Cell<bool>,
    /// When something was last logged that could be said of every request.
    complained: Cell<Option<Instant>>,
    table: RefCell<Cache<Published, Arc<Table>>>,
    rng: RefCell<SmallRng>,
    connections: RefCell<HashMap<u64, Waker>>,
    next_connection: Cell<u64>,
    /// Kept until draining starts.
    alive: Cell<Option<mpsc::Sender<()>>>,
    /// Tokens of life are made from this, also while draining.
    life: mpsc::WeakSender<()>,
}

impl Worker {
    /// A worker, and a receiver that closes when nothing is left to wait for after [`Worker::drain`].
    pub(super) fn new(shared: Arc<Shared>) -> (Rc<Self>, mpsc::Receiver<()>) {
        let (alive, ended) = mpsc::channel(1);
        let worker = Self {
            nowhere: shared.metrics.no_endpoint(),
            pool: Pool::default(),
            draining: Cell::new(false),
            complained: Cell::default(),
            table: RefCell::new(Cache::new(shared.table.clone())),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            life: alive.downgrade(),
            alive: Cell::new(Some(alive)),
            shared,
        };
        (Rc::new(worker), ended)
    }

    /// Reads the routing table of now.
    pub(super) fn with_table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(self.table.borrow_mut().load())
    }

    /// Draws with this worker's own generator.
    pub(super) fn with_rng<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.rng.borrow_mut())
    }

    /// Counts a refusal of what could not even be read, and returns its HTTP/1 answer.
    pub(super) fn unread(&self, refusal: Refusal) -> Bytes {
        self.nowhere.rejected(respond::code(refusal));
        self.nowhere.answered(respond::status(refusal, self.shared.status_codes).as_u16());
        respond::raw(refusal, &self.with_rng(request_id::fresh))
    }

    /// Whether to log what could be said of every request: at most once a second.
    pub(super) fn may_complain(&self) -> bool {
        let now = Instant::now();
        let may = self.complained.get().is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1));
        if may {
            self.complained.set(Some(now));
        }
        may
    }

    /// A token whose life delays the end of the worker. `None` when that has come.
    pub(super) fn alive(&self) -> Option<mpsc::Sender<()>> {
        self.life.upgrade()
    }

    /// Wakes a connection when draining starts, while the result lives.
    pub(super) fn register(self: &Rc<Self>, waker: Waker) -> Registered {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        self.connections.borrow_mut().insert(id, waker);
        Registered { worker: self.clone(), id }
    }

    /// Every connection finishes what it does and closes.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.alive.take();
        for waker in self.connections.borrow().values() {
            waker.wake_by_ref();
        }
    }
}

/// A connection that is woken when draining starts.
pub(super) struct Registered {
    worker: Rc<Worker>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().remove(&self.id);
    }
}
