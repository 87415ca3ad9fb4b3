//! Floor 0: what the router talks about, without doing anything.
//!
//! Nothing here touches a clock, a socket, a file, the environment or a random number.

pub mod endpoint;
pub mod limits;
pub mod name;
pub mod problem;
pub mod refusal;
