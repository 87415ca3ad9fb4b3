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
    Model(Box<(Exchange, Record)>),
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
            Self::Model(passing) => {
                let (exchange, record) = &mut **passing;
                let polled = exchange.poll_frame(cx);
                match &polled {
                    Poll::Ready(Some(Ok(frame))) => record.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Poll::Ready(Some(Err(BrokenOff))) if record.version == Version::HTTP_10 => {
                        record.client.reset_at_end.set(true);
                    }
                    _ => {}
                }
                record.ended = exchange.ended();
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes, _) => bytes.is_empty(),
            Self::Model(passing) => passing.0.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Model(passing) => passing.0.size_hint(),
        }
    }
}
