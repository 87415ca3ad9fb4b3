//! An inference router between clients and model servers.
//!
//! A module imports only from lower layers (see `ARCHITECTURE.md`; `tests/layers.rs` checks it). The layers, lowest
//! first: [`model`], [`policy`], [`state`] and beside it [`simulate`], then [`proxy`], [`control`] and [`admin`], then
//! [`config`] and [`app`], then [`cli`]. [`guard`] and [`model_server`] are programs of their own inside the same
//! binary.

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
