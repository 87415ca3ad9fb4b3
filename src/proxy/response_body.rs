//! Response bodies to clients: the router's own, and those of models.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Frame, SizeHint};

use super::exchange::{Exchange, TruncatedResponse};
use super::http2_stream;
use super::request_context::RequestContext;
use super::throttle::Throttle;

/// A response body. It holds the context of its request, which ends with it.
pub(super) enum ResponseBody {
    /// A response of the router itself.
    Local(Bytes, Box<RequestContext>),
    /// The response of a model, passed on as it arrives.
    Proxied(Box<ProxiedBody>),
}

/// The largest chunk given to an HTTP/2 stream at once, which is the usual size of a frame. A client that takes one
/// chunk within the timeout is not too slow.
const MAX_HTTP2_CHUNK_BYTES: usize = 16 * 1024;

/// The response body of a model on its way to the client.
pub(super) struct ProxiedBody {
    exchange: Exchange,
    context: RequestContext,
    /// Data that has arrived from the model and is not passed on yet.
    unsent: Option<Bytes>,
    /// Delays each chunk to keep the bandwidth limit.
    throttle: Option<Box<Throttle>>,
    /// Whether trailers of the router have to follow.
    needs_delay_trailers: bool,
    /// Whether the response is truncated, which the client is about to be told.
    is_truncated: bool,
}

impl ResponseBody {
    pub(super) fn proxied(exchange: Exchange, context: RequestContext) -> Self {
        let limit = context.endpoint.as_ref().and_then(|endpoint| endpoint.active_bandwidth_limit().cloned());
        let throttle = limit.map(|limit| Box::new(Throttle::new(limit)));
        let needs_delay_trailers = context.accepts_trailers && !exchange.is_end_stream();
        Self::Proxied(Box::new(ProxiedBody {
            exchange,
            context,
            unsent: None,
            throttle,
            needs_delay_trailers,
            is_truncated: false,
        }))
    }
}

impl ProxiedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        if let Some(rest) = self.unsent.take() {
            return Poll::Ready(Some(Ok(self.take_chunk(rest))));
        }
        if let Some(throttle) = &mut self.throttle {
            let polled_frame = throttle.poll(cx);
            self.context.response_delay = throttle.total_delay();
            if let Some(frame) = ready!(polled_frame) {
                return Poll::Ready(Some(Ok(self.forward_frame(frame))));
            }
        }
        let Self { exchange, context, is_truncated, .. } = self;
        if *is_truncated {
            // What came before the error is sent first, however slowly the client takes it.
            let is_client_blocked = context.version != Version::HTTP_2 && context.client.activity.is_blocked();
            return if is_client_blocked { Poll::Pending } else { Poll::Ready(Some(Err(TruncatedResponse))) };
        }
        let polled = exchange.poll_frame(cx);
        context.last_byte_at = exchange.last_byte_at();
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(copied), Some(data)) = (&context.mirror_handle, frame.data_ref()) {
                    copied.record_live_data(data);
                }
                let Some(throttle) = self.throttle.as_mut().filter(|_| frame.is_data()) else {
                    return Poll::Ready(Some(Ok(self.forward_frame(frame))));
                };
                throttle.hold_frame(frame);
                self.poll_frame(cx)
            }
            Poll::Ready(Some(Err(TruncatedResponse))) => {
                context.record_truncated_response();
                if context.version == Version::HTTP_10 {
                    context.client.must_reset_on_close.set(true);
                }
                // The HTTP library discards unsent data at an error. A pending body makes it send that data first.
                *is_truncated = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) if self.needs_delay_trailers => {
                Poll::Ready(Some(Ok(self.forward_frame(Frame::trailers(HeaderMap::new())))))
            }
            other => other,
        }
    }

    /// Passes a frame on to the client and counts it.
    fn forward_frame(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(data) => self.take_chunk(data),
            Err(Ok(mut trailers)) => {
                if std::mem::take(&mut self.needs_delay_trailers) {
                    self.context.write_delay_trailers(&mut trailers);
                }
                Frame::trailers(trailers)
            }
            Err(Err(other)) => other,
        }
    }

    /// Takes as much of `data` as is passed on at once.
    fn take_chunk(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if self.context.version == Version::HTTP_2 && data.len() > MAX_HTTP2_CHUNK_BYTES {
            self.unsent = Some(data.split_off(MAX_HTTP2_CHUNK_BYTES));
        }
        self.context.sent_bytes += data.len() as u64;
        self.context.client.activity.add_response_bytes(data.len());
        Frame::data(data)
    }

    fn is_end_stream(&self) -> bool {
        let has_pending_frame =
            self.needs_delay_trailers || self.throttle.as_ref().is_some_and(|throttle| throttle.held_bytes().is_some());
        !self.is_truncated && !has_pending_frame && self.unsent.is_none() && self.exchange.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.needs_delay_trailers {
            // In HTTP/1 a body of a known length has no trailers.
            return SizeHint::default();
        }
        let held_bytes = self.throttle.as_ref().and_then(|throttle| throttle.held_bytes()).unwrap_or_default();
        let rest = held_bytes + self.unsent.as_ref().map_or(0, |rest| rest.len() as u64);
        let mut hint = self.exchange.size_hint();
        let upper = hint.upper();
        hint.set_lower(hint.lower() + rest);
        if let Some(upper) = upper {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// A delay that was not completed is not counted.
impl Drop for ProxiedBody {
    fn drop(&mut self) {
        if let Some(throttle) = &self.throttle {
            self.context.response_delay = throttle.elapsed_delay();
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = TruncatedResponse;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        http2_stream::chunk_polled();
        let polled = match self.get_mut() {
            Self::Local(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Self::Local(bytes, context) => {
                context.sent_bytes = bytes.len() as u64;
                context.client.activity.add_response_bytes(bytes.len());
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Proxied(proxied) => proxied.poll_frame(cx),
        };
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            http2_stream::chunk_sent();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes, _) => bytes.is_empty(),
            Self::Proxied(passing) => passing.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Proxied(passing) => passing.size_hint(),
        }
    }
}
