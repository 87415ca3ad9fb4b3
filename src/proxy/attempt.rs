//! One attempt to send a request to one replica: a connection, the request, the response head.

use std::rc::Rc;
use std::time::Instant;

use http::header::HOST;
use http::{Request, response};

use super::exchange::{AttemptError, Exchange};
use super::upload::Upload;
use super::upstream::UpstreamConnection;
use super::worker::Worker;
use crate::state::routing_table::DeploymentEntry;
use crate::state::slots::Slot;

/// Sends a request to the replica of `slot`, over an idle connection if there is one. Returns the slot and the request
/// if nothing of it can have been sent.
pub(super) async fn attempt(
    worker: &Rc<Worker>,
    deployment: &DeploymentEntry,
    mut slot: Slot,
    mut request: Box<Request<Upload>>,
    dispatched: Instant,
) -> Result<(response::Parts, Exchange), AttemptError> {
    let host = deployment.host_header.as_ref().unwrap_or(&slot.replica().host_header).clone();
    request.headers_mut().insert(HOST, host);
    loop {
        if slot.is_expired() {
            return Err(AttemptError::NotSent(slot, request));
        }
        let pooled = worker.pool.take_connection(slot.replica(), deployment.tls.as_ref());
        let was_pooled = pooled.is_some();
        let connection = match pooled {
            Some(connection) => connection,
            None => match Box::pin(UpstreamConnection::connect(&slot.replica().address, deployment.tls.as_ref())).await
            {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, replica = slot.replica().address, "failed to connect to replica");
                    if deployment.tls.is_some() && worker.should_warn() {
                        let replica = slot.replica().address.as_str();
                        tracing::warn!(%error, replica, "failed to connect to replica with TLS");
                    }
                    if !is_local_resource_exhaustion(&error) {
                        slot.record_failure(Instant::now());
                    }
                    return Err(AttemptError::NotSent(slot, request));
                }
            },
        };
        let exchange =
            Exchange::start(worker.clone(), connection, slot, request, &deployment.spec.request_settings, dispatched);
        match exchange.response_head().await {
            // A replica may close an idle connection at any time, so this does not count as a failure.
            Err(AttemptError::NotSent(returned_slot, unsent)) if was_pooled => {
                deployment.metrics.record_retry("stale_connection");
                (slot, request) = (returned_slot, unsent);
            }
            Err(AttemptError::NotSent(slot, unsent)) => {
                if !slot.is_expired() {
                    slot.record_failure(Instant::now());
                }
                return Err(AttemptError::NotSent(slot, unsent));
            }
            other => return other,
        }
    }
}

/// Returns whether a connection failed for want of local file descriptors or ports, which is no failure of the replica.
fn is_local_resource_exhaustion(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|error| shortages.contains(&error))
}
