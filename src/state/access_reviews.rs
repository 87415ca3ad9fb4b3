//! Reviews of Kubernetes users who ask for a token of an endpoint. Only the cluster can authenticate and authorize
//! them; `control::cluster` takes the requests from this queue and sends TokenReviews and SubjectAccessReviews.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::refusal::AuthFailure;

/// Capacity of the queue, in reviews that are requested and not started yet.
const QUEUE_CAPACITY: usize = 64;

/// The queue of reviews between workers and the control plane.
#[derive(Debug)]
pub struct AccessReviewQueue {
    reviews_tx: mpsc::Sender<AccessReview>,
    /// The receiving side, until [`AccessReviewQueue::take_receiver`] takes it.
    reviews_rx: Mutex<Option<mpsc::Receiver<AccessReview>>>,
    has_reviewer: AtomicBool,
}

/// A request for a token of an endpoint, to be reviewed by the cluster.
#[derive(Debug)]
pub struct AccessReview {
    /// The bearer token of the cluster that the client presented.
    pub token: String,
    /// Namespace of the endpoint's object.
    pub namespace: String,
    /// Name of the endpoint's object.
    pub endpoint: String,
    /// Where the reviewer sends the user name, or why the user is denied. Dropping it means that the cluster could not
    /// be asked.
    pub result_tx: oneshot::Sender<Result<String, AuthFailure>>,
}

impl Default for AccessReviewQueue {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_CAPACITY);
        Self { reviews_tx: queue, reviews_rx: Mutex::new(Some(waiting)), has_reviewer: AtomicBool::new(false) }
    }
}

impl AccessReviewQueue {
    /// Returns whether there is a cluster that can review users.
    pub fn has_reviewer(&self) -> bool {
        self.has_reviewer.load(Ordering::Relaxed)
    }

    /// Returns the name of the user that `token` belongs to, if that user may have a token of this endpoint. Returns
    /// `None` when the cluster cannot be asked now.
    pub async fn review_token(
        &self,
        token: &str,
        namespace: &str,
        endpoint: &str,
    ) -> Option<Result<String, AuthFailure>> {
        let (verdict, result_rx) = oneshot::channel();
        let [token, namespace, endpoint] = [token, namespace, endpoint].map(str::to_owned);
        self.reviews_tx.send(AccessReview { token, namespace, endpoint, result_tx: verdict }).await.ok()?;
        result_rx.await.ok()
    }

    /// Returns the receiving side for the task that performs the reviews; `None` if it has been taken before.
    pub fn take_receiver(&self) -> Option<mpsc::Receiver<AccessReview>> {
        self.has_reviewer.store(true, Ordering::Relaxed);
        self.reviews_rx.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
