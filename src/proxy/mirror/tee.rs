//! The body of a live request, once more for its copy.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::state::mirror::{Budget, Held};

/// Half of what one read of a body may bring: smaller pieces are copied where they would wait.
const COPIED: usize = 128 * 1024;

/// Why a copy is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Cut {
    /// It lags behind by more than its window.
    Lagging,
    /// All copies together hold more than they may.
    OverBudget,
    /// The live body came to no end, or nobody waits for the live answer any more.
    ClientLeft,
}

/// What has been read of a live body and its copy has not had yet. Whoever reads the one never waits for the other: what
/// would be too much ends the copy.
#[derive(Debug)]
pub(in crate::proxy) struct Tee {
    pieces: RefCell<VecDeque<Frame<Bytes>>>,
    /// The memory of `pieces`.
    held: RefCell<Held>,
    /// Bytes so far.
    passed: Cell<u64>,
    /// For how long the live body has been held back, for the sake of bandwidth.
    delayed: Cell<Duration>,
    window: usize,
    has_ended: Cell<bool>,
    cut: Cell<Option<Cut>>,
    /// The copy, while it waits for more, or for bad news.
    waiting: RefCell<Option<Waker>>,
}

impl Tee {
    /// Nothing of it has come.
    pub(in crate::proxy) fn new(window: usize, budget: Arc<Budget>) -> Self {
        Self {
            pieces: RefCell::default(),
            held: RefCell::new(Held::new(budget)),
            passed: Cell::new(0),
            delayed: Cell::default(),
            window,
            has_ended: Cell::new(false),
            cut: Cell::new(None),
            waiting: RefCell::default(),
        }
    }

    /// A piece of the live body.
    pub(in crate::proxy) fn push(&self, data: &Bytes) {
        if self.cut.get().is_some() || data.is_empty() {
            return;
        }
        if self.held.borrow().bytes() + data.len() > self.window {
            return self.cut(Cut::Lagging);
        }
        if !self.held.borrow_mut().take(data.len()) {
            return self.cut(Cut::OverBudget);
        }
        self.passed.set(self.passed.get() + data.len() as u64);
        let mut pieces = self.pieces.borrow_mut();
        // A small piece keeps all of the buffer that it was read into. One is no matter, many of a copy that lags are.
        let is_dear = !pieces.is_empty() && data.len() < COPIED;
        let piece = if is_dear { Bytes::copy_from_slice(data) } else { data.clone() };
        pieces.push_back(Frame::data(piece));
        drop(pieces);
        self.wake();
    }

    /// The live body has been held back for so long, in all.
    pub(in crate::proxy) fn delay(&self, delayed: Duration) {
        self.delayed.set(delayed);
    }

    /// For how long the live body has been held back.
    pub(in crate::proxy) fn delayed(&self) -> Duration {
        self.delayed.get()
    }

    /// The live body has ended.
    pub(in crate::proxy) fn end(&self, trailers: Option<&HeaderMap>) {
        if self.cut.get().is_some() || self.has_ended.replace(true) {
            return;
        }
        if let Some(trailers) = trailers {
            self.pieces.borrow_mut().push_back(Frame::trailers(trailers.clone()));
        }
        self.wake();
    }

    /// Nothing more is read of the live body.
    pub(in crate::proxy) fn stop(&self) {
        if !self.has_ended.get() {
            self.cut(Cut::ClientLeft);
        }
    }

    /// The copy is given up.
    pub(in crate::proxy) fn cut(&self, why: Cut) {
        if self.cut.get().is_none() {
            self.cut.set(Some(why));
            self.forget();
            self.wake();
        }
    }

    /// Why the copy was given up, if it was; whoever asks is woken when it is.
    pub(in crate::proxy) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.cut.get().map_or_else(|| self.wait(cx), Poll::Ready)
    }

    /// Bytes so far.
    pub(in crate::proxy) fn passed(&self) -> u64 {
        self.passed.get()
    }

    /// Whether nothing more is to be had.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.has_ended.get() && self.pieces.borrow().is_empty()
    }

    /// The next piece for the copy; pending for good when it is given up, which [`Tee::poll_cut`] tells.
    pub(in crate::proxy) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        match self.pop() {
            None if !self.has_ended.get() || self.cut.get().is_some() => self.wait(cx),
            frame => Poll::Ready(frame),
        }
    }

    /// The next piece, if it is there and no trailers.
    pub(in crate::proxy) fn pop_data(&self) -> Option<Bytes> {
        let is_data = self.pieces.borrow().front().is_some_and(Frame::is_data);
        if is_data { self.pop()?.into_data().ok() } else { None }
    }

    /// The next piece, if it is there.
    fn pop(&self) -> Option<Frame<Bytes>> {
        let frame = self.pieces.borrow_mut().pop_front();
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            self.held.borrow_mut().give(data.len());
        }
        frame
    }

    fn wait<T>(&self, cx: &Context<'_>) -> Poll<T> {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&self) {
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    fn forget(&self) {
        self.pieces.borrow_mut().clear();
        drop(self.held.borrow_mut().hand_over());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_fn;

    fn tee(window: usize, budget: &Arc<Budget>) -> Tee {
        Tee::new(window, budget.clone())
    }

    #[tokio::test]
    async fn a_copy_gets_the_same_pieces_and_the_same_end() {
        let budget = Budget::new(10);
        let tee = tee(10, &budget);
        tee.push(&Bytes::from_static(b"abc"));
        tee.push(&Bytes::from_static(b"def"));
        tee.end(None);
        tee.stop();
        let mut seen = Vec::new();
        while let Some(frame) = poll_fn(|cx| tee.poll_frame(cx)).await {
            seen.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!((seen.as_slice(), tee.is_over(), tee.passed()), (&b"abcdef"[..], true, 6));
        assert!(budget.take(10), "all is given back");
    }

    #[tokio::test]
    async fn what_is_too_much_ends_the_copy_and_gives_back_what_it_held() {
        for (window, budget, why) in [(5, 100, Cut::Lagging), (100, 5, Cut::OverBudget)] {
            let budget = Budget::new(budget);
            let tee = tee(window, &budget);
            tee.push(&Bytes::from_static(b"abc"));
            tee.push(&Bytes::from_static(b"def"));
            assert_eq!(poll_fn(|cx| tee.poll_cut(cx)).await, why);
            assert!(budget.take(5), "nothing is held");
            tee.push(&Bytes::from_static(b"g"));
            let waits = poll_fn(|cx| Poll::Ready(tee.poll_frame(cx).is_pending())).await;
            assert!(waits && tee.passed() == 3);
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_end() {
        let budget = Budget::new(10);
        let tee = tee(10, &budget);
        tee.push(&Bytes::from_static(b"abc"));
        tee.stop();
        assert_eq!(poll_fn(|cx| tee.poll_cut(cx)).await, Cut::ClientLeft);
        assert!(budget.take(10) && !tee.is_over());
    }
}
