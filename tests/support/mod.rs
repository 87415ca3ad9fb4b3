//! A Kubernetes API server in memory, for tests: as much of one as the router and the tests ask for, and faults on demand.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod apiserver;
