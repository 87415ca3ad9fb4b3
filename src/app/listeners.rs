//! The sockets that clients and operators connect to.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::BuildError;
use crate::config::{ClientListener, Settings};
use crate::control::certificates::Certificates;
use crate::model::problem::Problem;
use crate::proxy::listen::{BACKLOG, Listener};

/// Binds each listener for clients, with TLS where it has it, and says what follows the files of that.
///
/// # Errors
/// Everything that is wrong with these files, after the `problems` that are known; else why a listener is not bound.
pub(super) fn bind_all(
    settings: &Settings,
    mut certificates: Certificates,
    mut problems: Vec<Problem>,
) -> Result<(Vec<Listener>, Certificates), BuildError> {
    let mut acceptors = Vec::new();
    for ClientListener { name, path, tls, .. } in settings.listeners() {
        match tls.map(|tls| certificates.add(path, name, tls.clone())).transpose() {
            Ok(acceptor) => acceptors.push(acceptor),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(BuildError::Configuration(problems));
    }
    let bound = settings.listeners().zip(acceptors).map(|(ClientListener { name, address, .. }, tls)| {
        bind(name, address).map(|socket| Listener { name, socket, tls })
    });
    Ok((bound.collect::<Result<_, _>>()?, certificates))
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
