//! Signatures that wait to be checked, away from the workers: a check takes as long as a whole request, and anybody can
//! ask for one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::model::refusal::Denied;
use crate::policy::token::{KeySet, Token};

/// Most checks that are handed over and not begun; whoever has more waits.
const QUEUE: usize = 64;

/// The queue to whoever checks.
#[derive(Debug)]
pub struct Checks {
    queue: mpsc::Sender<Check>,
    /// Until somebody takes it.
    waiting: Mutex<Option<mpsc::Receiver<Check>>>,
}

/// A token, and what its signature is checked with.
#[derive(Debug)]
pub struct Check {
    token: String,
    keys: Arc<KeySet>,
    verdict: oneshot::Sender<Result<(), Denied>>,
}

impl Default for Checks {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self { queue, waiting: Mutex::new(Some(waiting)) }
    }
}

impl Checks {
    /// Has a token's signature checked. `None` when nobody does that any more.
    pub async fn verdict(&self, token: &str, keys: Arc<KeySet>) -> Option<Result<(), Denied>> {
        let (verdict, told) = oneshot::channel();
        self.queue.send(Check { token: token.to_owned(), keys, verdict }).await.ok()?;
        told.await.ok()
    }

    /// What is to be checked, for the one who does.
    pub fn take(&self) -> Option<mpsc::Receiver<Check>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Check {
    /// Checks, unless nobody waits for it any more.
    pub fn run(self) {
        if !self.verdict.is_closed() {
            let verdict = Token::parse(&self.token).and_then(|token| token.verified(&self.keys).map(drop));
            // Nobody waits any more.
            let _ = self.verdict.send(verdict);
        }
    }
}
