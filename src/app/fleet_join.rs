//! Makes the router a member of its fleet, if it has one.

use std::io;

use kube::Client;
use kube::api::Api;

use super::listeners::PeerSocket;
use crate::config::RouterSettings;
use crate::control::fleet::{self, FleetParts, FleetTask, LeaderLockStore};
use crate::model::fleet::LeaderLockPlace;
use crate::proxy::DataPlaneState;

/// Returns the fleet task; `None` if the router is alone. It must be called inside a tokio runtime.
///
/// # Errors
///
/// When the system does not accept the socket.
pub(super) fn join_fleet(
    settings: &RouterSettings,
    gate: Option<PeerSocket>,
    client: Option<&Client>,
    shared: &DataPlaneState,
) -> io::Result<Option<FleetTask>> {
    let (Some(settings), Some(PeerSocket { socket, acceptor, secret })) = (&settings.fleet, gate) else {
        return Ok(None);
    };
    let store = match (&settings.leader_lock, client) {
        (LeaderLockPlace::File(file), _) => LeaderLockStore::File(file.clone()),
        (LeaderLockPlace::Kubernetes(name), Some(client)) => LeaderLockStore::Kubernetes(
            Box::new(Api::default_namespaced(client.clone())),
            name.clone(),
            settings.term_duration,
        ),
        (LeaderLockPlace::Kubernetes(_), None) => return Err(io::Error::other("a Lease needs a cluster")),
    };
    let membership = fleet::new_membership(settings).map_err(io::Error::other)?;
    let (settings, lifecycle, registry) = (settings.clone(), shared.lifecycle.clone(), shared.metrics.registry.clone());
    FleetTask::new(FleetParts {
        settings,
        socket,
        acceptor,
        secret,
        leader_lock_store: store,
        membership,
        lifecycle,
        metrics_registry: registry,
    })
    .map(Some)
}
