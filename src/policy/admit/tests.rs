use super::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const HELD: Duration = Duration::from_millis(100);
/// Waits at another router.
const NOBODY: (usize, Duration) = (0, Duration::ZERO);

fn admission(per_replica: u32, queue_length: usize, replicas: usize) -> (Admission<&'static str>, Vec<ReplicaId>) {
    let mut admission = Admission::new(Rules { per_replica: NonZeroU32::new(per_replica).unwrap(), queue_length });
    let ids = (0..replicas).map(|_| admission.add().0).collect();
    (admission, ids)
}

/// A deadline that no test comes to.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

fn avoiding(ids: &[ReplicaId]) -> Avoid {
    let mut avoid = Avoid::default();
    ids.iter().for_each(|id| avoid.add(*id));
    avoid
}

fn granted(arrival: Arrival) -> ReplicaId {
    match arrival {
        Arrival::Granted(id) => id,
        other => panic!("not granted: {other:?}"),
    }
}

fn queued(arrival: Arrival) -> Ticket {
    match arrival {
        Arrival::Queued(ticket) => ticket,
        other => panic!("not queued: {other:?}"),
    }
}

#[test]
fn the_least_loaded_replica_is_taken_and_of_equals_the_one_used_last() {
    let (mut admission, ids) = admission(2, 0, 3);
    let first = granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    let second = granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    let third = granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    let mut all = [first, second, third];
    all.sort();
    assert_eq!(all.to_vec(), ids, "each replica gets one before any gets two");
    admission.release(second, HELD);
    admission.release(first, HELD);
    assert_eq!(granted(admission.arrive(Avoid::default(), Instant::now(), far(), || "")), first, "warmest first");
    assert_eq!(granted(admission.arrive(Avoid::default(), Instant::now(), far(), || "")), second);
}

#[test]
fn nobody_gets_more_than_the_cap_and_the_queue_is_bounded() {
    let (mut admission, _) = admission(2, 1, 2);
    for _ in 0..4 {
        granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    }
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "waits"));
    assert_eq!(admission.arrive(Avoid::default(), Instant::now(), far(), || "turned away"), Arrival::Full);
    assert_eq!(admission.occupancy(), Occupancy { ready: 2, busy: 4, waiting: 1, ..Occupancy::default() });
}

#[test]
fn first_come_first_served_and_leavers_lose_their_place() {
    let (mut admission, ids) = admission(1, 10, 1);
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    let first = queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "first"));
    let second = queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "second"));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "third"));
    assert_eq!(admission.leave(second), Some("second"));
    assert_eq!(admission.leave(second), None);
    assert_eq!(admission.release(ids[0], HELD), (Some(("first", ids[0])), false));
    assert_eq!(admission.leave(first), None, "granted before");
    assert_eq!(admission.release(ids[0], HELD), (Some(("third", ids[0])), false));
    assert_eq!(admission.release(ids[0], HELD), (None, false));
}

#[test]
fn a_draining_replica_gets_nothing_new_and_goes_with_its_last_request() {
    let (mut admission, ids) = admission(2, 10, 1);
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    assert!(!admission.remove(ids[0]));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "waits"));
    assert_eq!(admission.release(ids[0], HELD), (None, false));
    assert_eq!(admission.occupancy().busy_draining, 1);
    assert_eq!(admission.release(ids[0], HELD), (None, true));
    let (again, grants) = admission.add();
    assert_eq!(grants, [("waits", again)]);
    assert_eq!(again.index(), ids[0].index(), "places are reused");
    assert_ne!(again, ids[0]);
}

#[test]
fn a_draining_replica_that_is_wanted_again_still_has_what_is_in_flight() {
    let (mut admission, ids) = admission(2, 10, 1);
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    admission.remove(ids[0]);
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "waits"));
    assert!(admission.restore(ids[0]).is_empty());
    assert_eq!(admission.release(ids[0], HELD), (Some(("waits", ids[0])), false));
    assert_eq!(admission.occupancy().busy, 2);
}

#[test]
fn a_repeated_request_avoids_the_replica_that_failed_it_and_goes_first() {
    let (mut admission, ids) = admission(1, 10, 2);
    let (bad, good) = (ids[0], ids[1]);
    assert_eq!(granted(admission.arrive(avoiding(&[bad]), Instant::now(), far(), || "")), good);
    queued(admission.arrive(avoiding(&[bad]), Instant::now(), far(), || "repeated"));
    assert_eq!(
        granted(admission.arrive(Avoid::default(), Instant::now(), far(), || "takes what the other avoids")),
        bad
    );
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "later"));
    queued(admission.arrive(avoiding(&[bad]), Instant::now(), far(), || "repeated later"));
    assert_eq!(admission.release(bad, HELD), (Some(("later", bad)), false));
    assert_eq!(admission.release(good, HELD), (Some(("repeated", good)), false), "in the order they came");
    assert_eq!(admission.release(good, HELD), (Some(("repeated later", good)), false));
}

#[test]
fn a_repeated_request_avoids_every_replica_that_failed_it() {
    let (mut admission, ids) = admission(1, 10, 3);
    assert_eq!(granted(admission.arrive(avoiding(&[ids[0], ids[1]]), Instant::now(), far(), || "")), ids[2]);
    assert!(admission.any_ready_but(avoiding(&[ids[0], ids[1]])));
    admission.remove(ids[2]);
    assert!(!admission.any_ready_but(avoiding(&[ids[0], ids[1]])));
    queued(admission.arrive(avoiding(&[ids[0], ids[1]]), Instant::now(), far(), || "waits for another"));
    let (new, grants) = admission.add();
    assert_eq!(grants, [("waits for another", new)]);
}

#[test]
fn a_ticket_is_never_given_twice() {
    let (mut admission, ids) = admission(1, 10, 2);
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    let served = queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "served"));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "behind"));
    assert_eq!(admission.release(ids[1], HELD).0, Some(("served", ids[1])));
    let repeated = queued(admission.arrive(avoiding(&[ids[0]]), Instant::now(), far(), || "repeated"));
    assert_ne!(served, repeated);
    assert_eq!(admission.leave(served), None, "who was served takes nobody else's place along");
    assert_eq!(admission.leave(repeated), Some("repeated"));
}

#[test]
fn a_failing_replica_is_set_aside_then_probed_by_one_request() {
    let (mut admission, ids) = admission(4, 10, 1);
    let mut now = Instant::now();
    assert_eq!(admission.failed(ids[0], now), None);
    assert_eq!(admission.failed(ids[0], now), None);
    let until = admission.failed(ids[0], now).unwrap();
    assert!(!admission.any_ready());
    assert_eq!(admission.retry_after(now, NOBODY), Duration::from_secs(1));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "probe"));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "next"));
    assert!(admission.tick(now).is_empty());
    now = until;
    assert_eq!(admission.tick(now), [("probe", ids[0])]);
    assert_eq!(admission.succeeded(ids[0]), [("next", ids[0])]);
    assert_eq!(admission.occupancy().free, 2);
}

#[test]
fn changed_rules_apply_at_once_and_what_is_in_flight_finishes() {
    let (mut admission, ids) = admission(3, 10, 1);
    for _ in 0..3 {
        granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    }
    let rules = |cap| Rules { per_replica: NonZeroU32::new(cap).unwrap(), queue_length: 10 };
    assert!(admission.set_rules(rules(1)).is_empty());
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "waits"));
    queued(admission.arrive(Avoid::default(), Instant::now(), far(), || "waits too"));
    assert_eq!(admission.release(ids[0], HELD).0, None);
    assert_eq!(admission.release(ids[0], HELD).0, None);
    assert_eq!(admission.release(ids[0], HELD).0, Some(("waits", ids[0])));
    assert_eq!(admission.set_rules(rules(2)), [("waits too", ids[0])]);
}

/// Four slots, all taken; a request takes 2 s; `waiting` wait until `deadline`.
fn all_busy(waiting: usize, deadline: Instant) -> (Admission<&'static str>, Vec<ReplicaId>) {
    let (mut admission, ids) = admission(2, 100, 2);
    let served = granted(admission.arrive(Avoid::default(), Instant::now(), deadline, || ""));
    admission.release(served, Duration::from_secs(2));
    for _ in 0..4 {
        granted(admission.arrive(Avoid::default(), Instant::now(), deadline, || ""));
    }
    for _ in 0..waiting {
        queued(admission.arrive(Avoid::default(), Instant::now(), deadline, || ""));
    }
    (admission, ids)
}

#[test]
fn retry_after_predicts_when_the_queue_is_empty() {
    // Twelve requests of 2 s each over four slots.
    let admission = all_busy(11, far()).0;
    assert_eq!(admission.retry_after(Instant::now(), NOBODY), Duration::from_secs(6));
    // Ten more at other routers.
    let elsewhere = |longest| (10, Duration::from_secs(longest));
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(60)), Duration::from_secs(11));
    let admission = all_busy(0, far()).0;
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(60)), Duration::from_millis(5500));
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(2)), Duration::from_millis(2500), "they leave");
}

#[test]
fn retry_after_knows_that_those_who_wait_leave() {
    let now = Instant::now();
    // Fifty seconds of work wait, but not longer than 1 s; then the next slot comes back.
    let (admission, _) = all_busy(100, now + Duration::from_secs(1));
    assert_eq!(admission.retry_after(now, NOBODY), Duration::from_millis(1500));
}

#[test]
fn retry_after_is_the_next_probe_of_a_replica_that_is_still_wanted() {
    let (mut admission, ids) = admission(1, 10, 2);
    let mut now = Instant::now();
    let mut fail = |admission: &mut Admission<_>, id, times| {
        for _ in 0..times {
            if let Some(until) = admission.failed(id, now) {
                now = until;
                admission.tick(now);
            }
        }
        now
    };
    fail(&mut admission, ids[0], 3);
    assert!(admission.remove(ids[0]));
    let now = fail(&mut admission, ids[1], 7);
    let until = admission.failed(ids[1], now).unwrap();
    assert_eq!(admission.retry_after(now, NOBODY), until - now);
    assert_eq!(until - now, Duration::from_secs(8));
}

#[test]
fn retry_after_does_not_count_what_a_replica_failed() {
    let (mut admission, ids) = all_busy(11, far());
    for _ in 1..crate::policy::health::FAILURES {
        admission.failed(ids[0], Instant::now());
        admission.release(ids[0], Duration::ZERO);
    }
    // Two more were served from the queue.
    assert_eq!(admission.retry_after(Instant::now(), NOBODY), Duration::from_secs(5));
}

#[test]
fn a_replica_that_came_back_serves_whom_others_avoid_it_for() {
    let (mut admission, ids) = admission(2, 10, 3);
    let (light, heavy, full) = (ids[0], ids[1], ids[2]);
    for _ in 0..6 {
        granted(admission.arrive(Avoid::default(), Instant::now(), far(), || ""));
    }
    queued(admission.arrive(avoiding(&[light, heavy]), Instant::now(), far(), || "avoids both"));
    queued(admission.arrive(avoiding(&[light, full]), Instant::now(), far(), || "avoids the lightest"));
    admission.remove(heavy);
    admission.release(heavy, HELD);
    assert_eq!(admission.release(light, HELD).0, None);
    assert_eq!(admission.release(light, HELD).0, None);
    assert_eq!(admission.restore(heavy), [("avoids the lightest", heavy)]);
}

#[test]
fn a_new_replica_in_the_place_of_one_that_failed_is_not_avoided() {
    let (mut admission, ids) = admission(1, 10, 2);
    granted(admission.arrive(avoiding(&[ids[0]]), Instant::now(), far(), || ""));
    queued(admission.arrive(avoiding(&[ids[0]]), Instant::now(), far(), || "repeated"));
    assert!(admission.remove(ids[0]));
    let (new, grants) = admission.add();
    assert_eq!((new.index(), grants), (ids[0].index(), vec![("repeated", new)]));
    assert!(admission.any_ready_but(avoiding(&[ids[0], ids[1]])));
}

/// A random walk over every call, against a model that is only counters: the invariants hold after each step.
#[test]
fn whatever_happens_the_cap_holds_the_order_holds_and_no_slot_idles() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let per_replica = rng.random_range(1..4);
        let mut rules = Rules { per_replica: NonZeroU32::new(per_replica).unwrap(), queue_length: 8 };
        let mut admission = Admission::<u64>::new(rules);
        let (mut present, mut in_flight, mut waiting) = (Vec::new(), Vec::new(), Vec::<(Ticket, u64)>::new());
        let mut now = Instant::now();
        for step in 0..400 {
            now += Duration::from_millis(rng.random_range(0..200));
            let mut grants = Vec::new();
            match rng.random_range(0..10) {
                0 if present.len() < 5 => {
                    let (id, granted) = admission.add();
                    present.push(id);
                    grants = granted;
                }
                1 if !present.is_empty() => {
                    let id = present.swap_remove(rng.random_range(0..present.len()));
                    assert_eq!(admission.remove(id), !in_flight.contains(&id), "seed {seed} step {step}");
                }
                2 if !present.is_empty() => {
                    admission.failed(present[rng.random_range(0..present.len())], now);
                }
                3 if !present.is_empty() => grants = admission.succeeded(present[rng.random_range(0..present.len())]),
                4 => grants = admission.tick(now),
                5 if !waiting.is_empty() => {
                    let (ticket, who) = waiting.remove(rng.random_range(0..waiting.len()));
                    assert_eq!(admission.leave(ticket), Some(who), "seed {seed} step {step}");
                }
                6 | 7 if !in_flight.is_empty() => {
                    let id = in_flight.swap_remove(rng.random_range(0..in_flight.len()));
                    grants.extend(admission.release(id, HELD).0);
                }
                8 if step % 7 == 0 => {
                    rules.per_replica = NonZeroU32::new(rng.random_range(1..4)).unwrap();
                    grants = admission.set_rules(rules);
                }
                _ => match admission.arrive(Avoid::default(), Instant::now(), far(), || step) {
                    Arrival::Granted(id) => {
                        assert!(waiting.is_empty(), "overtaken: seed {seed} step {step}");
                        in_flight.push(id);
                    }
                    Arrival::Queued(ticket) => waiting.push((ticket, step)),
                    Arrival::Full => assert_eq!(waiting.len(), rules.queue_length, "seed {seed} step {step}"),
                },
            }
            for (who, id) in grants {
                assert_eq!(waiting.remove(0).1, who, "out of turn: seed {seed} step {step}");
                let busy = in_flight.iter().filter(|other| **other == id).count() as u32;
                assert!(busy < rules.per_replica.get(), "over the cap: seed {seed} step {step}");
                assert!(present.contains(&id), "on a leaving replica: seed {seed} step {step}");
                in_flight.push(id);
            }
            let sum = admission.occupancy();
            assert!(sum.waiting == 0 || sum.free == 0, "idle slot: seed {seed} step {step} {sum:?}");
            assert_eq!((sum.waiting, sum.busy + sum.busy_draining), (waiting.len(), in_flight.len()));
        }
        for id in in_flight.drain(..) {
            if let Some((_, id)) = admission.release(id, HELD).0 {
                admission.release(id, HELD);
            }
        }
    }
}

#[test]
fn a_replica_gets_no_more_than_is_leased_of_it() {
    let rules = Rules { per_replica: NonZeroU32::new(2).unwrap(), queue_length: 10 };
    let mut admission = Admission::shared(rules);
    let ids: Vec<_> = (0..2).map(|_| admission.add().0).collect();
    let now = Instant::now();
    let first = queued(admission.arrive(Avoid::default(), now, far(), || "first"));
    let later = now + HELD;
    queued(admission.arrive(Avoid::default(), later, far(), || "second"));
    queued(admission.arrive(Avoid::default(), later, far(), || "third"));
    assert_eq!(admission.line(), Some(Line { length: 3, oldest: now, newest: later }));
    assert!(admission.any_ready(), "it is only not here that they may be used");
    assert_eq!((admission.occupancy().ready, admission.occupancy().free), (2, 0));
    admission.leave(first);
    assert_eq!(admission.set_leased(ids[0], 1), [("second", ids[0])]);
    assert_eq!(admission.set_leased(ids[0], 5), [("third", ids[0])], "but not more than its limit");
    assert_eq!(admission.line(), None);
    // What is more than is leased ends first.
    assert!(admission.set_leased(ids[0], 1).is_empty());
    queued(admission.arrive(Avoid::default(), now, far(), || "fourth"));
    assert_eq!(admission.release(ids[0], HELD).0, None);
    assert_eq!(admission.release(ids[0], HELD).0, Some(("fourth", ids[0])));
}

#[test]
fn where_nobody_may_wait_as_many_ask_as_there_are_slots_elsewhere_until_one_has_in_vain() {
    let rules = Rules { per_replica: NonZeroU32::new(2).unwrap(), queue_length: 0 };
    let (mut admission, now) = (Admission::shared(rules), Instant::now());
    assert!(!admission.may_ask(now, 9), "there is no replica");
    let (id, _) = admission.add();
    let mut arrive = |at: Instant| match admission.arrive(Avoid::default(), at, at + ASK, || 1) {
        Arrival::Queued(ticket) => Some(ticket),
        _ => None,
    };
    let (first, second) = (arrive(now).unwrap(), arrive(now).unwrap());
    assert_eq!(arrive(now), None, "there are no more slots than two");
    assert_eq!(admission.set_leased(id, 1), [(1, id)], "an answer");
    assert_eq!(admission.leave(first), None);
    assert!(admission.leave(second).is_some());
    assert!(admission.may_ask(now, 0));
    admission.ask_later(now);
    assert!(!admission.may_ask(now + ASK / 2, 0) && admission.may_ask(now + ASK, 0));
    drop(admission.set_leased(id, 2));
    assert!(!admission.may_ask(now + ASK, 9), "all are here");
}
