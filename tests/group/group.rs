//! Routers that are one, before the same replicas.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::authority::{Authority, Pair};
use crate::board::Board;
use crate::load::Load;
use crate::router::Router;
use crate::until;

/// Whose turn it is: a test measures its routers while no others are at work.
static TURN: Mutex<()> = Mutex::const_new(());

/// What all routers of a group have.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub replicas: usize,
    /// `maxConcurrentRequestsPerInstance`.
    pub cap: u32,
    /// How long a request takes.
    pub takes: Duration,
    pub mode: &'static str,
    /// `maxQueueWaitMs`.
    pub waits: Duration,
    /// `maxQueueLength`.
    pub queue: u32,
    /// Whether the last replica is a shadow, which gets half of the requests too.
    pub shadow: bool,
    /// Of `shutdown`.
    pub unready_delay: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            replicas: 4,
            cap: 1,
            takes: Duration::from_millis(20),
            mode: "strict",
            waits: Duration::from_secs(15),
            queue: 100,
            shadow: false,
            unready_delay: "0s",
        }
    }
}

/// What is special about one router's connections with the others, as more of `fleet.peer`.
#[derive(Debug, Clone, Default)]
pub struct Peer(pub String);

impl Peer {
    /// The others reach it there.
    pub fn at(address: std::net::SocketAddr) -> Self {
        Self(format!(", advertise: \"{address}\""))
    }

    /// With these files, which it writes into the folder of the group.
    pub fn tls(group: &Group, name: &str, own: &Pair, trusted: &Authority, secret: &str) -> Self {
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

pub struct Group {
    pub plan: Plan,
    pub board: Board,
    pub routers: Vec<Router>,
    pub folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Group {
    /// Models, and no router yet, when it is this test's turn.
    pub async fn empty(plan: Plan) -> Self {
        let turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let board = Board::start(plan.replicas, plan.takes).await;
        let instances: Vec<String> = board.addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let (shadow, live) = instances.split_last().unwrap();
        let (live, rest) = if plan.shadow {
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
            plan.waits.as_millis(),
            plan.queue
        );
        std::fs::create_dir(folder.path().join("endpoints")).unwrap();
        std::fs::write(folder.path().join("endpoints/my-endpoint.yaml"), document).unwrap();
        Self { plan, board, routers: Vec::new(), folder, _turn: turn }
    }

    /// Three routers that are ready; the first coordinates.
    pub async fn start(plan: Plan) -> Self {
        let mut group = Self::empty(plan).await;
        for _ in 0..3 {
            group.add(&Peer::default()).routers.last().unwrap().until_ready().await;
        }
        group.until_whole().await;
        group
    }

    /// One more router, whose process is started; it may not be ready yet.
    pub fn add(&mut self, peer: &Peer) -> &mut Self {
        let file = self.folder.path().join(format!("router-{}.yaml", self.routers.len()));
        let mut router = Router::new(file.clone());
        std::fs::write(file, settings(&router, &self.plan, peer)).unwrap();
        router.spawn();
        self.routers.push(router);
        self
    }

    /// Waits until every router knows of every other, and of the same coordinator.
    pub async fn until_whole(&self) -> Duration {
        until("a group of all routers", || async {
            let mut seen = Vec::new();
            for router in &self.routers {
                let fleet = router.fleet().await;
                seen.push((fleet["coordinator"].clone(), fleet["epoch"].clone(), fleet["standing"].clone()));
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
            if router.coordinates().await {
                found.push(number);
            }
        }
        found
    }

    /// The sum of a metric over all routers.
    pub async fn sum(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for router in &self.routers {
            sum += router.metric(metric, "").await;
        }
        sum
    }

    /// So many clients of each router, in the background.
    pub fn load(&self, clients: usize) -> Load {
        Load::of_each(&self.routers.iter().map(|router| router.scoring).collect::<Vec<_>>(), clients)
    }

    /// Who coordinates, by the newest file that says so.
    pub fn holder(&self) -> Option<String> {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path());
        let version = |file: &PathBuf| file.to_str()?.rsplit_once("/leader.")?.1.parse::<u64>().ok();
        let newest = files.filter(|file| version(file).is_some()).max_by_key(version)?;
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(newest).ok()?).ok()?;
        Some(record["holder"]["name"].as_str()?.to_owned())
    }

    /// Waits until all slots are in use at once for clients of all routers but this.
    pub async fn until_all_slots_are_used(&self, without: Option<usize>) -> Duration {
        self.board.watch(without);
        let all = self.plan.cap * u32::try_from(self.plan.replicas).unwrap();
        until("all slots in use", || std::future::ready(self.board.counts().together >= all)).await
    }

    pub fn never_above_the_cap(&self) {
        self.board.never_above(self.plan.cap);
    }
}

/// A settings file; `peer` is what is special.
pub fn settings(router: &Router, plan: &Plan, peer: &Peer) -> String {
    format!(
        "scoring: {{address: \"{}\"}}\nadmin: {{address: \"{}\"}}\nworkers: 1\n\
         shutdown: {{unreadyDelay: {}, drainTimeout: 5s}}\nendpoints: {{files: [endpoints/]}}\n\
         log: {{format: text, access: false}}\n\
         fleet: {{peer: {{address: \"{}\"{}}}, lease: {{file: leader}}, leaseSeconds: 1, mode: {}}}\n",
        router.scoring, router.admin, plan.unready_delay, router.peer, peer.0, plan.mode
    )
}

/// Whether the program finds nothing wrong with a settings file, and what it says.
pub fn check(file: &Path) -> (bool, String) {
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_inference-router")).arg("check").arg(file).output();
    let output = program.unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
