//! Ledger, members and the slots of real deployments together, with tasks that take and give back slots meanwhile.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::model::endpoint::RequestSettings;
use crate::policy::admit::Avoid;
use crate::policy::fleet::ledger::Former;
use crate::policy::fleet::member::{Kind, Terms};
use crate::policy::fleet::{Epoch, Settings};
use crate::state::slots::Acquired;

const CAP: u32 = 2;
const REPLICAS: u32 = 3;

/// A router without connections: what it would send is handed over.
struct Router {
    id: MemberId,
    member: Member<Registry>,
    membership: Arc<Membership>,
    slots: Arc<Slots>,
}

impl Router {
    fn new(name: &str) -> Self {
        let (settings, now) = (Settings::default(), Instant::now());
        let membership = Membership::new(Terms::new(settings, Kind::Strict, now)).unwrap();
        let requests = RequestSettings {
            timeout: Duration::from_secs(5),
            stream_idle_timeout: Duration::from_secs(5),
            max_concurrent_per_instance: NonZeroU32::new(CAP).unwrap(),
            max_queue_wait: Duration::from_secs(5),
            max_queue_length: 100,
        };
        let slots = Slots::shared(&requests, membership.clone(), "one/blue".into());
        for number in 0..REPLICAS {
            let address = format!("127.0.0.1:{number}");
            slots.add(number.into(), &address, &address);
        }
        let id = MemberId { name: name.into(), incarnation: 1 };
        let mut member = Member::new(settings, Kind::Strict, Registry::new(now), now);
        member.shares().note(&"one/blue".into(), slots.clone());
        member.connected(now);
        Self { id, member, membership, slots }
    }

    /// Everything that is to be said, both ways.
    fn pump(&mut self, leader: &mut Leader, now: Instant) {
        self.member.shares().set_now(now);
        assert!(self.member.tick(now).is_empty(), "nothing is overdue");
        while let Some(message) = self.member.outgoing(now) {
            leader.hear(&self.id, message, now);
        }
        self.membership.set_terms(self.member.terms());
    }
}

/// A router that leads, for ten minutes from now, and knows its own replicas.
fn coordinator() -> (Router, Leader, Instant) {
    let (router, now) = (Router::new("a"), Instant::now());
    let settings = Settings::default();
    let mut leader = Leader::new(router.id.clone(), settings.heartbeat, Ledger::new(settings));
    leader.lead((Epoch(1), Former::Only(BTreeSet::new())), now + Duration::from_secs(600), now, now);
    leader.lend(&"one/blue".into(), router.slots.lent(), now);
    (router, leader, now)
}

/// Ends when nobody takes slots any more.
async fn coordinate(mut routers: Vec<Router>, is_over: Arc<AtomicBool>) {
    let now = Instant::now();
    let mut leader =
        Leader::new(routers[0].id.clone(), Settings::default().heartbeat, Ledger::new(Settings::default()));
    leader.lead((Epoch(1), Former::Only(BTreeSet::new())), now + Duration::from_secs(60), now, now);
    leader.lend(&"one/blue".into(), routers[0].slots.lent(), now);
    while !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        leader.tick(now);
        for router in &mut routers {
            router.pump(&mut leader, now);
        }
        for (to, message) in leader.outgoing(now) {
            let router = routers.iter_mut().find(|router| router.id == to).unwrap();
            router.member.receive(message, now);
            router.membership.set_terms(router.member.terms());
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn slots_that_three_routers_share_are_never_in_use_twice_and_all_of_them_are_used() {
    let routers: Vec<Router> = ["a", "b", "c"].into_iter().map(Router::new).collect();
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
                    let slot = match slots.acquire(now, now + Duration::from_secs(5), Avoid::default()).unwrap() {
                        Acquired::Slot(slot) => slot,
                        Acquired::Waiting(waiting) => waiting.slot().await.expect("capacity for all in time"),
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
    let (ended, ()) = tokio::join!(all, tokio::spawn(coordinate(routers, is_over)).map(|ended| ended.unwrap()));
    assert_eq!(ended, 18);
    let served = served.each_ref().map(|count| count.load(Ordering::Relaxed));
    // On an idle machine they are 3,000.
    assert!(served.iter().sum::<u32>() > 300 && served.iter().all(|count| *count > 50), "{served:?}");
}

#[tokio::test]
async fn who_waits_when_a_lease_is_renewed_late_is_served_when_the_control_plane_looks_and_not_lost() {
    let (mut router, mut leader, _) = coordinator();
    let acquire = || {
        let now = Instant::now();
        match router.slots.acquire(now, now + Duration::from_secs(20), Avoid::default()).unwrap() {
            Acquired::Waiting(waiting) => waiting,
            Acquired::Slot(_) => panic!("nothing is held that is not in use"),
        }
    };
    // As many as there are slots, and one more.
    let mut waiting: Vec<_> = (0..=CAP * REPLICAS).map(|_| acquire()).collect();
    // More are granted when it has said that it knows of those before.
    for _ in 0..CAP * REPLICAS * 2 {
        let now = Instant::now();
        router.pump(&mut leader, now);
        leader.outgoing(now).into_iter().for_each(|(_, message)| router.member.receive(message, now));
    }
    let last = waiting.pop().unwrap();
    let mut served = Vec::new();
    for waiting in waiting {
        served.push(waiting.slot().await.unwrap());
    }
    let on_one = served[0].id();
    let (both, others): (Vec<_>, Vec<_>) = served.into_iter().partition(|slot| slot.id() == on_one);
    let [first, second] = <[_; 2]>::try_from(both).unwrap();
    // The lease is over, and it is seen that it is.
    router.membership.set_terms(Terms::new(Settings::default(), Kind::Strict, Instant::now()));
    let another = {
        let now = Instant::now();
        router.slots.acquire(now, now + Duration::from_secs(20), Avoid::default()).unwrap()
    };
    drop(first);
    // It is valid again, and nobody has looked yet.
    router.membership.set_terms(router.member.terms());
    drop(second);
    router.member.shares().restless(|_, _| {});
    last.slot().await.expect("nobody is lost");
    let Acquired::Waiting(another) = another else { panic!("there was no lease") };
    another.slot().await.expect("nobody is lost");
    drop(others);
    assert_eq!((router.slots.occupancy().busy, router.slots.occupancy().waiting), (0, 0));
}

#[tokio::test]
async fn what_was_granted_before_the_router_stood_still_is_not_sent_after_it_though_it_has_a_lease_again() {
    let (mut router, mut leader, now) = coordinator();
    let mut talk = |router: &mut Router, now: Instant| {
        for _ in 0..3 {
            router.pump(&mut leader, now);
            leader.outgoing(now).into_iter().for_each(|(_, message)| router.member.receive(message, now));
        }
        router.membership.set_terms(router.member.terms());
    };
    let acquired = router.slots.acquire(now, now + Duration::from_secs(5), Avoid::default()).unwrap();
    let Acquired::Waiting(waiting) = acquired else { panic!("there is no lease yet") };
    talk(&mut router, now);
    let slot = waiting.slot().await.unwrap();
    assert!(!slot.is_expired());
    // Lease and `hold` are over.
    let later = now + Duration::from_secs(100);
    router.member.shares().set_now(later);
    let overdue = router.member.tick(later);
    assert_eq!(overdue.len(), 1);
    router.slots.revoke(&overdue[0]);
    router.member.connected(later);
    while let Some(message) = router.member.outgoing(later) {
        leader.hear(&router.id, message, later);
    }
    leader.outgoing(later).into_iter().for_each(|(_, message)| router.member.receive(message, later));
    router.membership.set_terms(router.member.terms());
    assert_eq!(router.membership.terms().standing(Instant::now()), Standing::Leased);
    assert!(slot.is_expired(), "it was given to somebody else meanwhile, for all that is known");
}
