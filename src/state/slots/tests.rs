use super::*;
use crate::model::endpoint::RequestSettings;
use std::num::NonZeroU32;

fn slots_with_cap(cap: u32) -> (Arc<DeploymentSlots>, ReplicaId) {
    let slots = DeploymentSlots::new(&RequestSettings {
        timeout: Duration::from_secs(5),
        stream_idle_timeout: Duration::from_secs(5),
        max_concurrent_per_instance: NonZeroU32::new(cap).unwrap(),
        max_queue_wait: Duration::from_millis(500),
        max_queue_length: 10,
    });
    let id = slots.add_replica(1, "one", "127.0.0.1:1");
    (slots, id)
}

fn acquire_now(slots: &Arc<DeploymentSlots>) -> Slot {
    match slots.acquire(Instant::now(), Instant::now(), AvoidedReplicas::default()).unwrap() {
        AcquireOutcome::Granted(slot) => slot,
        AcquireOutcome::Queued(_) => panic!("no slot"),
    }
}

fn enqueue(slots: &Arc<DeploymentSlots>) -> QueuedAcquire {
    let now = tokio::time::Instant::now().into_std();
    match slots.acquire(now, now + Duration::from_millis(500), AvoidedReplicas::default()).unwrap() {
        AcquireOutcome::Granted(_) => panic!("a slot"),
        AcquireOutcome::Queued(waiting) => waiting,
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_slot_goes_to_the_first_who_waits() {
    let (slots, _) = slots_with_cap(1);
    let slot = acquire_now(&slots);
    let (first, second) = (enqueue(&slots), enqueue(&slots));
    drop(slot);
    let slot = first.wait_for_slot().await.unwrap();
    assert_eq!(slots.occupancy().waiting, 1);
    drop(slot);
    second.wait_for_slot().await.unwrap();
    assert_eq!((slots.occupancy().waiting, slots.occupancy().free), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_passes_its_slot_on() {
    let (slots, _) = slots_with_cap(1);
    let slot = acquire_now(&slots);
    let (first, second, third) = (enqueue(&slots), enqueue(&slots), enqueue(&slots));
    drop(second);
    drop(slot);
    drop(first);
    assert!(third.wait_for_slot().await.is_ok(), "granted to first, which left");
    assert_eq!(slots.occupancy().free, 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_ends_and_says_what_was_missing() {
    let (slots, id) = slots_with_cap(1);
    let slot = acquire_now(&slots);
    let waited = enqueue(&slots).wait_for_slot().await;
    assert!(matches!(waited, Err(AcquireError::TimedOut(after)) if after >= Duration::from_secs(1)));
    assert_eq!(slots.occupancy().waiting, 0);
    let (sender, receiver) = oneshot::channel();
    slots.remove_replica(id, Some(sender));
    let waited = enqueue(&slots).wait_for_slot().await;
    assert!(matches!(waited, Err(AcquireError::NoReplica(_))));
    let _queue: Vec<QueuedAcquire> = (0..10).map(|_| enqueue(&slots)).collect();
    let now = Instant::now();
    assert!(
        matches!(slots.acquire(now, now, AvoidedReplicas::default()), Err(AcquireError::NoReplica(_))),
        "a full queue"
    );
    drop(slot);
    assert!(receiver.await.is_err(), "drained when the last slot came back");
    assert!(slots.replicas().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_does_not_wait_for_itself() {
    let (slots, _) = slots_with_cap(1);
    let served = acquire_now(&slots);
    // As if it had taken so long: slots are held in real time.
    slots.lock().admission.release_slot(served.replica_id(), Duration::from_secs(10));
    std::mem::forget(served);
    let _slot = acquire_now(&slots);
    let waited = enqueue(&slots).wait_for_slot().await;
    assert!(matches!(waited, Err(AcquireError::TimedOut(after)) if after == Duration::from_secs(10)), "{waited:?}");
}
