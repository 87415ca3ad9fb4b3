//! One try of a request at one replica: a connection, the request, the response head.

use std::rc::Rc;
use std::time::Instant;

use http::header::HOST;
use http::{Request, response};

use super::exchange::{Exchange, NoHead};
use super::upload::Upload;
use super::upstream::Connection;
use super::worker::Worker;
use crate::state::slots::Slot;
use crate::state::table::Deployment;

/// Sends a request to the replica of `slot`, over a warm connection if there is one. Gives it back when nothing of it
/// can have been sent.
pub(super) async fn attempt(
    worker: &Rc<Worker>,
    deployment: &Deployment,
    mut slot: Slot,
    mut request: Box<Request<Upload>>,
    dispatched: Instant,
) -> Result<(response::Parts, Exchange), NoHead> {
    let host = deployment.host.as_ref().unwrap_or(&slot.replica().host).clone();
    request.headers_mut().insert(HOST, host);
    loop {
        if slot.is_expired() {
            return Err(NoHead::NotSent(slot, request));
        }
        let warm = worker.pool.take(slot.replica(), deployment.tls.as_ref());
        let was_warm = warm.is_some();
        let connection = match warm {
            Some(connection) => connection,
            None => match Box::pin(Connection::open(&slot.replica().address, deployment.tls.as_ref())).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, replica = slot.replica().address, "no connection");
                    if deployment.tls.is_some() && worker.may_complain() {
                        tracing::warn!(%error, replica = slot.replica().address, "no connection with TLS");
                    }
                    if !is_our_own_shortage(&error) {
                        slot.failed(Instant::now());
                    }
                    return Err(NoHead::NotSent(slot, request));
                }
            },
        };
        let exchange =
            Exchange::start(worker.clone(), connection, slot, request, &deployment.spec.requests, dispatched);
        match exchange.head().await {
            // The replica had closed it meanwhile, as it may: not a failure.
            Err(NoHead::NotSent(back, unsent)) if was_warm => {
                deployment.metrics.retried("stale_connection");
                (slot, request) = (back, unsent);
            }
            Err(NoHead::NotSent(slot, unsent)) => {
                if !slot.is_expired() {
                    slot.failed(Instant::now());
                }
                return Err(NoHead::NotSent(slot, unsent));
            }
            other => return other,
        }
    }
}

/// Whether a connection failed for want of file descriptors or ports here, which says nothing of the replica.
fn is_our_own_shortage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|error| shortages.contains(&error))
}
