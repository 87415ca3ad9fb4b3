//! One client connection, from accept to close: which protocol, how patient, how it ends.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
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
use super::timer::LazyTimer;
use super::wakes::Holdable;
use super::worker::Worker;
use crate::model::refusal::Refusal;

/// How long a closed connection is still read, so that the client gets to see our last answer before a reset.
const LINGER: Duration = Duration::from_secs(2);
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
/// Of what is read only to be thrown away.
const UNREAD_BUFFER: usize = 64 * 1024;

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    // Fails only on a socket that is closed already.
    let _ = stream.set_nodelay(true);
    let accepted = Instant::now();
    let _registered = poll_fn(|cx| Poll::Ready(worker.register(cx.waker().clone()))).await;
    let Some((preface, begun)) = read_preface(&worker, &stream).await else { return };
    let multiplexed = preface.starts_with(HTTP2_PREFACE);
    let pace = Pace::new(accepted, multiplexed);
    let client = Rc::new(Client {
        worker: worker.clone(),
        pace: pace.clone(),
        origin: Origin { address: text(peer.ip()), scheme: HeaderValue::from_static("http") },
        reset_at_end: Cell::new(false),
    });
    let io = ClientIo::new(stream, preface, begun, pace, worker.clone());
    if multiplexed { serve_http2(&client, io).await } else { serve_http1(&client, io).await }
}

/// Reads until it is clear whether the client speaks HTTP/2; returns what was read, and when it began. `None`: the
/// client left or said nothing for too long, or has not said enough and the worker drains.
async fn read_preface(worker: &Worker, stream: &TcpStream) -> Option<(Bytes, Instant)> {
    let (mut start, mut begun) = (BytesMut::new(), None);
    let reading = async {
        // Many connections are opened long before they are used: there is no buffer until something comes.
        stream.readable().await.ok()?;
        start.reserve(8 * 1024);
        loop {
            let ended = match stream.try_read_buf(&mut start) {
                Ok(read) => read == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.readable().await.ok()?;
                    continue;
                }
                Err(_) => return None,
            };
            begun.get_or_insert_with(Instant::now);
            let compared = start.len().min(HTTP2_PREFACE.len());
            if ended || compared == HTTP2_PREFACE.len() || start[..compared] != HTTP2_PREFACE[..compared] {
                return Some(());
            }
        }
    };
    let in_time = async {
        let mut reading = pin!(tokio::time::timeout(worker.shared.limits.header_read_timeout, reading));
        let read = poll_fn(|cx| match reading.as_mut().poll(cx) {
            // Whoever began and was too slow is told so, as one with a slow head.
            Poll::Ready(Err(_)) => Poll::Ready(Some(())),
            Poll::Ready(Ok(read)) => Poll::Ready(read),
            Poll::Pending if worker.draining.get() && nothing_came(stream) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        read.await
    };
    in_time.await?;
    Some((start.freeze(), begun?))
}

/// Asks the system itself: the runtime does not know yet what came on a connection that is new to it.
fn nothing_came(stream: &TcpStream) -> bool {
    SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]).is_err()
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
    let mut connection = builder.serve_connection(TokioIo::new(io), handle);
    let impatience = drive(client, &mut connection, |connection, cx| Pin::new(connection).poll(cx)).await;
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
async fn close(client: &Client, mut stream: TcpStream, impatience: Option<Impatience>) {
    if impatience == Some(Impatience::Blocked) || client.reset_at_end.get() {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
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
        // A close with unread bytes resets the connection, and the client may lose what we said last.
        let mut unread = BytesMut::with_capacity(UNREAD_BUFFER);
        while stream.read_buf(&mut unread).await? > 0 {
            unread.clear();
        }
        io::Result::Ok(())
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
