//! Connections to replicas that wait for their next request.
//!
//! A connection belongs to one worker and has no task of its own: whoever uses it drives it, an idle one is only looked
//! after once in a while.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::upstream::Connection;
use crate::state::slots::Replica;
use crate::state::tls::Connector;

/// How long a connection stays warm without use.
const KEEP_IDLE: Duration = Duration::from_secs(55);

/// The idle connections of one worker.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<u64, Idle>>,
}

struct Idle {
    replica: Weak<Replica>,
    /// The one used last at the end.
    #[expect(clippy::vec_box, reason = "a connection is never taken out of its box, only handed around")]
    connections: Vec<Box<Connection>>,
}

impl Pool {
    /// The warmest connection to a replica, if there is one that has TLS as it is asked for now, or none if none is.
    pub(super) fn take(&self, replica: &Replica, tls: Option<&Connector>) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = &mut idle.get_mut(&replica.id)?.connections;
        loop {
            let connection = connections.pop()?;
            if connection.has_tls(tls) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, replica: &Arc<Replica>, mut connection: Box<Connection>, now: Instant) {
        connection.rest(now);
        let mut idle = self.idle.borrow_mut();
        let idle = idle
            .entry(replica.id)
            .or_insert_with(|| Idle { replica: Arc::downgrade(replica), connections: Vec::new() });
        idle.connections.push(connection);
    }

    /// Closes what the other side has closed, what was not used for long, and what leads to replicas that are gone.
    pub(super) fn sweep(&self, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.borrow_mut().retain(|_, idle| {
            idle.connections.retain_mut(|connection| {
                connection.rested(now) < KEEP_IDLE && connection.poll_unusable(&mut cx).is_pending()
            });
            !idle.connections.is_empty() && idle.replica.strong_count() > 0
        });
    }
}
