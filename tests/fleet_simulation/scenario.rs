//! The scenario of a seed: the fleet, the replicas, the load, and the faults.

use std::time::Duration;

use inference_router::policy::fleet::FleetTiming;

use crate::rng::SimRng;
use crate::world::{MS, SECOND, Time};

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) routers: usize,
    pub(crate) is_strict: bool,
    pub(crate) uses_roster: bool,
    pub(crate) settings: FleetTiming,
    /// The length of a coordinator's term.
    pub(crate) term: Duration,
    pub(crate) deployments: Vec<DeploymentScenario>,
    /// The delay of a message.
    pub(crate) one_way_delay: Time,
    pub(crate) clock_drift: f64,
    /// Until then things go wrong, so many times a second.
    pub(crate) faults_until: Time,
    pub(crate) faults_per_second: f64,
    pub(crate) calm_duration: Time,
    /// Whether routers report their load.
    pub(crate) reports_load: bool,
    /// Cut-offs and pauses rather than anything.
    pub(crate) is_harsh: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct DeploymentScenario {
    pub(crate) replicas: usize,
    pub(crate) cap: u32,
    pub(crate) hold: Duration,
    /// Whether answers may stream for longer than `hold`.
    pub(crate) may_stream: bool,
    pub(crate) mean_service_time: Time,
    /// Requests per second at each router.
    pub(crate) requests_per_second: Vec<f64>,
}

impl Scenario {
    pub(crate) fn from_seed(seed: u64) -> Self {
        if seed % 3 == 2 { Self::harsh_from_seed(seed) } else { Self::usual_from_seed(seed) }
    }

    /// Few routers want the same few slots for as long as they may have them, clocks are as bad as allowed, and somebody is
    /// always cut off.
    fn harsh_from_seed(seed: u64) -> Self {
        let mut c = SimRng::new(seed ^ 0x5EED);
        let routers = c.range(2, 5) as usize;
        let usual = Self::usual_from_seed(seed);
        let hold = Duration::from_millis(*c.pick(&[100, 300]));
        let streams = c.one_in(2);
        let deployed = DeploymentScenario {
            replicas: c.range(1, 4) as usize,
            cap: *c.pick(&[1, 1, 2]),
            hold,
            may_stream: streams,
            mean_service_time: hold.as_micros() as Time / if streams { 2 } else { 8 },
            requests_per_second: vec![20.0; routers],
        };
        Self {
            routers,
            deployments: vec![deployed],
            clock_drift: 0.1,
            one_way_delay: MS,
            is_strict: !c.one_in(4),
            is_harsh: true,
            faults_per_second: *c.pick(&[2.0, 4.0, 8.0]),
            ..usual
        }
    }

    fn usual_from_seed(seed: u64) -> Self {
        let mut c = SimRng::new(seed);
        let routers = c.range(1, 8) as usize;
        let settings = FleetTiming {
            lease_duration: Duration::from_millis(*c.pick(&[1000, 2000])),
            heartbeat_interval: Duration::from_millis(200),
            report_interval: Duration::from_millis(100),
            idle_slot_timeout: Duration::from_millis(*c.pick(&[20, 100])),
            steal_threshold: Duration::from_millis(5),
            confirmation_validity: Duration::from_millis(*c.pick(&[0, 600])),
            max_clock_drift: 0.1,
        };
        let count = *c.pick(&[1, 1, 2]);
        let deployments = (0..count).map(|_| {
            let replicas = *c.pick(&[1, 1, 2, 2, 3, 5, 10]);
            let replicas = if c.one_in(80) { c.range(20, 201) as usize } else { replicas };
            let (cap, mean_service_time) = (*c.pick(&[1, 1, 1, 2, 4]), *c.pick(&[5 * MS, 30 * MS, 100 * MS]));
            let total = (replicas as f64 * f64::from(cap) * SECOND as f64 / mean_service_time as f64).min(40.0);
            let level = *c.pick(&[0.1, 0.5, 0.9, 1.5]) * total / routers as f64;
            let load = (0..routers).map(|_| level * *c.pick(&[0.0, 0.5, 1.0, 2.0])).collect();
            let hold = Duration::from_millis(*c.pick(&[200, 500, 1000]));
            DeploymentScenario {
                replicas,
                cap,
                hold,
                may_stream: c.one_in(3),
                mean_service_time,
                requests_per_second: load,
            }
        });
        Self {
            deployments: deployments.collect(),
            routers,
            is_strict: c.one_in(2),
            uses_roster: !c.one_in(4),
            settings,
            term: Duration::from_millis(*c.pick(&[800, 1500])),
            one_way_delay: *c.pick(&[50, MS, 20 * MS]),
            clock_drift: *c.pick(&[0.0, 0.1, 0.1]),
            reports_load: seed.is_multiple_of(5),
            faults_until: 6 * SECOND,
            faults_per_second: *c.pick(&[0.0, 1.0, 3.0, 6.0]),
            calm_duration: 3 * SECOND,
            is_harsh: false,
        }
    }

    /// Three routers, two replicas of one slot, half as much again as they can serve.
    pub(crate) fn overloaded(mean_service_time: Time) -> Self {
        let mean_service_time = mean_service_time * MS;
        let load = 2.0 * SECOND as f64 / mean_service_time as f64 / 2.0;
        Self {
            routers: 3,
            is_strict: true,
            uses_roster: true,
            settings: FleetTiming::default(),
            term: Duration::from_secs(5),
            deployments: vec![DeploymentScenario {
                replicas: 2,
                cap: 1,
                hold: Duration::from_secs(5),
                may_stream: false,
                mean_service_time,
                requests_per_second: vec![load; 3],
            }],
            one_way_delay: 50,
            clock_drift: 0.0,
            reports_load: true,
            faults_until: 0,
            faults_per_second: 0.0,
            calm_duration: 0,
            is_harsh: false,
        }
    }
}
