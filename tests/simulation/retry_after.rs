//! Checks that `retry-after` is accurate: compares what rejected clients were told with what they would have waited.
//!
//! The truth is the time until every queued request had been served or had left and a slot was free, if no further
//! request had arrived. The simulation knows it, because it knows how long every request takes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::QueuedRequest;
use crate::scenario::ServiceTime;
use crate::{Checked, MILLISECOND, SECOND, Time, ensure};

/// So many that their times add up to about as many means.
const MIN_QUEUED_FOR_MEAN: usize = 8;

/// What one client was told, and what came true.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryAfterSample {
    pub(crate) retry_after: Time,
    pub(crate) actual: ActualWait,
    pub(crate) queued: usize,
    pub(crate) slots: usize,
}

/// How long until a slot is free and nobody waits for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActualWait {
    pub(crate) wait: Time,
    /// Whether someone who waits leaves without a slot, or would, were it served only then.
    pub(crate) has_expired_requests: bool,
}

/// The truth at `now`: requests `in_flight` end at their times, and those who wait take their turns until their deadlines.
pub(crate) fn actual_wait(
    now: Time,
    in_flight: impl Iterator<Item = Time>,
    waiting: &[QueuedRequest],
    service: impl Fn(usize) -> Time,
) -> ActualWait {
    let mut slots: BinaryHeap<_> = in_flight.map(Reverse).collect();
    let mut some_leave = false;
    for waiter in waiting {
        let free = slots.peek().map_or(now, |Reverse(at)| *at);
        if free <= waiter.deadline {
            slots.pop();
            slots.push(Reverse(free + service(waiter.request)));
        } else {
            some_leave = true;
        }
    }
    let free = slots.peek().map_or(now, |Reverse(at)| *at);
    some_leave |= waiting.last().is_some_and(|last| last.deadline < free);
    ActualWait { wait: free - now, has_expired_requests: some_leave }
}

/// What was told in one run in which nothing changed: a mean cannot foresee a change, nor anything before it is one.
///
/// # Errors
/// Where `retry-after` is not honest within a factor of two.
pub(crate) fn check_retry_after(told: &[RetryAfterSample], service: ServiceTime) -> Checked {
    let told = &told[told.len() / 4..];
    let heavy_tailed = matches!(service, ServiceTime::HeavyTailed(_));
    let on_average = told.iter().filter(|told| match service {
        ServiceTime::Exponential(_) => true,
        // Slots that work in step come back in step: only whole rounds of them can be foreseen.
        ServiceTime::Constant(_) | ServiceTime::Bimodal(..) => told.queued >= told.slots,
        // Nothing foresees the rare request that takes as long as a hundred, unless it is one of many.
        ServiceTime::HeavyTailed(_) => told.queued >= told.slots.max(MIN_QUEUED_FOR_MEAN),
    });
    let (said, truth) =
        on_average.fold((0, 0), |(said, truth), told| (said + told.retry_after, truth + told.actual_wait_rounded()));
    ensure(said <= 2 * truth && truth <= 2 * said, || {
        format!("told to wait {:.2} times too long on average", said as f64 / truth as f64)
    })?;
    if let ServiceTime::Constant(_) = service {
        let foreseeable = |told: &RetryAfterSample| told.queued >= told.slots && !told.actual.has_expired_requests;
        let far_off = told.iter().find(|told| foreseeable(told) && !told.is_honest());
        return ensure(far_off.is_none(), || format!("each is foreseeable, but {far_off:?}"));
    }
    let of_many: Vec<_> = told.iter().filter(|told| told.queued >= MIN_QUEUED_FOR_MEAN && !heavy_tailed).collect();
    let honest = of_many.iter().filter(|told| told.is_honest()).count();
    ensure(4 * honest >= 3 * of_many.len(), || format!("{honest} of {} were told the truth", of_many.len()))
}

impl RetryAfterSample {
    fn actual_wait_rounded(&self) -> Time {
        self.actual.wait.max(SECOND)
    }

    /// Within a factor of two, and the millisecond that times are rounded to.
    fn is_honest(&self) -> bool {
        let (said, truth) = (self.retry_after, self.actual_wait_rounded());
        said <= 2 * truth + MILLISECOND && truth <= 2 * said + MILLISECOND
    }
}
