//! TLS configurations as connections find them: replaced when their files change, while connections keep what they have.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::metrics::{Handshakes, Metrics};

/// TLS on a listener.
pub struct Acceptor {
    config: ArcSwap<ServerConfig>,
    /// Longest time from the accept to the end of the handshake.
    pub timeout: Duration,
    /// How they ended.
    pub handshakes: Handshakes,
}

impl Acceptor {
    /// TLS with this configuration, for the listener of that name.
    pub fn new(listener: &str, config: Arc<ServerConfig>, timeout: Duration, metrics: &Metrics) -> Self {
        Self { config: ArcSwap::new(config), timeout, handshakes: metrics.handshakes(listener) }
    }

    /// What new connections get.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Connections from now on get `config`.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.config.store(config);
    }
}

/// Nothing of a configuration is for logs: it holds keys.
impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// TLS towards the replicas of a deployment.
#[derive(Clone)]
pub struct Connector {
    /// Shared, with its sessions, by all workers.
    pub config: Arc<ClientConfig>,
    /// The name in the replicas' certificates; `None`: the host of each replica's address.
    pub server_name: Option<ServerName<'static>>,
    /// Of everything it is made from.
    pub digest: [u8; 32],
}

impl Connector {
    /// TLS with this configuration, made from what has this digest.
    pub fn new(config: ClientConfig, server_name: Option<ServerName<'static>>, digest: [u8; 32]) -> Self {
        Self { config: Arc::new(config), server_name, digest }
    }

    /// The name that the certificate of the replica at `address` must have; `None`: that host cannot be in one.
    pub fn name_for(&self, address: &str) -> Option<ServerName<'static>> {
        if let Some(name) = &self.server_name {
            return Some(name.clone());
        }
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned()).ok()
    }
}

/// Made from the same.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
