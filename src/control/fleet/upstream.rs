//! The connection to the coordinator, where that is another router.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::peers::{self, Event, Secret};
use super::wire::Opening;
use crate::control::certificates::upstream;
use crate::model::tls::UpstreamTls;
use crate::policy::fleet::{MemberId, ToCoordinator};

/// Between two attempts: at first, and at most.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Connects, and connects again.
pub(super) struct Upstream {
    id: MemberId,
    secret: Secret,
    tls: Option<UpstreamTls>,
    events: mpsc::Sender<Event>,
    /// Of the last connection.
    number: u64,
    /// To whom.
    coordinator: Option<MemberId>,
    line: Line,
    /// Attempts since the last that came to anything.
    failures: u32,
    /// Whether it was said since then that there is none.
    is_said: bool,
}

enum Line {
    /// Until then.
    Rests(Instant),
    Begins(AbortHandle),
    Open(mpsc::Sender<ToCoordinator>),
}

impl Upstream {
    pub(super) fn new(id: MemberId, secret: Secret, tls: Option<UpstreamTls>, events: mpsc::Sender<Event>) -> Self {
        let line = Line::Rests(Instant::now());
        Self { id, secret, tls, events, number: 0, coordinator: None, line, failures: 0, is_said: false }
    }

    /// The coordinator is this one. Returns whether a session has ended by that: `is_lost` is whether the one there is is
    /// of no use.
    pub(super) fn follow(&mut self, coordinator: Option<&MemberId>, is_lost: bool, now: Instant) -> bool {
        let was_open = matches!(self.line, Line::Open(_));
        if self.coordinator.as_ref() != coordinator {
            self.end();
            self.coordinator = coordinator.cloned();
            self.is_well();
        } else if was_open && is_lost {
            self.end();
            self.rest(now);
        }
        if let (Some(coordinator), Line::Rests(until)) = (&self.coordinator, &self.line)
            && *until <= now
        {
            self.number += 1;
            let opening = Opening { secret: self.secret.text(), member: self.id.clone() };
            let name = coordinator.name.clone();
            // Each time anew: certificates are replaced while a router runs.
            let connect = |tls| peers::connect(name, tls, opening, self.number, self.events.clone());
            let of_none = |_: &str| Err("peers have no Secret".to_owned());
            match self.tls.as_ref().map(|tls| upstream::connector(tls, of_none)).transpose() {
                Ok(tls) => self.line = Line::Begins(tokio::spawn(connect(tls)).abort_handle()),
                Err((field, what)) => drop(self.lost(self.number, Some(format!("fleet.peer.tls.{field} {what}")), now)),
            }
        }
        was_open && !matches!(self.line, Line::Open(_))
    }

    /// There is none any more, if there was one.
    pub(super) fn end(&mut self) {
        if let Line::Begins(task) = &self.line {
            task.abort();
        }
        // What is still on its way from there is of a number that is not this one's.
        self.number += 1;
        self.line = Line::Rests(Instant::now());
    }

    /// The connection is there. Returns whether it is still of use.
    pub(super) fn connected(&mut self, number: u64, to: mpsc::Sender<ToCoordinator>) -> bool {
        let is_current = self.is_current(number);
        if is_current {
            self.line = Line::Open(to);
        }
        is_current
    }

    /// Something was heard that is of use: the next attempt comes soon.
    pub(super) fn is_well(&mut self) {
        (self.failures, self.is_said) = (0, false);
    }

    /// Whether that is the connection of now.
    pub(super) fn is_current(&self, number: u64) -> bool {
        self.number == number
    }

    /// The connection has ended, as it does when another router coordinates, or, for this reason, there is none. Returns
    /// whether it was that of now.
    pub(super) fn lost(&mut self, number: u64, why: Option<String>, now: Instant) -> bool {
        if !self.is_current(number) {
            return false;
        }
        match why {
            None if self.failures == 0 => {
                tracing::info!("the connection to the coordinator has ended; what is held is used until it expires");
            }
            Some(why) if !std::mem::replace(&mut self.is_said, true) => {
                tracing::warn!(why, "no connection to the coordinator; what is held is used until it expires");
            }
            _ => {}
        }
        self.rest(now);
        true
    }

    /// Says something. Returns whether it is heard; where it is not the connection is of no use any more.
    pub(super) fn say(&mut self, message: ToCoordinator) -> bool {
        let is_heard = matches!(&self.line, Line::Open(to) if to.try_send(message).is_ok());
        if !is_heard && matches!(self.line, Line::Open(_)) {
            self.end();
        }
        is_heard
    }

    /// When to look again, if nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.line {
            Line::Rests(until) if self.coordinator.is_some() => Some(*until),
            _ => None,
        }
    }

    fn rest(&mut self, now: Instant) {
        let most = (BACK_OFF[0] * 2_u32.saturating_pow(self.failures.min(10))).min(BACK_OFF[1]);
        self.failures += 1;
        // Not all members at the same moment.
        self.line = Line::Rests(now + most.mul_f64(rand::rng().random_range(0.5..1.0)));
    }
}
