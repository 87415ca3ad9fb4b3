//! What the router process as a whole keeps to, as checked, with the defaults.

use std::path::PathBuf;
use std::time::Duration;

/// Limits that protect the router from its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub max_payload_bytes: u64,
    /// Largest request head, in bytes; 8 KiB to 1 MiB.
    pub max_header_bytes: usize,
    /// Most header fields in a request.
    pub max_headers: usize,
    /// Longest wait for a complete request head.
    pub header_read_timeout: Duration,
    /// Longest silence inside a request body.
    pub body_idle_timeout: Duration,
    /// Most client connections at once, over all listeners for clients.
    pub max_connections: usize,
    /// How long a client's connection may stay open without a request.
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

/// How the router signs tokens of its own (`authMode: aml_token`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// As in `iss`.
    pub issuer: String,
    /// A private key in PEM; if there is no [`Self::signing_secret`] either, it signs none.
    pub signing_key_file: Option<PathBuf>,
    /// Keys whose tokens stay good.
    pub previous_key_files: Vec<PathBuf>,
    /// Instead of files: a Secret of the router's own namespace with [`SIGNING_KEY`], and keys of before.
    pub signing_secret: Option<String>,
    /// How long a token is good.
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
    /// Whether the router signs tokens at all.
    pub fn is_signing(&self) -> bool {
        self.signing_key_file.is_some() || self.signing_secret.is_some()
    }
}

/// The entry of a Secret with the private key that tokens are signed with.
pub const SIGNING_KEY: &str = "signingKey";
/// What entries with keys of before begin with.
pub const PREVIOUS_KEY: &str = "previousKey";

/// Where in Kubernetes endpoints come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Namespaces whose endpoints count; none: all.
    pub namespaces: Vec<String>,
    /// Where clients reach the router, as `https://models.example`: what scoring URIs in statuses begin with.
    pub scoring_url: Option<String>,
    /// Unless that is given: the Service of the router's own namespace through which clients reach it.
    pub service: Option<String>,
}

/// How the router leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long it still accepts requests after it reports itself unready, so that load balancers can notice.
    pub unready_delay: Duration,
    /// How long requests in flight may then still take.
    pub drain_timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { unready_delay: Duration::from_secs(5), drain_timeout: Duration::from_secs(300) }
    }
}

/// Which status codes the router's own errors have; both are Azure's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusCodes {
    /// As on Kubernetes online endpoints: 503 when busy, 504 when the model is late.
    #[default]
    Kubernetes,
    /// As on managed online endpoints: 429 when busy, 408 when the model is late, 424 when the model failed.
    Managed,
}
