//! Streams for bodies that must be shared between threads.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;

/// A stream that only one task at a time can poll is as good as shared.
pub struct SyncStream<S>(pub Pin<Box<S>>);

impl<S: Stream> Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
