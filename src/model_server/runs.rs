//! Who may run and when: at most so many scores at once, the others in line, each in a task of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::score::{BadInput, Input, Model, render_number};

/// Runs scores.
#[derive(Debug)]
pub(super) struct Runs {
    model: Model,
    delay: Duration,
    fail_rate: f64,
    slots: Semaphore,
    tasks: Mutex<JoinSet<()>>,
}

/// A run that has ended, or for a stream, begun to answer.
#[derive(Debug)]
pub(super) struct Finished {
    /// Time from getting a slot to the answer, without the wait in line.
    pub(super) took: Duration,
    pub(super) result: Result<Output, RunError>,
}

/// What a run answers.
#[derive(Debug)]
pub(super) enum Output {
    /// A prediction for each row.
    Whole(Vec<f64>),
    /// Server-sent events, one for each row and one that says it was the last.
    Events(mpsc::Receiver<Bytes>),
}

/// Why a run has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    BadInput(#[from] BadInput),
    /// The failure that was asked for with `fail_rate`.
    #[error("the model failed on purpose (fail rate)")]
    OnPurpose,
    /// The server stops, and the run took longer than it can wait.
    #[error("the run was cut off, the server is stopping")]
    CutOff,
}

impl Runs {
    pub(super) fn new(model: Model, concurrency: usize, delay: Duration, fail_rate: f64) -> Self {
        let slots = Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS));
        Self { model, delay, fail_rate, slots, tasks: Mutex::default() }
    }

    /// Waits for a slot, first come first served, and scores `input`.
    ///
    /// Dropping the returned future does not stop the run: a Python model does not notice that its client left, and
    /// keeps its worker busy to the end. A router has to be tested against exactly that.
    pub(super) async fn run(self: &Arc<Self>, input: Input, stream: bool) -> Finished {
        let (reply, finished) = oneshot::channel();
        self.spawn(self.clone().execute(input, stream, reply));
        finished.await.unwrap_or(Finished { took: Duration::ZERO, result: Err(RunError::CutOff) })
    }

    /// Ends all runs where they are.
    pub(super) fn abort(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    fn spawn(&self, run: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Ended runs are collected here, so that the set stays as small as what is going on.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(run);
    }

    async fn execute(self: Arc<Self>, input: Input, stream: bool, reply: oneshot::Sender<Finished>) {
        // The semaphore is never closed; to give up here is what closing it would mean.
        let slot = match self.slots.try_acquire() {
            Ok(slot) => Ok(slot),
            Err(_) => {
                tracing::warn!("a score waits in line: more came at once than --concurrency");
                self.slots.acquire().await
            }
        };
        let Ok(_slot) = slot else { return };
        let started = Instant::now();
        // A reply that nobody takes any more is no error, see `run`.
        let answer = |result| drop(reply.send(Finished { took: started.elapsed(), result }));
        match self.model.score(&input) {
            Err(bad) => answer(Err(bad.into())),
            Ok(_) if rand::random_bool(self.fail_rate) => {
                pause(self.delay).await;
                answer(Err(RunError::OnPurpose));
            }
            Ok(predictions) if stream => {
                let (sender, events) = mpsc::channel(1);
                answer(Ok(Output::Events(events)));
                self.emit(&predictions, &sender).await;
            }
            Ok(predictions) => {
                pause(self.delay).await;
                answer(Ok(Output::Whole(predictions)));
            }
        }
    }

    /// Sends an event for each prediction, the delay split evenly before them. Goes on when nobody listens.
    async fn emit(&self, predictions: &[f64], events: &mpsc::Sender<Bytes>) {
        let share = self.delay / u32::try_from(predictions.len()).unwrap_or(u32::MAX);
        for prediction in predictions {
            pause(share).await;
            let _ = events.send(event(&render_number(*prediction))).await;
        }
        let _ = events.send(event("[DONE]")).await;
    }
}

fn event(data: &str) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// A timer is at least a millisecond; no delay has to be none.
async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
