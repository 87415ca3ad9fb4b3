//! Floor 2: what is shared and changes: the routing table, the slots of each deployment, counters, the life of the
//! process.

pub mod access_log;
pub mod bandwidth;
pub mod checks;
pub mod comparisons;
pub mod gauges;
pub mod key_sets;
pub mod lifecycle;
pub mod membership;
pub mod metrics;
pub mod mirror;
pub mod reviews;
pub mod scaling;
pub mod slots;
pub mod status;
pub mod table;
pub mod tls;
pub mod tokens;
