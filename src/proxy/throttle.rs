//! A body of an endpoint whose bandwidth is limited: each piece waits for its time, and is held meanwhile; nothing more is
//! read, so that whoever sends it is slowed down too.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;

use super::timer::LazyTimer;
use crate::state::bandwidth::Limit;

/// Holds one piece until its time.
pub(super) struct Throttle {
    limit: Arc<Limit>,
    held: Option<(Frame<Bytes>, Instant)>,
    timer: LazyTimer,
}

impl Throttle {
    pub(super) fn new(limit: Arc<Limit>) -> Self {
        Self { limit, held: None, timer: LazyTimer::default() }
    }

    /// Takes a piece, which [`Throttle::poll`] gives when it is its time. Returns how long that is.
    pub(super) fn hold(&mut self, frame: Frame<Bytes>) -> Duration {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let wait = self.limit.live(bytes);
        self.held = Some((frame, Instant::now() + wait));
        wait
    }

    /// The piece that is held, when it is its time; `None`: there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some((_, until)) = &self.held
            && *until > Instant::now()
        {
            ready!(self.timer.poll(cx, *until));
        }
        Poll::Ready(self.held.take().map(|(frame, _)| frame))
    }

    /// For how long the piece that is held would still have waited.
    pub(super) fn rest(&self) -> Duration {
        self.held.as_ref().map_or(Duration::ZERO, |(_, until)| until.saturating_duration_since(Instant::now()))
    }

    /// Bytes that are held; `None`: there is no piece.
    pub(super) fn held(&self) -> Option<u64> {
        let (frame, _) = self.held.as_ref()?;
        Some(frame.data_ref().map_or(0, |data| data.len() as u64))
    }
}
