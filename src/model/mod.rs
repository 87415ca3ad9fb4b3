//! Layer 0: the types that the router is about, without any action.
//!
//! Nothing here uses a clock, a socket, a file, the environment or a random number.

pub mod crd;
pub mod decode;
pub mod duration;
pub mod endpoint;
pub mod endpoint_status;
pub mod fleet;
pub mod json_path;
pub mod name;
pub mod problem;
pub mod problem_collector;
pub mod refusal;
pub mod resource;
pub mod router_settings;
pub mod suggest;
pub mod tls;
pub mod validate;
