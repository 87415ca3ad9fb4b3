use super::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const HELD: Duration = Duration::from_millis(100);
/// No requests are queued at other routers.
const NO_REMOTE_QUEUE: (usize, Duration) = (0, Duration::ZERO);

fn admission(per_replica: u32, queue_length: usize, replicas: usize) -> (Admission<&'static str>, Vec<ReplicaId>) {
    let mut admission =
        Admission::new(AdmissionRules { replica_cap: NonZeroU32::new(per_replica).unwrap(), queue_length });
    let ids = (0..replicas).map(|_| admission.add_replica().0).collect();
    (admission, ids)
}

/// Returns a deadline that no test reaches.
fn distant_deadline() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

fn avoiding(ids: &[ReplicaId]) -> AvoidedReplicas {
    let mut avoid = AvoidedReplicas::default();
    ids.iter().for_each(|id| avoid.insert(*id));
    avoid
}

fn granted(arrival: AdmissionOutcome) -> ReplicaId {
    match arrival {
        AdmissionOutcome::Granted(id) => id,
        other => panic!("not granted: {other:?}"),
    }
}

fn queued(arrival: AdmissionOutcome) -> Ticket {
    match arrival {
        AdmissionOutcome::Queued(ticket) => ticket,
        other => panic!("not queued: {other:?}"),
    }
}

#[test]
fn the_least_loaded_replica_is_taken_and_of_equals_the_one_used_last() {
    let (mut admission, ids) = admission(2, 0, 3);
    let first = granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    let second = granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    let third = granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    let mut all = [first, second, third];
    all.sort();
    assert_eq!(all.to_vec(), ids, "each replica gets one before any gets two");
    admission.release_slot(second, HELD);
    admission.release_slot(first, HELD);
    assert_eq!(
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "")),
        first,
        "warmest first"
    );
    assert_eq!(
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "")),
        second
    );
}

#[test]
fn nobody_gets_more_than_the_cap_and_the_queue_is_bounded() {
    let (mut admission, _) = admission(2, 1, 2);
    for _ in 0..4 {
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    }
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "waits"));
    assert_eq!(
        admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "turned away"),
        AdmissionOutcome::Full
    );
    assert_eq!(admission.occupancy(), Occupancy { ready: 2, busy: 4, waiting: 1, ..Occupancy::default() });
}

#[test]
fn first_come_first_served_and_leavers_lose_their_place() {
    let (mut admission, ids) = admission(1, 10, 1);
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    let first =
        queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "first"));
    let second =
        queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "second"));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "third"));
    assert_eq!(admission.cancel_queued(second), Some("second"));
    assert_eq!(admission.cancel_queued(second), None);
    assert_eq!(admission.release_slot(ids[0], HELD), (Some(("first", ids[0])), false));
    assert_eq!(admission.cancel_queued(first), None, "granted before");
    assert_eq!(admission.release_slot(ids[0], HELD), (Some(("third", ids[0])), false));
    assert_eq!(admission.release_slot(ids[0], HELD), (None, false));
}

#[test]
fn a_draining_replica_gets_nothing_new_and_goes_with_its_last_request() {
    let (mut admission, ids) = admission(2, 10, 1);
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    assert!(!admission.remove_replica(ids[0]));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "waits"));
    assert_eq!(admission.release_slot(ids[0], HELD), (None, false));
    assert_eq!(admission.occupancy().busy_draining, 1);
    assert_eq!(admission.release_slot(ids[0], HELD), (None, true));
    let (again, grants) = admission.add_replica();
    assert_eq!(grants, [("waits", again)]);
    assert_eq!(again.index(), ids[0].index(), "places are reused");
    assert_ne!(again, ids[0]);
}

#[test]
fn a_draining_replica_that_is_wanted_again_still_has_what_is_in_flight() {
    let (mut admission, ids) = admission(2, 10, 1);
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    admission.remove_replica(ids[0]);
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "waits"));
    assert!(admission.restore_replica(ids[0]).is_empty());
    assert_eq!(admission.release_slot(ids[0], HELD), (Some(("waits", ids[0])), false));
    assert_eq!(admission.occupancy().busy, 2);
}

#[test]
fn a_repeated_request_avoids_the_replica_that_failed_it_and_goes_first() {
    let (mut admission, ids) = admission(1, 10, 2);
    let (bad, good) = (ids[0], ids[1]);
    assert_eq!(granted(admission.request_slot(avoiding(&[bad]), Instant::now(), distant_deadline(), || "")), good);
    queued(admission.request_slot(avoiding(&[bad]), Instant::now(), distant_deadline(), || "repeated"));
    assert_eq!(
        granted(admission.request_slot(
            AvoidedReplicas::default(),
            Instant::now(),
            distant_deadline(),
            || "takes what the other avoids"
        )),
        bad
    );
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "later"));
    queued(admission.request_slot(avoiding(&[bad]), Instant::now(), distant_deadline(), || "repeated later"));
    assert_eq!(admission.release_slot(bad, HELD), (Some(("later", bad)), false));
    assert_eq!(admission.release_slot(good, HELD), (Some(("repeated", good)), false), "in the order they came");
    assert_eq!(admission.release_slot(good, HELD), (Some(("repeated later", good)), false));
}

#[test]
fn a_repeated_request_avoids_every_replica_that_failed_it() {
    let (mut admission, ids) = admission(1, 10, 3);
    assert_eq!(
        granted(admission.request_slot(avoiding(&[ids[0], ids[1]]), Instant::now(), distant_deadline(), || "")),
        ids[2]
    );
    assert!(admission.has_ready_replica_except(avoiding(&[ids[0], ids[1]])));
    admission.remove_replica(ids[2]);
    assert!(!admission.has_ready_replica_except(avoiding(&[ids[0], ids[1]])));
    queued(admission.request_slot(
        avoiding(&[ids[0], ids[1]]),
        Instant::now(),
        distant_deadline(),
        || "waits for another",
    ));
    let (new, grants) = admission.add_replica();
    assert_eq!(grants, [("waits for another", new)]);
}

#[test]
fn a_ticket_is_never_given_twice() {
    let (mut admission, ids) = admission(1, 10, 2);
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    let served =
        queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "served"));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "behind"));
    assert_eq!(admission.release_slot(ids[1], HELD).0, Some(("served", ids[1])));
    let repeated =
        queued(admission.request_slot(avoiding(&[ids[0]]), Instant::now(), distant_deadline(), || "repeated"));
    assert_ne!(served, repeated);
    assert_eq!(admission.cancel_queued(served), None, "who was served takes nobody else's place along");
    assert_eq!(admission.cancel_queued(repeated), Some("repeated"));
}

#[test]
fn a_failing_replica_is_set_aside_then_probed_by_one_request() {
    let (mut admission, ids) = admission(4, 10, 1);
    let mut now = Instant::now();
    assert_eq!(admission.record_failure(ids[0], now), None);
    assert_eq!(admission.record_failure(ids[0], now), None);
    let until = admission.record_failure(ids[0], now).unwrap();
    assert!(!admission.has_ready_replica());
    assert_eq!(admission.retry_after(now, NO_REMOTE_QUEUE), Duration::from_secs(1));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "probe"));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "next"));
    assert!(admission.start_due_probes(now).is_empty());
    now = until;
    assert_eq!(admission.start_due_probes(now), [("probe", ids[0])]);
    assert_eq!(admission.record_success(ids[0]), [("next", ids[0])]);
    assert_eq!(admission.occupancy().free, 2);
}

#[test]
fn changed_rules_apply_at_once_and_what_is_in_flight_finishes() {
    let (mut admission, ids) = admission(3, 10, 1);
    for _ in 0..3 {
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    }
    let rules = |cap| AdmissionRules { replica_cap: NonZeroU32::new(cap).unwrap(), queue_length: 10 };
    assert!(admission.set_rules(rules(1)).is_empty());
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "waits"));
    queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || "waits too"));
    assert_eq!(admission.release_slot(ids[0], HELD).0, None);
    assert_eq!(admission.release_slot(ids[0], HELD).0, None);
    assert_eq!(admission.release_slot(ids[0], HELD).0, Some(("waits", ids[0])));
    assert_eq!(admission.set_rules(rules(2)), [("waits too", ids[0])]);
}

/// Returns a deployment with four slots, all taken, in which a request takes 2 s and `waiting` requests are queued
/// until `deadline`.
fn busy_deployment(waiting: usize, deadline: Instant) -> (Admission<&'static str>, Vec<ReplicaId>) {
    let (mut admission, ids) = admission(2, 100, 2);
    let served = granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), deadline, || ""));
    admission.release_slot(served, Duration::from_secs(2));
    for _ in 0..4 {
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), deadline, || ""));
    }
    for _ in 0..waiting {
        queued(admission.request_slot(AvoidedReplicas::default(), Instant::now(), deadline, || ""));
    }
    (admission, ids)
}

#[test]
fn retry_after_predicts_when_the_queue_is_empty() {
    // Twelve requests of 2 s each over four slots.
    let admission = busy_deployment(11, distant_deadline()).0;
    assert_eq!(admission.retry_after(Instant::now(), NO_REMOTE_QUEUE), Duration::from_secs(6));
    // Ten more are queued at other routers.
    let elsewhere = |longest| (10, Duration::from_secs(longest));
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(60)), Duration::from_secs(11));
    let admission = busy_deployment(0, distant_deadline()).0;
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(60)), Duration::from_millis(5500));
    assert_eq!(admission.retry_after(Instant::now(), elsewhere(2)), Duration::from_millis(2500), "they leave");
}

#[test]
fn retry_after_knows_that_those_who_wait_leave() {
    let now = Instant::now();
    // Fifty seconds of work are queued, but no longer than 1 s; then the next slot is free.
    let (admission, _) = busy_deployment(100, now + Duration::from_secs(1));
    assert_eq!(admission.retry_after(now, NO_REMOTE_QUEUE), Duration::from_millis(1500));
}

#[test]
fn retry_after_is_the_next_probe_of_a_replica_that_is_still_wanted() {
    let (mut admission, ids) = admission(1, 10, 2);
    let mut now = Instant::now();
    let mut fail = |admission: &mut Admission<_>, id, times| {
        for _ in 0..times {
            if let Some(until) = admission.record_failure(id, now) {
                now = until;
                admission.start_due_probes(now);
            }
        }
        now
    };
    fail(&mut admission, ids[0], 3);
    assert!(admission.remove_replica(ids[0]));
    let now = fail(&mut admission, ids[1], 7);
    let until = admission.record_failure(ids[1], now).unwrap();
    assert_eq!(admission.retry_after(now, NO_REMOTE_QUEUE), until - now);
    assert_eq!(until - now, Duration::from_secs(8));
}

#[test]
fn retry_after_does_not_count_what_a_replica_failed() {
    let (mut admission, ids) = busy_deployment(11, distant_deadline());
    for _ in 1..crate::policy::health::EJECTION_FAILURES {
        admission.record_failure(ids[0], Instant::now());
        admission.release_slot(ids[0], Duration::ZERO);
    }
    // Two more were served from the queue.
    assert_eq!(admission.retry_after(Instant::now(), NO_REMOTE_QUEUE), Duration::from_secs(5));
}

#[test]
fn a_replica_that_came_back_serves_whom_others_avoid_it_for() {
    let (mut admission, ids) = admission(2, 10, 3);
    let (light, heavy, full) = (ids[0], ids[1], ids[2]);
    for _ in 0..6 {
        granted(admission.request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || ""));
    }
    queued(admission.request_slot(avoiding(&[light, heavy]), Instant::now(), distant_deadline(), || "avoids both"));
    queued(admission.request_slot(
        avoiding(&[light, full]),
        Instant::now(),
        distant_deadline(),
        || "avoids the lightest",
    ));
    admission.remove_replica(heavy);
    admission.release_slot(heavy, HELD);
    assert_eq!(admission.release_slot(light, HELD).0, None);
    assert_eq!(admission.release_slot(light, HELD).0, None);
    assert_eq!(admission.restore_replica(heavy), [("avoids the lightest", heavy)]);
}

#[test]
fn a_new_replica_in_the_place_of_one_that_failed_is_not_avoided() {
    let (mut admission, ids) = admission(1, 10, 2);
    granted(admission.request_slot(avoiding(&[ids[0]]), Instant::now(), distant_deadline(), || ""));
    queued(admission.request_slot(avoiding(&[ids[0]]), Instant::now(), distant_deadline(), || "repeated"));
    assert!(admission.remove_replica(ids[0]));
    let (new, grants) = admission.add_replica();
    assert_eq!((new.index(), grants), (ids[0].index(), vec![("repeated", new)]));
    assert!(admission.has_ready_replica_except(avoiding(&[ids[0], ids[1]])));
}

/// A random walk over every call, checked against a model that is only counters: the invariants hold after each step.
#[test]
fn whatever_happens_the_cap_holds_the_order_holds_and_no_slot_idles() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let per_replica = rng.random_range(1..4);
        let mut rules = AdmissionRules { replica_cap: NonZeroU32::new(per_replica).unwrap(), queue_length: 8 };
        let mut admission = Admission::<u64>::new(rules);
        let (mut present, mut in_flight, mut waiting) = (Vec::new(), Vec::new(), Vec::<(Ticket, u64)>::new());
        let mut now = Instant::now();
        for step in 0..400 {
            now += Duration::from_millis(rng.random_range(0..200));
            let mut grants = Vec::new();
            match rng.random_range(0..10) {
                0 if present.len() < 5 => {
                    let (id, granted) = admission.add_replica();
                    present.push(id);
                    grants = granted;
                }
                1 if !present.is_empty() => {
                    let id = present.swap_remove(rng.random_range(0..present.len()));
                    assert_eq!(admission.remove_replica(id), !in_flight.contains(&id), "seed {seed} step {step}");
                }
                2 if !present.is_empty() => {
                    admission.record_failure(present[rng.random_range(0..present.len())], now);
                }
                3 if !present.is_empty() => {
                    grants = admission.record_success(present[rng.random_range(0..present.len())])
                }
                4 => grants = admission.start_due_probes(now),
                5 if !waiting.is_empty() => {
                    let (ticket, who) = waiting.remove(rng.random_range(0..waiting.len()));
                    assert_eq!(admission.cancel_queued(ticket), Some(who), "seed {seed} step {step}");
                }
                6 | 7 if !in_flight.is_empty() => {
                    let id = in_flight.swap_remove(rng.random_range(0..in_flight.len()));
                    grants.extend(admission.release_slot(id, HELD).0);
                }
                8 if step % 7 == 0 => {
                    rules.replica_cap = NonZeroU32::new(rng.random_range(1..4)).unwrap();
                    grants = admission.set_rules(rules);
                }
                _ => {
                    match admission
                        .request_slot(AvoidedReplicas::default(), Instant::now(), distant_deadline(), || step)
                    {
                        AdmissionOutcome::Granted(id) => {
                            assert!(waiting.is_empty(), "overtaken: seed {seed} step {step}");
                            in_flight.push(id);
                        }
                        AdmissionOutcome::Queued(ticket) => waiting.push((ticket, step)),
                        AdmissionOutcome::Full => {
                            assert_eq!(waiting.len(), rules.queue_length, "seed {seed} step {step}")
                        }
                    }
                }
            }
            for (who, id) in grants {
                assert_eq!(waiting.remove(0).1, who, "out of turn: seed {seed} step {step}");
                let busy = in_flight.iter().filter(|other| **other == id).count() as u32;
                assert!(busy < rules.replica_cap.get(), "over the cap: seed {seed} step {step}");
                assert!(present.contains(&id), "on a leaving replica: seed {seed} step {step}");
                in_flight.push(id);
            }
            let sum = admission.occupancy();
            assert!(sum.waiting == 0 || sum.free == 0, "idle slot: seed {seed} step {step} {sum:?}");
            assert_eq!((sum.waiting, sum.busy + sum.busy_draining), (waiting.len(), in_flight.len()));
        }
        for id in in_flight.drain(..) {
            if let Some((_, id)) = admission.release_slot(id, HELD).0 {
                admission.release_slot(id, HELD);
            }
        }
    }
}

#[test]
fn a_replica_gets_no_more_than_is_leased_of_it() {
    let rules = AdmissionRules { replica_cap: NonZeroU32::new(2).unwrap(), queue_length: 10 };
    let mut admission = Admission::new_leased(rules);
    let ids: Vec<_> = (0..2).map(|_| admission.add_replica().0).collect();
    let now = Instant::now();
    let first = queued(admission.request_slot(AvoidedReplicas::default(), now, distant_deadline(), || "first"));
    let later = now + HELD;
    queued(admission.request_slot(AvoidedReplicas::default(), later, distant_deadline(), || "second"));
    queued(admission.request_slot(AvoidedReplicas::default(), later, distant_deadline(), || "third"));
    assert_eq!(admission.queue_summary(), Some(QueueSummary { length: 3, oldest: now, newest: later }));
    assert!(admission.has_ready_replica(), "it is only not here that they may be used");
    assert_eq!((admission.occupancy().ready, admission.occupancy().free), (2, 0));
    admission.cancel_queued(first);
    assert_eq!(admission.set_leased(ids[0], 1), [("second", ids[0])]);
    assert_eq!(admission.set_leased(ids[0], 5), [("third", ids[0])], "but not more than its limit");
    assert_eq!(admission.queue_summary(), None);
    // Requests above the leased slots finish first.
    assert!(admission.set_leased(ids[0], 1).is_empty());
    queued(admission.request_slot(AvoidedReplicas::default(), now, distant_deadline(), || "fourth"));
    assert_eq!(admission.release_slot(ids[0], HELD).0, None);
    assert_eq!(admission.release_slot(ids[0], HELD).0, Some(("fourth", ids[0])));
}

#[test]
fn where_nobody_may_wait_as_many_ask_as_there_are_slots_elsewhere_until_one_has_in_vain() {
    let rules = AdmissionRules { replica_cap: NonZeroU32::new(2).unwrap(), queue_length: 0 };
    let (mut admission, now) = (Admission::new_leased(rules), Instant::now());
    assert!(!admission.may_wait_for_lease(now, 9), "there is no replica");
    let (id, _) = admission.add_replica();
    let mut arrive = |at: Instant| match admission.request_slot(AvoidedReplicas::default(), at, at + LEASE_WAIT, || 1) {
        AdmissionOutcome::Queued(ticket) => Some(ticket),
        _ => None,
    };
    let (first, second) = (arrive(now).unwrap(), arrive(now).unwrap());
    assert_eq!(arrive(now), None, "there are no more slots than two");
    assert_eq!(admission.set_leased(id, 1), [(1, id)], "an answer");
    assert_eq!(admission.cancel_queued(first), None);
    assert!(admission.cancel_queued(second).is_some());
    assert!(admission.may_wait_for_lease(now, 0));
    admission.suppress_lease_requests(now);
    assert!(
        !admission.may_wait_for_lease(now + LEASE_WAIT / 2, 0) && admission.may_wait_for_lease(now + LEASE_WAIT, 0)
    );
    drop(admission.set_leased(id, 2));
    assert!(!admission.may_wait_for_lease(now + LEASE_WAIT, 9), "all are here");
}
