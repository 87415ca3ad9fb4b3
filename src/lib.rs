//! An inference router: stands between clients and model servers.
//!
//! The floors, lowest first; a module imports only from lower ones (`ARCHITECTURE.md`, kept by `tests/layers.rs`):
//! [`model`], [`policy`], [`state`] and beside it [`simulate`], then side by side [`proxy`], [`control`] and [`admin`], then [`config`] and [`app`],
//! then [`cli`]. [`guard`] and [`model_server`] are programs of their own inside the same binary.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod guard;
pub mod model;
pub mod model_server;
pub mod policy;
pub mod proxy;
pub mod simulate;
pub mod state;
