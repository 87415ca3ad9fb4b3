//! Layer 1: every decision of the router, as plain functions and small state machines.
//!
//! They are pure: time is the argument `now`, randomness is `&mut impl Rng`. So each decision can be tested and
//! simulated without a socket, a clock or a thread.

pub mod access;
pub mod admit;
pub mod bandwidth;
pub mod compare;
pub mod fleet;
pub mod health;
pub mod identify;
pub mod mirror;
pub mod scale;
pub mod signing;
pub mod split;
pub mod token;
