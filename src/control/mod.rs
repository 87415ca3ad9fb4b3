//! Layer 3: the control plane. It turns endpoint documents, cluster objects and local processes into the routing table,
//! and keeps certificates, keys and the fleet up to date.

pub mod autoscaler;
pub mod certificates;
pub mod cluster;
pub mod document_files;
pub mod documents;
pub mod fleet;
pub mod index;
pub mod key_set_fetcher;
pub mod processes;
pub mod secret_cache;
pub mod signing_keys;
mod small_file;
pub mod yaml;
