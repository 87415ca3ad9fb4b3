//! Response bodies to clients: the router's own, and those that pass through.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Frame, SizeHint};

use super::exchange::{BrokenOff, Exchange};
use super::record::Record;
use super::stream;
use super::throttle::Throttle;

/// A response body. Holds the record of its request, which ends with it.
pub(super) enum Body {
    /// The router's own answer.
    Own(Bytes, Box<Record>),
    /// A model's answer, as it comes.
    Model(Box<Passing>),
}

/// The largest piece that an HTTP/2 stream is given at once, a frame's usual size: a client that takes one in time is
/// not too slow.
const PIECE: usize = 16 * 1024;

/// A model's answer on its way to the client.
pub(super) struct Passing {
    exchange: Exchange,
    record: Record,
    /// Come from the model, and not given yet.
    rest: Option<Bytes>,
    /// Has each piece wait for its time.
    throttle: Option<Box<Throttle>>,
    /// Trailers of the router's own are to come.
    owes_trailers: bool,
    /// The answer has broken off, and the client is about to be told.
    broken: bool,
}

impl Body {
    pub(super) fn model(exchange: Exchange, record: Record) -> Self {
        let limit = record.endpoint.as_ref().and_then(|endpoint| endpoint.limit().cloned());
        let throttle = limit.map(|limit| Box::new(Throttle::new(limit)));
        let owes_trailers = record.takes_trailers && !exchange.is_end_stream();
        Self::Model(Box::new(Passing { exchange, record, rest: None, throttle, owes_trailers, broken: false }))
    }
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        if let Some(throttle) = &mut self.throttle {
            let held = throttle.poll(cx);
            self.record.answer_delayed = throttle.delayed();
            if let Some(frame) = ready!(held) {
                return Poll::Ready(Some(Ok(self.give(frame))));
            }
        }
        let Self { exchange, record, broken, .. } = self;
        if *broken {
            // What came before it goes out first, however slowly the client takes it.
            let waits = record.version != Version::HTTP_2 && record.client.pace.is_blocked();
            return if waits { Poll::Pending } else { Poll::Ready(Some(Err(BrokenOff))) };
        }
        let polled = exchange.poll_frame(cx);
        record.ended = exchange.ended();
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(copied), Some(data)) = (&record.copied, frame.data_ref()) {
                    copied.data(data);
                }
                let Some(throttle) = self.throttle.as_mut().filter(|_| frame.is_data()) else {
                    return Poll::Ready(Some(Ok(self.give(frame))));
                };
                throttle.hold(frame);
                self.poll_frame(cx)
            }
            Poll::Ready(Some(Err(BrokenOff))) => {
                record.broke_off();
                if record.version == Version::HTTP_10 {
                    record.client.reset_at_end.set(true);
                }
                // The HTTP library drops what it has not sent at an error; a pending body makes it send first.
                *broken = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) if self.owes_trailers => {
                Poll::Ready(Some(Ok(self.give(Frame::trailers(HeaderMap::new())))))
            }
            other => other,
        }
    }

    /// A frame goes on to the client.
    fn give(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(data) => self.piece(data),
            Err(Ok(mut trailers)) => {
                if std::mem::take(&mut self.owes_trailers) {
                    self.record.trail(&mut trailers);
                }
                Frame::trailers(trailers)
            }
            Err(Err(other)) => other,
        }
    }

    /// As much of `data` as is given at once.
    fn piece(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if self.record.version == Version::HTTP_2 && data.len() > PIECE {
            self.rest = Some(data.split_off(PIECE));
        }
        self.record.sent += data.len() as u64;
        self.record.client.pace.answered(data.len());
        Frame::data(data)
    }

    fn is_end_stream(&self) -> bool {
        let waits = self.owes_trailers || self.throttle.as_ref().is_some_and(|throttle| throttle.held().is_some());
        !self.broken && !waits && self.rest.is_none() && self.exchange.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.owes_trailers {
            // A body of a known length has none, in HTTP/1.
            return SizeHint::default();
        }
        let held = self.throttle.as_ref().and_then(|throttle| throttle.held()).unwrap_or_default();
        let rest = held + self.rest.as_ref().map_or(0, |rest| rest.len() as u64);
        let mut hint = self.exchange.size_hint();
        let upper = hint.upper();
        hint.set_lower(hint.lower() + rest);
        if let Some(upper) = upper {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// What was still to wait does not count.
impl Drop for Passing {
    fn drop(&mut self) {
        if let Some(throttle) = &self.throttle {
            self.record.answer_delayed = throttle.waited();
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        stream::taken();
        let polled = match self.get_mut() {
            Self::Own(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes, record) => {
                record.sent = bytes.len() as u64;
                record.client.pace.answered(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Model(passing) => passing.poll_frame(cx),
        };
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            stream::given();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes, _) => bytes.is_empty(),
            Self::Model(passing) => passing.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Model(passing) => passing.size_hint(),
        }
    }
}
