use std::num::NonZeroU32;
use std::sync::Mutex;

use super::*;
use crate::model::endpoint::{RequestSettings, TargetUtilization};
use crate::policy::admit::AvoidedReplicas;
use crate::policy::scale::ScalingReason;
use crate::state::scaling::ScalingRules;
use crate::state::slots::AcquireOutcome;

/// The behavior of a fake target when a number of replicas is requested.
#[derive(Debug, Clone, Copy)]
enum FakeBehavior {
    Follow,
    Refuse,
    Hang,
}

#[derive(Debug)]
struct FakeTarget {
    requested: Vec<u32>,
    behavior: FakeBehavior,
    counts: ReplicaCounts,
}

impl ScaleTarget for Arc<Mutex<FakeTarget>> {
    fn replica_counts(&self) -> ReplicaCounts {
        self.lock().unwrap().counts
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let behavior = {
            let mut fake = self.lock().unwrap();
            fake.requested.push(count);
            fake.behavior
        };
        match behavior {
            FakeBehavior::Follow => {
                self.lock().unwrap().counts = ReplicaCounts { ready: count, starting: 0 };
                Ok(())
            }
            FakeBehavior::Refuse => Err("not allowed".to_owned()),
            FakeBehavior::Hang => std::future::pending().await,
        }
    }
}

/// A deployment whose replicas have one slot each, scaled through a fake target.
struct AutoscalerFixture {
    fake: Arc<Mutex<FakeTarget>>,
    scaled: ScaledDeployment,
    metrics: Arc<Metrics>,
    scalers: AutoscalerTasks,
}

fn settings(min: u32, max: u32) -> TargetUtilization {
    TargetUtilization {
        min_replicas: min,
        max_replicas: max,
        target_percent: 70,
        polling_interval: Duration::from_secs(1),
        idle_before_zero: Duration::from_secs(600),
        cold_start_timeout: Duration::from_secs(60),
    }
}

fn rules(min: u32, max: u32) -> ScalingRules {
    ScalingRules { settings: settings(min, max), replica_cap: 1 }
}

impl AutoscalerFixture {
    fn start(min: u32, replicas: u32, behavior: FakeBehavior) -> Self {
        let requests = RequestSettings {
            timeout: Duration::from_secs(5),
            stream_idle_timeout: Duration::from_secs(5),
            max_concurrent_per_instance: NonZeroU32::MIN,
            max_queue_wait: Duration::from_secs(5),
            max_queue_length: 100,
        };
        let slots = DeploymentSlots::new(&requests);
        for number in 0..replicas {
            let address = format!("127.0.0.1:{number}");
            slots.add_replica(number.into(), &address, &address);
        }
        slots.set_cold_start_timeout(Some(Duration::from_secs(60)));
        let name = |text| Name::new(text).unwrap();
        let scaling = Arc::new(Scaling::new(rules(min, 8), replicas));
        let scaled = ScaledDeployment { endpoint: name("endpoint"), deployment: name("blue"), scaling, slots };
        let counts = ReplicaCounts { ready: replicas, starting: 0 };
        let fake = Arc::new(Mutex::new(FakeTarget { requested: Vec::new(), behavior, counts }));
        let mut fixture =
            Self { fake, scaled, metrics: Arc::new(Metrics::new().unwrap()), scalers: AutoscalerTasks::default() };
        fixture.set_scaled(true);
        fixture
    }

    fn set_scaled(&mut self, wanted: bool) {
        let (fake, wanted) = (self.fake.clone(), wanted.then(|| self.scaled.clone()));
        self.scalers.set_deployments(wanted.into_iter().collect(), &self.metrics, |_| Some(fake.clone()));
    }

    fn requested(&self) -> Vec<u32> {
        self.fake.lock().unwrap().requested.clone()
    }

    /// Starts `count` requests, which last until the returned outcomes are dropped.
    fn requests(&self, count: usize) -> Vec<AcquireOutcome> {
        let now = Instant::now().into_std();
        let slots = &self.scaled.slots;
        (0..count)
            .map(|_| slots.acquire(now, now + Duration::from_secs(60), AvoidedReplicas::default()).unwrap())
            .collect()
    }
}

async fn advance_seconds(seconds: u64) {
    // In small steps, so that every task runs at its time.
    for _ in 0..seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_is_asked_for_more_within_an_interval_and_for_fewer_after_a_minute() {
    let fixture = AutoscalerFixture::start(1, 1, FakeBehavior::Follow);
    advance_seconds(5).await;
    assert!(fixture.requested().is_empty(), "{:?}", fixture.requested());
    let requests = fixture.requests(3);
    advance_seconds(2).await;
    assert_eq!(fixture.requested(), [5]);
    drop(requests);
    advance_seconds(55).await;
    assert_eq!(fixture.requested(), [5], "the minute is not over");
    advance_seconds(15).await;
    assert_eq!(fixture.requested(), [5, 1]);
    let view = fixture.scaled.scaling.snapshot();
    let reasons: Vec<ScalingReason> = view.changes.iter().map(|decision| decision.reason).collect();
    assert_eq!((view.desired, reasons.as_slice()), (1, &[ScalingReason::MoreDemand, ScalingReason::LessDemand][..]));
    assert_eq!(view.latest_decision.unwrap().reason, ScalingReason::AtTarget);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_is_asked_again_and_what_it_says_is_shown() {
    let fixture = AutoscalerFixture::start(2, 1, FakeBehavior::Refuse);
    advance_seconds(3).await;
    assert!(
        fixture.requested().len() >= 2 && fixture.requested().iter().all(|count| *count == 2),
        "{:?}",
        fixture.requested()
    );
    let view = fixture.scaled.scaling.snapshot();
    assert_eq!((view.desired, view.problem.as_deref()), (1, Some("not allowed")));
    assert!(view.changes.is_empty());
    fixture.fake.lock().unwrap().behavior = FakeBehavior::Follow;
    advance_seconds(2).await;
    let view = fixture.scaled.scaling.snapshot();
    assert_eq!((view.desired, view.problem, view.changes.len()), (2, None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_is_given_up_and_asked_again() {
    let fixture = AutoscalerFixture::start(2, 1, FakeBehavior::Hang);
    advance_seconds(2).await;
    assert_eq!(fixture.requested(), [2]);
    advance_seconds(SCALE_REQUEST_TIMEOUT.as_secs()).await;
    assert!(fixture.scaled.scaling.snapshot().problem.unwrap().contains("no answer"));
    fixture.fake.lock().unwrap().behavior = FakeBehavior::Follow;
    advance_seconds(SCALE_REQUEST_TIMEOUT.as_secs() + 2).await;
    assert_eq!(fixture.scaled.scaling.desired(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_rules_count_at_once_and_who_is_not_wanted_is_not_scaled() {
    let mut fixture = AutoscalerFixture::start(1, 1, FakeBehavior::Follow);
    advance_seconds(1).await;
    fixture.scaled.scaling.set_rules(rules(4, 8));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.requested(), [4]);
    fixture.set_scaled(true);
    fixture.scaled.scaling.set_rules(rules(2, 3));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.requested(), [4, 3]);
    fixture.set_scaled(false);
    fixture.scaled.scaling.set_rules(rules(5, 8));
    advance_seconds(3).await;
    assert_eq!(fixture.requested(), [4, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_first_request_starts_a_replica_at_once() {
    let fixture = AutoscalerFixture::start(0, 0, FakeBehavior::Follow);
    advance_seconds(3).await;
    // The request arrives between two ends of intervals.
    tokio::time::sleep(Duration::from_millis(500)).await;
    fixture.fake.lock().unwrap().behavior = FakeBehavior::Refuse;
    let waiting = fixture.requests(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.requested(), [1], "not at the end of the interval");
    fixture.fake.lock().unwrap().behavior = FakeBehavior::Follow;
    advance_seconds(1).await;
    assert_eq!(fixture.requested(), [1, 1]);
    assert_eq!(fixture.scaled.scaling.snapshot().changes[0].reason, ScalingReason::ColdStart);
    drop(waiting);
}
