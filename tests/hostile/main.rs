//! The router against clients that mean harm: bytes on real sockets, each attack judged by three things: what the
//! attacker was told, what a model saw of it, and whether a good client noticed.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

#[path = "../../benches/attacks/attackers.rs"]
mod attackers;
mod chunks;
#[allow(dead_code, reason = "the benchmark adds up")]
#[path = "../../benches/attacks/cost.rs"]
mod cost;
mod costs;
mod floods;
mod frames;
mod framing;
#[path = "../router/harness.rs"]
mod harness;
mod heads;
mod hosts;
mod paths;
mod recorder;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../tokens/signers.rs"]
mod signers;
mod slow;
mod streams;
mod target;
mod windows;
