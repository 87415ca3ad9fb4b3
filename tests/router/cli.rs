//! Promises of the program: its commands, what they print and where, how they end.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Model, WAIT_TIMEOUT, call, endpoint, score, with_timeout};

/// What the sample model answers to the request in the demo's first line.
const PREDICTIONS: &str = "[11055.977245525679, 4503.079536107787]";
const ROWS: &str = r#"{"data": [[1,2,3,4,5,6,7,8,9,10], [10,9,8,7,6,5,4,3,2,1]]}"#;
const ANY_PORTS: [(&str, &str); 2] =
    [("INFERENCE_ROUTER__SCORING__ADDRESS", "127.0.0.1:0"), ("INFERENCE_ROUTER__ADMIN__ADDRESS", "127.0.0.1:0")];

/// The router's program while it runs. Killed when dropped.
struct ProgramProcess {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

/// What a program said, and how it ended.
#[derive(Debug)]
struct ProgramOutput {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inference-router"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl ProgramProcess {
    fn start(command: &mut Command) -> Self {
        // A group of its own, as a shell gives it.
        let mut child = command.process_group(0).spawn().unwrap();
        let (stdout, stderr) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, stdout, stderr }
    }

    /// The rest of the line on standard output that starts with `start`.
    fn wait_for_stdout_line(&self, start: &str) -> String {
        line(&self.stdout, start, |line| line.strip_prefix(start).map(str::to_owned))
    }

    /// The line on standard error that contains `part`.
    fn wait_for_log_line(&self, part: &str) -> String {
        line(&self.stderr, part, |line| line.contains(part).then(|| line.to_owned()))
    }

    /// The address in the log line about a listener.
    fn listener_address(&self, what: &str) -> SocketAddr {
        let line = self.wait_for_log_line(&format!("{what} listener"));
        line.split_once("address=").unwrap().1.trim().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; with what was printed and not yet read.
    fn wait_for_exit(mut self) -> ProgramOutput {
        let (stdout, stderr) = (read_remaining_lines(&self.stdout), read_remaining_lines(&self.stderr));
        ProgramOutput { code: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

impl Drop for ProgramProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // Reads on although nobody listens: a full pipe would stop the program.
        BufReader::new(source).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    });
    lines
}

fn line<T>(lines: &Receiver<String>, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
    let mut before = Vec::new();
    loop {
        match lines.recv_timeout(WAIT_TIMEOUT) {
            Ok(line) => match find(&line) {
                Some(found) => return found,
                None => before.push(line),
            },
            Err(error) => panic!("no line {what:?} ({error}) after {before:#?}"),
        }
    }
}

/// Lines up to the end of the stream, which is the end of the program.
fn read_remaining_lines(lines: &Receiver<String>) -> String {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(WAIT_TIMEOUT) {
            Ok(line) => all.push(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return all.join("\n"),
            Err(error) => panic!("the program does not end ({error}): {all:#?}"),
        }
    }
}

fn run(arguments: &[&str]) -> ProgramOutput {
    ProgramProcess::start(&mut command(arguments)).wait_for_exit()
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn shipped_config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// A process: its number, and when it started, since numbers are used again.
#[derive(Debug, PartialEq, Eq)]
struct ProcessIdentity {
    pid: u32,
    parent: u32,
    started: String,
}

impl ProcessIdentity {
    /// `None`: there is none, or it has ended and nobody has asked how.
    fn from_pid(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // `pid (name) state parent …`, where the name may have anything in it.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let started = fields.get(19)?.to_string();
        (fields[0] != "Z").then(|| Some(Self { pid, parent: fields[1].parse().ok()?, started }))?
    }

    fn is_running(&self) -> bool {
        Self::from_pid(self.pid).is_some_and(|now| now.started == self.started)
    }
}

/// The processes below `root`.
fn descendants(root: u32) -> Vec<ProcessIdentity> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others: Vec<ProcessIdentity> = pids.filter_map(ProcessIdentity::from_pid).collect();
    let mut found: Vec<ProcessIdentity> = Vec::new();
    let mut at = 0;
    let mut parent = root;
    loop {
        found.extend(others.extract_if(.., |process| process.parent == parent));
        let Some(next) = found.get(at) else { return found };
        (at, parent) = (at + 1, next.pid);
    }
}

/// A demo that is ready, and the requests it says to try.
fn demo(more: &[&str]) -> (ProgramProcess, Vec<String>) {
    let demo = ProgramProcess::start(command(&["demo", "--port", "0", "--admin-port", "0"]).args(more));
    demo.wait_for_stdout_line("The demo runs");
    let mut requests = Vec::new();
    loop {
        let line = line(&demo.stdout, "curl or Ctrl-C", |line| Some(line.to_owned()));
        if line.starts_with("curl ") {
            requests.push(line);
        } else if line.starts_with("Ctrl-C") {
            return (demo, requests);
        }
    }
}

/// What a printed request answers: by a shell, as its reader would run it, or where there is no curl by the same
/// request. With the response's head where `-i` asks for it.
async fn run_curl_line(request: &str) -> String {
    if Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success()) {
        let shell = request.to_owned();
        let run = move || Command::new("sh").args(["-c", &shell]).output().unwrap();
        let output: Output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{request}: {output:?}");
        return String::from_utf8(output.stdout).unwrap();
    }
    let (mut url, mut headers, mut body) = ("", Vec::new(), None);
    let mut words = request.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
        0 => part.split_ascii_whitespace().collect(),
        _ => vec![part],
    });
    while let Some(word) = words.next() {
        match word {
            "-H" => headers.push(words.next().unwrap().split_once(": ").unwrap()),
            "-d" => body = words.next(),
            _ => url = word.strip_prefix("http://").unwrap_or(url),
        }
    }
    let (address, path) = url.split_once('/').unwrap();
    let mut built = Request::builder().uri(format!("/{path}")).method(if body.is_some() { "POST" } else { "GET" });
    for (name, value) in headers {
        built = built.header(name, value);
    }
    let body = Full::new(Bytes::copy_from_slice(body.unwrap_or_default().as_bytes()));
    let answer = call(address.parse().unwrap(), built.body(body).unwrap()).await;
    let head = if request.contains(" -si ") {
        format!("HTTP/1.1 {}\r\n{:?}", answer.status, answer.headers)
    } else {
        String::new()
    };
    head + &answer.text()
}

/// Where the models of a router listen.
async fn replica_addresses(admin: SocketAddr) -> Vec<SocketAddr> {
    let status = call(admin, Request::get("/api/endpoints").body(Full::default()).unwrap()).await.json();
    let deployments = status["endpoints"].as_array().unwrap().iter().flat_map(|e| e["deployments"].as_array().unwrap());
    let replicas = deployments.flat_map(|deployment| deployment["replicas"].as_array().unwrap());
    replicas.map(|replica| replica["address"].as_str().unwrap().parse().unwrap()).collect()
}

fn is_refused(address: &SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_err()
}

fn authority(request: &str) -> SocketAddr {
    let (_, rest) = request.split_once("http://").unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_demo_prints_requests_that_work_and_leaves_nothing_behind() {
    let (demo, requests) = demo(&[]);
    assert_eq!(requests.len(), 6, "{requests:#?}");
    assert_eq!(run_curl_line(&requests[0]).await, PREDICTIONS);
    let green = run_curl_line(&requests[1]).await;
    assert!(green.starts_with("HTTP/1.1 200 OK") && green.ends_with(PREDICTIONS), "{green}");
    assert!(green.contains("azureml-model-deployment") && green.contains("green"), "{green}");
    for (request, part) in [
        (&requests[2], r#""code":"missing_credential""#),
        (&requests[3], r#""swagger":"2.0""#),
        (&requests[4], r#""name":"my-endpoint""#),
        (&requests[5], "inference_router_requests_total{"),
    ] {
        let answer = run_curl_line(request).await;
        assert!(answer.contains(part), "{request}: {answer}");
    }
    let models = replica_addresses(authority(&requests[4])).await;
    let processes = descendants(demo.child.id());
    // Each of the four models has a guard.
    assert_eq!((models.len(), processes.len()), (4, 8));
    demo.signal(Signal::INT);
    let ended = demo.wait_for_exit();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!processes.iter().any(ProcessIdentity::is_running), "the router waits for its models");
    assert!(models.iter().all(is_refused));
}

#[tokio::test]
async fn a_demo_of_three_routers_is_one_fleet_in_front_of_the_same_models() {
    let (demo, requests) = demo(&["--routers", "3"]);
    let (scores, states): (Vec<&String>, Vec<&String>) = requests.iter().partition(|request| request.contains("-d '"));
    assert_eq!((scores.len(), states.len()), (3, 3), "{requests:#?}");
    for score in &scores {
        assert_eq!(run_curl_line(score).await, PREDICTIONS);
    }
    let mut seen = Vec::new();
    for state in &states {
        seen.push(replica_addresses(authority(state)).await);
        let group = || async {
            let status = call(authority(state), Request::get("/api/endpoints").body(Full::default()).unwrap()).await;
            status.json()["fleet"]["members"].as_array().map_or(0, Vec::len)
        };
        with_timeout("three members", async {
            while group().await != 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert!(seen[0].len() == 7 && seen.iter().all(|models| *models == seen[0]), "{seen:?}");
    demo.signal(Signal::INT);
    let ended = demo.wait_for_exit();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(seen[0].iter().all(is_refused));
}

#[tokio::test]
async fn no_model_outlives_a_demo_that_is_killed() {
    let (demo, requests) = demo(&[]);
    let models = replica_addresses(authority(&requests[4])).await;
    let processes = descendants(demo.child.id());
    assert_eq!((models.len(), processes.len()), (4, 8));
    let killed = Instant::now();
    demo.signal(Signal::KILL);
    assert_eq!(demo.wait_for_exit().code, None);
    with_timeout("the end of every process", async {
        while processes.iter().any(ProcessIdentity::is_running) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(8), "they end on SIGTERM, not on the SIGKILL after it");
    assert!(models.iter().all(is_refused));
}

#[tokio::test]
async fn a_second_signal_ends_the_router_at_once() {
    let (model, mut asked) = Model::manual().await;
    let files = folder(&[
        ("router.yaml", "shutdown: {unreadyDelay: 0s}\nendpoints: {files: [endpoints]}\nlog: {format: text}\n"),
        ("endpoints/a.yaml", &endpoint(&[model.address], "{}")),
    ]);
    let serve = ["serve", "--config", &path(&files, "router.yaml")];
    let router = ProgramProcess::start(command(&serve).envs(ANY_PORTS));
    let scoring = router.listener_address("scoring");
    let client = tokio::spawn(async move { crate::harness::try_call(scoring, score("{}")).await });
    let in_flight = with_timeout("the request", asked.recv()).await.unwrap();
    router.signal(Signal::TERM);
    router.wait_for_log_line("draining");
    router.signal(Signal::TERM);
    let ended = router.wait_for_exit();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("received a second signal; exiting at once"), "{ended:?}");
    assert!(with_timeout("the client", client).await.unwrap().is_err(), "there was no answer to give");
    drop(in_flight);
}

#[tokio::test]
async fn sigterm_lets_a_request_in_flight_finish() {
    let (model, mut asked) = Model::manual().await;
    let files = folder(&[
        ("router.yaml", "shutdown: {unreadyDelay: 0s}\nendpoints: {files: [endpoints]}\nlog: {format: text}\n"),
        ("endpoints/a.yaml", &endpoint(&[model.address], "{}")),
    ]);
    let serve = ["serve", "--config", &path(&files, "router.yaml")];
    let router = ProgramProcess::start(command(&serve).envs(ANY_PORTS));
    let scoring = router.listener_address("scoring");
    let client = tokio::spawn(async move { call(scoring, score("{}")).await });
    let in_flight = with_timeout("the request", asked.recv()).await.unwrap();
    router.signal(Signal::TERM);
    router.wait_for_log_line("draining");
    in_flight.answer("done");
    assert_eq!(with_timeout("the client", client).await.unwrap().text(), "done");
    assert_eq!(router.wait_for_exit().code, Some(0));
}

#[tokio::test]
async fn a_router_whose_standard_error_nobody_reads_any_more_serves_on_and_ends_in_order() {
    let model = Model::named("a").await;
    let files = folder(&[
        ("router.yaml", "shutdown: {unreadyDelay: 0s}\nendpoints: {files: [endpoints]}\nlog: {format: text}\n"),
        ("endpoints/a.yaml", &endpoint(&[model.address], "{}")),
    ]);
    let serve = ["serve", "--config", &path(&files, "router.yaml")];
    let mut child = command(&serve).envs(ANY_PORTS).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("scoring listener") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "no scoring listener");
    }
    let scoring: SocketAddr = line.split_once("address=").unwrap().1.trim().parse().unwrap();
    drop(log);
    let router = ProgramProcess { stdout: lines(child.stdout.take().unwrap()), stderr: channel().1, child };
    for _ in 0..3 {
        assert_eq!(call(scoring, score("{}")).await.status, 200);
    }
    // Of this it has more to say.
    router.signal(Signal::TERM);
    assert_eq!(router.wait_for_exit().code, Some(0));
    let bad = folder(&[("router.yaml", "workers: 0\n")]);
    let mut serve = command(&["serve", "--config", &path(&bad, "router.yaml")]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(serve.stderr(writer).status().unwrap().code(), Some(78), "and bad settings are no less bad");
}

#[tokio::test]
async fn the_quickstart_serves_with_addresses_from_the_environment() {
    let files = folder(&[
        ("quickstart.yaml", &std::fs::read_to_string(shipped_config("quickstart.yaml")).unwrap()),
        (
            "quickstart/my-endpoint.yaml",
            &std::fs::read_to_string(shipped_config("quickstart/my-endpoint.yaml")).unwrap(),
        ),
    ]);
    let serve = ["serve", "--config", &path(&files, "quickstart.yaml")];
    let router = ProgramProcess::start(command(&serve).envs(ANY_PORTS));
    let (scoring, _) = (router.listener_address("scoring"), router.listener_address("admin"));
    for _ in 0..3 {
        router.wait_for_log_line("replica is ready");
    }
    let request = Request::post("/api/v1/endpoint/my-endpoint/score")
        .header("authorization", "Bearer quickstart-demo-key-do-not-use-elsewhere")
        .body(Full::from(ROWS))
        .unwrap();
    let answer = call(scoring, request).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, PREDICTIONS));
    let line: serde_json::Value = serde_json::from_str(&router.wait_for_log_line("XRequestId")).unwrap();
    assert_eq!(line["EndpointName"], "my-endpoint");
    router.signal(Signal::TERM);
    let ended = router.wait_for_exit();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "logs go to standard error: {ended:?}");
}

#[test]
fn bad_settings_end_with_78_and_every_problem() {
    let files = folder(&[("bad.yaml", "scoring: {address: nowhere}\nworkers: 0\nlimit: {}\nlog: {level: loud}\n")]);
    let serve = ["serve", "--config", &path(&files, "bad.yaml")];
    let ended =
        ProgramProcess::start(command(&serve).env("INFERENCE_ROUTER__LIMITS__MAX_HEADERS", "none")).wait_for_exit();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{ended:?}");
    for part in [
        "bad.yaml: scoring.address: is \"nowhere\"",
        "bad.yaml: workers: is 0",
        "bad.yaml: limit: ",
        "log.level: is \"loud\"",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("environment: INFERENCE_ROUTER__LIMITS__MAX_HEADERS: "), "{}", ended.stderr);
}

#[test]
fn a_settings_file_that_is_not_there_ends_with_78() {
    let files = folder(&[]);
    let ended = run(&["serve", "--config", &path(&files, "none.yaml")]);
    assert_eq!(ended.code, Some(78));
    assert!(ended.stderr.contains("none.yaml: cannot be read as a settings file: No such file"), "{}", ended.stderr);
}

#[test]
fn a_broken_endpoint_at_the_start_ends_with_78() {
    let broken = "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {name: my-endpoint}\n\
                  spec:\n  authMode: none\n  traffic: {blue: 90}\n  deployments:\n  - {name: blue, instances: [x]}\n";
    let files = folder(&[("router.yaml", "endpoints: {files: [endpoints]}\n"), ("endpoints/a.yaml", broken)]);
    let serve = ["serve", "--config", &path(&files, "router.yaml")];
    let ended = ProgramProcess::start(command(&serve).envs(ANY_PORTS)).wait_for_exit();
    assert_eq!(ended.code, Some(78), "{ended:?}");
    for part in
        ["a.yaml: spec.traffic: sums to 90", "a.yaml: spec.deployments[0].instances[0]: is \"x\", which has no port"]
    {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn a_folder_of_endpoints_that_is_not_there_ends_with_78() {
    let files = folder(&[("router.yaml", "endpoints: {files: [nowhere]}\n")]);
    let serve = ["serve", "--config", &path(&files, "router.yaml")];
    let ended = ProgramProcess::start(command(&serve).envs(ANY_PORTS)).wait_for_exit();
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.contains("nowhere: cannot be read"), "{}", ended.stderr);
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [&[][..], &["serve"], &["serve", "--port", "1"], &["check"], &["model-server"], &["sevre"]] {
        let ended = run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.contains("Usage:"), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn check_is_content_with_what_is_shipped() {
    let settings = shipped_config("quickstart.yaml").display().to_string();
    for arguments in
        [vec!["check", &settings], vec!["check", &settings, &shipped_config("quickstart").display().to_string()]]
    {
        let ended = run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "no problems; endpoints: 1"), "{ended:?}");
    }
}

#[test]
fn check_lists_every_problem_of_every_file() {
    let endpoint = "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {name: x}\n\
                    spec:\n  authMode: nobody\n  trafic: {blue: 100}\n  deployments:\n  - {name: blue}\n";
    let files = folder(&[
        ("router.yaml", "admin: {address: \"[::1]\"}\n"),
        ("endpoints/a.yaml", endpoint),
        ("endpoints/b.yaml", "kind: Secret\n"),
        ("endpoints/c.yaml", "kind: [\n"),
    ]);
    let ended = run(&["check", &path(&files, "router.yaml"), &path(&files, "endpoints"), &path(&files, "gone.yaml")]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""), "{ended:?}");
    for part in [
        "router.yaml: admin.address: is \"[::1]\", which is not an IP address and a port",
        "a.yaml: metadata.name: is \"x\", which is not a name",
        "a.yaml: spec.authMode: is \"nobody\", which is not known",
        "a.yaml: spec.trafic: ",
        "did you mean `traffic`?",
        "a.yaml: spec.deployments[0]: does not say where its replicas are",
        "b.yaml: kind: is \"Secret\"",
        "c.yaml: ",
        "gone.yaml: cannot be read",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[test]
fn check_says_of_the_files_of_a_fleet_what_serve_does() {
    let files = folder(&[
        ("endpoints/a.yaml", &endpoint(&["127.0.0.1:1".parse().unwrap()], "{}")),
        ("empty", ""),
        ("short", "secret\n"),
        ("good", "what every router of the group knows"),
        ("broken.pem", "no PEM"),
        ("folder/a", ""),
    ]);
    let tls = |certificate: &str| format!("{{certFile: {certificate}, keyFile: {certificate}, caFile: {certificate}}}");
    let (at, lease) = ("127.0.0.1:7071", "leader");
    let settings = |more: &str, lease: &str| {
        format!(
            "endpoints: {{files: [endpoints]}}\nfleet: {{peer: {{address: \"{at}\"{more}}}, leaderLock: {{file: {lease}}}}}\n"
        )
    };
    for (text, parts) in [
        (
            settings(", secretFile: gone", lease),
            vec!["fleet.peer.secretFile: names ", "/gone, which cannot be read: No such"],
        ),
        (settings(", secretFile: empty", lease), vec!["/empty, which is shorter than 16 characters"]),
        (settings(", secretFile: short", lease), vec!["/short, which is shorter than 16 characters"]),
        (settings(", secretFile: folder", lease), vec!["/folder, which cannot be read: it is not a regular file"]),
        (
            settings(&format!(", secretFile: good, tls: {}", tls("gone.pem")), lease),
            vec!["fleet.peer.tls: ", "/gone.pem "],
        ),
        (settings(&format!(", secretFile: good, tls: {}", tls("broken.pem")), lease), vec!["fleet.peer.tls: "]),
        (
            settings("", "gone/leader"),
            vec!["fleet.leaderLock.file: names ", "gone/leader, but its folder ", ": No such file"],
        ),
        (settings("", "folder"), vec!["fleet.leaderLock.file: names ", "/folder, which is a folder"]),
    ] {
        std::fs::write(files.path().join("router.yaml"), &text).unwrap();
        let checked = run(&["check", &path(&files, "router.yaml")]);
        let serve = ["serve", "--config", &path(&files, "router.yaml")];
        let served = ProgramProcess::start(command(&serve).envs(ANY_PORTS)).wait_for_exit();
        assert_eq!((checked.code, served.code), (Some(1), Some(78)), "{text}: {checked:?} {served:?}");
        for part in parts {
            assert!(checked.stdout.contains(part) && served.stderr.contains(part), "{part}: {checked:?} {served:?}");
        }
    }
    std::fs::write(files.path().join("router.yaml"), settings(", secretFile: good", lease)).unwrap();
    assert_eq!(run(&["check", &path(&files, "router.yaml")]).code, Some(0));
}

#[test]
fn a_taken_port_is_said_and_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    for (arguments, what) in [
        (vec!["demo", "--port", "0", "--admin-port", &port], format!("cannot listen on {address} for admin")),
        (vec!["demo", "--port", &port, "--admin-port", "0"], format!("cannot listen on {address} for scoring")),
        (vec!["model-server", "--port", &port], format!("the model server cannot run on {address}")),
    ] {
        let ended = run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.contains(&what) && ended.stderr.contains("in use"), "{what}: {}", ended.stderr);
    }
}

/// A model server on a port of its own choice.
fn model_server(options: &[&str]) -> (ProgramProcess, SocketAddr) {
    let server = ProgramProcess::start(&mut command(&[&["model-server", "--port", "0"], options].concat()));
    let address = server.wait_for_stdout_line("model server on http://").parse().unwrap();
    (server, address)
}

async fn ask(address: SocketAddr) -> crate::harness::Answer {
    call(address, Request::post("/score").body(Full::from(ROWS)).unwrap()).await
}

#[tokio::test]
async fn the_model_server_ends_on_sigterm() {
    let (server, address) = model_server(&["--name", "blue"]);
    let answer = ask(address).await;
    assert_eq!((answer.text().as_str(), answer.header("x-model-name")), (PREDICTIONS, "blue"));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code, Some(0));
}

#[tokio::test]
async fn the_model_server_takes_as_long_as_it_is_told() {
    let (_server, address) = model_server(&["--delay-ms", "150"]);
    let answer = ask(address).await;
    assert!(answer.header("x-ms-run-fn-exec-ms").parse::<f64>().unwrap() >= 150.0, "{answer:?}");
}

#[tokio::test]
async fn the_model_server_lets_what_is_too_much_wait() {
    let (_server, address) = model_server(&["--delay-ms", "150", "--concurrency", "1"]);
    let started = Instant::now();
    tokio::join!(ask(address), ask(address));
    assert!(started.elapsed() >= Duration::from_millis(300), "one after the other");
    let (_server, address) = model_server(&["--delay-ms", "2500", "--concurrency", "2"]);
    let started = Instant::now();
    tokio::join!(ask(address), ask(address));
    assert!(started.elapsed() < Duration::from_millis(5000), "both at once");
}

#[tokio::test]
async fn the_model_server_fails_when_it_is_told() {
    let (_server, address) = model_server(&["--fail-rate", "1"]);
    let answer = ask(address).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-ms-run-function-failed")), (500, "True"));
}

#[tokio::test]
async fn the_model_server_streams() {
    let (_server, address) = model_server(&["--stream"]);
    let answer = ask(address).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.text(), "data: 11055.977245525679\n\ndata: 4503.079536107787\n\ndata: [DONE]\n\n");
}

#[test]
fn the_model_server_refuses_what_makes_no_sense() {
    for (option, value, what) in [("--fail-rate", "2", "fail-rate"), ("--concurrency", "0", "concurrency")] {
        let ended = run(&["model-server", "--port", "0", option, value]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.stderr.contains(what), "{}", ended.stderr);
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for name in ["demo", "serve", "check", "model-server"] {
        let ended = run(&[name, "--help"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(ended.stdout.contains(&format!("Example: inference-router {name} ")), "{}", ended.stdout);
    }
    let ended = run(&["--help"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.contains("Start with: inference-router demo"), "{}", ended.stdout);
    let ended = run(&["--version"]);
    assert_eq!(
        (ended.code, ended.stdout),
        (Some(0), concat!("inference-router ", env!("CARGO_PKG_VERSION")).to_owned())
    );
}
