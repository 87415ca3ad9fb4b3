//! A deadline that moves with every request but rarely touches the runtime's timer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// A timer for a deadline that keeps moving later.
///
/// Registering a timer costs more than much of what a request does, and nearly none of them fires. So the runtime's
/// timer stays where it was when the deadline moves later; when it goes off too early it is set anew.
#[derive(Debug, Default)]
pub(super) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether `sleep` wakes the current task.
    bound: bool,
}

impl LazyTimer {
    /// The next poll may come from another task.
    pub(super) fn unbind(&mut self) {
        self.bound = false;
    }

    /// Ready when `deadline` has passed; otherwise the task is woken then, or earlier.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if sleep.deadline().into_std() > deadline {
            sleep.as_mut().reset(deadline.into());
            self.bound = false;
        }
        if self.bound && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                self.bound = true;
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
    }
}
