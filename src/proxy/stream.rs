//! The task of one HTTP/2 stream, which ends when its client has taken nothing of its answer for too long.
//!
//! HTTP/1 has one answer at a time: a socket that takes nothing says it. A stream's window can be closed while its
//! connection is busy. What tells then is that the answer's body has given a piece and is not asked for the next one.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::timer::LazyTimer;

tokio::task_local! {
    /// Since when a piece of the answer waits to be taken.
    static GIVEN: Cell<Option<Instant>>;
}

/// The client has taken what it was given: the answer's body is asked for its next piece.
pub(super) fn taken() {
    // Outside of a stream, in HTTP/1, nobody asks.
    let _ = GIVEN.try_with(|given| given.set(None));
}

/// A piece of the answer was given.
pub(super) fn given() {
    let _ = GIVEN.try_with(|given| given.set(Some(Instant::now())));
}

/// Runs `stream` to its end, or until its client has taken nothing for `patience`: dropping it resets the stream.
pub(super) async fn run(stream: impl Future, patience: Duration) {
    let mut stream = pin!(stream);
    let mut timer = LazyTimer::default();
    let patient = poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        GIVEN.with(Cell::get).map_or(Poll::Pending, |since| timer.poll(cx, since + patience))
    });
    GIVEN.scope(Cell::new(None), patient).await;
}
