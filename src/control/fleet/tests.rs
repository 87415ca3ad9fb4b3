//! Tests of the ledger, members and the slots of real deployments together, while other tasks acquire and release
//! slots.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::model::endpoint::RequestSettings;
use crate::policy::admit::AvoidedReplicas;
use crate::policy::fleet::ledger::PreviousHolders;
use crate::policy::fleet::member::{MembershipMode, MembershipState};
use crate::policy::fleet::{FleetTiming, Term};
use crate::state::slots::AcquireOutcome;

const CAP: u32 = 2;
const REPLICAS: u32 = 3;

/// A router without connections: its messages are passed to the coordinator directly.
struct TestRouter {
    id: MemberId,
    member: FleetMember<ShareRegistry>,
    membership: Arc<Membership>,
    slots: Arc<DeploymentSlots>,
}

impl TestRouter {
    fn new(name: &str) -> Self {
        let (timing, now) = (FleetTiming::default(), Instant::now());
        let membership = Membership::new(MembershipState::new(timing, MembershipMode::Strict, now)).unwrap();
        let requests = RequestSettings {
            timeout: Duration::from_secs(5),
            stream_idle_timeout: Duration::from_secs(5),
            max_concurrent_per_instance: NonZeroU32::new(CAP).unwrap(),
            max_queue_wait: Duration::from_secs(5),
            max_queue_length: 100,
        };
        let slots = DeploymentSlots::new_shared(&requests, membership.clone(), "one/blue".into());
        for number in 0..REPLICAS {
            let address = format!("127.0.0.1:{number}");
            slots.add_replica(number.into(), &address, &address);
        }
        let id = MemberId { name: name.into(), incarnation: 1 };
        let mut member = FleetMember::new(timing, MembershipMode::Strict, ShareRegistry::new(now), now);
        member.shares().mark_active(&"one/blue".into(), slots.clone());
        member.begin_session(now);
        Self { id, member, membership, slots }
    }

    /// Passes all messages of this router to the coordinator.
    fn send_outgoing(&mut self, coordinator: &mut Coordinator, now: Instant) {
        self.member.shares().set_now(now);
        assert!(self.member.tick(now).is_empty(), "nothing is overdue");
        while let Some(message) = self.member.outgoing(now) {
            coordinator.receive_unchecked(&self.id, message, now);
        }
        self.membership.set_state(self.member.membership_state());
    }
}

/// Returns a router and its coordinator, whose term lasts for ten minutes from the returned time.
fn router_and_coordinator() -> (TestRouter, Coordinator, Instant) {
    let (router, now) = (TestRouter::new("a"), Instant::now());
    let timing = FleetTiming::default();
    let mut coordinator = Coordinator::new(router.id.clone(), timing.heartbeat_interval, Ledger::new(timing));
    coordinator.begin_term(
        (Term(1), PreviousHolders::Known(BTreeSet::new())),
        now + Duration::from_secs(600),
        now,
        now,
    );
    coordinator.set_replicas(&"one/blue".into(), router.slots.replica_capacities(), now);
    (router, coordinator, now)
}

/// Runs the coordinator and all routers until `is_over`.
async fn run_coordinator(mut routers: Vec<TestRouter>, is_over: Arc<AtomicBool>) {
    let now = Instant::now();
    let mut coordinator = Coordinator::new(
        routers[0].id.clone(),
        FleetTiming::default().heartbeat_interval,
        Ledger::new(FleetTiming::default()),
    );
    coordinator.begin_term((Term(1), PreviousHolders::Known(BTreeSet::new())), now + Duration::from_secs(60), now, now);
    coordinator.set_replicas(&"one/blue".into(), routers[0].slots.replica_capacities(), now);
    while !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        coordinator.tick(now);
        for router in &mut routers {
            router.send_outgoing(&mut coordinator, now);
        }
        for (to, message) in coordinator.outgoing(now) {
            let router = routers.iter_mut().find(|router| router.id == to).unwrap();
            router.member.receive(message, now);
            router.membership.set_state(router.member.membership_state());
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn slots_that_three_routers_share_are_never_in_use_twice_and_all_of_them_are_used() {
    let routers: Vec<TestRouter> = ["a", "b", "c"].into_iter().map(TestRouter::new).collect();
    let busy: Arc<[AtomicU32; REPLICAS as usize]> = Arc::default();
    let (is_over, served) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU32::new(0) }; 3]));
    let mut clients = tokio::task::JoinSet::new();
    for (number, router) in routers.iter().enumerate() {
        for _ in 0..6 {
            let (slots, busy, served) = (router.slots.clone(), busy.clone(), served.clone());
            clients.spawn(async move {
                let end = Instant::now() + Duration::from_secs(2);
                while Instant::now() < end {
                    let now = Instant::now();
                    let slot =
                        match slots.acquire(now, now + Duration::from_secs(5), AvoidedReplicas::default()).unwrap() {
                            AcquireOutcome::Granted(slot) => slot,
                            AcquireOutcome::Queued(waiting) => {
                                waiting.wait_for_slot().await.expect("capacity for all in time")
                            }
                        };
                    let replica = &busy[slot.replica().id as usize];
                    assert!(replica.fetch_add(1, Ordering::SeqCst) < CAP, "more than its cap");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    replica.fetch_sub(1, Ordering::SeqCst);
                    drop(slot);
                    served[number].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let over = is_over.clone();
    let all = async move {
        let ended: Vec<_> = clients.join_all().await;
        over.store(true, Ordering::Relaxed);
        ended.len()
    };
    let (ended, ()) = tokio::join!(all, tokio::spawn(run_coordinator(routers, is_over)).map(|ended| ended.unwrap()));
    assert_eq!(ended, 18);
    let served = served.each_ref().map(|count| count.load(Ordering::Relaxed));
    // On an idle machine, the sum is about 3,000.
    assert!(served.iter().sum::<u32>() > 300 && served.iter().all(|count| *count > 50), "{served:?}");
}

#[tokio::test]
async fn who_waits_when_a_lease_is_renewed_late_is_served_when_the_control_plane_looks_and_not_lost() {
    let (mut router, mut coordinator, _) = router_and_coordinator();
    let acquire = || {
        let now = Instant::now();
        match router.slots.acquire(now, now + Duration::from_secs(20), AvoidedReplicas::default()).unwrap() {
            AcquireOutcome::Queued(waiting) => waiting,
            AcquireOutcome::Granted(_) => panic!("nothing is held that is not in use"),
        }
    };
    // One request for each slot, and one more.
    let mut waiting: Vec<_> = (0..=CAP * REPLICAS).map(|_| acquire()).collect();
    // Further slots are granted only after the member has acknowledged earlier ones.
    for _ in 0..CAP * REPLICAS * 2 {
        let now = Instant::now();
        router.send_outgoing(&mut coordinator, now);
        coordinator.outgoing(now).into_iter().for_each(|(_, message)| router.member.receive(message, now));
    }
    let last = waiting.pop().unwrap();
    let mut served = Vec::new();
    for waiting in waiting {
        served.push(waiting.wait_for_slot().await.unwrap());
    }
    let on_one = served[0].replica_id();
    let (both, others): (Vec<_>, Vec<_>) = served.into_iter().partition(|slot| slot.replica_id() == on_one);
    let [first, second] = <[_; 2]>::try_from(both).unwrap();
    // The lease has expired, and the router has noticed.
    router.membership.set_state(MembershipState::new(FleetTiming::default(), MembershipMode::Strict, Instant::now()));
    let another = {
        let now = Instant::now();
        router.slots.acquire(now, now + Duration::from_secs(20), AvoidedReplicas::default()).unwrap()
    };
    drop(first);
    // The lease is valid again, and queued requests have not been served yet.
    router.membership.set_state(router.member.membership_state());
    drop(second);
    router.member.shares().for_each_active_share(|_, _| {});
    last.wait_for_slot().await.expect("nobody is lost");
    let AcquireOutcome::Queued(another) = another else { panic!("there was no lease") };
    another.wait_for_slot().await.expect("nobody is lost");
    drop(others);
    assert_eq!((router.slots.occupancy().busy, router.slots.occupancy().waiting), (0, 0));
}

#[tokio::test]
async fn what_was_granted_before_the_router_stood_still_is_not_sent_after_it_though_it_has_a_lease_again() {
    let (mut router, mut coordinator, now) = router_and_coordinator();
    let mut exchange_messages = |router: &mut TestRouter, now: Instant| {
        for _ in 0..3 {
            router.send_outgoing(&mut coordinator, now);
            coordinator.outgoing(now).into_iter().for_each(|(_, message)| router.member.receive(message, now));
        }
        router.membership.set_state(router.member.membership_state());
    };
    let acquired = router.slots.acquire(now, now + Duration::from_secs(5), AvoidedReplicas::default()).unwrap();
    let AcquireOutcome::Queued(waiting) = acquired else { panic!("there is no lease yet") };
    exchange_messages(&mut router, now);
    let slot = waiting.wait_for_slot().await.unwrap();
    assert!(!slot.is_expired());
    // The lease and `hold` have expired.
    let later = now + Duration::from_secs(100);
    router.member.shares().set_now(later);
    let overdue = router.member.tick(later);
    assert_eq!(overdue.len(), 1);
    router.slots.revoke_replica(&overdue[0]);
    router.member.begin_session(later);
    while let Some(message) = router.member.outgoing(later) {
        coordinator.receive_unchecked(&router.id, message, later);
    }
    coordinator.outgoing(later).into_iter().for_each(|(_, message)| router.member.receive(message, later));
    router.membership.set_state(router.member.membership_state());
    assert_eq!(router.membership.state().lease_state(Instant::now()), LeaseState::Leased);
    assert!(slot.is_expired(), "it was given to somebody else meanwhile, for all that is known");
}
