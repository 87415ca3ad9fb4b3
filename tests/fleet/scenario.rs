//! What a seed stands for: the group, the replicas, the load, and what goes wrong.

use std::time::Duration;

use inference_router::policy::fleet::Settings;

use crate::chance::Chance;
use crate::world::{MS, SECOND, Time};

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) routers: usize,
    pub(crate) strict: bool,
    pub(crate) roster: bool,
    pub(crate) settings: Settings,
    /// Of the term of a coordinator.
    pub(crate) term: Duration,
    pub(crate) deployments: Vec<Deployed>,
    /// One way.
    pub(crate) delay: Time,
    pub(crate) drift: f64,
    /// Until then things go wrong, so many times a second.
    pub(crate) faulty: Time,
    pub(crate) faults: f64,
    pub(crate) calm: Time,
    /// Whether routers tell what goes on.
    pub(crate) loads: bool,
    /// Cut-offs and pauses rather than anything.
    pub(crate) harsh: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Deployed {
    pub(crate) replicas: usize,
    pub(crate) cap: u32,
    pub(crate) hold: Duration,
    /// Whether answers may stream for longer than `hold`.
    pub(crate) streams: bool,
    pub(crate) service: Time,
    /// Requests per second at each router.
    pub(crate) load: Vec<f64>,
}

impl Scenario {
    pub(crate) fn anything(seed: u64) -> Self {
        if seed % 3 == 2 { Self::harsh(seed) } else { Self::usual(seed) }
    }

    /// Few routers want the same few slots for as long as they may have them, clocks are as bad as allowed, and somebody is
    /// always cut off.
    fn harsh(seed: u64) -> Self {
        let mut c = Chance::new(seed ^ 0x5EED);
        let routers = c.range(2, 5) as usize;
        let usual = Self::usual(seed);
        let hold = Duration::from_millis(*c.pick(&[100, 300]));
        let streams = c.one_in(2);
        let deployed = Deployed {
            replicas: c.range(1, 4) as usize,
            cap: *c.pick(&[1, 1, 2]),
            hold,
            streams,
            service: hold.as_micros() as Time / if streams { 2 } else { 8 },
            load: vec![20.0; routers],
        };
        Self {
            routers,
            deployments: vec![deployed],
            drift: 0.1,
            delay: MS,
            strict: !c.one_in(4),
            harsh: true,
            faults: *c.pick(&[2.0, 4.0, 8.0]),
            ..usual
        }
    }

    fn usual(seed: u64) -> Self {
        let mut c = Chance::new(seed);
        let routers = c.range(1, 8) as usize;
        let settings = Settings {
            lease: Duration::from_millis(*c.pick(&[1000, 2000])),
            heartbeat: Duration::from_millis(200),
            report: Duration::from_millis(100),
            idle: Duration::from_millis(*c.pick(&[20, 100])),
            patience: Duration::from_millis(5),
            vouch: Duration::from_millis(*c.pick(&[0, 600])),
            drift: 0.1,
        };
        let count = *c.pick(&[1, 1, 2]);
        let deployments = (0..count).map(|_| {
            let replicas = *c.pick(&[1, 1, 2, 2, 3, 5, 10]);
            let replicas = if c.one_in(80) { c.range(20, 201) as usize } else { replicas };
            let (cap, service) = (*c.pick(&[1, 1, 1, 2, 4]), *c.pick(&[5 * MS, 30 * MS, 100 * MS]));
            let total = (replicas as f64 * f64::from(cap) * SECOND as f64 / service as f64).min(40.0);
            let level = *c.pick(&[0.1, 0.5, 0.9, 1.5]) * total / routers as f64;
            let load = (0..routers).map(|_| level * *c.pick(&[0.0, 0.5, 1.0, 2.0])).collect();
            let hold = Duration::from_millis(*c.pick(&[200, 500, 1000]));
            Deployed { replicas, cap, hold, streams: c.one_in(3), service, load }
        });
        Self {
            deployments: deployments.collect(),
            routers,
            strict: c.one_in(2),
            roster: !c.one_in(4),
            settings,
            term: Duration::from_millis(*c.pick(&[800, 1500])),
            delay: *c.pick(&[50, MS, 20 * MS]),
            drift: *c.pick(&[0.0, 0.1, 0.1]),
            loads: seed.is_multiple_of(5),
            faulty: 6 * SECOND,
            faults: *c.pick(&[0.0, 1.0, 3.0, 6.0]),
            calm: 3 * SECOND,
            harsh: false,
        }
    }

    /// Three routers, two replicas of one slot, half as much again as they can serve.
    pub(crate) fn tight(service: Time) -> Self {
        let service = service * MS;
        let load = 2.0 * SECOND as f64 / service as f64 / 2.0;
        Self {
            routers: 3,
            strict: true,
            roster: true,
            settings: Settings::default(),
            term: Duration::from_secs(5),
            deployments: vec![Deployed {
                replicas: 2,
                cap: 1,
                hold: Duration::from_secs(5),
                streams: false,
                service,
                load: vec![load; 3],
            }],
            delay: 50,
            drift: 0.0,
            loads: true,
            faulty: 0,
            faults: 0.0,
            calm: 0,
            harsh: false,
        }
    }
}
