//! A TCP socket that can report a close by the peer before all data is read.

use std::future::pending;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A socket. It is shared, so that one task can wait for its end while another one reads.
#[derive(Clone)]
pub(super) struct Tcp(Rc<TcpStream>);

impl Tcp {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self(Rc::new(tcp))
    }

    /// Waits until the peer sends nothing more or the connection breaks. Data that was sent before may be unread.
    pub(super) async fn wait_until_closed(self) {
        // A close makes the socket ready for every interest. Urgent data, unlike other data, is not used.
        if self.0.ready(Interest::PRIORITY).await.is_ok_and(|ready| !ready.is_read_closed()) {
            pending().await
        }
    }

    /// Clears the readiness after a read or write that was smaller than the room for it, which saves a system call that
    /// would return `WouldBlock`. No event is lost: the runtime, on this very thread, has not polled since.
    fn clear_readiness(&self, interest: Interest) {
        let _ = self.0.try_io(interest, || Err::<(), _>(ErrorKind::WouldBlock.into()));
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(written) if 0 < written && written < length => {
                    self.clear_readiness(Interest::WRITABLE);
                    return Poll::Ready(Ok(written));
                }
                written => return Poll::Ready(written),
            }
        }
    }
}

impl Deref for Tcp {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining_mut();
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(read) => {
                    if 0 < read && read < room {
                        self.clear_readiness(Interest::READABLE);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, buf.len(), || self.0.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_write_with(cx, length, || self.0.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match SockRef::from(&*self.0).shutdown(Shutdown::Write) {
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Returns a socket and its peer.
    async fn connected_pair() -> (Tcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (other, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Tcp::new(accepted.unwrap().0), other.unwrap())
    }

    async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
    }

    #[tokio::test]
    async fn an_end_is_seen_behind_bytes_that_are_not_read() {
        for breaks in [false, true] {
            let (mut tcp, mut other) = connected_pair().await;
            let mut closed = std::pin::pin!(tcp.clone().wait_until_closed());
            for piece in [[1; 1_000], [2; 1_000]] {
                other.write_all(&piece).await.unwrap();
                with_timeout("bytes", tcp.readable()).await.unwrap();
                assert!(futures_util::poll!(closed.as_mut()).is_pending(), "bytes are no end");
            }
            if breaks {
                SockRef::from(&other).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(other);
            with_timeout("the end", closed).await;
            with_timeout("the end, later", tcp.clone().wait_until_closed()).await;
            let mut all = Vec::new();
            let read = with_timeout("all of it", tcp.read_to_end(&mut all)).await;
            assert!(if breaks { read.is_err() } else { all.len() == 2_000 }, "{read:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_for_the_end_keeps_nothing_from_who_reads() {
        let (mut tcp, mut other) = connected_pair().await;
        let mut closed = std::pin::pin!(tcp.clone().wait_until_closed());
        for length in [1, 7, 4_096, 100_000, 3_000_000, 1] {
            let sent = vec![7; length];
            let reading = async {
                let mut read = 0;
                while read < length {
                    assert!(futures_util::poll!(closed.as_mut()).is_pending());
                    let mut room = [0; 4_096];
                    read += tcp.read(&mut room).await.unwrap();
                }
            };
            with_timeout("all of it", async { tokio::join!(reading, async { other.write_all(&sent).await.unwrap() }) })
                .await;
        }
        let mut back = Vec::new();
        let writing = async {
            tcp.write_all(&vec![1; 5_000_000]).await.unwrap();
            tcp.shutdown().await.unwrap();
        };
        with_timeout("and back", async {
            tokio::join!(writing, async { other.read_to_end(&mut back).await.unwrap() })
        })
        .await;
        assert_eq!(back.len(), 5_000_000);
    }
}
