//! Response bodies to clients: the router's own, and those that pass through.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};

use super::exchange::{BrokenOff, Exchange};
use super::record::Record;

/// A response body. Holds the record of its request, which ends with it.
pub(super) enum Body {
    /// The router's own answer.
    Own(Bytes, Box<Record>),
    /// A model's answer, as it comes.
    Model(Box<Passing>),
}

/// A model's answer on its way to the client.
pub(super) struct Passing {
    exchange: Exchange,
    record: Record,
    /// The answer has broken off, and the client is about to be told.
    broken: bool,
}

impl Body {
    pub(super) fn model(exchange: Exchange, record: Record) -> Self {
        Self::Model(Box::new(Passing { exchange, record, broken: false }))
    }
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Self { exchange, record, broken } = self;
        if *broken {
            // What came before it goes out first, however slowly the client takes it.
            let waits = record.version != Version::HTTP_2 && record.client.pace.is_blocked();
            return if waits { Poll::Pending } else { Poll::Ready(Some(Err(BrokenOff))) };
        }
        let polled = exchange.poll_frame(cx);
        record.ended = exchange.ended();
        match &polled {
            Poll::Ready(Some(Ok(frame))) => record.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
            Poll::Ready(Some(Err(BrokenOff))) => {
                record.broke_off();
                if record.version == Version::HTTP_10 {
                    record.client.reset_at_end.set(true);
                }
                // The HTTP library drops what it has not sent at an error; a pending body makes it send first.
                *broken = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        polled
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Own(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes, record) => {
                record.sent = bytes.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Model(passing) => passing.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes, _) => bytes.is_empty(),
            Self::Model(passing) => !passing.broken && passing.exchange.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Model(passing) => passing.exchange.size_hint(),
        }
    }
}
