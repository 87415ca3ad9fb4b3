//! A timer for deadlines that move with every request, which rarely uses the timer of the runtime.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::task::coop::unconstrained;
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
            // Without `unconstrained`, a timer is pending without being registered when the task has used up its
            // budget for one poll.
            if Pin::new(&mut unconstrained(sleep.as_mut())).poll(cx).is_pending() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::task::coop;

    #[tokio::test]
    async fn a_task_that_has_used_up_its_budget_is_woken_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(200);
        let mut timer = LazyTimer::default();
        let wait = tokio::spawn(poll_fn(move |cx| {
            while coop::has_budget_remaining() {
                if let Poll::Ready(proceed) = coop::poll_proceed(cx) {
                    proceed.made_progress();
                }
            }
            timer.poll(cx, deadline)
        }));
        tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the timer does not fire").unwrap();
    }
}
