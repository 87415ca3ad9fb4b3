//! Floor 3: the data plane. [`listen`] accepts, `connection` serves one client connection, `service` one request.
//!
//! Everything a request touches lives on one worker thread; what workers share is in [`crate::state`].

mod attempt;
mod auth;
mod body;
mod client_io;
pub mod codec;
mod connection;
mod cors;
mod exchange;
pub mod headers;
pub mod listen;
mod mirror;
mod pool;
mod record;
mod request_id;
mod respond;
mod service;
mod stream;
mod talk;
mod tcp;
mod throttle;
mod timer;
mod tls;
mod upload;
mod upstream;
mod wakes;
mod worker;

pub use worker::Shared;
