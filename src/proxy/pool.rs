//! Connections to replicas: making them, keeping them warm.
//!
//! A connection belongs to one worker and has no task of its own: whoever uses it drives it, an idle one is only looked
//! after once in a while.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::timer::LazyTimer;
use super::upload::Upload;
use crate::state::slots::Replica;

/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection stays warm without use.
const KEEP_IDLE: Duration = Duration::from_secs(55);

/// A connection to a replica, ready for a request or busy with one. Large, and handed around: always in a box.
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Upload>,
    pub(super) timer: LazyTimer,
    /// `None` when the connection has ended: what was not sent by then is given back when this is dropped.
    wire: Option<http1::Connection<TokioIo<ReplicaIo>, Upload>>,
    half_close: Rc<Cell<bool>>,
    used: Instant,
}

impl Connection {
    /// Connects to a replica.
    ///
    /// # Errors
    /// When that fails or takes longer than [`CONNECT_TIMEOUT`].
    pub(super) async fn open(address: &str) -> io::Result<Box<Self>> {
        let connecting = async {
            // Names are resolved anew for each connection; addresses, the common case, need no resolver.
            match address.parse::<SocketAddr>() {
                Ok(address) => TcpStream::connect(address).await,
                Err(_) => TcpStream::connect(address).await,
            }
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        let half_close = Rc::new(Cell::new(false));
        let io = ReplicaIo { stream, half_close: half_close.clone(), deaf: false };
        let (sender, wire) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        let timer = LazyTimer::default();
        Ok(Box::new(Self { sender, wire: Some(wire), half_close, timer, used: Instant::now() }))
    }

    /// Moves bytes. Ready when the connection has ended.
    pub(super) fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(wire) = &mut self.wire
            && Pin::new(wire).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        self.wire = None;
        Poll::Ready(())
    }

    /// Whether nothing can come or go any more.
    pub(super) fn ended(&self) -> bool {
        self.wire.is_none()
    }

    /// Sends nothing more, but goes on reading: the replica learns that nobody waits, and we when it is done.
    pub(super) fn half_close(&self) {
        self.half_close.set(true);
    }
}

/// Up to this many bytes are written as one piece.
const SMALL_WRITE: usize = 2048;

/// The socket under a [`Connection`].
struct ReplicaIo {
    stream: TcpStream,
    /// Set by [`Connection::half_close`], carried out at the next poll.
    half_close: Rc<Cell<bool>>,
    /// The replica takes nothing more; what is written vanishes, so that an answer it gave before is still read.
    deaf: bool,
}

impl ReplicaIo {
    /// Carries out a half-close that was asked for.
    fn obey(&mut self) {
        if self.half_close.get() && !self.deaf {
            self.deaf = true;
            // Fails only when the connection is gone already.
            let _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
        }
    }

    /// The outcome of a write: a replica that has stopped listening may have answered.
    fn forgive(&mut self, written: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(_)) => {
                self.deaf = true;
                Poll::Ready(Ok(offered))
            }
            other => other,
        }
    }
}

impl AsyncRead for ReplicaIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.obey();
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ReplicaIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.obey();
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.forgive(written, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.obey();
        let offered = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(offered));
        }
        let written = write_together(&mut self.stream, cx, bufs);
        self.forgive(written, offered)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.obey();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Writes several pieces at once. Small ones are put together first: one short copy costs less than what the kernel
/// does to gather them.
pub(super) fn write_together(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
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

/// The idle connections of one worker.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<u64, Idle>>,
}

struct Idle {
    replica: Weak<Replica>,
    /// The one used last at the end.
    #[expect(clippy::vec_box, reason = "a connection is never taken out of its box, only handed around")]
    connections: Vec<Box<Connection>>,
}

impl Pool {
    /// The warmest connection to a replica, if there is one.
    pub(super) fn take(&self, replica: &Replica) -> Option<Box<Connection>> {
        let mut connection = self.idle.borrow_mut().get_mut(&replica.id)?.connections.pop()?;
        connection.timer.unbind();
        Some(connection)
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, replica: &Arc<Replica>, mut connection: Box<Connection>, now: Instant) {
        connection.used = now;
        let mut idle = self.idle.borrow_mut();
        let idle = idle
            .entry(replica.id)
            .or_insert_with(|| Idle { replica: Arc::downgrade(replica), connections: Vec::new() });
        idle.connections.push(connection);
    }

    /// Closes what the other side has closed, what was not used for long, and what leads to replicas that are gone.
    pub(super) fn sweep(&self, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.borrow_mut().retain(|_, idle| {
            idle.connections.retain_mut(|connection| {
                now.duration_since(connection.used) < KEEP_IDLE && connection.poll_wire(&mut cx).is_pending()
            });
            !idle.connections.is_empty() && idle.replica.strong_count() > 0
        });
    }
}
