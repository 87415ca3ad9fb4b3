//! The router as one of several, if it is.

use std::io;

use kube::Client;
use kube::api::Api;

use super::listeners::Gate;
use crate::config::Settings;
use crate::control::fleet::{self, Fleet, Parts, Store};
use crate::model::fleet::LeasePlace;
use crate::proxy::Shared;

/// What speaks for the router in its group; `None`: it is alone. To be called inside a tokio runtime.
///
/// # Errors
/// When the system does not take the socket.
pub(super) fn join(
    settings: &Settings,
    gate: Option<Gate>,
    client: Option<&Client>,
    shared: &Shared,
) -> io::Result<Option<Fleet>> {
    let (Some(settings), Some(Gate { socket, acceptor, secret })) = (&settings.fleet, gate) else { return Ok(None) };
    let store = match (&settings.lease, client) {
        (LeasePlace::File(file), _) => Store::File(file.clone()),
        (LeasePlace::Kubernetes(name), Some(client)) => {
            Store::Lease(Box::new(Api::default_namespaced(client.clone())), name.clone(), settings.term)
        }
        (LeasePlace::Kubernetes(_), None) => return Err(io::Error::other("a Lease needs a cluster")),
    };
    let membership = fleet::membership(settings).map_err(io::Error::other)?;
    let (settings, lifecycle, registry) = (settings.clone(), shared.lifecycle.clone(), shared.metrics.registry.clone());
    Fleet::new(Parts { settings, socket, acceptor, secret, store, membership, lifecycle, registry }).map(Some)
}
