//! The event loop of a simulation: requests arrive, replicas start and finish requests, decisions are made.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::iter::Peekable;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::Scenario;
use super::load::SimulatedArrival;
use super::outcome::{Recorder, SimulationOutcome};
use crate::model::endpoint::{ScaleSettings, TargetUtilization};
use crate::policy::admit::{
    Admission, AdmissionOutcome as Answer, AdmissionRules, AvoidedReplicas, Grant, Occupancy, ReplicaId, Ticket,
};
use crate::policy::scale::decide_replicas;
use crate::policy::scale::history::DemandHistory;
use crate::policy::scale::tally::LoadTally;

/// The interval of records where nothing is decided.
const RECORDED: Duration = Duration::from_secs(1);

/// A queued request.
#[derive(Debug)]
struct SimulatedWaiter {
    since: Instant,
    service: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SimulationEvent {
    /// A replica has finished a request that was dispatched at `since`, or `requestTimeoutMs` is exceeded.
    Done { id: ReplicaId, since: Instant, timed_out: bool },
    /// The queue wait of a request is exceeded.
    GiveUp(Ticket),
    /// The replica with this start number is ready.
    Ready(u64),
    /// It is time to decide.
    Interval,
}

pub(super) struct World<'s> {
    scenario: &'s Scenario,
    scale: Option<&'s TargetUtilization>,
    per_replica: NonZeroU32,
    now: Instant,
    /// Events in the order of their time; a number keeps simultaneous ones in the order in which they were planned.
    events: BinaryHeap<Reverse<(Instant, u64, SimulationEvent)>>,
    planned: u64,
    admission: Admission<SimulatedWaiter>,
    tally: LoadTally,
    history: DemandHistory,
    desired: u32,
    /// Start numbers of the replicas that are starting, oldest first.
    starting: VecDeque<u64>,
    started: u64,
    recorder: Recorder,
}

impl<'s> World<'s> {
    pub(super) fn new(scenario: &'s Scenario) -> Self {
        let requests = &scenario.requests;
        let rules = AdmissionRules {
            replica_cap: requests.max_concurrent_per_instance,
            queue_length: requests.max_queue_length,
        };
        let (scale, desired) = match &scenario.scale {
            ScaleSettings::Fixed { instances } => (None, *instances),
            ScaleSettings::TargetUtilization(settings) => (Some(settings), settings.min_replicas),
            // A workload has one replica unless something says otherwise.
            ScaleSettings::Unmanaged => (None, 1),
        };
        let interval = scale.map_or(RECORDED, |settings| settings.polling_interval);
        let mut world = Self {
            scenario,
            scale,
            per_replica: requests.max_concurrent_per_instance,
            now: scenario.epoch,
            events: BinaryHeap::new(),
            planned: 0,
            admission: Admission::new(rules),
            tally: LoadTally::new(scenario.epoch),
            history: DemandHistory::new(interval, scenario.epoch),
            desired,
            starting: VecDeque::new(),
            started: 0,
            recorder: Recorder::new(scenario, interval, desired),
        };
        // Replicas that exist at the beginning have started before.
        for _ in 0..desired {
            world.admission.add_replica();
            world.recorder.alive(1);
        }
        world.plan(scenario.epoch + interval, SimulationEvent::Interval);
        world
    }

    pub(super) fn run(mut self, arrivals: impl Iterator<Item = SimulatedArrival>) -> SimulationOutcome {
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

    /// Advances the clock before anything changes.
    fn pass(&mut self) {
        self.tally.advance_to(self.now, self.admission.queue_length());
    }

    fn plan(&mut self, at: Instant, event: SimulationEvent) {
        self.planned += 1;
        self.events.push(Reverse((at, self.planned, event)));
    }

    fn arrive(&mut self, arrivals: &mut Peekable<impl Iterator<Item = SimulatedArrival>>) {
        let Some(SimulatedArrival { service, .. }) = arrivals.next() else { return };
        let now = self.now;
        let is_cold = !self.admission.has_ready_replica();
        self.pass();
        let wait = match self.scale {
            Some(settings) if settings.min_replicas == 0 && is_cold => settings.cold_start_timeout,
            _ => self.scenario.requests.max_queue_wait,
        };
        let deadline = now + wait;
        self.recorder.arrived();
        match self
            .admission
            .request_slot(AvoidedReplicas::default(), now, deadline, || SimulatedWaiter { since: now, service })
        {
            Answer::Granted(id) => {
                self.tally.record_arrival();
                self.serve((SimulatedWaiter { since: now, service }, id));
            }
            Answer::Queued(ticket) => {
                self.tally.record_arrival();
                self.plan(deadline, SimulationEvent::GiveUp(ticket));
                if is_cold && self.desired == 0 {
                    self.scale();
                }
            }
            Answer::Full => {
                self.tally.record_rejection();
                self.recorder.rejected();
            }
        }
    }

    /// A replica works on a request, at most for as long as allowed.
    fn serve(&mut self, (waiter, id): Grant<SimulatedWaiter>) {
        let timeout = self.scenario.requests.timeout;
        self.recorder.granted(self.now - waiter.since);
        let done = SimulationEvent::Done { id, since: self.now, timed_out: waiter.service > timeout };
        self.plan(self.now + waiter.service.min(timeout), done);
    }

    fn happen(&mut self) {
        let Some(Reverse((_, _, event))) = self.events.pop() else { return };
        self.pass();
        match event {
            SimulationEvent::Done { id, since, timed_out } => {
                let held = self.now - since;
                self.tally.record_completion(held);
                self.recorder.worked(held, timed_out);
                let (grant, gone) = self.admission.release_slot(id, held);
                grant.into_iter().for_each(|grant| self.serve(grant));
                if gone {
                    self.recorder.alive_at(self.now, -1);
                }
            }
            SimulationEvent::GiveUp(ticket) => {
                if self.admission.cancel_queued(ticket).is_some() {
                    self.tally.record_timeout();
                    self.recorder.rejected();
                }
            }
            SimulationEvent::Ready(number) => {
                // The start may have been canceled meanwhile.
                if let Ok(place) = self.starting.binary_search(&number) {
                    self.starting.remove(place);
                    let (_, grants) = self.admission.add_replica();
                    grants.into_iter().for_each(|grant| self.serve(grant));
                }
            }
            SimulationEvent::Interval => self.interval(),
        }
    }

    fn interval(&mut self) {
        let now = self.admission.occupancy();
        let signals = self.tally.take_signals(now.waiting, now.ready == 0);
        self.history.record_interval(&signals, self.now);
        self.scale();
        let slots = now.ready as u64 * u64::from(self.per_replica.get());
        self.recorder.interval(self.now, self.desired, now.ready as u32, slots, &signals);
        let interval = self.scale.map_or(RECORDED, |settings| settings.polling_interval);
        self.plan(self.now + interval, SimulationEvent::Interval);
    }

    fn scale(&mut self) {
        let Some(settings) = self.scale else { return };
        let waiting = self.admission.occupancy().waiting;
        let (wanted, _) =
            decide_replicas(settings, self.per_replica.get(), &self.history, self.desired, waiting, self.now);
        while self.desired < wanted {
            self.desired += 1;
            self.started += 1;
            self.starting.push_back(self.started);
            self.recorder.alive_at(self.now, 1);
            self.plan(self.now + self.scenario.start, SimulationEvent::Ready(self.started));
        }
        while self.desired > wanted {
            self.desired -= 1;
            self.stop_one();
        }
    }

    /// Stops the newest replica that does not serve yet, otherwise the idlest one.
    fn stop_one(&mut self) {
        if self.starting.pop_back().is_some() {
            return self.recorder.alive_at(self.now, -1);
        }
        let serving = self.admission.replica_ids().filter_map(|id| {
            let (busy, fitness) = self.admission.replica_load(id);
            fitness.map(|_| (busy, Reverse(id)))
        });
        if let Some((_, Reverse(idlest))) = serving.min()
            && self.admission.remove_replica(idlest)
        {
            self.recorder.alive_at(self.now, -1);
        }
    }
}
