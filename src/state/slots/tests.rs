use super::*;
use crate::model::endpoint::RequestSettings;
use std::num::NonZeroU32;

fn slots(cap: u32) -> (Arc<Slots>, ReplicaId) {
    let slots = Slots::new(&RequestSettings {
        timeout: Duration::from_secs(5),
        stream_idle_timeout: Duration::from_secs(5),
        max_concurrent_per_instance: NonZeroU32::new(cap).unwrap(),
        max_queue_wait: Duration::from_millis(500),
        max_queue_length: 10,
    });
    let id = slots.add(1, "one", "127.0.0.1:1");
    (slots, id)
}

fn take(slots: &Arc<Slots>) -> Slot {
    match slots.acquire(Instant::now(), Instant::now(), Avoid::default()).unwrap() {
        Acquired::Slot(slot) => slot,
        Acquired::Waiting(_) => panic!("no slot"),
    }
}

fn wait(slots: &Arc<Slots>) -> Waiting {
    let now = tokio::time::Instant::now().into_std();
    match slots.acquire(now, now + Duration::from_millis(500), Avoid::default()).unwrap() {
        Acquired::Slot(_) => panic!("a slot"),
        Acquired::Waiting(waiting) => waiting,
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_slot_goes_to_the_first_who_waits() {
    let (slots, _) = slots(1);
    let slot = take(&slots);
    let (first, second) = (wait(&slots), wait(&slots));
    drop(slot);
    let slot = first.slot().await.unwrap();
    assert_eq!(slots.occupancy().waiting, 1);
    drop(slot);
    second.slot().await.unwrap();
    assert_eq!((slots.occupancy().waiting, slots.occupancy().free), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_passes_its_slot_on() {
    let (slots, _) = slots(1);
    let slot = take(&slots);
    let (first, second, third) = (wait(&slots), wait(&slots), wait(&slots));
    drop(second);
    drop(slot);
    drop(first);
    assert!(third.slot().await.is_ok(), "granted to first, which left");
    assert_eq!(slots.occupancy().free, 1);
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_ends_and_says_what_was_missing() {
    let (slots, id) = slots(1);
    let slot = take(&slots);
    let waited = wait(&slots).slot().await;
    assert!(matches!(waited, Err(NoSlot::TimedOut(after)) if after >= Duration::from_secs(1)));
    assert_eq!(slots.occupancy().waiting, 0);
    let (sender, receiver) = oneshot::channel();
    slots.remove(id, Some(sender));
    let waited = wait(&slots).slot().await;
    assert!(matches!(waited, Err(NoSlot::NoReplica(_))));
    let _queue: Vec<Waiting> = (0..10).map(|_| wait(&slots)).collect();
    let now = Instant::now();
    assert!(matches!(slots.acquire(now, now, Avoid::default()), Err(NoSlot::NoReplica(_))), "a full queue");
    drop(slot);
    assert!(receiver.await.is_err(), "drained when the last slot came back");
    assert!(slots.replicas().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_does_not_wait_for_itself() {
    let (slots, _) = slots(1);
    let served = take(&slots);
    // As if it had taken so long: slots are held in real time.
    slots.lock().admission.release(served.id(), Duration::from_secs(10));
    std::mem::forget(served);
    let _slot = take(&slots);
    let waited = wait(&slots).slot().await;
    assert!(matches!(waited, Err(NoSlot::TimedOut(after)) if after == Duration::from_secs(10)), "{waited:?}");
}
