//! TLS configurations of listeners and deployments. They are replaced when their files change, while open connections
//! keep the configuration they were made with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::metrics::{HandshakeMetrics, Metrics};

/// TLS on a listener.
pub struct Acceptor {
    config: ArcSwap<ServerConfig>,
    /// The longest time from accept to the end of the handshake.
    pub timeout: Duration,
    /// Metrics of the handshakes.
    pub handshake_metrics: HandshakeMetrics,
}

impl Acceptor {
    /// Creates the acceptor of the listener with this name.
    pub fn new(listener: &str, config: Arc<ServerConfig>, timeout: Duration, metrics: &Metrics) -> Self {
        Self { config: ArcSwap::new(config), timeout, handshake_metrics: metrics.handshake_metrics(listener) }
    }

    /// Returns the configuration for new connections.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Replaces the configuration for new connections.
    pub fn set_config(&self, config: Arc<ServerConfig>) {
        self.config.store(config);
    }
}

/// A configuration holds keys, so nothing of it may be logged.
impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// TLS towards the replicas of a deployment.
#[derive(Clone)]
pub struct Connector {
    /// The configuration, shared with its sessions by all workers.
    pub config: Arc<ClientConfig>,
    /// The name expected in the certificates of the replicas; `None`: the host of each replica's address.
    pub server_name: Option<ServerName<'static>>,
    /// Digest of everything that the configuration was made from.
    pub config_digest: [u8; 32],
}

impl Connector {
    /// Creates a connector. `digest` is the digest of everything that `config` was made from.
    pub fn new(config: ClientConfig, server_name: Option<ServerName<'static>>, digest: [u8; 32]) -> Self {
        Self { config: Arc::new(config), server_name, config_digest: digest }
    }

    /// Returns the name expected in the certificate of the replica at `address`; `None` if its host cannot be in a
    /// certificate.
    pub fn server_name_for(&self, address: &str) -> Option<ServerName<'static>> {
        if let Some(name) = &self.server_name {
            return Some(name.clone());
        }
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned()).ok()
    }
}

/// Connectors are equal if they were made from the same input.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.config_digest == other.config_digest
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
