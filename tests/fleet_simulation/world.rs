//! Routers, replicas and the network between them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inference_router::policy::fleet::ledger::{Ledger, PreviousHolders};
use inference_router::policy::fleet::member::{FleetMember, InMemoryShares, LeaseState, MembershipMode, SlotBasis};
use inference_router::policy::fleet::{
    DeploymentId, FleetReplicaKey, MemberId, MemberLoad, QueueSnapshot, Term, ToCoordinator, ToMember,
};
use inference_router::policy::scale::Signals;
use inference_router::policy::scale::tally::LoadTally;

use crate::rng::SimRng;
use crate::scenario::Scenario;

/// Microseconds of true time.
pub(crate) type Time = u64;
pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000_000;
pub(crate) type Checked<T = ()> = Result<T, String>;

pub(crate) fn micros(duration: Duration) -> Time {
    duration.as_micros() as Time
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Arrive(usize, usize),
    RequestEnds(u64),
    ToCoordinator(u64, ToCoordinator),
    ToMember(u64, ToMember),
    /// Both ends of a stream learn that it is broken: the member's, or the coordinator's.
    StreamBroken(u64, bool),
    Wake(usize),
    ElectionTick(usize),
    ObserveReplica(usize, usize),
    InjectFault,
    Heal(usize),
    Restart(usize),
    Resume(usize),
    /// A router's end is known to the cluster.
    ProcessEndKnown(MemberId),
}

pub(crate) struct Router {
    pub(crate) id: MemberId,
    pub(crate) is_up: bool,
    pub(crate) served: u64,
    is_suspended: bool,
    rate: f64,
    base: Instant,
    pub(crate) ledger: Ledger,
    pub(crate) member: FleetMember<InMemoryShares>,
    stream: Option<(u64, usize)>,
    pub(crate) queues: Vec<VecDeque<(Time, Instant)>>,
    inbox: Vec<Event>,
    tallies: Vec<LoadTally>,

    wake_at: Time,
    term_ends_at: Option<Instant>,
    /// What it knows of who leads, and since when that has not changed.
    known_coordinator: Option<(usize, u64)>,
    lock_version_seen: (u64, Instant),
    /// Caps by replica.
    observed_caps: Vec<u32>,
}

struct Stream {
    member: usize,
    coordinator: usize,
    incarnations: (u64, u64),
    session: u64,
    /// When the last message in each direction arrives, and when the direction is dead.
    last: [Time; 2],
    dead: [Time; 2],
}

pub(crate) struct Replica {
    pub(crate) key: FleetReplicaKey,
    pub(crate) deployment: usize,
    /// The cap; zero while the replica is not ready.
    pub(crate) cap: u32,
    pub(crate) is_gone: bool,
    pub(crate) leased_requests: u32,
    pub(crate) fallback_requests: u32,
    /// Earlier caps, and until when they applied.
    past: Vec<(Time, u32)>,
}

pub(crate) struct Request {
    router: usize,
    incarnation: u64,
    pub(crate) replica: usize,
    grant_basis: SlotBasis,
    /// Start of the router on its own clock.
    started_at: Instant,
    ends_at: Time,
}

/// The leader lock.
struct LeaderLockRecord {
    holder: Option<(usize, u64)>,
    term: u64,
    version: u64,
    roster: PreviousHolders,
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) rng: SimRng,
    pub(crate) now: Time,
    events: BTreeMap<(Time, u64), Event>,
    counter: u64,
    pub(crate) routers: Vec<Router>,
    pub(crate) replicas: Vec<Replica>,
    deployments: Vec<DeploymentId>,
    by_deployment: Vec<Vec<usize>>,
    pub(crate) requests: BTreeMap<u64, Request>,
    streams: BTreeMap<u64, Stream>,
    leader_lock: LeaderLockRecord,
    blocked_links: BTreeSet<(usize, usize)>,
    cut_off_from_lock: BTreeSet<usize>,
    has_arrivals: bool,
    is_traced: bool,
    pub(crate) served: u64,
    pub(crate) aborted: u64,
    pub(crate) fallback_requests: u64,
    pub(crate) messages: u64,
    checks_idle_slots: bool,
    /// By deployment and place: since when a slot has been idle there while somebody waits.
    idle_since: BTreeMap<(usize, usize), Option<Time>>,
    pub(crate) busy_time: u64,
    last: Time,
    handled: u64,
}

impl World {
    pub(crate) fn new(seed: u64, scenario: Scenario, trace: bool) -> Self {
        let mut chance = SimRng::new(seed ^ 0xABCDEF);
        let start = Instant::now() + Duration::from_secs(1_000_000);
        let deployments: Vec<DeploymentId> =
            (0..scenario.deployments.len()).map(|d| Arc::from(format!("d{d}"))).collect();
        let mut world = Self {
            now: 0,
            events: BTreeMap::new(),
            counter: 0,
            routers: Vec::new(),
            replicas: Vec::new(),
            by_deployment: vec![Vec::new(); deployments.len()],
            deployments,
            requests: BTreeMap::new(),
            streams: BTreeMap::new(),
            leader_lock: LeaderLockRecord {
                holder: None,
                term: 0,
                version: 0,
                roster: PreviousHolders::Known(BTreeSet::new()),
            },
            blocked_links: BTreeSet::new(),
            cut_off_from_lock: BTreeSet::new(),
            has_arrivals: true,
            is_traced: trace,
            served: 0,
            aborted: 0,
            fallback_requests: 0,
            messages: 0,
            checks_idle_slots: false,
            idle_since: BTreeMap::new(),
            busy_time: 0,
            last: 0,
            handled: 0,
            rng: chance.clone(),
            scenario,
        };
        for i in 0..world.scenario.routers {
            let drift = world.scenario.clock_drift;
            let rate = *chance.pick(&[1.0 - drift, 1.0 - drift, 1.0, 1.0 + drift, 1.0 + drift]);
            let base = start + Duration::from_millis(chance.range(0, 100_000));
            let router = world.router(i, 0, rate, base);
            world.routers.push(router);
        }
        for d in 0..world.scenario.deployments.len() {
            for _ in 0..world.scenario.deployments[d].replicas {
                world.add_replica(d, true);
            }
        }
        for i in 0..world.scenario.routers {
            let at = world.rng.range(0, 20 * MS);
            world.schedule(at, Event::ElectionTick(i));
            for d in 0..world.scenario.deployments.len() {
                world.schedule_arrival(i, d);
            }
        }
        if world.scenario.faults_per_second > 0.0 {
            world.schedule(SECOND / 2, Event::InjectFault);
        }
        world
    }

    fn router(&self, i: usize, incarnation: u64, rate: f64, base: Instant) -> Router {
        let settings = self.scenario.settings;
        let kind = if self.scenario.is_strict { MembershipMode::Strict } else { MembershipMode::Available };
        let now = base + Duration::from_nanos((self.now as f64 * 1000.0 * rate) as u64);
        let mut member = FleetMember::new(settings, kind, InMemoryShares::default(), now);
        member.set_fleet_position(self.scenario.routers as u32, i as u32);
        Router {
            id: MemberId { name: Arc::from(format!("r{i}")), incarnation },
            is_up: true,
            served: 0,
            is_suspended: false,
            rate,
            base,
            ledger: Ledger::new(settings),
            member,
            stream: None,
            queues: vec![VecDeque::new(); self.scenario.deployments.len()],
            inbox: Vec::new(),
            tallies: self.scenario.deployments.iter().map(|_| LoadTally::new(now)).collect(),

            wake_at: Time::MAX,
            term_ends_at: None,
            known_coordinator: None,
            lock_version_seen: (u64::MAX, now),
            observed_caps: Vec::new(),
        }
    }

    pub(crate) fn schedule(&mut self, time: Time, event: Event) {
        self.counter += 1;
        self.events.insert((time.max(self.now), self.counter), event);
    }

    fn local_now(&self, i: usize) -> Instant {
        let router = &self.routers[i];
        router.base + Duration::from_nanos((self.now as f64 * 1000.0 * router.rate) as u64)
    }

    fn true_time(&self, i: usize, at: Instant) -> Time {
        let router = &self.routers[i];
        let passed = at.saturating_duration_since(router.base).as_nanos() as f64;
        (passed / router.rate / 1000.0).ceil() as Time
    }

    fn trace_event(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>10.6} {}", self.now as f64 / 1e6, what());
        }
    }

    fn schedule_arrival(&mut self, i: usize, d: usize) {
        let rate = self.scenario.deployments[d].requests_per_second[i];
        if rate > 0.0 {
            let at = self.now + 1 + self.rng.exponential(SECOND as f64 / rate);
            self.schedule(at, Event::Arrive(i, d));
        }
    }

    fn add_replica(&mut self, d: usize, at_once: bool) {
        let r = self.replicas.len();
        let key = FleetReplicaKey { deployment: self.deployments[d].clone(), name: Arc::from(format!("p{r}")) };
        let cap = self.scenario.deployments[d].cap;
        self.replicas.push(Replica {
            key,
            deployment: d,
            cap,
            is_gone: false,
            leased_requests: 0,
            fallback_requests: 0,
            past: Vec::new(),
        });
        self.by_deployment[d].push(r);
        self.notify_replica_change(r, at_once);
    }

    fn notify_replica_change(&mut self, r: usize, at_once: bool) {
        for i in 0..self.routers.len() {
            if at_once {
                self.observe_replica(i, r);
            } else {
                let at = self.now + self.rng.range(0, 300 * MS);
                self.schedule(at, Event::ObserveReplica(i, r));
            }
        }
    }

    /// A router learns how a replica is now.
    fn observe_replica(&mut self, i: usize, r: usize) {
        let now = self.local_now(i);
        let replica = &self.replicas[r];
        let hold = self.scenario.deployments[replica.deployment].hold;
        let router = &mut self.routers[i];
        router.member.set_replica(&replica.key, replica.cap, true, hold);
        if replica.is_gone {
            router.ledger.remove_replica(&replica.key);
        } else {
            router.ledger.set_replica(&replica.key, replica.cap, hold, now);
        }
        router.observed_caps.resize(router.observed_caps.len().max(r + 1), 0);
        router.observed_caps[r] = replica.cap;
    }

    pub(crate) fn run(&mut self) -> Checked {
        let (faulty, calm) = (self.scenario.faults_until, self.scenario.calm_duration);
        self.run_until(faulty)?;
        self.heal();
        let settle = self.settling_time();
        self.run_until(self.now + settle)?;
        self.checks_idle_slots = true;
        self.run_until(self.now + calm)?;
        self.checks_idle_slots = false;
        self.has_arrivals = false;
        // The queues are served, then whatever was leased comes back.
        let mut patience = 200;
        while !self.requests.is_empty() || self.routers.iter().any(|r| r.queues.iter().any(|q| !q.is_empty())) {
            patience -= 1;
            if patience == 0 {
                return Err("requests wait for ever".into());
            }
            self.run_until(self.now + SECOND)?;
        }
        self.run_until(
            self.now
                + self.scenario.settings.with_drift_margin(self.scenario.settings.lease_duration).as_micros() as Time,
        )?;
        self.check_all_slots_free()
    }

    /// After so long without faults nothing of them is left.
    fn settling_time(&self) -> Time {
        let s = &self.scenario;
        let hold = s.deployments.iter().map(|d| d.hold).max().unwrap_or_default();
        micros(
            s.settings
                .with_drift_margin(s.term + s.settings.confirmation_validity + s.settings.lease_duration + hold)
                .mul_f64(1.3),
        ) + SECOND
    }

    pub(crate) fn run_until(&mut self, end: Time) -> Checked {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.busy_time +=
                (time - self.last) * self.replicas.iter().map(|r| u64::from(r.leased_requests)).sum::<u64>();
            self.last = time;
            self.now = time;
            self.handled += 1;
            if self.handled > 1_000_000 {
                return Err(format!("too much happens, last {event:?}"));
            }
            self.handle(event)?;
            if self.checks_idle_slots {
                self.check_no_wait_beside_free_slot()?;
            }
        }
        self.now = end;
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Checked {
        let affected_router = match &event {
            Event::Arrive(i, _) | Event::Wake(i) | Event::ObserveReplica(i, _) | Event::ElectionTick(i) => Some(*i),
            Event::RequestEnds(id) => self.end_at_replica(*id),
            Event::ToCoordinator(stream, _) => self.streams.get(stream).map(|s| s.coordinator),
            Event::ToMember(stream, _) => self.streams.get(stream).map(|s| s.member),
            Event::StreamBroken(stream, member) => {
                self.streams.get(stream).map(|s| if *member { s.member } else { s.coordinator })
            }
            Event::InjectFault | Event::Heal(_) | Event::Restart(_) | Event::Resume(_) | Event::ProcessEndKnown(_) => {
                None
            }
        };
        match affected_router {
            Some(i) if !self.routers[i].is_up => match event {
                Event::Arrive(i, d) => self.schedule_arrival(i, d),
                Event::ElectionTick(i) => self.schedule(self.now + 100 * MS, Event::ElectionTick(i)),
                _ => {}
            },
            // A timer that would have rung meanwhile is set again by what it does first.
            Some(i) if self.routers[i].is_suspended && matches!(event, Event::Wake(..)) => {}
            Some(i) if self.routers[i].is_suspended => self.routers[i].inbox.push(event),
            Some(i) => {
                self.router_event(i, event)?;
                self.run_router(i)?;
            }
            None => self.world_event(event)?,
        }
        Ok(())
    }

    fn router_event(&mut self, i: usize, event: Event) -> Checked {
        let now = self.local_now(i);
        let router = &mut self.routers[i];
        router.tallies.iter_mut().zip(&router.queues).for_each(|(tally, queue)| tally.advance_to(now, queue.len()));
        match event {
            Event::Arrive(i, d) if self.has_arrivals => {
                self.schedule_arrival(i, d);
                if self.routers[i].queues[d].len() < 20 {
                    let at = self.now;
                    self.routers[i].queues[d].push_back((at, now));
                    self.routers[i].tallies[d].record_arrival();
                } else {
                    self.routers[i].tallies[d].record_rejection();
                }
            }
            Event::RequestEnds(id) => {
                if let Some(request) = self.requests.remove(&id) {
                    let key = self.replicas[request.replica].key.clone();
                    if request.incarnation == self.routers[i].id.incarnation {
                        self.routers[i].member.finish_request(&key, request.grant_basis);
                        let d = self.replicas[request.replica].deployment;
                        self.routers[i].tallies[d].record_completion(now.saturating_duration_since(request.started_at));
                    }
                }
            }
            Event::ObserveReplica(i, r) => {
                if self.cut_off_from_lock.contains(&i) {
                    self.schedule(self.now + 100 * MS, Event::ObserveReplica(i, r));
                } else {
                    self.observe_replica(i, r);
                }
            }
            Event::ElectionTick(i) => self.run_election(i, now),
            Event::ToCoordinator(stream, message) => self.receive_at_coordinator(i, stream, message, now),
            Event::ToMember(stream, message) => {
                let s = &self.streams[&stream];
                if s.incarnations.0 == self.routers[i].id.incarnation && self.now <= s.dead[1] {
                    self.routers[i].member.receive(message, now);
                }
            }
            Event::StreamBroken(stream, true) if self.routers[i].stream.is_some_and(|s| s.0 == stream) => {
                self.routers[i].member.end_session();
            }
            Event::StreamBroken(stream, false) => {
                let s = &self.streams[&stream];
                if s.incarnations.1 == self.routers[i].id.incarnation {
                    let id = MemberId { name: self.routers[s.member].id.name.clone(), incarnation: s.incarnations.0 };
                    self.routers[i].ledger.session_disconnected(&id, s.session);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn receive_at_coordinator(&mut self, i: usize, stream: u64, message: ToCoordinator, now: Instant) {
        let s = &self.streams[&stream];
        if s.incarnations.1 != self.routers[i].id.incarnation || self.now > s.dead[0] {
            return;
        }
        let id = MemberId { name: self.routers[s.member].id.name.clone(), incarnation: s.incarnations.0 };
        let recorded = match self.routers[i].ledger.roster(now) {
            PreviousHolders::Known(roster) if self.scenario.uses_roster => roster.contains(&id),
            _ => true,
        };
        if !recorded && self.routers[i].ledger.active_term(now).is_some() {
            let me = (i, self.routers[i].id.incarnation);
            if self.cut_off_from_lock.contains(&i) || self.leader_lock.holder != Some(me) {
                return self.break_stream(stream);
            }
            let mut roster = self.routers[i].ledger.roster(now);
            if let PreviousHolders::Known(roster) = &mut roster {
                roster.insert(id.clone());
                // Whoever was recorded and has not said hello yet.
                if let PreviousHolders::Known(before) = &self.leader_lock.roster {
                    roster.extend(before.iter().cloned());
                }
            }
            self.leader_lock.roster = roster;
        }
        self.routers[i].ledger.receive(&id, message, now);
    }

    /// The `Lease`: renewed, taken over, or looked at.
    fn run_election(&mut self, i: usize, now: Instant) {
        let me = (i, self.routers[i].id.incarnation);
        let (term, settings) = (self.scenario.term, self.scenario.settings);
        let safe = now + term.mul_f64(0.9 / 1.1);
        self.schedule(self.now + micros(term) / 6, Event::ElectionTick(i));
        if self.routers[i].ledger.superseding_term().is_some() {
            self.trace_event(|| format!("r{i} is superseded"));
            self.routers[i].ledger.resign();
        }
        if self.cut_off_from_lock.contains(&i) {
            let others: Vec<_> = self.routers.iter().filter(|r| r.id.name != self.routers[i].id.name).collect();
            let others: Vec<_> = others.iter().map(|r| r.id.clone()).collect();
            let router = &mut self.routers[i];
            if settings.confirmation_validity > Duration::ZERO
                && router.ledger.active_term(now).is_some()
                && let (Some(confirmed_at), Some(until)) =
                    (router.ledger.confirmed_at(&others, now), router.term_ends_at)
            {
                let until = until.max(confirmed_at + settings.confirmation_validity);
                router.term_ends_at = Some(until);
                router.ledger.extend_term(until);
            }
        } else if self.leader_lock.holder == Some(me) {
            if self.routers[i].term_ends_at.is_some() {
                self.leader_lock.version += 1;
                self.routers[i].ledger.extend_term(safe);
                self.routers[i].term_ends_at = Some(safe);
            }
        } else {
            if self.routers[i].term_ends_at.take().is_some() {
                self.routers[i].ledger.resign();
            }
            if self.routers[i].lock_version_seen.0 != self.leader_lock.version {
                self.routers[i].lock_version_seen = (self.leader_lock.version, now);
            }
            let free = self.leader_lock.holder.is_none() || now >= self.routers[i].lock_version_seen.1 + term;
            if free {
                self.become_coordinator(i, now, safe);
            }
            self.routers[i].known_coordinator = self.leader_lock.holder;
        }
        if self.leader_lock.holder == Some(me) && !self.cut_off_from_lock.contains(&i) {
            self.routers[i].known_coordinator = Some(me);
        }
        self.connect_if_lost(i, now);
    }

    fn become_coordinator(&mut self, i: usize, now: Instant, safe: Instant) {
        let me = (i, self.routers[i].id.incarnation);
        let first = self.leader_lock.term == 0;
        self.leader_lock.holder = Some(me);
        (self.leader_lock.term, self.leader_lock.version) = (self.leader_lock.term + 1, self.leader_lock.version + 1);
        let previous_holders =
            if first || self.scenario.uses_roster { self.leader_lock.roster.clone() } else { PreviousHolders::Unknown };
        self.trace_event(|| format!("r{i} leads, epoch {}, former {previous_holders:?}", self.leader_lock.term));
        let router = &mut self.routers[i];
        router.member.end_session();
        router.stream = None;
        // Whoever connected before spoke to no coordinator, or to another.
        for stream in self.streams.values_mut().filter(|stream| stream.coordinator == i) {
            stream.dead = stream.dead.map(|dead| dead.min(self.now.saturating_sub(1)));
        }
        let router = &mut self.routers[i];
        router.ledger.begin_term(Term(self.leader_lock.term), safe, previous_holders, now);
        router.ledger.set_predecessor_heard_at(router.member.coordinator_heard_at());
        router.term_ends_at = Some(safe);
        for (id, _) in self.ended_processes().into_iter().filter(|(_, known)| *known) {
            self.routers[i].ledger.member_ended(&id, now);
        }
    }

    /// Processes that have ended: all but the present incarnations.
    fn ended_processes(&self) -> Vec<(MemberId, bool)> {
        let all = self.routers.iter().flat_map(|router| {
            let last = router.id.incarnation + u64::from(!router.is_up);
            (0..last).map(|incarnation| (MemberId { name: router.id.name.clone(), incarnation }, true))
        });
        all.collect()
    }

    /// A member that has no coordinator, or another than it should have, connects.
    fn connect_if_lost(&mut self, i: usize, now: Instant) {
        let Some((holder, incarnation)) = self.routers[i].known_coordinator else { return };
        let lost = self.routers[i].member.needs_connection(now) || self.routers[i].stream.is_none_or(|s| s.1 != holder);
        let reachable =
            holder == i || !self.blocked_links.contains(&(i, holder)) && !self.blocked_links.contains(&(holder, i));
        if !lost || !reachable || !self.routers[holder].is_up || self.routers[holder].id.incarnation != incarnation {
            return;
        }
        if let Some((old, _)) = self.routers[i].stream {
            self.break_stream(old);
        }
        let session = self.routers[i].member.begin_session(now);
        self.counter += 1;
        let id = self.counter;
        let incarnations = (self.routers[i].id.incarnation, incarnation);
        let dead = [Time::MAX; 2];
        self.streams.insert(id, Stream { member: i, coordinator: holder, incarnations, session, last: [0; 2], dead });
        self.routers[i].stream = Some((id, holder));
    }

    /// What is on its way may still arrive, or not; the ends learn of it sooner or later.
    pub(crate) fn break_stream(&mut self, id: u64) {
        let lingers = if self.rng.one_in(2) { 0 } else { self.rng.range(0, 2 * SECOND) };
        let (a, b) = (self.rng.range(0, 200 * MS), self.rng.range(0, 200 * MS));
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.dead = stream.dead.map(|dead| dead.min(now + lingers));
        self.schedule(now + a, Event::StreamBroken(id, true));
        self.schedule(now + b, Event::StreamBroken(id, false));
    }

    fn send(&mut self, id: u64, direction: usize, event: Event) {
        self.messages += 1;
        let Some(stream) = self.streams.get(&id) else { return };
        let (from, to) =
            if direction == 0 { (stream.member, stream.coordinator) } else { (stream.coordinator, stream.member) };
        let mut delay = 0;
        if from != to {
            delay = self.scenario.one_way_delay / 2 + self.rng.exponential(self.scenario.one_way_delay as f64 / 2.0);
            if self.scenario.faults_per_second > 0.0 && self.now < self.scenario.faults_until && self.rng.one_in(50) {
                delay += self.rng.range(0, SECOND);
            }
        }
        let (now, lost) = (self.now, self.blocked_links.contains(&(from, to)));
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if lost {
            stream.dead[direction] = stream.dead[direction].min(now);
        }
        let arrives = (now + delay).max(stream.last[direction]);
        stream.last[direction] = arrives;
        if arrives <= stream.dead[direction] {
            self.schedule(arrives, event);
        }
    }

    /// Whatever a router does after something has happened to it.
    fn run_router(&mut self, i: usize) -> Checked {
        let now = self.local_now(i);
        for d in 0..self.deployments.len() {
            self.dispatch_queue(i, d, now)?;
        }
        for key in self.routers[i].member.tick(now) {
            self.abort(i, &key);
        }
        self.routers[i].ledger.tick(now);
        while let Some(message) = self.routers[i].member.outgoing(now) {
            let Some((stream, _)) = self.routers[i].stream else { break };
            self.trace_event(|| format!("r{i} says {message:?}"));
            self.send(stream, 0, Event::ToCoordinator(stream, message));
        }
        for (id, message) in self.routers[i].ledger.outgoing(now) {
            self.trace_event(|| format!("r{i} tells {}.{} {message:?}", id.name, id.incarnation));
            let session = match &message {
                ToMember::Welcome { session, .. } | ToMember::Refused { session, .. } => *session,
                ToMember::Update(update) => update.session,
            };
            let stream = self.streams.iter().rev().find(|(_, s)| {
                s.coordinator == i
                    && self.routers[s.member].id.name == id.name
                    && s.incarnations == (id.incarnation, self.routers[i].id.incarnation)
                    && s.session == session
            });
            if let Some(stream) = stream.map(|s| *s.0) {
                self.send(stream, 1, Event::ToMember(stream, message));
            }
        }
        if self.counter.is_multiple_of(16) {
            self.routers[i].ledger.audit().map_err(|what| format!("r{i}: {what}"))?;
        }
        let member = self.routers[i].member.wake_at(now);
        let wake = [member, self.routers[i].ledger.wake_at()].into_iter().flatten().min();
        if let Some(at) = wake {
            let at = self.true_time(i, at).max(self.now + 100);
            if self.routers[i].wake_at <= self.now || at < self.routers[i].wake_at {
                self.routers[i].wake_at = at;

                self.schedule(at, Event::Wake(i));
            }
        }
        Ok(())
    }

    /// Requests that wait take what they may; then the member is told of the others.
    fn dispatch_queue(&mut self, i: usize, d: usize, now: Instant) -> Checked {
        while !self.routers[i].queues[d].is_empty() {
            let offset = self.rng.next() as usize;
            let (member, replicas) = (&mut self.routers[i].member, &self.by_deployment[d]);
            if matches!(member.lease_state(now), LeaseState::Leased) && member.is_fully_used(&self.deployments[d]) {
                break;
            }
            let found = (0..replicas.len()).map(|r| replicas[(r + offset) % replicas.len()]).find_map(|r| {
                let right = member.start_request(&self.replicas[r].key, now);
                right.map(|right| (r, right))
            });
            let Some((r, right)) = found else { break };
            self.routers[i].queues[d].pop_front();
            self.start(i, r, right)?;
        }
        let queue = &self.routers[i].queues[d];
        let queue = queue.front().zip(queue.back()).map(|(first, last)| QueueSnapshot {
            length: queue.len() as u32,
            oldest: first.1,
            newest: last.1,
        });
        let deployment = self.deployments[d].clone();
        let router = &mut self.routers[i];
        router.member.set_queue(&deployment, queue);
        if self.scenario.reports_load {
            let (_, leased, borrowed) = router.member.usage(&deployment);
            let waiting = queue.map_or(0, |queue| queue.length);
            let load = MemberLoad { in_flight: leased + borrowed, queued: waiting, sums: router.tallies[d].sums() };
            router.member.set_load(&deployment, load);
        }
        Ok(())
    }

    fn start(&mut self, i: usize, r: usize, right: SlotBasis) -> Checked {
        let deployment = &self.scenario.deployments[self.replicas[r].deployment];
        let (hold, streams, mean) = (deployment.hold, deployment.may_stream, deployment.mean_service_time);
        let mut service = 1 + self.rng.exponential(mean as f64);
        let often = if self.scenario.is_harsh { 4 } else { 30 };
        if self.scenario.faults_until > 0 && self.rng.one_in(often) {
            service = self.rng.range(0, 2 * micros(hold));
        }
        if streams && self.rng.one_in(often) {
            service = self.rng.range(0, 10 * micros(hold));
        }
        if !streams {
            // The router's own clock says when it gives up.
            service = service.min((micros(hold) as f64 / self.routers[i].rate) as Time);
        }
        self.counter += 1;
        let (id, end) = (self.counter, self.now + service);
        let incarnation = self.routers[i].id.incarnation;
        let began = self.local_now(i);
        self.requests.insert(
            id,
            Request { router: i, incarnation, replica: r, grant_basis: right, started_at: began, ends_at: end },
        );
        self.schedule(end, Event::RequestEnds(id));
        self.trace_event(|| format!("r{i} starts {id} on p{r} {right:?} for {service} us"));
        self.served += 1;
        self.routers[i].served += 1;
        let replica = &mut self.replicas[r];
        match right {
            SlotBasis::Leased => replica.leased_requests += 1,
            SlotBasis::Fallback => {
                (replica.fallback_requests, self.fallback_requests) =
                    (replica.fallback_requests + 1, self.fallback_requests + 1)
            }
        }
        // A cap that is lowered holds for requests when everybody has heard of it and the slots are back.
        let allowed = replica.past.iter().filter(|past| past.0 > self.now).map(|past| past.1).max().unwrap_or(0);
        let allowed = allowed.max(replica.cap);
        if replica.leased_requests > allowed {
            return Err(format!(
                "replica p{r} has {} requests, r{i} sent the last, {allowed} allowed",
                replica.leased_requests
            ));
        }
        Ok(())
    }

    /// The replica is done with a request. Returns which router should hear of it.
    fn end_at_replica(&mut self, id: u64) -> Option<usize> {
        let request = self.requests.get(&id).filter(|request| request.ends_at <= self.now)?;
        let (router, replica, right, incarnation) =
            (request.router, request.replica, request.grant_basis, request.incarnation);
        match right {
            SlotBasis::Leased => self.replicas[replica].leased_requests -= 1,
            SlotBasis::Fallback => self.replicas[replica].fallback_requests -= 1,
        }
        if incarnation != self.routers[router].id.incarnation || !self.routers[router].is_up {
            self.requests.remove(&id);
            return None;
        }
        // So that the replica is not freed twice.
        if let Some(request) = self.requests.get_mut(&id) {
            request.ends_at = Time::MAX;
        }
        Some(router)
    }

    fn abort(&mut self, i: usize, key: &FleetReplicaKey) {
        let incarnation = self.routers[i].id.incarnation;
        let mine = self.requests.iter().filter(|(_, request)| {
            (request.router, request.incarnation, request.grant_basis) == (i, incarnation, SlotBasis::Leased)
                && request.ends_at != Time::MAX
                && self.replicas[request.replica].key == *key
        });
        for id in mine.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.trace_event(|| format!("r{i} aborts {id}"));
            self.aborted += 1;
            if let Some(request) = self.requests.remove(&id) {
                self.replicas[request.replica].leased_requests -= 1;
                self.routers[i].member.finish_request(key, request.grant_basis);
                self.routers[i].tallies[self.replicas[request.replica].deployment].record_departure();
            }
        }
    }

    fn world_event(&mut self, event: Event) -> Checked {
        match event {
            Event::InjectFault if self.now < self.scenario.faults_until => {
                self.fault()?;
                let at = self.now + self.rng.exponential(SECOND as f64 / self.scenario.faults_per_second);
                self.schedule(at, Event::InjectFault);
            }
            Event::Heal(i) => {
                self.blocked_links.retain(|(a, b)| *a != i && *b != i);
                self.cut_off_from_lock.remove(&i);
            }
            Event::Restart(i) => self.restart(i)?,
            Event::Resume(i) => self.resume(i)?,
            Event::ProcessEndKnown(id) => {
                for i in 0..self.routers.len() {
                    let now = self.local_now(i);
                    if self.routers[i].is_up && !self.routers[i].is_suspended {
                        self.routers[i].ledger.member_ended(&id, now);
                        self.run_router(i)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fault(&mut self) -> Checked {
        let count = self.routers.len();
        let i = self.rng.next() as usize % count;
        let j = self.rng.next() as usize % count;
        let for_long = self.rng.range(10 * MS, 4 * SECOND);
        let kind =
            if self.scenario.is_harsh { *self.rng.pick(&[0, 2, 4, 4, 5, 6, 8, 9]) } else { self.rng.range(0, 12) };
        self.trace_event(|| format!("fault {kind} r{i} r{j} for {for_long}"));
        match kind {
            0 | 1 => self.crash(i, for_long),
            2 | 3 => self.suspend(i, for_long),
            4 => {
                // Cut off from everybody, and perhaps from the cluster.
                for k in (0..count).filter(|k| *k != i) {
                    self.blocked_links.extend([(i, k), (k, i)]);
                }
                if self.rng.one_in(2) {
                    self.cut_off_from_lock.insert(i);
                }
                self.schedule(self.now + for_long, Event::Heal(i));
            }
            5 if i != j => {
                self.blocked_links.insert((i, j));
                if self.rng.one_in(2) {
                    self.blocked_links.insert((j, i));
                }
                self.schedule(self.now + for_long, Event::Heal(i));
            }
            6 => {
                self.cut_off_from_lock.insert(i);
                self.schedule(self.now + for_long, Event::Heal(i));
            }
            7 => {
                for k in 0..count {
                    self.cut_off_from_lock.insert(k);
                    self.schedule(self.now + for_long, Event::Heal(k));
                }
            }
            8 => {
                if let Some((stream, _)) = self.routers[i].stream {
                    self.break_stream(stream);
                }
            }
            9 => self.release_leader_lock(i)?,
            _ => self.replica_fault(),
        }
        Ok(())
    }

    fn replica_fault(&mut self) {
        let r = self.rng.next() as usize % self.replicas.len();
        let d = self.replicas[r].deployment;
        if self.replicas[r].is_gone {
            return;
        }
        let (now, cap) = (self.now, self.scenario.deployments[d].cap);
        let window = 3 * self.settling_time() + 12 * micros(self.scenario.deployments[d].hold);
        let before = self.replicas[r].cap;
        self.replicas[r].past.push((now + window, before));
        match self.rng.range(0, 4) {
            // It is not ready, or is ready again: what is in flight goes on.
            0 | 1 => self.replicas[r].cap = if before == 0 { cap } else { 0 },
            2 if before > 0 => self.replicas[r].cap = self.rng.range(1, 2 * u64::from(cap) + 1) as u32,
            3 => {
                (self.replicas[r].cap, self.replicas[r].is_gone) = (0, true);
                let ids =
                    self.requests.iter().filter(|(_, request)| request.replica == r && request.ends_at != Time::MAX);
                for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
                    if let Some(request) = self.requests.get_mut(&id) {
                        request.ends_at = now;
                        self.schedule(now, Event::RequestEnds(id));
                    }
                }
                self.add_replica(d, false);
            }
            _ => {}
        }
        self.notify_replica_change(r, false);
    }

    /// SIGTERM of the coordinator, that stays a member: the `Lease` is given back.
    fn release_leader_lock(&mut self, i: usize) -> Checked {
        let me = (i, self.routers[i].id.incarnation);
        let fine = self.routers[i].is_up && !self.routers[i].is_suspended && !self.cut_off_from_lock.contains(&i);
        if fine && self.leader_lock.holder == Some(me) && self.routers[i].term_ends_at.take().is_some() {
            let now = self.local_now(i);
            if self.scenario.uses_roster {
                self.leader_lock.roster = merge_rosters(&self.leader_lock.roster, self.routers[i].ledger.roster(now));
            }
            self.routers[i].ledger.resign();
            (self.leader_lock.holder, self.leader_lock.version) = (None, self.leader_lock.version + 1);
            self.run_router(i)?;
        }
        Ok(())
    }

    fn crash(&mut self, i: usize, for_long: Time) {
        if !self.routers[i].is_up || self.routers[i].is_suspended {
            return;
        }
        self.routers[i].is_up = false;
        let incarnation = self.routers[i].id.incarnation;
        // What it had in flight goes on for a while, but the kernel closes its connections: a slot is used for no longer than
        // until the living router would have aborted, see docs/design/fleet.md.
        let now = self.now;
        let mut again = Vec::new();
        for (id, request) in &self.requests {
            if (request.router, request.incarnation) == (i, incarnation) && request.ends_at != Time::MAX {
                let d = self.replicas[request.replica].deployment;
                let mut end = request.ends_at.min(now + micros(self.scenario.deployments[d].hold));
                if request.grant_basis == SlotBasis::Leased {
                    end = end.min(self.abort_time(i, d));
                }
                again.push((end, *id));
            }
        }
        for (end, id) in &again {
            if let Some(request) = self.requests.get_mut(id) {
                request.ends_at = *end;
            }
        }
        again.into_iter().for_each(|(end, id)| self.schedule(end, Event::RequestEnds(id)));
        for queue in &mut self.routers[i].queues {
            queue.clear();
        }
        if self.rng.one_in(2) {
            let known = self.rng.range(0, SECOND);
            let id = self.routers[i].id.clone();
            self.schedule(now + known, Event::ProcessEndKnown(id));
        }
        self.schedule(now + for_long, Event::Restart(i));
    }

    /// When a router would abort what is in flight by lease, if it is not heard of again.
    fn abort_time(&self, i: usize, d: usize) -> Time {
        self.true_time(i, self.routers[i].member.abort_at(&self.deployments[d])).max(self.now)
    }

    fn restart(&mut self, i: usize) -> Checked {
        if self.routers[i].is_up {
            return Ok(());
        }
        let incarnation = self.routers[i].id.incarnation + 1;
        let rate = self.routers[i].rate;
        let base = self.routers[i].base;
        let router = self.router(i, incarnation, rate, base);

        self.routers[i] = router;
        for r in 0..self.replicas.len() {
            if !self.replicas[r].is_gone {
                self.observe_replica(i, r);
            }
        }
        self.run_router(i)
    }

    fn suspend(&mut self, i: usize, for_long: Time) {
        if !self.routers[i].is_up || self.routers[i].is_suspended {
            return;
        }
        self.routers[i].is_suspended = true;
        let incarnation = self.routers[i].id.incarnation;
        // It cannot abort what streams for too long: nothing can, see docs/design/fleet.md.
        let mut again = Vec::new();
        for (id, request) in &self.requests {
            if (request.router, request.incarnation, request.grant_basis) == (i, incarnation, SlotBasis::Leased)
                && request.ends_at != Time::MAX
            {
                let abort = self.abort_time(i, self.replicas[request.replica].deployment);
                if abort < request.ends_at {
                    again.push((abort, *id));
                }
            }
        }
        for (end, id) in again {
            if let Some(request) = self.requests.get_mut(&id) {
                request.ends_at = end;
            }
            self.schedule(end, Event::RequestEnds(id));
        }
        self.schedule(self.now + for_long, Event::Resume(i));
    }

    fn resume(&mut self, i: usize) -> Checked {
        if !std::mem::take(&mut self.routers[i].is_suspended) {
            return Ok(());
        }
        // In any order, but what is in order by itself.
        for event in std::mem::take(&mut self.routers[i].inbox) {
            self.router_event(i, event)?;
            if self.rng.one_in(2) {
                self.run_router(i)?;
            }
        }
        self.run_router(i)
    }

    fn heal(&mut self) {
        self.trace_event(|| "all heals".into());
        (self.blocked_links, self.cut_off_from_lock) = (BTreeSet::new(), BTreeSet::new());
        for i in 0..self.routers.len() {
            self.schedule(self.now, Event::Restart(i));
            self.schedule(self.now, Event::Resume(i));
        }
        for r in 0..self.replicas.len() {
            if !self.replicas[r].is_gone && self.replicas[r].cap == 0 {
                self.replicas[r].cap = 1;
                self.notify_replica_change(r, false);
            }
        }
    }

    /// While nothing is wrong no request waits beside a free slot for two heartbeats.
    fn check_no_wait_beside_free_slot(&mut self) -> Checked {
        let longest = micros(self.scenario.settings.with_drift_margin(self.scenario.settings.heartbeat_interval * 2));
        for d in 0..self.deployments.len() {
            let came = self.routers.iter().filter_map(|router| router.queues[d].front()).map(|first| first.0).min();
            for i in 0..=self.routers.len() {
                let has_idle = came.is_some() && self.has_idle_slot(d, i);
                let since = self.idle_since.entry((d, i)).or_default();
                *since = has_idle.then(|| since.unwrap_or(self.now));
                // Of those that wait one after the other each may find one free.
                if (*since).max(came).is_some_and(|since| has_idle && self.now - since > longest) {
                    return Err(format!(
                        "a request waits for d{d} since {came:?} us beside a free slot at {i} since {since:?} us"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What the coordinator knows of the load of the first deployment since it was last asked.
    pub(crate) fn take_signals(&mut self) -> Option<Signals> {
        let (coordinator, _) = self.leader_lock.holder?;
        let now = self.local_now(coordinator);
        Some(self.routers[coordinator].ledger.take_signals(&self.deployments[0], now))
    }

    /// Whether a slot is idle at a router, or with the coordinator where `i` is not a router.
    fn has_idle_slot(&self, d: usize, i: usize) -> bool {
        let deployment = &self.deployments[d];
        match (self.routers.get(i), self.leader_lock.holder) {
            (Some(router), _) => {
                let (held, busy, borrowed) = router.member.usage(deployment);
                held > busy + borrowed
            }
            (None, Some((coordinator, _))) => {
                self.routers[coordinator].ledger.slot_counts(deployment, self.local_now(coordinator)).free > 0
            }
            _ => false,
        }
    }

    /// Every slot is with the coordinator, and nothing is in flight.
    fn check_all_slots_free(&self) -> Checked {
        let coordinators: Vec<_> = (0..self.routers.len())
            .filter(|i| self.routers[*i].ledger.active_term(self.local_now(*i)).is_some())
            .collect();
        let [coordinator] = coordinators[..] else { return Err(format!("{coordinators:?} lead")) };
        for (d, deployment) in self.deployments.iter().enumerate() {
            let slots = self.routers[coordinator].ledger.slot_counts(deployment, self.local_now(coordinator));
            let caps: u32 = self.replicas.iter().filter(|r| r.deployment == d).map(|r| r.cap).sum();
            if (slots.free, slots.leased, slots.quarantined) != (caps, 0, 0) {
                return Err(format!("d{d} has {caps} slots, of which {slots:?}"));
            }
        }
        Ok(())
    }
}

fn merge_rosters(a: &PreviousHolders, b: PreviousHolders) -> PreviousHolders {
    match (a, b) {
        (PreviousHolders::Known(a), PreviousHolders::Known(b)) => {
            PreviousHolders::Known(a.union(&b).cloned().collect())
        }
        _ => PreviousHolders::Unknown,
    }
}
