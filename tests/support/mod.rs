//! What tests of a cluster need: an API server in memory, as much of one as the router and the tests ask for, with faults
//! on demand; and whoever signs certificates.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod apiserver;
pub mod authority;
pub mod shared;
