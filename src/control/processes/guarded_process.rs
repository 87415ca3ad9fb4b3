//! One start of one replica: its guard process, its output, and its end.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::output_log;
use crate::model::endpoint::Process;

/// The placeholder for the port of the replica in arguments and values of environment variables.
const PORT_PLACEHOLDER: &str = "{port}";
/// How long the guard may take beyond the termination grace. It needs milliseconds.
const GUARD_EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long output is read after the end. Only a process that left the replica's process group takes longer.
const OUTPUT_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A running replica under its guard process. When this value is dropped, the guard stops the replica by itself.
#[derive(Debug)]
pub(super) struct GuardedProcess {
    guard: Child,
    /// Never written to. The guard stops the replica when this pipe is closed, for whatever reason.
    liveness_pipe: Option<ChildStdin>,
    output_tasks: JoinSet<()>,
    grace: Duration,
}

impl GuardedProcess {
    /// Starts `process` on `port` under a guard, which is `executable` with the subcommand `guard`.
    ///
    /// # Errors
    ///
    /// When the guard cannot be started. If the program itself cannot be started, the exit code of the guard says so.
    pub(super) fn start(
        executable: &Path,
        grace: Duration,
        process: &Process,
        port: u16,
        replica: &str,
    ) -> io::Result<Self> {
        let mut command = Command::new(executable);
        // The replica gets a process group of its own, so that Ctrl-C at a terminal does not reach it while the router
        // drains. `kill_on_drop` is not used, because a killed guard could not stop its replica.
        command.arg0("inference-router").process_group(0).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args(["guard", "--grace-ms", &grace.as_millis().to_string(), "--"]);
        let port = port.to_string();
        command.args(process.command.iter().map(|word| word.replace(PORT_PLACEHOLDER, &port)));
        command.envs(process.env.iter().map(|(name, value)| (name, value.replace(PORT_PLACEHOLDER, &port))));
        if let Some(folder) = &process.working_dir {
            command.current_dir(folder);
        }
        let mut guard = command.spawn()?;
        let mut output_tasks = JoinSet::new();
        if let Some(stdout) = guard.stdout.take() {
            output_tasks.spawn(output_log::log_lines(stdout, replica.to_owned(), "stdout"));
        }
        if let Some(stderr) = guard.stderr.take() {
            output_tasks.spawn(output_log::log_lines(stderr, replica.to_owned(), "stderr"));
        }
        // Taken out, because waiting for the guard would close it.
        let liveness_pipe = guard.stdin.take();
        Ok(Self { guard, liveness_pipe, output_tasks, grace })
    }

    /// Waits until the replica ends by itself. The future may be dropped and created again.
    pub(super) async fn wait_for_exit(&mut self) -> io::Result<ExitStatus> {
        self.guard.wait().await
    }

    /// Stops the replica with SIGTERM, and with SIGKILL after the grace period. Returns when it is gone.
    pub(super) async fn stop(mut self, replica: &str) {
        drop(self.liveness_pipe.take());
        if timeout(self.grace + GUARD_EXIT_TIMEOUT, self.guard.wait()).await.is_err() {
            tracing::error!(replica, "guard process did not exit; killing it, the replica may still be running");
            // If this fails too, nothing is left to do.
            let _ = self.guard.kill().await;
        }
        self.drain_output().await;
    }

    /// Waits after the end until all output is in the log.
    pub(super) async fn drain_output(mut self) {
        let all = async { while self.output_tasks.join_next().await.is_some() {} };
        // A process that still writes then is not the replica any more. Dropping the readers ends them.
        let _ = timeout(OUTPUT_DRAIN_TIMEOUT, all).await;
    }
}
