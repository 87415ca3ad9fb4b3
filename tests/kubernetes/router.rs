//! The router's program, and model servers for pods.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::cluster::{Cluster, KEY};
use crate::support::apiserver::merge;
use crate::wait_until;

/// What a model takes.
const ROWS: &str = r#"{"data": [[1,2,3,4,5,6,7,8,9,10]]}"#;

/// The router while it runs. Killed when dropped.
pub struct Router {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub scoring: String,
    pub admin: String,
    pub http: reqwest::Client,
    _folder: tempfile::TempDir,
}

/// A model server at an address of its own. Killed when dropped.
pub struct Model(Child);

impl Router {
    /// Started, and not yet ready.
    pub async fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, json!({"endpoints": {"kubernetes": {"scoringUrl": "https://models.example"}}})).await
    }

    /// The same with more settings; where they name something of the router's own namespace, that is the test's.
    pub async fn start_with(cluster: &Cluster, more: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = json!({
            "scoring": {"address": "127.0.0.1:0"}, "admin": {"address": "127.0.0.1:0"}, "workers": 2,
            "endpoints": {"kubernetes": {"namespaces": [cluster.namespace, cluster.other_namespace]}},
            "log": {"format": "text", "access": false},
            "shutdown": {"unreadyDelay": "0s"}, "tokens": {"signingKeyFile": "signing.pem"},
        });
        merge(&mut settings, &more);
        let signing = Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["keys", "signing", "--file"])
            .arg(folder.path().join("signing.pem"))
            .status();
        assert!(signing.unwrap().success());
        let file = folder.path().join("router.yaml");
        std::fs::write(&file, settings.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["serve", "--config", file.to_str().unwrap()])
            .env("KUBECONFIG", &cluster.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, to) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                to.lock().unwrap().push(line);
            }
        });
        let address = async |what: &str| {
            let look = || async { line(&log, &format!("{what} listener")) };
            let (line, _) = wait_until(what, look).await;
            format!("http://{}", line.split_once("address=").unwrap().1.trim())
        };
        let (scoring, admin) = (address("scoring").await, address("admin").await);
        let http = reqwest::Client::new();
        Self { child, log, scoring, admin, http, _folder: folder }
    }

    /// Started, and ready.
    pub async fn start_ready(cluster: &Cluster) -> Self {
        let router = Self::start(cluster).await;
        wait_until("a router that is ready", || async { router.is_ready().await.then_some(()) }).await;
        router
    }

    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.admin)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    pub async fn problems(&self) -> String {
        self.http.get(format!("{}/readyz", self.admin)).send().await.unwrap().text().await.unwrap()
    }

    /// A path of an endpoint.
    pub fn uri(&self, endpoint: &str, path: &str) -> String {
        format!("{}/api/v1/endpoint/{endpoint}/{path}", self.scoring)
    }

    /// Status, and which model answered.
    pub async fn score(&self, endpoint: &str, key: &str) -> (u16, String) {
        let answer = self.http.post(self.uri(endpoint, "score")).bearer_auth(key).body(ROWS).send().await.unwrap();
        let name = answer.headers().get("x-model-name").map(|name| name.to_str().unwrap().to_owned());
        (answer.status().as_u16(), name.unwrap_or_default())
    }

    /// Whether a request is answered, which is asked until it is so, or not so any more.
    pub async fn wait_until_scores(&self, endpoint: &str, wanted: u16) -> std::time::Duration {
        let look = || async { (self.score(endpoint, KEY).await.0 == wanted).then_some(()) };
        wait_until(&format!("{endpoint} answers {wanted}"), look).await.1
    }

    pub async fn deployments(&self, endpoint: &str) -> Vec<Value> {
        let url = format!("{}/api/endpoints", self.admin);
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let all: Value = serde_json::from_str(&text).unwrap();
        let endpoints = all["endpoints"].as_array().unwrap();
        let found = endpoints.iter().find(|one| one["name"] == endpoint);
        found.map(|one| one["deployments"].as_array().unwrap().clone()).unwrap_or_default()
    }

    /// What it holds in memory, and the most it has held, in MiB.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// The time of processors that it has taken.
    pub fn cpu(&self) -> std::time::Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        std::time::Duration::from_millis(ticks * 10)
    }

    /// Told to stop, as by the kubelet.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the router's log:\n{}", self.log());
        }
    }
}

fn line(log: &Mutex<Vec<String>>, part: &str) -> Option<String> {
    log.lock().unwrap().iter().find(|line| line.contains(part)).cloned()
}

/// A cluster with one model server, and the endpoint `scored` over it.
pub async fn start_with_one_model(ip: &str) -> (Cluster, Router, Model) {
    let cluster = Cluster::start().await;
    let port = free_port();
    let model = Model::start(ip, port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", ip, true).await;
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("scored", 200).await;
    (cluster, router, model)
}

/// A port that is free on every loopback address, and given to nobody else: the system may give one again that nobody listens
/// at yet.
pub fn free_port() -> u16 {
    static ASSIGNED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        if ASSIGNED.lock().unwrap().insert(port) {
            return port;
        }
    }
}

impl Model {
    /// Listens when this returns.
    pub async fn start(ip: &str, port: u16, more: &[&str]) -> Self {
        let (port_text, name) = (port.to_string(), format!("at-{ip}"));
        let child = Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["model-server", "--host", ip, "--port", &port_text, "--name", &name])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let model = Self(child);
        let connect = || async { tokio::net::TcpStream::connect((ip, port)).await.ok() };
        wait_until("a model server", connect).await;
        model
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
