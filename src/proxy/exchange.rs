//! One request with one replica: sent, answered, streamed, and brought to its end whatever happens to the client.
//!
//! The exchange owns the slot. While somebody wants the answer, whoever polls for it drives the replica's connection;
//! when nobody does any more, a task of its own waits for the replica to finish: a model that still works still has
//! its slot.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::response::Parts;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::pool::Connection;
use super::upload::{Progress, Upload};
use super::wakes;
use super::worker::Worker;
use crate::model::endpoint::RequestSettings;
use crate::model::refusal::Refusal;
use crate::state::slots::Slot;

type Head = Pin<Box<dyn Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>>>>;

/// A request that was handed to a connection, up to the end of its response.
pub(super) struct Exchange {
    worker: Rc<Worker>,
    /// `None` when the exchange is over.
    running: Option<Running>,
    upload: Rc<Progress>,
    dispatched: Instant,
    timeout: Duration,
    idle_timeout: Duration,
    /// When the replica fell silent inside the body, if it is.
    silent_since: Option<Instant>,
    /// When the replica's last byte came.
    ended: Option<Instant>,
}

struct Running {
    connection: Box<Connection>,
    stage: Stage,
    slot: Slot,
}

enum Stage {
    Head(Head),
    Body(Incoming),
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
        request: Box<Request<Upload>>,
        settings: &RequestSettings,
        dispatched: Instant,
    ) -> Self {
        let upload = request.body().progress();
        let head = Box::pin(connection.sender.try_send_request(*request));
        Self {
            worker,
            running: Some(Running { connection, stage: Stage::Head(head), slot }),
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
        let Stage::Head(head) = &mut running.stage else { return Poll::Pending };
        let ((ended, polled), held) = wakes::hold(cx, |cx| {
            let ended = running.connection.poll_wire(cx).is_ready();
            (ended, head.as_mut().poll(cx))
        });
        // Beside the head, which is here, a wake asks to move bytes: the body's, which is polled when it is wanted.
        if polled.is_pending() {
            held.release(cx)
        } else {
            held.forget()
        }
        match polled {
            Poll::Ready(Ok(response)) => {
                running.slot.succeeded();
                let (parts, body) = response.into_parts();
                let is_empty = body.is_end_stream();
                running.stage = Stage::Body(body);
                return Poll::Ready(Ok((parts, is_empty)));
            }
            Poll::Ready(Err(mut error)) => return Poll::Ready(Err(self.no_head(error.take_message()))),
            Poll::Pending if ended => return Poll::Ready(Err(self.no_head(None))),
            Poll::Pending => {}
        }
        if let Some(fault) = self.upload.fault() {
            return Poll::Ready(Err(NoHead::Refused(fault)));
        }
        ready!(running.connection.timer.poll(cx, self.dispatched + self.timeout));
        // The replica has had its time: the slot is free, whatever it still does.
        self.running = None;
        let refusal =
            if self.upload.ended().is_some() { Refusal::ModelTimeout(self.timeout) } else { Refusal::BodyTimeout };
        Poll::Ready(Err(NoHead::Refused(refusal)))
    }

    /// The connection ended without a head; `unsent` is the request if none of it was sent.
    fn no_head(&mut self, unsent: Option<Request<Upload>>) -> NoHead {
        match (self.running.take(), unsent) {
            (Some(running), Some(request)) => NoHead::NotSent(running.slot, Box::new(request)),
            (running, _) => {
                if let Some(running) = running {
                    running.slot.failed(Instant::now());
                }
                NoHead::Refused(Refusal::ReplicaClosed)
            }
        }
    }

    /// When the replica's last byte came.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// The next frame of the response body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(Running { connection, stage: Stage::Body(body), .. }) = &mut self.running else {
            return Poll::Ready(None);
        };
        let ((frame, ended), held) = wakes::hold(cx, |cx| {
            let frame = Pin::new(&mut *body).poll_frame(cx);
            if frame.is_ready() {
                return (frame, false);
            }
            // Asking for a frame is what lets the connection read one.
            let ended = connection.poll_wire(cx).is_ready();
            (Pin::new(&mut *body).poll_frame(cx), ended)
        });
        // Beside the frame, which is here, a wake asks to move bytes: they are, when the next frame is wanted.
        if frame.is_pending() {
            held.release(cx)
        } else {
            held.forget()
        }
        match frame {
            Poll::Pending if ended => {
                self.running = None;
                Poll::Ready(Some(Err(BrokenOff)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.silent_since = None;
                if body.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                self.ended = Some(Instant::now());
                self.running = None;
                Poll::Ready(Some(Err(BrokenOff)))
            }
            Poll::Pending => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                ready!(connection.timer.poll(cx, since + self.idle_timeout));
                Poll::Ready(Some(Err(BrokenOff)))
            }
        }
    }

    /// Whether the response body has ended.
    pub(super) fn is_end_stream(&self) -> bool {
        self.running.is_none()
    }

    /// How long the response body is.
    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.running {
            Some(Running { stage: Stage::Body(body), .. }) => body.size_hint(),
            _ => SizeHint::with_exact(0),
        }
    }

    /// The response is complete: gives the slot back, and keeps the connection if it can be used again.
    fn finish(&mut self) {
        let Some(Running { mut connection, stage, slot }) = self.running.take() else { return };
        drop(stage);
        let now = Instant::now();
        self.ended = Some(now);
        // While idle, the connection wakes nobody: what then happens to it is seen by its next user, or by the sweep.
        let mut idle = Context::from_waker(Waker::noop());
        if connection.poll_wire(&mut idle).is_pending() && connection.sender.is_ready() {
            self.worker.pool.put(slot.replica(), connection, now);
        }
    }
}

/// Nobody waits for the response any more.
impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let forced = tokio::runtime::Handle::try_current().is_err();
        if running.connection.ended() || forced {
            return;
        }
        let patience = match running.stage {
            Stage::Head(_) => self.timeout.saturating_sub(self.dispatched.elapsed()),
            Stage::Body(_) => self.timeout,
        };
        let alive = self.worker.alive();
        tokio::task::spawn_local(async move {
            // Over time, the slot comes back with the task.
            let _ = tokio::time::timeout(patience, running.see_out()).await;
            drop(alive);
        });
    }
}

impl Running {
    /// Lets the replica know that nobody waits, and waits for it to finish or to close.
    async fn see_out(mut self) {
        self.connection.half_close();
        std::future::poll_fn(|cx| {
            loop {
                let ended = self.connection.poll_wire(cx).is_ready();
                let progress = match &mut self.stage {
                    Stage::Head(head) => ready_or(head.as_mut().poll(cx), ended).map(|head| match head {
                        Some(Ok(response)) => {
                            self.stage = Stage::Body(response.into_body());
                            true
                        }
                        _ => false,
                    }),
                    Stage::Body(body) => {
                        ready_or(Pin::new(body).poll_frame(cx), ended).map(|frame| matches!(frame, Some(Some(Ok(_)))))
                    }
                };
                if !ready!(progress) {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }
}

/// A pending result of a connection that has ended will never be ready.
fn ready_or<T>(polled: Poll<T>, ended: bool) -> Poll<Option<T>> {
    match polled {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if ended => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }
}
