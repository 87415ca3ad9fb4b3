//! A body of an endpoint whose bandwidth is limited: each piece waits for its time, and is held meanwhile; nothing more is
//! read, so that whoever sends it is slowed down too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::futures::OwnedNotified;

use super::timer::LazyTimer;
use crate::policy::bandwidth::Place;
use crate::state::bandwidth::Limit;

/// Holds one piece until its time.
pub(super) struct Throttle {
    limit: Arc<Limit>,
    held: Option<Held>,
    /// For how long the pieces before had to wait.
    before: Duration,
    timer: LazyTimer,
}

struct Held {
    frame: Frame<Bytes>,
    place: Place,
    since: Instant,
    /// Its time, if the limit stays.
    until: Instant,
    /// Tells when it does not; of a piece that has begun to wait.
    changed: Option<Pin<Box<OwnedNotified>>>,
}

impl Throttle {
    pub(super) fn new(limit: Arc<Limit>) -> Self {
        Self { limit, held: None, before: Duration::ZERO, timer: LazyTimer::default() }
    }

    /// Takes a piece, which [`Throttle::poll`] gives when it is its time.
    pub(super) fn hold(&mut self, frame: Frame<Bytes>) {
        let place = self.limit.live(frame.data_ref().map_or(0, |data| data.len() as u64));
        let since = Instant::now();
        self.held = Some(Held { frame, place, since, until: since + self.limit.wait(place), changed: None });
    }

    /// The piece that is held, when it is its time; `None`: there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(held) = &mut self.held
            && held.until > held.since
        {
            held.follow(&self.limit, cx);
            if held.until > Instant::now() {
                ready!(self.timer.poll(cx, held.until));
            }
        }
        self.before = self.delayed();
        Poll::Ready(self.held.take().map(|held| held.frame))
    }

    /// For how long all has had to wait, and the piece that is held will have.
    pub(super) fn delayed(&self) -> Duration {
        self.before + self.held.as_ref().map_or(Duration::ZERO, |held| held.until.duration_since(held.since))
    }

    /// For how long all has had to wait until now.
    pub(super) fn waited(&self) -> Duration {
        let rest = |held: &Held| held.until.saturating_duration_since(Instant::now());
        self.delayed().saturating_sub(self.held.as_ref().map_or(Duration::ZERO, rest))
    }

    /// Bytes that are held; `None`: there is no piece.
    pub(super) fn held(&self) -> Option<u64> {
        let held = self.held.as_ref()?;
        Some(held.frame.data_ref().map_or(0, |data| data.len() as u64))
    }
}

impl Held {
    /// Sees when its time is now; the task is woken when it changes again.
    fn follow(&mut self, limit: &Limit, cx: &mut Context<'_>) {
        loop {
            let is_new = self.changed.is_none();
            let changed = self.changed.get_or_insert_with(|| Box::pin(limit.changed()));
            if changed.as_mut().poll(cx).is_pending() {
                if is_new {
                    self.until = Instant::now() + limit.wait(self.place);
                }
                return;
            }
            self.changed = None;
        }
    }
}
