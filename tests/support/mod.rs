//! Support for tests of a cluster: an in-memory API server with as much behavior as the router and the tests need, with
//! injected faults; and a certificate authority.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod apiserver;
pub mod authority;
pub mod shared;
