//! The process between the router and one local replica, so that no replica outlives the router.
//!
//! The router holds the other end of the guard's standard input and never writes to it. However the router ends, by
//! SIGKILL too, the kernel closes that end, and the guard stops the replica. The replica leads a process group of its
//! own, so its children go with it; a process that leaves the group (`setsid`) is out of reach. As in a container, the
//! replica has ended when its first process has: whatever is left of the group is killed at once.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Exit code when the command could not be started, as in a shell.
pub const NOT_STARTED: u8 = 127;

/// What the guard waits for.
enum Happened {
    RouterLeft,
    ChildEnded,
}

/// Runs `command` until it ends or standard input is closed. In the second case its process group gets SIGTERM, and
/// SIGKILL once the command has ended or `grace` is over.
///
/// The exit code is the command's own, 128 + the signal that ended it, or [`NOT_STARTED`].
pub fn run(grace: Duration, command: Vec<OsString>) -> ExitCode {
    let mut child = match start(command) {
        Ok(child) => child,
        Err(why) => {
            complain(&why);
            return ExitCode::from(NOT_STARTED);
        }
    };
    let group = Pid::from_child(&child);
    match watch(group) {
        Ok(happened) => wait(&happened, group, grace),
        Err(error) => complain(&format!("cannot watch the replica, so it is stopped: {error}")),
    }
    // Only now is the leader reaped: until then its number cannot go to another process or group.
    signal(group, Signal::KILL);
    match child.wait() {
        Ok(status) => ExitCode::from(code(status)),
        Err(_) => ExitCode::FAILURE,
    }
}

fn start(command: Vec<OsString>) -> Result<Child, String> {
    let mut words = command.into_iter();
    let Some(program) = words.next() else {
        return Err("no command given".to_owned());
    };
    // A group of its own, and not the guard's: the guard must survive the signals it sends to the group.
    Command::new(&program)
        .args(words)
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start `{}`: {error}", program.display()))
}

/// Starts the two threads that wait for either end.
fn watch(child: Pid) -> io::Result<mpsc::Receiver<Happened>> {
    let (happened, receiver) = mpsc::channel();
    let router = happened.clone();
    thread::Builder::new().name("router".to_owned()).spawn(move || {
        wait_for_end_of_input();
        // The receiver is gone only when the guard is about to exit.
        let _ = router.send(Happened::RouterLeft);
    })?;
    thread::Builder::new().name("child".to_owned()).spawn(move || {
        // NOWAIT leaves the child to be reaped by `run`, after its group was signalled.
        while let Err(rustix::io::Errno::INTR) =
            waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        let _ = happened.send(Happened::ChildEnded);
    })?;
    Ok(receiver)
}

fn wait(happened: &mpsc::Receiver<Happened>, group: Pid, grace: Duration) {
    if let Ok(Happened::RouterLeft) = happened.recv() {
        signal(group, Signal::TERM);
        // Ended within the grace or not: what follows is the same.
        let _ = happened.recv_timeout(grace);
    }
}

fn wait_for_end_of_input() {
    let mut ignored = [0; 64];
    loop {
        match io::stdin().read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An input that cannot be read will never say that the router left: better no replica than an orphan.
            Err(_) => return,
        }
    }
}

/// A group without living members is what the guard wants, so there is no error to act on.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

/// Not `eprintln!`, which panics when the router, the reader of standard error, is gone.
fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "inference-router guard: {what}");
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
