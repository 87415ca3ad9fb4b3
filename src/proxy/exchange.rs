//! One request with one replica: sent, answered, streamed, and brought to its end whatever happens to the client.
//!
//! The exchange owns the slot. While somebody wants the answer, whoever polls for it drives the replica's connection;
//! when nobody does any more, a task of its own waits for the replica to finish: a model that still works still has
//! its slot.

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::response::Parts;
use http_body::{Frame, SizeHint};

use super::codec::{self, Garbage, Head, Piece, Receiving, Sending};
use super::headers;
use super::upload::{Progress, Upload};
use super::upstream::Connection;
use super::worker::Worker;
use crate::model::endpoint::RequestSettings;
use crate::model::refusal::Refusal;
use crate::state::slots::Slot;

/// A request that was handed to a connection, up to the end of its response.
pub(super) struct Exchange {
    worker: Rc<Worker>,
    /// `None` when the exchange is over.
    running: Option<Box<Running>>,
    upload: Rc<Progress>,
    dispatched: Instant,
    timeout: Duration,
    /// For how long the request's body had been held back before it was dispatched.
    held_before: Duration,
    idle_timeout: Duration,
    /// When the replica fell silent inside the body, if it is.
    silent_since: Option<Instant>,
    /// When the replica's last byte came.
    ended: Option<Instant>,
}

struct Running {
    connection: Box<Connection>,
    slot: Slot,
    request: Box<Request<Upload>>,
    /// The part of the request that goes out with its head.
    first: Option<Bytes>,
    sending: Sending,
    /// Whether all of the request has been handed to the connection.
    is_sent: bool,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Head,
    Body { receiving: Receiving, keeps_alive: bool },
}

/// Why there is no response head.
pub(super) enum NoHead {
    /// The connection had ended before any of it was sent; the slot and the request are given back.
    NotSent(Slot, Box<Request<Upload>>),
    /// To be told to the client. What the replica may still be doing is seen to.
    Refused(Refusal),
}

/// A response body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the model's response broke off")]
pub(super) struct BrokenOff;

impl Exchange {
    /// Hands `request` to `connection`.
    pub(super) fn start(
        worker: Rc<Worker>,
        mut connection: Box<Connection>,
        slot: Slot,
        mut request: Box<Request<Upload>>,
        settings: &RequestSettings,
        dispatched: Instant,
    ) -> Self {
        let upload = request.body().progress();
        let sending = request.body().sending();
        let first = request.body_mut().take_first();
        connection.send_head(&request, sending, first.clone());
        let is_sent = sending != Sending::Chunked && request.body().is_over();
        Self {
            worker,
            running: Some(Box::new(Running { connection, slot, request, first, sending, is_sent, stage: Stage::Head })),
            held_before: upload.delayed(),
            upload,
            dispatched,
            timeout: settings.timeout,
            idle_timeout: settings.stream_idle_timeout,
            silent_since: None,
            ended: None,
        }
    }

    /// Waits for the response head.
    ///
    /// # Errors
    /// [`NoHead`]. The exchange is then over for the client.
    pub(super) async fn head(mut self) -> Result<(Parts, Self), NoHead> {
        let (parts, is_empty) = std::future::poll_fn(|cx| self.poll_head(cx)).await?;
        if is_empty {
            self.finish();
        }
        Ok((parts, self))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Parts, bool), NoHead>> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        match running.poll_head(cx) {
            Poll::Ready(Ok(Head { parts, body: receiving, keeps_alive })) => {
                running.slot.succeeded();
                running.stage = Stage::Body { receiving, keeps_alive };
                return Poll::Ready(Ok((parts, receiving.is_over())));
            }
            Poll::Ready(Err(Closed)) => return Poll::Ready(Err(self.no_head())),
            Poll::Pending => {}
        }
        if let Some(fault) = self.upload.fault() {
            return Poll::Ready(Err(NoHead::Refused(fault)));
        }
        // The wait before there was a replica is none of its time.
        let patience = self.timeout + self.upload.delayed().saturating_sub(self.held_before);
        if !running.slot.is_revoked() {
            let deadline = running.slot.until(self.dispatched + patience, self.timeout);
            ready!(running.connection.timer.poll(cx, deadline));
        }
        // A client is to blame only if it was waited for.
        let refusal = if self.upload.ended().is_some() || running.connection.is_behind() {
            Refusal::ModelTimeout(self.timeout)
        } else {
            Refusal::BodyTimeout
        };
        // The replica has had its time: the slot is free, whatever it still does.
        self.running = None;
        Poll::Ready(Err(NoHead::Refused(refusal)))
    }

    /// The connection ended without a head.
    fn no_head(&mut self) -> NoHead {
        let Some(running) = self.running.take() else { return NoHead::Refused(Refusal::ReplicaClosed) };
        let Running { connection, slot, mut request, first, .. } = *running;
        if connection.has_sent_nothing() {
            request.body_mut().put_first_back(first);
            return NoHead::NotSent(slot, request);
        }
        let is_garbage = !connection.ended() && !connection.is_deaf();
        if (is_garbage || connection.is_denied()) && self.worker.may_complain() {
            // Nobody else learns of it: to a client it is as if the replica had closed.
            let replica = slot.replica().address.as_str();
            if is_garbage {
                tracing::warn!(
                    replica,
                    "a model answered what is not HTTP/1.1, or has over 256 fields or 256 KiB of head"
                );
            } else {
                tracing::warn!(replica, "a model wants another certificate than upstreamTls gives, or any");
            }
        }
        slot.failed(Instant::now());
        // Who was not let in has not been heard.
        NoHead::Refused(if connection.is_denied() { Refusal::ReplicaUnreachable } else { Refusal::ReplicaClosed })
    }

    /// When the replica's last byte came.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// The next frame of the response body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(running) = &mut self.running else { return Poll::Ready(None) };
        if running.slot.is_revoked() {
            return self.cut();
        }
        let piece = match running.poll_piece(cx) {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                let patient = since + self.idle_timeout;
                let deadline = running.slot.until(patient, self.timeout);
                ready!(running.connection.timer.poll(cx, deadline));
                // Who is only silent keeps the slot while it is seen out.
                return if deadline < patient { self.cut() } else { Poll::Ready(Some(Err(BrokenOff))) };
            }
        };
        self.silent_since = None;
        if piece.is_err() {
            return self.cut();
        }
        if running.is_answered() {
            self.finish();
        }
        Poll::Ready(match piece {
            Ok(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Piece::Trailers(mut trailers)) => {
                headers::keep_what_may_trail(&mut trailers);
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }

    /// Closes the connection, which may not wait for whoever reads the response: another router may send the replica a
    /// request any moment now.
    fn cut(&mut self) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.ended = Some(Instant::now());
        self.running = None;
        Poll::Ready(Some(Err(BrokenOff)))
    }

    /// Whether the response body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        self.running.is_none()
    }

    /// How long the response body is.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.running.as_ref().map(|running| running.stage) {
            Some(Stage::Body { receiving: Receiving::Length(rest), .. }) => SizeHint::with_exact(rest),
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }

    /// The response is complete: gives the slot back, and keeps the connection if it can be used again.
    fn finish(&mut self) {
        let Some(running) = self.running.take() else { return };
        let Running { connection, slot, is_sent, stage, .. } = *running;
        let now = Instant::now();
        self.ended = Some(now);
        if is_sent && connection.is_quiet() && matches!(stage, Stage::Body { keeps_alive: true, .. }) {
            self.worker.pool.put(slot.replica(), connection, now);
        }
    }
}

/// Nobody waits for the response any more.
impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // What its body had still to wait is no time that the replica gets.
        running.request.body_mut().give_up();
        let forced = tokio::runtime::Handle::try_current().is_err();
        if running.connection.ended() || forced {
            return;
        }
        let patience = match running.stage {
            Stage::Head => {
                let held = self.upload.delayed().saturating_sub(self.held_before);
                (self.timeout + held).saturating_sub(self.dispatched.elapsed())
            }
            Stage::Body { .. } => self.timeout,
        };
        let alive = self.worker.alive();
        let deadline = running.slot.until(Instant::now() + patience, self.timeout);
        tokio::task::spawn_local(async move {
            // Over time, the slot comes back with the task.
            let _ = tokio::time::timeout_at(deadline.into(), running.see_out()).await;
            drop(alive);
        });
    }
}

/// The replica closed, or spoke no HTTP, before its answer was complete.
struct Closed;

impl From<Garbage> for Closed {
    fn from(_: Garbage) -> Self {
        Self
    }
}

impl Running {
    /// Moves what there is to move, up to the response head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Closed>> {
        let begins = self.connection.has_sent_nothing();
        if begins && (self.slot.is_expired() || self.connection.poll_unusable(cx).is_ready()) {
            return Poll::Ready(Err(Closed));
        }
        let _ = self.poll_send(cx);
        if begins {
            // Nothing can have been answered yet.
            let refused = self.connection.is_deaf() && self.connection.has_sent_nothing();
            return if refused { Poll::Ready(Err(Closed)) } else { Poll::Pending };
        }
        loop {
            if let Some(head) = codec::read_head(&mut self.connection.input, self.request.method())? {
                return Poll::Ready(Ok(head));
            }
            if self.connection.ended() {
                return Poll::Ready(Err(Closed));
            }
            ready!(self.connection.poll_read(cx));
        }
    }

    /// Moves what there is to move, up to the next piece of the response body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Closed>> {
        let _ = self.poll_send(cx);
        self.poll_receive(cx)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Closed>> {
        let Stage::Body { receiving, .. } = &mut self.stage else { return Poll::Pending };
        loop {
            match receiving.next(&mut self.connection.input)? {
                Piece::Incomplete if !self.connection.ended() => ready!(self.connection.poll_read(cx)),
                Piece::Incomplete if *receiving == Receiving::ToTheEnd && !self.connection.is_broken() => {
                    return Poll::Ready(Ok(Piece::End));
                }
                Piece::Incomplete => return Poll::Ready(Err(Closed)),
                piece => return Poll::Ready(Ok(piece)),
            }
        }
    }

    /// Sends the request. Ready when all of it has been written.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.connection.poll_flush(cx));
            if self.is_sent {
                return Poll::Ready(());
            }
            let upload = self.request.body_mut();
            match ready!(upload.poll_next(cx)).map(Frame::into_data) {
                Some(Ok(data)) => {
                    self.is_sent = self.sending != Sending::Chunked && upload.is_over();
                    // An empty chunk would be the last.
                    if !data.is_empty() {
                        self.connection.send(data, self.sending);
                    }
                }
                end => {
                    self.is_sent = true;
                    if self.sending == Sending::Chunked {
                        let mut trailers = end.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                        trailers.iter_mut().for_each(headers::keep_what_may_trail);
                        self.connection.send_end(trailers.as_ref());
                    }
                }
            }
        }
    }

    /// Whether the response is complete.
    fn is_answered(&self) -> bool {
        match self.stage {
            Stage::Body { receiving: Receiving::ToTheEnd, .. } => {
                self.connection.ended() && !self.connection.is_broken() && self.connection.input.is_empty()
            }
            Stage::Body { receiving, .. } => receiving.is_over(),
            Stage::Head => false,
        }
    }

    /// Lets the replica know that nobody waits, and waits for it to finish or to close.
    async fn see_out(mut self) {
        self.connection.half_close();
        // Its client must not wait for somebody to read the rest of a body.
        self.is_sent = true;
        if let Stage::Head = self.stage {
            let Ok(head) = std::future::poll_fn(|cx| self.poll_head(cx)).await else { return };
            self.stage = Stage::Body { receiving: head.body, keeps_alive: false };
        }
        while let Ok(piece) = std::future::poll_fn(|cx| self.poll_receive(cx)).await {
            if piece == Piece::End || self.slot.is_revoked() {
                return;
            }
        }
    }
}
