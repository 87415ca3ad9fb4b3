//! The program: parse, run, exit.

use std::process::ExitCode;

use clap::Parser;
use inference_router::cli::Cli;

/// Request-sized allocations are the bulk of what the data plane asks for; this allocator serves them per thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
