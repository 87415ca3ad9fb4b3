//! Clients, replicas and an operator, played into the state machine the way `state::slots` and `proxy` do it.

mod operator;

use std::time::{Duration, Instant};

use inference_router::policy::admit::{Admission, Arrival, Avoid, Grant, RETRIES};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::agenda::{Agenda, Event, What};
use crate::foresight::{Told, wait_in_truth};
use crate::model::{Model, micros};
use crate::request::{Outcome, Request, Slot, Stage};
use crate::scenario::{Scenario, exponential};
use crate::{Checked, SECOND, Time, ensure};

/// How long a connection to a replica that swallows everything is tried.
const CONNECT_TIMEOUT: Time = SECOND;

/// A run.
pub(crate) struct World {
    scenario: Scenario,
    rng: SmallRng,
    trace: bool,
    start: Instant,
    now: Time,
    steps: usize,
    agenda: Agenda,
    admission: Admission<usize>,
    model: Model,
    requests: Vec<Request>,
    /// By number: how a new connection fares.
    replicas: Vec<Running>,
    told: Vec<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Well,
    Refuses,
    Swallows,
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, trace: bool) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(!seed),
            trace,
            start: Instant::now(),
            now: 0,
            steps: 0,
            agenda: Agenda::default(),
            admission: Admission::new(scenario.rules),
            model: Model::new(scenario.rules),
            requests: Vec::new(),
            replicas: Vec::new(),
            told: Vec::new(),
            scenario,
        }
    }

    /// Plays it to its end; then `judge` sees what clients were told and what came true.
    pub(crate) fn run(mut self, judge: impl FnOnce(&[Told]) -> Checked) -> Checked {
        self.say(|world| format!("{:?}", world.scenario));
        self.play().map_err(|what| format!("step {}, at {:?}: {what}", self.steps, Duration::from_micros(self.now)))?;
        judge(&self.told)
    }

    fn play(&mut self) -> Checked {
        for _ in 0..self.scenario.replicas {
            self.add()?;
        }
        self.agenda.plan(0, Event::Arrival);
        let pause = self.scenario.arrivals.mean_pause();
        let horizon = pause * self.scenario.requests as Time + SECOND;
        for _ in 0..self.scenario.changes {
            self.agenda.plan(self.rng.random_range(0..horizon), Event::Change);
        }
        for _ in 0..self.scenario.deaths {
            let (at, victim) = (self.rng.random_range(0..horizon), self.rng.random_range(0..6));
            self.agenda.plan(at, Event::Dies(victim));
            self.agenda.plan(at + exponential(&mut self.rng, 2 * SECOND) as Time, Event::Revives(victim));
        }
        while let Some((at, event)) = self.agenda.next() {
            (self.now, self.steps) = (at, self.steps + 1);
            self.say(|_| format!("{event:?}"));
            self.happens(event)?;
            self.model.settled(&self.admission)?;
        }
        self.finish()
    }

    fn happens(&mut self, event: Event) -> Checked {
        match event {
            Event::Arrival => self.arrival(),
            Event::Request { request, step, what } if self.requests[request].step == step => {
                self.goes_on(request, what)
            }
            Event::Request { .. } => Ok(()),
            Event::Abort(request) => self.abort(request),
            Event::Tick => {
                self.model.ticked(self.now);
                let grants = self.admission.tick(self.at(self.now));
                self.hand_out(grants)
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
        let service = self.scenario.service.draw(&mut self.rng);
        let head = self.rng.random_range(0..=service);
        self.requests.push(Request {
            service,
            head,
            avoid: Vec::new(),
            avoid_ids: Avoid::default(),
            step: 0,
            stage: Stage::Elsewhere,
            outcome: None,
        });
        if request + 1 < self.scenario.requests {
            let pause = self.scenario.arrivals.pause_after(request, &mut self.rng);
            self.agenda.plan(self.now + pause, Event::Arrival);
        }
        let (share, latest) = self.scenario.aborts;
        if self.rng.random_bool(share) {
            self.agenda.plan(self.now + self.rng.random_range(0..=latest), Event::Abort(request));
        }
        self.acquire(request)
    }

    /// `Slots::acquire`, as `service::acquire` calls it.
    fn acquire(&mut self, request: usize) -> Checked {
        let deadline = self.now + self.scenario.queue_wait;
        let (avoid, now) = (self.requests[request].avoid_ids, self.at(self.now));
        let arrival = self.admission.arrive(avoid, now, self.at(deadline), || request);
        self.say(|world| format!("  request {request} avoiding {:?}: {arrival:?}", world.requests[request].avoid));
        self.model.arrived(request, &self.requests[request].avoid, deadline, &arrival)?;
        match arrival {
            Arrival::Granted(id) => self.dispatch(request, self.model.number(id)?, self.now),
            Arrival::Queued(ticket) => {
                self.enter(request, Stage::Waiting(ticket));
                self.plan(request, deadline - self.now, What::WaitedEnough);
            }
            Arrival::Full => self.turn_away(request, Outcome::TurnedAway)?,
        }
        Ok(())
    }

    /// `Slots::hand_out`: who waits is told, and notices a little later.
    fn hand_out(&mut self, grants: impl IntoIterator<Item = Grant<usize>>) -> Checked {
        for (request, id) in grants {
            let slot = Slot { replica: self.model.number(id)?, since: self.now };
            self.say(|_| format!("  request {request} is granted replica {}", slot.replica));
            self.model.granted(request, slot.replica)?;
            let Stage::Waiting(ticket) = self.requests[request].stage else {
                return Err(format!("request {request} was granted a slot and does not wait"));
            };
            self.enter(request, Stage::Granted(ticket, slot));
            let delay = self.rng.random_range(0..=self.scenario.delay);
            self.plan(request, delay, What::Wakes);
        }
        Ok(())
    }

    /// What was planned for a request comes: `Waiting::slot`, `service::attempt` and `Exchange`.
    fn goes_on(&mut self, request: usize, what: What) -> Checked {
        match (self.requests[request].stage, what) {
            (Stage::Waiting(ticket), What::WaitedEnough) => {
                let left = self.admission.leave(ticket);
                self.model.left(request, ticket, left)?;
                self.turn_away(request, Outcome::TimedOut)
            }
            (Stage::Granted(_, slot), What::Wakes) => {
                self.dispatch(request, slot.replica, slot.since);
                Ok(())
            }
            (Stage::Connecting(slot), What::Connects) => self.connected(request, slot),
            (Stage::Sent(slot), What::Answers) => {
                self.requests[request].stage = Stage::Answered(slot);
                self.model.succeeded(slot.replica);
                let grants = self.admission.succeeded(self.model.id(slot.replica));
                self.hand_out(grants)
            }
            (Stage::Sent(slot), What::BreaksOff) => {
                self.failed(slot.replica)?;
                self.end(request, slot, Some(Outcome::Failed))
            }
            // The head has come in time.
            (Stage::Answered(_), What::RunsOut) | (Stage::SeenOut(_), What::Answers) => Ok(()),
            (Stage::Sent(slot) | Stage::Answered(slot), What::RunsOut | What::BreaksOff) => {
                self.end(request, slot, Some(Outcome::Failed))
            }
            (Stage::Answered(slot), What::Ends) => self.end(request, slot, Some(Outcome::Served)),
            (Stage::SeenOut(slot), What::Ends | What::RunsOut | What::BreaksOff) => self.end(request, slot, None),
            (stage, what) => Err(format!("the simulation is wrong: {what:?} for request {request} in {stage:?}")),
        }
    }

    fn dispatch(&mut self, request: usize, replica: usize, since: Time) {
        self.enter(request, Stage::Connecting(Slot { replica, since }));
        let takes = match self.replicas[replica] {
            Running::Swallows => CONNECT_TIMEOUT,
            // A warm connection takes no time.
            Running::Well | Running::Refuses => self.rng.random_range(0..=self.scenario.delay),
        };
        self.plan(request, takes, What::Connects);
    }

    fn connected(&mut self, request: usize, slot: Slot) -> Checked {
        if self.replicas[slot.replica] == Running::Well && !self.rng.random_bool(self.scenario.flaky) {
            let Request { service, head, .. } = self.requests[request];
            self.enter(request, Stage::Sent(slot));
            self.plan(request, head, What::Answers);
            self.plan(request, service, What::Ends);
            self.plan(request, self.scenario.timeout, What::RunsOut);
            return Ok(());
        }
        // `service::forward`: the slot goes back only after it was decided whether to try another replica.
        self.failed(slot.replica)?;
        let id = self.model.id(slot.replica);
        let tried = &mut self.requests[request];
        let retry = tried.avoid.len();
        tried.avoid.push(slot.replica);
        tried.avoid_ids.add(id);
        let again = retry < RETRIES && self.admission.any_ready_but(tried.avoid_ids);
        self.end(request, slot, (!again).then_some(Outcome::Failed))?;
        if again { self.acquire(request) } else { Ok(()) }
    }

    /// `Slot::failed`.
    fn failed(&mut self, replica: usize) -> Checked {
        let until = self.admission.failed(self.model.id(replica), self.at(self.now));
        let until = until.map(|until| micros(until.duration_since(self.start)));
        self.model.failed(replica, self.now, until)?;
        if let Some(until) = until {
            let late = self.rng.random_range(0..=self.scenario.delay);
            self.agenda.plan(until + late, Event::Tick);
        }
        Ok(())
    }

    /// The client is gone: `Waiting` or the exchange is dropped.
    fn abort(&mut self, request: usize) -> Checked {
        if self.requests[request].outcome.is_some() {
            return Ok(());
        }
        match self.requests[request].stage {
            Stage::Waiting(ticket) => {
                let left = self.admission.leave(ticket);
                self.model.left(request, ticket, left)?;
                self.over(request, Outcome::Aborted)
            }
            Stage::Granted(ticket, slot) => {
                let left = self.admission.leave(ticket);
                self.model.left(request, ticket, left)?;
                self.end(request, slot, Some(Outcome::Aborted))
            }
            Stage::Connecting(slot) => self.end(request, slot, Some(Outcome::Aborted)),
            // The model works on: the slot is held until it ends, or its time is over.
            Stage::Sent(slot) => {
                self.requests[request].stage = Stage::SeenOut(slot);
                self.record(request, Outcome::Aborted)
            }
            Stage::Answered(slot) => {
                self.requests[request].stage = Stage::SeenOut(slot);
                self.plan(request, self.scenario.timeout, What::RunsOut);
                self.record(request, Outcome::Aborted)
            }
            Stage::Elsewhere | Stage::SeenOut(_) => Err(format!("the simulation is wrong: request {request} is lost")),
        }
    }

    /// `Slot::drop`.
    fn end(&mut self, request: usize, slot: Slot, outcome: Option<Outcome>) -> Checked {
        let held = self.now - slot.since;
        let (grant, gone) = self.admission.release(self.model.id(slot.replica), Duration::from_micros(held));
        self.model.released(request, slot.replica, held, gone)?;
        self.enter(request, Stage::Elsewhere);
        outcome.map_or(Ok(()), |outcome| self.record(request, outcome))?;
        self.hand_out(grant)
    }

    fn turn_away(&mut self, request: usize, outcome: Outcome) -> Checked {
        let said = micros(self.admission.retry_after(self.at(self.now), (0, Duration::ZERO)));
        self.say(|_| format!("  request {request} is told to wait {said}"));
        self.model.told(self.now, said)?;
        if self.scenario.stationary {
            let ends = |request: usize| {
                let Request { stage, service, .. } = self.requests[request];
                stage.sent().map(|slot| slot.since + service)
            };
            let in_flight = self.model.in_flight().filter_map(ends);
            let truth = wait_in_truth(self.now, in_flight, self.model.waiting(), |one| self.requests[one].service);
            self.told.push(Told { said, truth, waiting: self.model.waiting().len(), slots: self.model.slots() });
        }
        self.over(request, outcome)
    }

    fn over(&mut self, request: usize, outcome: Outcome) -> Checked {
        self.enter(request, Stage::Elsewhere);
        self.record(request, outcome)
    }

    fn record(&mut self, request: usize, outcome: Outcome) -> Checked {
        self.say(|_| format!("  request {request} ends: {outcome:?}"));
        let before = self.requests[request].outcome.replace(outcome);
        ensure(before.is_none(), || format!("request {request} ends twice: {before:?}, {outcome:?}"))
    }

    /// Everything has come to its end: nothing is held, nobody waits, every request ended, once.
    fn finish(&mut self) -> Checked {
        for request in 0..self.requests.len() {
            let Request { outcome, stage, .. } = self.requests[request];
            let over = outcome.is_some() && stage == Stage::Elsewhere;
            ensure(over, || format!("request {request} never ends: {stage:?}, {outcome:?}"))?;
        }
        let occupancy = self.admission.occupancy();
        let released = (occupancy.busy, occupancy.busy_draining, occupancy.waiting, occupancy.draining) == (0, 0, 0, 0);
        ensure(released && occupancy.free == self.model.slots(), || format!("in the end {occupancy:?}"))?;
        for replica in self.model.wanted(true) {
            self.remove(replica)?;
        }
        let left = self.admission.ids().count();
        ensure(left == 0 && !self.admission.any_ready(), || format!("{left} replicas are left"))
    }

    /// What was planned for a request before no longer counts.
    fn enter(&mut self, request: usize, stage: Stage) {
        let request = &mut self.requests[request];
        (request.stage, request.step) = (stage, request.step + 1);
    }

    fn plan(&mut self, request: usize, after: Time, what: What) {
        let step = self.requests[request].step;
        self.agenda.plan(self.now.saturating_add(after), Event::Request { request, step, what });
    }

    fn at(&self, time: Time) -> Instant {
        self.start + Duration::from_micros(time)
    }

    fn say(&self, what: impl FnOnce(&Self) -> String) {
        if self.trace {
            println!("{:>6} {:>14?} {}", self.steps, Duration::from_micros(self.now), what(self));
        }
    }
}
