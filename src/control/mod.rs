//! Floor 3: desired state, from files and local processes, made into the table the data plane reads.

pub mod certificates;
pub mod cluster;
pub mod documents;
pub mod files;
pub mod fleet;
pub mod index;
pub mod issuers;
pub mod processes;
pub mod scale;
pub mod secrets;
pub mod signing;
mod small_file;
pub mod yaml;
