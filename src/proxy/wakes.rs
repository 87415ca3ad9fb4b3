//! Wake-ups that a task gives itself.
//!
//! The HTTP library hands a request's body over through a channel made for two tasks: who takes a piece wakes who reads
//! the next one from the socket. Here both are the same task, which is running; were it always woken, each request would
//! be polled once more than it has news.

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

/// Runs `poll` while this task's wakes are held back. Returns whether there was one: whether it counts, the caller knows.
pub(super) fn hold<T>(cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> (T, bool) {
    HELD.set((cx.waker().data().addr(), false));
    let polled = poll(cx);
    let (_, woken) = HELD.replace(NOBODY);
    (polled, woken)
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
    fn a_held_wake_does_not_happen_but_is_told() {
        let mut task = Task::new();
        let waker = task.waker();
        let mut cx = Context::from_waker(&waker);
        assert!(hold(&mut cx, wake).1);
        assert_eq!(task.woken(), 0);
        assert!(!hold(&mut cx, |_| ()).1, "there was none");
        wake(&mut cx);
        assert_eq!(task.woken(), 1, "nothing is held any more");
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
        assert!(!hold(&mut Context::from_waker(&waker), news).1);
        assert_eq!((task.woken(), other.woken()), (1, 1));
    }
}
