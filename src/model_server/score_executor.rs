//! Executes scores: a limited number at once, the others in a FIFO queue, each in a task of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::linear_model::{InvalidInput, LinearModel, ScoreInput, render_number};

/// Executes scores.
#[derive(Debug)]
pub(super) struct ScoreExecutor {
    model: LinearModel,
    delay: Duration,
    fail_rate: f64,
    slots: Semaphore,
    tasks: Mutex<JoinSet<()>>,
}

/// A run that has ended or, for a stream, has begun to answer.
#[derive(Debug)]
pub(super) struct FinishedRun {
    /// Time from the start of the run to the answer, without the queue wait.
    pub(super) duration: Duration,
    pub(super) result: Result<RunOutput, ModelRunError>,
}

/// The output of a run.
#[derive(Debug)]
pub(super) enum RunOutput {
    /// A prediction for each row.
    Predictions(Vec<f64>),
    /// Server-sent events, one for each row and a last one that marks the end.
    Events(mpsc::Receiver<Bytes>),
}

/// Why a run has no output.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModelRunError {
    #[error(transparent)]
    InvalidInput(#[from] InvalidInput),
    /// The failure that `fail_rate` asked for.
    #[error("the model failed on purpose (fail rate)")]
    InjectedFailure,
    /// The server is stopping, and the run took longer than it can wait.
    #[error("the run was cut off, the server is stopping")]
    Aborted,
}

impl ScoreExecutor {
    pub(super) fn new(model: LinearModel, concurrency: usize, delay: Duration, fail_rate: f64) -> Self {
        let slots = Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS));
        Self { model, delay, fail_rate, slots, tasks: Mutex::default() }
    }

    /// Waits for a slot in order of arrival, and scores `input`.
    ///
    /// Dropping the returned future does not stop the run: a Python model does not notice that its client left, and
    /// keeps its worker busy to the end. A router has to be tested against exactly that.
    pub(super) async fn run(self: &Arc<Self>, input: ScoreInput, stream: bool) -> FinishedRun {
        let (reply, finished) = oneshot::channel();
        self.spawn(self.clone().execute(input, stream, reply));
        finished.await.unwrap_or(FinishedRun { duration: Duration::ZERO, result: Err(ModelRunError::Aborted) })
    }

    /// Aborts all runs.
    pub(super) fn abort_all(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    fn spawn(&self, run: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Ended runs are removed here, so that the set stays small.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(run);
    }

    async fn execute(self: Arc<Self>, input: ScoreInput, stream: bool, reply: oneshot::Sender<FinishedRun>) {
        // The semaphore is never closed; returning here is what closing it would mean.
        let slot = match self.slots.try_acquire() {
            Ok(slot) => Ok(slot),
            Err(_) => {
                tracing::warn!("score queued: more requests than --concurrency");
                self.slots.acquire().await
            }
        };
        let Ok(_slot) = slot else { return };
        let started = Instant::now();
        // A reply that nobody receives any more is no error, see `run`.
        let send_result = |result| drop(reply.send(FinishedRun { duration: started.elapsed(), result }));
        match self.model.score(&input) {
            Err(bad) => send_result(Err(bad.into())),
            Ok(_) if rand::random_bool(self.fail_rate) => {
                sleep_unless_zero(self.delay).await;
                send_result(Err(ModelRunError::InjectedFailure));
            }
            Ok(predictions) if stream => {
                let (sender, events) = mpsc::channel(1);
                send_result(Ok(RunOutput::Events(events)));
                self.send_events(&predictions, &sender).await;
            }
            Ok(predictions) => {
                sleep_unless_zero(self.delay).await;
                send_result(Ok(RunOutput::Predictions(predictions)));
            }
        }
    }

    /// Sends an event for each prediction, with the delay split evenly before them. It continues when nobody listens.
    async fn send_events(&self, predictions: &[f64], events: &mpsc::Sender<Bytes>) {
        let event_delay = self.delay / u32::try_from(predictions.len()).unwrap_or(u32::MAX);
        for prediction in predictions {
            sleep_unless_zero(event_delay).await;
            let _ = events.send(format_event(&render_number(*prediction))).await;
        }
        let _ = events.send(format_event("[DONE]")).await;
    }
}

fn format_event(data: &str) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// A timer takes at least a millisecond, but no delay must be none.
async fn sleep_unless_zero(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
