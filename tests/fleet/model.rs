//! Small cases, exhaustively: every order of deliveries, breaks, ticks, a crash, a change of coordinator. Time is a count that
//! passes for everybody alike; who is told nothing while it passes is slow, paused or cut off.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inference_router::policy::fleet::ledger::{Former, Ledger};
use inference_router::policy::fleet::member::{AllShares, Kind, Member, Right};
use inference_router::policy::fleet::{Epoch, MemberId, Queue, ReplicaKey, Settings, ToCoordinator, ToMember};

const HOLD: u64 = 1;

/// What may still happen in a run.
#[derive(Clone, Hash)]
pub(crate) struct Budget {
    pub(crate) ticks: u32,
    pub(crate) requests: u32,
    pub(crate) breaks: u32,
    pub(crate) crashes: u32,
    pub(crate) takeovers: u32,
    /// Of slots and of the term. Beats are sent every second tick: with a lease of one it is never renewed.
    pub(crate) lease: u64,
}

#[derive(Clone)]
struct Node {
    ledger: Ledger,
    member: Member<AllShares>,
    up: bool,
    /// A request waits; and the replicas of those in flight, that may last until they are aborted.
    waits: bool,
    flights: Vec<usize>,
    up_link: VecDeque<ToCoordinator>,
    down_link: VecDeque<ToMember>,
    /// Which node it is connected to.
    at: Option<usize>,
    /// Until when it leads.
    until: u64,
}

#[derive(Clone)]
pub(crate) struct Model {
    start: Instant,
    now: u64,
    nodes: Vec<Node>,
    replicas: Vec<ReplicaKey>,
    /// In flight of routers that have crashed, and when these would have aborted them.
    orphans: Vec<(usize, u64)>,
    leader: usize,
    epoch: u64,
    roster: bool,
    budget: Budget,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Tick,
    Up(usize),
    Down(usize),
    Ask(usize),
    Start(usize),
    Finish(usize),
    Break(usize),
    Connect(usize),
    Crash(usize),
    TakeOver(usize),
}

impl Model {
    pub(crate) fn new(routers: usize, roster: bool, budget: Budget) -> Self {
        let settings = Settings {
            lease: Duration::from_secs(budget.lease),
            heartbeat: Duration::from_secs(2),
            report: Duration::from_secs(9),
            idle: Duration::from_secs(9),
            patience: Duration::from_secs(9),
            vouch: Duration::ZERO,
            drift: 0.0,
        };
        let start = Instant::now();
        let key = |name| ReplicaKey { deployment: Arc::from("d"), name: Arc::from(name) };
        let replicas = vec![key("p"), key("q")];
        let nodes = (0..routers).map(|_| {
            let mut node = Node {
                ledger: Ledger::new(settings),
                member: Member::new(settings, Kind::Strict, AllShares::default(), start),
                up: true,
                waits: false,
                flights: Vec::new(),
                up_link: VecDeque::new(),
                down_link: VecDeque::new(),
                at: None,
                until: 0,
            };
            for key in &replicas {
                node.ledger.set_replica(key, 1, Duration::from_secs(HOLD), start);
                node.member.set_replica(key, 1, true, Duration::from_secs(HOLD));
            }
            node
        });
        let nodes = nodes.collect();
        let mut model =
            Self { start, now: 0, nodes, replicas, orphans: Vec::new(), leader: 0, epoch: 0, roster, budget };
        model.lead(0);
        (0..routers).for_each(|i| model.step(Step::Connect(i)));
        model
    }

    fn id(i: usize) -> MemberId {
        MemberId { name: Arc::from(format!("r{i}")), incarnation: 0 }
    }

    fn time(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn lead(&mut self, i: usize) {
        self.epoch += 1;
        let all = (0..self.nodes.len()).map(Self::id).collect();
        let former = match self.epoch {
            1 => Former::Only(BTreeSet::new()),
            _ if self.roster => Former::Only(all),
            _ => Former::Anybody,
        };
        let now = self.time();
        self.leader = i;
        let lease = self.budget.lease;
        self.nodes[i].until = self.now + lease;
        self.nodes[i].ledger.lead(Epoch(self.epoch), now + Duration::from_secs(lease), former, now);
        for node in self.nodes.iter_mut().filter(|node| node.at == Some(i)) {
            node.at = None;
            node.member.disconnected();
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if !node.up {
                continue;
            }
            if !node.up_link.is_empty() {
                steps.push(Step::Up(i));
            }
            if !node.down_link.is_empty() {
                steps.push(Step::Down(i));
            }
            if !node.waits && self.budget.requests > 0 {
                steps.push(Step::Ask(i));
            }
            let now = self.time();
            if node.waits && self.replicas.iter().any(|key| node.member.allowed(key, now) > 0) {
                steps.push(Step::Start(i));
            }
            if !node.flights.is_empty() {
                steps.push(Step::Finish(i));
            }
            if node.at.is_some() && self.budget.breaks > 0 {
                steps.push(Step::Break(i));
            }
            let elsewhere = node.at.is_none_or(|at| at != self.leader);
            if elsewhere && self.nodes[self.leader].up {
                steps.push(Step::Connect(i));
            }
            if self.budget.crashes > 0 {
                steps.push(Step::Crash(i));
            }
            let over = self.now >= self.nodes[self.leader].until || !self.nodes[self.leader].up && self.now > 0;
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
                self.orphans.retain(|orphan| orphan.1 > self.now);
                let now = self.time();
                // Clocks are alike, and who comes first at a moment does not matter: slots are free when all have aborted.
                for node in self.nodes.iter_mut().filter(|node| node.up) {
                    for key in node.member.tick(now) {
                        for r in std::mem::take(&mut node.flights) {
                            match self.replicas[r] == key {
                                true => node.member.finish(&key, Right::Leased),
                                false => node.flights.push(r),
                            }
                        }
                    }
                }
                for i in (0..self.nodes.len()).filter(|i| self.nodes[*i].up).collect::<Vec<_>>() {
                    self.nodes[i].ledger.tick(now);
                    self.pump(i);
                }
            }
            Step::Up(i) => {
                let to = self.nodes[i].at;
                if let (Some(message), Some(to)) = (self.nodes[i].up_link.pop_front(), to)
                    && self.nodes[to].up
                {
                    self.nodes[to].ledger.receive(&Self::id(i), message, now);
                    self.pump(to);
                }
            }
            Step::Down(i) => {
                if let Some(message) = self.nodes[i].down_link.pop_front() {
                    self.nodes[i].member.receive(message, now);
                    self.pump(i);
                }
            }
            Step::Ask(i) => {
                self.budget.requests -= 1;
                self.nodes[i].waits = true;
                self.set_queue(i);
                self.pump(i);
            }
            Step::Start(i) => {
                for r in 0..self.replicas.len() {
                    if self.nodes[i].member.start(&self.replicas[r], now).is_some() {
                        self.nodes[i].waits = false;
                        self.nodes[i].flights.push(r);
                        break;
                    }
                }
                self.set_queue(i);
                self.pump(i);
            }
            Step::Finish(i) => {
                let r = self.nodes[i].flights.remove(0);
                self.nodes[i].member.finish(&self.replicas[r], Right::Leased);
                self.pump(i);
            }
            Step::Break(i) => {
                self.budget.breaks -= 1;
                self.nodes[i].at = None;
                self.nodes[i].member.disconnected();
                self.nodes[i].up_link.clear();
                self.nodes[i].down_link.clear();
            }
            Step::Connect(i) => {
                self.nodes[i].up_link.clear();
                self.nodes[i].down_link.clear();
                self.nodes[i].at = Some(self.leader);
                self.nodes[i].member.connected(now);
                self.pump(i);
            }
            Step::Crash(i) => {
                self.budget.crashes -= 1;
                self.nodes[i].up = false;
                let end = self.nodes[i].member.abort_at(&self.replicas[0].deployment) - self.start;
                let flights = std::mem::take(&mut self.nodes[i].flights);
                self.orphans.extend(flights.into_iter().map(|r| (r, end.as_secs())));
            }
            Step::TakeOver(i) => {
                self.budget.takeovers -= 1;
                self.lead(i);
                for j in 0..self.nodes.len() {
                    if !self.nodes[j].up {
                        self.nodes[i].ledger.ended(&Self::id(j), now);
                    }
                }
            }
        }
    }

    fn set_queue(&mut self, i: usize) {
        let now = self.start;
        let queue = self.nodes[i].waits.then_some(Queue { length: 1, oldest: now, newest: now });
        self.nodes[i].member.set_queue(&Arc::from("d"), queue);
    }

    fn pump(&mut self, i: usize) {
        let now = self.time();
        if self.nodes[i].at.is_some()
            && let Some(message) = self.nodes[i].member.outgoing(now)
        {
            self.nodes[i].up_link.push_back(message);
        }
        // The coordinator's own member is called directly.
        if self.nodes[i].at == Some(i)
            && let Some(message) = self.nodes[i].up_link.pop_front()
        {
            self.nodes[i].ledger.receive(&Self::id(i), message, now);
        }
        for (id, message) in self.nodes[i].ledger.outgoing(now) {
            let to = (0..self.nodes.len()).find(|j| Self::id(*j) == id);
            if let Some(to) = to.filter(|to| self.nodes[*to].at == Some(i)) {
                self.nodes[to].down_link.push_back(message);
            }
        }
        if self.nodes[i].at == Some(i)
            && let Some(message) = self.nodes[i].down_link.pop_front()
        {
            self.nodes[i].member.receive(message, now);
            self.pump(i);
        }
    }

    fn check(&self) -> Result<(), String> {
        for r in 0..self.replicas.len() {
            let flights = self.nodes.iter().flat_map(|node| &node.flights);
            let in_flight = flights.chain(self.orphans.iter().map(|(r, _)| r)).filter(|on| **on == r).count();
            if in_flight > 1 {
                return Err(format!("{in_flight} on {r}"));
            }
        }
        self.nodes.iter().try_for_each(|node| node.ledger.audit())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.now, self.leader, self.epoch, &self.orphans, &self.budget).hash(&mut hasher);
        for node in &self.nodes {
            (node.up, node.waits, &node.flights, node.at, node.until).hash(&mut hasher);
            (&node.ledger, &node.member, &node.up_link, &node.down_link).hash(&mut hasher);
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
