//! Allocates free ports for local replicas.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

/// How often the kernel is asked again when it offers a port that a replica already has.
const MAX_RESERVE_ATTEMPTS: usize = 64;

/// The ports of the running replicas of one supervisor.
#[derive(Debug, Clone, Default)]
pub(super) struct PortAllocator {
    reserved: Arc<Mutex<HashSet<u16>>>,
}

/// A port of this machine that is reserved for one replica, and released on drop.
#[derive(Debug)]
pub(super) struct ReservedPort {
    number: u16,
    reserved: Arc<Mutex<HashSet<u16>>>,
}

impl PortAllocator {
    /// Reserves a port on which nobody listens and that no running replica has. Another program may still take it
    /// before the replica listens on it; the replica then fails and is started again on another port.
    ///
    /// # Errors
    ///
    /// When the machine has no free port left.
    pub(super) fn reserve_port(&self) -> io::Result<ReservedPort> {
        let mut already_reserved = Vec::new();
        for _ in 0..MAX_RESERVE_ATTEMPTS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let number = listener.local_addr()?.port();
            if self.reserved.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
                return Ok(ReservedPort { number, reserved: Arc::clone(&self.reserved) });
            }
            // Kept open, so that the kernel offers another port.
            already_reserved.push(listener);
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }
}

impl ReservedPort {
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_replicas_never_share_a_port() {
        let ports = PortAllocator::default();
        let held: Vec<ReservedPort> = (0..200).map(|_| ports.reserve_port().unwrap()).collect();
        let numbers: HashSet<u16> = held.iter().map(ReservedPort::number).collect();
        assert_eq!(numbers.len(), held.len());
        drop(held);
        assert!(ports.reserved.lock().unwrap().is_empty());
    }
}
