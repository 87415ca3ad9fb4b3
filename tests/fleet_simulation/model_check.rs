//! An exhaustive check of small cases: every order of deliveries, disconnects, ticks, a crash, and a change of
//! coordinator. Time is a count that passes for all routers alike; a router that gets no messages while it passes is
//! slow, suspended or cut off.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inference_router::policy::fleet::ledger::{Ledger, PreviousHolders};
use inference_router::policy::fleet::member::{FleetMember, InMemoryShares, MembershipMode, SlotBasis};
use inference_router::policy::fleet::{
    FleetReplicaKey, FleetTiming, MemberId, QueueSnapshot, Term, ToCoordinator, ToMember,
};

const HOLD: u64 = 1;

/// What may still happen in a run.
#[derive(Clone, Hash)]
pub(crate) struct Budget {
    pub(crate) ticks: u32,
    pub(crate) requests: u32,
    pub(crate) disconnects: u32,
    pub(crate) crashes: u32,
    pub(crate) takeovers: u32,
    /// Of slots and of the term. Beats are sent every second tick: with a lease of one it is never renewed.
    pub(crate) lease_and_term_seconds: u64,
}

#[derive(Clone)]
struct Node {
    ledger: Ledger,
    member: FleetMember<InMemoryShares>,
    is_up: bool,
    /// A request waits; and the replicas of those in flight, that may last until they are aborted.
    has_queued_request: bool,
    in_flight_replicas: Vec<usize>,
    to_coordinator: VecDeque<ToCoordinator>,
    to_member: VecDeque<ToMember>,
    /// Which node it is connected to.
    connected_to: Option<usize>,
    /// When its term ends.
    term_ends_at: u64,
}

#[derive(Clone)]
pub(crate) struct Model {
    start: Instant,
    now: u64,
    nodes: Vec<Node>,
    replicas: Vec<FleetReplicaKey>,
    /// In flight of routers that have crashed, and when these would have aborted them.
    orphaned_requests: Vec<(usize, u64)>,
    coordinator: usize,
    term: u64,
    uses_roster: bool,
    budget: Budget,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Tick,
    DeliverToCoordinator(usize),
    DeliverToMember(usize),
    EnqueueRequest(usize),
    StartRequest(usize),
    FinishRequest(usize),
    Disconnect(usize),
    Connect(usize),
    Crash(usize),
    TakeOver(usize),
}

impl Model {
    pub(crate) fn new(routers: usize, roster: bool, budget: Budget) -> Self {
        let settings = FleetTiming {
            lease_duration: Duration::from_secs(budget.lease_and_term_seconds),
            heartbeat_interval: Duration::from_secs(2),
            report_interval: Duration::from_secs(9),
            idle_slot_timeout: Duration::from_secs(9),
            steal_threshold: Duration::from_secs(9),
            confirmation_validity: Duration::ZERO,
            max_clock_drift: 0.0,
        };
        let start = Instant::now();
        let key = |name| FleetReplicaKey { deployment: Arc::from("d"), name: Arc::from(name) };
        let replicas = vec![key("p"), key("q")];
        let nodes = (0..routers).map(|_| {
            let mut node = Node {
                ledger: Ledger::new(settings),
                member: FleetMember::new(settings, MembershipMode::Strict, InMemoryShares::default(), start),
                is_up: true,
                has_queued_request: false,
                in_flight_replicas: Vec::new(),
                to_coordinator: VecDeque::new(),
                to_member: VecDeque::new(),
                connected_to: None,
                term_ends_at: 0,
            };
            for key in &replicas {
                node.ledger.set_replica(key, 1, Duration::from_secs(HOLD), start);
                node.member.set_replica(key, 1, true, Duration::from_secs(HOLD));
            }
            node
        });
        let nodes = nodes.collect();
        let mut model = Self {
            start,
            now: 0,
            nodes,
            replicas,
            orphaned_requests: Vec::new(),
            coordinator: 0,
            term: 0,
            uses_roster: roster,
            budget,
        };
        model.become_coordinator(0);
        (0..routers).for_each(|i| model.step(Step::Connect(i)));
        model
    }

    fn id(i: usize) -> MemberId {
        MemberId { name: Arc::from(format!("r{i}")), incarnation: 0 }
    }

    fn time(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn become_coordinator(&mut self, i: usize) {
        self.term += 1;
        let all = (0..self.nodes.len()).map(Self::id).collect();
        let previous_holders = match self.term {
            1 => PreviousHolders::Known(BTreeSet::new()),
            _ if self.uses_roster => PreviousHolders::Known(all),
            _ => PreviousHolders::Unknown,
        };
        let now = self.time();
        self.coordinator = i;
        let lease = self.budget.lease_and_term_seconds;
        self.nodes[i].term_ends_at = self.now + lease;
        self.nodes[i].ledger.begin_term(Term(self.term), now + Duration::from_secs(lease), previous_holders, now);
        for node in self.nodes.iter_mut().filter(|node| node.connected_to == Some(i)) {
            node.connected_to = None;
            node.member.end_session();
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.is_up {
                continue;
            }
            if !node.to_coordinator.is_empty() {
                steps.push(Step::DeliverToCoordinator(i));
            }
            if !node.to_member.is_empty() {
                steps.push(Step::DeliverToMember(i));
            }
            if !node.has_queued_request && self.budget.requests > 0 {
                steps.push(Step::EnqueueRequest(i));
            }
            let now = self.time();
            if node.has_queued_request && self.replicas.iter().any(|key| node.member.concurrency_limit(key, now) > 0) {
                steps.push(Step::StartRequest(i));
            }
            if !node.in_flight_replicas.is_empty() {
                steps.push(Step::FinishRequest(i));
            }
            if node.connected_to.is_some() && self.budget.disconnects > 0 {
                steps.push(Step::Disconnect(i));
            }
            let elsewhere = node.connected_to.is_none_or(|at| at != self.coordinator);
            if elsewhere && self.nodes[self.coordinator].is_up {
                steps.push(Step::Connect(i));
            }
            if self.budget.crashes > 0 {
                steps.push(Step::Crash(i));
            }
            let over = self.now >= self.nodes[self.coordinator].term_ends_at
                || !self.nodes[self.coordinator].is_up && self.now > 0;
            if over && self.budget.takeovers > 0 {
                steps.push(Step::TakeOver(i));
            }
        }
        if self.budget.ticks > 0 {
            steps.push(Step::Tick);
        }
        steps
    }

    fn step(&mut self, step: Step) {
        let now = self.time();
        match step {
            Step::Tick => {
                self.now += 1;
                self.budget.ticks = self.budget.ticks.saturating_sub(1);
                self.orphaned_requests.retain(|orphan| orphan.1 > self.now);
                let now = self.time();
                // Clocks are alike, and who comes first at a moment does not matter: slots are free when all have aborted.
                for node in self.nodes.iter_mut().filter(|node| node.is_up) {
                    for key in node.member.tick(now) {
                        for r in std::mem::take(&mut node.in_flight_replicas) {
                            match self.replicas[r] == key {
                                true => node.member.finish_request(&key, SlotBasis::Leased),
                                false => node.in_flight_replicas.push(r),
                            }
                        }
                    }
                }
                for i in (0..self.nodes.len()).filter(|i| self.nodes[*i].is_up).collect::<Vec<_>>() {
                    self.nodes[i].ledger.tick(now);
                    self.deliver_outgoing(i);
                }
            }
            Step::DeliverToCoordinator(i) => {
                let to = self.nodes[i].connected_to;
                if let (Some(message), Some(to)) = (self.nodes[i].to_coordinator.pop_front(), to)
                    && self.nodes[to].is_up
                {
                    self.nodes[to].ledger.receive(&Self::id(i), message, now);
                    self.deliver_outgoing(to);
                }
            }
            Step::DeliverToMember(i) => {
                if let Some(message) = self.nodes[i].to_member.pop_front() {
                    self.nodes[i].member.receive(message, now);
                    self.deliver_outgoing(i);
                }
            }
            Step::EnqueueRequest(i) => {
                self.budget.requests -= 1;
                self.nodes[i].has_queued_request = true;
                self.set_queue(i);
                self.deliver_outgoing(i);
            }
            Step::StartRequest(i) => {
                for r in 0..self.replicas.len() {
                    if self.nodes[i].member.start_request(&self.replicas[r], now).is_some() {
                        self.nodes[i].has_queued_request = false;
                        self.nodes[i].in_flight_replicas.push(r);
                        break;
                    }
                }
                self.set_queue(i);
                self.deliver_outgoing(i);
            }
            Step::FinishRequest(i) => {
                let r = self.nodes[i].in_flight_replicas.remove(0);
                self.nodes[i].member.finish_request(&self.replicas[r], SlotBasis::Leased);
                self.deliver_outgoing(i);
            }
            Step::Disconnect(i) => {
                self.budget.disconnects -= 1;
                self.nodes[i].connected_to = None;
                self.nodes[i].member.end_session();
                self.nodes[i].to_coordinator.clear();
                self.nodes[i].to_member.clear();
            }
            Step::Connect(i) => {
                self.nodes[i].to_coordinator.clear();
                self.nodes[i].to_member.clear();
                self.nodes[i].connected_to = Some(self.coordinator);
                self.nodes[i].member.begin_session(now);
                self.deliver_outgoing(i);
            }
            Step::Crash(i) => {
                self.budget.crashes -= 1;
                self.nodes[i].is_up = false;
                let end = self.nodes[i].member.abort_at(&self.replicas[0].deployment) - self.start;
                let flights = std::mem::take(&mut self.nodes[i].in_flight_replicas);
                self.orphaned_requests.extend(flights.into_iter().map(|r| (r, end.as_secs())));
            }
            Step::TakeOver(i) => {
                self.budget.takeovers -= 1;
                self.become_coordinator(i);
                for j in 0..self.nodes.len() {
                    if !self.nodes[j].is_up {
                        self.nodes[i].ledger.member_ended(&Self::id(j), now);
                    }
                }
            }
        }
    }

    fn set_queue(&mut self, i: usize) {
        let now = self.start;
        let queue = self.nodes[i].has_queued_request.then_some(QueueSnapshot { length: 1, oldest: now, newest: now });
        self.nodes[i].member.set_queue(&Arc::from("d"), queue);
    }

    fn deliver_outgoing(&mut self, i: usize) {
        let now = self.time();
        if self.nodes[i].connected_to.is_some()
            && let Some(message) = self.nodes[i].member.outgoing(now)
        {
            self.nodes[i].to_coordinator.push_back(message);
        }
        // The coordinator's own member is called directly.
        if self.nodes[i].connected_to == Some(i)
            && let Some(message) = self.nodes[i].to_coordinator.pop_front()
        {
            self.nodes[i].ledger.receive(&Self::id(i), message, now);
        }
        for (id, message) in self.nodes[i].ledger.outgoing(now) {
            let to = (0..self.nodes.len()).find(|j| Self::id(*j) == id);
            if let Some(to) = to.filter(|to| self.nodes[*to].connected_to == Some(i)) {
                self.nodes[to].to_member.push_back(message);
            }
        }
        if self.nodes[i].connected_to == Some(i)
            && let Some(message) = self.nodes[i].to_member.pop_front()
        {
            self.nodes[i].member.receive(message, now);
            self.deliver_outgoing(i);
        }
    }

    fn check(&self) -> Result<(), String> {
        for r in 0..self.replicas.len() {
            let flights = self.nodes.iter().flat_map(|node| &node.in_flight_replicas);
            let in_flight = flights.chain(self.orphaned_requests.iter().map(|(r, _)| r)).filter(|on| **on == r).count();
            if in_flight > 1 {
                return Err(format!("{in_flight} on {r}"));
            }
        }
        self.nodes.iter().try_for_each(|node| node.ledger.audit())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.now, self.coordinator, self.term, &self.orphaned_requests, &self.budget).hash(&mut hasher);
        for node in &self.nodes {
            (node.is_up, node.has_queued_request, &node.in_flight_replicas, node.connected_to, node.term_ends_at)
                .hash(&mut hasher);
            (&node.ledger, &node.member, &node.to_coordinator, &node.to_member).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Visits every state that can be reached. Returns how many there are.
pub(crate) fn explore(model: Model, limit: usize) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let mut stack = vec![(model, Vec::new())];
    while let Some((model, path)) = stack.pop() {
        for step in model.steps() {
            let mut next = model.clone();
            next.step(step);
            let mut path: Vec<Step> = path.clone();
            path.push(step);
            next.check().map_err(|what| format!("{what} after {path:?}"))?;
            if seen.insert(next.fingerprint()) {
                stack.push((next, path));
            }
        }
        if seen.len() > limit {
            return Err(format!("more than {limit} states"));
        }
    }
    Ok(seen.len())
}
