//! Floor 0: what the router talks about, without doing anything.
//!
//! Nothing here touches a clock, a socket, a file, the environment or a random number.

pub mod check;
pub mod crd;
pub mod decode;
pub mod duration;
pub mod endpoint;
pub mod fleet;
pub mod limits;
pub mod name;
pub mod place;
pub mod problem;
pub mod refusal;
pub mod resource;
pub mod status;
pub mod suggest;
pub mod tls;
pub mod validate;
