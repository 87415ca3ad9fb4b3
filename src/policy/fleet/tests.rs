//! The protocol, step by step: what `docs/fleet.md` says, in the order in which it says it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::{Former, Ledger, Slots};
use super::member::{AllShares, Kind, Member, Right, Standing};
use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// How long a request may last after its lease.
const HOLD: Duration = Duration::from_secs(5);

fn id(i: usize) -> MemberId {
    MemberId { name: Arc::from(format!("r{i}")), incarnation: 0 }
}

fn key(name: &str) -> ReplicaKey {
    ReplicaKey { deployment: Arc::from("d"), name: Arc::from(name) }
}

fn everybody(count: usize) -> Former {
    Former::Only((0..count).map(id).collect())
}

fn nobody() -> Former {
    Former::Only(BTreeSet::new())
}

/// A coordinator, its members, and streams between them. What is said arrives at once, or not at all.
struct Group {
    settings: Settings,
    now: Instant,
    ledger: Ledger,
    members: Vec<Member<AllShares>>,
    /// When the requests came that wait at each.
    queues: Vec<VecDeque<Instant>>,
    /// Whose messages are lost, both ways.
    cut_off: BTreeSet<usize>,
}

impl Group {
    /// Replica `p` has `cap` slots. The coordinator leads, and all members are in session.
    fn new(count: usize, cap: u32) -> Self {
        Self::of(Kind::Strict, count, cap)
    }

    fn of(kind: Kind, count: usize, cap: u32) -> Self {
        let settings = Settings::default();
        let now = Instant::now() + 1000 * SECOND;
        let members = (0..count).map(|_| Member::new(settings, kind, AllShares::default(), now)).collect();
        let (ledger, queues, cut_off) = (Ledger::new(settings), vec![VecDeque::new(); count], BTreeSet::new());
        let mut group = Self { settings, now, ledger, members, queues, cut_off };
        group.lead(1, nobody());
        group.ledger.set_replica(&key("p"), cap, HOLD, now);
        for i in 0..count {
            group.members[i].set_group(count as u32, i as u32);
            group.members[i].set_replica(&key("p"), cap, true, HOLD);
            group.connect(i);
        }
        group
    }

    fn lead(&mut self, epoch: u64, former: Former) {
        self.ledger.lead(Epoch(epoch), self.now + 1000 * SECOND, former, self.now);
    }

    /// Another coordinator, in its first moment: it knows the replica, and no member.
    fn succeed(&mut self, epoch: u64, former: Former, cap: u32) {
        self.ledger = Ledger::new(self.settings);
        self.ledger.set_replica(&key("p"), cap, HOLD, self.now);
        self.lead(epoch, former);
        self.members.iter_mut().for_each(Member::disconnected);
    }

    fn connect(&mut self, i: usize) {
        self.members[i].connected(self.now);
        self.talk();
    }

    /// Until nobody has anything to say.
    fn talk(&mut self) {
        for _ in 0..100 {
            let mut said = false;
            for i in 0..self.members.len() {
                self.dispatch(i);
                while let Some(message) = self.members[i].outgoing(self.now) {
                    said = true;
                    if !self.cut_off.contains(&i) {
                        self.ledger.receive(&id(i), message, self.now);
                    }
                }
            }
            for (to, message) in self.ledger.outgoing(self.now) {
                said = true;
                let to = (0..self.members.len()).find(|i| id(*i) == to).filter(|to| !self.cut_off.contains(to));
                if let Some(to) = to {
                    self.members[to].receive(message, self.now);
                }
            }
            self.ledger.audit().unwrap();
            if !said {
                return;
            }
        }
        panic!("they talk for ever");
    }

    /// Time passes. Returns who has to abort requests.
    fn pass(&mut self, time: Duration) -> BTreeSet<usize> {
        let end = self.now + time;
        let mut aborting = BTreeSet::new();
        while self.now < end {
            self.now = end.min(self.now + 50 * MILLISECOND);
            for (i, member) in self.members.iter_mut().enumerate() {
                if !member.tick(self.now).is_empty() {
                    aborting.insert(i);
                }
            }
            self.ledger.tick(self.now);
            self.talk();
        }
        aborting
    }

    /// Requests that wait are sent where they may, and the member is told of the others.
    fn dispatch(&mut self, i: usize) {
        while !self.queues[i].is_empty() && self.start(i).is_some() {
            self.queues[i].pop_front();
        }
        let queue = self.queues[i].front().zip(self.queues[i].back()).map(|(&oldest, &newest)| Queue {
            length: self.queues[i].len() as u32,
            oldest,
            newest,
        });
        self.members[i].set_queue(&key("p").deployment, queue);
    }

    /// So many requests come to a member, that have waited so long.
    fn ask(&mut self, i: usize, count: usize, age: Duration) {
        self.queues[i].extend(vec![self.now - age; count]);
        self.talk();
    }

    /// Those that wait leave.
    fn leave(&mut self, i: usize) {
        self.queues[i].clear();
        self.talk();
    }

    fn start(&mut self, i: usize) -> Option<Right> {
        self.members[i].start(&key("p"), self.now)
    }

    fn finish(&mut self, i: usize) {
        self.members[i].finish(&key("p"), Right::Leased);
        self.talk();
    }

    /// Requests in flight.
    fn busy(&self, i: usize) -> u32 {
        let (_, leased, borrowed) = self.members[i].count(&key("p").deployment);
        leased + borrowed
    }

    fn held(&self, i: usize) -> u32 {
        self.members[i].held(&key("p"))
    }

    /// Free, leased, in quarantine.
    fn slots(&self) -> (u32, u32, u32) {
        let Slots { free, leased, quarantined } = self.ledger.slots(&key("p").deployment, self.now);
        (free, leased, quarantined)
    }
}

// Who gets a slot.

#[test]
fn a_slot_goes_to_who_waits_is_spent_without_asking_and_comes_back_when_it_is_idle() {
    let mut group = Group::new(2, 1);
    assert_eq!((group.slots(), group.start(0)), ((1, 0, 0), None), "nothing is held before anybody waits");
    group.ask(0, 1, Duration::ZERO);
    assert_eq!((group.busy(0), group.held(0), group.slots()), (1, 1, (0, 1, 0)));
    for _ in 0..10 {
        assert_eq!(group.start(0), None, "one slot is one request");
        group.finish(0);
        assert_eq!(group.start(0), Some(Right::Leased), "nobody else wants it");
    }
    group.finish(0);
    group.pass(50 * MILLISECOND);
    assert_eq!(group.held(0), 1, "the next request may come soon");
    group.pass(150 * MILLISECOND);
    assert_eq!((group.held(0), group.slots()), (0, (1, 0, 0)));
}

#[test]
fn who_has_waited_longest_comes_first() {
    let mut group = Group::new(3, 1);
    group.ask(0, 1, Duration::ZERO);
    group.ask(1, 1, 10 * MILLISECOND);
    group.ask(2, 1, 20 * MILLISECOND);
    group.finish(0);
    assert_eq!((group.busy(0), group.busy(1), group.busy(2)), (0, 0, 1));
}

#[test]
fn who_stands_still_takes_no_more_slots_with_it_than_it_can_be_granted_unheard() {
    let mut group = Group::new(3, 8);
    group.ask(1, 8, Duration::ZERO);
    group.ask(0, 8, 20 * MILLISECOND);
    assert_eq!((group.busy(0), group.busy(1)), (0, 8));
    group.cut_off.insert(0);
    (0..8).for_each(|_| group.finish(1));
    group.ask(2, 8, Duration::ZERO);
    group.pass(200 * MILLISECOND);
    assert_eq!(group.busy(2), 7, "the other is granted to who is not heard of");
    // Those who hold slots do not give them up for it either.
    group.ask(2, 7, Duration::ZERO);
    (0..7).for_each(|_| group.finish(2));
    assert_eq!((group.busy(2), group.held(2)), (7, 7));
    group.cut_off.clear();
    group.connect(0);
    (0..7).for_each(|_| group.finish(2));
    assert_eq!((group.busy(0), group.busy(2)), (8, 0), "it has waited longest");
}

#[test]
fn who_hears_nothing_of_the_coordinator_keeps_most_of_what_it_holds() {
    let mut group = Group::new(2, 8);
    group.ask(0, 20, Duration::ZERO);
    group.ask(1, 8, 20 * MILLISECOND);
    group.cut_off.extend([0, 1]);
    (0..8).for_each(|_| group.finish(0));
    assert_eq!((group.held(0), group.busy(0)), (5, 5));
    (0..5).for_each(|_| group.finish(0));
    assert_eq!((group.held(0), group.busy(0)), (5, 5), "and goes on with it");
}

#[test]
fn a_slot_that_is_wanted_elsewhere_goes_there_when_its_request_ends_and_at_once_when_it_is_idle() {
    let mut group = Group::new(2, 2);
    group.ask(0, 2, Duration::ZERO);
    group.finish(0);
    assert_eq!((group.held(0), group.held(1)), (2, 0));
    group.ask(1, 2, Duration::ZERO);
    assert_eq!((group.busy(0), group.busy(1)), (1, 1), "the idle one moves, the busy one does not");
    group.finish(0);
    assert_eq!((group.held(0), group.busy(1)), (0, 2));
}

#[test]
fn a_slot_leaves_those_who_wait_at_home_only_for_requests_that_are_older_by_patience() {
    for (age, held) in [(4, (1, 0)), (6, (0, 1))] {
        let mut group = Group::new(2, 1);
        group.ask(0, 1, Duration::ZERO);
        group.ask(0, 1, 10 * MILLISECOND);
        group.ask(1, 1, (10 + age) * MILLISECOND);
        group.finish(0);
        assert_eq!((group.held(0), group.held(1)), held, "{age} ms older");
    }
}

#[test]
fn a_request_that_has_left_wants_nothing_any_more() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    group.ask(1, 1, SECOND);
    group.leave(1);
    group.pass(200 * MILLISECOND);
    group.finish(0);
    assert_eq!((group.held(0), group.held(1)), (1, 0));
}

#[test]
fn a_grant_counts_from_when_it_is_sent_and_one_that_is_lost_comes_back_with_the_next_hello() {
    let mut group = Group::new(2, 1);
    group.queues[0].push_back(group.now);
    group.dispatch(0);
    let demand = group.members[0].outgoing(group.now).unwrap();
    group.ledger.receive(&id(0), demand, group.now);
    group.cut_off.insert(0);
    group.talk();
    assert_eq!((group.held(0), group.slots()), (0, (0, 1, 0)));
    group.ask(1, 1, Duration::ZERO);
    assert_eq!(group.busy(1), 0);
    group.cut_off.clear();
    group.queues[0].clear();
    group.connect(0);
    assert_eq!(group.busy(1), 1);
}

#[test]
fn who_was_granted_a_slot_and_does_not_know_it_yet_is_not_granted_another_for_the_same_request() {
    let mut group = Group::new(1, 4);
    let demand = |group: &mut Group| {
        group.queues[0].push_back(group.now);
        group.dispatch(0);
        group.members[0].outgoing(group.now).unwrap()
    };
    let first = demand(&mut group);
    group.ledger.receive(&id(0), first, group.now);
    let granted = group.ledger.outgoing(group.now);
    // Messages cross: this one says that two wait.
    let second = demand(&mut group);
    granted.into_iter().for_each(|(_, message)| group.members[0].receive(message, group.now));
    group.ledger.receive(&id(0), second, group.now);
    group.talk();
    assert_eq!((group.busy(0), group.held(0)), (2, 2), "two requests, two slots");
}

#[test]
fn a_replica_that_a_member_cannot_use_is_not_granted_to_it_and_what_it_holds_goes_back() {
    let mut group = Group::new(2, 2);
    group.ask(0, 1, Duration::ZERO);
    group.finish(0);
    group.members[0].set_replica(&key("p"), 2, false, HOLD);
    group.ask(0, 1, Duration::ZERO);
    assert_eq!((group.held(0), group.slots()), (0, (2, 0, 0)));
    group.members[0].set_replica(&key("p"), 2, true, HOLD);
    group.talk();
    assert_eq!(group.busy(0), 1);
}

// Caps.

#[test]
fn slots_beyond_a_lowered_cap_are_recalled_as_their_requests_end_though_the_member_does_not_know_the_cap() {
    let mut group = Group::new(2, 2);
    group.ask(0, 2, Duration::ZERO);
    group.ledger.set_replica(&key("p"), 1, HOLD, group.now);
    group.talk();
    assert_eq!(group.held(0), 2, "what is in flight is not aborted");
    group.finish(0);
    assert_eq!(
        (group.held(0), group.start(0), group.slots()),
        (1, None, (0, 1, 0)),
        "one is in flight, and one may be"
    );
    group.finish(0);
    assert_eq!(group.start(0), Some(Right::Leased));
}

#[test]
fn of_a_lowered_cap_those_who_have_most_give_first() {
    let mut group = Group::new(2, 4);
    group.ask(0, 3, Duration::ZERO);
    group.ask(1, 1, Duration::ZERO);
    group.ledger.set_replica(&key("p"), 2, HOLD, group.now);
    group.talk();
    (0..3).for_each(|_| group.finish(0));
    group.finish(1);
    assert_eq!((group.held(0), group.held(1)), (1, 1));
}

#[test]
fn a_raised_cap_is_granted_to_who_waits() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    group.ask(1, 1, Duration::ZERO);
    group.ledger.set_replica(&key("p"), 2, HOLD, group.now);
    group.members[1].set_replica(&key("p"), 2, true, HOLD);
    group.talk();
    assert_eq!(group.busy(1), 1);
}

// Silence.

#[test]
fn beats_renew_a_lease_and_without_them_it_ends_a_lease_after_the_last_that_was_answered_was_sent() {
    let mut group = Group::new(1, 1);
    group.ask(0, 1, Duration::ZERO);
    group.pass(60 * SECOND);
    assert_eq!(group.members[0].standing(group.now), Standing::Leased);
    let sent = group.now + SECOND;
    let beat = group.members[0].outgoing(sent).unwrap();
    group.now = sent + 2 * SECOND;
    group.ledger.receive(&id(0), beat, group.now);
    for (_, answer) in group.ledger.outgoing(group.now) {
        group.members[0].receive(answer, group.now);
    }
    group.members[0].finish(&key("p"), Right::Leased);
    let lease = group.settings.lease;
    assert_eq!(group.members[0].standing(sent + lease - MILLISECOND), Standing::Leased);
    assert_eq!(group.members[0].standing(sent + lease), Standing::Nothing);
    assert_eq!(group.members[0].start(&key("p"), sent + lease), None, "the clock decides, not a tick");
}

#[test]
fn slots_of_a_silent_member_are_free_when_surely_nothing_is_in_flight_there() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    group.ask(1, 1, Duration::ZERO);
    group.cut_off.insert(0);
    let (lease, hold) = (group.settings.surely(group.settings.lease), group.settings.surely(HOLD));
    let began = group.now;
    group.pass(lease - MILLISECOND);
    assert_eq!(group.slots(), (0, 1, 0));
    group.pass(MILLISECOND);
    assert_eq!(group.slots(), (0, 0, 1));
    // Nine seconds of its own clock are ten of another.
    let aborted_at = group.members[0].abort_at(&key("p").deployment);
    assert!((aborted_at - began).mul_f64(1.1 / 0.9) <= lease + hold);
    group.pass(hold - MILLISECOND);
    assert_eq!((group.slots(), group.held(1)), ((0, 0, 1), 0));
    group.pass(MILLISECOND);
    assert_eq!((group.slots(), group.held(1)), ((0, 1, 0), 1));
}

#[test]
fn a_member_aborts_what_runs_for_too_long_after_its_lease_has_expired() {
    let mut group = Group::new(1, 1);
    group.ask(0, 1, Duration::ZERO);
    group.cut_off.insert(0);
    let lease = group.settings.lease;
    assert_eq!(group.pass(lease + HOLD - MILLISECOND), BTreeSet::new());
    assert_eq!(group.members[0].wake_at(group.now), Some(group.now + MILLISECOND));
    assert_eq!(group.pass(MILLISECOND), BTreeSet::from([0]));
    assert_eq!(group.members[0].tick(group.now), [key("p")], "until it is done");
    group.members[0].finish(&key("p"), Right::Leased);
    assert_eq!(group.members[0].tick(group.now), []);
}

#[test]
fn a_member_that_comes_back_in_quarantine_goes_on_with_what_is_in_flight() {
    let mut group = Group::new(2, 2);
    group.ask(0, 2, Duration::ZERO);
    group.finish(0);
    group.cut_off.insert(0);
    group.pass(13 * SECOND);
    assert_eq!((group.slots(), group.start(0)), ((0, 0, 2), None));
    group.cut_off.clear();
    group.connect(0);
    assert_eq!((group.slots(), group.held(0)), ((1, 1, 0), 1), "the idle one it may not claim, it has expired");
}

#[test]
fn what_is_overdue_for_an_abort_is_claimed_without_a_right_to_it() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    // It is paused, and after that looks for the coordinator before it does anything else.
    group.now += group.settings.lease + HOLD;
    group.succeed(2, Former::Anybody, 1);
    group.members[0].connected(group.now);
    let Some(ToCoordinator::Hello(hello)) = group.members[0].outgoing(group.now) else { panic!("it says hello") };
    assert_eq!(hello.claims, [Claim { replica: key("p"), slots: 0, out: 1 }]);
    group.ledger.receive(&id(0), ToCoordinator::Hello(hello), group.now);
    group.talk();
    group.finish(0);
    assert_eq!((group.start(0), group.slots()), (None, (0, 0, 1)), "it may be another's");
}

#[test]
fn a_member_whose_process_has_ended_is_waited_for_as_long_as_its_requests_may_last() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    group.cut_off.insert(0);
    group.ledger.ended(&id(0), group.now);
    let hold = group.settings.surely(HOLD);
    group.pass(hold - MILLISECOND);
    assert_eq!(group.slots().0, 0);
    group.pass(MILLISECOND);
    assert_eq!(group.slots(), (1, 0, 0));
    assert_eq!(group.ledger.roster(group.now), Former::Only(BTreeSet::from([id(1)])));
}

#[test]
fn demand_that_was_forgotten_in_a_silence_is_said_again_with_the_next_beat() {
    let mut group = Group::new(2, 1);
    group.ask(1, 1, Duration::ZERO);
    group.ask(0, 1, Duration::ZERO);
    group.leave(1);
    // It is stopped for longer than its lease, its stream is not broken, and another is served meanwhile.
    group.cut_off.insert(0);
    group.pass(13 * SECOND);
    group.cut_off.clear();
    group.pass(SECOND);
    group.finish(1);
    assert_eq!((group.busy(0), group.held(1)), (1, 0));
}

#[test]
fn a_member_that_is_not_answered_is_lost_and_asks_to_be_woken_up_for_it_once() {
    let mut group = Group::new(1, 1);
    group.cut_off.insert(0);
    let deaf = group.now + 3 * SECOND;
    let mut moments = 0;
    while let Some(at) = group.members[0].wake_at(group.now).filter(|at| *at <= deaf + SECOND) {
        assert!(at > group.now, "it would spin");
        group.now = at;
        assert_eq!(group.members[0].is_lost(at), at >= deaf);
        group.members[0].tick(at);
        while group.members[0].outgoing(at).is_some() {}
        moments += 1;
    }
    assert!(moments <= 4, "{moments}");
}

// Change of coordinator.

#[test]
fn a_new_coordinator_grants_nothing_until_everybody_on_the_roster_has_said_what_it_holds() {
    let mut group = Group::new(3, 3);
    group.ask(0, 1, Duration::ZERO);
    let roster = group.ledger.roster(group.now);
    assert_eq!(roster, everybody(3));
    group.succeed(2, roster, 3);
    assert_eq!(group.slots(), (0, 0, 3));
    group.queues[1].push_back(group.now);
    group.connect(0);
    assert_eq!((group.slots(), group.busy(0)), ((0, 1, 2), 1), "what is claimed is where it is");
    group.connect(1);
    assert_eq!((group.slots(), group.busy(1)), ((0, 1, 2), 0));
    group.connect(2);
    assert_eq!((group.slots(), group.busy(1)), ((1, 2, 0), 1));
}

#[test]
fn who_is_known_to_have_ended_need_not_report_but_its_requests_are_waited_for() {
    let mut group = Group::new(2, 2);
    group.ask(0, 1, Duration::ZERO);
    group.succeed(2, everybody(2), 2);
    group.cut_off.insert(0);
    group.ledger.ended(&id(0), group.now);
    group.connect(1);
    let hold = group.settings.surely(HOLD);
    group.pass(hold - MILLISECOND);
    assert_eq!(group.slots(), (0, 0, 2));
    group.pass(MILLISECOND);
    assert_eq!(group.slots(), (2, 0, 0));
}

#[test]
fn who_may_be_anybody_is_waited_for_until_its_lease_has_ended_at_the_latest_and_its_requests_too() {
    for former in [Former::Anybody, everybody(3)] {
        let mut group = Group::new(2, 2);
        group.succeed(2, former, 2);
        (0..2).for_each(|i| group.connect(i));
        let settings = group.settings;
        let doubt = settings.surely(settings.vouch) + settings.surely(settings.lease) + settings.surely(HOLD);
        group.pass(doubt - MILLISECOND);
        assert_eq!(group.slots(), (0, 0, 2));
        group.pass(MILLISECOND);
        assert_eq!(group.slots(), (2, 0, 0));
    }
}

#[test]
fn the_word_of_members_is_waited_for_only_from_when_the_new_coordinator_last_heard_the_old_one() {
    for (ago, saved) in [(Duration::ZERO, Duration::ZERO), (SECOND, SECOND), (60 * SECOND, 60 * SECOND)] {
        let mut group = Group::new(2, 2);
        let settings = group.settings;
        let vouch = settings.surely(settings.vouch).saturating_sub(saved);
        group.succeed(2, Former::Anybody, 2);
        group.ledger.last_heard(group.now - ago);
        let doubt = vouch + settings.surely(settings.lease) + settings.surely(HOLD);
        group.pass(doubt - MILLISECOND);
        assert_eq!(group.slots(), (0, 0, 2));
        group.pass(MILLISECOND);
        assert_eq!(group.slots(), (2, 0, 0));
    }
    let mut group = Group::new(1, 1);
    group.pass(SECOND);
    let heard = group.now;
    group.cut_off.insert(0);
    group.pass(10 * SECOND);
    assert_eq!(group.members[0].heard_at(), heard);
}

#[test]
fn a_process_has_ended_when_there_is_a_later_one_of_its_name() {
    let mut group = Group::new(2, 2);
    group.ask(0, 1, Duration::ZERO);
    group.succeed(2, everybody(2), 2);
    group.connect(1);
    assert_eq!(group.slots(), (0, 0, 2));
    let later = MemberId { incarnation: 1, ..id(0) };
    let hello =
        Hello { epoch: Epoch(0), session: 1, beat: 1, claims: vec![], barred: vec![], demand: vec![], loads: vec![] };
    group.ledger.receive(&later, ToCoordinator::Hello(hello), group.now);
    group.cut_off.insert(0);
    let hold = group.settings.surely(HOLD);
    group.pass(hold - MILLISECOND);
    assert_eq!(group.slots(), (0, 0, 2), "its requests are waited for");
    group.pass(MILLISECOND);
    assert_eq!(group.slots(), (2, 0, 0));
}

#[test]
fn while_in_doubt_a_raised_cap_or_another_replica_does_not_make_slots_free() {
    let mut group = Group::new(2, 1);
    group.succeed(2, everybody(2), 1);
    group.connect(0);
    group.ledger.set_replica(&key("p"), 3, HOLD, group.now);
    group.ledger.set_replica(&key("q"), 1, HOLD, group.now);
    // It is not ready, and is again: these slots were counted.
    group.ledger.set_replica(&key("p"), 0, HOLD, group.now);
    group.ledger.set_replica(&key("p"), 3, HOLD, group.now);
    group.talk();
    assert_eq!(group.slots(), (0, 0, 4));
    group.connect(1);
    assert_eq!(group.slots(), (4, 0, 0));
}

#[test]
fn a_claim_of_more_than_there_is_counts_and_is_given_up_as_requests_end() {
    let mut group = Group::new(1, 2);
    group.ask(0, 2, Duration::ZERO);
    group.succeed(2, everybody(1), 1);
    group.connect(0);
    assert_eq!((group.held(0), group.slots()), (2, (0, 2, 0)));
    group.finish(0);
    assert_eq!((group.held(0), group.start(0)), (1, None));
}

#[test]
fn a_claim_on_a_replica_that_the_coordinator_does_not_know_yet_counts_when_it_does() {
    for knows_the_deployment in [true, false] {
        let mut group = Group::new(1, 1);
        group.ask(0, 1, Duration::ZERO);
        group.succeed(2, everybody(1), 1);
        group.ledger.forget_replica(&key("p"));
        if knows_the_deployment {
            group.ledger.set_replica(&key("q"), 1, HOLD, group.now);
        }
        group.connect(0);
        assert_eq!((group.busy(0), group.start(0)), (1, None));
        group.ledger.set_replica(&key("p"), 1, HOLD, group.now);
        group.talk();
        assert_eq!(group.ledger.holders(&key("p")), [(id(0), 1)]);
        assert_eq!(group.slots(), (u32::from(knows_the_deployment), 1, 0));
    }
}

#[test]
fn who_asks_before_the_coordinator_knows_of_the_deployment_is_served_when_it_does() {
    let mut group = Group::new(2, 1);
    group.ledger = Ledger::new(group.settings);
    group.lead(2, nobody());
    group.members.iter_mut().for_each(Member::disconnected);
    group.connect(0);
    group.connect(1);
    group.ask(0, 1, Duration::ZERO);
    assert_eq!(group.busy(0), 0);
    // What is of no use to anybody goes; this is.
    group.ledger.forget(&Arc::from("another"));
    group.ledger.set_replica(&key("p"), 1, HOLD, group.now);
    group.talk();
    assert_eq!(group.busy(0), 1);
}

#[test]
fn what_was_known_of_a_deployment_goes_with_it_when_nothing_of_it_is_in_use() {
    let mut group = Group::new(1, 1);
    group.ask(0, 1, Duration::ZERO);
    group.ledger.set_replica(&key("p"), 0, HOLD, group.now);
    group.ledger.forget(&key("p").deployment);
    group.ledger.set_replica(&key("p"), 1, HOLD, group.now);
    assert_eq!(group.ledger.holders(&key("p")), [(id(0), 1)], "it is in use");
    group.finish(0);
    group.ledger.set_replica(&key("p"), 0, HOLD, group.now);
    group.talk();
    group.ledger.forget(&key("p").deployment);
    assert_eq!(group.slots(), (0, 0, 0));
    group.ledger.set_replica(&key("p"), 1, HOLD, group.now);
    group.ask(0, 1, Duration::ZERO);
    assert_eq!(group.busy(0), 1);
}

#[test]
fn a_coordinator_whose_term_is_over_grants_and_renews_nothing() {
    let mut group = Group::new(1, 1);
    group.ledger.extend(group.now);
    group.ask(0, 1, Duration::ZERO);
    assert_eq!(group.busy(0), 0);
    assert_eq!((group.ledger.leads(group.now), group.members[0].session()), (None, None), "its member looks elsewhere");
}

#[test]
fn a_coordinator_that_hears_of_a_later_one_says_nothing_more() {
    let mut group = Group::new(2, 2);
    group.queues[0].push_back(group.now);
    group.dispatch(0);
    let demand = group.members[0].outgoing(group.now).unwrap();
    group.ledger.receive(&id(0), demand, group.now);
    let hello =
        Hello { epoch: Epoch(7), session: 9, beat: 1, claims: vec![], barred: vec![], demand: vec![], loads: vec![] };
    group.ledger.receive(&id(1), ToCoordinator::Hello(hello), group.now);
    assert_eq!(group.ledger.superseded(), Some(Epoch(7)));
    let refused = ToMember::Refused { epoch: Epoch(7), session: 9 };
    assert_eq!(group.ledger.outgoing(group.now), [(id(1), refused)]);
    assert_eq!(group.ledger.vouched([&id(0)], group.now), None);
}

#[test]
fn a_coordinator_that_gives_up_sends_its_members_away_and_remembers_replicas() {
    let mut group = Group::new(2, 2);
    group.ask(0, 1, Duration::ZERO);
    group.ledger.resign();
    group.talk();
    assert_eq!((group.members[0].session(), group.members[1].session()), (None, None));
    assert_eq!(group.start(0), None);
    assert_eq!(group.held(0), 1, "it goes on with what it holds");
    group.lead(3, nobody());
    assert_eq!(group.slots(), (2, 0, 0));
}

#[test]
fn members_vouch_for_a_term_up_to_when_the_answer_was_given_that_their_last_beat_answers() {
    let mut group = Group::new(2, 1);
    assert_eq!(group.ledger.vouched([&id(0), &id(1)], group.now), None, "they have answered nothing yet");
    let answered = group.now;
    group.pass(SECOND);
    assert_eq!(group.ledger.vouched([&id(0), &id(1)], group.now), Some(answered));
    assert_eq!(group.ledger.vouched([&id(0), &id(2)], group.now), None, "one has no session");
    group.cut_off.insert(1);
    group.pass(2 * SECOND);
    assert_eq!(group.ledger.vouched([&id(0), &id(1)], group.now), Some(answered), "one is silent");
    assert_eq!(group.ledger.vouched([&id(0)], group.now), Some(answered + 2 * SECOND));
}

// Old messages.

#[test]
fn a_member_takes_nothing_from_a_coordinator_of_the_past() {
    let mut group = Group::new(1, 1);
    group.succeed(2, nobody(), 1);
    group.connect(0);
    let session = group.members[0].connected(group.now);
    group.members[0].outgoing(group.now);
    let (epoch, valid) = (Epoch(1), group.now + 9 * SECOND);
    group.members[0].receive(ToMember::Welcome { epoch, session, beat: 2, keep: vec![] }, group.now + SECOND);
    assert_eq!((group.members[0].session(), group.members[0].epoch()), (None, Epoch(2)));
    assert_eq!(group.members[0].standing(valid + SECOND), Standing::Nothing);
}

#[test]
fn a_member_takes_nothing_from_another_session() {
    let mut group = Group::new(1, 1);
    let (epoch, session) = (Epoch(1), group.members[0].session().unwrap());
    let update = |session| {
        let granted = vec![(key("p"), 1)];
        ToMember::Update(Update { epoch, session, beat: None, granted, keep: vec![], wanted: vec![] })
    };
    group.members[0].receive(update(session - 1), group.now);
    assert_eq!(group.held(0), 0);
    group.members[0].disconnected();
    group.members[0].receive(update(session), group.now);
    assert_eq!(group.held(0), 0);
    group.members[0].connected(group.now);
    group.members[0].receive(update(session), group.now);
    group.members[0].receive(update(session + 1), group.now);
    assert_eq!(group.held(0), 0, "it has not been welcomed");
}

#[test]
fn a_coordinator_takes_nothing_from_another_session() {
    let mut group = Group::new(2, 1);
    group.ask(0, 1, Duration::ZERO);
    let session = group.members[0].session().unwrap();
    let report = |session| {
        let returned = vec![(key("p"), 1)];
        ToCoordinator::Report(Report {
            epoch: Epoch(1),
            session,
            beat: None,
            returned,
            barred: vec![],
            demand: vec![],
            loads: vec![],
        })
    };
    group.connect(0);
    for session in [session, session + 2] {
        group.ledger.receive(&id(0), report(session), group.now);
        assert_eq!(group.slots(), (0, 1, 0));
        let refused = ToMember::Refused { epoch: Epoch(1), session };
        assert_eq!(group.ledger.outgoing(group.now), [(id(0), refused)]);
    }
    let hello =
        Hello { epoch: Epoch(1), session, beat: 1, claims: vec![], barred: vec![], demand: vec![], loads: vec![] };
    group.ledger.receive(&id(0), ToCoordinator::Hello(hello), group.now);
    assert_eq!(group.slots(), (0, 1, 0), "a hello that is late claims nothing, and frees nothing");
    group.ledger.disconnected(&id(0), session);
    group.ledger.receive(&id(0), report(session + 1), group.now);
    assert_eq!(group.slots(), (1, 0, 0), "the end of the old stream is not the end of the new one");
}

// What the autoscaler needs.

fn near(a: f64, b: f64, within: f64) {
    assert!((a - b).abs() <= within, "{a} is not {b}");
}

/// So many requests are in flight at a member, and one waits, for a while. It tells once per report, when something changes.
fn load(group: &mut Group, loads: &mut [Load], busy: &[u32], time: Duration) {
    let (report, seconds) = (100 * MILLISECOND, |time: Duration| time.as_secs_f64());
    for (load, busy) in loads.iter_mut().zip(busy) {
        (load.busy, load.sums.arrived) = (*busy, load.sums.arrived + f64::from(*busy));
    }
    for round in 0..time.as_millis() / report.as_millis() {
        for (i, load) in loads.iter_mut().enumerate() {
            load.sums.time += seconds(report);
            load.sums.present += seconds(report) * f64::from(load.busy);
            group.members[i].set_load(&key("p").deployment, *load);
            while let Some(message) = group.members[i].outgoing(group.now) {
                if let ToCoordinator::Report(report) = &message {
                    assert!(report.loads.is_empty() || load.busy > 0 || round < 2, "nothing has changed");
                }
                if !group.cut_off.contains(&i) {
                    group.ledger.receive(&id(i), message, group.now);
                }
            }
        }
        group.pass(report);
    }
}

#[test]
fn what_goes_on_at_all_members_adds_up_to_the_signals_of_one_router() {
    let mut group = Group::new(2, 8);
    let deployment = key("p").deployment;
    let mut loads = [Load::default(); 2];
    load(&mut group, &mut loads, &[2, 3], SECOND);
    group.ledger.take_signals(&deployment, group.now);
    for _ in 0..5 {
        // Whenever it is asked.
        load(&mut group, &mut loads, &[2, 3], 700 * MILLISECOND);
        let signals = group.ledger.take_signals(&deployment, group.now);
        near(signals.busy, 5.0, 1e-6);
        near(signals.arrived_per_second, 5.0 / 0.7, 1e-6);
        assert!(!signals.is_cold);
        assert_eq!(group.ledger.present(&deployment, group.now), (5, 0));
    }
}

#[test]
fn who_has_nothing_going_on_says_nothing_and_the_time_of_that_does_not_thin_out_what_comes_then() {
    let mut group = Group::new(2, 8);
    let deployment = key("p").deployment;
    let mut loads = [Load::default(); 2];
    load(&mut group, &mut loads, &[0, 0], 30 * SECOND);
    assert_eq!(group.ledger.take_signals(&deployment, group.now).busy, 0.0);
    assert_eq!(group.members[0].outgoing(group.now), None);
    load(&mut group, &mut loads, &[0, 0], 600 * MILLISECOND);
    load(&mut group, &mut loads, &[4, 0], 400 * MILLISECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 1.6, 0.3);
    load(&mut group, &mut loads, &[4, 0], SECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 4.0, 1e-6);
    load(&mut group, &mut loads, &[0, 0], SECOND);
    load(&mut group, &mut loads, &[0, 0], SECOND);
    group.ledger.take_signals(&deployment, group.now);
    assert_eq!(group.ledger.take_signals(&deployment, group.now).busy, 0.0);
}

#[test]
fn of_a_silent_member_the_last_is_taken_until_its_lease_has_expired_and_it_is_known_to_be_silent() {
    let mut group = Group::new(2, 8);
    let deployment = key("p").deployment;
    let mut loads = [Load::default(); 2];
    load(&mut group, &mut loads, &[2, 3], 2 * SECOND);
    assert_eq!(group.ledger.silent(group.now).count(), 0);
    group.ledger.take_signals(&deployment, group.now);
    group.cut_off.insert(1);
    load(&mut group, &mut loads, &[2, 3], 5 * SECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 5.0, 1e-6);
    assert_eq!(group.ledger.silent(group.now).collect::<Vec<_>>(), [&id(1)]);
    group.cut_off.clear();
    group.connect(1);
    load(&mut group, &mut loads, &[2, 3], SECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 5.0, 1e-6);
    group.cut_off.insert(1);
    load(&mut group, &mut loads, &[2, 3], 14 * SECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 2.0, 1e-6);
    assert_eq!(group.ledger.present(&deployment, group.now), (2, 0));
}

#[test]
fn what_went_on_while_a_member_could_not_be_heard_does_not_come_as_one_interval() {
    let mut group = Group::new(1, 8);
    let deployment = key("p").deployment;
    let mut loads = [Load::default()];
    load(&mut group, &mut loads, &[0], SECOND);
    group.ledger.take_signals(&deployment, group.now);
    group.cut_off.insert(0);
    for _ in 0..5 {
        load(&mut group, &mut loads, &[4], SECOND);
        assert_eq!(group.ledger.take_signals(&deployment, group.now).busy, 0.0);
    }
    group.cut_off.clear();
    group.connect(0);
    load(&mut group, &mut loads, &[4], SECOND);
    near(group.ledger.take_signals(&deployment, group.now).busy, 4.0, 0.7);
}

#[test]
fn a_new_coordinator_does_not_take_what_went_on_before_for_an_interval() {
    let mut group = Group::new(1, 8);
    let mut loads = [Load::default()];
    load(&mut group, &mut loads, &[3], 60 * SECOND);
    group.succeed(2, everybody(1), 8);
    group.connect(0);
    let signals = group.ledger.take_signals(&key("p").deployment, group.now);
    assert_eq!((signals.busy, signals.arrived_per_second), (3.0, 0.0));
}

// The end.

#[test]
fn a_router_that_ends_gives_each_slot_back_as_it_becomes_free_and_then_says_good_bye() {
    let mut group = Group::new(2, 3);
    group.ask(0, 3, Duration::ZERO);
    group.finish(0);
    group.members[0].retire();
    group.ask(0, 1, Duration::ZERO);
    assert_eq!((group.slots(), group.start(0)), ((1, 2, 0), None));
    group.finish(0);
    assert_eq!((group.slots(), group.members[0].session().is_some()), ((2, 1, 0), true));
    group.finish(0);
    assert_eq!((group.slots(), group.members[0].session()), ((3, 0, 0), None));
    assert_eq!(group.ledger.roster(group.now), Former::Only(BTreeSet::from([id(1)])));
}

// Fallback.

#[test]
fn cut_off_for_longer_than_its_lease_a_router_serves_its_fair_share_or_nothing() {
    for (kind, standing, right) in
        [(Kind::Strict, Standing::Nothing, None), (Kind::Available, Standing::Fallback, Some(Right::Borrowed))]
    {
        let mut group = Group::of(kind, 2, 4);
        assert_eq!(group.members[1].standing(group.now), Standing::Leased);
        (0..2).for_each(|i| _ = group.cut_off.insert(i));
        group.pass(group.settings.lease);
        assert_eq!(group.members[1].standing(group.now), standing);
        assert_eq!(group.start(1), right);
        assert_eq!(group.members[1].allowed(&key("p"), group.now), if right.is_some() { 4 } else { 0 });
    }
}

#[test]
fn a_router_that_was_asleep_borrows_nothing_before_it_could_have_heard_of_its_coordinator() {
    let mut group = Group::of(Kind::Available, 2, 4);
    (0..2).for_each(|i| _ = group.cut_off.insert(i));
    group.pass(group.settings.lease);
    let (now, half) = (group.now, group.settings.lease / 2);
    group.members[1].woken(now);
    assert_eq!(group.members[1].standing(now + half - MILLISECOND), Standing::Nothing);
    assert_eq!(group.start(1), None);
    assert_eq!(group.members[1].standing(now + half), Standing::Fallback);
}

#[test]
fn fair_shares_are_on_different_replicas_at_different_routers() {
    let mut group = Group::of(Kind::Available, 2, 1);
    for i in 0..2 {
        group.members[i].set_replica(&key("q"), 1, true, HOLD);
        group.cut_off.insert(i);
    }
    group.pass(group.settings.lease);
    let allowed = |i: usize, name| group.members[i].allowed(&key(name), group.now);
    assert_eq!([allowed(0, "p"), allowed(0, "q")], [1, 0]);
    assert_eq!([allowed(1, "p"), allowed(1, "q")], [0, 1]);
}

#[test]
fn a_router_that_was_never_let_in_borrows_nothing() {
    let settings = Settings::default();
    let start = Instant::now();
    let mut member = Member::new(settings, Kind::Available, AllShares::default(), start);
    assert_eq!(member.standing(start + settings.lease * 9), Standing::Nothing);
    // Nor if it finds who coordinates, and is not let in.
    member.connected(start);
    assert!(member.outgoing(start).is_some());
    member.disconnected();
    assert_eq!(member.standing(start + settings.lease * 9), Standing::Nothing);
}

#[test]
fn requests_of_a_fallback_are_counted_but_settle_no_doubt_and_give_no_right_to_the_slot_in_any_later_session() {
    let mut group = Group::of(Kind::Available, 2, 1);
    group.cut_off.insert(1);
    group.pass(group.settings.lease);
    assert_eq!(group.start(1), Some(Right::Borrowed));
    group.cut_off.clear();
    group.succeed(2, Former::Anybody, 1);
    group.connect(1);
    assert_eq!(group.slots(), (0, 1, 1), "more than there are");
    // Whatever it says twice: the answer itself says so, before a request could start.
    group.members[1].connected(group.now);
    let hello = group.members[1].outgoing(group.now).unwrap();
    group.ledger.receive(&id(1), hello, group.now);
    let answer = group.ledger.outgoing(group.now).into_iter().map(|(_, message)| message).next();
    let Some(ToMember::Welcome { keep, .. }) = &answer else { panic!("it is welcome") };
    assert_eq!(keep, &[(key("p"), 0)]);
    group.members[1].receive(answer.unwrap(), group.now);
    assert_eq!(group.slots(), (0, 1, 1));
    group.members[1].finish(&key("p"), Right::Borrowed);
    assert_eq!((group.start(1), group.held(1)), (None, 0));
    group.talk();
    assert_eq!(group.slots(), (0, 0, 1), "who has the slot by right has not been heard");
}

#[test]
fn what_one_coordinator_did_not_let_a_member_keep_it_does_not_claim_by_right_from_the_next() {
    let mut group = Group::of(Kind::Available, 2, 1);
    group.cut_off.insert(1);
    group.pass(group.settings.lease);
    assert_eq!(group.start(1), Some(Right::Borrowed));
    group.cut_off.clear();
    for epoch in [2, 3] {
        group.succeed(epoch, Former::Anybody, 1);
        group.members[1].connected(group.now);
        let Some(ToCoordinator::Hello(hello)) = group.members[1].outgoing(group.now) else { panic!("it says hello") };
        assert_eq!(hello.claims, [Claim { replica: key("p"), slots: 0, out: 1 }], "in epoch {epoch}");
        group.ledger.receive(&id(1), ToCoordinator::Hello(hello), group.now);
        group.talk();
    }
}

// Alone.

#[test]
fn a_router_alone_has_every_slot_and_says_nothing() {
    let start = Instant::now();
    let mut member = Member::new(Settings::default(), Kind::Alone, AllShares::default(), start);
    member.set_replica(&key("p"), 2, true, HOLD);
    let later = start + 1000 * SECOND;
    assert_eq!(member.standing(later), Standing::Alone);
    let started: Vec<_> = (0..3).map(|_| member.start(&key("p"), later)).collect();
    assert_eq!(started, [Some(Right::Leased), Some(Right::Leased), None]);
    assert_eq!((member.tick(later), member.wake_at(later), member.is_lost(later)), (vec![], None, false));
    assert_eq!(member.outgoing(later), None);
    member.finish(&key("p"), Right::Leased);
    member.set_replica(&key("p"), 1, true, HOLD);
    assert_eq!(member.start(&key("p"), later), None, "of a lowered cap the rest ends first");
    member.finish(&key("p"), Right::Leased);
    assert_eq!(member.start(&key("p"), later), Some(Right::Leased));
}
