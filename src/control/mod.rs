//! Floor 3: desired state, from files and local processes, made into the table the data plane reads.

pub mod certificates;
pub mod documents;
pub mod files;
pub mod index;
pub mod processes;
pub mod yaml;
