//! Limits and modes of the router process that lower floors need to know.

use std::time::Duration;

/// What a client may send, and how slowly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub max_payload_bytes: u64,
    pub max_header_bytes: usize,
    pub max_headers: usize,
    pub header_read_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub max_connections: usize,
    pub keep_alive_timeout: Duration,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusCodes {
    Kubernetes,
    Managed,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    pub unready_delay: Duration,
    pub drain_timeout: Duration,
}
