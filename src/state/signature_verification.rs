//! Queue of token signatures to be verified off the workers. One verification takes as long as a whole request, and
//! anybody can cause one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::refusal::AuthFailure;
use crate::policy::token::{KeySet, ParsedToken};

/// Capacity of the queue. A request that finds it full waits.
const QUEUE_CAPACITY: usize = 64;

/// The queue between workers and the verification thread.
#[derive(Debug)]
pub struct VerificationQueue {
    jobs_tx: mpsc::Sender<VerificationJob>,
    /// The receiving side, until [`VerificationQueue::take_receiver`] takes it.
    jobs_rx: Mutex<Option<mpsc::Receiver<VerificationJob>>>,
}

/// A token and the keys that its signature is verified with.
#[derive(Debug)]
pub struct VerificationJob {
    token: String,
    keys: Arc<KeySet>,
    result_tx: oneshot::Sender<Result<(), AuthFailure>>,
}

impl Default for VerificationQueue {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_CAPACITY);
        Self { jobs_tx: queue, jobs_rx: Mutex::new(Some(waiting)) }
    }
}

impl VerificationQueue {
    /// Verifies the signature of a token on the verification thread. Returns `None` when that thread has ended.
    pub async fn verify_signature(&self, token: &str, keys: Arc<KeySet>) -> Option<Result<(), AuthFailure>> {
        let (verdict, result_rx) = oneshot::channel();
        self.jobs_tx.send(VerificationJob { token: token.to_owned(), keys, result_tx: verdict }).await.ok()?;
        result_rx.await.ok()
    }

    /// Returns the receiving side for the verification thread; `None` if it has been taken before.
    pub fn take_receiver(&self) -> Option<mpsc::Receiver<VerificationJob>> {
        self.jobs_rx.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl VerificationJob {
    /// Verifies the token, unless the request does not wait for the result any more.
    pub fn run(self) {
        if !self.result_tx.is_closed() {
            let verdict = ParsedToken::parse(&self.token).and_then(|token| token.verify(&self.keys).map(drop));
            // The request may have ended in the meantime.
            let _ = self.result_tx.send(verdict);
        }
    }
}
