//! A fleet of routers in front of the same replicas.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::authority::{Authority, CertifiedKeyPair};
use crate::counting_models::CountingModels;
use crate::load::Load;
use crate::router::Router;
use crate::wait_until;

/// Whose turn it is: a test measures its routers while no others are at work.
static TEST_TURN: Mutex<()> = Mutex::const_new(());

/// Settings that all routers of a fleet share.
#[derive(Debug, Clone, Copy)]
pub struct FleetSetup {
    pub replicas: usize,
    /// `maxConcurrentRequestsPerInstance`.
    pub cap: u32,
    /// How long a request takes.
    pub service_time: Duration,
    pub mode: &'static str,
    /// `maxQueueWaitMs`.
    pub queue_wait: Duration,
    /// `maxQueueLength`.
    pub queue_length: u32,
    /// Whether the last replica is a shadow, which gets half of the requests too.
    pub has_shadow: bool,
    /// `shutdown.unreadyDelay` of the routers.
    pub unready_delay: &'static str,
}

impl Default for FleetSetup {
    fn default() -> Self {
        Self {
            replicas: 4,
            cap: 1,
            service_time: Duration::from_millis(20),
            mode: "strict",
            queue_wait: Duration::from_secs(15),
            queue_length: 100,
            has_shadow: false,
            unready_delay: "0s",
        }
    }
}

/// What is special about one router's connections with the others, as more of `fleet.peer`.
#[derive(Debug, Clone, Default)]
pub struct PeerSettings(pub String);

impl PeerSettings {
    /// The others reach it there.
    pub fn advertised_at(address: std::net::SocketAddr) -> Self {
        Self(format!(", advertise: \"{address}\""))
    }

    /// With these files, which it writes into the folder of the group.
    pub fn with_tls(
        group: &RouterFleet,
        name: &str,
        own: &CertifiedKeyPair,
        trusted: &Authority,
        secret: &str,
    ) -> Self {
        let write = |what: &str, text: &str| std::fs::write(group.folder.path().join(what), text).unwrap();
        write(&format!("{name}.crt"), &own.cert);
        write(&format!("{name}.key"), &own.key);
        write(&format!("{name}-ca.crt"), &trusted.pem);
        write(&format!("{name}-secret"), secret);
        Self(format!(
            ", tls: {{certFile: {name}.crt, keyFile: {name}.key, caFile: {name}-ca.crt}}, secretFile: {name}-secret"
        ))
    }
}

pub struct RouterFleet {
    pub setup: FleetSetup,
    pub models: CountingModels,
    pub routers: Vec<Router>,
    pub folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl RouterFleet {
    /// Models, and no router yet, when it is this test's turn.
    pub async fn without_routers(plan: FleetSetup) -> Self {
        let turn = TEST_TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let board = CountingModels::start(plan.replicas, plan.service_time).await;
        let instances: Vec<String> = board.addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let (shadow, live) = instances.split_last().unwrap();
        let (live, rest) = if plan.has_shadow {
            let rest = format!("  - {{name: shadow, instances: [{shadow}]}}\n  mirrorTraffic: {{shadow: 50}}\n");
            (live, rest)
        } else {
            (&instances[..], String::new())
        };
        let document = format!(
            "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: my-endpoint}}\nspec:\n  \
             authMode: none\n  traffic: {{blue: 100}}\n  deployments:\n  - name: blue\n    instances: [{}]\n    \
             requestSettings: {{maxConcurrentRequestsPerInstance: {}, maxQueueWaitMs: {}, maxQueueLength: {}, \
             requestTimeoutMs: 1000}}\n{rest}",
            live.join(", "),
            plan.cap,
            plan.queue_wait.as_millis(),
            plan.queue_length
        );
        std::fs::create_dir(folder.path().join("endpoints")).unwrap();
        std::fs::write(folder.path().join("endpoints/my-endpoint.yaml"), document).unwrap();
        Self { setup: plan, models: board, routers: Vec::new(), folder, _turn: turn }
    }

    /// Three routers that are ready; the first coordinates.
    pub async fn start(plan: FleetSetup) -> Self {
        let mut group = Self::without_routers(plan).await;
        for _ in 0..3 {
            group.add_router(&PeerSettings::default()).routers.last().unwrap().wait_until_ready().await;
        }
        group.wait_until_all_joined().await;
        group
    }

    /// One more router, whose process is started; it may not be ready yet.
    pub fn add_router(&mut self, peer: &PeerSettings) -> &mut Self {
        let file = self.folder.path().join(format!("router-{}.yaml", self.routers.len()));
        let mut router = Router::new(file.clone());
        std::fs::write(file, settings(&router, &self.setup, peer)).unwrap();
        router.spawn();
        self.routers.push(router);
        self
    }

    /// Waits until every router knows of every other, and of the same coordinator.
    pub async fn wait_until_all_joined(&self) -> Duration {
        wait_until("a group of all routers", || async {
            let mut seen = Vec::new();
            for router in &self.routers {
                let fleet = router.fleet_status().await;
                seen.push((fleet["coordinator"].clone(), fleet["term"].clone(), fleet["leaseState"].clone()));
                if fleet["members"].as_array().map(Vec::len) != Some(self.routers.len()) {
                    return false;
                }
            }
            seen.iter().all(|one| *one == seen[0] && one.2 == "leased") && self.coordinators().await.len() == 1
        })
        .await
    }

    /// Which routers say that they coordinate.
    pub async fn coordinators(&self) -> Vec<usize> {
        let mut found = Vec::new();
        for (number, router) in self.routers.iter().enumerate() {
            if router.is_coordinator().await {
                found.push(number);
            }
        }
        found
    }

    /// The sum of a metric over all routers.
    pub async fn metric_sum(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for router in &self.routers {
            sum += router.metric(metric, "").await;
        }
        sum
    }

    /// So many clients of each router, in the background.
    pub fn load(&self, clients: usize) -> Load {
        Load::start_on_each(&self.routers.iter().map(|router| router.scoring).collect::<Vec<_>>(), clients)
    }

    /// Who coordinates, by the newest file that says so.
    pub fn lock_holder(&self) -> Option<String> {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path());
        let version = |file: &PathBuf| file.to_str()?.rsplit_once("/leader.")?.1.parse::<u64>().ok();
        let newest = files.filter(|file| version(file).is_some()).max_by_key(version)?;
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(newest).ok()?).ok()?;
        Some(record["holder"]["name"].as_str()?.to_owned())
    }

    /// Waits until all slots are in use at once for clients of all routers but this.
    pub async fn wait_until_all_slots_are_used(&self, without: Option<usize>) -> Duration {
        self.models.count_without(without);
        let all = self.setup.cap * u32::try_from(self.setup.replicas).unwrap();
        wait_until("all slots in use", || std::future::ready(self.models.counts().max_of_counted_routers >= all)).await
    }

    pub fn assert_never_above_cap(&self) {
        self.models.assert_never_above(self.setup.cap);
    }
}

/// A settings file; `peer` is what is special.
pub fn settings(router: &Router, plan: &FleetSetup, peer: &PeerSettings) -> String {
    format!(
        "scoring: {{address: \"{}\"}}\nadmin: {{address: \"{}\"}}\nworkers: 1\n\
         shutdown: {{unreadyDelay: {}, drainTimeout: 5s}}\nendpoints: {{files: [endpoints/]}}\n\
         log: {{format: text, access: false}}\n\
         fleet: {{peer: {{address: \"{}\"{}}}, leaderLock: {{file: leader}}, termSeconds: 1, mode: {}}}\n",
        router.scoring, router.admin, plan.unready_delay, router.peer, peer.0, plan.mode
    )
}

/// Whether the program finds nothing wrong with a settings file, and what it says.
pub fn check(file: &Path) -> (bool, String) {
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_inference-router")).arg("check").arg(file).output();
    let output = program.unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
