//! One router of a fleet: a process that can be killed, suspended and started again at the same addresses.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::message::Message;
use crate::wait_until;

/// Routers listen here: connections that clients and models make come from 127.0.0.1, so that none of them takes a port
/// while the router that has it is started again.
const LISTEN_ADDRESS: &str = "127.77.0.1:0";

/// Where a router is asked how it is.
#[derive(Debug, Clone, Copy)]
pub struct AdminClient(SocketAddr);

pub struct Router {
    pub scoring: SocketAddr,
    pub admin: SocketAddr,
    pub peer: SocketAddr,
    settings: PathBuf,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

/// An address that nobody has, nor will have who asked before: the system may give a port again that nobody listens at yet.
fn unused_address() -> SocketAddr {
    static ASSIGNED: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    loop {
        let address = TcpListener::bind(LISTEN_ADDRESS).unwrap().local_addr().unwrap();
        if ASSIGNED.lock().unwrap().insert(address) {
            return address;
        }
    }
}

impl AdminClient {
    /// `GET` on the admin listener: status and body; `None` where nobody answers, which a paused process does not.
    pub async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let asked = tokio::time::timeout(Duration::from_secs(1), async {
            let mut stream = TcpStream::connect(self.0).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let answer = Message::read(&mut tokio::io::BufReader::new(stream)).await.ok()?;
            Some((answer.status(), String::from_utf8(answer.body).unwrap()))
        });
        asked.await.ok().flatten()
    }

    pub async fn is_ready(&self) -> bool {
        self.try_get("/readyz").await.is_some_and(|(status, _)| status == 200)
    }
}

impl Router {
    /// One that does not run yet; its settings are to be in this file.
    pub fn new(settings: PathBuf) -> Self {
        Self {
            scoring: unused_address(),
            admin: unused_address(),
            peer: unused_address(),
            settings,
            child: None,
            log: Arc::default(),
        }
    }

    /// Starts a process, and does not wait for it.
    pub fn spawn(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["serve", "--config"])
            .arg(&self.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (source, log) = (child.stderr.take().unwrap(), self.log.clone());
        // A full pipe would stop the program.
        std::thread::spawn(move || {
            BufReader::new(source).lines().map_while(Result::ok).for_each(|line| log.lock().unwrap().push(line));
        });
        self.child = Some(child);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Kills the process, and waits until there is none.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits for the end of the process.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let mut status = None;
        wait_until("the end of a router", || {
            status = child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        self.child = None;
        status.unwrap()
    }

    pub fn admin_client(&self) -> AdminClient {
        AdminClient(self.admin)
    }

    /// See [`Admin::try_get`].
    pub async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.admin_client().try_get(path).await
    }

    pub async fn wait_until_ready(&self) -> Duration {
        wait_until("a router that is ready", async || self.admin_client().is_ready().await).await
    }

    /// The group, as `/api/endpoints` shows it; nothing where nobody answers.
    pub async fn fleet_status(&self) -> Value {
        let Some((_, text)) = self.try_get("/api/endpoints").await else { return Value::Null };
        serde_json::from_str::<Value>(&text).unwrap()["fleet"].take()
    }

    /// Sum of the samples of a metric, without its prefix, whose labels have `part` in them; 0 where nobody answers.
    pub async fn metric(&self, name: &str, part: &str) -> f64 {
        let text = self.try_get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
        let samples = text.lines().filter_map(|line| line.strip_prefix("inference_router_")?.strip_prefix(name));
        let samples = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(part));
        samples.map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    pub async fn is_coordinator(&self) -> bool {
        self.metric("fleet_coordinator", "").await > 0.0
    }

    pub async fn term(&self) -> f64 {
        self.metric("fleet_term", "").await
    }

    /// Requests that were started without a lease.
    pub async fn fallback_requests(&self) -> f64 {
        self.metric("fleet_fallback_requests_total", "").await
    }

    /// All that was logged.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a line of the log that has `part` in it.
    pub async fn wait_until_logged(&self, part: &str) {
        wait_until(&format!("the log line: {part}"), || std::future::ready(self.log().contains(part))).await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the router at {}:\n{}", self.peer, self.log());
        }
        self.kill();
    }
}
