//! Step-by-step tests of the fleet protocol, which `docs/design/fleet.md` describes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::{Ledger, PreviousHolders, SlotCounts};
use super::member::{FleetMember, InMemoryShares, LeaseState, MembershipMode, SlotBasis};
use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// How long a request may last after the lease of its slot has expired.
const HOLD: Duration = Duration::from_secs(5);

fn member_id(i: usize) -> MemberId {
    MemberId { name: Arc::from(format!("r{i}")), incarnation: 0 }
}

fn replica_key(name: &str) -> FleetReplicaKey {
    FleetReplicaKey { deployment: Arc::from("d"), name: Arc::from(name) }
}

fn all_members(count: usize) -> PreviousHolders {
    PreviousHolders::Known((0..count).map(member_id).collect())
}

fn no_previous_holders() -> PreviousHolders {
    PreviousHolders::Known(BTreeSet::new())
}

/// A coordinator, its members, and the streams between them. A message arrives at once or is lost.
struct TestFleet {
    timing: FleetTiming,
    now: Instant,
    ledger: Ledger,
    members: Vec<FleetMember<InMemoryShares>>,
    /// The arrival times of the queued requests at each member.
    queues: Vec<VecDeque<Instant>>,
    /// The members whose messages are lost in both directions.
    cut_off: BTreeSet<usize>,
}

impl TestFleet {
    /// Creates a fleet with an active term and an open session of every member. Replica `p` has `cap` slots.
    fn new(count: usize, cap: u32) -> Self {
        Self::with_mode(MembershipMode::Strict, count, cap)
    }

    fn with_mode(mode: MembershipMode, count: usize, cap: u32) -> Self {
        let timing = FleetTiming::default();
        let now = Instant::now() + 1000 * SECOND;
        let members = (0..count).map(|_| FleetMember::new(timing, mode, InMemoryShares::default(), now)).collect();
        let (ledger, queues, cut_off) = (Ledger::new(timing), vec![VecDeque::new(); count], BTreeSet::new());
        let mut fleet = Self { timing, now, ledger, members, queues, cut_off };
        fleet.begin_term(1, no_previous_holders());
        fleet.ledger.set_replica(&replica_key("p"), cap, HOLD, now);
        for i in 0..count {
            fleet.members[i].set_fleet_position(count as u32, i as u32);
            fleet.members[i].set_replica(&replica_key("p"), cap, true, HOLD);
            fleet.connect(i);
        }
        fleet
    }

    fn begin_term(&mut self, term: u64, previous_holders: PreviousHolders) {
        self.ledger.begin_term(Term(term), self.now + 1000 * SECOND, previous_holders, self.now);
    }

    /// Replaces the coordinator by a new one that has the replica, but no members yet.
    fn replace_coordinator(&mut self, term: u64, previous_holders: PreviousHolders, cap: u32) {
        self.ledger = Ledger::new(self.timing);
        self.ledger.set_replica(&replica_key("p"), cap, HOLD, self.now);
        self.begin_term(term, previous_holders);
        self.members.iter_mut().for_each(FleetMember::end_session);
    }

    fn connect(&mut self, i: usize) {
        self.members[i].begin_session(self.now);
        self.exchange_messages();
    }

    /// Exchanges messages until neither the members nor the coordinator have any to send.
    fn exchange_messages(&mut self) {
        for _ in 0..100 {
            let mut has_sent = false;
            for i in 0..self.members.len() {
                self.dispatch(i);
                while let Some(message) = self.members[i].outgoing(self.now) {
                    has_sent = true;
                    if !self.cut_off.contains(&i) {
                        self.ledger.receive(&member_id(i), message, self.now);
                    }
                }
            }
            for (to, message) in self.ledger.outgoing(self.now) {
                has_sent = true;
                let to = (0..self.members.len()).find(|i| member_id(*i) == to).filter(|to| !self.cut_off.contains(to));
                if let Some(to) = to {
                    self.members[to].receive(message, self.now);
                }
            }
            self.ledger.audit().unwrap();
            if !has_sent {
                return;
            }
        }
        panic!("the exchange of messages does not end");
    }

    /// Advances the time. Returns the members that have to abort requests.
    fn advance(&mut self, time: Duration) -> BTreeSet<usize> {
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
            self.exchange_messages();
        }
        aborting
    }

    /// Starts queued requests of a member as far as its slots allow, and reports the remaining queue to the member.
    fn dispatch(&mut self, i: usize) {
        while !self.queues[i].is_empty() && self.start_request(i).is_some() {
            self.queues[i].pop_front();
        }
        let queue = self.queues[i].front().zip(self.queues[i].back()).map(|(&oldest, &newest)| QueueSnapshot {
            length: self.queues[i].len() as u32,
            oldest,
            newest,
        });
        self.members[i].set_queue(&replica_key("p").deployment, queue);
    }

    /// Adds `count` requests to the queue of a member that have been queued for `age` already.
    fn queue_requests(&mut self, i: usize, count: usize, age: Duration) {
        self.queues[i].extend(vec![self.now - age; count]);
        self.exchange_messages();
    }

    /// Removes all queued requests of a member.
    fn clear_queue(&mut self, i: usize) {
        self.queues[i].clear();
        self.exchange_messages();
    }

    fn start_request(&mut self, i: usize) -> Option<SlotBasis> {
        self.members[i].start_request(&replica_key("p"), self.now)
    }

    fn finish_request(&mut self, i: usize) {
        self.members[i].finish_request(&replica_key("p"), SlotBasis::Leased);
        self.exchange_messages();
    }

    /// Returns the number of requests in flight from a member, with and without a lease.
    fn in_flight(&self, i: usize) -> u32 {
        let (_, leased, fallback) = self.members[i].usage(&replica_key("p").deployment);
        leased + fallback
    }

    fn held_slots(&self, i: usize) -> u32 {
        self.members[i].held_slots(&replica_key("p"))
    }

    /// Returns the numbers of free, leased and quarantined slots.
    fn slot_counts(&self) -> (u32, u32, u32) {
        let SlotCounts { free, leased, quarantined } = self.ledger.slot_counts(&replica_key("p").deployment, self.now);
        (free, leased, quarantined)
    }
}

// Grants of slots to members.

#[test]
fn a_slot_goes_to_who_waits_is_spent_without_asking_and_comes_back_when_it_is_idle() {
    let mut fleet = TestFleet::new(2, 1);
    assert_eq!(
        (fleet.slot_counts(), fleet.start_request(0)),
        ((1, 0, 0), None),
        "nothing is held before anybody waits"
    );
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!((fleet.in_flight(0), fleet.held_slots(0), fleet.slot_counts()), (1, 1, (0, 1, 0)));
    for _ in 0..10 {
        assert_eq!(fleet.start_request(0), None, "one slot is one request");
        fleet.finish_request(0);
        assert_eq!(fleet.start_request(0), Some(SlotBasis::Leased), "nobody else wants it");
    }
    fleet.finish_request(0);
    fleet.advance(50 * MILLISECOND);
    assert_eq!(fleet.held_slots(0), 1, "the next request may come soon");
    fleet.advance(150 * MILLISECOND);
    assert_eq!((fleet.held_slots(0), fleet.slot_counts()), (0, (1, 0, 0)));
}

#[test]
fn who_has_waited_longest_comes_first() {
    let mut fleet = TestFleet::new(3, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.queue_requests(1, 1, 10 * MILLISECOND);
    fleet.queue_requests(2, 1, 20 * MILLISECOND);
    fleet.finish_request(0);
    assert_eq!((fleet.in_flight(0), fleet.in_flight(1), fleet.in_flight(2)), (0, 0, 1));
}

#[test]
fn who_stands_still_takes_no_more_slots_with_it_than_it_can_be_granted_unheard() {
    let mut fleet = TestFleet::new(3, 8);
    fleet.queue_requests(1, 8, Duration::ZERO);
    fleet.queue_requests(0, 8, 20 * MILLISECOND);
    assert_eq!((fleet.in_flight(0), fleet.in_flight(1)), (0, 8));
    fleet.cut_off.insert(0);
    (0..8).for_each(|_| fleet.finish_request(1));
    fleet.queue_requests(2, 8, Duration::ZERO);
    fleet.advance(200 * MILLISECOND);
    assert_eq!(fleet.in_flight(2), 7, "the other is granted to who is not heard of");
    // Other members that hold slots do not give them up for the silent one either.
    fleet.queue_requests(2, 7, Duration::ZERO);
    (0..7).for_each(|_| fleet.finish_request(2));
    assert_eq!((fleet.in_flight(2), fleet.held_slots(2)), (7, 7));
    fleet.cut_off.clear();
    fleet.connect(0);
    (0..7).for_each(|_| fleet.finish_request(2));
    assert_eq!((fleet.in_flight(0), fleet.in_flight(2)), (8, 0), "it has waited longest");
}

#[test]
fn who_hears_nothing_of_the_coordinator_keeps_most_of_what_it_holds() {
    let mut fleet = TestFleet::new(2, 8);
    fleet.queue_requests(0, 20, Duration::ZERO);
    fleet.queue_requests(1, 8, 20 * MILLISECOND);
    fleet.cut_off.extend([0, 1]);
    (0..8).for_each(|_| fleet.finish_request(0));
    assert_eq!((fleet.held_slots(0), fleet.in_flight(0)), (5, 5));
    (0..5).for_each(|_| fleet.finish_request(0));
    assert_eq!((fleet.held_slots(0), fleet.in_flight(0)), (5, 5), "and goes on with it");
}

#[test]
fn a_slot_that_is_wanted_elsewhere_goes_there_when_its_request_ends_and_at_once_when_it_is_idle() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 2, Duration::ZERO);
    fleet.finish_request(0);
    assert_eq!((fleet.held_slots(0), fleet.held_slots(1)), (2, 0));
    fleet.queue_requests(1, 2, Duration::ZERO);
    assert_eq!((fleet.in_flight(0), fleet.in_flight(1)), (1, 1), "the idle one moves, the busy one does not");
    fleet.finish_request(0);
    assert_eq!((fleet.held_slots(0), fleet.in_flight(1)), (0, 2));
}

#[test]
fn a_slot_leaves_those_who_wait_at_home_only_for_requests_that_are_older_by_the_steal_threshold() {
    for (age, held) in [(4, (1, 0)), (6, (0, 1))] {
        let mut fleet = TestFleet::new(2, 1);
        fleet.queue_requests(0, 1, Duration::ZERO);
        fleet.queue_requests(0, 1, 10 * MILLISECOND);
        fleet.queue_requests(1, 1, (10 + age) * MILLISECOND);
        fleet.finish_request(0);
        assert_eq!((fleet.held_slots(0), fleet.held_slots(1)), held, "{age} ms older");
    }
}

#[test]
fn a_request_that_has_left_wants_nothing_any_more() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.queue_requests(1, 1, SECOND);
    fleet.clear_queue(1);
    fleet.advance(200 * MILLISECOND);
    fleet.finish_request(0);
    assert_eq!((fleet.held_slots(0), fleet.held_slots(1)), (1, 0));
}

#[test]
fn a_grant_counts_from_when_it_is_sent_and_one_that_is_lost_comes_back_with_the_next_hello() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queues[0].push_back(fleet.now);
    fleet.dispatch(0);
    let demand = fleet.members[0].outgoing(fleet.now).unwrap();
    fleet.ledger.receive(&member_id(0), demand, fleet.now);
    fleet.cut_off.insert(0);
    fleet.exchange_messages();
    assert_eq!((fleet.held_slots(0), fleet.slot_counts()), (0, (0, 1, 0)));
    fleet.queue_requests(1, 1, Duration::ZERO);
    assert_eq!(fleet.in_flight(1), 0);
    fleet.cut_off.clear();
    fleet.queues[0].clear();
    fleet.connect(0);
    assert_eq!(fleet.in_flight(1), 1);
}

#[test]
fn who_was_granted_a_slot_and_does_not_know_it_yet_is_not_granted_another_for_the_same_request() {
    let mut fleet = TestFleet::new(1, 4);
    let demand = |fleet: &mut TestFleet| {
        fleet.queues[0].push_back(fleet.now);
        fleet.dispatch(0);
        fleet.members[0].outgoing(fleet.now).unwrap()
    };
    let first = demand(&mut fleet);
    fleet.ledger.receive(&member_id(0), first, fleet.now);
    let granted = fleet.ledger.outgoing(fleet.now);
    // Messages cross: this report counts two queued requests.
    let second = demand(&mut fleet);
    granted.into_iter().for_each(|(_, message)| fleet.members[0].receive(message, fleet.now));
    fleet.ledger.receive(&member_id(0), second, fleet.now);
    fleet.exchange_messages();
    assert_eq!((fleet.in_flight(0), fleet.held_slots(0)), (2, 2), "two requests, two slots");
}

#[test]
fn a_replica_that_a_member_cannot_use_is_not_granted_to_it_and_what_it_holds_goes_back() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.finish_request(0);
    fleet.members[0].set_replica(&replica_key("p"), 2, false, HOLD);
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!((fleet.held_slots(0), fleet.slot_counts()), (0, (2, 0, 0)));
    fleet.members[0].set_replica(&replica_key("p"), 2, true, HOLD);
    fleet.exchange_messages();
    assert_eq!(fleet.in_flight(0), 1);
}

// Lowered and raised caps.

#[test]
fn slots_beyond_a_lowered_cap_are_recalled_as_their_requests_end_though_the_member_does_not_know_the_cap() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 2, Duration::ZERO);
    fleet.ledger.set_replica(&replica_key("p"), 1, HOLD, fleet.now);
    fleet.exchange_messages();
    assert_eq!(fleet.held_slots(0), 2, "what is in flight is not aborted");
    fleet.finish_request(0);
    assert_eq!(
        (fleet.held_slots(0), fleet.start_request(0), fleet.slot_counts()),
        (1, None, (0, 1, 0)),
        "one is in flight, and one may be"
    );
    fleet.finish_request(0);
    assert_eq!(fleet.start_request(0), Some(SlotBasis::Leased));
}

#[test]
fn of_a_lowered_cap_those_who_have_most_give_first() {
    let mut fleet = TestFleet::new(2, 4);
    fleet.queue_requests(0, 3, Duration::ZERO);
    fleet.queue_requests(1, 1, Duration::ZERO);
    fleet.ledger.set_replica(&replica_key("p"), 2, HOLD, fleet.now);
    fleet.exchange_messages();
    (0..3).for_each(|_| fleet.finish_request(0));
    fleet.finish_request(1);
    assert_eq!((fleet.held_slots(0), fleet.held_slots(1)), (1, 1));
}

#[test]
fn a_raised_cap_is_granted_to_who_waits() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.queue_requests(1, 1, Duration::ZERO);
    fleet.ledger.set_replica(&replica_key("p"), 2, HOLD, fleet.now);
    fleet.members[1].set_replica(&replica_key("p"), 2, true, HOLD);
    fleet.exchange_messages();
    assert_eq!(fleet.in_flight(1), 1);
}

// Silence of members and expiry of leases.

#[test]
fn heartbeats_renew_a_lease_and_without_them_it_ends_a_lease_after_the_last_that_was_answered_was_sent() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.advance(60 * SECOND);
    assert_eq!(fleet.members[0].lease_state(fleet.now), LeaseState::Leased);
    let sent = fleet.now + SECOND;
    let heartbeat = fleet.members[0].outgoing(sent).unwrap();
    fleet.now = sent + 2 * SECOND;
    fleet.ledger.receive(&member_id(0), heartbeat, fleet.now);
    for (_, answer) in fleet.ledger.outgoing(fleet.now) {
        fleet.members[0].receive(answer, fleet.now);
    }
    fleet.members[0].finish_request(&replica_key("p"), SlotBasis::Leased);
    let lease = fleet.timing.lease_duration;
    assert_eq!(fleet.members[0].lease_state(sent + lease - MILLISECOND), LeaseState::Leased);
    assert_eq!(fleet.members[0].lease_state(sent + lease), LeaseState::NoLease);
    assert_eq!(fleet.members[0].start_request(&replica_key("p"), sent + lease), None, "the clock decides, not a tick");
}

#[test]
fn slots_of_a_silent_member_are_free_when_surely_nothing_is_in_flight_there() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.queue_requests(1, 1, Duration::ZERO);
    fleet.cut_off.insert(0);
    let (lease, hold) =
        (fleet.timing.with_drift_margin(fleet.timing.lease_duration), fleet.timing.with_drift_margin(HOLD));
    let began = fleet.now;
    fleet.advance(lease - MILLISECOND);
    assert_eq!(fleet.slot_counts(), (0, 1, 0));
    fleet.advance(MILLISECOND);
    assert_eq!(fleet.slot_counts(), (0, 0, 1));
    // Nine seconds of a clock that is 10 % slow are ten true seconds, and eleven of a clock that is 10 % fast.
    let aborted_at = fleet.members[0].abort_at(&replica_key("p").deployment);
    assert!((aborted_at - began).mul_f64(1.1 / 0.9) <= lease + hold);
    fleet.advance(hold - MILLISECOND);
    assert_eq!((fleet.slot_counts(), fleet.held_slots(1)), ((0, 0, 1), 0));
    fleet.advance(MILLISECOND);
    assert_eq!((fleet.slot_counts(), fleet.held_slots(1)), ((0, 1, 0), 1));
}

#[test]
fn a_member_aborts_what_runs_for_too_long_after_its_lease_has_expired() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.cut_off.insert(0);
    let lease = fleet.timing.lease_duration;
    assert_eq!(fleet.advance(lease + HOLD - MILLISECOND), BTreeSet::new());
    assert_eq!(fleet.members[0].wake_at(fleet.now), Some(fleet.now + MILLISECOND));
    assert_eq!(fleet.advance(MILLISECOND), BTreeSet::from([0]));
    assert_eq!(fleet.members[0].tick(fleet.now), [replica_key("p")], "until it is done");
    fleet.members[0].finish_request(&replica_key("p"), SlotBasis::Leased);
    assert_eq!(fleet.members[0].tick(fleet.now), []);
}

#[test]
fn a_member_that_comes_back_in_quarantine_goes_on_with_what_is_in_flight() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 2, Duration::ZERO);
    fleet.finish_request(0);
    fleet.cut_off.insert(0);
    fleet.advance(13 * SECOND);
    assert_eq!((fleet.slot_counts(), fleet.start_request(0)), ((0, 0, 2), None));
    fleet.cut_off.clear();
    fleet.connect(0);
    assert_eq!(
        (fleet.slot_counts(), fleet.held_slots(0)),
        ((1, 1, 0), 1),
        "the idle one it may not claim, it has expired"
    );
}

#[test]
fn what_is_overdue_for_an_abort_is_claimed_without_a_right_to_it() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    // The member is suspended, and afterwards looks for the coordinator before it does anything else.
    fleet.now += fleet.timing.lease_duration + HOLD;
    fleet.replace_coordinator(2, PreviousHolders::Unknown, 1);
    fleet.members[0].begin_session(fleet.now);
    let Some(ToCoordinator::Hello(hello)) = fleet.members[0].outgoing(fleet.now) else { panic!("it says hello") };
    assert_eq!(hello.claims, [SlotClaim { replica: replica_key("p"), leased_slots: 0, taken_slots: 1 }]);
    fleet.ledger.receive(&member_id(0), ToCoordinator::Hello(hello), fleet.now);
    fleet.exchange_messages();
    fleet.finish_request(0);
    assert_eq!((fleet.start_request(0), fleet.slot_counts()), (None, (0, 0, 1)), "it may be another's");
}

#[test]
fn a_member_whose_process_has_ended_is_waited_for_as_long_as_its_requests_may_last() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.cut_off.insert(0);
    fleet.ledger.member_ended(&member_id(0), fleet.now);
    let hold = fleet.timing.with_drift_margin(HOLD);
    fleet.advance(hold - MILLISECOND);
    assert_eq!(fleet.slot_counts().0, 0);
    fleet.advance(MILLISECOND);
    assert_eq!(fleet.slot_counts(), (1, 0, 0));
    assert_eq!(fleet.ledger.roster(fleet.now), PreviousHolders::Known(BTreeSet::from([member_id(1)])));
}

#[test]
fn demand_that_was_forgotten_in_a_silence_is_said_again_with_the_next_heartbeat() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(1, 1, Duration::ZERO);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.clear_queue(1);
    // The member is suspended for longer than its lease, its stream stays up, and another member is served meanwhile.
    fleet.cut_off.insert(0);
    fleet.advance(13 * SECOND);
    fleet.cut_off.clear();
    fleet.advance(SECOND);
    fleet.finish_request(1);
    assert_eq!((fleet.in_flight(0), fleet.held_slots(1)), (1, 0));
}

#[test]
fn a_member_that_is_not_answered_is_lost_and_asks_to_be_woken_up_for_it_once() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.cut_off.insert(0);
    let timed_out_at = fleet.now + 3 * SECOND;
    let mut moments = 0;
    while let Some(at) = fleet.members[0].wake_at(fleet.now).filter(|at| *at <= timed_out_at + SECOND) {
        assert!(at > fleet.now, "it would spin");
        fleet.now = at;
        assert_eq!(fleet.members[0].needs_connection(at), at >= timed_out_at);
        fleet.members[0].tick(at);
        while fleet.members[0].outgoing(at).is_some() {}
        moments += 1;
    }
    assert!(moments <= 4, "{moments}");
}

// Change of the coordinator.

#[test]
fn a_new_coordinator_grants_nothing_until_everybody_on_the_roster_has_said_what_it_holds() {
    let mut fleet = TestFleet::new(3, 3);
    fleet.queue_requests(0, 1, Duration::ZERO);
    let roster = fleet.ledger.roster(fleet.now);
    assert_eq!(roster, all_members(3));
    fleet.replace_coordinator(2, roster, 3);
    assert_eq!(fleet.slot_counts(), (0, 0, 3));
    fleet.queues[1].push_back(fleet.now);
    fleet.connect(0);
    assert_eq!((fleet.slot_counts(), fleet.in_flight(0)), ((0, 1, 2), 1), "what is claimed is where it is");
    fleet.connect(1);
    assert_eq!((fleet.slot_counts(), fleet.in_flight(1)), ((0, 1, 2), 0));
    fleet.connect(2);
    assert_eq!((fleet.slot_counts(), fleet.in_flight(1)), ((1, 2, 0), 1));
}

#[test]
fn who_is_known_to_have_ended_need_not_report_but_its_requests_are_waited_for() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.replace_coordinator(2, all_members(2), 2);
    fleet.cut_off.insert(0);
    fleet.ledger.member_ended(&member_id(0), fleet.now);
    fleet.connect(1);
    let hold = fleet.timing.with_drift_margin(HOLD);
    fleet.advance(hold - MILLISECOND);
    assert_eq!(fleet.slot_counts(), (0, 0, 2));
    fleet.advance(MILLISECOND);
    assert_eq!(fleet.slot_counts(), (2, 0, 0));
}

#[test]
fn who_may_be_anybody_is_waited_for_until_its_lease_has_ended_at_the_latest_and_its_requests_too() {
    for previous_holders in [PreviousHolders::Unknown, all_members(3)] {
        let mut fleet = TestFleet::new(2, 2);
        fleet.replace_coordinator(2, previous_holders, 2);
        (0..2).for_each(|i| fleet.connect(i));
        let timing = fleet.timing;
        let quarantine = timing.with_drift_margin(timing.confirmation_validity)
            + timing.with_drift_margin(timing.lease_duration)
            + timing.with_drift_margin(HOLD);
        fleet.advance(quarantine - MILLISECOND);
        assert_eq!(fleet.slot_counts(), (0, 0, 2));
        fleet.advance(MILLISECOND);
        assert_eq!(fleet.slot_counts(), (2, 0, 0));
    }
}

#[test]
fn the_confirmation_of_members_is_waited_for_only_from_when_the_new_coordinator_last_heard_the_old_one() {
    for (ago, saved) in [(Duration::ZERO, Duration::ZERO), (SECOND, SECOND), (60 * SECOND, 60 * SECOND)] {
        let mut fleet = TestFleet::new(2, 2);
        let timing = fleet.timing;
        let confirmation = timing.with_drift_margin(timing.confirmation_validity).saturating_sub(saved);
        fleet.replace_coordinator(2, PreviousHolders::Unknown, 2);
        fleet.ledger.set_predecessor_heard_at(fleet.now - ago);
        let quarantine =
            confirmation + timing.with_drift_margin(timing.lease_duration) + timing.with_drift_margin(HOLD);
        fleet.advance(quarantine - MILLISECOND);
        assert_eq!(fleet.slot_counts(), (0, 0, 2));
        fleet.advance(MILLISECOND);
        assert_eq!(fleet.slot_counts(), (2, 0, 0));
    }
    let mut fleet = TestFleet::new(1, 1);
    fleet.advance(SECOND);
    let heard = fleet.now;
    fleet.cut_off.insert(0);
    fleet.advance(10 * SECOND);
    assert_eq!(fleet.members[0].coordinator_heard_at(), heard);
}

#[test]
fn a_process_has_ended_when_there_is_a_later_one_of_its_name() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.replace_coordinator(2, all_members(2), 2);
    fleet.connect(1);
    assert_eq!(fleet.slot_counts(), (0, 0, 2));
    let later = MemberId { incarnation: 1, ..member_id(0) };
    let hello = Hello {
        term: Term(0),
        session: 1,
        heartbeat: 1,
        claims: vec![],
        unusable: vec![],
        demand: vec![],
        loads: vec![],
    };
    fleet.ledger.receive(&later, ToCoordinator::Hello(hello), fleet.now);
    fleet.cut_off.insert(0);
    let hold = fleet.timing.with_drift_margin(HOLD);
    fleet.advance(hold - MILLISECOND);
    assert_eq!(fleet.slot_counts(), (0, 0, 2), "its requests are waited for");
    fleet.advance(MILLISECOND);
    assert_eq!(fleet.slot_counts(), (2, 0, 0));
}

#[test]
fn while_in_doubt_a_raised_cap_or_another_replica_does_not_make_slots_free() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.replace_coordinator(2, all_members(2), 1);
    fleet.connect(0);
    fleet.ledger.set_replica(&replica_key("p"), 3, HOLD, fleet.now);
    fleet.ledger.set_replica(&replica_key("q"), 1, HOLD, fleet.now);
    // The replica becomes unready and ready again: its slots were counted before.
    fleet.ledger.set_replica(&replica_key("p"), 0, HOLD, fleet.now);
    fleet.ledger.set_replica(&replica_key("p"), 3, HOLD, fleet.now);
    fleet.exchange_messages();
    assert_eq!(fleet.slot_counts(), (0, 0, 4));
    fleet.connect(1);
    assert_eq!(fleet.slot_counts(), (4, 0, 0));
}

#[test]
fn a_claim_of_more_than_there_is_counts_and_is_given_up_as_requests_end() {
    let mut fleet = TestFleet::new(1, 2);
    fleet.queue_requests(0, 2, Duration::ZERO);
    fleet.replace_coordinator(2, all_members(1), 1);
    fleet.connect(0);
    assert_eq!((fleet.held_slots(0), fleet.slot_counts()), (2, (0, 2, 0)));
    fleet.finish_request(0);
    assert_eq!((fleet.held_slots(0), fleet.start_request(0)), (1, None));
}

#[test]
fn a_claim_on_a_replica_that_the_coordinator_does_not_know_yet_counts_when_it_does() {
    for knows_the_deployment in [true, false] {
        let mut fleet = TestFleet::new(1, 1);
        fleet.queue_requests(0, 1, Duration::ZERO);
        fleet.replace_coordinator(2, all_members(1), 1);
        fleet.ledger.remove_replica(&replica_key("p"));
        if knows_the_deployment {
            fleet.ledger.set_replica(&replica_key("q"), 1, HOLD, fleet.now);
        }
        fleet.connect(0);
        assert_eq!((fleet.in_flight(0), fleet.start_request(0)), (1, None));
        fleet.ledger.set_replica(&replica_key("p"), 1, HOLD, fleet.now);
        fleet.exchange_messages();
        assert_eq!(fleet.ledger.holders(&replica_key("p")), [(member_id(0), 1)]);
        assert_eq!(fleet.slot_counts(), (u32::from(knows_the_deployment), 1, 0));
    }
}

#[test]
fn who_asks_before_the_coordinator_knows_of_the_deployment_is_served_when_it_does() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.ledger = Ledger::new(fleet.timing);
    fleet.begin_term(2, no_previous_holders());
    fleet.members.iter_mut().for_each(FleetMember::end_session);
    fleet.connect(0);
    fleet.connect(1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!(fleet.in_flight(0), 0);
    // Only unused deployments are removed; this one has demand.
    fleet.ledger.remove_deployment(&Arc::from("another"));
    fleet.ledger.set_replica(&replica_key("p"), 1, HOLD, fleet.now);
    fleet.exchange_messages();
    assert_eq!(fleet.in_flight(0), 1);
}

#[test]
fn what_was_known_of_a_deployment_goes_with_it_when_nothing_of_it_is_in_use() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.ledger.set_replica(&replica_key("p"), 0, HOLD, fleet.now);
    fleet.ledger.remove_deployment(&replica_key("p").deployment);
    fleet.ledger.set_replica(&replica_key("p"), 1, HOLD, fleet.now);
    assert_eq!(fleet.ledger.holders(&replica_key("p")), [(member_id(0), 1)], "it is in use");
    fleet.finish_request(0);
    fleet.ledger.set_replica(&replica_key("p"), 0, HOLD, fleet.now);
    fleet.exchange_messages();
    fleet.ledger.remove_deployment(&replica_key("p").deployment);
    assert_eq!(fleet.slot_counts(), (0, 0, 0));
    fleet.ledger.set_replica(&replica_key("p"), 1, HOLD, fleet.now);
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!(fleet.in_flight(0), 1);
}

#[test]
fn a_coordinator_whose_term_is_over_grants_and_renews_nothing() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.ledger.extend_term(fleet.now);
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!(fleet.in_flight(0), 0);
    assert_eq!(
        (fleet.ledger.active_term(fleet.now), fleet.members[0].current_session()),
        (None, None),
        "its member looks elsewhere"
    );
}

#[test]
fn a_coordinator_that_hears_of_a_later_one_says_nothing_more() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queues[0].push_back(fleet.now);
    fleet.dispatch(0);
    let demand = fleet.members[0].outgoing(fleet.now).unwrap();
    fleet.ledger.receive(&member_id(0), demand, fleet.now);
    let hello = Hello {
        term: Term(7),
        session: 9,
        heartbeat: 1,
        claims: vec![],
        unusable: vec![],
        demand: vec![],
        loads: vec![],
    };
    fleet.ledger.receive(&member_id(1), ToCoordinator::Hello(hello), fleet.now);
    assert_eq!(fleet.ledger.superseding_term(), Some(Term(7)));
    let refused = ToMember::Refused { term: Term(7), session: 9 };
    assert_eq!(fleet.ledger.outgoing(fleet.now), [(member_id(1), refused)]);
    assert_eq!(fleet.ledger.confirmed_at([&member_id(0)], fleet.now), None);
}

#[test]
fn a_coordinator_that_gives_up_sends_its_members_away_and_remembers_replicas() {
    let mut fleet = TestFleet::new(2, 2);
    fleet.queue_requests(0, 1, Duration::ZERO);
    fleet.ledger.resign();
    fleet.exchange_messages();
    assert_eq!((fleet.members[0].current_session(), fleet.members[1].current_session()), (None, None));
    assert_eq!(fleet.start_request(0), None);
    assert_eq!(fleet.held_slots(0), 1, "it goes on with what it holds");
    fleet.begin_term(3, no_previous_holders());
    assert_eq!(fleet.slot_counts(), (2, 0, 0));
}

#[test]
fn members_confirm_a_term_up_to_when_the_answer_was_given_that_their_last_heartbeat_answers() {
    let mut fleet = TestFleet::new(2, 1);
    assert_eq!(
        fleet.ledger.confirmed_at([&member_id(0), &member_id(1)], fleet.now),
        None,
        "they have answered nothing yet"
    );
    let answered = fleet.now;
    fleet.advance(SECOND);
    assert_eq!(fleet.ledger.confirmed_at([&member_id(0), &member_id(1)], fleet.now), Some(answered));
    assert_eq!(fleet.ledger.confirmed_at([&member_id(0), &member_id(2)], fleet.now), None, "one has no session");
    fleet.cut_off.insert(1);
    fleet.advance(2 * SECOND);
    assert_eq!(fleet.ledger.confirmed_at([&member_id(0), &member_id(1)], fleet.now), Some(answered), "one is silent");
    assert_eq!(fleet.ledger.confirmed_at([&member_id(0)], fleet.now), Some(answered + 2 * SECOND));
}

// Messages of earlier terms and sessions.

#[test]
fn a_member_takes_nothing_from_a_coordinator_of_the_past() {
    let mut fleet = TestFleet::new(1, 1);
    fleet.replace_coordinator(2, no_previous_holders(), 1);
    fleet.connect(0);
    let session = fleet.members[0].begin_session(fleet.now);
    fleet.members[0].outgoing(fleet.now);
    let (term, valid) = (Term(1), fleet.now + 9 * SECOND);
    fleet.members[0]
        .receive(ToMember::Welcome { term, session, heartbeat: 2, keep_limits: vec![] }, fleet.now + SECOND);
    assert_eq!((fleet.members[0].current_session(), fleet.members[0].highest_term()), (None, Term(2)));
    assert_eq!(fleet.members[0].lease_state(valid + SECOND), LeaseState::NoLease);
}

#[test]
fn a_member_takes_nothing_from_another_session() {
    let mut fleet = TestFleet::new(1, 1);
    let (term, session) = (Term(1), fleet.members[0].current_session().unwrap());
    let update = |session| {
        let granted = vec![(replica_key("p"), 1)];
        ToMember::Update(CoordinatorUpdate {
            term,
            session,
            heartbeat: None,
            granted,
            keep_limits: vec![],
            remote_demand: vec![],
        })
    };
    fleet.members[0].receive(update(session - 1), fleet.now);
    assert_eq!(fleet.held_slots(0), 0);
    fleet.members[0].end_session();
    fleet.members[0].receive(update(session), fleet.now);
    assert_eq!(fleet.held_slots(0), 0);
    fleet.members[0].begin_session(fleet.now);
    fleet.members[0].receive(update(session), fleet.now);
    fleet.members[0].receive(update(session + 1), fleet.now);
    assert_eq!(fleet.held_slots(0), 0, "it has not been welcomed");
}

#[test]
fn a_coordinator_takes_nothing_from_another_session() {
    let mut fleet = TestFleet::new(2, 1);
    fleet.queue_requests(0, 1, Duration::ZERO);
    let session = fleet.members[0].current_session().unwrap();
    let report = |session| {
        let returned = vec![(replica_key("p"), 1)];
        ToCoordinator::Report(MemberReport {
            term: Term(1),
            session,
            heartbeat: None,
            returned,
            unusable_changes: vec![],
            demand: vec![],
            loads: vec![],
        })
    };
    fleet.connect(0);
    for session in [session, session + 2] {
        fleet.ledger.receive(&member_id(0), report(session), fleet.now);
        assert_eq!(fleet.slot_counts(), (0, 1, 0));
        let refused = ToMember::Refused { term: Term(1), session };
        assert_eq!(fleet.ledger.outgoing(fleet.now), [(member_id(0), refused)]);
    }
    let hello =
        Hello { term: Term(1), session, heartbeat: 1, claims: vec![], unusable: vec![], demand: vec![], loads: vec![] };
    fleet.ledger.receive(&member_id(0), ToCoordinator::Hello(hello), fleet.now);
    assert_eq!(fleet.slot_counts(), (0, 1, 0), "a hello that is late claims nothing, and frees nothing");
    fleet.ledger.session_disconnected(&member_id(0), session);
    fleet.ledger.receive(&member_id(0), report(session + 1), fleet.now);
    assert_eq!(fleet.slot_counts(), (1, 0, 0), "the end of the old stream is not the end of the new one");
}

// Signals for the autoscaler.

fn assert_near(a: f64, b: f64, within: f64) {
    assert!((a - b).abs() <= within, "{a} is not {b}");
}

/// Runs each member with its number of `busy` requests in flight for `time`. A member reports its load once per report
/// interval, if it has changed.
fn run_load(fleet: &mut TestFleet, loads: &mut [MemberLoad], busy: &[u32], time: Duration) {
    let (report, seconds) = (100 * MILLISECOND, |time: Duration| time.as_secs_f64());
    for (load, busy) in loads.iter_mut().zip(busy) {
        (load.in_flight, load.sums.arrived) = (*busy, load.sums.arrived + f64::from(*busy));
    }
    for round in 0..time.as_millis() / report.as_millis() {
        for (i, load) in loads.iter_mut().enumerate() {
            load.sums.time += seconds(report);
            load.sums.present += seconds(report) * f64::from(load.in_flight);
            fleet.members[i].set_load(&replica_key("p").deployment, *load);
            while let Some(message) = fleet.members[i].outgoing(fleet.now) {
                if let ToCoordinator::Report(report) = &message {
                    assert!(report.loads.is_empty() || load.in_flight > 0 || round < 2, "nothing has changed");
                }
                if !fleet.cut_off.contains(&i) {
                    fleet.ledger.receive(&member_id(i), message, fleet.now);
                }
            }
        }
        fleet.advance(report);
    }
}

#[test]
fn what_goes_on_at_all_members_adds_up_to_the_signals_of_one_router() {
    let mut fleet = TestFleet::new(2, 8);
    let deployment = replica_key("p").deployment;
    let mut loads = [MemberLoad::default(); 2];
    run_load(&mut fleet, &mut loads, &[2, 3], SECOND);
    fleet.ledger.take_signals(&deployment, fleet.now);
    for _ in 0..5 {
        // The result does not depend on the sampling interval.
        run_load(&mut fleet, &mut loads, &[2, 3], 700 * MILLISECOND);
        let signals = fleet.ledger.take_signals(&deployment, fleet.now);
        assert_near(signals.busy, 5.0, 1e-6);
        assert_near(signals.arrived_per_second, 5.0 / 0.7, 1e-6);
        assert!(!signals.is_cold);
        assert_eq!(fleet.ledger.outstanding(&deployment, fleet.now), (5, 0));
    }
}

#[test]
fn who_has_nothing_going_on_says_nothing_and_the_time_of_that_does_not_thin_out_what_comes_then() {
    let mut fleet = TestFleet::new(2, 8);
    let deployment = replica_key("p").deployment;
    let mut loads = [MemberLoad::default(); 2];
    run_load(&mut fleet, &mut loads, &[0, 0], 30 * SECOND);
    assert_eq!(fleet.ledger.take_signals(&deployment, fleet.now).busy, 0.0);
    assert_eq!(fleet.members[0].outgoing(fleet.now), None);
    run_load(&mut fleet, &mut loads, &[0, 0], 600 * MILLISECOND);
    run_load(&mut fleet, &mut loads, &[4, 0], 400 * MILLISECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 1.6, 0.3);
    run_load(&mut fleet, &mut loads, &[4, 0], SECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 4.0, 1e-6);
    run_load(&mut fleet, &mut loads, &[0, 0], SECOND);
    run_load(&mut fleet, &mut loads, &[0, 0], SECOND);
    fleet.ledger.take_signals(&deployment, fleet.now);
    assert_eq!(fleet.ledger.take_signals(&deployment, fleet.now).busy, 0.0);
}

#[test]
fn of_a_silent_member_the_last_is_taken_until_its_lease_has_expired_and_it_is_known_to_be_silent() {
    let mut fleet = TestFleet::new(2, 8);
    let deployment = replica_key("p").deployment;
    let mut loads = [MemberLoad::default(); 2];
    run_load(&mut fleet, &mut loads, &[2, 3], 2 * SECOND);
    assert_eq!(fleet.ledger.silent_members(fleet.now).count(), 0);
    fleet.ledger.take_signals(&deployment, fleet.now);
    fleet.cut_off.insert(1);
    run_load(&mut fleet, &mut loads, &[2, 3], 5 * SECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 5.0, 1e-6);
    assert_eq!(fleet.ledger.silent_members(fleet.now).collect::<Vec<_>>(), [&member_id(1)]);
    fleet.cut_off.clear();
    fleet.connect(1);
    run_load(&mut fleet, &mut loads, &[2, 3], SECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 5.0, 1e-6);
    fleet.cut_off.insert(1);
    run_load(&mut fleet, &mut loads, &[2, 3], 14 * SECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 2.0, 1e-6);
    assert_eq!(fleet.ledger.outstanding(&deployment, fleet.now), (2, 0));
}

#[test]
fn what_went_on_while_a_member_could_not_be_heard_does_not_come_as_one_interval() {
    let mut fleet = TestFleet::new(1, 8);
    let deployment = replica_key("p").deployment;
    let mut loads = [MemberLoad::default()];
    run_load(&mut fleet, &mut loads, &[0], SECOND);
    fleet.ledger.take_signals(&deployment, fleet.now);
    fleet.cut_off.insert(0);
    for _ in 0..5 {
        run_load(&mut fleet, &mut loads, &[4], SECOND);
        assert_eq!(fleet.ledger.take_signals(&deployment, fleet.now).busy, 0.0);
    }
    fleet.cut_off.clear();
    fleet.connect(0);
    run_load(&mut fleet, &mut loads, &[4], SECOND);
    assert_near(fleet.ledger.take_signals(&deployment, fleet.now).busy, 4.0, 0.7);
}

#[test]
fn a_new_coordinator_does_not_take_what_went_on_before_for_an_interval() {
    let mut fleet = TestFleet::new(1, 8);
    let mut loads = [MemberLoad::default()];
    run_load(&mut fleet, &mut loads, &[3], 60 * SECOND);
    fleet.replace_coordinator(2, all_members(1), 8);
    fleet.connect(0);
    let signals = fleet.ledger.take_signals(&replica_key("p").deployment, fleet.now);
    assert_eq!((signals.busy, signals.arrived_per_second), (3.0, 0.0));
}

// Shutdown of a router.

#[test]
fn a_router_that_ends_gives_each_slot_back_as_it_becomes_free_and_then_says_good_bye() {
    let mut fleet = TestFleet::new(2, 3);
    fleet.queue_requests(0, 3, Duration::ZERO);
    fleet.finish_request(0);
    fleet.members[0].start_draining();
    fleet.queue_requests(0, 1, Duration::ZERO);
    assert_eq!((fleet.slot_counts(), fleet.start_request(0)), ((1, 2, 0), None));
    fleet.finish_request(0);
    assert_eq!((fleet.slot_counts(), fleet.members[0].current_session().is_some()), ((2, 1, 0), true));
    fleet.finish_request(0);
    assert_eq!((fleet.slot_counts(), fleet.members[0].current_session()), ((3, 0, 0), None));
    assert_eq!(fleet.ledger.roster(fleet.now), PreviousHolders::Known(BTreeSet::from([member_id(1)])));
}

// Fallback to fair shares.

#[test]
fn cut_off_for_longer_than_its_lease_a_router_serves_its_fair_share_or_nothing() {
    for (mode, lease_state, basis) in [
        (MembershipMode::Strict, LeaseState::NoLease, None),
        (MembershipMode::Available, LeaseState::Fallback, Some(SlotBasis::Fallback)),
    ] {
        let mut fleet = TestFleet::with_mode(mode, 2, 4);
        assert_eq!(fleet.members[1].lease_state(fleet.now), LeaseState::Leased);
        (0..2).for_each(|i| _ = fleet.cut_off.insert(i));
        fleet.advance(fleet.timing.lease_duration);
        assert_eq!(fleet.members[1].lease_state(fleet.now), lease_state);
        assert_eq!(fleet.start_request(1), basis);
        assert_eq!(
            fleet.members[1].concurrency_limit(&replica_key("p"), fleet.now),
            if basis.is_some() { 4 } else { 0 }
        );
    }
}

#[test]
fn a_router_that_was_suspended_borrows_nothing_before_it_could_have_heard_of_its_coordinator() {
    let mut fleet = TestFleet::with_mode(MembershipMode::Available, 2, 4);
    (0..2).for_each(|i| _ = fleet.cut_off.insert(i));
    fleet.advance(fleet.timing.lease_duration);
    let (now, half) = (fleet.now, fleet.timing.lease_duration / 2);
    fleet.members[1].resume_from_suspend(now);
    assert_eq!(fleet.members[1].lease_state(now + half - MILLISECOND), LeaseState::NoLease);
    assert_eq!(fleet.start_request(1), None);
    assert_eq!(fleet.members[1].lease_state(now + half), LeaseState::Fallback);
}

#[test]
fn fair_shares_are_on_different_replicas_at_different_routers() {
    let mut fleet = TestFleet::with_mode(MembershipMode::Available, 2, 1);
    for i in 0..2 {
        fleet.members[i].set_replica(&replica_key("q"), 1, true, HOLD);
        fleet.cut_off.insert(i);
    }
    fleet.advance(fleet.timing.lease_duration);
    let limit = |i: usize, name| fleet.members[i].concurrency_limit(&replica_key(name), fleet.now);
    assert_eq!([limit(0, "p"), limit(0, "q")], [1, 0]);
    assert_eq!([limit(1, "p"), limit(1, "q")], [0, 1]);
}

#[test]
fn a_router_that_was_never_let_in_borrows_nothing() {
    let timing = FleetTiming::default();
    let start = Instant::now();
    let mut member = FleetMember::new(timing, MembershipMode::Available, InMemoryShares::default(), start);
    assert_eq!(member.lease_state(start + timing.lease_duration * 9), LeaseState::NoLease);
    // The same is true of a router that finds the coordinator but is not admitted.
    member.begin_session(start);
    assert!(member.outgoing(start).is_some());
    member.end_session();
    assert_eq!(member.lease_state(start + timing.lease_duration * 9), LeaseState::NoLease);
}

#[test]
fn requests_of_a_fallback_are_counted_but_settle_no_doubt_and_give_no_right_to_the_slot_in_any_later_session() {
    let mut fleet = TestFleet::with_mode(MembershipMode::Available, 2, 1);
    fleet.cut_off.insert(1);
    fleet.advance(fleet.timing.lease_duration);
    assert_eq!(fleet.start_request(1), Some(SlotBasis::Fallback));
    fleet.cut_off.clear();
    fleet.replace_coordinator(2, PreviousHolders::Unknown, 1);
    fleet.connect(1);
    assert_eq!(fleet.slot_counts(), (0, 1, 1), "more than there are");
    // This holds for a repeated hello too: the welcome itself has the limit, before a request could start.
    fleet.members[1].begin_session(fleet.now);
    let hello = fleet.members[1].outgoing(fleet.now).unwrap();
    fleet.ledger.receive(&member_id(1), hello, fleet.now);
    let answer = fleet.ledger.outgoing(fleet.now).into_iter().map(|(_, message)| message).next();
    let Some(ToMember::Welcome { keep_limits, .. }) = &answer else { panic!("it is welcome") };
    assert_eq!(keep_limits, &[(replica_key("p"), 0)]);
    fleet.members[1].receive(answer.unwrap(), fleet.now);
    assert_eq!(fleet.slot_counts(), (0, 1, 1));
    fleet.members[1].finish_request(&replica_key("p"), SlotBasis::Fallback);
    assert_eq!((fleet.start_request(1), fleet.held_slots(1)), (None, 0));
    fleet.exchange_messages();
    assert_eq!(fleet.slot_counts(), (0, 0, 1), "who has the slot by right has not been heard");
}

#[test]
fn what_one_coordinator_did_not_let_a_member_keep_it_does_not_claim_by_right_from_the_next() {
    let mut fleet = TestFleet::with_mode(MembershipMode::Available, 2, 1);
    fleet.cut_off.insert(1);
    fleet.advance(fleet.timing.lease_duration);
    assert_eq!(fleet.start_request(1), Some(SlotBasis::Fallback));
    fleet.cut_off.clear();
    for term in [2, 3] {
        fleet.replace_coordinator(term, PreviousHolders::Unknown, 1);
        fleet.members[1].begin_session(fleet.now);
        let Some(ToCoordinator::Hello(hello)) = fleet.members[1].outgoing(fleet.now) else { panic!("it says hello") };
        let claim = SlotClaim { replica: replica_key("p"), leased_slots: 0, taken_slots: 1 };
        assert_eq!(hello.claims, [claim], "in term {term}");
        fleet.ledger.receive(&member_id(1), ToCoordinator::Hello(hello), fleet.now);
        fleet.exchange_messages();
    }
}

// A router without a fleet.

#[test]
fn a_router_alone_has_every_slot_and_says_nothing() {
    let start = Instant::now();
    let mut member = FleetMember::new(FleetTiming::default(), MembershipMode::Alone, InMemoryShares::default(), start);
    member.set_replica(&replica_key("p"), 2, true, HOLD);
    let later = start + 1000 * SECOND;
    assert_eq!(member.lease_state(later), LeaseState::Alone);
    let started: Vec<_> = (0..3).map(|_| member.start_request(&replica_key("p"), later)).collect();
    assert_eq!(started, [Some(SlotBasis::Leased), Some(SlotBasis::Leased), None]);
    assert_eq!((member.tick(later), member.wake_at(later), member.needs_connection(later)), (vec![], None, false));
    assert_eq!(member.outgoing(later), None);
    member.finish_request(&replica_key("p"), SlotBasis::Leased);
    member.set_replica(&replica_key("p"), 1, true, HOLD);
    assert_eq!(member.start_request(&replica_key("p"), later), None, "of a lowered cap the rest ends first");
    member.finish_request(&replica_key("p"), SlotBasis::Leased);
    assert_eq!(member.start_request(&replica_key("p"), later), Some(SlotBasis::Leased));
}
