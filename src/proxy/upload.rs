//! A request body on its way to a model: counted, limited, watched for silence.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::codec::Sending;
use super::mirror::Tee;
use super::throttle::Throttle;
use super::timer::LazyTimer;
use super::wakes;
use crate::model::limits::Limits;
use crate::model::refusal::Refusal;
use crate::state::bandwidth::Limit;

/// Bodies up to this size come with their head, mostly: their first part is awaited before a slot is taken.
const SMALL: u64 = 64 * 1024;

/// A request body. It never fails towards the model: when something is wrong with it, it stops and says so in its
/// [`Progress`], and whoever drives the exchange decides what becomes of the model's connection.
pub(super) struct Upload {
    /// `None` once something is wrong: the client's connection must not wait for what nobody reads.
    source: Option<Source>,
    /// Has each piece wait for its time.
    throttle: Option<Box<Throttle>>,
    /// Gets a copy of each piece.
    tee: Option<Rc<Tee>>,
    /// Read before the rest was asked for.
    first: Option<Bytes>,
    progress: Rc<Progress>,
    limit: u64,
    idle_timeout: Duration,
    timer: LazyTimer,
    /// When the client fell silent, if it is.
    silent_since: Option<Instant>,
}

/// Where a body comes from.
enum Source {
    Client(Incoming),
    /// A live request's body as it passes, and how long it is, if that is known.
    Live(Rc<Tee>, Option<u64>),
}

/// How far a request body has come; seen by those who do not own it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    received: Cell<u64>,
    ended: Cell<Option<Instant>>,
    fault: Cell<Option<Refusal>>,
    delayed: Cell<Duration>,
}

impl Progress {
    /// Bytes so far.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// When the last byte came, if it has.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// For how long it has been held back, for the sake of bandwidth.
    pub(super) fn delayed(&self) -> Duration {
        self.delayed.get()
    }

    /// What is wrong with the body, if something is.
    pub(super) fn fault(&self) -> Option<Refusal> {
        self.fault.get()
    }
}

impl Upload {
    pub(super) fn new(incoming: Incoming, limits: &Limits) -> Self {
        let progress = Rc::new(Progress::default());
        if incoming.is_end_stream() {
            progress.ended.set(Some(Instant::now()));
        }
        Self {
            source: Some(Source::Client(incoming)),
            throttle: None,
            tee: None,
            first: None,
            progress,
            limit: limits.max_payload_bytes,
            idle_timeout: limits.body_idle_timeout,
            timer: LazyTimer::default(),
            silent_since: None,
        }
    }

    /// The body of a copy: what `tee` gets, of the same length as the live one.
    pub(super) fn copy(tee: Rc<Tee>, length: Option<u64>, limits: &Limits) -> Self {
        let progress = Rc::new(Progress::default());
        // What is there goes out together with the head.
        let first = tee.pop_data();
        let begun = first.as_ref().map_or(0, |first| first.len() as u64);
        progress.received.set(begun);
        if tee.is_over() {
            progress.ended.set(Some(Instant::now()));
        }
        Self {
            source: Some(Source::Live(tee, length.map(|length| length.saturating_sub(begun)))),
            throttle: None,
            tee: None,
            first,
            progress,
            limit: limits.max_payload_bytes,
            idle_timeout: limits.body_idle_timeout,
            timer: LazyTimer::default(),
            silent_since: None,
        }
    }

    /// Has `tee` get all of the body, from its first byte on.
    pub(super) fn copy_to(&mut self, tee: Rc<Tee>) {
        if let Some(first) = &self.first {
            tee.push(first);
        }
        if self.progress.ended().is_some() {
            tee.end(None);
        }
        self.tee = Some(tee);
    }

    /// Has it keep to a limit, from its first byte on.
    pub(super) fn keep_to(&mut self, limit: Arc<Limit>) {
        self.throttle = Some(Box::new(Throttle::new(limit)));
    }

    /// How long all of it is, if that is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self.sending() {
            Sending::Length(length) => Some(length),
            Sending::Chunked => None,
        }
    }

    pub(super) fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
    }

    /// Waits for the first part of a small body, so that it goes out together with the head, and so that no slot is
    /// held for a client that is slow to start.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub(super) async fn first_part(&mut self) -> Result<(), Refusal> {
        let length = self.source.as_ref().and_then(|source| source.size_hint().exact());
        if !length.is_some_and(|length| (1..=SMALL).contains(&length)) {
            return Ok(());
        }
        std::future::poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(Some(frame)) => {
                self.first = frame.into_data().ok();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Pending => self.progress.fault().map_or(Poll::Pending, |fault| Poll::Ready(Err(fault))),
        })
        .await
    }

    /// Reads what has come already of the small body of a request that is refused: with all of it read, the connection can
    /// be used again.
    pub(super) async fn skim(&mut self) {
        if self.announced() > SMALL {
            return;
        }
        let mut asked = false;
        std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = self.poll_next(cx) {
                if self.progress.received() > SMALL {
                    return Poll::Ready(());
                }
            }
            if asked || self.is_over() || self.progress.fault().is_some() {
                return Poll::Ready(());
            }
            // The connection hands on what it has only when it is asked, and then it is its turn.
            asked = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// At least so many bytes are to come.
    pub(super) fn announced(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.size_hint().lower())
    }

    /// The next frame after the first part. Pending, for good, when something is wrong.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(source) = &mut self.source else { return Poll::Pending };
        if let Some(throttle) = &mut self.throttle {
            let held = throttle.poll(cx);
            let delayed = throttle.delayed();
            self.progress.delayed.set(delayed);
            self.tee.iter().for_each(|tee| tee.delay(delayed));
            if let Some(frame) = ready!(held) {
                return Poll::Ready(Some(self.pass(frame)));
            }
        }
        if let Source::Live(tee, _) = source {
            self.progress.delayed.set(tee.delayed());
        }
        match source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.silent_since = None;
                let received = self.progress.received() + frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.received.set(received);
                if received > self.limit {
                    return self.fail(Refusal::PayloadTooLarge(self.limit));
                }
                let Some(throttle) = self.throttle.as_mut().filter(|_| frame.is_data()) else {
                    return Poll::Ready(Some(self.pass(frame)));
                };
                throttle.hold(frame);
                self.poll_next(cx)
            }
            Poll::Ready(Some(Err(_))) => self.fail(Refusal::BodyCutShort),
            Poll::Ready(None) => {
                self.progress.ended.set(Some(Instant::now()));
                self.tee.iter().for_each(|tee| tee.end(None));
                Poll::Ready(None)
            }
            Poll::Pending => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                match self.timer.poll(cx, since + self.idle_timeout) {
                    Poll::Ready(()) => self.fail(Refusal::BodyTimeout),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    /// A frame goes on to the model, and to its copy.
    fn pass(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let is_last = frame.is_trailers() || self.source.as_ref().is_some_and(Source::is_end_stream);
        if is_last {
            self.progress.ended.set(Some(Instant::now()));
        }
        if let Some(tee) = &self.tee {
            frame.data_ref().into_iter().for_each(|data| tee.push(data));
            if is_last {
                tee.end(frame.trailers_ref());
            }
        }
        frame
    }

    /// What was still to wait does not count.
    fn end_wait(&mut self) {
        if let Some(throttle) = self.throttle.take() {
            self.progress.delayed.set(throttle.waited());
        }
    }

    /// Reads nothing more.
    pub(super) fn give_up(&mut self) {
        self.source = None;
        self.end_wait();
        self.tee.take().iter().for_each(|tee| tee.stop());
    }

    fn fail(&mut self, fault: Refusal) -> Poll<Option<Frame<Bytes>>> {
        self.progress.fault.set(Some(fault));
        self.give_up();
        Poll::Pending
    }

    /// The first part, if it has been read.
    pub(super) fn take_first(&mut self) -> Option<Bytes> {
        self.first.take()
    }

    /// Puts the first part back, which could not be sent.
    pub(super) fn put_first_back(&mut self, first: Option<Bytes>) {
        self.first = first;
    }

    /// How the body is to be sent.
    pub(super) fn sending(&self) -> Sending {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        let rest = self.source.as_ref().map(Source::size_hint).unwrap_or_default();
        rest.exact().map_or(Sending::Chunked, |rest| Sending::Length(first + rest))
    }

    /// Whether all of it has been read.
    pub(super) fn is_over(&self) -> bool {
        self.first.is_none() && self.progress.ended().is_some()
    }
}

/// Nothing more is read of it.
impl Drop for Upload {
    fn drop(&mut self) {
        self.end_wait();
        self.tee.iter().for_each(|tee| tee.stop());
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::Client(incoming) => {
                let (polled, woken) = wakes::hold(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx));
                // Taking a piece wakes the client's connection to read the next one. After the last there is none.
                if woken && !incoming.is_end_stream() {
                    cx.waker().wake_by_ref();
                }
                polled
            }
            Self::Live(tee, rest) => tee.poll_frame(cx).map(|frame| {
                let length = frame.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
                *rest = rest.map(|rest| rest.saturating_sub(length));
                frame.map(Ok)
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(incoming) => incoming.is_end_stream(),
            Self::Live(tee, _) => tee.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(incoming) => incoming.size_hint(),
            Self::Live(_, Some(rest)) => SizeHint::with_exact(*rest),
            Self::Live(_, None) => SizeHint::default(),
        }
    }
}
