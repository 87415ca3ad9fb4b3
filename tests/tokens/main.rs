//! Tokens: signed by real keys, checked by the rules alone and by a whole router; issuers that rotate, die and lie.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

mod command;
#[path = "../router/harness.rs"]
mod harness;
mod issuer;
mod issuer_connections;
mod issuers;
mod mutations;
mod router_tokens;
mod rules;
mod signers;
