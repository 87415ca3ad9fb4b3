//! Promises of `bandwidthLimitBytesPerSecond`: data over the limit waits, copies stop first, and the delay is reported.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpStream;

use crate::harness::{
    Answer, Model, Router, call, document, full_body, raw_scoring_request, replace, score, send, with_timeout,
};
use crate::http::connect_http2;

const MEGABYTE: usize = 1_000_000;

/// A model that answers `0`, or so many megabytes, as the request's `x-megabytes` says.
async fn start_sized_model() -> Model {
    let model = Model::http(|request| async move {
        if request.headers().contains_key("x-hang") {
            std::future::pending().await
        }
        let megabytes =
            request.headers().get("x-megabytes").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        let _ = request.into_body().collect().await;
        Response::new(full_body(if megabytes == 0 {
            Bytes::from_static(b"0")
        } else {
            vec![b'x'; megabytes * MEGABYTE].into()
        }))
    });
    model.await
}

/// One megabyte a second, of which one may come at once.
fn limited_document(model: &Model, more: &str) -> String {
    let address = model.address;
    let of = format!(
        "instances: [\"{address}\"], requestSettings: {{maxConcurrentRequestsPerInstance: 64, requestTimeoutMs: 700}}"
    );
    document(
        &format!("bandwidthLimitBytesPerSecond: {MEGABYTE}\n  traffic: {{blue: 100}}{more}"),
        &format!("- {{name: blue, {of}}}\n- {{name: shadow, {of}}}"),
    )
}

fn large(megabytes: usize) -> Request<Full<Bytes>> {
    let mut request = score("");
    request.headers_mut().insert("x-megabytes", megabytes.into());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request
}

/// Milliseconds that trailers tell, of the request and of the answer.
fn trailer_delays_ms(trailers: Option<&HeaderMap>) -> (u64, u64) {
    let trailers = trailers.expect("trailers");
    let of = |which: &str| {
        let name = format!("ms-azureml-bandwidth-{which}-delay-ms");
        trailers[&name].to_str().unwrap().parse().unwrap()
    };
    (of("request"), of("response"))
}

async fn measure(answer: impl Future<Output = Answer>) -> (Answer, Duration) {
    let begun = Instant::now();
    let answer = answer.await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer, begun.elapsed())
}

#[tokio::test]
async fn an_answer_over_the_limit_takes_its_time_and_says_so() {
    let model = start_sized_model().await;
    let router = Router::start(&[&limited_document(&model, "")]);
    let (answer, took) = measure(call(router.scoring, large(2))).await;
    assert_eq!(answer.body.len(), 2 * MEGABYTE);
    let (request, response) = trailer_delays_ms(answer.trailers.as_ref());
    // The second of two megabytes has to wait; what sending takes anyway is no delay.
    assert!(
        took >= Duration::from_millis(990) && request == 0 && (500..2_000).contains(&response),
        "{took:?} {response}"
    );
    assert!(!answer.headers.contains_key("content-length") && answer.headers.contains_key("trailer"), "{answer:?}");
}

#[tokio::test]
async fn who_takes_no_trailers_gets_the_length_and_http2_gets_both() {
    let model = start_sized_model().await;
    let router = Router::start(&[&limited_document(&model, "")]);
    let mut plain = large(1);
    plain.headers_mut().remove("te");
    let answer = call(router.scoring, plain).await;
    assert!(answer.header("content-length") == MEGABYTE.to_string() && answer.trailers.is_none(), "{answer:?}");
    let mut client = connect_http2(&router).await;
    let mut request = large(1);
    *request.uri_mut() = "http://router/api/v1/endpoint/my-endpoint/score".parse().unwrap();
    request.headers_mut().remove("te");
    let request = request.map(|_| full_body(""));
    let answer = with_timeout("an answer", client.send_request(request)).await.unwrap();
    let body = with_timeout("its body", answer.into_body().collect()).await.unwrap();
    assert!(trailer_delays_ms(body.trailers()).1 >= 500, "{:?}", body.trailers());
    assert_eq!(body.to_bytes().len(), MEGABYTE);
}

#[tokio::test]
async fn a_request_over_the_limit_waits_and_its_model_is_not_to_blame() {
    let model = start_sized_model().await;
    let router = Router::start(&[&limited_document(&model, "")]);
    let mut request = score(vec![b'x'; 2 * MEGABYTE]);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    // Longer than `requestTimeoutMs`.
    let (answer, took) = measure(call(router.scoring, request)).await;
    let (request, response) = trailer_delays_ms(answer.trailers.as_ref());
    assert!(took >= Duration::from_millis(990) && request >= 900, "{took:?} {request} {response}");
}

#[tokio::test]
async fn all_clients_of_an_endpoint_share_the_limit_and_no_other_endpoint_has_it() {
    let model = start_sized_model().await;
    let other = document("traffic: {blue: 100}", &format!("- {{name: blue, instances: [\"{}\"]}}", model.address));
    let router = Router::start(&[&limited_document(&model, ""), &other.replace("my-endpoint", "other")]);
    let begun = Instant::now();
    let two = async { tokio::join!(call(router.scoring, large(1)), call(router.scoring, large(1))) };
    let free = async {
        let mut request = large(3);
        *request.uri_mut() = "/api/v1/endpoint/other/score".parse().unwrap();
        call(router.scoring, request).await
    };
    tokio::select! {
        biased;
        answer = free => assert!(answer.trailers.is_none() && answer.body.len() == 3 * MEGABYTE),
        _ = two => panic!("the limited ones are done first"),
    }
    drop(tokio::join!(call(router.scoring, large(1)), call(router.scoring, large(1))));
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn copies_are_the_first_to_go() {
    let (model, shadow) = (start_sized_model().await, start_sized_model().await);
    let of = limited_document(&model, "\n  mirrorTraffic: {shadow: 50}");
    let at = of.rfind(&model.address.to_string()).unwrap();
    let of = of[..at].to_owned() + &of[at..].replace(&model.address.to_string(), &shadow.address.to_string());
    let router = Router::start(&[&of]);
    for _ in 0..20 {
        measure(call(router.scoring, score("{}"))).await;
    }
    let count = async |result: &str| {
        let series =
            "inference_router_mirror_requests_total{deployment_name=\"shadow\",endpoint_name=\"my-endpoint\",result=";
        router.metric(&format!("{series}\"{result}\"}}")).await.unwrap_or_default()
    };
    assert_eq!(count("over_bandwidth").await, 0.0, "there is room");
    // All there is for some time, and what comes meanwhile.
    let mut all = send(router.scoring, large(3).map(|body| body.boxed())).await.unwrap().into_body();
    let mut read = 0;
    while read < MEGABYTE / 2 {
        read += with_timeout("a piece", all.frame()).await.unwrap().unwrap().data_ref().map_or(0, Bytes::len);
    }
    let rest = tokio::spawn(all.collect());
    futures_util::future::join_all((0..20).map(|_| measure(call(router.scoring, score("{}"))))).await;
    rest.await.unwrap().unwrap();
    assert!(count("over_bandwidth").await > 0.0);
}

/// What is written, kept.
#[derive(Clone, Default)]
struct SharedLogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for SharedLogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_access_log_has_the_delays() {
    let model = start_sized_model().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("endpoint.yaml"), limited_document(&model, "")).unwrap();
    let log = SharedLogBuffer::default();
    let mut router = Router::start_in(folder, Box::new(log.clone()), |settings| settings.log.access = true);
    let answer = call(router.scoring, large(2)).await;
    let (_, told) = trailer_delays_ms(answer.trailers.as_ref());
    router.begin_shutdown();
    router.join().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&log.0.lock().unwrap()).unwrap();
    assert_eq!(line["RequestThrottlingDelayMs"], 0.0, "{line}");
    assert_eq!(line["ResponseThrottlingDelayMs"].as_f64().unwrap().floor() as u64, told, "{line}");
}

/// So many answers under way that whoever comes next waits for long.
fn spawn_large_requests(router: &Router, many: usize) -> Vec<tokio::task::JoinHandle<Answer>> {
    (0..many).map(|_| tokio::spawn(call(router.scoring, large(5)))).collect()
}

async fn abort_requests(crowd: Vec<tokio::task::JoinHandle<Answer>>) {
    for client in crowd {
        client.abort();
        // A model on a busy machine may have been late.
        assert!(client.await.map_or(true, |answer| answer.status != 200), "it cannot have been complete");
    }
}

/// A router with an access log.
fn logging(document: &str) -> (Router, SharedLogBuffer) {
    let (folder, log) = (tempfile::tempdir().unwrap(), SharedLogBuffer::default());
    std::fs::write(folder.path().join("endpoint.yaml"), document).unwrap();
    let router = Router::start_in(folder, Box::new(log.clone()), |settings| settings.log.access = true);
    (router, log)
}

/// What was logged, when all of it is: status, total time, and the delays of the request and of its answer.
fn access_log_delays(mut router: Router, log: &SharedLogBuffer) -> Vec<(u64, [f64; 3])> {
    router.begin_shutdown();
    router.join().unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let names = ["TotalDurationMs", "RequestThrottlingDelayMs", "ResponseThrottlingDelayMs"];
        (line["ResponseCode"].as_u64().unwrap(), names.map(|name| line[name].as_f64().unwrap()))
    });
    lines.collect()
}

#[tokio::test]
async fn no_delay_is_logged_that_was_not_had() {
    let model = start_sized_model().await;
    let (router, log) = logging(&limited_document(&model, ""));
    let crowd = spawn_large_requests(&router, 10);
    // The longest wait of one of them is about two seconds.
    let _ = tokio::time::timeout(Duration::from_millis(1_500), std::future::pending::<()>()).await;
    abort_requests(crowd).await;
    let lines = access_log_delays(router, &log);
    assert_eq!(lines.len(), 10);
    for (_, [total, request, response]) in &lines {
        assert!(request + response <= *total, "{lines:?}");
    }
}

#[tokio::test]
async fn a_wait_before_there_is_a_replica_is_not_given_to_the_model() {
    let model = start_sized_model().await;
    let (router, log) =
        logging(&limited_document(&model, "").replace("requestTimeoutMs: 700", "requestTimeoutMs: 1000"));
    let crowd = spawn_large_requests(&router, 30);
    with_timeout("a wait", async {
        let mut held = 0;
        while held < 300 {
            let mut small = score("{}");
            small.headers_mut().insert("te", "trailers".parse().unwrap());
            held =
                call(router.scoring, small).await.trailers.map_or(0, |trailers| trailer_delays_ms(Some(&trailers)).0);
        }
    })
    .await;
    let mut hanging = score(vec![b'x'; 1_000]);
    hanging.headers_mut().insert("x-hang", "1".parse().unwrap());
    let answer = call(router.scoring, hanging).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "model_timeout"), "{answer:?}");
    abort_requests(crowd).await;
    let lines = access_log_delays(router, &log);
    // Of all, the one with a body that waited.
    let (_, [total, held, _]) = lines.iter().find(|(code, [_, held, _])| *code == 504 && *held > 0.0).unwrap();
    println!("held for {held} ms of {total} ms");
    assert!(*held >= 300.0 && total - held <= 1_000.0 + held * 0.7, "{total} ms, of these {held} ms held back");
}

#[tokio::test]
async fn a_client_that_leaves_after_a_long_upload_frees_no_busy_replica() {
    let (model, mut asked) = Model::manual().await;
    let router =
        Router::start(&[&limited_document(&model, "").replace("requestTimeoutMs: 700", "requestTimeoutMs: 2000")]);
    let client = tokio::spawn(call(router.scoring, score(vec![b'x'; 4 * MEGABYTE])));
    let mut at_model = with_timeout("the request", asked.recv()).await.unwrap();
    while let Some(frame) = with_timeout("its body", at_model.request.body_mut().frame()).await {
        frame.unwrap();
    }
    client.abort();
    let left = "inference_router_requests_total{code=\"499\",deployment_name=\"blue\",endpoint_name=\"my-endpoint\",model_code=\"\"}";
    with_timeout("the client has left", async { while router.metric(left).await != Some(1.0) {} }).await;
    let busy = "inference_router_slots{deployment_name=\"blue\",endpoint_name=\"my-endpoint\",state=\"busy\"}";
    assert_eq!(router.metric(busy).await, Some(1.0), "the model is still at it");
    at_model.answer("done");
    with_timeout("its slot is free", async { while router.metric(busy).await != Some(0.0) {} }).await;
}

/// Another document, and the router has read it.
async fn replace_and_wait_for_reload(router: &Router, document: &str) {
    let reloads = "inference_router_config_reloads_total{result=\"ok\"}";
    let before = router.metric(reloads).await.unwrap_or_default();
    replace(&router.file("0.yaml"), document);
    with_timeout("a reload", async { while router.metric(reloads).await.unwrap_or_default() <= before {} }).await;
}

/// The limit of [`limited`], or another one, or none.
fn document_with_limit(model: &Model, limit: Option<usize>) -> String {
    let line = limit.map_or(String::new(), |limit| format!("bandwidthLimitBytesPerSecond: {limit}\n  "));
    limited_document(model, "").replace(&format!("bandwidthLimitBytesPerSecond: {MEGABYTE}\n  "), &line)
}

#[tokio::test]
async fn a_changed_limit_counts_for_who_waits_and_for_who_comes() {
    let model = start_sized_model().await;
    for higher in [Some(1_000 * MEGABYTE), None] {
        let router = Router::start(&[&document_with_limit(&model, Some(MEGABYTE / 10))]);
        // Half a minute's worth each.
        let (upload, download) = (score(vec![b'x'; 3 * MEGABYTE]), large(3));
        let waiting = [upload, download].map(|request| tokio::spawn(call(router.scoring, request)));
        let mut last = tokio::spawn(call(router.scoring, large(3)));
        let early = tokio::time::timeout(Duration::from_millis(500), &mut last).await;
        assert!(early.is_err(), "it waits: {early:?}");
        let changed = Instant::now();
        replace_and_wait_for_reload(&router, &document_with_limit(&model, higher)).await;
        measure(call(router.scoring, large(1))).await;
        for answer in waiting.into_iter().chain([last]) {
            assert_eq!(with_timeout("an answer", answer).await.unwrap().status, 200);
        }
        assert!(changed.elapsed() < Duration::from_secs(8), "{:?}", changed.elapsed());
        // And lower again: more than a second's worth waits for longer than anything else here takes.
        replace_and_wait_for_reload(&router, &document_with_limit(&model, Some(MEGABYTE / 10))).await;
        let mut slow = tokio::spawn(call(router.scoring, large(2)));
        let early = tokio::time::timeout(Duration::from_secs(3), &mut slow).await;
        assert!(early.is_err(), "{higher:?}: {early:?}");
        slow.abort();
    }
}

#[tokio::test]
async fn a_lower_limit_counts_for_who_waits() {
    let model = start_sized_model().await;
    let router = Router::start(&[&document_with_limit(&model, Some(2 * MEGABYTE))]);
    // Three seconds' worth, of which one comes at once.
    let mut answer = tokio::spawn(call(router.scoring, large(6)));
    replace_and_wait_for_reload(&router, &document_with_limit(&model, Some(MEGABYTE / 10))).await;
    let early = tokio::time::timeout(Duration::from_secs(4), &mut answer).await;
    assert!(early.is_err(), "{early:?}");
    replace_and_wait_for_reload(&router, &document_with_limit(&model, Some(100 * MEGABYTE))).await;
    assert_eq!(with_timeout("an answer", answer).await.unwrap().body.len(), 6 * MEGABYTE);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_body_is_held_back_is_missed() {
    let model = start_sized_model().await;
    let router = Router::start(&[&document_with_limit(&model, Some(65_536))]);
    // A minute's worth and more, all of which is before the last of who comes next.
    let crowd: Vec<_> = (0..80).map(|_| tokio::spawn(call(router.scoring, score(vec![b'x'; 60_000])))).collect();
    let connections = "inference_router_connections{listener=\"scoring\"}";
    with_timeout("the crowd", async { while router.metric(connections).await.unwrap_or_default() < 80.0 {} }).await;
    let mut leaving = TcpStream::connect(router.scoring).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut leaving, &raw_scoring_request(80_000)).await.unwrap();
    with_timeout("one more", async { while router.metric(connections).await.unwrap_or_default() < 81.0 {} }).await;
    drop(leaving);
    let left = "inference_router_requests_total{code=\"499\",deployment_name=\"blue\",endpoint_name=\"my-endpoint\",model_code=\"\"}";
    with_timeout("the client has left", async { while router.metric(left).await != Some(1.0) {} }).await;
    abort_requests(crowd).await;
}
