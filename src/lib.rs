//! An inference router: stands between clients and model servers. See `ARCHITECTURE.md` for the floors.

pub mod control;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod state;
