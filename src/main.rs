//! The program: parses the command line, runs the command, and exits.

use std::process::ExitCode;

use clap::Parser;
use inference_router::cli::Cli;

/// Most allocations of the data plane have the size of a request; this allocator serves them per thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
