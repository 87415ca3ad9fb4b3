//! Settings of a fleet of routers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::tls::{CertificateSource, ServerTls, UpstreamTls};

/// Settings of a member of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSettings {
    /// The address of the peer listener.
    pub address: SocketAddr,
    /// The `host:port` at which other routers reach this one. It is the router's name in the fleet.
    pub advertise: String,
    /// TLS between routers, each of which presents a certificate. `None`: plain connections, on one machine.
    pub tls: Option<PeerTls>,
    /// A file with the secret that all routers of the fleet know.
    pub secret_file: Option<PathBuf>,
    /// Where the leader lock is.
    pub leader_lock: LeaderLockPlace,
    /// How long a coordinator may be silent before another router takes over. Slots are leased for twice as long.
    pub term_duration: Duration,
    /// What a router does that is cut off for longer.
    pub mode: PartitionMode,
}

/// Certificates for connections between routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTls {
    /// The certificate of this router.
    pub certificate: CertificateSource,
    /// The certificate authorities of the other routers.
    pub ca_file: PathBuf,
    /// The name in their certificates; `None`: the host of each address.
    pub server_name: Option<String>,
}

impl PeerTls {
    /// Returns the TLS settings for connections from other routers.
    pub fn server(&self) -> ServerTls {
        let (certificates, client_ca_file) = (vec![self.certificate.clone()], Some(self.ca_file.clone()));
        ServerTls { certificates, client_ca_file, ..ServerTls::default() }
    }

    /// Returns the TLS settings for connections to other routers.
    pub fn client(&self) -> UpstreamTls {
        UpstreamTls {
            ca_file: Some(self.ca_file.clone()),
            server_name: self.server_name.clone(),
            skip_verify: false,
            secret_name: None,
            certificate: Some(self.certificate.clone()),
        }
    }
}

/// Where the leader lock is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderLockPlace {
    /// A file that all routers share.
    File(PathBuf),
    /// A Kubernetes `Lease` object with this name, in the router's own namespace.
    Kubernetes(String),
}

/// What a router does that has been cut off from its coordinator for longer than its slots are leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionMode {
    /// It uses its fair share: a replica may get more requests than its cap.
    Available,
    /// It rejects requests.
    Strict,
}
