//! The program as a child process, and what can be seen of it from outside.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use crate::client::{CheckedRequest, CheckingClient, KEY};
use crate::load::{Load, Tally};
use crate::model::Replica;
use crate::process_stats::ProcessStats;
use crate::{POLL_INTERVAL, WAIT_TIMEOUT, with_timeout};

/// Memory that may have been added, in KiB, when all is over: buffers that the allocator keeps for the next time.
pub const MEMORY_MARGIN_KIB: u64 = 6 * 1024;

/// Whose turn it is: a test measures its program while no other is at work.
static TEST_TURN: Mutex<()> = Mutex::const_new(());

/// A document of the endpoint `my-endpoint`; `deployments` as YAML flow, with all traffic for the first, `blue`.
pub fn endpoint(deployments: &[String]) -> String {
    format!(
        "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: my-endpoint}}\nspec:\n  \
         keys: {{primary: {{value: {KEY}}}}}\n  traffic: {{blue: 100}}\n  deployments:\n  - {}\n",
        deployments.join("\n  - ")
    )
}

/// A deployment at these replicas, with `requestSettings` as the inside of a YAML flow.
pub fn deployment(name: &str, replicas: &[&Replica], settings: &str) -> String {
    let addresses: Vec<String> = replicas.iter().map(|replica| format!("\"{}\"", replica.address)).collect();
    format!("{{name: {name}, instances: [{}], requestSettings: {{{settings}}}}}", addresses.join(", "))
}

/// How a program is to run.
pub struct Setup {
    /// The endpoint's document.
    pub document: String,
    /// More lines of the settings file.
    pub settings: &'static str,
}

/// A running router. Killed when dropped.
pub struct Program {
    pub scoring: SocketAddr,
    pub admin_address: SocketAddr,
    /// Kept open, so that it is there when nothing new can be opened, and counts among the descriptors from the start.
    admin: CheckingClient,
    child: Child,
    folder: tempfile::TempDir,
    log: Arc<StdMutex<Vec<String>>>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Program {
    /// Waits for this test's turn, and starts the program on free ports.
    pub async fn start(document: String, settings: &'static str) -> Self {
        let turn = Self::turn().await;
        let any = "127.0.0.1:0".parse().unwrap();
        let mut program = Self::start_at(&Setup { document, settings }, any, any).await;
        program._turn = Some(turn);
        program
    }

    /// Waits for this test's turn, which lasts as long as the value.
    pub async fn turn() -> MutexGuard<'static, ()> {
        TEST_TURN.lock().await
    }

    /// Starts the program at these addresses, whoever's turn it is.
    pub async fn start_at(setup: &Setup, scoring: SocketAddr, admin: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("endpoints")).unwrap();
        let settings = format!(
            "scoring: {{address: \"{scoring}\"}}\nadmin: {{address: \"{admin}\"}}\nworkers: 2\n\
             endpoints: {{files: [endpoints]}}\nlog: {{format: text, access: false}}\n{}\n",
            setup.settings
        );
        let settings_file = folder.path().join("router.yaml");
        std::fs::write(&settings_file, settings).unwrap();
        std::fs::write(folder.path().join("endpoints/0.yaml"), &setup.document).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["serve", "--config"])
            .arg(settings_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = collect(child.stderr.take().unwrap());
        let mut program =
            Self { scoring, admin_address: admin, admin: CheckingClient::new(admin), child, folder, log, _turn: None };
        program.scoring = program.listener_address("scoring").await;
        program.admin_address = program.listener_address("admin").await;
        program.admin = CheckingClient::new(program.admin_address);
        program.wait_until_ready().await;
        program
    }

    /// The address in the log line about a listener.
    async fn listener_address(&mut self, what: &str) -> SocketAddr {
        let line = self.wait_until_logged(&format!("{what} listener")).await;
        line.split_once("address=").unwrap().1.trim().parse().unwrap()
    }

    async fn wait_until_ready(&mut self) {
        with_timeout("a router that is ready", async {
            while !self.get("/readyz").await.contains("\"ready\"") {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        })
        .await;
    }

    /// Waits for a line of the log that has `part` in it.
    pub async fn wait_until_logged(&mut self, part: &str) -> String {
        let started = Instant::now();
        loop {
            let found = self.log.lock().unwrap().iter().find(|line| line.contains(part)).cloned();
            if let Some(line) = found {
                return line;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "not logged: {part}\n{}", self.log());
            assert!(self.child.try_wait().unwrap().is_none(), "ended: {}", self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// All that was logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn process_stats(&self) -> ProcessStats {
        ProcessStats::from_pid(self.pid())
    }

    /// The file with the endpoint's document.
    pub fn document(&self) -> PathBuf {
        self.folder.path().join("endpoints/0.yaml")
    }

    /// `GET` on the admin listener, over the connection that is kept for it.
    pub async fn get(&mut self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
        let answer = with_timeout("an answer of the admin listener", async {
            self.admin.connect().await.unwrap();
            self.admin.exchange(request.as_bytes()).await.unwrap()
        });
        String::from_utf8(answer.await.body).unwrap()
    }

    /// `/api/endpoints`: the deployments of the first endpoint.
    pub async fn deployments(&mut self) -> Vec<Value> {
        let mut all: Value = serde_json::from_str(&self.get("/api/endpoints").await).unwrap();
        serde_json::from_value(all["endpoints"][0]["deployments"].take()).unwrap()
    }

    /// Sum of the samples of a metric, without its prefix, whose labels have all of `parts` in them.
    pub async fn metric(&mut self, name: &str, parts: &[&str]) -> f64 {
        let text = self.get("/metrics").await;
        let samples = text.lines().filter_map(|line| line.strip_prefix("inference_router_")?.strip_prefix(name));
        let samples =
            samples.filter(|rest| rest.starts_with(['{', ' ']) && parts.iter().all(|part| rest.contains(part)));
        samples.map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until `condition` holds for the deployments.
    pub async fn wait_until(&mut self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        let started = Instant::now();
        loop {
            let now = self.deployments().await;
            if condition(&now) {
                return;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "timed out: {what}: {now:#?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until nothing is in a slot or in a queue and no client is connected.
    pub async fn wait_until_idle(&mut self) {
        self.wait_until("no request anywhere", |all| all.iter().all(is_idle)).await;
        let started = Instant::now();
        loop {
            let open = self.metric("connections", &["scoring"]).await;
            let in_flight = self.metric("requests_in_flight", &[]).await;
            if open + in_flight == 0.0 {
                return;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "{open} connections, {in_flight} requests in flight");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Clients in the background that ask the deployment `blue`, which echoes.
    pub fn load(&self) -> Load {
        Load::start(self.scoring, 4, |number| CheckedRequest::echo("blue", number))
    }

    /// A round of load, and what the router is like afterwards, with no connection left on either side.
    pub async fn warm_up(&mut self, replicas: &[&Replica]) -> ProcessStats {
        let load = self.load();
        load.wait_for_answers(200).await;
        load.stop().await.assert_only(&[]);
        self.stats_when_idle(replicas).await
    }

    /// What the router is like when nobody is connected to it and it is connected to nobody.
    pub async fn stats_when_idle(&mut self, replicas: &[&Replica]) -> ProcessStats {
        self.wait_until_idle().await;
        replicas.iter().for_each(|replica| replica.close_connections());
        // Its idle connections to replicas are swept once a second; what is left then stays.
        let (mut last, mut since) = (self.process_stats(), Instant::now());
        while since.elapsed().as_millis() < 1200 {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = self.process_stats();
            if now.descriptors != last.descriptors {
                (last, since) = (now, Instant::now());
            }
        }
        self.process_stats()
    }

    /// Waits until the router is as it was before: no request, no connection, no descriptor and no thread more, and
    /// not more than `margin` KiB more memory.
    pub async fn assert_back_to(&mut self, before: &ProcessStats, replicas: &[&Replica], margin: u64) {
        let started = Instant::now();
        let mut used = started;
        self.wait_until_idle().await;
        loop {
            replicas.iter().for_each(|replica| replica.close_connections());
            let now = self.process_stats();
            let same = (now.descriptors, now.threads) == (before.descriptors, before.threads);
            if same && now.memory_kib <= before.memory_kib + margin {
                println!(
                    "  memory {} KiB, before {} KiB; {} descriptors",
                    now.memory_kib, before.memory_kib, now.descriptors
                );
                return;
            }
            assert!(started.elapsed() < WAIT_TIMEOUT, "{now:?} is not what was before, {before:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
            if same && used.elapsed() > POLL_INTERVAL * 10 {
                // The allocator gives back what was freed when it is asked for something the next time.
                let load = self.load();
                load.wait_for_answers(20).await;
                load.stop().await.assert_only(&[]);
                self.wait_until_idle().await;
                used = Instant::now();
            }
        }
    }

    /// The common end: all that the clients in the background saw is exact or one of `allowed`, and nothing is left.
    pub async fn assert_recovers(
        &mut self,
        load: Load,
        allowed: &[&str],
        before: &ProcessStats,
        replicas: &[&Replica],
    ) -> Tally {
        let tally = load.stop().await;
        tally.assert_only(allowed);
        println!("  {} exact answers, the slowest took {:?}", tally.exact, tally.slowest);
        self.assert_back_to(before, replicas, MEMORY_MARGIN_KIB).await;
        tally
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        with_timeout("the end of the router", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        })
        .await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the router's log:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a deployment has no request in a slot or in its queue.
fn is_idle(deployment: &Value) -> bool {
    let replicas = deployment["replicas"].as_array().unwrap();
    deployment["slots"]["busy"] == 0
        && deployment["slots"]["draining"] == 0
        && deployment["queue"] == 0
        && replicas.iter().all(|replica| replica["inFlight"] == 0)
}

/// Reads lines as they come: a full pipe would stop the program.
fn collect(source: impl std::io::Read + Send + 'static) -> Arc<StdMutex<Vec<String>>> {
    let lines = Arc::new(StdMutex::new(Vec::new()));
    let kept = lines.clone();
    std::thread::spawn(move || {
        BufReader::new(source).lines().map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line));
    });
    lines
}
