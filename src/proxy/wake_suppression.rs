//! Suppression of wake-ups that a task gives itself.
//!
//! The HTTP library passes a request body through a channel that is made for two tasks: taking a chunk wakes the task
//! that reads the next one from the socket. Here both are the same task, which is running. If it were woken each time,
//! every request would be polled once more than necessary.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

thread_local! {
    /// The task whose wake-ups are suppressed on this thread, as the address of its [`TaskWaker`], and whether there
    /// was one.
    static SUPPRESSED_WAKER: Cell<(usize, bool)> = const { Cell::new(NO_WAKER) };
}

const NO_WAKER: (usize, bool) = (0, false);

/// The waker of a task, without the wake-ups that are suppressed by [`poll_suppressed`].
struct TaskWaker(Waker);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A wake-up from another thread is never suppressed, because that thread has a cell of its own.
        let this = Arc::as_ptr(self).addr();
        if SUPPRESSED_WAKER.get().0 == this { SUPPRESSED_WAKER.set((this, true)) } else { self.0.wake_by_ref() }
    }
}

/// Provides a waker for one task whose wake-ups can be suppressed.
#[derive(Default)]
pub(super) struct SuppressibleWaker(Option<(Waker, Waker)>);

impl SuppressibleWaker {
    /// Returns the waker to poll with instead of `task`.
    pub(super) fn waker(&mut self, task: &Waker) -> &Waker {
        if !self.0.as_ref().is_some_and(|(original, _)| original.will_wake(task)) {
            self.0 = Some((task.clone(), Arc::new(TaskWaker(task.clone())).into()));
        }
        self.0.as_ref().map_or(Waker::noop(), |(_, waker)| waker)
    }
}

/// Runs `poll` while wake-ups of this task are suppressed. Also returns whether there was one; the caller decides
/// whether it counts.
pub(super) fn poll_suppressed<T>(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> (T, bool) {
    SUPPRESSED_WAKER.set((cx.waker().data().addr(), false));
    let polled = poll(cx);
    let (_, was_woken) = SUPPRESSED_WAKER.replace(NO_WAKER);
    (polled, was_woken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct CountedTask(Arc<WakeCounter>, SuppressibleWaker);

    impl CountedTask {
        fn new() -> Self {
            Self(Arc::default(), SuppressibleWaker::default())
        }

        fn waker(&mut self) -> Waker {
            self.1.waker(&self.0.clone().into()).clone()
        }

        fn wake_count(&self) -> usize {
            self.0.0.load(Ordering::Relaxed)
        }
    }

    fn wake(cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }

    #[test]
    fn a_held_wake_does_not_happen_but_is_told() {
        let mut task = CountedTask::new();
        let waker = task.waker();
        let mut cx = Context::from_waker(&waker);
        assert!(poll_suppressed(&mut cx, wake).1);
        assert_eq!(task.wake_count(), 0);
        assert!(!poll_suppressed(&mut cx, |_| ()).1, "there was none");
        wake(&mut cx);
        assert_eq!(task.wake_count(), 1, "nothing is held any more");
    }

    #[test]
    fn wakes_of_other_tasks_and_from_other_threads_are_not_held() {
        let (mut task, mut other) = (CountedTask::new(), CountedTask::new());
        let (waker, others) = (task.waker(), other.waker());
        let from_elsewhere = waker.clone();
        let news = |_: &mut Context<'_>| {
            others.wake_by_ref();
            std::thread::spawn(move || from_elsewhere.wake()).join().unwrap();
        };
        assert!(!poll_suppressed(&mut Context::from_waker(&waker), news).1);
        assert_eq!((task.wake_count(), other.wake_count()), (1, 1));
    }
}
