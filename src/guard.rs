//! The guard process between the router and one local replica, which ensures that no replica outlives the router.
//!
//! The router holds the other end of the guard's standard input and never writes to it. However the router ends, by
//! SIGKILL too, the kernel closes that end, and the guard stops the replica. The replica leads a process group of its
//! own, so its children are stopped with it; a process that leaves the group (`setsid`) is out of reach. As in a
//! container, the replica has ended when its first process has: the rest of the group is killed at once.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// The exit code if the command could not be started, as in a shell.
pub const EXIT_CODE_NOT_STARTED: u8 = 127;

/// The events that the guard waits for.
enum GuardEvent {
    RouterExited,
    ChildExited,
}

/// Runs `command` until it ends or standard input is closed. In the second case its process group gets SIGTERM, and
/// SIGKILL once the command has ended or `grace` is over.
///
/// The exit code is that of the command, 128 + the signal that ended it, or [`EXIT_CODE_NOT_STARTED`].
pub fn run(grace: Duration, command: Vec<OsString>) -> ExitCode {
    let mut child = match spawn_command(command) {
        Ok(child) => child,
        Err(why) => {
            log_to_stderr(&why);
            return ExitCode::from(EXIT_CODE_NOT_STARTED);
        }
    };
    let group = Pid::from_child(&child);
    match watch_router_and_child(group) {
        Ok(events) => wait_and_terminate(&events, group, grace),
        Err(error) => log_to_stderr(&format!("cannot watch the replica, so it is stopped: {error}")),
    }
    // The leader is reaped only after this: until then its process id cannot be reused for another process or group.
    signal_group(group, Signal::KILL);
    match child.wait() {
        Ok(status) => ExitCode::from(exit_code(status)),
        Err(_) => ExitCode::FAILURE,
    }
}

fn spawn_command(command: Vec<OsString>) -> Result<Child, String> {
    let mut words = command.into_iter();
    let Some(program) = words.next() else {
        return Err("no command given".to_owned());
    };
    // The command gets a process group of its own. The guard is not in it, because it must survive the signals that it
    // sends to the group.
    Command::new(&program)
        .args(words)
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start `{}`: {error}", program.display()))
}

/// Starts the two threads that wait for the router and for the child.
fn watch_router_and_child(child: Pid) -> io::Result<mpsc::Receiver<GuardEvent>> {
    let (child_tx, events) = mpsc::channel();
    let router_tx = child_tx.clone();
    thread::Builder::new().name("router".to_owned()).spawn(move || {
        wait_for_stdin_eof();
        // The receiver is gone only when the guard is about to exit.
        let _ = router_tx.send(GuardEvent::RouterExited);
    })?;
    thread::Builder::new().name("child".to_owned()).spawn(move || {
        // NOWAIT leaves the child to be reaped by `run`, after its group was signaled.
        while let Err(rustix::io::Errno::INTR) =
            waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        let _ = child_tx.send(GuardEvent::ChildExited);
    })?;
    Ok(events)
}

fn wait_and_terminate(events: &mpsc::Receiver<GuardEvent>, group: Pid, grace: Duration) {
    if let Ok(GuardEvent::RouterExited) = events.recv() {
        signal_group(group, Signal::TERM);
        // The next step is the same whether the command ended within the grace period or not.
        let _ = events.recv_timeout(grace);
    }
}

fn wait_for_stdin_eof() {
    let mut ignored = [0; 64];
    loop {
        match io::stdin().read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An input that cannot be read will never report that the router has ended. No replica is better than an
            // orphan.
            Err(_) => return,
        }
    }
}

/// Sends a signal to a group. A group without running members is what the guard wants, so errors are ignored.
fn signal_group(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

/// Writes to standard error without `eprintln!`, which panics when the reader, the router, is gone.
fn log_to_stderr(what: &str) {
    let _ = writeln!(io::stderr(), "inference-router guard: {what}");
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
