//! Layer 2: shared, changing state. It holds the routing table, the slots of each deployment, metrics, and the
//! lifecycle of the process.

pub mod access_log;
pub mod access_reviews;
pub mod bandwidth;
pub mod comparison_queue;
pub mod control_plane_status;
pub mod gauges;
pub mod key_sets;
pub mod lifecycle;
pub mod membership;
pub mod metrics;
pub mod mirror;
pub mod routing_table;
pub mod scaling;
pub mod signature_verification;
pub mod slots;
pub mod tls;
pub mod tokens;
