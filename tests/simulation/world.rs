//! Clients, replicas and an operator, played into the state machine as `state::slots` and `proxy` do it.

mod operator;

use std::time::{Duration, Instant};

use inference_router::policy::admit::{Admission, AdmissionOutcome, AvoidedReplicas, Grant, MAX_RETRIES};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::event_queue::{Event, EventQueue, RequestEvent};
use crate::model::{Model, micros};
use crate::request::{HeldSlot, Outcome, Request, Stage};
use crate::retry_after::{RetryAfterSample, actual_wait};
use crate::scenario::{Scenario, exponential};
use crate::{Checked, SECOND, Time, ensure};

/// How long a connection to a replica that swallows everything is tried.
const CONNECT_TIMEOUT: Time = SECOND;

/// A run.
pub(crate) struct World {
    scenario: Scenario,
    rng: SmallRng,
    is_traced: bool,
    start: Instant,
    now: Time,
    steps: usize,
    events: EventQueue,
    admission: Admission<usize>,
    model: Model,
    requests: Vec<Request>,
    /// By number: how a new connection fares.
    replica_behaviors: Vec<ConnectBehavior>,
    retry_after_samples: Vec<RetryAfterSample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectBehavior {
    Accepts,
    Refuses,
    Blackholes,
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, trace: bool) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(!seed),
            is_traced: trace,
            start: Instant::now(),
            now: 0,
            steps: 0,
            events: EventQueue::default(),
            admission: Admission::new(scenario.rules),
            model: Model::new(scenario.rules),
            requests: Vec::new(),
            replica_behaviors: Vec::new(),
            retry_after_samples: Vec::new(),
            scenario,
        }
    }

    /// Plays it to its end; then `judge` sees what clients were told and what came true.
    pub(crate) fn run(mut self, judge: impl FnOnce(&[RetryAfterSample]) -> Checked) -> Checked {
        self.trace_event(|world| format!("{:?}", world.scenario));
        self.play().map_err(|what| format!("step {}, at {:?}: {what}", self.steps, Duration::from_micros(self.now)))?;
        judge(&self.retry_after_samples)
    }

    fn play(&mut self) -> Checked {
        for _ in 0..self.scenario.replicas {
            self.add()?;
        }
        self.events.schedule(0, Event::Arrival);
        let pause = self.scenario.arrivals.mean_pause();
        let horizon = pause * self.scenario.requests as Time + SECOND;
        for _ in 0..self.scenario.changes {
            self.events.schedule(self.rng.random_range(0..horizon), Event::Change);
        }
        for _ in 0..self.scenario.deaths {
            let (at, victim) = (self.rng.random_range(0..horizon), self.rng.random_range(0..6));
            self.events.schedule(at, Event::Dies(victim));
            self.events.schedule(at + exponential(&mut self.rng, 2 * SECOND) as Time, Event::Revives(victim));
        }
        while let Some((at, event)) = self.events.next() {
            (self.now, self.steps) = (at, self.steps + 1);
            self.trace_event(|_| format!("{event:?}"));
            self.handle_event(event)?;
            self.model.check_invariants(&self.admission)?;
        }
        self.finish()
    }

    fn handle_event(&mut self, event: Event) -> Checked {
        match event {
            Event::Arrival => self.arrival(),
            Event::Request { request, generation: step, event: what } if self.requests[request].generation == step => {
                self.handle_request_event(request, what)
            }
            Event::Request { .. } => Ok(()),
            Event::Abort(request) => self.abort(request),
            Event::Tick => {
                self.model.apply_tick(self.now);
                let grants = self.admission.start_due_probes(self.instant_at(self.now));
                self.deliver_grants(grants)
            }
            Event::Dies(replica) => {
                self.dies(replica);
                Ok(())
            }
            Event::Revives(replica) => {
                self.revives(replica);
                Ok(())
            }
            Event::Change => self.change(),
        }
    }

    fn arrival(&mut self) -> Checked {
        let request = self.requests.len();
        let service = self.scenario.service_time.draw(&mut self.rng);
        let head = self.rng.random_range(0..=service);
        self.requests.push(Request {
            service_time: service,
            time_to_head: head,
            avoid: Vec::new(),
            avoid_ids: AvoidedReplicas::default(),
            generation: 0,
            stage: Stage::Idle,
            outcome: None,
        });
        if request + 1 < self.scenario.requests {
            let pause = self.scenario.arrivals.pause_after(request, &mut self.rng);
            self.events.schedule(self.now + pause, Event::Arrival);
        }
        let (share, latest) = self.scenario.abort_share_and_latest;
        if self.rng.random_bool(share) {
            self.events.schedule(self.now + self.rng.random_range(0..=latest), Event::Abort(request));
        }
        self.acquire(request)
    }

    /// `Slots::acquire`, as `service::acquire` calls it.
    fn acquire(&mut self, request: usize) -> Checked {
        let deadline = self.now + self.scenario.queue_wait;
        let (avoid, now) = (self.requests[request].avoid_ids, self.instant_at(self.now));
        let arrival = self.admission.request_slot(avoid, now, self.instant_at(deadline), || request);
        self.trace_event(|world| {
            format!("  request {request} avoiding {:?}: {arrival:?}", world.requests[request].avoid)
        });
        self.model.check_arrival(request, &self.requests[request].avoid, deadline, &arrival)?;
        match arrival {
            AdmissionOutcome::Granted(id) => self.dispatch(request, self.model.number(id)?, self.now),
            AdmissionOutcome::Queued(ticket) => {
                self.enter(request, Stage::Queued(ticket));
                self.schedule_for(request, deadline - self.now, RequestEvent::QueueWaitOver);
            }
            AdmissionOutcome::Full => self.reject_request(request, Outcome::Rejected)?,
        }
        Ok(())
    }

    /// `Slots::hand_out`: who waits is told, and notices a little later.
    fn deliver_grants(&mut self, grants: impl IntoIterator<Item = Grant<usize>>) -> Checked {
        for (request, id) in grants {
            let slot = HeldSlot { replica: self.model.number(id)?, since: self.now };
            self.trace_event(|_| format!("  request {request} is granted replica {}", slot.replica));
            self.model.check_grant(request, slot.replica)?;
            let Stage::Queued(ticket) = self.requests[request].stage else {
                return Err(format!("request {request} was granted a slot and does not wait"));
            };
            self.enter(request, Stage::Granted(ticket, slot));
            let delay = self.rng.random_range(0..=self.scenario.delay);
            self.schedule_for(request, delay, RequestEvent::NoticesGrant);
        }
        Ok(())
    }

    /// What was planned for a request comes: `Waiting::slot`, `service::attempt` and `Exchange`.
    fn handle_request_event(&mut self, request: usize, what: RequestEvent) -> Checked {
        match (self.requests[request].stage, what) {
            (Stage::Queued(ticket), RequestEvent::QueueWaitOver) => {
                let left = self.admission.cancel_queued(ticket);
                self.model.check_leave(request, ticket, left)?;
                self.reject_request(request, Outcome::TimedOut)
            }
            (Stage::Granted(_, slot), RequestEvent::NoticesGrant) => {
                self.dispatch(request, slot.replica, slot.since);
                Ok(())
            }
            (Stage::Connecting(slot), RequestEvent::Connects) => self.connected(request, slot),
            (Stage::Sent(slot), RequestEvent::Answers) => {
                self.requests[request].stage = Stage::Answered(slot);
                self.model.succeeded(slot.replica);
                let grants = self.admission.record_success(self.model.id(slot.replica));
                self.deliver_grants(grants)
            }
            (Stage::Sent(slot), RequestEvent::BreaksOff) => {
                self.failed(slot.replica)?;
                self.release_slot(request, slot, Some(Outcome::Failed))
            }
            // The head has come in time.
            (Stage::Answered(_), RequestEvent::TimeoutPasses) | (Stage::Abandoned(_), RequestEvent::Answers) => Ok(()),
            (Stage::Sent(slot) | Stage::Answered(slot), RequestEvent::TimeoutPasses | RequestEvent::BreaksOff) => {
                self.release_slot(request, slot, Some(Outcome::Failed))
            }
            (Stage::Answered(slot), RequestEvent::Ends) => self.release_slot(request, slot, Some(Outcome::Served)),
            (Stage::Abandoned(slot), RequestEvent::Ends | RequestEvent::TimeoutPasses | RequestEvent::BreaksOff) => {
                self.release_slot(request, slot, None)
            }
            (stage, what) => Err(format!("the simulation is wrong: {what:?} for request {request} in {stage:?}")),
        }
    }

    fn dispatch(&mut self, request: usize, replica: usize, since: Time) {
        self.enter(request, Stage::Connecting(HeldSlot { replica, since }));
        let takes = match self.replica_behaviors[replica] {
            ConnectBehavior::Blackholes => CONNECT_TIMEOUT,
            // A warm connection takes no time.
            ConnectBehavior::Accepts | ConnectBehavior::Refuses => self.rng.random_range(0..=self.scenario.delay),
        };
        self.schedule_for(request, takes, RequestEvent::Connects);
    }

    fn connected(&mut self, request: usize, slot: HeldSlot) -> Checked {
        if self.replica_behaviors[slot.replica] == ConnectBehavior::Accepts
            && !self.rng.random_bool(self.scenario.connect_failure_share)
        {
            let Request { service_time: service, time_to_head: head, .. } = self.requests[request];
            self.enter(request, Stage::Sent(slot));
            self.schedule_for(request, head, RequestEvent::Answers);
            self.schedule_for(request, service, RequestEvent::Ends);
            self.schedule_for(request, self.scenario.timeout, RequestEvent::TimeoutPasses);
            return Ok(());
        }
        // `service::forward`: the slot goes back only after it was decided whether to try another replica.
        self.failed(slot.replica)?;
        let id = self.model.id(slot.replica);
        let tried = &mut self.requests[request];
        let retry = tried.avoid.len();
        tried.avoid.push(slot.replica);
        tried.avoid_ids.insert(id);
        let again = retry < MAX_RETRIES && self.admission.has_ready_replica_except(tried.avoid_ids);
        self.release_slot(request, slot, (!again).then_some(Outcome::Failed))?;
        if again { self.acquire(request) } else { Ok(()) }
    }

    /// `Slot::failed`.
    fn failed(&mut self, replica: usize) -> Checked {
        let until = self.admission.record_failure(self.model.id(replica), self.instant_at(self.now));
        let until = until.map(|until| micros(until.duration_since(self.start)));
        self.model.failed(replica, self.now, until)?;
        if let Some(until) = until {
            let late = self.rng.random_range(0..=self.scenario.delay);
            self.events.schedule(until + late, Event::Tick);
        }
        Ok(())
    }

    /// The client is gone: `Waiting` or the exchange is dropped.
    fn abort(&mut self, request: usize) -> Checked {
        if self.requests[request].outcome.is_some() {
            return Ok(());
        }
        match self.requests[request].stage {
            Stage::Queued(ticket) => {
                let left = self.admission.cancel_queued(ticket);
                self.model.check_leave(request, ticket, left)?;
                self.end_without_slot(request, Outcome::Aborted)
            }
            Stage::Granted(ticket, slot) => {
                let left = self.admission.cancel_queued(ticket);
                self.model.check_leave(request, ticket, left)?;
                self.release_slot(request, slot, Some(Outcome::Aborted))
            }
            Stage::Connecting(slot) => self.release_slot(request, slot, Some(Outcome::Aborted)),
            // The model works on: the slot is held until it ends, or its time is over.
            Stage::Sent(slot) => {
                self.requests[request].stage = Stage::Abandoned(slot);
                self.record(request, Outcome::Aborted)
            }
            Stage::Answered(slot) => {
                self.requests[request].stage = Stage::Abandoned(slot);
                self.schedule_for(request, self.scenario.timeout, RequestEvent::TimeoutPasses);
                self.record(request, Outcome::Aborted)
            }
            Stage::Idle | Stage::Abandoned(_) => Err(format!("the simulation is wrong: request {request} is lost")),
        }
    }

    /// `Slot::drop`.
    fn release_slot(&mut self, request: usize, slot: HeldSlot, outcome: Option<Outcome>) -> Checked {
        let held = self.now - slot.since;
        let (grant, gone) = self.admission.release_slot(self.model.id(slot.replica), Duration::from_micros(held));
        self.model.check_release(request, slot.replica, held, gone)?;
        self.enter(request, Stage::Idle);
        outcome.map_or(Ok(()), |outcome| self.record(request, outcome))?;
        self.deliver_grants(grant)
    }

    fn reject_request(&mut self, request: usize, outcome: Outcome) -> Checked {
        let said = micros(self.admission.retry_after(self.instant_at(self.now), (0, Duration::ZERO)));
        self.trace_event(|_| format!("  request {request} is told to wait {said}"));
        self.model.check_retry_after(self.now, said)?;
        if self.scenario.is_stationary {
            let ends = |request: usize| {
                let Request { stage, service_time: service, .. } = self.requests[request];
                stage.slot_in_use().map(|slot| slot.since + service)
            };
            let in_flight = self.model.in_flight().filter_map(ends);
            let truth =
                actual_wait(self.now, in_flight, self.model.queued_requests(), |one| self.requests[one].service_time);
            self.retry_after_samples.push(RetryAfterSample {
                retry_after: said,
                actual: truth,
                queued: self.model.queued_requests().len(),
                slots: self.model.slots(),
            });
        }
        self.end_without_slot(request, outcome)
    }

    fn end_without_slot(&mut self, request: usize, outcome: Outcome) -> Checked {
        self.enter(request, Stage::Idle);
        self.record(request, outcome)
    }

    fn record(&mut self, request: usize, outcome: Outcome) -> Checked {
        self.trace_event(|_| format!("  request {request} ends: {outcome:?}"));
        let before = self.requests[request].outcome.replace(outcome);
        ensure(before.is_none(), || format!("request {request} ends twice: {before:?}, {outcome:?}"))
    }

    /// Everything has come to its end: nothing is held, nobody waits, every request ended, once.
    fn finish(&mut self) -> Checked {
        for request in 0..self.requests.len() {
            let Request { outcome, stage, .. } = self.requests[request];
            let over = outcome.is_some() && stage == Stage::Idle;
            ensure(over, || format!("request {request} never ends: {stage:?}, {outcome:?}"))?;
        }
        let occupancy = self.admission.occupancy();
        let released = (occupancy.busy, occupancy.busy_draining, occupancy.waiting, occupancy.draining) == (0, 0, 0, 0);
        ensure(released && occupancy.free == self.model.slots(), || format!("in the end {occupancy:?}"))?;
        for replica in self.model.replicas_by_presence(true) {
            self.remove(replica)?;
        }
        let left = self.admission.replica_ids().count();
        ensure(left == 0 && !self.admission.has_ready_replica(), || format!("{left} replicas are left"))
    }

    /// What was planned for a request before no longer counts.
    fn enter(&mut self, request: usize, stage: Stage) {
        let request = &mut self.requests[request];
        (request.stage, request.generation) = (stage, request.generation + 1);
    }

    fn schedule_for(&mut self, request: usize, after: Time, what: RequestEvent) {
        let step = self.requests[request].generation;
        self.events.schedule(self.now.saturating_add(after), Event::Request { request, generation: step, event: what });
    }

    fn instant_at(&self, time: Time) -> Instant {
        self.start + Duration::from_micros(time)
    }

    fn trace_event(&self, what: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            println!("{:>6} {:>14?} {}", self.steps, Duration::from_micros(self.now), what(self));
        }
    }
}
