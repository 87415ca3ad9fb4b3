use super::*;

/// From 1 to 10 replicas at 70 %.
fn settings() -> Utilization {
    Utilization {
        min: 1,
        max: 10,
        target_percent: 70,
        interval: Duration::from_secs(1),
        idle_before_zero: Duration::from_secs(600),
        cold_start_timeout: Duration::from_secs(60),
    }
}

/// A deployment that is told of intervals.
struct Told {
    history: History,
    now: Instant,
}

impl Told {
    fn new() -> Self {
        let now = Instant::now();
        Self { history: History::new(Duration::from_secs(1), now), now }
    }

    /// So many intervals like this.
    fn of(mut self, intervals: u32, signals: Signals) -> Self {
        for _ in 0..intervals {
            self.now += Duration::from_secs(1);
            self.history.note(&signals, self.now);
        }
        self
    }

    /// So many intervals with so many requests in flight, each for half a second.
    fn busy(self, intervals: u32, busy: f64) -> Self {
        self.of(intervals, Signals { busy, arrived_per_second: busy * 2.0, service_seconds: 0.5, ..Signals::default() })
    }

    fn decide(&self, settings: &Utilization, current: u32) -> (u32, Reason) {
        decide(settings, 1, &self.history, current, 0, self.now)
    }
}

#[test]
fn more_are_asked_for_within_an_interval_and_those_that_start_count() {
    let told = Told::new().busy(60, 1.4).busy(1, 3.5);
    assert_eq!(told.decide(&settings(), 2), (5, Reason::MoreDemand));
    assert_eq!(told.decide(&settings(), 5), (5, Reason::Fits));
    assert_eq!(Told::new().busy(60, 20.0).decide(&settings(), 3), (10, Reason::MoreDemand));
    assert_eq!(Told::new().busy(60, 20.0).decide(&settings(), 10), (10, Reason::Maximum));
}

#[test]
fn exactly_enough_is_enough() {
    for replicas in 1..=10 {
        let told = Told::new().busy(100, 0.7 * f64::from(replicas));
        assert_eq!(told.decide(&settings(), replicas), (replicas, Reason::Fits));
    }
}

#[test]
fn fewer_are_asked_for_when_a_minute_has_asked_for_no_more() {
    let before = || Told::new().busy(100, 4.9);
    assert_eq!(before().busy(59, 1.4).decide(&settings(), 7), (7, Reason::Lingering));
    assert_eq!(before().busy(60, 1.4).decide(&settings(), 7), (2, Reason::LessDemand));
    // The highest of that minute counts.
    assert_eq!(before().busy(30, 2.8).busy(30, 1.4).decide(&settings(), 7), (4, Reason::LessDemand));
    assert_eq!(Told::new().busy(59, 0.1).decide(&settings(), 7), (7, Reason::Lingering), "nothing is known of before");
}

#[test]
fn twenty_long_intervals_are_waited_for() {
    let long = Utilization { interval: Duration::from_secs(10), ..settings() };
    let told = |intervals| {
        let mut told = Told::new();
        told.history.set_interval(long.interval);
        told.busy(intervals, 0.7)
    };
    assert_eq!(told(19).decide(&long, 7), (7, Reason::Lingering));
    assert_eq!(told(20).decide(&long, 7), (1, Reason::LessDemand));
}

#[test]
fn settings_count_at_once() {
    let told = Told::new().busy(100, 4.9);
    let with = |change: fn(&mut Utilization)| {
        let mut settings = settings();
        change(&mut settings);
        told.decide(&settings, 7)
    };
    assert_eq!(with(|settings| settings.max = 3), (3, Reason::Maximum));
    assert_eq!(with(|settings| settings.min = 9), (9, Reason::Minimum));
    assert_eq!(with(|settings| settings.target_percent = 50), (10, Reason::MoreDemand));
    assert_eq!(with(|settings| settings.target_percent = 100), (5, Reason::LessDemand));
    assert_eq!(decide(&settings(), 7, &told.history, 7, 0, told.now), (1, Reason::LessDemand), "seven at a time");
}

/// Those that are turned away are demand as far as more replicas would serve them.
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
    // Ten a second for half a second each are five at a time.
    assert_eq!(Told::new().of(10, full).decide(&settings(), 2), (8, Reason::MoreDemand));
    let long = Signals { service_seconds: 0.0, ..full };
    assert_eq!(Told::new().of(10, long).decide(&settings(), 2), (10, Reason::MoreDemand), "nobody knows how long");
}

#[test]
fn the_last_replica_goes_when_nobody_has_asked_and_the_first_request_starts_one() {
    let zero = Utilization { min: 0, ..settings() };
    let idle = |intervals| Told::new().busy(1, 0.5).of(intervals, Signals::default());
    assert_eq!(idle(599).decide(&zero, 1), (1, Reason::Fits));
    assert_eq!(idle(600).decide(&zero, 1), (0, Reason::Idle));
    assert_eq!(idle(600).decide(&settings(), 1), (1, Reason::Fits), "one always stays");
    // Few requests long ago are no demand for ever.
    let rare = (0..20).fold(Told::new(), |told, _| told.busy(1, 0.1).of(29, Signals::default()));
    let soon = Utilization { idle_before_zero: Duration::from_secs(20), ..zero.clone() };
    assert_eq!(rare.decide(&soon, 1), (0, Reason::Idle));
    assert_eq!(rare.decide(&soon, 0), (0, Reason::Fits));
    // Who could not even wait has asked all the same.
    let refused = Signals { arrived_per_second: 1.0, rejected_per_second: 1.0, is_cold: true, ..Signals::default() };
    assert_eq!(idle(700).of(1, refused).decide(&zero, 0), (1, Reason::ColdStart));
    let told = idle(700);
    assert_eq!(told.decide(&zero, 0), (0, Reason::Fits));
    assert_eq!(decide(&zero, 1, &told.history, 0, 1, told.now), (1, Reason::ColdStart));
    // How long those wait for it says nothing of how many are needed.
    let cold = Signals { queued: 5.0, waiting: 5, service_seconds: 0.1, is_cold: true, ..Signals::default() };
    let told = told.of(30, Signals { arrived_per_second: 5.0, ..cold });
    assert_eq!(decide(&zero, 1, &told.history, 1, 150, told.now), (1, Reason::Fits));
}

/// Its clients were told to come back when it is there.
#[test]
fn a_replica_that_starts_is_waited_for_and_only_then_is_time_idle() {
    let zero = Utilization { min: 0, idle_before_zero: Duration::from_secs(5), ..settings() };
    let cold = Signals { is_cold: true, ..Signals::default() };
    let started = |seconds| Told::new().busy(1, 0.5).of(seconds, cold);
    assert_eq!(started(60).decide(&zero, 1), (1, Reason::Fits));
    assert_eq!(started(60).of(4, Signals::default()).decide(&zero, 1), (1, Reason::Fits));
    assert_eq!(started(60).of(5, Signals::default()).decide(&zero, 1), (0, Reason::Idle));
    // One that never starts is not tried for ever.
    assert_eq!(started(600).decide(&zero, 1), (1, Reason::Fits));
    assert_eq!(started(605).decide(&zero, 1), (0, Reason::Idle));
}

#[test]
fn what_comes_at_random_is_not_taken_for_more() {
    // 5 requests at a time on average, of a quarter of a second each.
    let noisy = [4.1, 6.2, 5.0, 3.9, 5.8, 4.6, 5.4, 6.6, 3.8, 4.6];
    let mut told = Told::new();
    for busy in noisy.iter().cycle().take(100) {
        let signals = Signals {
            busy: *busy,
            arrived_per_second: 20.0,
            service_seconds: 0.25,
            work: 5.0,
            squares: 1.25,
            ..Signals::default()
        };
        told = told.of(1, signals);
    }
    assert_eq!(told.decide(&settings(), 8), (8, Reason::Fits));
    assert_eq!(told.busy(4, 10.0).decide(&Utilization { max: 30, ..settings() }, 8).1, Reason::MoreDemand);
}
