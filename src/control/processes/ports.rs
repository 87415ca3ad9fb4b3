//! Free ports for local replicas.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

/// How often the kernel is asked again when it offers a port that a replica already has.
const TRIES: usize = 64;

/// The ports given to living replicas of one supervisor.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    taken: Arc<Mutex<HashSet<u16>>>,
}

/// A port of this machine for one replica; given back when dropped.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    taken: Arc<Mutex<HashSet<u16>>>,
}

impl Ports {
    /// A port that nobody listens on and no living replica has. Another program may still take it before the replica
    /// listens on it: the replica then fails and is started again with another one.
    ///
    /// # Errors
    /// When the machine has no free port left.
    pub(super) fn take(&self) -> io::Result<Port> {
        let mut refused = Vec::new();
        for _ in 0..TRIES {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let number = listener.local_addr()?.port();
            if self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
                return Ok(Port { number, taken: Arc::clone(&self.taken) });
            }
            // Kept open, so that the kernel offers another one.
            refused.push(listener);
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }
}

impl Port {
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_replicas_never_share_a_port() {
        let ports = Ports::default();
        let held: Vec<Port> = (0..200).map(|_| ports.take().unwrap()).collect();
        let numbers: HashSet<u16> = held.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), held.len());
        drop(held);
        assert!(ports.taken.lock().unwrap().is_empty());
    }
}
