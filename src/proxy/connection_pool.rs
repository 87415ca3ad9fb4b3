//! Idle connections to replicas.
//!
//! A connection belongs to one worker and has no task of its own. A request that uses it drives it; idle connections
//! are only checked from time to time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::upstream::UpstreamConnection;
use crate::state::slots::Replica;
use crate::state::tls::Connector;

/// The longest time for which a connection is kept without use.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(55);

/// The idle connections of one worker.
#[derive(Default)]
pub(super) struct ConnectionPool {
    idle_by_replica: RefCell<HashMap<u64, IdleConnections>>,
}

struct IdleConnections {
    replica: Weak<Replica>,
    /// The connections, the most recently used last.
    #[expect(clippy::vec_box, reason = "a connection is never taken out of its box, only handed around")]
    connections: Vec<Box<UpstreamConnection>>,
}

impl ConnectionPool {
    /// Takes the most recently used connection to a replica whose TLS configuration is the current one.
    pub(super) fn take_connection(
        &self,
        replica: &Replica,
        tls: Option<&Connector>,
    ) -> Option<Box<UpstreamConnection>> {
        let mut idle = self.idle_by_replica.borrow_mut();
        let connections = &mut idle.get_mut(&replica.id)?.connections;
        loop {
            let connection = connections.pop()?;
            if connection.has_tls_config(tls) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for a later request.
    pub(super) fn return_connection(
        &self,
        replica: &Arc<Replica>,
        mut connection: Box<UpstreamConnection>,
        now: Instant,
    ) {
        connection.mark_idle(now);
        let mut idle = self.idle_by_replica.borrow_mut();
        let idle = idle
            .entry(replica.id)
            .or_insert_with(|| IdleConnections { replica: Arc::downgrade(replica), connections: Vec::new() });
        idle.connections.push(connection);
    }

    /// Closes connections that the replica has closed, that were idle for too long, or whose replica was removed.
    pub(super) fn close_stale_connections(&self, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        self.idle_by_replica.borrow_mut().retain(|_, idle| {
            idle.connections.retain_mut(|connection| {
                connection.idle_time(now) < IDLE_CONNECTION_TIMEOUT && connection.poll_unusable(&mut cx).is_pending()
            });
            !idle.connections.is_empty() && idle.replica.strong_count() > 0
        });
    }
}
