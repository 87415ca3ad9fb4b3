//! TLS under a connection: the handshake, and a socket that has it or not.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustls::HandshakeKind;
use socket2::SockRef;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::tcp::Tcp;
use super::worker::Worker;
use crate::model::refusal::Refusal;
use crate::state::tls::{Acceptor, Connector};

/// How long a closed connection is still read, so that the other side gets to see our last words before a reset.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// Of what is read only to be thrown away.
const UNREAD_BUFFER: usize = 64 * 1024;
/// What ALPN calls HTTP/2.
const H2: &[u8] = b"h2";

/// A socket, with TLS on it or without.
pub(super) enum Socket {
    Plain(Tcp),
    Tls(Box<TlsStream<Wire>>),
}

/// The socket under TLS.
pub(super) struct Wire {
    tcp: Tcp,
    /// Whether anything was written since [`Socket::forget_writes`]: TLS may fail after some of a piece has gone.
    has_written: bool,
}

impl Wire {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp: Tcp::new(tcp), has_written: false }
    }
}

/// What the protocols of a connection were settled as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreed {
    /// The client's first bytes tell.
    Nothing,
    Http1,
    Http2,
}

/// Does a client's handshake. `None`: it failed, took too long, or had not begun when the worker drained.
pub(super) async fn accept(
    worker: &Worker,
    mut tcp: TcpStream,
    acceptor: &Acceptor,
    accepted: Instant,
) -> Option<Socket> {
    let counted = &acceptor.handshakes;
    let deadline = accepted + acceptor.timeout;
    let Ok(first) = tokio::time::timeout_at(deadline, first_byte(worker, &tcp)).await else {
        counted.timed_out.inc();
        return None;
    };
    // A method: TLS begins with a small number.
    if first?.is_ascii_uppercase() {
        counted.plain_http.inc();
        let words =
            worker.unread(Refusal::BadRequest("this port speaks HTTPS, and the request is plain HTTP; use https://"));
        let _ = tokio::time::timeout(LINGER, last_words(&mut tcp, &words)).await;
        return None;
    }
    let handshake = TlsAcceptor::from(acceptor.config()).accept(Wire::new(tcp)).into_fallible();
    match tokio::time::timeout_at(deadline, handshake).await {
        Ok(Ok(stream)) => {
            let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            if resumed {
                counted.resumed.inc()
            } else {
                counted.full.inc()
            }
            Some(Socket::Tls(Box::new(stream.into())))
        }
        Ok(Err((error, mut wire))) => {
            counted.failed.inc();
            tracing::debug!(%error, "no TLS handshake");
            // The alert that says why is written; a reset would take it away.
            let _ = tokio::time::timeout(LINGER, last_words(&mut wire.tcp, &[])).await;
            None
        }
        Err(_) => {
            counted.timed_out.inc();
            None
        }
    }
}

/// Waits for the client to say something; `None`: it left, or had said nothing when the worker drained.
async fn first_byte(worker: &Worker, tcp: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    std::future::poll_fn(|cx| {
        let mut buf = ReadBuf::new(&mut byte);
        match tcp.poll_peek(cx, &mut buf) {
            Poll::Ready(peeked) => Poll::Ready(peeked.ok().filter(|length| *length > 0)),
            Poll::Pending if worker.draining.get() && nothing_came(tcp) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    Some(byte[0])
}

/// Asks the system itself: the runtime does not know yet what came on a connection that is new to it.
pub(super) fn nothing_came(tcp: &TcpStream) -> bool {
    SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]).is_err()
}

/// Says the last, and reads until the other side has closed too: a close with unread bytes resets the connection, and
/// what was said is lost.
async fn last_words(tcp: &mut (impl AsyncRead + AsyncWrite + Unpin), words: &[u8]) -> io::Result<()> {
    tcp.write_all(words).await?;
    tcp.shutdown().await?;
    read_rest(tcp).await
}

/// Reads what nobody wants, to its end.
pub(super) async fn read_rest(tcp: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut unread = BytesMut::with_capacity(UNREAD_BUFFER);
    while tcp.read_buf(&mut unread).await? > 0 {
        unread.clear();
    }
    Ok(())
}

/// Does the handshake with the replica at `address`.
///
/// # Errors
/// When it fails: the replica is not what it should be, or does not speak TLS.
pub(super) async fn connect(connector: &Connector, address: &str, tcp: TcpStream) -> io::Result<Socket> {
    let unfit = || io::Error::other("its host is no name that can be in a certificate; set upstreamTls.serverName");
    let name = connector.name_for(address).ok_or_else(unfit)?;
    let stream = TlsConnector::from(connector.config.clone()).connect(name, Wire::new(tcp)).await?;
    Ok(Socket::Tls(Box::new(stream.into())))
}

/// Whether the other side has ended TLS because of our certificate, or for want of one.
pub(super) fn is_denial(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let Some(rustls::Error::AlertReceived(alert)) = cause else { return false };
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

impl Socket {
    /// The socket itself.
    pub(super) fn tcp(&self) -> &Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// The socket itself; what TLS had still to say is not said.
    pub(super) fn tcp_mut(&mut self) -> &mut Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &mut tls.get_mut().0.tcp,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Which protocol the handshake settled.
    pub(super) fn agreed(&self) -> Agreed {
        let Self::Tls(tls) = self else { return Agreed::Nothing };
        match tls.get_ref().1.alpn_protocol() {
            None => Agreed::Nothing,
            Some(H2) => Agreed::Http2,
            Some(_) => Agreed::Http1,
        }
    }

    /// Ready when there is something to read, or an end; takes no memory for that.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => Pin::new(tls).poll_fill_buf(cx).map_ok(drop),
        }
    }

    /// Sends nothing more, but can still be read.
    pub(super) fn end_writing(&mut self) {
        if let Self::Tls(tls) = self {
            // Says first that this is the end; what there is no room for now will never be read.
            let _ = Pin::new(tls).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        // Fails only when the connection is gone already.
        let _ = SockRef::from(&**self.tcp()).shutdown(Shutdown::Write);
    }

    /// From here on [`Socket::has_written`] counts.
    pub(super) fn forget_writes(&mut self) {
        if let Self::Tls(tls) = self {
            tls.get_mut().0.has_written = false;
        }
    }

    /// Whether anything can have gone out although a write failed.
    pub(super) fn has_written(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.get_ref().0.has_written,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs));
        this.has_written |= written.is_ok();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
