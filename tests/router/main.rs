//! The router from outside: real sockets on port 0, real processes, no sleeps.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/shared.rs"]
mod shared;

mod admission;
mod bandwidth;
mod cli;
mod comparison;
mod cors;
mod edges;
mod errors;
mod guard;
mod harness;
mod http;
mod lifecycle;
mod mirror;
mod processes;
mod raw_peers;
mod reload;
mod simulate;
mod smoke;
mod tls;
mod wire;
