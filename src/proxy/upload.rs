//! A request body on its way to a model: counted, limited, and watched for silence.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::codec::BodyFraming;
use super::mirror::Tee;
use super::throttle::Throttle;
use super::timer::LazyTimer;
use super::wake_suppression;
use crate::model::refusal::Refusal;
use crate::model::router_settings::Limits;
use crate::state::bandwidth::BandwidthLimit;

/// Bodies of up to this size mostly arrive together with their head, so their first chunk is awaited before a slot is
/// acquired.
const SMALL_BODY_BYTES: u64 = 64 * 1024;

/// A request body. It never returns an error to the model's side: when something is wrong with the body, it stops and
/// records that in its [`UploadProgress`], and the code that drives the exchange decides what happens to the upstream
/// connection.
pub(super) struct Upload {
    /// The source; `None` after a fault, because the client's connection must not wait for a body that nobody reads.
    source: Option<UploadSource>,
    /// Delays each chunk to keep the bandwidth limit.
    throttle: Option<Box<Throttle>>,
    /// Gets a copy of each chunk.
    tee: Option<Rc<Tee>>,
    /// The first chunk, if it was read ahead.
    first_chunk: Option<Bytes>,
    progress: Rc<UploadProgress>,
    max_bytes: u64,
    idle_timeout: Duration,
    timer: LazyTimer,
    /// When the client stopped sending, if it has.
    silent_since: Option<Instant>,
}

/// The source of a body.
enum UploadSource {
    Client(Incoming),
    /// The body of a live request as it passes, with its length if that is known.
    Tee(Rc<Tee>, Option<u64>),
}

/// The progress of a request body, visible to code that does not own the body.
#[derive(Debug, Default)]
pub(super) struct UploadProgress {
    received_bytes: Cell<u64>,
    ended_at: Cell<Option<Instant>>,
    fault: Cell<Option<Refusal>>,
    total_delay: Cell<Duration>,
}

impl UploadProgress {
    /// Returns the number of bytes received.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// Returns when the last byte arrived, if it has.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.ended_at.get()
    }

    /// Returns the time by which the bandwidth limit has delayed the body.
    pub(super) fn total_delay(&self) -> Duration {
        self.total_delay.get()
    }

    /// Returns the fault of the body, if there is one.
    pub(super) fn fault(&self) -> Option<Refusal> {
        self.fault.get()
    }
}

impl Upload {
    pub(super) fn new(incoming: Incoming, limits: &Limits) -> Self {
        let progress = Rc::new(UploadProgress::default());
        if incoming.is_end_stream() {
            progress.ended_at.set(Some(Instant::now()));
        }
        Self {
            source: Some(UploadSource::Client(incoming)),
            throttle: None,
            tee: None,
            first_chunk: None,
            progress,
            max_bytes: limits.max_payload_bytes,
            idle_timeout: limits.body_idle_timeout,
            timer: LazyTimer::default(),
            silent_since: None,
        }
    }

    /// Creates the body of a copy: what `tee` gets, with the length of the live body.
    pub(super) fn from_tee(tee: Rc<Tee>, length: Option<u64>, limits: &Limits) -> Self {
        let progress = Rc::new(UploadProgress::default());
        // Data that has arrived is sent together with the head.
        let first_chunk = tee.pop_data();
        let first_length = first_chunk.as_ref().map_or(0, |first| first.len() as u64);
        progress.received_bytes.set(first_length);
        if tee.is_over() {
            progress.ended_at.set(Some(Instant::now()));
        }
        Self {
            source: Some(UploadSource::Tee(tee, length.map(|length| length.saturating_sub(first_length)))),
            throttle: None,
            tee: None,
            first_chunk,
            progress,
            max_bytes: limits.max_payload_bytes,
            idle_timeout: limits.body_idle_timeout,
            timer: LazyTimer::default(),
            silent_since: None,
        }
    }

    /// Gives `tee` a copy of the whole body, from its first byte on.
    pub(super) fn attach_tee(&mut self, tee: Rc<Tee>) {
        if let Some(first) = &self.first_chunk {
            tee.push(first);
        }
        if self.progress.ended_at().is_some() {
            tee.end(None);
        }
        self.tee = Some(tee);
    }

    /// Applies a bandwidth limit to the whole body, from its first byte on.
    pub(super) fn set_bandwidth_limit(&mut self, limit: Arc<BandwidthLimit>) {
        self.throttle = Some(Box::new(Throttle::new(limit)));
    }

    /// Returns the length of the whole body, if it is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self.framing() {
            BodyFraming::Length(length) => Some(length),
            BodyFraming::Chunked => None,
        }
    }

    pub(super) fn progress(&self) -> Rc<UploadProgress> {
        self.progress.clone()
    }

    /// Waits for the first chunk of a small body, so that it is sent together with the head, and so that no slot is
    /// held for a client that is slow to start.
    ///
    /// # Errors
    ///
    /// The fault of the body.
    pub(super) async fn prefetch_first_chunk(&mut self) -> Result<(), Refusal> {
        let length = self.source.as_ref().and_then(|source| source.size_hint().exact());
        if !length.is_some_and(|length| (1..=SMALL_BODY_BYTES).contains(&length)) {
            return Ok(());
        }
        std::future::poll_fn(|cx| match self.poll_next(cx) {
            Poll::Ready(Some(frame)) => {
                self.first_chunk = frame.into_data().ok();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Pending => self.progress.fault().map_or(Poll::Pending, |fault| Poll::Ready(Err(fault))),
        })
        .await
    }

    /// Reads what has arrived of the small body of a refused request. Once all of it is read, the connection can be
    /// used again.
    pub(super) async fn drain_if_small(&mut self) {
        if self.announced_bytes() > SMALL_BODY_BYTES {
            return;
        }
        let mut has_polled = false;
        std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = self.poll_next(cx) {
                if self.progress.received_bytes() > SMALL_BODY_BYTES {
                    return Poll::Ready(());
                }
            }
            if has_polled || self.is_over() || self.progress.fault().is_some() {
                return Poll::Ready(());
            }
            // The connection delivers its data only when it is polled, after this task yields.
            has_polled = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Returns the number of bytes that are at least to come.
    pub(super) fn announced_bytes(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.size_hint().lower())
    }

    /// Returns the next frame after the first chunk. After a fault it is pending forever.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(source) = &mut self.source else { return Poll::Pending };
        if let Some(throttle) = &mut self.throttle {
            let held = throttle.poll(cx);
            let delayed = throttle.total_delay();
            self.progress.total_delay.set(delayed);
            self.tee.iter().for_each(|tee| tee.set_total_delay(delayed));
            if let Some(frame) = ready!(held) {
                return Poll::Ready(Some(self.forward_frame(frame)));
            }
        }
        if let UploadSource::Tee(tee, _) = source {
            self.progress.total_delay.set(tee.total_delay());
        }
        match source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.silent_since = None;
                let received = self.progress.received_bytes() + frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.received_bytes.set(received);
                if received > self.max_bytes {
                    return self.fail(Refusal::PayloadTooLarge(self.max_bytes));
                }
                let Some(throttle) = self.throttle.as_mut().filter(|_| frame.is_data()) else {
                    return Poll::Ready(Some(self.forward_frame(frame)));
                };
                throttle.hold_frame(frame);
                self.poll_next(cx)
            }
            Poll::Ready(Some(Err(_))) => self.fail(Refusal::BodyCutShort),
            Poll::Ready(None) => {
                self.progress.ended_at.set(Some(Instant::now()));
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

    /// Passes a frame on to the model and to the copy.
    fn forward_frame(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let is_last = frame.is_trailers() || self.source.as_ref().is_some_and(UploadSource::is_end_stream);
        if is_last {
            self.progress.ended_at.set(Some(Instant::now()));
        }
        if let Some(tee) = &self.tee {
            frame.data_ref().into_iter().for_each(|data| tee.push(data));
            if is_last {
                tee.end(frame.trailers_ref());
            }
        }
        frame
    }

    /// Ends throttling. A delay that was not completed is not counted.
    fn end_throttling(&mut self) {
        if let Some(throttle) = self.throttle.take() {
            self.progress.total_delay.set(throttle.elapsed_delay());
        }
    }

    /// Stops reading the body.
    pub(super) fn stop_reading(&mut self) {
        self.source = None;
        self.end_throttling();
        self.tee.take().iter().for_each(|tee| tee.stop());
    }

    fn fail(&mut self, fault: Refusal) -> Poll<Option<Frame<Bytes>>> {
        self.progress.fault.set(Some(fault));
        self.stop_reading();
        Poll::Pending
    }

    /// Takes the first chunk, if it was read ahead.
    pub(super) fn take_first_chunk(&mut self) -> Option<Bytes> {
        self.first_chunk.take()
    }

    /// Puts the first chunk back after it could not be sent.
    pub(super) fn restore_first_chunk(&mut self, first: Option<Bytes>) {
        self.first_chunk = first;
    }

    /// Returns how the body is framed towards the model.
    pub(super) fn framing(&self) -> BodyFraming {
        let first_length = self.first_chunk.as_ref().map_or(0, |first| first.len() as u64);
        let rest = self.source.as_ref().map(UploadSource::size_hint).unwrap_or_default();
        rest.exact().map_or(BodyFraming::Chunked, |rest| BodyFraming::Length(first_length + rest))
    }

    /// Returns whether all of the body has been read.
    pub(super) fn is_over(&self) -> bool {
        self.first_chunk.is_none() && self.progress.ended_at().is_some()
    }
}

/// Stops reading the body.
impl Drop for Upload {
    fn drop(&mut self) {
        self.end_throttling();
        self.tee.iter().for_each(|tee| tee.stop());
    }
}

impl UploadSource {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::Client(incoming) => {
                let (polled, was_woken) =
                    wake_suppression::poll_suppressed(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx));
                // Taking a chunk wakes the client's connection to read the next one. After the last chunk there is
                // none.
                if was_woken && !incoming.is_end_stream() {
                    cx.waker().wake_by_ref();
                }
                polled
            }
            Self::Tee(tee, rest) => tee.poll_frame(cx).map(|frame| {
                let length = frame.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
                *rest = rest.map(|rest| rest.saturating_sub(length));
                frame.map(Ok)
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(incoming) => incoming.is_end_stream(),
            Self::Tee(tee, _) => tee.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(incoming) => incoming.size_hint(),
            Self::Tee(_, Some(rest)) => SizeHint::with_exact(*rest),
            Self::Tee(_, None) => SizeHint::default(),
        }
    }
}
