//! A buffer through which the body of a live request reaches its copy.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::state::mirror::{Budget, MemoryReservation};

/// Half of what one read of a body may bring. Smaller chunks are copied if they have to wait.
const MIN_SHARED_PIECE_BYTES: usize = 128 * 1024;

/// Why a copy is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum MirrorAbort {
    /// The copy lags behind by more than its window.
    Lagging,
    /// All copies together hold more than they may.
    OverBudget,
    /// The live body did not end properly, or nobody waits for the live response any more.
    ClientLeft,
}

/// Data of a live body that its copy has not read yet. Reading the live body never waits for the copy: what would
/// exceed a limit aborts the copy.
#[derive(Debug)]
pub(in crate::proxy) struct Tee {
    pieces: RefCell<VecDeque<Frame<Bytes>>>,
    /// The memory of `pieces`.
    reservation: RefCell<MemoryReservation>,
    /// Number of bytes so far.
    passed_bytes: Cell<u64>,
    /// The time by which the bandwidth limit has delayed the live body.
    total_delay: Cell<Duration>,
    window_bytes: usize,
    has_ended: Cell<bool>,
    abort_reason: Cell<Option<MirrorAbort>>,
    /// The waker of the copy, while it waits for more data or for an abort.
    waker: RefCell<Option<Waker>>,
}

impl Tee {
    /// Creates an empty buffer.
    pub(in crate::proxy) fn new(window_bytes: usize, budget: Arc<Budget>) -> Self {
        Self {
            pieces: RefCell::default(),
            reservation: RefCell::new(MemoryReservation::new(budget)),
            passed_bytes: Cell::new(0),
            total_delay: Cell::default(),
            window_bytes,
            has_ended: Cell::new(false),
            abort_reason: Cell::new(None),
            waker: RefCell::default(),
        }
    }

    /// Adds a chunk of the live body.
    pub(in crate::proxy) fn push(&self, data: &Bytes) {
        if self.abort_reason.get().is_some() || data.is_empty() {
            return;
        }
        if self.reservation.borrow().bytes() + data.len() > self.window_bytes {
            return self.abort(MirrorAbort::Lagging);
        }
        if !self.reservation.borrow_mut().try_grow(data.len()) {
            return self.abort(MirrorAbort::OverBudget);
        }
        self.passed_bytes.set(self.passed_bytes.get() + data.len() as u64);
        let mut pieces = self.pieces.borrow_mut();
        // A small chunk keeps the whole buffer alive that it was read into. That matters when many of them wait for a
        // copy that lags.
        let should_copy = !pieces.is_empty() && data.len() < MIN_SHARED_PIECE_BYTES;
        let piece = if should_copy { Bytes::copy_from_slice(data) } else { data.clone() };
        pieces.push_back(Frame::data(piece));
        drop(pieces);
        self.wake();
    }

    /// Sets the total delay of the live body.
    pub(in crate::proxy) fn set_total_delay(&self, delayed: Duration) {
        self.total_delay.set(delayed);
    }

    /// Returns the total delay of the live body.
    pub(in crate::proxy) fn total_delay(&self) -> Duration {
        self.total_delay.get()
    }

    /// Marks the end of the live body.
    pub(in crate::proxy) fn end(&self, trailers: Option<&HeaderMap>) {
        if self.abort_reason.get().is_some() || self.has_ended.replace(true) {
            return;
        }
        if let Some(trailers) = trailers {
            self.pieces.borrow_mut().push_back(Frame::trailers(trailers.clone()));
        }
        self.wake();
    }

    /// Marks that the live body is not read any further.
    pub(in crate::proxy) fn stop(&self) {
        if !self.has_ended.get() {
            self.abort(MirrorAbort::ClientLeft);
        }
    }

    /// Aborts the copy.
    pub(in crate::proxy) fn abort(&self, why: MirrorAbort) {
        if self.abort_reason.get().is_none() {
            self.abort_reason.set(Some(why));
            self.discard_frames();
            self.wake();
        }
    }

    /// Returns why the copy was aborted, if it was. Otherwise the caller is woken when it is.
    pub(in crate::proxy) fn poll_abort(&self, cx: &mut Context<'_>) -> Poll<MirrorAbort> {
        self.abort_reason.get().map_or_else(|| self.register_waker(cx), Poll::Ready)
    }

    /// Returns the number of bytes so far.
    pub(in crate::proxy) fn passed_bytes(&self) -> u64 {
        self.passed_bytes.get()
    }

    /// Returns whether no more data will come.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.has_ended.get() && self.pieces.borrow().is_empty()
    }

    /// Returns the next chunk for the copy. After an abort it is pending forever; [`Tee::poll_abort`] reports the
    /// abort.
    pub(in crate::proxy) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        match self.pop() {
            None if !self.has_ended.get() || self.abort_reason.get().is_some() => self.register_waker(cx),
            frame => Poll::Ready(frame),
        }
    }

    /// Returns the next chunk, if it is there and is not the trailers.
    pub(in crate::proxy) fn pop_data(&self) -> Option<Bytes> {
        let is_data = self.pieces.borrow().front().is_some_and(Frame::is_data);
        if is_data { self.pop()?.into_data().ok() } else { None }
    }

    /// Returns the next frame, if it is there.
    fn pop(&self) -> Option<Frame<Bytes>> {
        let frame = self.pieces.borrow_mut().pop_front();
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            self.reservation.borrow_mut().shrink(data.len());
        }
        frame
    }

    fn register_waker<T>(&self, cx: &Context<'_>) -> Poll<T> {
        let mut waiting = self.waker.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn discard_frames(&self) {
        self.pieces.borrow_mut().clear();
        drop(self.reservation.borrow_mut().take_all());
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
        assert_eq!((seen.as_slice(), tee.is_over(), tee.passed_bytes()), (&b"abcdef"[..], true, 6));
        assert!(budget.try_reserve(10), "all is given back");
    }

    #[tokio::test]
    async fn what_is_too_much_ends_the_copy_and_gives_back_what_it_held() {
        for (window, budget, why) in [(5, 100, MirrorAbort::Lagging), (100, 5, MirrorAbort::OverBudget)] {
            let budget = Budget::new(budget);
            let tee = tee(window, &budget);
            tee.push(&Bytes::from_static(b"abc"));
            tee.push(&Bytes::from_static(b"def"));
            assert_eq!(poll_fn(|cx| tee.poll_abort(cx)).await, why);
            assert!(budget.try_reserve(5), "nothing is held");
            tee.push(&Bytes::from_static(b"g"));
            let waits = poll_fn(|cx| Poll::Ready(tee.poll_frame(cx).is_pending())).await;
            assert!(waits && tee.passed_bytes() == 3);
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_end() {
        let budget = Budget::new(10);
        let tee = tee(10, &budget);
        tee.push(&Bytes::from_static(b"abc"));
        tee.stop();
        assert_eq!(poll_fn(|cx| tee.poll_abort(cx)).await, MirrorAbort::ClientLeft);
        assert!(budget.try_reserve(10) && !tee.is_over());
    }
}
