//! TLS under a connection: the handshake, and a socket with or without TLS.

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

/// How long a closed connection is still read, so that the peer can receive the last data before a reset.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of the buffer for data that is read to be discarded.
const DISCARD_BUFFER_BYTES: usize = 64 * 1024;
/// The ALPN name of HTTP/2.
const ALPN_HTTP2: &[u8] = b"h2";

/// A socket with or without TLS.
pub(super) enum Socket {
    Plain(Tcp),
    Tls(Box<TlsStream<TlsTransport>>),
}

/// The socket under TLS.
pub(super) struct TlsTransport {
    tcp: Tcp,
    /// Whether anything was written since [`Socket::reset_has_written`]. TLS may fail after a part of a buffer has been
    /// sent.
    has_written: bool,
}

impl TlsTransport {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp: Tcp::new(tcp), has_written: false }
    }
}

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NegotiatedProtocol {
    /// ALPN did not decide; the first bytes of the client will.
    Unknown,
    Http1,
    Http2,
}

/// Performs the handshake with a client. Returns `None` if it failed, took too long, or had not begun when the worker
/// drained.
pub(super) async fn accept_tls(
    worker: &Worker,
    mut tcp: TcpStream,
    acceptor: &Acceptor,
    accepted: Instant,
) -> Option<Socket> {
    let metrics = &acceptor.handshake_metrics;
    let deadline = accepted + acceptor.timeout;
    let Ok(first) = tokio::time::timeout_at(deadline, peek_first_byte(worker, &tcp)).await else {
        metrics.timed_out.inc();
        return None;
    };
    // This is a method of HTTP. A TLS record begins with a small number.
    if first?.is_ascii_uppercase() {
        metrics.plain_http.inc();
        let response = worker.reject_unparsed(Refusal::BadRequest(
            "this port speaks HTTPS, and the request is plain HTTP; use https://",
        ));
        let _ = tokio::time::timeout(LINGER_TIMEOUT, write_and_close(&mut tcp, &response)).await;
        return None;
    }
    let handshake = TlsAcceptor::from(acceptor.config()).accept(TlsTransport::new(tcp)).into_fallible();
    match tokio::time::timeout_at(deadline, handshake).await {
        Ok(Ok(stream)) => {
            let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            if is_resumed {
                metrics.resumed.inc()
            } else {
                metrics.full.inc()
            }
            Some(Socket::Tls(Box::new(stream.into())))
        }
        Ok(Err((error, mut transport))) => {
            metrics.failed.inc();
            tracing::debug!(%error, "TLS handshake failed");
            // The alert that gives the reason has been written. A reset would discard it.
            let _ = tokio::time::timeout(LINGER_TIMEOUT, write_and_close(&mut transport.tcp, &[])).await;
            None
        }
        Err(_) => {
            metrics.timed_out.inc();
            None
        }
    }
}

/// Waits for the first byte of the client. Returns `None` if the client left, or had sent nothing when the worker
/// drained.
async fn peek_first_byte(worker: &Worker, tcp: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    std::future::poll_fn(|cx| {
        let mut buf = ReadBuf::new(&mut byte);
        match tcp.poll_peek(cx, &mut buf) {
            Poll::Ready(peeked) => Poll::Ready(peeked.ok().filter(|length| *length > 0)),
            Poll::Pending if worker.is_draining.get() && has_no_data(tcp) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    Some(byte[0])
}

/// Asks the kernel itself, because the runtime does not know yet what has arrived on a new connection.
pub(super) fn has_no_data(tcp: &TcpStream) -> bool {
    SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]).is_err()
}

/// Writes the last data and reads until the peer has closed too. Closing a socket with unread data resets the
/// connection, and the written data is lost.
async fn write_and_close(tcp: &mut (impl AsyncRead + AsyncWrite + Unpin), response: &[u8]) -> io::Result<()> {
    tcp.write_all(response).await?;
    tcp.shutdown().await?;
    discard_to_end(tcp).await
}

/// Reads and discards everything up to the end.
pub(super) async fn discard_to_end(tcp: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut unread = BytesMut::with_capacity(DISCARD_BUFFER_BYTES);
    while tcp.read_buf(&mut unread).await? > 0 {
        unread.clear();
    }
    Ok(())
}

/// Performs the handshake with the replica at `address`.
///
/// # Errors
///
/// When the handshake fails: the replica's certificate is not valid, or the replica does not speak TLS.
pub(super) async fn connect_tls(connector: &Connector, address: &str, tcp: TcpStream) -> io::Result<Socket> {
    let invalid_name =
        || io::Error::other("its host is no name that can be in a certificate; set upstreamTls.serverName");
    let name = connector.server_name_for(address).ok_or_else(invalid_name)?;
    let stream = TlsConnector::from(connector.config.clone()).connect(name, TlsTransport::new(tcp)).await?;
    Ok(Socket::Tls(Box::new(stream.into())))
}

/// Returns whether the peer has ended TLS because of the router's certificate, or because there is none.
pub(super) fn is_certificate_rejection(error: &io::Error) -> bool {
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
    /// Returns the TCP socket.
    pub(super) fn tcp(&self) -> &Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// Returns the TCP socket. Data that TLS has not written yet is lost.
    pub(super) fn tcp_mut(&mut self) -> &mut Tcp {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &mut tls.get_mut().0.tcp,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Returns the protocol that the handshake negotiated.
    pub(super) fn negotiated_protocol(&self) -> NegotiatedProtocol {
        let Self::Tls(tls) = self else { return NegotiatedProtocol::Unknown };
        match tls.get_ref().1.alpn_protocol() {
            None => NegotiatedProtocol::Unknown,
            Some(ALPN_HTTP2) => NegotiatedProtocol::Http2,
            Some(_) => NegotiatedProtocol::Http1,
        }
    }

    /// Returns ready when there is data or the end to read. This needs no buffer.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => Pin::new(tls).poll_fill_buf(cx).map_ok(drop),
        }
    }

    /// Closes the sending side. Data can still be read.
    pub(super) fn shutdown_write(&mut self) {
        if let Self::Tls(tls) = self {
            // Writes the TLS close notification. If there is no room for it now, it is never sent.
            let _ = Pin::new(tls).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
        // Fails only when the connection is gone already.
        let _ = SockRef::from(&**self.tcp()).shutdown(Shutdown::Write);
    }

    /// Resets what [`Socket::has_written`] returns.
    pub(super) fn reset_has_written(&mut self) {
        if let Self::Tls(tls) = self {
            tls.get_mut().0.has_written = false;
        }
    }

    /// Returns whether anything may have been sent although a write failed.
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

impl AsyncRead for TlsTransport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsTransport {
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
