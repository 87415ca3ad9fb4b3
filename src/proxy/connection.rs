//! One client connection, from accept to close: which protocol, how patient, how it ends.

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

use super::body::Body;
use super::client_io::{Client, ClientIo, Impatience, Pace};
use super::headers::Origin;
use super::service;
use super::stream;
use super::tcp::Tcp;
use super::timer::LazyTimer;
use super::tls::{self, Agreed, LINGER, Socket};
use super::wakes::Holdable;
use super::worker::Worker;
use crate::model::refusal::Refusal;
use crate::state::tls::Acceptor;

/// What HTTP/2 with prior knowledge begins with.
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests one HTTP/2 connection may have at once.
const HTTP2_STREAMS: u32 = 256;
/// HTTP/2 streams that a client may open and reset again before they are looked at.
const HTTP2_RESETS: usize = 20;
/// HTTP/2 streams that a client may make the library reset, over the life of a connection.
const HTTP2_ERRORS: usize = 1024;
/// The largest piece of a body that is read at once. Room for it is made step by step, for clients that fill it; from
/// 64 to 256 KiB saves a large upload a sixth of its CPU, more saves nothing.
const READ_BUFFER: usize = 256 * 1024;

/// Serves a connection to its end; with TLS if there is an `acceptor`.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, acceptor: Option<Arc<Acceptor>>) {
    // Fails only on a socket that is closed already.
    let _ = stream.set_nodelay(true);
    let accepted = Instant::now();
    let _registered = poll_fn(|cx| Poll::Ready(worker.register(cx.waker().clone()))).await;
    let mut stream = match &acceptor {
        None => Socket::Plain(Tcp::new(stream)),
        // Large, and soon over.
        Some(acceptor) => match Box::pin(tls::accept(&worker, stream, acceptor, accepted.into())).await {
            Some(stream) => stream,
            None => return,
        },
    };
    let Some((preface, begun)) = read_preface(&worker, &mut stream, accepted).await else {
        return stream.end_writing();
    };
    let multiplexed = match stream.agreed() {
        Agreed::Nothing => preface.starts_with(HTTP2_PREFACE),
        agreed => agreed == Agreed::Http2,
    };
    let scheme = if stream.is_tls() { "https" } else { "http" };
    let pace = Pace::new(accepted, multiplexed);
    let client = Rc::new(Client {
        worker: worker.clone(),
        pace: pace.clone(),
        origin: Origin { address: text(peer.ip()), scheme: HeaderValue::from_static(scheme) },
        reset_at_end: Cell::new(false),
    });
    let io = ClientIo::new(stream, preface, begun, pace, worker.clone());
    if multiplexed { serve_http2(&client, io).await } else { serve_http1(&client, io).await }
}

/// Reads until it is clear whether the client speaks HTTP/2; returns what was read, and when it began. `None`: the
/// client left or said nothing for too long, or has not said enough and the worker drains.
async fn read_preface(worker: &Worker, stream: &mut Socket, accepted: Instant) -> Option<(Bytes, Instant)> {
    let (mut start, mut begun) = (BytesMut::new(), None);
    let mut patience = pin!(tokio::time::sleep_until((accepted + worker.shared.limits.header_read_timeout).into()));
    poll_fn(|cx| {
        loop {
            let read = match poll_start(stream, &mut start, cx) {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => break,
            };
            begun.get_or_insert_with(Instant::now);
            let compared = start.len().min(HTTP2_PREFACE.len());
            if read == 0 || compared == HTTP2_PREFACE.len() || start[..compared] != HTTP2_PREFACE[..compared] {
                return Poll::Ready(Some(()));
            }
        }
        // Whoever began and was too slow is told so, as one with a slow head.
        if patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(()));
        }
        if worker.draining.get() && start.is_empty() && tls::nothing_came(stream.tcp()) {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await?;
    Some((start.freeze(), begun?))
}

/// Reads more of what a connection begins with.
fn poll_start(stream: &mut Socket, start: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if start.capacity() == 0 {
        // Many connections are opened long before they are used: there is no buffer until something comes.
        ready!(stream.poll_readable(cx))?;
        start.reserve(8 * 1024);
    }
    pin!(stream.read_buf(start)).poll(cx)
}

async fn serve_http1(client: &Rc<Client>, io: ClientIo) {
    let limits = &client.worker.shared.limits;
    let mut builder = http1::Builder::new();
    builder.max_header_size(limits.max_header_bytes).max_buf_size(READ_BUFFER.max(limits.max_header_bytes));
    if limits.max_headers != 100 {
        // Up to the library's own default, headers are parsed without an allocation.
        builder.max_headers(limits.max_headers);
    }
    let for_service = client.clone();
    let handle = service_fn(move |request| service::handle(for_service.clone(), request));
    let mut left = pin!(io.tcp().clone().closed());
    let mut connection = builder.serve_connection(TokioIo::new(io), handle);
    let impatience = drive(client, &mut connection, |connection, cx| {
        if let Poll::Ready(ended) = Pin::new(connection).poll(cx) {
            return Poll::Ready(ended);
        }
        // The library sees the client leave where it reads. A body that waits to be read hides the end behind it.
        if client.pace.has_unread_body() { left.as_mut().poll(cx).map(Ok) } else { Poll::Pending }
    });
    let impatience = impatience.await;
    let stream = connection.into_parts().io.into_inner().into_stream();
    close(client, stream, impatience).await;
}

async fn serve_http2(client: &Rc<Client>, io: ClientIo) {
    let limits = &client.worker.shared.limits;
    let mut builder = http2::Builder::new(LocalExecutor { patience: limits.body_idle_timeout });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_pending_accept_reset_streams(HTTP2_RESETS)
        .max_local_error_reset_streams(HTTP2_ERRORS)
        // The library answers a head over this with a bare status; up to it, clients get a problem document.
        .max_header_list_size(u32::try_from(limits.max_header_bytes.saturating_mul(4)).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.keep_alive_timeout)
        .keep_alive_timeout(limits.body_idle_timeout);
    let for_service = client.clone();
    let handle = service_fn(move |request: http::Request<Incoming>| service::handle(for_service.clone(), request));
    let mut connection = builder.serve_connection(TokioIo::new(io), handle);
    drive(client, &mut connection, |connection, cx| Pin::new(connection).poll(cx)).await;
}

/// A connection that can be asked to finish what it does and close.
trait Graceful {
    fn finish_and_close(&mut self);
}

impl<S> Graceful for http1::Connection<TokioIo<ClientIo>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish_and_close(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<S> Graceful for http2::Connection<TokioIo<ClientIo>, S, LocalExecutor>
where
    S: hyper::service::HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
{
    fn finish_and_close(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Polls a connection to its end, while the client is neither idle nor slow for too long. Returns why it was cut short,
/// if it was.
async fn drive<C: Graceful, E>(
    client: &Client,
    connection: &mut C,
    mut poll: impl FnMut(&mut C, &mut Context<'_>) -> Poll<Result<(), E>>,
) -> Option<Impatience> {
    let (mut timer, mut finishing, mut wakes) = (LazyTimer::default(), None, Holdable::default());
    poll_fn(|cx| {
        let cx = &mut Context::from_waker(wakes.waker(cx.waker()));
        loop {
            if poll(connection, cx).is_ready() {
                return Poll::Ready(None);
            }
            // Only now: a request that had come before is one in flight.
            if client.worker.draining.get() && finishing.is_none() {
                finishing = Some(Instant::now());
                connection.finish_and_close();
                continue;
            }
            let Some((deadline, why)) = client.pace.deadline(&client.worker.shared.limits) else {
                return Poll::Pending;
            };
            // A client that has nothing in flight does not get to hold up the end.
            let deadline = match finishing {
                Some(since) if client.pace.is_idle() => deadline.min(since + LINGER),
                _ => deadline,
            };
            match timer.poll(cx, deadline) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if why == Impatience::Idle && finishing.is_none() => {
                    finishing = Some(Instant::now());
                    connection.finish_and_close();
                }
                Poll::Ready(()) => return Poll::Ready(Some(why)),
            }
        }
    })
    .await
}

/// Ends an HTTP/1 connection so that the client can tell how.
async fn close(client: &Client, mut stream: Socket, impatience: Option<Impatience>) {
    if impatience == Some(Impatience::Blocked) || client.reset_at_end.get() {
        let _ = SockRef::from(&**stream.tcp()).set_linger(Some(Duration::ZERO));
        return;
    }
    let last_words = async {
        if impatience == Some(Impatience::Head) {
            stream.write_all(&client.worker.unread(Refusal::HeadTimeout)).await?;
        }
        stream.shutdown().await?;
        if !client.pace.may_send() {
            return Ok(());
        }
        tls::read_rest(stream.tcp_mut()).await
    };
    let mut ending = pin!(tokio::time::timeout(LINGER, last_words));
    // The client is gone, or has had its time.
    let _ = (&mut ending).await;
}

fn text(address: IpAddr) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(address.to_canonical().to_string()))
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Runs the streams of an HTTP/2 connection on the connection's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor {
    /// How long a client may take nothing of an answer.
    patience: Duration,
}

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(stream::run(future, self.patience));
    }
}
