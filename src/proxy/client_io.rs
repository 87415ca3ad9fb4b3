//! A client as its requests know it, what is known of its pace, and the socket under its connection.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::headers::Origin;
use super::talk::Talk;
use super::tcp::Tcp;
use super::tls::Socket;
use super::upload::Progress;
use super::upstream;
use super::worker::Worker;
use crate::model::limits::Limits;
use crate::model::refusal::Refusal;

/// What the requests of one connection have in common.
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    pub(super) pace: Rc<Pace>,
    /// Where its requests come from.
    pub(super) origin: Origin,
    /// HTTP/1.0 cannot tell a broken body from a complete one, but by a reset.
    pub(super) reset_at_end: Cell<bool>,
}

/// What a client is doing; shared by its socket, its connection and its requests.
#[derive(Debug)]
pub(super) struct Pace {
    /// Requests being answered.
    in_flight: Cell<usize>,
    /// Whether any request came yet.
    served: Cell<bool>,
    /// Since when no request is being answered.
    idle_since: Cell<Instant>,
    /// When the first byte of an unfinished head came.
    head_since: Cell<Option<Instant>>,
    /// Since when the client takes nothing, if it does.
    blocked_since: Cell<Option<Instant>>,
    /// Whether the last request's body was not read to its end.
    unread: Cell<bool>,
    /// The body of the request that is being answered, in HTTP/1.
    body: RefCell<Option<Rc<Progress>>>,
    /// Heads of HTTP/2 are not told apart from its other frames.
    multiplexed: bool,
    /// Bytes of answers' bodies.
    answered: Cell<u64>,
}

/// Which patience with a client has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Impatience {
    /// No request for long: the connection can go.
    Idle,
    /// A head has begun but does not end.
    Head,
    /// The client does not take its answer.
    Blocked,
}

impl Pace {
    pub(super) fn new(now: Instant, multiplexed: bool) -> Rc<Self> {
        Rc::new(Self {
            in_flight: Cell::new(0),
            served: Cell::new(false),
            idle_since: Cell::new(now),
            head_since: Cell::new(None),
            blocked_since: Cell::new(None),
            unread: Cell::new(false),
            body: RefCell::default(),
            multiplexed,
            answered: Cell::new(0),
        })
    }

    /// A request's head is complete, and its `body` begins. Returns when it began.
    pub(super) fn begin(&self, body: &Rc<Progress>) -> Instant {
        if !self.multiplexed {
            self.body.replace(Some(body.clone()));
        }
        self.in_flight.set(self.in_flight.get() + 1);
        self.served.set(true);
        self.unread.set(false);
        self.head_since.take().unwrap_or_else(Instant::now)
    }

    /// A request has been answered, or given up; `unread`: before its body had come to its end.
    pub(super) fn end(&self, now: Instant, unread: bool) {
        self.unread.set(unread);
        self.body.take();
        self.in_flight.set(self.in_flight.get() - 1);
        self.idle_since.set(now);
    }

    /// Whether a request is being answered whose body has not been read to its end, in HTTP/1.
    pub(super) fn has_unread_body(&self) -> bool {
        self.body.borrow().as_ref().is_some_and(|body| body.ended().is_none())
    }

    /// Whether no request is being answered.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Whether the client does not take what it is sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    /// Whether the client may still be sending what nobody reads: a body, or a head that could not be read.
    pub(super) fn may_send(&self) -> bool {
        self.unread.get() || self.head_since.get().is_some()
    }

    /// When patience with the client ends, and why; `None` while nothing is expected of it.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Instant, Impatience)> {
        if let Some(since) = self.blocked_since.get() {
            return Some((since + limits.body_idle_timeout, Impatience::Blocked));
        }
        if self.in_flight.get() > 0 {
            return None;
        }
        if let Some(since) = self.head_since.get() {
            return Some((since + limits.header_read_timeout, Impatience::Head));
        }
        let patience = if self.served.get() { limits.keep_alive_timeout } else { limits.header_read_timeout };
        Some((self.idle_since.get() + patience, Impatience::Idle))
    }

    /// So much of an answer's body is sent.
    pub(super) fn answered(&self, bytes: usize) {
        self.answered.set(self.answered.get() + bytes as u64);
    }

    fn received(&self, now: impl FnOnce() -> Instant) {
        if self.in_flight.get() == 0 && self.head_since.get().is_none() && !self.multiplexed {
            self.head_since.set(Some(now()));
        }
    }

    fn wrote<T>(&self, written: &Poll<T>) {
        match written {
            Poll::Ready(_) => self.blocked_since.set(None),
            Poll::Pending if self.blocked_since.get().is_none() => self.blocked_since.set(Some(Instant::now())),
            Poll::Pending => {}
        }
    }
}

/// A client's socket.
pub(super) struct ClientIo {
    stream: Socket,
    /// Read to learn the protocol; comes before what the socket still has.
    preface: Bytes,
    pace: Rc<Pace>,
    worker: Rc<Worker>,
    /// Goes out before anything else.
    outgoing: Bytes,
    /// What is said in HTTP/2.
    talk: Option<Talk>,
}

impl ClientIo {
    /// `preface` was read from `stream` already, since `begun`.
    pub(super) fn new(stream: Socket, preface: Bytes, begun: Instant, pace: Rc<Pace>, worker: Rc<Worker>) -> Self {
        if !preface.is_empty() {
            pace.received(|| begun);
        }
        let talk = pace.multiplexed.then(Talk::default);
        Self { stream, preface, pace, worker, outgoing: Bytes::new(), talk }
    }

    /// The socket under it all.
    pub(super) fn tcp(&self) -> &Tcp {
        self.stream.tcp()
    }

    /// The socket itself, when HTTP is done with it.
    pub(super) fn into_stream(self) -> Socket {
        self.stream
    }

    /// The HTTP library answers what it cannot parse by itself, with a bare status. Clients of ours get a problem
    /// document for every error; each answer that is not from the library carries a request id.
    fn rewrite(&mut self, first: &[u8]) -> bool {
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
        self.outgoing = self.worker.unread(refusal);
        true
    }

    /// Follows what an HTTP/2 client says.
    ///
    /// # Errors
    /// It only talks: the connection ends.
    fn listen(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(talk) = &mut self.talk else { return Ok(()) };
        talk.hear(bytes);
        if talk.is_idle(self.pace.answered.get()) {
            return Err(io::Error::other("too many frames that ask for nothing, or requests taken back"));
        }
        Ok(())
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))?;
            self.outgoing.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.preface.is_empty() {
            let now = this.preface.split_to(this.preface.len().min(buf.remaining()));
            buf.put_slice(&now);
            return Poll::Ready(this.listen(&now));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.pace.received(Instant::now);
        }
        Poll::Ready(this.listen(&buf.filled()[before..]))
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
            && this.rewrite(first)
        {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        ready!(this.poll_outgoing(cx))?;
        let written = upstream::write_together(&mut this.stream, cx, bufs);
        this.pace.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outgoing(cx))?;
        if !this.stream.is_tls() {
            return Poll::Ready(Ok(()));
        }
        // TLS takes more than the socket has room for: who takes nothing shows only here.
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.pace.wrote(&flushed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outgoing(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
