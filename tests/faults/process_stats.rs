//! Resources used by a process, read from `/proc`.

use std::path::Path;
use std::time::Duration;

/// A process at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStats {
    /// Resident memory of its own, in KiB: not the pages of the program's file, which are there for all.
    pub memory_kib: u64,
    pub descriptors: usize,
    pub threads: usize,
    /// Processor time used so far.
    pub cpu: Duration,
}

impl ProcessStats {
    pub fn from_pid(pid: u32) -> Self {
        let process = Path::new("/proc").join(pid.to_string());
        let count = |folder: &str| std::fs::read_dir(process.join(folder)).unwrap().count();
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let stat = std::fs::read_to_string(process.join("stat")).unwrap();
        // `pid (name) state …`: user and system time are the 12th and 13th after the name, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        Self {
            memory_kib: memory.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: count("fd"),
            threads: count("task"),
            cpu: Duration::from_millis(10 * (ticks(11) + ticks(12))),
        }
    }
}

/// The processes below `root` that have not ended.
pub fn descendants(root: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let all: Vec<(u32, u32)> = pids
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, running_parent_pid(pid)?)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(above) = found.get(at).copied() {
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Whether a process is there and has not ended.
pub fn is_running(pid: u32) -> bool {
    running_parent_pid(pid).is_some()
}

/// `None`: there is no such process, or it has ended and nobody has asked how.
fn running_parent_pid(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, rest) = stat.rsplit_once(") ")?.1.split_once(' ')?;
    if state == "Z" { None } else { rest.split(' ').next()?.parse().ok() }
}
