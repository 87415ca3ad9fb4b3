//! A connection to a replica: the socket, received data that is not parsed yet, and data to send.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::codec::{self, BodyFraming};
use super::tcp::Tcp;
use super::timer::LazyTimer;
use super::tls::{self, Socket};
use crate::state::tls::Connector;

/// The longest time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The smallest buffer for one read.
const MIN_READ_BYTES: usize = 8 * 1024;
/// The largest buffer for one read.
const MAX_READ_BYTES: usize = 64 * 1024;
/// Up to this many bytes are copied into one buffer before a write.
const MAX_COALESCED_WRITE_BYTES: usize = 2048;

/// A connection to a replica, ready for a request or busy with one. It is large and is passed around, so it is always
/// boxed.
pub(super) struct UpstreamConnection {
    stream: Socket,
    /// Digest of the TLS configuration that the connection was opened with.
    tls_config_digest: Option<[u8; 32]>,
    /// Received data that is not parsed yet.
    pub(super) input: BytesMut,
    output: OutputBuffer,
    /// The buffer size for the next read, which grows for a replica that fills it.
    read_size: usize,
    /// Whether the replica may have seen anything of the request.
    has_sent: bool,
    /// The replica accepts no more data. Further data is discarded, so that an answer which was sent before is still
    /// read.
    is_write_closed: bool,
    /// The replica sends nothing more.
    is_read_closed: bool,
    /// The stream ended without a proper end: the connection broke, or TLS was not closed.
    is_broken: bool,
    /// The replica closed the connection because of the router's certificate.
    is_certificate_rejected: bool,
    /// TLS still holds data to send.
    is_flush_pending: bool,
    pub(super) timer: LazyTimer,
    /// When the connection became idle.
    idle_since: Instant,
}

/// Data to send, in the order of the fields.
#[derive(Default)]
struct OutputBuffer {
    /// Heads and chunk sizes.
    framing: BytesMut,
    /// A chunk of a body, as it arrived.
    data: Bytes,
    /// The end of the chunk.
    chunk_end: &'static [u8],
}

impl UpstreamConnection {
    /// Connects to a replica, with TLS if there is a `connector`.
    ///
    /// # Errors
    ///
    /// When the connection or the handshake fails or takes longer than [`CONNECT_TIMEOUT`].
    pub(super) async fn connect(address: &str, connector: Option<&Connector>) -> io::Result<Box<Self>> {
        let connecting = async {
            // Host names are resolved for each connection. Addresses, the common case, need no resolver.
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
                // This case is rare and its future is large.
                let handshake = Box::pin(tls::connect_tls(connector, address, stream));
                tokio::time::timeout(CONNECT_TIMEOUT, handshake).await??
            }
        };
        Ok(Box::new(Self {
            stream,
            tls_config_digest: connector.map(|connector| connector.config_digest),
            input: BytesMut::new(),
            output: OutputBuffer::default(),
            read_size: MIN_READ_BYTES,
            has_sent: false,
            is_write_closed: false,
            is_read_closed: false,
            is_broken: false,
            is_certificate_rejected: false,
            is_flush_pending: false,
            timer: LazyTimer::default(),
            idle_since: Instant::now(),
        }))
    }

    /// Returns whether the TLS configuration is the one that `connector` would use now.
    pub(super) fn has_tls_config(&self, connector: Option<&Connector>) -> bool {
        match (&self.tls_config_digest, connector) {
            (None, None) => true,
            (Some(made_from), Some(connector)) => *made_from == connector.config_digest,
            _ => false,
        }
    }

    /// Returns ready when the connection cannot be used for a request: the replica has closed it, or has sent
    /// unexpected data.
    pub(super) fn poll_unusable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() {
            return Poll::Ready(());
        }
        self.poll_read(cx).map(drop)
    }

    /// Reads more data. Returns ready without new data when nothing more will arrive.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_read_closed {
            return Poll::Ready(());
        }
        if self.input.capacity() - self.input.len() < self.read_size / 2 {
            self.input.reserve(self.read_size);
        }
        let room = self.input.capacity() - self.input.len();
        let read = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx));
        let length = read.unwrap_or_else(|error| {
            self.is_broken = true;
            self.is_certificate_rejected = tls::is_certificate_rejection(&error);
            0
        });
        self.read_size = if length == room { MAX_READ_BYTES.min(2 * self.read_size) } else { MIN_READ_BYTES };
        self.is_read_closed = length == 0;
        Poll::Ready(())
    }

    /// Returns whether the replica sends nothing more.
    pub(super) fn is_read_closed(&self) -> bool {
        self.is_read_closed
    }

    /// Returns whether the stream ended without a proper end.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Returns whether the replica rejects the router's certificate, or requires one. In TLS 1.3 it says so after the
    /// handshake.
    pub(super) fn is_certificate_rejected(&self) -> bool {
        self.is_certificate_rejected
    }

    /// Returns whether the replica has not accepted all data yet.
    pub(super) fn is_behind(&self) -> bool {
        !self.output.is_empty() || self.is_flush_pending
    }

    /// Buffers the head of a request, and the first chunk of its body if it is there already, so that they are sent
    /// together.
    pub(super) fn send_head<B>(&mut self, request: &Request<B>, body: BodyFraming, first_chunk: Option<Bytes>) {
        self.has_sent = false;
        self.stream.reset_has_written();
        codec::write_head(&mut self.output.framing, request, body);
        if let Some(first) = first_chunk {
            self.send(first, body);
        }
    }

    /// Buffers a chunk of a body. What was buffered before has been flushed, except for a head.
    pub(super) fn send(&mut self, piece: Bytes, body: BodyFraming) {
        if body == BodyFraming::Chunked {
            codec::write_chunk_size(&mut self.output.framing, piece.len());
            self.output.chunk_end = codec::CRLF;
        }
        self.output.data = piece;
    }

    /// Buffers the end of a chunked body.
    pub(super) fn send_end(&mut self, trailers: Option<&HeaderMap>) {
        codec::write_last_chunk(&mut self.output.framing, trailers);
    }

    /// Writes the buffered data until all of it is sent.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.output.is_empty() {
            if self.is_write_closed {
                self.output = OutputBuffer::default();
                break;
            }
            match ready!(self.output.poll_write(&mut self.stream, cx)) {
                Ok(length) => {
                    self.has_sent = true;
                    self.output.advance(length);
                }
                Err(_) => {
                    self.has_sent |= self.stream.has_written();
                    self.is_write_closed = true;
                }
            }
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.is_flush_pending = flushed.is_pending();
        if ready!(flushed).is_err() {
            self.is_write_closed = true;
        }
        Poll::Ready(())
    }

    /// Returns whether nothing of the request can have reached the replica.
    pub(super) fn has_sent_nothing(&self) -> bool {
        !self.has_sent
    }

    /// Returns whether the replica accepts no more data.
    pub(super) fn is_write_closed(&self) -> bool {
        self.is_write_closed
    }

    /// Closes the sending side and continues to read. The replica learns that nobody waits, and the router learns when
    /// the replica is done.
    pub(super) fn half_close(&mut self) {
        self.is_write_closed = true;
        self.output = OutputBuffer::default();
        self.stream.shutdown_write();
    }

    /// Marks the connection as idle. A later request may use it from another task.
    pub(super) fn mark_idle(&mut self, now: Instant) {
        self.idle_since = now;
        self.timer.reset_waker();
        if self.input.capacity() > MIN_READ_BYTES {
            self.input = BytesMut::new();
        }
    }

    /// Returns how long the connection has been idle.
    pub(super) fn idle_time(&self, now: Instant) -> Duration {
        now.duration_since(self.idle_since)
    }

    /// Returns whether both sides have finished, so that the connection can be used again.
    pub(super) fn is_reusable(&self) -> bool {
        self.input.is_empty() && self.output.is_empty() && !self.is_write_closed && !self.is_read_closed
    }
}

impl OutputBuffer {
    fn poll_write(&self, stream: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.framing.is_empty() && self.chunk_end.is_empty() {
            return Pin::new(stream).poll_write(cx, &self.data);
        }
        write_coalesced(stream, cx, &[&self.framing[..], &self.data[..], self.chunk_end].map(IoSlice::new))
    }

    fn is_empty(&self) -> bool {
        self.framing.is_empty() && self.data.is_empty() && self.chunk_end.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        let mut take = |length: usize| {
            let taken = written.min(length);
            written -= taken;
            taken
        };
        let (framing, data, end) = (take(self.framing.len()), take(self.data.len()), take(self.chunk_end.len()));
        self.framing.advance(framing);
        self.data.advance(data);
        self.chunk_end = &self.chunk_end[end..];
    }
}

/// Writes several buffers at once. Small ones are copied into one buffer first, because that costs less than gathering
/// in the kernel.
pub(super) fn write_coalesced(
    stream: &mut Socket,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = match stream {
        Socket::Plain(tcp) => tcp,
        // TLS copies the buffers anyway.
        Socket::Tls(tls) => return Pin::new(tls).poll_write_vectored(cx, bufs),
    };
    let mut coalesced = [0; MAX_COALESCED_WRITE_BYTES];
    let mut length = 0;
    for buf in bufs {
        let Some(slice) = coalesced.get_mut(length..length + buf.len()) else {
            return Pin::new(stream).poll_write_vectored(cx, bufs);
        };
        slice.copy_from_slice(buf);
        length += buf.len();
    }
    Pin::new(stream).poll_write(cx, &coalesced[..length])
}
