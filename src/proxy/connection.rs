//! Serves one client connection from accept to close: protocol, timeouts, and end.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client_io::{ClientConnection, ClientIo, ClientTimeout, ConnectionActivity};
use super::headers::ForwardedInfo;
use super::http2_stream;
use super::response_body::ResponseBody;
use super::service;
use super::tcp::Tcp;
use super::timer::LazyTimer;
use super::tls::{self, LINGER_TIMEOUT, NegotiatedProtocol, Socket};
use super::wake_suppression::SuppressibleWaker;
use super::worker::Worker;
use crate::model::refusal::Refusal;
use crate::state::tls::Acceptor;

/// The connection preface of HTTP/2.
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest number of concurrent requests on an HTTP/2 connection.
const MAX_HTTP2_STREAMS: u32 = 256;
/// The largest number of HTTP/2 streams that a client may open and reset before they are processed.
const MAX_HTTP2_PENDING_RESETS: usize = 20;
/// The largest number of HTTP/2 streams that a client may make the library reset, over the life of a connection.
const MAX_HTTP2_LOCAL_RESETS: usize = 1024;
/// The largest buffer for one read of a body, in bytes. The library grows the buffer step by step, for clients that
/// fill it. Compared with 64 KiB, 256 KiB saves a sixth of the CPU of a large upload; more saves nothing.
const MAX_READ_BUFFER_BYTES: usize = 256 * 1024;

/// Serves a connection to its end, with TLS if there is an `acceptor`.
pub(super) async fn serve_connection(
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<Arc<Acceptor>>,
) {
    // This fails only on a socket that is closed already.
    let _ = stream.set_nodelay(true);
    let accepted = Instant::now();
    let _registered = poll_fn(|cx| Poll::Ready(worker.register_connection(cx.waker().clone()))).await;
    let mut stream = match &acceptor {
        None => Socket::Plain(Tcp::new(stream)),
        // The future is boxed because it is large and ends soon.
        Some(acceptor) => match Box::pin(tls::accept_tls(&worker, stream, acceptor, accepted.into())).await {
            Some(stream) => stream,
            None => return,
        },
    };
    let Some((preface, began_at)) = read_preface(&worker, &mut stream, accepted).await else {
        return stream.shutdown_write();
    };
    let is_multiplexed = match stream.negotiated_protocol() {
        NegotiatedProtocol::Unknown => preface.starts_with(HTTP2_PREFACE),
        protocol => protocol == NegotiatedProtocol::Http2,
    };
    let scheme = if stream.is_tls() { "https" } else { "http" };
    let activity = ConnectionActivity::new(accepted, is_multiplexed);
    let client = Rc::new(ClientConnection {
        worker: worker.clone(),
        activity: activity.clone(),
        forwarded_info: ForwardedInfo { address: address_header(peer.ip()), scheme: HeaderValue::from_static(scheme) },
        must_reset_on_close: Cell::new(false),
    });
    let io = ClientIo::new(stream, preface, began_at, activity, worker.clone());
    if is_multiplexed { serve_http2(&client, io).await } else { serve_http1(&client, io).await }
}

/// Reads until it is clear whether the client speaks HTTP/2. Returns the data and when it began. Returns `None` if the
/// client left, sent nothing for too long, or has not sent enough when the worker drains.
async fn read_preface(worker: &Worker, stream: &mut Socket, accepted: Instant) -> Option<(Bytes, Instant)> {
    let (mut start, mut began_at) = (BytesMut::new(), None);
    let mut timeout = pin!(tokio::time::sleep_until((accepted + worker.shared.limits.header_read_timeout).into()));
    poll_fn(|cx| {
        loop {
            let read = match poll_read_preface(stream, &mut start, cx) {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => break,
            };
            began_at.get_or_insert_with(Instant::now);
            let compared = start.len().min(HTTP2_PREFACE.len());
            if read == 0 || compared == HTTP2_PREFACE.len() || start[..compared] != HTTP2_PREFACE[..compared] {
                return Poll::Ready(Some(()));
            }
        }
        // A client that began and was too slow is answered like one with a slow head.
        if timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(()));
        }
        if worker.is_draining.get() && start.is_empty() && tls::has_no_data(stream.tcp()) {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await?;
    Some((start.freeze(), began_at?))
}

/// Reads more of the beginning of a connection.
fn poll_read_preface(stream: &mut Socket, start: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if start.capacity() == 0 {
        // Many connections are opened long before they are used, so there is no buffer until data arrives.
        ready!(stream.poll_readable(cx))?;
        start.reserve(8 * 1024);
    }
    pin!(stream.read_buf(start)).poll(cx)
}

async fn serve_http1(client: &Rc<ClientConnection>, io: ClientIo) {
    let limits = &client.worker.shared.limits;
    let mut builder = http1::Builder::new();
    builder.max_header_size(limits.max_header_bytes).max_buf_size(MAX_READ_BUFFER_BYTES.max(limits.max_header_bytes));
    if limits.max_headers != 100 {
        // Up to the default of the library, headers are parsed without an allocation.
        builder.max_headers(limits.max_headers);
    }
    let for_service = client.clone();
    let handle = service_fn(move |request| service::handle(for_service.clone(), request));
    let mut client_closed = pin!(io.tcp().clone().wait_until_closed());
    let mut connection = builder.serve_connection(TokioIo::new(io), handle);
    let timeout = drive_connection(client, &mut connection, |connection, cx| {
        if let Poll::Ready(ended) = Pin::new(connection).poll(cx) {
            return Poll::Ready(ended);
        }
        // The library notices only while it reads that the client has left, and an unread body hides the end that
        // follows the body.
        if client.activity.has_unread_body() { client_closed.as_mut().poll(cx).map(Ok) } else { Poll::Pending }
    });
    let timeout = timeout.await;
    let stream = connection.into_parts().io.into_inner().into_stream();
    close_http1(client, stream, timeout).await;
}

async fn serve_http2(client: &Rc<ClientConnection>, io: ClientIo) {
    let limits = &client.worker.shared.limits;
    let mut builder = http2::Builder::new(LocalExecutor { stall_timeout: limits.body_idle_timeout });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_LOCAL_RESETS)
        // The library answers larger heads with a bare status. Up to this size, clients get a problem document.
        .max_header_list_size(u32::try_from(limits.max_header_bytes.saturating_mul(4)).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.keep_alive_timeout)
        .keep_alive_timeout(limits.body_idle_timeout);
    let for_service = client.clone();
    let handle = service_fn(move |request: http::Request<Incoming>| service::handle(for_service.clone(), request));
    let mut connection = builder.serve_connection(TokioIo::new(io), handle);
    drive_connection(client, &mut connection, |connection, cx| Pin::new(connection).poll(cx)).await;
}

/// A connection that can be asked to finish its requests and close.
trait GracefulConnection {
    fn start_graceful_shutdown(&mut self);
}

impl<S> GracefulConnection for http1::Connection<TokioIo<ClientIo>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn start_graceful_shutdown(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<S> GracefulConnection for http2::Connection<TokioIo<ClientIo>, S, LocalExecutor>
where
    S: hyper::service::HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
{
    fn start_graceful_shutdown(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Polls a connection to its end, unless the client exceeds a timeout. Returns that timeout.
async fn drive_connection<C: GracefulConnection, E>(
    client: &ClientConnection,
    connection: &mut C,
    mut poll: impl FnMut(&mut C, &mut Context<'_>) -> Poll<Result<(), E>>,
) -> Option<ClientTimeout> {
    let (mut timer, mut finishing_since, mut wakes) = (LazyTimer::default(), None, SuppressibleWaker::default());
    poll_fn(|cx| {
        let cx = &mut Context::from_waker(wakes.waker(cx.waker()));
        loop {
            if poll(connection, cx).is_ready() {
                return Poll::Ready(None);
            }
            // The drain is checked after the poll, so that a request that arrived before the drain is in progress.
            if client.worker.is_draining.get() && finishing_since.is_none() {
                finishing_since = Some(Instant::now());
                connection.start_graceful_shutdown();
                continue;
            }
            let Some((deadline, timeout)) = client.activity.next_deadline(&client.worker.shared.limits) else {
                return Poll::Pending;
            };
            // A client without a request in progress must not delay the end.
            let deadline = match finishing_since {
                Some(since) if client.activity.is_idle() => deadline.min(since + LINGER_TIMEOUT),
                _ => deadline,
            };
            match timer.poll(cx, deadline) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if timeout == ClientTimeout::Idle && finishing_since.is_none() => {
                    finishing_since = Some(Instant::now());
                    connection.start_graceful_shutdown();
                }
                Poll::Ready(()) => return Poll::Ready(Some(timeout)),
            }
        }
    })
    .await
}

/// Ends an HTTP/1 connection in a way that shows the client how it ended.
async fn close_http1(client: &ClientConnection, mut stream: Socket, timeout: Option<ClientTimeout>) {
    if timeout == Some(ClientTimeout::BlockedWrite) || client.must_reset_on_close.get() {
        let _ = SockRef::from(&**stream.tcp()).set_linger(Some(Duration::ZERO));
        return;
    }
    let closing = async {
        if timeout == Some(ClientTimeout::Head) {
            stream.write_all(&client.worker.reject_unparsed(Refusal::HeadTimeout)).await?;
        }
        stream.shutdown().await?;
        if !client.activity.can_still_send() {
            return Ok(());
        }
        tls::discard_to_end(stream.tcp_mut()).await
    };
    let mut ending = pin!(tokio::time::timeout(LINGER_TIMEOUT, closing));
    // After an error the client is gone, and after the timeout the connection is dropped: nothing is left to do.
    let _ = (&mut ending).await;
}

fn address_header(address: IpAddr) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(address.to_canonical().to_string()))
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Runs the streams of an HTTP/2 connection on the connection's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor {
    /// The longest time for which a client may accept nothing of a response.
    stall_timeout: Duration,
}

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(http2_stream::run(future, self.stall_timeout));
    }
}
