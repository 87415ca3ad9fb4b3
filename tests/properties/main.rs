//! What holds for all input: of documents that a generator makes up, and of the corpora that `fuzz/` starts from.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]
#![allow(unreachable_pub, reason = "a test is no library: nobody is outside")]

mod corpus;
mod generate;
#[path = "../router/harness.rs"]
mod harness;
mod parsers;
mod served;
