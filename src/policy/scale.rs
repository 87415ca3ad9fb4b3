//! Decides how many replicas a deployment should have, once per interval, from what was in flight.
//!
//! Demand is the number of requests that replicas are asked to process at a time: requests in flight averaged over
//! time, and, where requests are queued or rejected, what is missing to the work of all arrivals ([`history`]). The
//! desired replicas can process the demand at the target utilization.
//!
//! Replicas are added at once, and removed only after the stabilization window has asked for no more. An increase must
//! exceed noise: random arrivals fluctuate, and the headroom between the target and 100 % absorbs that. [`history`]
//! separates noise from change; `docs/design/scaling.md` derives the statistics.

use std::time::{Duration, Instant};

pub mod history;
pub mod tally;

use crate::model::endpoint::TargetUtilization;
use history::{DemandEstimate, DemandHistory};

/// The stabilization window: the number of intervals that must have asked for no more before replicas are removed.
pub const STABILIZATION_INTERVALS: u32 = 20;
/// The shortest stabilization window.
pub const MIN_STABILIZATION_WINDOW: Duration = Duration::from_secs(60);

/// What happened in a deployment in one interval. Means are over its time, rates per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signals {
    /// Mean number of requests in flight.
    pub busy: f64,
    /// Mean number of queued requests.
    pub queued: f64,
    /// Arrivals per second, including rejected requests.
    pub arrived_per_second: f64,
    /// Requests per second that were rejected for want of a slot.
    pub rejected_per_second: f64,
    /// Mean time in seconds that a request holds a slot; that of earlier intervals if none ended in this one; 0 if
    /// unknown.
    pub service_seconds: f64,
    /// Sum of the times for which requests held a slot that ended in the interval, divided by the length of the
    /// interval.
    pub work: f64,
    /// As `work`, for the squares of these times, in seconds.
    pub service_time_squares: f64,
    /// The number of queued requests at the end of the interval.
    pub waiting: usize,
    /// Whether no replica took requests at the beginning or at the end of the interval.
    pub is_cold: bool,
}

impl Signals {
    /// Returns outstanding requests divided by `slots`; `None` without slots.
    pub fn utilization(&self, slots: f64) -> Option<f64> {
        (slots > 0.0).then(|| (self.busy + self.queued) / slots)
    }
}

/// Why this number of replicas is desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalingReason {
    /// The number is right.
    AtTarget,
    /// Demand asks for more.
    MoreDemand,
    /// The stabilization window has asked for fewer.
    LessDemand,
    /// Fewer would do, but the stabilization window has asked for more or is not over.
    StabilizationWindow,
    /// The limit is `minInstances`.
    Minimum,
    /// The limit is `maxInstances`.
    Maximum,
    /// A request is queued and there is no replica.
    ColdStart,
    /// No request has come for `idleBeforeZero`.
    Idle,
}

impl ScalingReason {
    /// Returns the reason as in metrics and in `/api/endpoints`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtTarget => "at_target",
            Self::MoreDemand => "more_demand",
            Self::LessDemand => "less_demand",
            Self::StabilizationWindow => "stabilization_window",
            Self::Minimum => "minimum",
            Self::Maximum => "maximum",
            Self::ColdStart => "cold_start",
            Self::Idle => "idle",
        }
    }
}

/// Returns how many replicas there should be, and why, if there are `current` replicas `now`, including those that
/// still start. `per_replica` is the cap of a replica, `waiting` the number of queued requests.
pub fn decide_replicas(
    settings: &TargetUtilization,
    per_replica: u32,
    history: &DemandHistory,
    current: u32,
    waiting: usize,
    now: Instant,
) -> (u32, ScalingReason) {
    let each = f64::from(settings.target_percent) / 100.0 * f64::from(per_replica);
    // A whole number must not be rounded up because of an inexact division.
    let replicas = |demand: f64| (demand / each * (1.0 - 1e-5)).ceil().max(0.0) as u32;
    let DemandEstimate { likely, high } = history.estimate();
    let demanded = replicas(likely);
    let is_active = waiting > 0 || history.is_active();
    if current == 0 && is_active {
        return (demanded.clamp(settings.min_replicas.max(1), settings.max_replicas), ScalingReason::ColdStart);
    }
    if settings.min_replicas == 0 && !is_active && (current == 0 || history.idle_time(now) >= settings.idle_before_zero)
    {
        return (0, if current == 0 { ScalingReason::AtTarget } else { ScalingReason::Idle });
    }
    let least = settings.min_replicas.max(1);
    if current < least {
        return (least, ScalingReason::Minimum);
    }
    if current > settings.max_replicas {
        return (settings.max_replicas, ScalingReason::Maximum);
    }
    if demanded > current {
        let wanted = demanded.min(settings.max_replicas);
        return (wanted, if wanted == current { ScalingReason::Maximum } else { ScalingReason::MoreDemand });
    }
    let fewer = replicas(high).max(least);
    if fewer >= current {
        return (current, ScalingReason::AtTarget);
    }
    match history.highest_demand_within(MIN_STABILIZATION_WINDOW).map(|highest| fewer.max(replicas(highest))) {
        Some(fewer) if fewer < current => (fewer, ScalingReason::LessDemand),
        _ => (current, ScalingReason::StabilizationWindow),
    }
}

#[cfg(test)]
mod tests;
