use std::num::NonZeroU32;
use std::sync::Mutex;

use super::*;
use crate::model::endpoint::{RequestSettings, Utilization};
use crate::policy::admit::Avoid;
use crate::policy::scale::Reason;
use crate::state::scaling::Rules;
use crate::state::slots::Acquired;

/// What a fake target does when it is asked for another number.
#[derive(Debug, Clone, Copy)]
enum Does {
    Follow,
    Refuse,
    Hang,
}

#[derive(Debug)]
struct Fake {
    asked: Vec<u32>,
    does: Does,
    supply: Supply,
}

impl Target for Arc<Mutex<Fake>> {
    fn replicas(&self) -> Supply {
        self.lock().unwrap().supply
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let does = {
            let mut fake = self.lock().unwrap();
            fake.asked.push(count);
            fake.does
        };
        match does {
            Does::Follow => {
                self.lock().unwrap().supply = Supply { ready: count, starting: 0 };
                Ok(())
            }
            Does::Refuse => Err("not allowed".to_owned()),
            Does::Hang => std::future::pending().await,
        }
    }
}

/// A deployment with replicas that take one request each, scaled over a fake.
struct Rig {
    fake: Arc<Mutex<Fake>>,
    scaled: Scaled,
    metrics: Arc<Metrics>,
    scalers: Scalers,
}

fn settings(min: u32, max: u32) -> Utilization {
    Utilization {
        min,
        max,
        target_percent: 70,
        interval: Duration::from_secs(1),
        idle_before_zero: Duration::from_secs(600),
        cold_start_timeout: Duration::from_secs(60),
    }
}

fn rules(min: u32, max: u32) -> Rules {
    Rules { settings: settings(min, max), per_replica: 1 }
}

impl Rig {
    fn start(min: u32, replicas: u32, does: Does) -> Self {
        let requests = RequestSettings {
            timeout: Duration::from_secs(5),
            stream_idle_timeout: Duration::from_secs(5),
            max_concurrent_per_instance: NonZeroU32::MIN,
            max_queue_wait: Duration::from_secs(5),
            max_queue_length: 100,
        };
        let slots = Slots::new(&requests);
        for number in 0..replicas {
            let address = format!("127.0.0.1:{number}");
            slots.add(number.into(), &address, &address);
        }
        slots.set_cold_start_timeout(Some(Duration::from_secs(60)));
        let name = |text| Name::new(text).unwrap();
        let scaling = Arc::new(Scaling::new(rules(min, 8), replicas));
        let scaled = Scaled { endpoint: name("endpoint"), deployment: name("blue"), scaling, slots };
        let supply = Supply { ready: replicas, starting: 0 };
        let fake = Arc::new(Mutex::new(Fake { asked: Vec::new(), does, supply }));
        let mut rig = Self { fake, scaled, metrics: Arc::new(Metrics::new().unwrap()), scalers: Scalers::default() };
        rig.apply(true);
        rig
    }

    fn apply(&mut self, wanted: bool) {
        let (fake, wanted) = (self.fake.clone(), wanted.then(|| self.scaled.clone()));
        self.scalers.apply(wanted.into_iter().collect(), &self.metrics, |_| Some(fake.clone()));
    }

    fn asked(&self) -> Vec<u32> {
        self.fake.lock().unwrap().asked.clone()
    }

    /// So many requests that come now and stay.
    fn requests(&self, count: usize) -> Vec<Acquired> {
        let now = Instant::now().into_std();
        let slots = &self.scaled.slots;
        (0..count).map(|_| slots.acquire(now, now + Duration::from_secs(60), Avoid::default()).unwrap()).collect()
    }
}

async fn pass(seconds: u64) {
    // Step by step, so that every task has its turn at its time.
    for _ in 0..seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_is_asked_for_more_within_an_interval_and_for_fewer_after_a_minute() {
    let rig = Rig::start(1, 1, Does::Follow);
    pass(5).await;
    assert!(rig.asked().is_empty(), "{:?}", rig.asked());
    let requests = rig.requests(3);
    pass(2).await;
    assert_eq!(rig.asked(), [5]);
    drop(requests);
    pass(55).await;
    assert_eq!(rig.asked(), [5], "the minute is not over");
    pass(15).await;
    assert_eq!(rig.asked(), [5, 1]);
    let view = rig.scaled.scaling.view();
    let reasons: Vec<Reason> = view.changes.iter().map(|decision| decision.reason).collect();
    assert_eq!((view.desired, reasons.as_slice()), (1, &[Reason::MoreDemand, Reason::LessDemand][..]));
    assert_eq!(view.latest.unwrap().reason, Reason::Fits);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_is_asked_again_and_what_it_says_is_shown() {
    let rig = Rig::start(2, 1, Does::Refuse);
    pass(3).await;
    assert!(rig.asked().len() >= 2 && rig.asked().iter().all(|count| *count == 2), "{:?}", rig.asked());
    let view = rig.scaled.scaling.view();
    assert_eq!((view.desired, view.problem.as_deref()), (1, Some("not allowed")));
    assert!(view.changes.is_empty());
    rig.fake.lock().unwrap().does = Does::Follow;
    pass(2).await;
    let view = rig.scaled.scaling.view();
    assert_eq!((view.desired, view.problem, view.changes.len()), (2, None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_is_given_up_and_asked_again() {
    let rig = Rig::start(2, 1, Does::Hang);
    pass(2).await;
    assert_eq!(rig.asked(), [2]);
    pass(PATIENCE.as_secs()).await;
    assert!(rig.scaled.scaling.view().problem.unwrap().contains("no answer"));
    rig.fake.lock().unwrap().does = Does::Follow;
    pass(PATIENCE.as_secs() + 2).await;
    assert_eq!(rig.scaled.scaling.desired(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_rules_count_at_once_and_who_is_not_wanted_is_not_scaled() {
    let mut rig = Rig::start(1, 1, Does::Follow);
    pass(1).await;
    rig.scaled.scaling.set_rules(rules(4, 8));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.asked(), [4]);
    rig.apply(true);
    rig.scaled.scaling.set_rules(rules(2, 3));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.asked(), [4, 3]);
    rig.apply(false);
    rig.scaled.scaling.set_rules(rules(5, 8));
    pass(3).await;
    assert_eq!(rig.asked(), [4, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_first_request_starts_a_replica_at_once() {
    let rig = Rig::start(0, 0, Does::Follow);
    pass(3).await;
    // Between two intervals.
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.fake.lock().unwrap().does = Does::Refuse;
    let waiting = rig.requests(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.asked(), [1], "not at the end of the interval");
    rig.fake.lock().unwrap().does = Does::Follow;
    pass(1).await;
    assert_eq!(rig.asked(), [1, 1]);
    assert_eq!(rig.scaled.scaling.view().changes[0].reason, Reason::ColdStart);
    drop(waiting);
}
