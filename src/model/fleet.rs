//! Settings of a router that is one of several.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::tls::{CertificateSource, ServerTls, UpstreamTls};

/// What a group needs to know of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetSettings {
    /// Where other routers connect.
    pub address: SocketAddr,
    /// What they call it, as `host:port`: the router's name in its group.
    pub advertise: String,
    /// TLS between routers, each of which shows a certificate. `None`: plain, on one machine.
    pub tls: Option<PeerTls>,
    /// A file with what every router of the group knows.
    pub secret_file: Option<PathBuf>,
    /// Where it says who coordinates.
    pub lease: LeasePlace,
    /// How long a coordinator may be silent before another takes over; slots are leased for twice as long.
    pub term: Duration,
    /// What a router does that is cut off for longer.
    pub mode: Mode,
}

/// Certificates of a router among routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTls {
    /// What it shows.
    pub certificate: CertificateSource,
    /// Who has signed those of all others.
    pub ca_file: PathBuf,
    /// The name in them; `None`: the host that each is called by.
    pub server_name: Option<String>,
}

impl PeerTls {
    /// Towards routers that connect.
    pub fn server(&self) -> ServerTls {
        let (certificates, client_ca_file) = (vec![self.certificate.clone()], Some(self.ca_file.clone()));
        ServerTls { certificates, client_ca_file, ..ServerTls::default() }
    }

    /// Towards the router that is connected to.
    pub fn client(&self) -> UpstreamTls {
        UpstreamTls {
            ca_file: Some(self.ca_file.clone()),
            server_name: self.server_name.clone(),
            skip_verify: false,
            secret: None,
            certificate: Some(self.certificate.clone()),
        }
    }
}

/// Where a group has written down who coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeasePlace {
    /// In a file that all share.
    File(PathBuf),
    /// In a `Lease` of this name in the router's own namespace.
    Kubernetes(String),
}

/// What a router does that has been cut off from its coordinator for longer than its slots are leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It serves with its fair share: a replica may get more requests than it should.
    Available,
    /// It turns requests away.
    Strict,
}
