use super::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const HELD: Duration = Duration::from_millis(100);

fn admission(per_replica: u32, queue_length: usize, replicas: usize) -> (Admission<&'static str>, Vec<ReplicaId>) {
    let mut admission = Admission::new(Rules { per_replica: NonZeroU32::new(per_replica).unwrap(), queue_length });
    let ids = (0..replicas).map(|_| admission.add().0).collect();
    (admission, ids)
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
    let first = granted(admission.arrive(Avoid::default(), || ""));
    let second = granted(admission.arrive(Avoid::default(), || ""));
    let third = granted(admission.arrive(Avoid::default(), || ""));
    let mut all = [first, second, third];
    all.sort();
    assert_eq!(all.to_vec(), ids, "each replica gets one before any gets two");
    admission.release(second, HELD);
    admission.release(first, HELD);
    assert_eq!(granted(admission.arrive(Avoid::default(), || "")), first, "warmest first");
    assert_eq!(granted(admission.arrive(Avoid::default(), || "")), second);
}

#[test]
fn nobody_gets_more_than_the_cap_and_the_queue_is_bounded() {
    let (mut admission, _) = admission(2, 1, 2);
    for _ in 0..4 {
        granted(admission.arrive(Avoid::default(), || ""));
    }
    queued(admission.arrive(Avoid::default(), || "waits"));
    assert_eq!(admission.arrive(Avoid::default(), || "turned away"), Arrival::Full);
    assert_eq!(admission.occupancy(), Occupancy { ready: 2, busy: 4, waiting: 1, ..Occupancy::default() });
}

#[test]
fn first_come_first_served_and_leavers_lose_their_place() {
    let (mut admission, ids) = admission(1, 10, 1);
    granted(admission.arrive(Avoid::default(), || ""));
    let first = queued(admission.arrive(Avoid::default(), || "first"));
    let second = queued(admission.arrive(Avoid::default(), || "second"));
    queued(admission.arrive(Avoid::default(), || "third"));
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
    granted(admission.arrive(Avoid::default(), || ""));
    granted(admission.arrive(Avoid::default(), || ""));
    assert!(!admission.remove(ids[0]));
    queued(admission.arrive(Avoid::default(), || "waits"));
    assert_eq!(admission.release(ids[0], HELD), (None, false));
    assert_eq!(admission.occupancy().busy_draining, 1);
    assert_eq!(admission.release(ids[0], HELD), (None, true));
    let (again, grants) = admission.add();
    assert_eq!(grants, [("waits", again)]);
    assert_eq!(again, ids[0], "ids are reused");
}

#[test]
fn a_draining_replica_that_is_wanted_again_still_has_what_is_in_flight() {
    let (mut admission, ids) = admission(2, 10, 1);
    granted(admission.arrive(Avoid::default(), || ""));
    granted(admission.arrive(Avoid::default(), || ""));
    admission.remove(ids[0]);
    queued(admission.arrive(Avoid::default(), || "waits"));
    assert!(admission.restore(ids[0]).is_empty());
    assert_eq!(admission.release(ids[0], HELD), (Some(("waits", ids[0])), false));
    assert_eq!(admission.occupancy().busy, 2);
}

#[test]
fn a_repeated_request_avoids_the_replica_that_failed_it_and_goes_first() {
    let (mut admission, ids) = admission(1, 10, 2);
    let (bad, good) = (ids[0], ids[1]);
    assert_eq!(granted(admission.arrive(avoiding(&[bad]), || "")), good);
    queued(admission.arrive(avoiding(&[bad]), || "repeated"));
    assert_eq!(granted(admission.arrive(Avoid::default(), || "takes what the other avoids")), bad);
    queued(admission.arrive(Avoid::default(), || "later"));
    queued(admission.arrive(avoiding(&[bad]), || "repeated later"));
    assert_eq!(admission.release(bad, HELD), (Some(("later", bad)), false));
    assert_eq!(admission.release(good, HELD), (Some(("repeated later", good)), false));
    assert_eq!(admission.release(good, HELD), (Some(("repeated", good)), false));
}

#[test]
fn a_repeated_request_avoids_every_replica_that_failed_it() {
    let (mut admission, ids) = admission(1, 10, 3);
    assert_eq!(granted(admission.arrive(avoiding(&[ids[0], ids[1]]), || "")), ids[2]);
    assert!(admission.any_ready_but(avoiding(&[ids[0], ids[1]])));
    admission.remove(ids[2]);
    assert!(!admission.any_ready_but(avoiding(&[ids[0], ids[1]])));
    queued(admission.arrive(avoiding(&[ids[0], ids[1]]), || "waits for another"));
    let (new, grants) = admission.add();
    assert_eq!(grants, [("waits for another", new)]);
}

#[test]
fn a_ticket_is_never_given_twice() {
    let (mut admission, ids) = admission(1, 10, 2);
    granted(admission.arrive(Avoid::default(), || ""));
    granted(admission.arrive(Avoid::default(), || ""));
    let served = queued(admission.arrive(Avoid::default(), || "served"));
    queued(admission.arrive(Avoid::default(), || "behind"));
    assert_eq!(admission.release(ids[1], HELD).0, Some(("served", ids[1])));
    let repeated = queued(admission.arrive(avoiding(&[ids[0]]), || "repeated"));
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
    assert_eq!(admission.retry_after(now), Duration::from_secs(1));
    queued(admission.arrive(Avoid::default(), || "probe"));
    queued(admission.arrive(Avoid::default(), || "next"));
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
        granted(admission.arrive(Avoid::default(), || ""));
    }
    let rules = |cap| Rules { per_replica: NonZeroU32::new(cap).unwrap(), queue_length: 10 };
    assert!(admission.set_rules(rules(1)).is_empty());
    queued(admission.arrive(Avoid::default(), || "waits"));
    queued(admission.arrive(Avoid::default(), || "waits too"));
    assert_eq!(admission.release(ids[0], HELD).0, None);
    assert_eq!(admission.release(ids[0], HELD).0, None);
    assert_eq!(admission.release(ids[0], HELD).0, Some(("waits", ids[0])));
    assert_eq!(admission.set_rules(rules(2)), [("waits too", ids[0])]);
}

#[test]
fn retry_after_predicts_when_the_queue_is_empty() {
    let (mut admission, ids) = admission(2, 100, 2);
    assert_eq!(ids.len(), 2);
    let served = granted(admission.arrive(Avoid::default(), || ""));
    admission.release(served, Duration::from_secs(2));
    for _ in 0..4 {
        granted(admission.arrive(Avoid::default(), || ""));
    }
    for _ in 0..11 {
        queued(admission.arrive(Avoid::default(), || ""));
    }
    // Twelve requests of 2 s each over four slots.
    assert_eq!(admission.retry_after(Instant::now()), Duration::from_secs(6));
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
                _ => match admission.arrive(Avoid::default(), || step) {
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
