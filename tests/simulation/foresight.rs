//! Is `retry-after` honest? What turned-away clients were told, beside what they would have waited.
//!
//! The truth: had nobody come any more, the time until everyone who waited had been served or had left, and a slot was
//! free. The simulation knows it, for it knows how long every request will take.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::Waiter;
use crate::scenario::Service;
use crate::{Checked, MILLISECOND, SECOND, Time, ensure};

/// So many that their times add up to about as many means.
const MANY: usize = 8;

/// What one client was told, and what came true.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) said: Time,
    pub(crate) truth: Truth,
    pub(crate) waiting: usize,
    pub(crate) slots: usize,
}

/// How long until a slot is free and nobody waits for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truth {
    pub(crate) wait: Time,
    /// Whether someone who waits leaves without a slot, or would, were it served only then.
    pub(crate) some_leave: bool,
}

/// The truth at `now`: requests `in_flight` end at their times, and those who wait take their turns until their deadlines.
pub(crate) fn wait_in_truth(
    now: Time,
    in_flight: impl Iterator<Item = Time>,
    waiting: &[Waiter],
    service: impl Fn(usize) -> Time,
) -> Truth {
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
    Truth { wait: free - now, some_leave }
}

/// What was told in one run in which nothing changed: a mean cannot foresee a change, nor anything before it is one.
///
/// # Errors
/// Where `retry-after` is not honest within a factor of two.
pub(crate) fn judge(told: &[Told], service: Service) -> Checked {
    let told = &told[told.len() / 4..];
    let heavy_tailed = matches!(service, Service::HeavyTailed(_));
    let on_average = told.iter().filter(|told| match service {
        Service::Exponential(_) => true,
        // Slots that work in step come back in step: only whole rounds of them can be foreseen.
        Service::Constant(_) | Service::Bimodal(..) => told.waiting >= told.slots,
        // Nothing foresees the rare request that takes as long as a hundred, unless it is one of many.
        Service::HeavyTailed(_) => told.waiting >= told.slots.max(MANY),
    });
    let (said, truth) = on_average.fold((0, 0), |(said, truth), told| (said + told.said, truth + told.truth()));
    ensure(said <= 2 * truth && truth <= 2 * said, || {
        format!("told to wait {:.2} times too long on average", said as f64 / truth as f64)
    })?;
    if let Service::Constant(_) = service {
        let foreseeable = |told: &Told| told.waiting >= told.slots && !told.truth.some_leave;
        let far_off = told.iter().find(|told| foreseeable(told) && !told.is_honest());
        return ensure(far_off.is_none(), || format!("each is foreseeable, but {far_off:?}"));
    }
    let of_many: Vec<_> = told.iter().filter(|told| told.waiting >= MANY && !heavy_tailed).collect();
    let honest = of_many.iter().filter(|told| told.is_honest()).count();
    ensure(4 * honest >= 3 * of_many.len(), || format!("{honest} of {} were told the truth", of_many.len()))
}

impl Told {
    fn truth(&self) -> Time {
        self.truth.wait.max(SECOND)
    }

    /// Within a factor of two, and the millisecond that times are rounded to.
    fn is_honest(&self) -> bool {
        let (said, truth) = (self.said, self.truth());
        said <= 2 * truth + MILLISECOND && truth <= 2 * said + MILLISECOND
    }
}
