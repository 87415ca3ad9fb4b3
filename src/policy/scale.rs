//! How many replicas a deployment should have: decided once an interval, from what was in flight.
//!
//! Demand is what replicas are asked for at a time: requests in flight, over time; and where some wait or are turned away,
//! what is missing to what all that come would take ([`history`]). So many replicas are wanted that it is the target's
//! share of what they can take.
//!
//! More are asked for at once; fewer only when a minute has asked for no more. What is asked for at once must be more
//! than chance: requests that come at random are now more, now fewer, and the room between the target and 100 % is there
//! for that. [`history`] tells one from the other.

use std::time::{Duration, Instant};

pub mod history;
pub mod tally;

use crate::model::endpoint::Utilization;
use history::{Estimate, History};

/// Fewer are wanted only when so many intervals have asked for no more.
pub const INTERVALS_BEFORE_DOWN: u32 = 20;
/// And at least this long.
pub const LEAST_BEFORE_DOWN: Duration = Duration::from_secs(60);

/// What is known of one interval of a deployment. Means are over its time, rates by the second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signals {
    /// Requests in flight, their mean.
    pub busy: f64,
    /// Requests waiting, their mean.
    pub queued: f64,
    /// Requests that came, those turned away among them.
    pub arrived_per_second: f64,
    /// Requests turned away for want of a slot.
    pub rejected_per_second: f64,
    /// Mean time that a request holds a slot, in seconds; of earlier intervals where none ended in this one; 0: unknown.
    pub service_seconds: f64,
    /// Times for which requests held a slot that ended in the interval: their sum, by the interval's length.
    pub work: f64,
    /// The same of the squares of these times, in seconds.
    pub squares: f64,
    /// Requests that wait at its end.
    pub waiting: usize,
    /// Whether no replica took requests at its beginning or its end.
    pub is_cold: bool,
}

impl Signals {
    /// Requests in flight and waiting, of what `slots` can take; `None` without any.
    pub fn utilization(&self, slots: f64) -> Option<f64> {
        (slots > 0.0).then(|| (self.busy + self.queued) / slots)
    }
}

/// Why so many are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// As many as there are.
    Fits,
    /// Demand asks for more.
    MoreDemand,
    /// The last minute has asked for fewer.
    LessDemand,
    /// Fewer would do, but the last minute has asked for more, or it is not over.
    Lingering,
    /// `minInstances`.
    Minimum,
    /// `maxInstances`.
    Maximum,
    /// A request waits, and there is no replica.
    ColdStart,
    /// Nobody has asked for `idleBeforeZero`.
    Idle,
}

impl Reason {
    /// As in metrics and in `/api/endpoints`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::MoreDemand => "more_demand",
            Self::LessDemand => "less_demand",
            Self::Lingering => "lingering",
            Self::Minimum => "minimum",
            Self::Maximum => "maximum",
            Self::ColdStart => "cold_start",
            Self::Idle => "idle",
        }
    }
}

/// How many replicas there should be, and why, where `now` there are `current`, those included that still start.
/// `per_replica`: requests that one takes at a time. `waiting`: requests that wait now.
pub fn decide(
    settings: &Utilization,
    per_replica: u32,
    history: &History,
    current: u32,
    waiting: usize,
    now: Instant,
) -> (u32, Reason) {
    let each = f64::from(settings.target_percent) / 100.0 * f64::from(per_replica);
    // What is a whole number but for rounding must not become one more.
    let replicas = |demand: f64| (demand / each * (1.0 - 1e-5)).ceil().max(0.0) as u32;
    let Estimate { likely, high } = history.estimate();
    let demanded = replicas(likely);
    let is_active = waiting > 0 || history.is_active();
    if current == 0 && is_active {
        return (demanded.clamp(settings.min.max(1), settings.max), Reason::ColdStart);
    }
    if settings.min == 0 && !is_active && (current == 0 || history.idle_for(now) >= settings.idle_before_zero) {
        return (0, if current == 0 { Reason::Fits } else { Reason::Idle });
    }
    let least = settings.min.max(1);
    if current < least {
        return (least, Reason::Minimum);
    }
    if current > settings.max {
        return (settings.max, Reason::Maximum);
    }
    if demanded > current {
        let wanted = demanded.min(settings.max);
        return (wanted, if wanted == current { Reason::Maximum } else { Reason::MoreDemand });
    }
    let fewer = replicas(high).max(least);
    if fewer >= current {
        return (current, Reason::Fits);
    }
    match history.highest_of(LEAST_BEFORE_DOWN).map(|highest| fewer.max(replicas(highest))) {
        Some(fewer) if fewer < current => (fewer, Reason::LessDemand),
        _ => (current, Reason::Lingering),
    }
}

#[cfg(test)]
mod tests;
