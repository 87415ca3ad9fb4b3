//! One start of one replica: the guard process, its output, its end.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::output;
use crate::model::endpoint::Process;

/// In arguments and values of environment variables: the replica's port.
const PORT: &str = "{port}";
/// How long a guard may take beyond the grace. It needs milliseconds.
const OVERDUE: Duration = Duration::from_secs(5);
/// How long to read on after the end, for the last lines. Only a process that left the replica's group takes longer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running replica under its guard. When this is dropped the guard stops the replica by itself.
#[derive(Debug)]
pub(super) struct Running {
    guard: Child,
    /// Never written to: the guard stops the replica when this is closed, by whatever.
    leash: Option<ChildStdin>,
    output: JoinSet<()>,
    grace: Duration,
}

impl Running {
    /// Starts `process` with `port` under a guard, which is `executable` with the subcommand `guard`.
    ///
    /// # Errors
    /// When the guard cannot be started. That the program cannot is seen in the guard's exit code.
    pub(super) fn start(
        executable: &Path,
        grace: Duration,
        process: &Process,
        port: u16,
        replica: &str,
    ) -> io::Result<Self> {
        let mut command = Command::new(executable);
        // A group of its own: Ctrl-C at a terminal must not reach the replicas while the router drains.
        // Not kill_on_drop: a killed guard could not stop its replica.
        command.arg0("inference-router").process_group(0).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args(["guard", "--grace-ms", &grace.as_millis().to_string(), "--"]);
        let port = port.to_string();
        command.args(process.command.iter().map(|word| word.replace(PORT, &port)));
        command.envs(process.env.iter().map(|(name, value)| (name, value.replace(PORT, &port))));
        if let Some(folder) = &process.working_dir {
            command.current_dir(folder);
        }
        let mut guard = command.spawn()?;
        let mut output = JoinSet::new();
        if let Some(stdout) = guard.stdout.take() {
            output.spawn(output::log(stdout, replica.to_owned(), "stdout"));
        }
        if let Some(stderr) = guard.stderr.take() {
            output.spawn(output::log(stderr, replica.to_owned(), "stderr"));
        }
        // Taken out, because waiting for the guard would close it.
        let leash = guard.stdin.take();
        Ok(Self { guard, leash, output, grace })
    }

    /// Returns when the replica has ended by itself. Safe to drop and call again.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.guard.wait().await
    }

    /// Stops the replica: SIGTERM, and SIGKILL after the grace. Returns when it is gone.
    pub(super) async fn stop(mut self, replica: &str) {
        drop(self.leash.take());
        if timeout(self.grace + OVERDUE, self.guard.wait()).await.is_err() {
            tracing::error!(replica, "its guard does not end; killing the guard, the replica may still be running");
            // Nothing is left to do when this fails too.
            let _ = self.guard.kill().await;
        }
        self.last_words().await;
    }

    /// After the end: returns when all its output is in the log.
    pub(super) async fn last_words(mut self) {
        let all = async { while self.output.join_next().await.is_some() {} };
        // Whoever still writes then is not the replica any more; dropping the readers ends them.
        let _ = timeout(LAST_WORDS, all).await;
    }
}
