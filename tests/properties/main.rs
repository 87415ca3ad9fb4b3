//! Properties that hold for all input: generated documents, and the corpora of `fuzz/`.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

mod corpus;
mod generate;
#[path = "../router/harness.rs"]
mod harness;
mod parsers;
mod served;
