use super::*;

/// From 1 to 10 replicas at 70 %.
fn settings() -> TargetUtilization {
    TargetUtilization {
        min_replicas: 1,
        max_replicas: 10,
        target_percent: 70,
        polling_interval: Duration::from_secs(1),
        idle_before_zero: Duration::from_secs(600),
        cold_start_timeout: Duration::from_secs(60),
    }
}

/// The history of a deployment, to which intervals are added.
struct ScalerFixture {
    history: DemandHistory,
    now: Instant,
}

impl ScalerFixture {
    fn new() -> Self {
        let now = Instant::now();
        Self { history: DemandHistory::new(Duration::from_secs(1), now), now }
    }

    /// Adds so many intervals with these signals.
    fn with_intervals(mut self, intervals: u32, signals: Signals) -> Self {
        for _ in 0..intervals {
            self.now += Duration::from_secs(1);
            self.history.record_interval(&signals, self.now);
        }
        self
    }

    /// Adds so many intervals with so many requests in flight, each of which takes half a second.
    fn with_busy_intervals(self, intervals: u32, busy: f64) -> Self {
        self.with_intervals(
            intervals,
            Signals { busy, arrived_per_second: busy * 2.0, service_seconds: 0.5, ..Signals::default() },
        )
    }

    fn decide(&self, settings: &TargetUtilization, current: u32) -> (u32, ScalingReason) {
        decide_replicas(settings, 1, &self.history, current, 0, self.now)
    }
}

#[test]
fn more_are_asked_for_within_an_interval_and_those_that_start_count() {
    let told = ScalerFixture::new().with_busy_intervals(60, 1.4).with_busy_intervals(1, 3.5);
    assert_eq!(told.decide(&settings(), 2), (5, ScalingReason::MoreDemand));
    assert_eq!(told.decide(&settings(), 5), (5, ScalingReason::AtTarget));
    assert_eq!(
        ScalerFixture::new().with_busy_intervals(60, 20.0).decide(&settings(), 3),
        (10, ScalingReason::MoreDemand)
    );
    assert_eq!(
        ScalerFixture::new().with_busy_intervals(60, 20.0).decide(&settings(), 10),
        (10, ScalingReason::Maximum)
    );
}

#[test]
fn exactly_enough_is_enough() {
    for replicas in 1..=10 {
        let told = ScalerFixture::new().with_busy_intervals(100, 0.7 * f64::from(replicas));
        assert_eq!(told.decide(&settings(), replicas), (replicas, ScalingReason::AtTarget));
    }
}

#[test]
fn fewer_are_asked_for_when_a_minute_has_asked_for_no_more() {
    let before = || ScalerFixture::new().with_busy_intervals(100, 4.9);
    assert_eq!(before().with_busy_intervals(59, 1.4).decide(&settings(), 7), (7, ScalingReason::StabilizationWindow));
    assert_eq!(before().with_busy_intervals(60, 1.4).decide(&settings(), 7), (2, ScalingReason::LessDemand));
    // The highest demand of that minute counts.
    assert_eq!(
        before().with_busy_intervals(30, 2.8).with_busy_intervals(30, 1.4).decide(&settings(), 7),
        (4, ScalingReason::LessDemand)
    );
    assert_eq!(
        ScalerFixture::new().with_busy_intervals(59, 0.1).decide(&settings(), 7),
        (7, ScalingReason::StabilizationWindow),
        "nothing is known of before"
    );
}

#[test]
fn twenty_long_intervals_are_waited_for() {
    let long = TargetUtilization { polling_interval: Duration::from_secs(10), ..settings() };
    let told = |intervals| {
        let mut told = ScalerFixture::new();
        told.history.set_interval(long.polling_interval);
        told.with_busy_intervals(intervals, 0.7)
    };
    assert_eq!(told(19).decide(&long, 7), (7, ScalingReason::StabilizationWindow));
    assert_eq!(told(20).decide(&long, 7), (1, ScalingReason::LessDemand));
}

#[test]
fn settings_count_at_once() {
    let told = ScalerFixture::new().with_busy_intervals(100, 4.9);
    let with = |change: fn(&mut TargetUtilization)| {
        let mut settings = settings();
        change(&mut settings);
        told.decide(&settings, 7)
    };
    assert_eq!(with(|settings| settings.max_replicas = 3), (3, ScalingReason::Maximum));
    assert_eq!(with(|settings| settings.min_replicas = 9), (9, ScalingReason::Minimum));
    assert_eq!(with(|settings| settings.target_percent = 50), (10, ScalingReason::MoreDemand));
    assert_eq!(with(|settings| settings.target_percent = 100), (5, ScalingReason::LessDemand));
    assert_eq!(
        decide_replicas(&settings(), 7, &told.history, 7, 0, told.now),
        (1, ScalingReason::LessDemand),
        "seven at a time"
    );
}

/// Rejected requests are demand as far as more replicas would serve them.
#[test]
fn who_is_turned_away_counts_for_what_it_would_have_taken() {
    let full = Signals {
        busy: 2.0,
        queued: 10.0,
        arrived_per_second: 10.0,
        rejected_per_second: 6.0,
        service_seconds: 0.5,
        ..Signals::default()
    };
    // Ten per second for half a second each are five at a time.
    assert_eq!(ScalerFixture::new().with_intervals(10, full).decide(&settings(), 2), (8, ScalingReason::MoreDemand));
    let long = Signals { service_seconds: 0.0, ..full };
    assert_eq!(
        ScalerFixture::new().with_intervals(10, long).decide(&settings(), 2),
        (10, ScalingReason::MoreDemand),
        "nobody knows how long"
    );
}

#[test]
fn the_last_replica_goes_when_nobody_has_asked_and_the_first_request_starts_one() {
    let zero = TargetUtilization { min_replicas: 0, ..settings() };
    let idle =
        |intervals| ScalerFixture::new().with_busy_intervals(1, 0.5).with_intervals(intervals, Signals::default());
    assert_eq!(idle(599).decide(&zero, 1), (1, ScalingReason::AtTarget));
    assert_eq!(idle(600).decide(&zero, 1), (0, ScalingReason::Idle));
    assert_eq!(idle(600).decide(&settings(), 1), (1, ScalingReason::AtTarget), "one always stays");
    // Few requests long ago are no demand for ever.
    let rare = (0..20)
        .fold(ScalerFixture::new(), |told, _| told.with_busy_intervals(1, 0.1).with_intervals(29, Signals::default()));
    let soon = TargetUtilization { idle_before_zero: Duration::from_secs(20), ..zero.clone() };
    assert_eq!(rare.decide(&soon, 1), (0, ScalingReason::Idle));
    assert_eq!(rare.decide(&soon, 0), (0, ScalingReason::AtTarget));
    // A request that could not even be queued is a request all the same.
    let refused = Signals { arrived_per_second: 1.0, rejected_per_second: 1.0, is_cold: true, ..Signals::default() };
    assert_eq!(idle(700).with_intervals(1, refused).decide(&zero, 0), (1, ScalingReason::ColdStart));
    let told = idle(700);
    assert_eq!(told.decide(&zero, 0), (0, ScalingReason::AtTarget));
    assert_eq!(decide_replicas(&zero, 1, &told.history, 0, 1, told.now), (1, ScalingReason::ColdStart));
    // How long requests wait for the first replica says nothing about how many are needed.
    let cold = Signals { queued: 5.0, waiting: 5, service_seconds: 0.1, is_cold: true, ..Signals::default() };
    let told = told.with_intervals(30, Signals { arrived_per_second: 5.0, ..cold });
    assert_eq!(decide_replicas(&zero, 1, &told.history, 1, 150, told.now), (1, ScalingReason::AtTarget));
}

/// The clients were told to come back when the replica is there.
#[test]
fn a_replica_that_starts_is_waited_for_and_only_then_is_time_idle() {
    let zero = TargetUtilization { min_replicas: 0, idle_before_zero: Duration::from_secs(5), ..settings() };
    let cold = Signals { is_cold: true, ..Signals::default() };
    let started = |seconds| ScalerFixture::new().with_busy_intervals(1, 0.5).with_intervals(seconds, cold);
    assert_eq!(started(60).decide(&zero, 1), (1, ScalingReason::AtTarget));
    assert_eq!(started(60).with_intervals(4, Signals::default()).decide(&zero, 1), (1, ScalingReason::AtTarget));
    assert_eq!(started(60).with_intervals(5, Signals::default()).decide(&zero, 1), (0, ScalingReason::Idle));
    // A replica that never starts is not tried for ever.
    assert_eq!(started(600).decide(&zero, 1), (1, ScalingReason::AtTarget));
    assert_eq!(started(605).decide(&zero, 1), (0, ScalingReason::Idle));
}

#[test]
fn what_comes_at_random_is_not_taken_for_more() {
    // 5 requests at a time on average, of a quarter of a second each.
    let noisy = [4.1, 6.2, 5.0, 3.9, 5.8, 4.6, 5.4, 6.6, 3.8, 4.6];
    let mut told = ScalerFixture::new();
    for busy in noisy.iter().cycle().take(100) {
        let signals = Signals {
            busy: *busy,
            arrived_per_second: 20.0,
            service_seconds: 0.25,
            work: 5.0,
            service_time_squares: 1.25,
            ..Signals::default()
        };
        told = told.with_intervals(1, signals);
    }
    assert_eq!(told.decide(&settings(), 8), (8, ScalingReason::AtTarget));
    assert_eq!(
        told.with_busy_intervals(4, 10.0).decide(&TargetUtilization { max_replicas: 30, ..settings() }, 8).1,
        ScalingReason::MoreDemand
    );
}
