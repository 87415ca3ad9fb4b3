//! State of a client connection that its requests share, its activity for timeouts, and the socket under it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::headers::ForwardedInfo;
use super::http2_abuse::FrameBudget;
use super::tcp::Tcp;
use super::tls::Socket;
use super::upload::UploadProgress;
use super::upstream;
use super::worker::Worker;
use crate::model::refusal::Refusal;
use crate::model::router_settings::Limits;

/// State that the requests of one connection share.
pub(super) struct ClientConnection {
    pub(super) worker: Rc<Worker>,
    pub(super) activity: Rc<ConnectionActivity>,
    /// The address and the scheme that forwarded headers report.
    pub(super) forwarded_info: ForwardedInfo,
    /// Whether the connection has to be reset when a body is truncated. HTTP/1.0 cannot show that in another way.
    pub(super) must_reset_on_close: Cell<bool>,
}

/// The activity of a client, shared by its socket, its connection and its requests.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    /// The number of requests in progress.
    in_flight: Cell<usize>,
    /// Whether any request has begun on the connection.
    has_served_request: Cell<bool>,
    /// When the last request ended or, before the first one, when the connection was accepted.
    idle_since: Cell<Instant>,
    /// When the first byte of an unfinished head arrived.
    head_since: Cell<Option<Instant>>,
    /// When the client stopped accepting data; `None` while it accepts data.
    blocked_since: Cell<Option<Instant>>,
    /// Whether the body of the last request was not read to its end.
    has_left_body_unread: Cell<bool>,
    /// The body of the request in progress, in HTTP/1.
    upload_progress: RefCell<Option<Rc<UploadProgress>>>,
    /// Whether heads cannot be distinguished from other frames, as in HTTP/2.
    is_multiplexed: bool,
    /// The number of bytes of response bodies that were sent.
    response_bytes: Cell<u64>,
}

/// A timeout that a client can exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientTimeout {
    /// There was no request for too long, so the connection can be closed.
    Idle,
    /// A head has begun and did not end in time.
    Head,
    /// The client does not accept its response.
    BlockedWrite,
}

impl ConnectionActivity {
    pub(super) fn new(now: Instant, is_multiplexed: bool) -> Rc<Self> {
        Rc::new(Self {
            in_flight: Cell::new(0),
            has_served_request: Cell::new(false),
            idle_since: Cell::new(now),
            head_since: Cell::new(None),
            blocked_since: Cell::new(None),
            has_left_body_unread: Cell::new(false),
            upload_progress: RefCell::default(),
            is_multiplexed,
            response_bytes: Cell::new(0),
        })
    }

    /// Records that the head of a request is complete and that its `body` begins. Returns when the head began.
    pub(super) fn begin_request(&self, body: &Rc<UploadProgress>) -> Instant {
        if !self.is_multiplexed {
            self.upload_progress.replace(Some(body.clone()));
        }
        self.in_flight.set(self.in_flight.get() + 1);
        self.has_served_request.set(true);
        self.has_left_body_unread.set(false);
        self.head_since.take().unwrap_or_else(Instant::now)
    }

    /// Records that a request has ended. `is_body_unread` is set if its body was not read to its end.
    pub(super) fn end_request(&self, now: Instant, is_body_unread: bool) {
        self.has_left_body_unread.set(is_body_unread);
        self.upload_progress.take();
        self.in_flight.set(self.in_flight.get() - 1);
        self.idle_since.set(now);
    }

    /// Returns whether a request is in progress whose body has not been read to its end, in HTTP/1.
    pub(super) fn has_unread_body(&self) -> bool {
        self.upload_progress.borrow().as_ref().is_some_and(|body| body.ended_at().is_none())
    }

    /// Returns whether no request is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Returns whether the client does not accept data.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    /// Returns whether the client may still be sending data that nobody reads: a body, or a head that could not be
    /// parsed.
    pub(super) fn can_still_send(&self) -> bool {
        self.has_left_body_unread.get() || self.head_since.get().is_some()
    }

    /// Returns the next deadline of the client and its timeout; `None` while a request is in progress, if the client
    /// accepts data.
    pub(super) fn next_deadline(&self, limits: &Limits) -> Option<(Instant, ClientTimeout)> {
        if let Some(since) = self.blocked_since.get() {
            return Some((since + limits.body_idle_timeout, ClientTimeout::BlockedWrite));
        }
        if self.in_flight.get() > 0 {
            return None;
        }
        if let Some(since) = self.head_since.get() {
            return Some((since + limits.header_read_timeout, ClientTimeout::Head));
        }
        let timeout =
            if self.has_served_request.get() { limits.keep_alive_timeout } else { limits.header_read_timeout };
        Some((self.idle_since.get() + timeout, ClientTimeout::Idle))
    }

    /// Adds bytes of a response body that were sent.
    pub(super) fn add_response_bytes(&self, bytes: usize) {
        self.response_bytes.set(self.response_bytes.get() + bytes as u64);
    }

    fn record_read(&self, now: impl FnOnce() -> Instant) {
        if self.in_flight.get() == 0 && self.head_since.get().is_none() && !self.is_multiplexed {
            self.head_since.set(Some(now()));
        }
    }

    fn record_write<T>(&self, written: &Poll<T>) {
        match written {
            Poll::Ready(_) => self.blocked_since.set(None),
            Poll::Pending if self.blocked_since.get().is_none() => self.blocked_since.set(Some(Instant::now())),
            Poll::Pending => {}
        }
    }
}

/// The socket of a client. It records the activity of the client and, in HTTP/2, enforces the budget for frames.
pub(super) struct ClientIo {
    stream: Socket,
    /// Data that was read to detect the protocol, and that is returned before data of the socket.
    preface: Bytes,
    activity: Rc<ConnectionActivity>,
    worker: Rc<Worker>,
    /// A response of the router that is sent before any other data.
    pending_response: Bytes,
    /// The budget for frames, in HTTP/2.
    frame_budget: Option<FrameBudget>,
}

impl ClientIo {
    /// Creates the socket. `preface` was read from `stream` already, since `preface_began_at`.
    pub(super) fn new(
        stream: Socket,
        preface: Bytes,
        preface_began_at: Instant,
        activity: Rc<ConnectionActivity>,
        worker: Rc<Worker>,
    ) -> Self {
        if !preface.is_empty() {
            activity.record_read(|| preface_began_at);
        }
        let frame_budget = activity.is_multiplexed.then(FrameBudget::default);
        Self { stream, preface, activity, worker, pending_response: Bytes::new(), frame_budget }
    }

    /// Returns the TCP socket.
    pub(super) fn tcp(&self) -> &Tcp {
        self.stream.tcp()
    }

    /// Returns the stream when HTTP has ended on it.
    pub(super) fn into_stream(self) -> Socket {
        self.stream
    }

    /// Replaces an error response of the HTTP library by a problem document. The library answers what it cannot parse
    /// with a bare status; every other response has a request id.
    fn replace_library_error(&mut self, first: &[u8]) -> bool {
        let refusal = match first {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'4', rest @ ..] => match rest {
                [b'0', b'0', ..] => Refusal::BadRequest("this is not HTTP that can be understood"),
                [b'3', b'1', ..] | [b'1', b'4', ..] => Refusal::HeadTooLarge,
                _ => return false,
            },
            _ => return false,
        };
        let has_id = first.windows(b"x-request-id".len()).any(|window| window == b"x-request-id");
        if has_id || first.len() > 256 {
            return false;
        }
        self.pending_response = self.worker.reject_unparsed(refusal);
        true
    }

    /// Observes the frames of an HTTP/2 client.
    ///
    /// # Errors
    ///
    /// Returns an error, which ends the connection, if the client has exceeded its budget.
    fn check_frame_budget(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(budget) = &mut self.frame_budget else { return Ok(()) };
        budget.observe(bytes);
        if budget.is_exceeded(self.activity.response_bytes.get()) {
            return Err(io::Error::other("too many idle frames or canceled requests"));
        }
        Ok(())
    }

    fn poll_write_pending_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending_response.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending_response))?;
            self.pending_response.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.preface.is_empty() {
            let chunk = this.preface.split_to(this.preface.len().min(buf.remaining()));
            buf.put_slice(&chunk);
            return Poll::Ready(this.check_frame_budget(&chunk));
        }
        let filled_before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > filled_before {
            this.activity.record_read(Instant::now);
        }
        Poll::Ready(this.check_frame_budget(&buf.filled()[filled_before..]))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(first) = bufs.first()
            && this.replace_library_error(first)
        {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        ready!(this.poll_write_pending_response(cx))?;
        let written = upstream::write_coalesced(&mut this.stream, cx, bufs);
        this.activity.record_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_pending_response(cx))?;
        if !this.stream.is_tls() {
            return Poll::Ready(Ok(()));
        }
        // TLS accepts more data than the socket has room for, so only a flush shows that the client accepts nothing.
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.activity.record_write(&flushed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_pending_response(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
