//! Promises of the guard process: nothing of a replica outlives it.
//!
//! Each process of a replica holds the guard's standard output, so reading that to its end proves that all are gone.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

struct GuardedCommand {
    guard: Child,
    stdout: BufReader<ChildStdout>,
}

fn spawn_guarded(grace_ms: u32, command: &[&str]) -> GuardedCommand {
    let mut guard = Command::new(env!("CARGO_BIN_EXE_inference-router"))
        .args(["guard", "--grace-ms", &grace_ms.to_string(), "--"])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(guard.stdout.take().unwrap());
    GuardedCommand { guard, stdout }
}

impl GuardedCommand {
    fn wait_for_line(&mut self, expected: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    }

    /// Closes nothing; waits until no process holds standard output, and returns the rest of it and the exit code.
    fn wait_until_all_exited(self) -> (String, Option<i32>) {
        let (done, gone) = mpsc::channel();
        let Self { mut guard, mut stdout } = self;
        thread::spawn(move || {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            done.send(rest).unwrap();
        });
        let rest = gone.recv_timeout(WAIT_TIMEOUT).expect("a process of the replica is still alive");
        (rest, guard.wait().unwrap().code())
    }

    fn close_stdin(&mut self) {
        drop(self.guard.stdin.take());
    }
}

#[test]
fn exits_as_the_command_did() {
    // `wait` would close standard input; here the command must end by itself.
    let mut ended = spawn_guarded(10_000, &["sh", "-c", "exit 7"]);
    let stdin = ended.guard.stdin.take();
    assert_eq!(ended.wait_until_all_exited().1, Some(7));
    drop(stdin);
    let mut killed = spawn_guarded(10_000, &["sh", "-c", "kill -9 $$"]);
    let stdin = killed.guard.stdin.take();
    assert_eq!(killed.wait_until_all_exited().1, Some(128 + 9));
    drop(stdin);
}

#[test]
fn says_which_program_cannot_be_started_and_why() {
    let mut guarded = spawn_guarded(10_000, &["/no/such/program", "x"]);
    let mut message = String::new();
    guarded.guard.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(message.contains("cannot start `/no/such/program`: No such file"), "{message}");
    assert_eq!(guarded.wait_until_all_exited().1, Some(127));
}

#[test]
fn children_of_the_command_die_with_it() {
    let mut guarded = spawn_guarded(10_000, &["sh", "-c", "sleep 60 & echo up; exit 3"]);
    let stdin = guarded.guard.stdin.take();
    guarded.wait_for_line("up");
    assert_eq!(guarded.wait_until_all_exited().1, Some(3));
    drop(stdin);
}

#[test]
fn the_whole_group_gets_sigterm_when_the_router_leaves() {
    let script = "trap 'echo bye; exit 0' TERM; sleep 60 & echo up; wait";
    let mut guarded = spawn_guarded(10_000, &["sh", "-c", script]);
    guarded.wait_for_line("up");
    let left = Instant::now();
    guarded.close_stdin();
    assert_eq!(guarded.wait_until_all_exited(), ("bye\n".to_owned(), Some(0)));
    assert!(left.elapsed() < Duration::from_secs(10), "the grace is not waited out for nothing");
}

#[test]
fn a_group_that_ignores_sigterm_is_killed_after_the_grace() {
    let mut guarded = spawn_guarded(300, &["sh", "-c", "trap '' TERM; sleep 60 & echo up; wait"]);
    guarded.wait_for_line("up");
    let left = Instant::now();
    guarded.close_stdin();
    assert_eq!(guarded.wait_until_all_exited().1, Some(128 + 9));
    assert!(left.elapsed() >= Duration::from_millis(300));
}
