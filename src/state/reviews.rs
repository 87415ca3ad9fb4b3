//! Users of a Kubernetes cluster who ask for a token of an endpoint: who they are, and whether they may, only the cluster
//! knows. Whoever follows the cluster asks it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::refusal::Denied;

/// Most that are asked for and not looked at yet.
const QUEUE: usize = 64;

/// The queue to whoever asks the cluster.
#[derive(Debug)]
pub struct Reviews {
    queue: mpsc::Sender<Review>,
    /// Until somebody takes it.
    waiting: Mutex<Option<mpsc::Receiver<Review>>>,
    is_taken: AtomicBool,
}

/// Somebody who wants a token of an endpoint.
#[derive(Debug)]
pub struct Review {
    /// What is shown: a bearer token of the cluster.
    pub token: String,
    /// The endpoint's namespace.
    pub namespace: String,
    /// The endpoint's object there.
    pub endpoint: String,
    /// Who it is, or why not; dropped: nobody can tell.
    pub verdict: oneshot::Sender<Result<String, Denied>>,
}

impl Default for Reviews {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self { queue, waiting: Mutex::new(Some(waiting)), is_taken: AtomicBool::new(false) }
    }
}

impl Reviews {
    /// Whether there is a cluster to ask.
    pub fn is_open(&self) -> bool {
        self.is_taken.load(Ordering::Relaxed)
    }

    /// Who shows a token, if it may have one of this endpoint. `None`: nobody can tell now.
    pub async fn verdict(&self, token: &str, namespace: &str, endpoint: &str) -> Option<Result<String, Denied>> {
        let (verdict, told) = oneshot::channel();
        let [token, namespace, endpoint] = [token, namespace, endpoint].map(str::to_owned);
        self.queue.send(Review { token, namespace, endpoint, verdict }).await.ok()?;
        told.await.ok()
    }

    /// What is to be asked, for the one who does.
    pub fn take(&self) -> Option<mpsc::Receiver<Review>> {
        self.is_taken.store(true, Ordering::Relaxed);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
