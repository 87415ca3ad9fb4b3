//! Promises of the supervisor of local processes, with real processes.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use inference_router::control::processes::{
    DesiredReplicas, ProcessEvent, ProcessSettings, ProcessSupervisor, ReplicaSpec,
};
use inference_router::model::endpoint::Process;
use inference_router::model::name::Name;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
const EXECUTABLE: &str = env!("CARGO_BIN_EXE_inference-router");

/// Writes its process id to a file named after its port, then is a model.
const SERVE: &str = r#"echo $$ > "$PIDS/{port}"; exec "$0" model-server --port {port}"#;

fn wanted(spec: ReplicaSpec, count: u32) -> DesiredReplicas {
    DesiredReplicas { spec, count, in_flight: BTreeMap::new() }
}

struct SupervisorFixture {
    supervisor: ProcessSupervisor,
    events: mpsc::Receiver<ProcessEvent>,
    folder: tempfile::TempDir,
}

impl SupervisorFixture {
    fn new(grace: Duration, drain_timeout: Duration) -> Self {
        let (sender, events) = mpsc::channel(1);
        let supervisor = ProcessSupervisor::new(
            ProcessSettings { router_executable: EXECUTABLE.into(), termination_grace: grace, drain_timeout },
            sender,
        );
        log();
        Self { supervisor, events, folder: tempfile::tempdir().unwrap() }
    }

    fn spec(&self, endpoint: &str, script: &str) -> ReplicaSpec {
        spec(endpoint, script, self.folder.path())
    }

    /// Applies `count` replicas of `script` and waits until they are ready.
    async fn apply_until_ready(&mut self, endpoint: &str, script: &str, count: u32) -> HashMap<u32, SocketAddr> {
        self.supervisor.apply_desired(vec![wanted(self.spec(endpoint, script), count)]);
        let mut addresses = HashMap::new();
        while addresses.len() < count as usize {
            if let ProcessEvent::Ready { key, address } = self.next().await {
                addresses.insert(key.index, address);
            }
        }
        addresses
    }

    async fn next(&mut self) -> ProcessEvent {
        timeout(WAIT_TIMEOUT, self.events.recv()).await.expect("no event in time").expect("the supervisor is gone")
    }

    /// The next event must be that replica `index` is gone.
    async fn next_gone(&mut self, index: u32) -> Option<oneshot::Sender<()>> {
        match self.next().await {
            ProcessEvent::Gone { key, drained_tx: drained } if key.index == index => drained,
            other => panic!("not the end of replica {index}: {other:?}"),
        }
    }

    fn pid_at(&self, address: SocketAddr) -> Pid {
        let text = std::fs::read_to_string(self.folder.path().join(address.port().to_string())).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }
}

fn spec(endpoint: &str, script: &str, folder: &Path) -> ReplicaSpec {
    let command = ["sh", "-c", script, EXECUTABLE].map(str::to_owned).to_vec();
    let pids = folder.to_str().unwrap().to_owned();
    ReplicaSpec {
        endpoint: Name::new(endpoint).unwrap(),
        deployment: Name::new("blue").unwrap(),
        process: Process {
            command,
            readiness_path: "/".to_owned(),
            env: vec![("PIDS".to_owned(), pids), ("GIVEN_PORT".to_owned(), "p={port}".to_owned())],
            working_dir: Some(folder.to_owned()),
        },
    }
}

fn is_listening(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok_and(|stream| stream.peer_addr().ok() != stream.local_addr().ok())
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// One log for all tests of this file; they look only at lines of their own endpoint.
fn log() {
    static ONCE: OnceLock<()> = OnceLock::new();
    struct Writer;
    impl Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LOG.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    ONCE.get_or_init(|| tracing_subscriber::fmt().json().with_writer(|| Writer).init());
}

/// Lines of `replica` in the log: target, level, and the fields.
fn log_lines_of(replica: &str) -> Vec<(String, String, serde_json::Value)> {
    let text = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_replica = lines.filter(|line| line["fields"]["replica"] == replica);
    let text_of = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    of_replica.map(|line| (text_of(&line["target"]), text_of(&line["level"]), line["fields"].clone())).collect()
}

#[tokio::test]
async fn replicas_become_ready_on_ports_of_their_own() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let addresses = rig.apply_until_ready("many", SERVE, 3).await;
    assert_eq!(addresses.values().collect::<BTreeSet<_>>().len(), 3);
    assert!(addresses.values().all(|address| is_listening(*address)));
    rig.supervisor.stop().await;
    assert!(!addresses.values().any(|address| is_listening(*address)));
}

#[tokio::test]
async fn a_killed_replica_is_gone_and_comes_back_on_another_port() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let first = rig.apply_until_ready("killed", SERVE, 1).await[&0];
    kill_process(rig.pid_at(first), Signal::KILL).unwrap();
    assert!(rig.next_gone(0).await.is_none(), "a dead replica is not to be drained");
    assert!(matches!(rig.next().await, ProcessEvent::Pending { .. }));
    let ProcessEvent::Ready { key, address } = rig.next().await else { panic!("not ready") };
    assert_eq!(key.to_string(), "killed/blue/0");
    assert_ne!(address, first);
    let why = "replica exited: killed by signal 9; restarting in 100ms";
    assert!(log_lines_of("killed/blue/0").iter().any(|(_, level, fields)| level == "WARN" && fields["message"] == why));
    rig.supervisor.stop().await;
}

#[tokio::test]
async fn a_surplus_replica_is_stopped_only_when_it_is_drained() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let addresses = rig.apply_until_ready("surplus", SERVE, 2).await;
    let one = vec![wanted(rig.spec("surplus", SERVE), 1)];
    rig.supervisor.apply_desired(one);
    let drained = rig.next_gone(1).await.expect("requests may be in flight");
    assert!(is_listening(addresses[&1]));
    drained.send(()).unwrap();
    wait_until("the surplus replica stops", || !is_listening(addresses[&1])).await;
    assert!(is_listening(addresses[&0]));
    rig.supervisor.stop().await;
}

#[tokio::test]
async fn draining_does_not_take_longer_than_its_timeout() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, Duration::from_millis(200));
    let address = rig.apply_until_ready("undrained", SERVE, 1).await[&0];
    rig.supervisor.apply_desired(vec![]);
    let never_sent = rig.next_gone(0).await;
    wait_until("the replica stops", || !is_listening(address)).await;
    drop(never_sent);
    rig.supervisor.stop().await;
    assert!(rig.events.recv().await.is_none(), "it was gone already when it stopped");
}

#[tokio::test]
async fn an_old_replica_leaves_only_when_a_new_one_is_ready() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let old = rig.apply_until_ready("changed", SERVE, 2).await;
    rig.supervisor.apply_desired(vec![wanted(rig.spec("changed", &format!("true; {SERVE}")), 2)]);
    let (mut new, mut gone) = (0, BTreeSet::new());
    while gone.len() < 2 {
        match rig.next().await {
            ProcessEvent::Ready { key, .. } => {
                assert!(!old.contains_key(&key.index));
                new += 1;
            }
            ProcessEvent::Gone { key, drained_tx } => {
                assert!(drained_tx.is_some() && old.contains_key(&key.index));
                gone.insert(key.index);
                assert!(gone.len() <= new, "{gone:?} left with {new} new ones ready");
            }
            ProcessEvent::Pending { .. } => {}
        }
    }
    wait_until("the old replicas stop", || !old.values().any(|address| is_listening(*address))).await;
    rig.supervisor.stop().await;
}

#[tokio::test]
async fn stopping_needs_nobody_who_receives_events() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let address = rig.apply_until_ready("unheard", SERVE, 1).await[&0];
    rig.supervisor.apply_desired(vec![wanted(rig.spec("unheard", SERVE), 4)]);
    wait_until("the channel is full", || rig.events.len() == 1).await;
    timeout(WAIT_TIMEOUT, rig.supervisor.stop()).await.expect("stops with its events unread");
    assert!(!is_listening(address));
}

#[tokio::test]
async fn a_replica_that_ignores_sigterm_is_killed_after_the_grace() {
    let grace = Duration::from_millis(400);
    let mut rig = SupervisorFixture::new(grace, WAIT_TIMEOUT);
    // The shell stays, whatever the model makes of SIGTERM.
    let script = r#"trap '' TERM; "$0" model-server --port {port} & sleep 60"#;
    let address = rig.apply_until_ready("stubborn", script, 1).await[&0];
    let started = Instant::now();
    rig.supervisor.stop().await;
    assert!(started.elapsed() >= grace && !is_listening(address));
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_reported_and_tried_ever_more_slowly() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let mut missing = rig.spec("missing", "");
    missing.process.command = vec!["no-such-model".to_owned()];
    let started = Instant::now();
    rig.supervisor.apply_desired(vec![wanted(missing, 1), wanted(rig.spec("sound", SERVE), 1)]);
    let (mut starts, mut sound) = (0, None);
    // One without trouble, and four after it.
    while starts < 5 || sound.is_none() {
        match rig.next().await {
            ProcessEvent::Pending { key, failure } if key.endpoint.matches("missing") => {
                assert_eq!(failure.is_some(), starts > 0, "{failure:?}");
                starts += 1;
            }
            ProcessEvent::Ready { key, address } if key.endpoint.matches("sound") => sound = Some(address),
            ProcessEvent::Gone { key, .. } => assert!(key.endpoint.matches("missing")),
            ProcessEvent::Pending { .. } => {}
            ProcessEvent::Ready { key, .. } => panic!("{key} is ready"),
        }
    }
    assert!(started.elapsed() >= Duration::from_millis(100 + 200 + 400));
    assert!(is_listening(sound.unwrap()));
    let lines = log_lines_of("missing/blue/0");
    assert!(
        lines.iter().any(|(_, level, fields)| level == "ERROR" && fields["program"] == "no-such-model"),
        "{lines:?}"
    );
    assert!(lines.iter().any(|(target, _, fields)| target == "replica"
        && fields["message"].as_str().unwrap().contains("cannot start `no-such-model`: No such file")));
    rig.supervisor.stop().await;
}

#[tokio::test]
async fn what_a_replica_prints_is_in_the_log() {
    let mut rig = SupervisorFixture::new(WAIT_TIMEOUT, WAIT_TIMEOUT);
    let script = format!("echo \"$GIVEN_PORT\"; pwd; echo trouble >&2; {SERVE}");
    let port = rig.apply_until_ready("talks", &script, 1).await[&0].port();
    let folder = rig.folder.path().canonicalize().unwrap();
    rig.supervisor.stop().await;
    let lines = log_lines_of("talks/blue/0");
    for (stream, message) in
        [("stdout", &*format!("p={port}")), ("stdout", folder.to_str().unwrap()), ("stderr", "trouble")]
    {
        let found = lines.iter().any(|(target, level, fields)| {
            target == "replica" && level == "INFO" && fields["stream"] == stream && fields["message"] == message
        });
        assert!(found, "{stream} {message}: {lines:?}");
    }
}

#[test]
fn no_process_of_a_replica_outlives_a_router_killed_by_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let fifo: PathBuf = folder.path().join("held-by-all-processes");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let endpoint = r#"{"apiVersion": "inference-router.dev/v1alpha1", "kind": "OnlineEndpoint",
        "metadata": {"name": "orphan"}, "spec": {"authMode": "none", "deployments": [{"name": "blue", "process": {
        "command": ["sh", "-c", "trap '' TERM; exec 3> \"$FIFO\"; sleep 60 & exec \"$ROUTER\" model-server --port {port}"],
        "env": {"FIFO": "FIFO-PATH", "ROUTER": "ROUTER-PATH"}}}]}}"#;
    let endpoint = endpoint.replace("FIFO-PATH", fifo.to_str().unwrap()).replace("ROUTER-PATH", EXECUTABLE);
    std::fs::write(folder.path().join("orphan.yaml"), endpoint).unwrap();
    let settings = folder.path().join("router.conf");
    std::fs::write(
        &settings,
        "{scoring: {address: \"127.0.0.1:0\"}, admin: {address: \"127.0.0.1:0\"}, endpoints: {files: [.]}}",
    )
    .unwrap();
    let mut router = Command::new(EXECUTABLE)
        .args(["serve", "--config", settings.to_str().unwrap()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (done, gone) = std_mpsc::channel();
    std::thread::spawn(move || {
        let end = std::fs::File::open(fifo).and_then(|mut held| held.read_to_end(&mut Vec::new()));
        done.send(end).unwrap();
    });
    let mut lines = BufReader::new(router.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("replica is ready")));
    assert!(gone.try_recv().is_err(), "the replica and its child are alive");
    router.kill().unwrap();
    router.wait().unwrap();
    gone.recv_timeout(WAIT_TIMEOUT).expect("a process outlived the router").unwrap();
}
