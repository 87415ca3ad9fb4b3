//! Runs every seed on every core, and reports failing ones.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Runs the seeds `0..seeds`, or the one that `SIMULATION_SEED` names, with `run(seed, trace)`.
///
/// # Panics
/// When a seed fails, with how many do and how to see the first of them again.
pub(crate) fn run_every_seed(test: &str, seeds: u64, run: impl Fn(u64, bool) -> Result<(), String> + Sync) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIMULATION_SEED") {
        if let Err(what) = run(seed, true) {
            panic!("seed {seed}: {what}");
        }
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(seeds);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    // A panic of the state machine is a failure of the seed like any other.
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, false)));
                    if let Err(what) = outcome.unwrap_or_else(|panic| Err(message(&*panic))) {
                        failed.lock().expect("no thread panics").push((seed, what));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no thread panics");
    failed.sort();
    if let Some((seed, what)) = failed.first() {
        panic!(
            "{} of {seeds} seeds fail; the first is {seed}: {what}\nto see it again: \
             SIMULATION_SEED={seed} cargo test --test simulation {test} -- --nocapture",
            failed.len()
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("for no reason"))
}
