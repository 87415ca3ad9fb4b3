//! Promises about the life of the router and what operators see of it: shutdown, health, metrics, the access log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use inference_router::app::AppRunError;
use inference_router::config::WorkerCount;
use inference_router::state::lifecycle::LifecyclePhase;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::harness::{
    KEY, Model, Router, call, document, endpoint, full_body, replace, score, send, send_raw, try_call, with_timeout,
};
use crate::raw_peers::{
    ANSWER, RefusingPort, connect_and_send, join_task, metric_sum, next_arrival, read_eof, read_message, request,
    shut_down, spawn_scoring, start_handover_model, streaming, wait_until_busy_and_queued, wait_until_idle,
};

const LONG_TIMEOUTS: &str = "{maxConcurrentRequestsPerInstance: 10, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}";

async fn wait_until_unready(router: &Router) {
    with_timeout("unready", async {
        while router.admin("/readyz").await.status != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn wait_until_refused(address: SocketAddr) {
    with_timeout("connections are refused", async {
        while let Ok(stream) = TcpStream::connect(address).await {
            drop(stream);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn wait_until_draining(router: &Router) {
    with_timeout("the drain", async {
        while router.lifecycle.phase() != LifecyclePhase::Draining {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn join_router(router: Router) -> Result<(), AppRunError> {
    with_timeout("the end of the router", tokio::task::spawn_blocking(move || router.join())).await.unwrap()
}

/// What the command `ready` says, and its exit code.
async fn run_ready_command(admin: SocketAddr) -> (Option<i32>, String) {
    let ended = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-router"));
        command.args(["ready", "--admin", &format!("http://{admin}")]).stdin(Stdio::null()).output().unwrap()
    });
    let ended = with_timeout("the end of `ready`", ended).await.unwrap();
    (ended.status.code(), String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap())
}

#[tokio::test]
async fn a_router_nobody_is_at_is_not_ready() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, said) = run_ready_command(closed).await;
    assert!(code == Some(1) && said.contains("is a router running there?"), "{code:?} {said}");
}

#[tokio::test]
async fn a_router_that_serves_is_alive_and_ready() {
    let model = Model::named("ok").await;
    let router = Router::start(&[&endpoint(&[model.address], LONG_TIMEOUTS)]);
    assert_eq!(router.score("{}").await.status, 200);
    assert_eq!(router.admin("/healthz").await.status, 200);
    let ready = router.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    assert_eq!(ready.json()["problems"], serde_json::json!([]));
    let (code, said) = run_ready_command(router.admin).await;
    assert!(code == Some(0) && said.contains("ready"), "{code:?} {said}");
    assert_eq!(router.admin("/nothing").await.status, 404);
    shut_down(router).await;
}

#[tokio::test]
async fn the_admin_pages_are_not_on_the_scoring_listener() {
    let model = Model::named("ok").await;
    let router = Router::start(&[&endpoint(&[model.address], LONG_TIMEOUTS)]);
    for path in ["/metrics", "/api/endpoints"] {
        let answer = call(router.scoring, Request::get(path).body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    shut_down(router).await;
}

#[tokio::test]
async fn a_router_told_to_stop_is_unready_first_then_drains_then_ends() {
    for worker_count in [1, 2] {
        let (model, mut arrivals) = Model::manual().await;
        let mut router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
            settings.workers = WorkerCount::Count(worker_count.try_into().unwrap());
            settings.shutdown.unready_delay = Duration::from_millis(1500);
            settings.shutdown.drain_timeout = Duration::from_secs(60);
        });
        // An idle connection that has served a request.
        let mut kept = connect_and_send(router.scoring, &request("POST", "{}")).await;
        next_arrival(&mut arrivals).await.answer("ok");
        assert!(read_message(&mut kept).await.unwrap().starts_with("HTTP/1.1 200 "));
        let plain = spawn_scoring(&router, "plain");
        let asked = next_arrival(&mut arrivals).await;
        let streamed = tokio::spawn(send(router.scoring, score("streamed").map(BodyExt::boxed)));
        let (writer, response) = streaming();
        next_arrival(&mut arrivals).await.respond(response);
        writer.send(Bytes::from_static(b"one")).unwrap();
        let mut body = join_task(streamed).await.unwrap().into_body();

        let told = Instant::now();
        router.begin_shutdown();
        wait_until_unready(&router).await;
        // Not ready, but still there for everybody who does not know yet: on new connections and on old ones.
        let late = spawn_scoring(&router, "late");
        next_arrival(&mut arrivals).await.answer("ok");
        assert_eq!(join_task(late).await.status, 200);
        kept.write_all(request("POST", "{}").as_bytes()).await.unwrap();
        next_arrival(&mut arrivals).await.answer("ok");
        assert!(read_message(&mut kept).await.unwrap().starts_with("HTTP/1.1 200 "));
        assert_eq!(router.admin("/healthz").await.status, 200, "alive while it leaves");

        wait_until_draining(&router).await;
        assert!(told.elapsed() >= Duration::from_millis(1500), "{:?}", told.elapsed());
        read_eof(&mut kept).await;
        assert_eq!(router.admin("/readyz").await.status, 503);
        assert_eq!(run_ready_command(router.admin).await.0, Some(1));
        assert_eq!(router.admin("/healthz").await.status, 200);
        // What is in flight goes on as if nothing were.
        writer.send(Bytes::from_static(b"two")).unwrap();
        for expected in ["one", "two"] {
            let frame = with_timeout("a frame", body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), expected);
        }
        asked.answer("ok");
        assert_eq!(join_task(plain).await.text(), "ok");
        drop(writer);
        assert!(with_timeout("the end of the body", body.frame()).await.is_none());
        join_router(router).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_without_a_request_does_not_keep_the_router_from_ending() {
    let model = Model::named("ok").await;
    let mut router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
        settings.shutdown.drain_timeout = Duration::from_secs(300);
        settings.limits.header_read_timeout = Duration::from_secs(300);
    });
    let mut unused = connect_and_send(router.scoring, "").await;
    // Accepted in order: when this one is answered, the router has the other, too.
    assert_eq!(router.score("{}").await.status, 200);
    router.begin_shutdown();
    read_eof(&mut unused).await;
    join_router(router).await.unwrap();
}

#[tokio::test]
async fn new_connections_are_refused_during_the_drain() {
    let (model, mut arrivals) = Model::manual().await;
    let mut router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
        settings.shutdown.drain_timeout = Duration::from_secs(60);
    });
    let plain = spawn_scoring(&router, "{}");
    let asked = next_arrival(&mut arrivals).await;
    router.begin_shutdown();
    wait_until_draining(&router).await;
    wait_until_refused(router.scoring).await;
    assert_eq!(
        router.lifecycle.phase(),
        LifecyclePhase::Draining,
        "refused while it drains, not only when it has gone"
    );
    asked.answer("ok");
    assert_eq!(join_task(plain).await.status, 200);
    join_router(router).await.unwrap();
}

#[tokio::test]
async fn queued_requests_are_served_during_the_drain() {
    let (model, mut arrivals) = Model::manual().await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}";
    let mut router = Router::start(&[&endpoint(&[model.address], settings)]);
    let first = spawn_scoring(&router, "first");
    let asked = next_arrival(&mut arrivals).await;
    let second = spawn_scoring(&router, "second");
    wait_until_busy_and_queued(&router, 1, 1).await;
    router.begin_shutdown();
    wait_until_draining(&router).await;
    asked.answer("ok");
    next_arrival(&mut arrivals).await.answer("ok");
    assert_eq!(join_task(first).await.status, 200);
    assert_eq!(join_task(second).await.status, 200);
    join_router(router).await.unwrap();
}

#[tokio::test]
async fn the_drain_timeout_cuts_what_is_still_in_flight_and_says_so() {
    let (model, mut arrivals) = Model::manual().await;
    let mut router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
        settings.shutdown.drain_timeout = Duration::from_millis(300);
    });
    let cut = tokio::spawn(try_call(router.scoring, score("{}")));
    let asked = next_arrival(&mut arrivals).await;
    let told = Instant::now();
    router.begin_shutdown();
    let ended = join_router(router).await;
    assert!(matches!(ended, Err(AppRunError::DrainTimedOut)), "{ended:?}");
    assert!(told.elapsed() >= Duration::from_millis(300));
    // No good answer, whatever else.
    if let Ok(answer) = join_task(cut).await {
        assert!(answer.status.is_server_error(), "{answer:?}");
    }
    drop(asked);
}

#[tokio::test]
async fn an_idle_router_ends_at_once() {
    let model = Model::named("ok").await;
    let mut router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
        settings.shutdown.drain_timeout = Duration::from_secs(300);
    });
    let mut kept = connect_and_send(router.scoring, &request("POST", "{}")).await;
    assert!(read_message(&mut kept).await.unwrap().starts_with("HTTP/1.1 200 "));
    router.begin_shutdown();
    read_eof(&mut kept).await;
    // `kept` is still open on this side: the router does not wait for its client.
    let told = Instant::now();
    join_router(router).await.unwrap();
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
}

/// A router with something in every metric, and the same for every part of it.
async fn start_router_with_all_metrics() -> (Router, Vec<Model>, RefusingPort) {
    let (sender, mut held) = mpsc::unbounded_channel();
    let model = Model::http(move |request: Request<_>| {
        let sender = sender.clone();
        async move {
            let query = request.uri().query();
            if query == Some("hold") {
                let (answer, answered) = oneshot::channel::<()>();
                let _ = sender.send(answer);
                let _ = answered.await;
            }
            let status = query.and_then(|query| query.parse::<u16>().ok()).unwrap_or(200);
            Response::builder().status(status).body(full_body("answer")).unwrap()
        }
    })
    .await;
    let (slow, mut arrivals) = start_handover_model().await;
    let refusing = RefusingPort::bind();
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 0, requestTimeoutMs: 60000}";
    let text = document(
        "traffic: {blue: 100, green: 0}",
        &format!(
            "- {{name: blue, instances: [\"{}\", \"{}\"], requestSettings: {LONG_TIMEOUTS}}}\n\
             - {{name: green, instances: [\"{}\"], requestSettings: {settings}}}",
            refusing.address, model.address, slow.address
        ),
    );
    let router = Router::start(&[&text]);
    let with_query = |query: &str| {
        let mut request = score("{}");
        *request.uri_mut() = format!("/api/v1/endpoint/my-endpoint/score?{query}").parse().unwrap();
        request
    };
    for query in ["200", "404", "500"] {
        for _ in 0..5 {
            call(router.scoring, with_query(query)).await;
        }
    }
    // While one works, the other is the less loaded one; it refuses, so the next is tried again.
    let holding = tokio::spawn(call(router.scoring, with_query("hold")));
    let answer = next_arrival(&mut held).await;
    assert_eq!(call(router.scoring, with_query("200")).await.status, 200);
    answer.send(()).unwrap();
    assert_eq!(join_task(holding).await.status, 200);
    // Green has one slot: the second is refused.
    let to_green = || {
        let mut request = score("{}");
        request.headers_mut().insert("azureml-model-deployment", "green".parse().unwrap());
        request
    };
    let first = tokio::spawn(call(router.scoring, to_green()));
    let mut arrived = next_arrival(&mut arrivals).await;
    assert_eq!(call(router.scoring, to_green()).await.status, 503);
    arrived.write(ANSWER).await;
    assert_eq!(join_task(first).await.status, 200);
    // Odd requests: nothing of them is to be seen in a label.
    let mut wrong_key = score("{}");
    wrong_key.headers_mut().insert("authorization", "Bearer zzmarker-key".parse().unwrap());
    assert_eq!(call(router.scoring, wrong_key).await.status, 401);
    let mut no_key = score("{}");
    no_key.headers_mut().remove("authorization");
    assert_eq!(call(router.scoring, no_key).await.status, 401);
    let mut no_deployment = score("{}");
    no_deployment.headers_mut().insert("azureml-model-deployment", "zzmarker".parse().unwrap());
    assert_eq!(call(router.scoring, no_deployment).await.status, 404);
    let mut cased = score("{}");
    cased.headers_mut().insert("azureml-model-deployment", "GREEN".parse().unwrap());
    let cased = tokio::spawn(call(router.scoring, cased));
    // Names are compared without case; the metrics say them as configured. Over the kept connection.
    arrived = arrived.next_request().await;
    arrived.write(ANSWER).await;
    assert_eq!(join_task(cased).await.status, 200);
    for path in ["/api/v1/endpoint/zzmarker/score", "/zzmarker", "/api/v1/endpoint/zzmarker%22%0a%7b/score?zzmarker"] {
        let answer = call(router.scoring, Request::post(path).body(Full::default()).unwrap()).await;
        assert!(answer.status.is_client_error(), "{path}: {answer:?}");
    }
    let mut odd = score("{\"zzmarker\": 1}");
    *odd.uri_mut() = "/api/v1/endpoint/MY-ENDPOINT/zzmarker?zzmarker=1".parse().unwrap();
    *odd.method_mut() = "ZZMARKER".parse().unwrap();
    for (name, value) in [
        ("x-ms-client-request-id", "zzmarker"),
        ("user-agent", "zzmarker"),
        ("x-zzmarker", "zzmarker"),
        ("host", "zzmarker"),
    ] {
        odd.headers_mut().insert(name, value.parse().unwrap());
    }
    call(router.scoring, odd).await;
    assert!(send_raw(router.scoring, "zzmarker zzmarker zzmarker\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let text = std::fs::read_to_string(router.file("0.yaml")).unwrap();
    replace(&router.file("0.yaml"), &text.replace("maxQueueWaitMs: 0", "maxQueueWaitMs: 1"));
    let changed = |all: &Value| all["endpoints"][0]["deployments"][1]["requestSettings"]["maxQueueWaitMs"] == 1;
    router.wait_until("a reload", changed).await;
    wait_until_idle(&router).await;
    (router, vec![model, slow], refusing)
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let (router, _models, _refusing) = start_router_with_all_metrics().await;
    let answer = router.admin("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain"), "{:?}", answer.headers);
    let text = answer.text();
    let (mut help, mut kinds, mut seen) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(!words.trim().is_empty() && help.insert(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{line}");
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series), "twice: {series}");
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix).filter(|family| kinds.get(family) == Some(&"histogram")));
            let family = family.unwrap_or(name);
            assert!(help.contains(family) && kinds.contains_key(family), "no HELP or TYPE before: {line}");
            assert!(family.starts_with("inference_router_") || family.starts_with("process_"), "{line}");
        }
    }
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    if let Ok(mut promtool) = promtool {
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
    }
    shut_down(router).await;
}

/// The labels of each series in a metrics page, by family.
fn labels_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    lines.map(|rest| rest.rsplit_once('}').unwrap().0).collect()
}

#[tokio::test]
async fn every_metric_is_there_after_a_few_requests() {
    let (router, _models, _refusing) = start_router_with_all_metrics().await;
    let text = router.admin("/metrics").await.text();
    let both = ["endpoint_name", "deployment_name"];
    let wanted: [(&str, &[&str]); 17] = [
        ("requests_total", &["endpoint_name", "deployment_name", "code", "model_code"]),
        ("request_duration_seconds_bucket", &both),
        ("routing_duration_seconds_bucket", &[]),
        ("queue_wait_seconds_bucket", &both),
        ("model_duration_seconds_bucket", &both),
        ("requests_in_flight", &both),
        ("queue_length", &both),
        ("slots", &["endpoint_name", "deployment_name", "state"]),
        ("request_bytes_total", &both),
        ("response_bytes_total", &both),
        ("requests_rejected_total", &["reason"]),
        ("retries_total", &["reason"]),
        ("auth_failures_total", &["reason"]),
        ("replicas", &["endpoint_name", "deployment_name", "state"]),
        ("connections", &["listener"]),
        ("config_reloads_total", &["result"]),
        ("build_info", &[]),
    ];
    let mut missing = Vec::new();
    for (name, labels) in wanted {
        let name = format!("inference_router_{name}");
        let series = labels_of(&text, &name);
        let plain = text.lines().any(|line| line.starts_with(&format!("{name} ")));
        if series.is_empty() && !plain {
            missing.push(name);
            continue;
        }
        for label in labels {
            if !series.iter().any(|labels| labels.contains(&format!("{label}=\""))) {
                missing.push(format!("{name}{{{label}}}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    for state in ["free", "busy", "draining"] {
        let label = format!("state=\"{state}\"");
        assert!(labels_of(&text, "inference_router_slots").iter().any(|labels| labels.contains(&label)), "{state}");
    }
    for state in ["ready", "pending", "ejected", "draining"] {
        let label = format!("state=\"{state}\"");
        assert!(labels_of(&text, "inference_router_replicas").iter().any(|labels| labels.contains(&label)), "{state}");
    }
    shut_down(router).await;
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let (router, _models, _refusing) = start_router_with_all_metrics().await;
    let requests = async |part: &str| metric_sum(&router, "inference_router_requests_total", part).await;
    assert_eq!(requests("code=\"404\",deployment_name=\"blue\"").await, 5.0);
    assert_eq!(requests("code=\"502\",deployment_name=\"blue\"").await, 5.0, "a model's 500");
    assert_eq!(requests("model_code=\"500\"").await, 5.0);
    assert_eq!(requests("deployment_name=\"green\"").await, 3.0);
    assert_eq!(metric_sum(&router, "inference_router_auth_failures_total", "").await, 2.0);
    assert!(metric_sum(&router, "inference_router_requests_rejected_total", "").await >= 1.0);
    assert_eq!(metric_sum(&router, "inference_router_requests_in_flight", "").await, 0.0);
    assert_eq!(metric_sum(&router, "inference_router_queue_length", "").await, 0.0);
    let answered = metric_sum(&router, "inference_router_response_bytes_total", "deployment_name=\"green\"").await;
    assert!(answered >= 4.0, "{answered}");
    shut_down(router).await;
}

#[tokio::test]
async fn histograms_are_fine_enough_for_a_hundred_microseconds() {
    let model = Model::named("ok").await;
    let router = Router::start(&[&endpoint(&[model.address], LONG_TIMEOUTS)]);
    assert_eq!(router.score("{}").await.status, 200);
    wait_until_idle(&router).await;
    let text = router.admin("/metrics").await.text();
    for name in ["request_duration", "routing_duration", "model_duration"] {
        let buckets = labels_of(&text, &format!("inference_router_{name}_seconds_bucket"));
        let bounds =
            buckets.iter().filter_map(|labels| labels.split("le=\"").nth(1)?.split('"').next()?.parse::<f64>().ok());
        let fine = bounds.filter(|bound| *bound <= 0.000_25).count();
        assert!(fine >= 2, "{name}: {buckets:?}");
    }
    shut_down(router).await;
}

#[tokio::test]
async fn nothing_that_clients_send_is_in_a_label() {
    let (router, _models, _refusing) = start_router_with_all_metrics().await;
    let text = router.admin("/metrics").await.text();
    let marked: Vec<&str> = text.lines().filter(|line| line.to_ascii_lowercase().contains("zzmarker")).collect();
    assert!(marked.is_empty(), "{marked:?}");
    assert!(!text.contains("MY-ENDPOINT") && !text.contains("GREEN"), "names as configured, not as sent");
    assert!(!text.contains(KEY));
    shut_down(router).await;
}

/// What is written, for the test to read.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}

fn logging(document: &str) -> (Router, Buffer) {
    let (folder, buffer) = (tempfile::tempdir().unwrap(), Buffer::default());
    std::fs::write(folder.path().join("0.yaml"), document).unwrap();
    let router = Router::start_in(folder, Box::new(buffer.clone()), |settings| settings.log.access = true);
    (router, buffer)
}

#[tokio::test]
async fn the_access_log_has_a_line_per_request_with_azures_columns() {
    let model = Model::http(|_| async { Response::builder().status(200).body(full_body("0123456789")).unwrap() }).await;
    let (router, log) = logging(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut request = score("{\"a\": 1}");
    request.headers_mut().insert("x-ms-client-request-id", "my-id_1".parse().unwrap());
    request.headers_mut().insert("user-agent", "a".repeat(100).parse().unwrap());
    let answer = call(router.scoring, request).await;
    assert_eq!(answer.status, 200);
    wait_until_idle(&router).await;
    shut_down(router).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    for (column, expected) in [
        ("Method", Value::from("POST")),
        ("EndpointName", "my-endpoint".into()),
        ("DeploymentName", "blue".into()),
        ("Protocol", "HTTP/1.1".into()),
        ("ResponseCode", 200.into()),
        ("ModelStatusCode", 200.into()),
        ("RequestPayloadSize", 8.into()),
        ("ResponsePayloadSize", 10.into()),
        ("UserAgent", "a".repeat(70).into()),
        ("XRequestId", answer.header("x-request-id").into()),
        ("XMSClientRequestId", "my-id_1".into()),
    ] {
        assert_eq!(line[column], expected, "{column}: {line}");
    }
    assert!(line["Path"].as_str().unwrap().starts_with("/api/v1/endpoint/my-endpoint/score"), "{line}");
    for column in ["ResponseCodeReason", "ModelStatusReason"] {
        assert!(!line[column].is_null(), "{column}: {line}");
    }
    for column in ["TotalDurationMs", "RequestDurationMs", "ResponseDurationMs"] {
        assert!(line[column].is_number(), "{column}: {line}");
    }
    for column in ["RequestThrottlingDelayMs", "ResponseThrottlingDelayMs"] {
        assert_eq!(line[column].as_f64(), Some(0.0), "{column}: {line}");
    }
    assert!(line["TotalDurationMs"].as_f64() >= line["ResponseDurationMs"].as_f64(), "{line}");
}

#[tokio::test]
async fn each_request_has_a_line_whatever_became_of_it() {
    let (model, mut arrivals) = start_handover_model().await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 0, requestTimeoutMs: 60000}";
    let (router, log) = logging(&endpoint(&[model.address], settings));
    let first = spawn_scoring(&router, "{}");
    let mut arrived = next_arrival(&mut arrivals).await;
    assert_eq!(router.score("{}").await.status, 503);
    arrived.write("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(join_task(first).await.status, 502);
    wait_until_idle(&router).await;
    let leaving = connect_and_send(router.scoring, &request("POST", "leaving")).await;
    arrived = arrived.next_request().await;
    drop(leaving);
    read_eof(&mut arrived.stream).await;
    drop(arrived);
    wait_until_idle(&router).await;
    let closed = spawn_scoring(&router, "{}");
    drop(next_arrival(&mut arrivals).await);
    assert_eq!(join_task(closed).await.status, 502);
    let missing = Request::post("/api/v1/endpoint/missing/score").body(Full::default()).unwrap();
    assert_eq!(call(router.scoring, missing).await.status, 404);
    let mut no_key = score("{}");
    no_key.headers_mut().remove("authorization");
    assert_eq!(call(router.scoring, no_key).await.status, 401);
    shut_down(router).await;
    let lines = log.lines();
    let codes = |column: &str| {
        let mut codes: Vec<i64> = lines.iter().map(|line| line[column].as_i64().unwrap_or(0)).collect();
        codes.sort_unstable();
        codes
    };
    assert_eq!(lines.len(), 6, "{lines:#?}");
    let codes_now = codes("ResponseCode");
    for code in [401, 404, 502, 502, 503] {
        assert!(codes_now.contains(&code), "{code}: {lines:#?}");
    }
    assert_eq!(codes("ModelStatusCode").last(), Some(&500), "{lines:#?}");
    let leaving = lines.iter().find(|line| ![401, 404, 502, 503].contains(&line["ResponseCode"].as_i64().unwrap_or(0)));
    assert!(leaving.is_some_and(|line| line["DeploymentName"] == "blue"), "the one who left: {lines:#?}");
}

#[tokio::test]
async fn the_access_log_says_nothing_of_keys_and_bodies_and_is_one_line_whatever_is_sent() {
    let model = Model::http(|_| async { Response::new(full_body("the-answer-of-the-model")) }).await;
    let (router, log) = logging(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut requests = 0;
    let mut wrong_key = score("the-body-of-the-client");
    wrong_key.headers_mut().insert("authorization", "Bearer a-wrong-key-000111".parse().unwrap());
    for request in [score("the-body-of-the-client"), wrong_key] {
        call(router.scoring, request).await;
        requests += 1;
    }
    let mut odd = score("the-body-of-the-client");
    odd.headers_mut().insert("user-agent", http::HeaderValue::from_bytes(b"a\"b\\c\xff\xfe\td{}").unwrap());
    odd.headers_mut().insert("x-ms-client-request-id", "a\"b\\c{}\t,".parse().unwrap());
    *odd.uri_mut() = "/api/v1/endpoint/my-endpoint/a%22b%0a%5c?q=%22".parse().unwrap();
    call(router.scoring, odd).await;
    requests += 1;
    wait_until_idle(&router).await;
    shut_down(router).await;
    assert_eq!(log.lines().len(), requests);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for secret in [KEY, "a-wrong-key-000111", "the-body-of-the-client", "the-answer-of-the-model"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn without_the_access_log_no_line_is_written() {
    let model = Model::named("ok").await;
    let (folder, log) = (tempfile::tempdir().unwrap(), Buffer::default());
    std::fs::write(folder.path().join("0.yaml"), endpoint(&[model.address], LONG_TIMEOUTS)).unwrap();
    let router = Router::start_in(folder, Box::new(log.clone()), |_| ());
    assert_eq!(router.score("{}").await.status, 200);
    shut_down(router).await;
    assert!(log.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_connection_over_the_limit_is_answered_503_and_closed() {
    for worker_count in [1, 2] {
        let model = Model::named("ok").await;
        let router = Router::start_with(&[&endpoint(&[model.address], LONG_TIMEOUTS)], |settings| {
            settings.limits.max_connections = 3;
            settings.workers = WorkerCount::Count(worker_count.try_into().unwrap());
        });
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut stream = connect_and_send(router.scoring, &request("POST", "{}")).await;
            assert!(read_message(&mut stream).await.unwrap().starts_with("HTTP/1.1 200 "));
            kept.push(stream);
        }
        for _ in 0..3 {
            // Reads to the end: it is closed, whatever the client sent or did not send.
            let answer = send_raw(router.scoring, request("POST", "{}")).await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
            let answer = send_raw(router.scoring, "").await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
        }
        for stream in &mut kept {
            stream.write_all(request("POST", "{}").as_bytes()).await.unwrap();
            assert!(read_message(stream).await.unwrap().starts_with("HTTP/1.1 200 "), "the others are served");
        }
        kept.pop();
        with_timeout("the place of a connection that was closed", async {
            loop {
                let mut stream = connect_and_send(router.scoring, &request("POST", "{}")).await;
                if read_message(&mut stream).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
                    break;
                }
            }
        })
        .await;
        drop(kept);
        shut_down(router).await;
    }
}

#[tokio::test]
async fn open_connections_are_counted() {
    let model = Model::named("ok").await;
    let router = Router::start(&[&endpoint(&[model.address], LONG_TIMEOUTS)]);
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_and_send(router.scoring, &request("POST", "{}")).await;
        assert!(read_message(&mut stream).await.unwrap().starts_with("HTTP/1.1 200 "));
        kept.push(stream);
    }
    let open = async || metric_sum(&router, "inference_router_connections", "listener=\"scoring\"").await;
    assert_eq!(open().await, 3.0);
    drop(kept);
    with_timeout("no connection", async { while open().await != 0.0 {} }).await;
    shut_down(router).await;
}
