//! A timer for deadlines that move with every request, which rarely uses the timer of the runtime.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;

/// A timer for a deadline that keeps moving later.
///
/// Registering a timer costs more than much of what a request does, and hardly any timer fires. So the runtime's timer
/// stays where it was when the deadline moves later, and is registered again only if it fires too early.
#[derive(Debug, Default)]
pub(super) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether `sleep` wakes the current task.
    is_waker_registered: bool,
}

impl LazyTimer {
    /// Forgets the registered waker, because the next poll may come from another task.
    pub(super) fn reset_waker(&mut self) {
        self.is_waker_registered = false;
    }

    /// Returns ready when `deadline` has passed. Otherwise the task is woken then, or earlier.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if sleep.deadline().into_std() > deadline {
            sleep.as_mut().reset(deadline.into());
            self.is_waker_registered = false;
        }
        if self.is_waker_registered && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                self.is_waker_registered = true;
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.into());
        }
    }
}
