//! Settings that several parts of the router process share, after validation, with their defaults.

use std::path::PathBuf;
use std::time::Duration;

/// Limits that protect the router from its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_payload_bytes: u64,
    /// The largest request head, in bytes; 8 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// The largest number of header fields in a request.
    pub max_headers: usize,
    /// The longest wait for a complete request head.
    pub header_read_timeout: Duration,
    /// The longest silence inside a request body.
    pub body_idle_timeout: Duration,
    /// The largest number of client connections, over all scoring listeners.
    pub max_connections: usize,
    /// How long a client connection may stay open without a request.
    pub keep_alive_timeout: Duration,
    /// Memory that copies of live requests may hold together while they lag behind, in bytes.
    pub mirror_buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload_bytes: 100 * 1024 * 1024,
            max_header_bytes: 64 * 1024,
            max_headers: 100,
            header_read_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            max_connections: 20_000,
            keep_alive_timeout: Duration::from_secs(75),
            mirror_buffer_bytes: 64 * 1024 * 1024,
        }
    }
}

/// How the router signs its own tokens (`authMode: aml_token`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// The issuer of the tokens, as in `iss`.
    pub issuer: String,
    /// A private key in PEM. Without it and [`Self::signing_secret`], the router signs no tokens.
    pub signing_key_file: Option<PathBuf>,
    /// Keys whose tokens stay valid.
    pub previous_key_files: Vec<PathBuf>,
    /// A Secret of the router's own namespace with [`SIGNING_KEY_ENTRY`] and previous keys, instead of files.
    pub signing_secret: Option<String>,
    /// How long a token is valid.
    pub lifetime: Duration,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self {
            issuer: "inference-router".to_owned(),
            signing_key_file: None,
            previous_key_files: Vec::new(),
            signing_secret: None,
            lifetime: Duration::from_secs(3600),
        }
    }
}

impl TokenSettings {
    /// Returns whether the router signs tokens.
    pub fn is_signing(&self) -> bool {
        self.signing_key_file.is_some() || self.signing_secret.is_some()
    }
}

/// The entry of a Secret that holds the private key for signing tokens.
pub const SIGNING_KEY_ENTRY: &str = "signingKey";
/// The prefix of entries that hold previous keys.
pub const PREVIOUS_KEY_ENTRY_PREFIX: &str = "previousKey";

/// Settings for endpoints that come from a Kubernetes cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// The watched namespaces; empty for all.
    pub namespaces: Vec<String>,
    /// The address at which clients reach the router, such as `https://models.example`. Scoring URIs in statuses begin
    /// with it.
    pub scoring_url: Option<String>,
    /// Without `scoring_url`: the Service of the router's own namespace through which clients reach it.
    pub service: Option<String>,
}

/// How the router shuts down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownSettings {
    /// How long the router still accepts requests after it reports that it is not ready, so that load balancers can
    /// notice.
    pub unready_delay: Duration,
    /// How long requests in flight may then take.
    pub drain_timeout: Duration,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self { unready_delay: Duration::from_secs(5), drain_timeout: Duration::from_secs(300) }
    }
}

/// The status codes of the router's own errors. Both sets are Azure's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusCodes {
    /// Those of Kubernetes online endpoints: 503 when busy, 504 when the model is late.
    #[default]
    Kubernetes,
    /// Those of managed online endpoints: 429 when busy, 408 when the model is late, 424 when the model failed.
    Managed,
}
