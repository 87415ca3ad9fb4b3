//! What attacks cost the router, and what they cost its other clients: one table. `benches/README.md` says how to read
//! it.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a measurement is to be seen at once")]
#![allow(unreachable_pub, reason = "a program is no library: nobody is outside")]

mod attackers;
mod cost;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/hostile/frames.rs"]
mod frames;
#[path = "../../tests/router/harness.rs"]
mod harness;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/tokens/signers.rs"]
mod signers;

use std::time::Duration;

use attackers::{ATTACKS, Credential};
use cost::{AttackedProgram, Cost, cpu_set, measure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const COLUMNS: [&str; 9] = [
    "attack",
    "connections",
    "pieces a connection",
    "router CPU a connection, us",
    "a piece, us",
    "good client p50, us",
    "p99, us",
    "p99 without, us",
    "ratio",
];

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let (slices, slice) = if quick { (1, Duration::from_millis(100)) } else { (2, Duration::from_secs(4)) };
    let program = AttackedProgram::start(reserve_core());
    // The first requests open connections, warm caches, and have tokens checked.
    for credential in [Credential::Key, Credential::Token] {
        measure(&program, None, credential, slice);
    }
    println!("| {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    for attack in ATTACKS.iter().filter(|attack| only.as_ref().is_none_or(|only| attack.name.contains(only.as_str()))) {
        let (mut quiet, mut cost) = (Cost::default(), Cost::default());
        // By turns, so that what else the machine does falls on both.
        for _ in 0..slices {
            quiet.add(measure(&program, None, attack.good_client_credential, slice));
            cost.add(measure(&program, Some(attack), attack.good_client_credential, slice));
        }
        let own =
            cost.cpu.saturating_sub(quiet.cpu * cost.good_request_count() / quiet.good_request_count()).as_micros()
                as f64;
        let (connections, pieces) = (cost.connections as f64, cost.pieces as f64);
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.2} | {} | {} | {} | {:.2} |",
            attack.name,
            cost.connections,
            pieces / connections,
            own / connections,
            own / pieces,
            cost.percentile(50).as_micros(),
            cost.percentile(99).as_micros(),
            quiet.percentile(99).as_micros(),
            cost.percentile(99).as_secs_f64() / quiet.percentile(99).as_secs_f64(),
        );
    }
}

/// A core for the router alone, if there are several: who attacks has machines of its own.
fn reserve_core() -> Option<usize> {
    let all = sched_getaffinity(None).unwrap();
    let mut numbers = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
    let first = numbers.next()?;
    let rest: Vec<usize> = numbers.collect();
    if rest.is_empty() {
        return None;
    }
    sched_setaffinity(None, &cpu_set(rest)).unwrap();
    Some(first)
}
