//! The sockets that clients and operators connect to.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::BuildError;
use crate::config::{ClientListener, Settings};
use crate::control::certificates::Certificates;
use crate::control::fleet::{self, Store};
use crate::model::problem::Problem;
use crate::proxy::listen::{BACKLOG, Listener};
use crate::state::tls::Acceptor;

/// Where other routers connect, and what they have to know.
pub(super) struct Gate {
    pub(super) socket: TcpListener,
    pub(super) acceptor: Option<Arc<Acceptor>>,
    pub(super) secret: String,
}

/// Binds each listener for clients, with TLS where it has it, and says what follows the files of that.
///
/// # Errors
/// Everything that is wrong with these files, after the `problems` that are known; else why a listener is not bound.
pub(super) fn bind_all(
    settings: &Settings,
    mut certificates: Certificates,
    mut problems: Vec<Problem>,
) -> Result<(Vec<Listener>, Option<Gate>, Certificates), BuildError> {
    let mut acceptors = Vec::new();
    for ClientListener { name, path, tls, .. } in settings.listeners() {
        match tls.map(|tls| certificates.add(path, name, tls.clone())).transpose() {
            Ok(acceptor) => acceptors.push(acceptor),
            Err(found) => problems.extend(found),
        }
    }
    let (mut peers, mut secret) = (None, String::new());
    if let Some(fleet) = &settings.fleet {
        let tls = fleet.tls.as_ref().map(|tls| certificates.add("fleet.peer.tls", "peer", tls.server()));
        peers = tls.transpose().unwrap_or_else(|found| {
            problems.extend(found);
            None
        });
        secret = fleet
            .secret_file
            .as_deref()
            .map(fleet::secret)
            .transpose()
            .unwrap_or_else(|problem| {
                problems.push(problem);
                None
            })
            .unwrap_or_default();
        problems.extend(Store::check(&fleet.lease).err());
    }
    if !problems.is_empty() {
        return Err(BuildError::Configuration(problems));
    }
    let gate = settings.fleet.as_ref().map(|fleet| bind("other routers", fleet.address));
    let gate = gate.transpose()?.map(|socket| Gate { socket, acceptor: peers, secret });
    let bound = settings.listeners().zip(acceptors).map(|(ClientListener { name, address, .. }, tls)| {
        bind(name, address).map(|socket| Listener { name, socket, tls })
    });
    Ok((bound.collect::<Result<_, _>>()?, gate, certificates))
}

/// Where the listener of that name is.
///
/// # Errors
/// When there is none, or the system does not know.
pub(super) fn address(listeners: &[Listener], name: &str) -> io::Result<SocketAddr> {
    let listener = listeners.iter().find(|listener| listener.name == name);
    listener.ok_or(io::ErrorKind::NotFound)?.socket.local_addr()
}

pub(super) fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, BuildError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted router must get its address back although old connections linger.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        io::Result::Ok(TcpListener::from(socket))
    };
    listen().map_err(|error| BuildError::Listen { what, address, error })
}
