//! Wake-ups that a task gives itself.
//!
//! The halves of a request, its client's connection and its replica's, are polled by one task, but the HTTP library
//! connects them with channels made for two. What one half hands over wakes the other, which is the task that runs
//! already: each request would be polled twice as often as it has news. Here such wakes are told from those that count.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

thread_local! {
    /// Whose wakes are held back on this thread, as the address of the [`TaskWaker`], and whether there was one.
    static HELD: Cell<(usize, bool)> = const { Cell::new(NOBODY) };
}

const NOBODY: (usize, bool) = (0, false);

/// The waker of a task, but for wakes that are held back by [`hold`].
struct TaskWaker(Waker);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Another thread's wake is news from outside: that thread has its own cell, in which this task is not held.
        let this = Arc::as_ptr(self).addr();
        if HELD.get().0 == this { HELD.set((this, true)) } else { self.0.wake_by_ref() }
    }
}

/// Lends one task a waker whose wakes can be held back.
#[derive(Default)]
pub(super) struct Holdable(Option<(Waker, Waker)>);

impl Holdable {
    /// The waker to poll with, instead of `task`.
    pub(super) fn waker(&mut self, task: &Waker) -> &Waker {
        if !self.0.as_ref().is_some_and(|(of, _)| of.will_wake(task)) {
            self.0 = Some((task.clone(), Arc::new(TaskWaker(task.clone())).into()));
        }
        self.0.as_ref().map_or(Waker::noop(), |(_, waker)| waker)
    }
}

/// Whether a task was woken while its wakes were held back.
#[must_use = "a wake that is not released is lost"]
pub(super) struct Held(bool);

impl Held {
    /// The wake, if there was one, counts. No outer [`hold`] holds it back, which knows nothing of its reasons.
    pub(super) fn release(self, cx: &Context<'_>) {
        if self.0 {
            let outer = HELD.replace(NOBODY);
            cx.waker().wake_by_ref();
            HELD.set(outer);
        }
    }

    /// What the wake is for has been seen to, or will be when the task is polled next.
    pub(super) fn forget(self) {}
}

/// Runs `poll` while this task's wakes are held back.
pub(super) fn hold<T>(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> (T, Held) {
    let outer = HELD.replace((cx.waker().data().addr(), false));
    let polled = poll(cx);
    let (_, woken) = HELD.replace(outer);
    (polled, Held(woken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Task(Arc<Count>, Holdable);

    impl Task {
        fn new() -> Self {
            Self(Arc::default(), Holdable::default())
        }

        fn waker(&mut self) -> Waker {
            self.1.waker(&self.0.clone().into()).clone()
        }

        fn woken(&self) -> usize {
            self.0.0.load(Ordering::Relaxed)
        }
    }

    fn wake(cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }

    #[test]
    fn a_held_wake_happens_only_if_it_is_released() {
        let mut task = Task::new();
        let waker = task.waker();
        let mut cx = Context::from_waker(&waker);
        hold(&mut cx, wake).1.forget();
        assert_eq!(task.woken(), 0);
        hold(&mut cx, wake).1.release(&cx);
        assert_eq!(task.woken(), 1);
        hold(&mut cx, |_| ()).1.release(&cx);
        assert_eq!(task.woken(), 1, "there was none");
        wake(&mut cx);
        assert_eq!(task.woken(), 2, "nothing is held any more");
    }

    #[test]
    fn what_is_released_within_another_call_is_not_held_by_that() {
        let mut task = Task::new();
        let waker = task.waker();
        let mut cx = Context::from_waker(&waker);
        hold(&mut cx, |cx| hold(cx, wake).1.release(cx)).1.forget();
        assert_eq!(task.woken(), 1);
        let after_an_inner_call = |cx: &mut Context<'_>| {
            hold(cx, |_| ()).1.forget();
            wake(cx);
        };
        hold(&mut cx, after_an_inner_call).1.forget();
        assert_eq!(task.woken(), 1, "the outer call still holds after the inner one");
    }

    #[test]
    fn wakes_of_other_tasks_and_from_other_threads_are_not_held() {
        let (mut task, mut other) = (Task::new(), Task::new());
        let (waker, others) = (task.waker(), other.waker());
        let from_elsewhere = waker.clone();
        let news = |_: &mut Context<'_>| {
            others.wake_by_ref();
            std::thread::spawn(move || from_elsewhere.wake()).join().unwrap();
        };
        hold(&mut Context::from_waker(&waker), news).1.forget();
        assert_eq!((task.woken(), other.woken()), (1, 1));
    }
}
