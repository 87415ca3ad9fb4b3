//! Throttles a body of an endpoint with a bandwidth limit. Each chunk is held until its release time. Nothing more is
//! read meanwhile, so the sender is slowed down too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::futures::OwnedNotified;

use super::timer::LazyTimer;
use crate::policy::bandwidth::QueuePosition;
use crate::state::bandwidth::BandwidthLimit;

/// Holds one chunk until its release time.
pub(super) struct Throttle {
    limit: Arc<BandwidthLimit>,
    held_frame: Option<HeldFrame>,
    /// The delay of the chunks before.
    previous_delay: Duration,
    timer: LazyTimer,
}

struct HeldFrame {
    frame: Frame<Bytes>,
    position: QueuePosition,
    held_since: Instant,
    /// The release time if the limit does not change.
    release_at: Instant,
    /// Completes when the limit changes; present while the chunk is held.
    limit_change: Option<Pin<Box<OwnedNotified>>>,
}

impl Throttle {
    pub(super) fn new(limit: Arc<BandwidthLimit>) -> Self {
        Self { limit, held_frame: None, previous_delay: Duration::ZERO, timer: LazyTimer::default() }
    }

    /// Takes a chunk, which [`Throttle::poll`] returns at its release time.
    pub(super) fn hold_frame(&mut self, frame: Frame<Bytes>) {
        let position = self.limit.add_live_bytes(frame.data_ref().map_or(0, |data| data.len() as u64));
        let held_since = Instant::now();
        self.held_frame = Some(HeldFrame {
            frame,
            position,
            held_since,
            release_at: held_since + self.limit.remaining_wait(position),
            limit_change: None,
        });
    }

    /// Returns the held chunk at its release time; `None` if there is none.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(held) = &mut self.held_frame
            && held.release_at > held.held_since
        {
            held.poll_limit_change(&self.limit, cx);
            if held.release_at > Instant::now() {
                ready!(self.timer.poll(cx, held.release_at));
            }
        }
        self.previous_delay = self.total_delay();
        Poll::Ready(self.held_frame.take().map(|held| held.frame))
    }

    /// Returns the delay of all chunks, including what the held chunk will have.
    pub(super) fn total_delay(&self) -> Duration {
        self.previous_delay
            + self.held_frame.as_ref().map_or(Duration::ZERO, |held| held.release_at.duration_since(held.held_since))
    }

    /// Returns the delay of all chunks until now.
    pub(super) fn elapsed_delay(&self) -> Duration {
        let rest = |held: &HeldFrame| held.release_at.saturating_duration_since(Instant::now());
        self.total_delay().saturating_sub(self.held_frame.as_ref().map_or(Duration::ZERO, rest))
    }

    /// Returns the number of held bytes; `None` if no chunk is held.
    pub(super) fn held_bytes(&self) -> Option<u64> {
        let held = self.held_frame.as_ref()?;
        Some(held.frame.data_ref().map_or(0, |data| data.len() as u64))
    }
}

impl HeldFrame {
    /// Updates the release time after a change of the limit. The task is woken at the next change.
    fn poll_limit_change(&mut self, limit: &BandwidthLimit, cx: &mut Context<'_>) {
        loop {
            let is_new = self.limit_change.is_none();
            let changed = self.limit_change.get_or_insert_with(|| Box::pin(limit.wait_for_change()));
            if changed.as_mut().poll(cx).is_pending() {
                if is_new {
                    self.release_at = Instant::now() + limit.remaining_wait(self.position);
                }
                return;
            }
            self.limit_change = None;
        }
    }
}
