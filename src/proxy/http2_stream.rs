//! The task of one HTTP/2 stream, which ends when its client has accepted nothing of its response for too long.
//!
//! HTTP/1 has one response at a time, and a blocked socket shows a slow client. In HTTP/2, the window of a stream can
//! be closed while its connection is busy. What shows a slow client then is that the response body has returned a chunk
//! and is not polled for the next one.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::timer::LazyTimer;

tokio::task_local! {
    /// When the response body returned a chunk that the client has not accepted yet; `None` if it has accepted all.
    static CHUNK_PENDING_SINCE: Cell<Option<Instant>>;
}

/// Records that the client has accepted the last chunk, because the response body is polled for the next one.
pub(super) fn chunk_polled() {
    // Outside of a stream, in HTTP/1, there is nothing to record.
    let _ = CHUNK_PENDING_SINCE.try_with(|pending_since| pending_since.set(None));
}

/// Records that a chunk of the response was returned.
pub(super) fn chunk_sent() {
    let _ = CHUNK_PENDING_SINCE.try_with(|pending_since| pending_since.set(Some(Instant::now())));
}

/// Runs `stream` to its end, or until its client has accepted nothing for `stall_timeout`. Dropping the future resets
/// the stream.
pub(super) async fn run(stream: impl Future, stall_timeout: Duration) {
    let mut stream = pin!(stream);
    let mut timer = LazyTimer::default();
    let guarded = poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        CHUNK_PENDING_SINCE.with(Cell::get).map_or(Poll::Pending, |since| timer.poll(cx, since + stall_timeout))
    });
    CHUNK_PENDING_SINCE.scope(Cell::new(None), guarded).await;
}
