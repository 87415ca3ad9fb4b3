//! Layer 3: the data plane. [`listen`] accepts, `connection` serves one client connection, `service` one request.
//!
//! Everything that a request uses lives on one worker thread. What workers share is in [`crate::state`].

mod attempt;
mod auth;
mod client_io;
pub mod codec;
mod connection;
mod connection_pool;
mod cors;
mod error_response;
mod exchange;
pub mod headers;
mod http2_abuse;
mod http2_stream;
pub mod listen;
mod mirror;
mod request_context;
mod request_id;
mod response_body;
mod service;
mod tcp;
mod throttle;
mod timer;
mod tls;
mod upload;
mod upstream;
mod wake_suppression;
mod worker;

pub use error_response::catalog::{ErrorEntry, error_catalog};
pub use worker::DataPlaneState;
