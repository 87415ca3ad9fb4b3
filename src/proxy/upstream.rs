//! A connection to a replica: the socket, what has come and is not understood yet, what is to go.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::codec::{self, Sending};
use super::tcp::Tcp;
use super::timer::LazyTimer;
use super::tls::{self, Socket};
use crate::state::tls::Connector;

/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Least room for one read.
const SMALL_READ: usize = 8 * 1024;
/// Most room for one read.
const LARGE_READ: usize = 64 * 1024;
/// Up to this many bytes are written as one piece.
const SMALL_WRITE: usize = 2048;

/// A connection to a replica, ready for a request or busy with one. Large, and handed around: always in a box.
pub(super) struct Connection {
    stream: Socket,
    /// What TLS on it was made from.
    tls: Option<[u8; 32]>,
    /// What has come, and is not understood yet.
    pub(super) input: BytesMut,
    output: Output,
    /// Room for the next read: more for a replica that fills it.
    room: usize,
    /// Whether the replica can have seen anything of the request.
    has_sent: bool,
    /// The replica takes nothing more: what is to go vanishes, so that an answer it gave before is still read.
    deaf: bool,
    /// The replica sends nothing more.
    ended: bool,
    /// It has not ended what it sent: the connection broke, or TLS did not see its end.
    broken: bool,
    /// It has broken it off because of who we are.
    denied: bool,
    /// TLS holds some of what is to go.
    is_held: bool,
    pub(super) timer: LazyTimer,
    /// When it was put to rest.
    used: Instant,
}

/// What is to go, in this order.
#[derive(Default)]
struct Output {
    /// Heads, sizes of chunks.
    framing: BytesMut,
    /// A piece of a body, as it came.
    data: Bytes,
    /// What ends the piece.
    end: &'static [u8],
}

impl Connection {
    /// Connects to a replica, with TLS if there is a `connector`.
    ///
    /// # Errors
    /// When that, or the handshake, fails or takes longer than [`CONNECT_TIMEOUT`].
    pub(super) async fn open(address: &str, connector: Option<&Connector>) -> io::Result<Box<Self>> {
        let connecting = async {
            // Names are resolved anew for each connection; addresses, the common case, need no resolver.
            match address.parse::<SocketAddr>() {
                Ok(address) => TcpStream::connect(address).await,
                Err(_) => TcpStream::connect(address).await,
            }
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        let stream = match connector {
            None => Socket::Plain(Tcp::new(stream)),
            Some(connector) => {
                // Rare beside the other case, and large.
                let handshake = Box::pin(tls::connect(connector, address, stream));
                tokio::time::timeout(CONNECT_TIMEOUT, handshake).await??
            }
        };
        Ok(Box::new(Self {
            stream,
            tls: connector.map(|connector| connector.digest),
            input: BytesMut::new(),
            output: Output::default(),
            room: SMALL_READ,
            has_sent: false,
            deaf: false,
            ended: false,
            broken: false,
            denied: false,
            is_held: false,
            timer: LazyTimer::default(),
            used: Instant::now(),
        }))
    }

    /// Whether TLS on it is as a `connector` would make it now.
    pub(super) fn has_tls(&self, connector: Option<&Connector>) -> bool {
        match (&self.tls, connector) {
            (None, None) => true,
            (Some(made_from), Some(connector)) => *made_from == connector.digest,
            _ => false,
        }
    }

    /// Ready when the connection is of no use for a request: the replica has closed it, or said something unasked.
    pub(super) fn poll_unusable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() {
            return Poll::Ready(());
        }
        self.poll_read(cx).map(drop)
    }

    /// Reads more. Ready with nothing new when nothing comes any more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        if self.input.capacity() - self.input.len() < self.room / 2 {
            self.input.reserve(self.room);
        }
        let room = self.input.capacity() - self.input.len();
        let read = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx));
        let length = read.unwrap_or_else(|error| {
            self.broken = true;
            self.denied = tls::is_denial(&error);
            0
        });
        self.room = if length == room { LARGE_READ.min(2 * self.room) } else { SMALL_READ };
        self.ended = length == 0;
        Poll::Ready(())
    }

    /// Whether the replica sends nothing more.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether the end was no end, but a break.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the replica does not take our certificate, or wants one: in TLS 1.3 it says so after the handshake.
    pub(super) fn is_denied(&self) -> bool {
        self.denied
    }

    /// Whether the replica is slow to take what is to go.
    pub(super) fn is_behind(&self) -> bool {
        !self.output.is_empty() || self.is_held
    }

    /// Buffers the head of a request, and the first of its body if that is there already: they go out together.
    pub(super) fn send_head<B>(&mut self, request: &Request<B>, body: Sending, first: Option<Bytes>) {
        self.has_sent = false;
        self.stream.forget_writes();
        codec::write_head(&mut self.output.framing, request, body);
        if let Some(first) = first {
            self.send(first, body);
        }
    }

    /// Buffers a piece of a body; what was buffered before has been flushed, but for a head.
    pub(super) fn send(&mut self, piece: Bytes, body: Sending) {
        if body == Sending::Chunked {
            codec::write_chunk_size(&mut self.output.framing, piece.len());
            self.output.end = codec::CRLF;
        }
        self.output.data = piece;
    }

    /// Buffers the end of a body in chunks.
    pub(super) fn send_end(&mut self, trailers: Option<&HeaderMap>) {
        codec::write_last_chunk(&mut self.output.framing, trailers);
    }

    /// Writes what is buffered, until it is all gone.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.output.is_empty() {
            if self.deaf {
                self.output = Output::default();
                break;
            }
            match ready!(self.output.poll_write(&mut self.stream, cx)) {
                Ok(length) => {
                    self.has_sent = true;
                    self.output.advance(length);
                }
                Err(_) => {
                    self.has_sent |= self.stream.has_written();
                    self.deaf = true;
                }
            }
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.is_held = flushed.is_pending();
        if ready!(flushed).is_err() {
            self.deaf = true;
        }
        Poll::Ready(())
    }

    /// Whether nothing of the request can have reached the replica.
    pub(super) fn has_sent_nothing(&self) -> bool {
        !self.has_sent
    }

    /// Whether the replica takes nothing more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Sends nothing more, but goes on reading: the replica learns that nobody waits, and we when it is done.
    pub(super) fn half_close(&mut self) {
        self.deaf = true;
        self.output = Output::default();
        self.stream.end_writing();
    }

    /// Keeps the connection for a later request, perhaps of another task.
    pub(super) fn rest(&mut self, now: Instant) {
        self.used = now;
        self.timer.unbind();
        if self.input.capacity() > SMALL_READ {
            self.input = BytesMut::new();
        }
    }

    /// How long it has rested.
    pub(super) fn rested(&self, now: Instant) -> Duration {
        now.duration_since(self.used)
    }

    /// Whether all is said, on both sides.
    pub(super) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.output.is_empty() && !self.deaf && !self.ended
    }
}

impl Output {
    fn poll_write(&self, stream: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.framing.is_empty() && self.end.is_empty() {
            return Pin::new(stream).poll_write(cx, &self.data);
        }
        write_together(stream, cx, &[&self.framing[..], &self.data[..], self.end].map(IoSlice::new))
    }

    fn is_empty(&self) -> bool {
        self.framing.is_empty() && self.data.is_empty() && self.end.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        let mut take = |length: usize| {
            let taken = written.min(length);
            written -= taken;
            taken
        };
        let (framing, data, end) = (take(self.framing.len()), take(self.data.len()), take(self.end.len()));
        self.framing.advance(framing);
        self.data.advance(data);
        self.end = &self.end[end..];
    }
}

/// Writes several pieces at once. Small ones are put together first: one short copy costs less than what the kernel
/// does to gather them.
pub(super) fn write_together(
    stream: &mut Socket,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = match stream {
        Socket::Plain(tcp) => tcp,
        // Puts them together anyhow.
        Socket::Tls(tls) => return Pin::new(tls).poll_write_vectored(cx, bufs),
    };
    let mut together = [0; SMALL_WRITE];
    let mut length = 0;
    for buf in bufs {
        let Some(place) = together.get_mut(length..length + buf.len()) else {
            return Pin::new(stream).poll_write_vectored(cx, bufs);
        };
        place.copy_from_slice(buf);
        length += buf.len();
    }
    Pin::new(stream).poll_write(cx, &together[..length])
}
