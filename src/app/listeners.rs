//! The sockets of the scoring, admin and peer listeners.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::BuildError;
use crate::config::{ClientListener, RouterSettings};
use crate::control::certificates::ListenerCertificates;
use crate::control::fleet::{self, LeaderLockStore};
use crate::model::problem::Problem;
use crate::proxy::listen::{BoundListener, LISTEN_BACKLOG};
use crate::state::tls::Acceptor;

/// The socket for other routers, with what its connections need.
pub(super) struct PeerSocket {
    pub(super) socket: TcpListener,
    pub(super) acceptor: Option<Arc<Acceptor>>,
    pub(super) secret: String,
}

/// Binds each scoring listener, with TLS where it is configured, and returns the watcher of the TLS files.
///
/// # Errors
///
/// The `problems` that are known already with all problems of the TLS files; otherwise why a listener could not be
/// bound.
pub(super) fn bind_all(
    settings: &RouterSettings,
    mut certificates: ListenerCertificates,
    mut problems: Vec<Problem>,
) -> Result<(Vec<BoundListener>, Option<PeerSocket>, ListenerCertificates), BuildError> {
    let mut acceptors = Vec::new();
    for ClientListener { name, tls_path: path, tls, .. } in settings.client_listeners() {
        match tls.map(|tls| certificates.add_listener(path, name, tls.clone())).transpose() {
            Ok(acceptor) => acceptors.push(acceptor),
            Err(found) => problems.extend(found),
        }
    }
    let (mut peers, mut secret) = (None, String::new());
    if let Some(fleet) = &settings.fleet {
        let tls = fleet.tls.as_ref().map(|tls| certificates.add_listener("fleet.peer.tls", "peer", tls.server()));
        peers = tls.transpose().unwrap_or_else(|found| {
            problems.extend(found);
            None
        });
        secret = fleet
            .secret_file
            .as_deref()
            .map(fleet::read_secret)
            .transpose()
            .unwrap_or_else(|problem| {
                problems.push(problem);
                None
            })
            .unwrap_or_default();
        problems.extend(LeaderLockStore::check(&fleet.leader_lock).err());
    }
    if !problems.is_empty() {
        return Err(BuildError::Configuration(problems));
    }
    let gate = settings.fleet.as_ref().map(|fleet| bind("other routers", fleet.address));
    let gate = gate.transpose()?.map(|socket| PeerSocket { socket, acceptor: peers, secret });
    let bound = settings.client_listeners().zip(acceptors).map(|(ClientListener { name, address, .. }, tls)| {
        bind(name, address).map(|socket| BoundListener { name, socket, tls })
    });
    Ok((bound.collect::<Result<_, _>>()?, gate, certificates))
}

/// Returns the address of the listener with that name.
///
/// # Errors
///
/// When there is no such listener, or the system does not know the address.
pub(super) fn listener_address(listeners: &[BoundListener], name: &str) -> io::Result<SocketAddr> {
    let listener = listeners.iter().find(|listener| listener.name == name);
    listener.ok_or(io::ErrorKind::NotFound)?.socket.local_addr()
}

pub(super) fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, BuildError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted router must get its address although connections of the previous process linger.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        io::Result::Ok(TcpListener::from(socket))
    };
    listen().map_err(|error| BuildError::CannotListen { what, address, error })
}
