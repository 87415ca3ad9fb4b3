//! One request with one replica: sent, answered, streamed, and brought to its end whatever happens to the client.
//!
//! The exchange owns the slot. While the response is wanted, the task that polls for it drives the replica's
//! connection. After that, a task of its own waits for the replica to finish, so that a model that is still working
//! keeps its slot.

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use http_body::{Frame, SizeHint};

use super::codec::{self, BodyDecoder, BodyFraming, BodyPiece, InvalidResponse, ResponseHead};
use super::headers;
use super::upload::{Upload, UploadProgress};
use super::upstream::UpstreamConnection;
use super::worker::Worker;
use crate::model::endpoint::RequestSettings;
use crate::model::refusal::Refusal;
use crate::state::slots::Slot;

/// A request that was handed to a connection, up to the end of its response.
pub(super) struct Exchange {
    worker: Rc<Worker>,
    /// `None` when the exchange is over.
    active: Option<Box<ActiveExchange>>,
    upload_progress: Rc<UploadProgress>,
    dispatched_at: Instant,
    timeout: Duration,
    /// The time by which the request's body had been delayed before the dispatch.
    delay_before_dispatch: Duration,
    idle_timeout: Duration,
    /// When the replica stopped sending inside the body; `None` while it sends.
    silent_since: Option<Instant>,
    /// When the last byte of the replica arrived.
    last_byte_at: Option<Instant>,
}

struct ActiveExchange {
    connection: Box<UpstreamConnection>,
    slot: Slot,
    request: Box<Request<Upload>>,
    /// The chunk of the request body that is sent with its head.
    first_chunk: Option<Bytes>,
    framing: BodyFraming,
    /// Whether the whole request has been handed to the connection.
    is_sent: bool,
    stage: ResponseStage,
}

#[derive(Clone, Copy)]
enum ResponseStage {
    Head,
    Body { decoder: BodyDecoder, is_keep_alive: bool },
}

/// The reason why there is no response head.
pub(super) enum AttemptError {
    /// The connection had ended before anything of the request was sent. The slot and the request are returned.
    NotSent(Slot, Box<Request<Upload>>),
    /// The request failed; the client gets this refusal. If the replica may still be working, a task waits for it.
    Failed(Refusal),
}

/// The error of a response body that was truncated.
#[derive(Debug, thiserror::Error)]
#[error("the model's response broke off")]
pub(super) struct TruncatedResponse;

impl Exchange {
    /// Hands `request` to `connection`.
    pub(super) fn start(
        worker: Rc<Worker>,
        mut connection: Box<UpstreamConnection>,
        slot: Slot,
        mut request: Box<Request<Upload>>,
        settings: &RequestSettings,
        dispatched: Instant,
    ) -> Self {
        let upload_progress = request.body().progress();
        let framing = request.body().framing();
        let first_chunk = request.body_mut().take_first_chunk();
        connection.send_head(&request, framing, first_chunk.clone());
        let is_sent = framing != BodyFraming::Chunked && request.body().is_over();
        Self {
            worker,
            active: Some(Box::new(ActiveExchange {
                connection,
                slot,
                request,
                first_chunk,
                framing,
                is_sent,
                stage: ResponseStage::Head,
            })),
            delay_before_dispatch: upload_progress.total_delay(),
            upload_progress,
            dispatched_at: dispatched,
            timeout: settings.timeout,
            idle_timeout: settings.stream_idle_timeout,
            silent_since: None,
            last_byte_at: None,
        }
    }

    /// Waits for the response head.
    ///
    /// # Errors
    ///
    /// Returns an [`AttemptError`] if there is no response head. The exchange is then over for the client.
    pub(super) async fn response_head(mut self) -> Result<(Parts, Self), AttemptError> {
        let (parts, is_empty) = std::future::poll_fn(|cx| self.poll_head(cx)).await?;
        if is_empty {
            self.finish();
        }
        Ok((parts, self))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Parts, bool), AttemptError>> {
        let Some(active) = &mut self.active else { return Poll::Pending };
        match active.poll_head(cx) {
            Poll::Ready(Ok(ResponseHead { parts, decoder, is_keep_alive })) => {
                active.slot.record_success();
                active.stage = ResponseStage::Body { decoder, is_keep_alive };
                return Poll::Ready(Ok((parts, decoder.is_over())));
            }
            Poll::Ready(Err(UpstreamClosed)) => return Poll::Ready(Err(self.attempt_error())),
            Poll::Pending => {}
        }
        if let Some(fault) = self.upload_progress.fault() {
            return Poll::Ready(Err(AttemptError::Failed(fault)));
        }
        // The delay before the dispatch is not part of the model's time.
        let head_timeout = self.timeout + self.upload_progress.total_delay().saturating_sub(self.delay_before_dispatch);
        if !active.slot.is_revoked() {
            let deadline = active.slot.effective_deadline(self.dispatched_at + head_timeout, self.timeout);
            ready!(active.connection.timer.poll(cx, deadline));
        }
        // The client is at fault only if the model was waiting for it.
        let refusal = if self.upload_progress.ended_at().is_some() || active.connection.is_behind() {
            Refusal::ModelTimeout(self.timeout)
        } else {
            Refusal::BodyTimeout
        };
        // The time of the replica is over: the slot is free, whatever the replica still does.
        self.active = None;
        Poll::Ready(Err(AttemptError::Failed(refusal)))
    }

    /// Returns the error of a connection that ended without a head.
    fn attempt_error(&mut self) -> AttemptError {
        let Some(active) = self.active.take() else { return AttemptError::Failed(Refusal::ReplicaClosed) };
        let ActiveExchange { connection, slot, mut request, first_chunk, .. } = *active;
        if connection.has_sent_nothing() {
            request.body_mut().restore_first_chunk(first_chunk);
            return AttemptError::NotSent(slot, request);
        }
        let is_invalid_response = !connection.is_read_closed() && !connection.is_write_closed();
        if (is_invalid_response || connection.is_certificate_rejected()) && self.worker.should_warn() {
            // Only the log distinguishes these cases: for a client it is as if the replica had closed the connection.
            let replica = slot.replica().address.as_str();
            if is_invalid_response {
                tracing::warn!(
                    replica,
                    "invalid response from replica: not HTTP/1.1, or over 256 header fields or 256 KiB of head"
                );
            } else {
                tracing::warn!(replica, "replica rejected the certificate of upstreamTls, or requires one");
            }
        }
        slot.record_failure(Instant::now());
        // A rejected certificate means that no byte of the request was processed.
        AttemptError::Failed(if connection.is_certificate_rejected() {
            Refusal::ReplicaUnreachable
        } else {
            Refusal::ReplicaClosed
        })
    }

    /// Returns when the last byte of the replica arrived.
    pub(super) fn last_byte_at(&self) -> Option<Instant> {
        self.last_byte_at
    }

    /// Returns the next frame of the response body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        let Some(active) = &mut self.active else { return Poll::Ready(None) };
        if active.slot.is_revoked() {
            return self.abort();
        }
        let piece = match active.poll_piece(cx) {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                let idle_deadline = since + self.idle_timeout;
                let deadline = active.slot.effective_deadline(idle_deadline, self.timeout);
                ready!(active.connection.timer.poll(cx, deadline));
                // A silent replica keeps its slot while a task waits for it, after the exchange is dropped.
                return if deadline < idle_deadline { self.abort() } else { Poll::Ready(Some(Err(TruncatedResponse))) };
            }
        };
        self.silent_since = None;
        if piece.is_err() {
            return self.abort();
        }
        if active.is_response_complete() {
            self.finish();
        }
        Poll::Ready(match piece {
            Ok(BodyPiece::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(BodyPiece::Trailers(mut trailers)) => {
                headers::strip_forbidden_trailers(&mut trailers);
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }

    /// Closes the connection at once, without waiting for the reader of the response, because another router may send a
    /// request to the replica any moment now.
    fn abort(&mut self) -> Poll<Option<Result<Frame<Bytes>, TruncatedResponse>>> {
        self.last_byte_at = Some(Instant::now());
        self.active = None;
        Poll::Ready(Some(Err(TruncatedResponse)))
    }

    /// Returns whether the response body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        self.active.is_none()
    }

    /// Returns the size of the response body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.active.as_ref().map(|active| active.stage) {
            Some(ResponseStage::Body { decoder: BodyDecoder::Length(rest), .. }) => SizeHint::with_exact(rest),
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }

    /// Ends a complete response: frees the slot, and keeps the connection if it can be used again.
    fn finish(&mut self) {
        let Some(active) = self.active.take() else { return };
        let ActiveExchange { connection, slot, is_sent, stage, .. } = *active;
        let now = Instant::now();
        self.last_byte_at = Some(now);
        if is_sent && connection.is_reusable() && matches!(stage, ResponseStage::Body { is_keep_alive: true, .. }) {
            self.worker.pool.return_connection(slot.replica(), connection, now);
        }
    }
}

/// Waits in a task for a replica whose response is not wanted any more, and keeps its slot until then.
impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        // A delay that the body did not complete does not extend the time of the replica.
        active.request.body_mut().stop_reading();
        let is_runtime_gone = tokio::runtime::Handle::try_current().is_err();
        if active.connection.is_read_closed() || is_runtime_gone {
            return;
        }
        let time_left = match active.stage {
            ResponseStage::Head => {
                let upload_delay = self.upload_progress.total_delay().saturating_sub(self.delay_before_dispatch);
                (self.timeout + upload_delay).saturating_sub(self.dispatched_at.elapsed())
            }
            ResponseStage::Body { .. } => self.timeout,
        };
        let shutdown_guard = self.worker.shutdown_guard();
        let deadline = active.slot.effective_deadline(Instant::now() + time_left, self.timeout);
        tokio::task::spawn_local(async move {
            // After the timeout, the slot is freed with the task.
            let _ = tokio::time::timeout_at(deadline.into(), active.drain_upstream()).await;
            drop(shutdown_guard);
        });
    }
}

/// The replica closed the connection, or sent something that is not HTTP, before its response was complete.
struct UpstreamClosed;

impl From<InvalidResponse> for UpstreamClosed {
    fn from(_: InvalidResponse) -> Self {
        Self
    }
}

impl ActiveExchange {
    /// Makes progress in both directions, up to the response head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, UpstreamClosed>> {
        let had_sent_nothing = self.connection.has_sent_nothing();
        if had_sent_nothing && (self.slot.is_expired() || self.connection.poll_unusable(cx).is_ready()) {
            return Poll::Ready(Err(UpstreamClosed));
        }
        let _ = self.poll_send(cx);
        if had_sent_nothing {
            // Nothing can have been answered yet.
            let is_rejected = self.connection.is_write_closed() && self.connection.has_sent_nothing();
            return if is_rejected { Poll::Ready(Err(UpstreamClosed)) } else { Poll::Pending };
        }
        loop {
            if let Some(head) = codec::read_head(&mut self.connection.input, self.request.method())? {
                return Poll::Ready(Ok(head));
            }
            if self.connection.is_read_closed() {
                return Poll::Ready(Err(UpstreamClosed));
            }
            ready!(self.connection.poll_read(cx));
        }
    }

    /// Makes progress in both directions, up to the next piece of the response body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyPiece, UpstreamClosed>> {
        let _ = self.poll_send(cx);
        self.poll_receive(cx)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyPiece, UpstreamClosed>> {
        let ResponseStage::Body { decoder, .. } = &mut self.stage else { return Poll::Pending };
        loop {
            match decoder.next(&mut self.connection.input)? {
                BodyPiece::NeedsInput if !self.connection.is_read_closed() => ready!(self.connection.poll_read(cx)),
                BodyPiece::NeedsInput if *decoder == BodyDecoder::UntilClose && !self.connection.is_broken() => {
                    return Poll::Ready(Ok(BodyPiece::End));
                }
                BodyPiece::NeedsInput => return Poll::Ready(Err(UpstreamClosed)),
                piece => return Poll::Ready(Ok(piece)),
            }
        }
    }

    /// Sends the request. Returns ready when all of it has been written.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.connection.poll_flush(cx));
            if self.is_sent {
                return Poll::Ready(());
            }
            let upload = self.request.body_mut();
            match ready!(upload.poll_next(cx)).map(Frame::into_data) {
                Some(Ok(data)) => {
                    self.is_sent = self.framing != BodyFraming::Chunked && upload.is_over();
                    // An empty chunk would end the body.
                    if !data.is_empty() {
                        self.connection.send(data, self.framing);
                    }
                }
                end => {
                    self.is_sent = true;
                    if self.framing == BodyFraming::Chunked {
                        let mut trailers = end.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                        trailers.iter_mut().for_each(headers::strip_forbidden_trailers);
                        self.connection.send_end(trailers.as_ref());
                    }
                }
            }
        }
    }

    /// Returns whether the response is complete.
    fn is_response_complete(&self) -> bool {
        match self.stage {
            ResponseStage::Body { decoder: BodyDecoder::UntilClose, .. } => {
                self.connection.is_read_closed() && !self.connection.is_broken() && self.connection.input.is_empty()
            }
            ResponseStage::Body { decoder, .. } => decoder.is_over(),
            ResponseStage::Head => false,
        }
    }

    /// Closes the sending side, so that the replica can notice that its response is not wanted. Then waits until the
    /// replica finishes or closes the connection.
    async fn drain_upstream(mut self) {
        self.connection.half_close();
        // The rest of the request body is not sent, so that the client does not wait until it is read.
        self.is_sent = true;
        if let ResponseStage::Head = self.stage {
            let Ok(head) = std::future::poll_fn(|cx| self.poll_head(cx)).await else { return };
            self.stage = ResponseStage::Body { decoder: head.decoder, is_keep_alive: false };
        }
        while let Ok(piece) = std::future::poll_fn(|cx| self.poll_receive(cx)).await {
            if piece == BodyPiece::End || self.slot.is_revoked() {
                return;
            }
        }
    }
}
