//! What happens, in order: requests come, replicas start and finish, decisions are made.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::iter::Peekable;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::Scenario;
use super::load::Arrival;
use super::outcome::{Outcome, Recorder};
use crate::model::endpoint::{ScaleSettings, Utilization};
use crate::policy::admit::{Admission, Arrival as Answer, Avoid, Grant, Occupancy, ReplicaId, Rules, Ticket};
use crate::policy::scale::decide;
use crate::policy::scale::history::History;
use crate::policy::scale::tally::Tally;

/// What is written down where nothing decides.
const RECORDED: Duration = Duration::from_secs(1);

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    since: Instant,
    service: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A replica has finished with a request that it got then, or `requestTimeoutMs` is over.
    Done { id: ReplicaId, since: Instant, timed_out: bool },
    /// A request has waited long enough.
    GiveUp(Ticket),
    /// A replica takes requests; its number among those that were started.
    Ready(u64),
    /// Time to decide.
    Interval,
}

pub(super) struct World<'s> {
    scenario: &'s Scenario,
    scale: Option<&'s Utilization>,
    per_replica: NonZeroU32,
    now: Instant,
    /// With a number, so that what happens at the same moment happens in the order it was planned.
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    planned: u64,
    admission: Admission<Waiter>,
    tally: Tally,
    history: History,
    desired: u32,
    /// Numbers of the replicas that are starting, the oldest first.
    starting: VecDeque<u64>,
    started: u64,
    recorder: Recorder,
}

impl<'s> World<'s> {
    pub(super) fn new(scenario: &'s Scenario) -> Self {
        let requests = &scenario.requests;
        let rules =
            Rules { per_replica: requests.max_concurrent_per_instance, queue_length: requests.max_queue_length };
        let (scale, desired) = match &scenario.scale {
            ScaleSettings::Fixed { instances } => (None, *instances),
            ScaleSettings::Utilization(settings) => (Some(settings), settings.min),
            // One is what a workload has unless somebody says otherwise.
            ScaleSettings::Unmanaged => (None, 1),
        };
        let interval = scale.map_or(RECORDED, |settings| settings.interval);
        let mut world = Self {
            scenario,
            scale,
            per_replica: requests.max_concurrent_per_instance,
            now: scenario.epoch,
            events: BinaryHeap::new(),
            planned: 0,
            admission: Admission::new(rules),
            tally: Tally::new(scenario.epoch),
            history: History::new(interval, scenario.epoch),
            desired,
            starting: VecDeque::new(),
            started: 0,
            recorder: Recorder::new(scenario, interval, desired),
        };
        // Those there are at the beginning have started before.
        for _ in 0..desired {
            world.admission.add();
            world.recorder.alive(1);
        }
        world.plan(scenario.epoch + interval, Event::Interval);
        world
    }

    pub(super) fn run(mut self, arrivals: impl Iterator<Item = Arrival>) -> Outcome {
        let (epoch, end) = (self.scenario.epoch, self.scenario.epoch + self.scenario.time);
        let mut arrivals = arrivals.peekable();
        loop {
            let arrives = arrivals.peek().map(|arrival| epoch + arrival.at);
            let happens = self.events.peek().map(|Reverse((at, ..))| *at);
            let Some(next) = arrives.into_iter().chain(happens).min().filter(|at| *at <= end) else { break };
            self.now = next;
            if happens == Some(next) {
                self.happen();
            } else {
                self.arrive(&mut arrivals);
            }
        }
        let Occupancy { busy, busy_draining, waiting, .. } = self.admission.occupancy();
        self.recorder.finish(end, (busy + busy_draining + waiting) as u64)
    }

    /// Time passes, before anything changes.
    fn pass(&mut self) {
        self.tally.pass(self.now, self.admission.waiting());
    }

    fn plan(&mut self, at: Instant, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((at, self.planned, event)));
    }

    fn arrive(&mut self, arrivals: &mut Peekable<impl Iterator<Item = Arrival>>) {
        let Some(Arrival { service, .. }) = arrivals.next() else { return };
        let now = self.now;
        let is_cold = !self.admission.any_ready();
        self.pass();
        let wait = match self.scale {
            Some(settings) if settings.min == 0 && is_cold => settings.cold_start_timeout,
            _ => self.scenario.requests.max_queue_wait,
        };
        let deadline = now + wait;
        self.recorder.arrived();
        match self.admission.arrive(Avoid::default(), now, deadline, || Waiter { since: now, service }) {
            Answer::Granted(id) => {
                self.tally.came();
                self.serve((Waiter { since: now, service }, id));
            }
            Answer::Queued(ticket) => {
                self.tally.came();
                self.plan(deadline, Event::GiveUp(ticket));
                if is_cold && self.desired == 0 {
                    self.scale();
                }
            }
            Answer::Full => {
                self.tally.refused();
                self.recorder.rejected();
            }
        }
    }

    /// A replica works on a request, for as long as it may.
    fn serve(&mut self, (waiter, id): Grant<Waiter>) {
        let timeout = self.scenario.requests.timeout;
        self.recorder.granted(self.now - waiter.since);
        let done = Event::Done { id, since: self.now, timed_out: waiter.service > timeout };
        self.plan(self.now + waiter.service.min(timeout), done);
    }

    fn happen(&mut self) {
        let Some(Reverse((_, _, event))) = self.events.pop() else { return };
        self.pass();
        match event {
            Event::Done { id, since, timed_out } => {
                let held = self.now - since;
                self.tally.served(held);
                self.recorder.worked(held, timed_out);
                let (grant, gone) = self.admission.release(id, held);
                grant.into_iter().for_each(|grant| self.serve(grant));
                if gone {
                    self.recorder.alive_at(self.now, -1);
                }
            }
            Event::GiveUp(ticket) => {
                if self.admission.leave(ticket).is_some() {
                    self.tally.timed_out();
                    self.recorder.rejected();
                }
            }
            Event::Ready(number) => {
                // It may have been called off meanwhile.
                if let Ok(place) = self.starting.binary_search(&number) {
                    self.starting.remove(place);
                    let (_, grants) = self.admission.add();
                    grants.into_iter().for_each(|grant| self.serve(grant));
                }
            }
            Event::Interval => self.interval(),
        }
    }

    fn interval(&mut self) {
        let now = self.admission.occupancy();
        let signals = self.tally.take(now.waiting, now.ready == 0);
        self.history.note(&signals, self.now);
        self.scale();
        let slots = now.ready as u64 * u64::from(self.per_replica.get());
        self.recorder.interval(self.now, self.desired, now.ready as u32, slots, &signals);
        let interval = self.scale.map_or(RECORDED, |settings| settings.interval);
        self.plan(self.now + interval, Event::Interval);
    }

    fn scale(&mut self) {
        let Some(settings) = self.scale else { return };
        let waiting = self.admission.occupancy().waiting;
        let (wanted, _) = decide(settings, self.per_replica.get(), &self.history, self.desired, waiting, self.now);
        while self.desired < wanted {
            self.desired += 1;
            self.started += 1;
            self.starting.push_back(self.started);
            self.recorder.alive_at(self.now, 1);
            self.plan(self.now + self.scenario.start, Event::Ready(self.started));
        }
        while self.desired > wanted {
            self.desired -= 1;
            self.stop_one();
        }
    }

    /// The newest of those that do not serve yet, else the idlest.
    fn stop_one(&mut self) {
        if self.starting.pop_back().is_some() {
            return self.recorder.alive_at(self.now, -1);
        }
        let serving = self.admission.ids().filter_map(|id| {
            let (busy, fitness) = self.admission.replica(id);
            fitness.map(|_| (busy, Reverse(id)))
        });
        if let Some((_, Reverse(idlest))) = serving.min()
            && self.admission.remove(idlest)
        {
            self.recorder.alive_at(self.now, -1);
        }
    }
}
