//! Promises of mirroring: what a shadow receives, and that live requests do not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{
    Answer, KEY, Model, Router, call, document, full_body, replace, score, send, unused_address, with_timeout,
};
use crate::shared::SyncStream;

/// An endpoint whose deployment `blue` at `live` has all traffic, and `shadow` copies of this many percent.
fn mirrored_document(live: SocketAddr, shadow: SocketAddr, percent: u8, of_shadow: &str) -> String {
    document(
        &format!("traffic: {{blue: 100}}\n  mirrorTraffic: {{shadow: {percent}}}"),
        &format!(
            "- {{name: blue, instances: [\"{live}\"], requestSettings: {{maxConcurrentRequestsPerInstance: 64}}}}\n\
             - {{name: shadow, instances: [\"{shadow}\"], scoringPath: /shadow, requestSettings: \
             {{maxConcurrentRequestsPerInstance: 64}}{of_shadow}}}"
        ),
    )
}

/// A model that counts, and answers at once.
async fn start_counting_model(name: &'static str) -> (Model, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let model = Model::http(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let _ = request.into_body().collect().await;
            Response::new(full_body(name))
        }
    });
    (model.await, count)
}

/// A connection for many requests, one after the other.
pub(crate) async fn connect_keep_alive(address: SocketAddr) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// How many of so many live requests did not get an answer of `blue`.
async fn count_failures(router: &Router, requests: usize) -> usize {
    let clients = (0..4).map(|_| async {
        let (mut sender, mut failed) = (connect_keep_alive(router.scoring).await, 0);
        for _ in 0..requests / 4 {
            let mut request = score("{\"data\": [1, 2, 3]}");
            request.headers_mut().insert("host", "router".parse().unwrap());
            let answer = sender.send_request(request).await.unwrap();
            let is_good = answer.status() == 200 && answer.headers()["azureml-model-deployment"] == "blue";
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            failed += usize::from(!is_good || body != "blue");
        }
        failed
    });
    futures_util::future::join_all(clients).await.into_iter().sum()
}

async fn mirror_result_count(router: &Router, result: &str) -> f64 {
    let series =
        "inference_router_mirror_requests_total{deployment_name=\"shadow\",endpoint_name=\"my-endpoint\",result=";
    router.metric(&format!("{series}\"{result}\"}}")).await.unwrap_or_default()
}

async fn wait_until_mirror_result(router: &Router, what: &str, least: f64) {
    with_timeout(what, async { while mirror_result_count(router, what).await < least {} }).await;
}

#[tokio::test]
async fn a_copy_is_the_request_but_for_its_mark_and_without_the_credential() {
    let (live, mut asked) = Model::manual().await;
    let (shadow, mut copied) = Model::manual().await;
    let router = Router::start(&[&mirrored_document(live.address, shadow.address, 50, "")]);
    let mut seen = None;
    for number in 0..8 {
        let request = Request::post("/api/v1/endpoint/my-endpoint/score?a=b")
            .header("authorization", format!("Bearer {KEY}"))
            .header("x-ms-client-request-id", "mine")
            .header("x-ms-azureml-mirror", "1")
            .header("x-else", "kept")
            .body(Full::from(format!("{{\"number\": {number}}}")));
        let answer = tokio::spawn(call(router.scoring, request.unwrap()));
        let at_live = with_timeout("the live request", asked.recv()).await.unwrap();
        assert!(!at_live.request.headers().contains_key("x-ms-azureml-mirror"), "nobody else can say it");
        let id = at_live.request.headers()["x-request-id"].clone();
        // Copied before the live one is answered.
        if let Ok(copy) = tokio::time::timeout(Duration::from_millis(200), copied.recv()).await {
            seen = Some((copy.unwrap(), id, number));
        }
        at_live.answer("live");
        let answer = answer.await.unwrap();
        assert_eq!((answer.text().as_str(), answer.header("azureml-model-deployment")), ("live", "blue"));
        if seen.is_some() {
            break;
        }
    }
    let (copy, id, number) = seen.expect("one of eight is copied");
    let headers = copy.request.headers();
    assert_eq!(copy.request.uri(), "/shadow?a=b");
    assert_eq!((&headers["x-ms-azureml-mirror"], &headers["x-request-id"]), (&"1".parse().unwrap(), &id));
    assert!(headers["x-else"] == "kept" && headers["x-ms-client-request-id"] == "mine");
    assert_eq!(headers["host"], shadow.address.to_string());
    assert!(!headers.contains_key("authorization"));
    let body = copy.request.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("{{\"number\": {number}}}"));
}

#[tokio::test]
async fn a_shadow_sees_the_credential_if_it_is_asked_for() {
    let (live, _) = start_counting_model("blue").await;
    let (shadow, mut copied) = Model::manual().await;
    let more = ", forwardAuthorization: true";
    let router = Router::start(&[&mirrored_document(live.address, shadow.address, 50, more)]);
    assert_eq!(count_failures(&router, 8).await, 0);
    let copy = with_timeout("a copy", copied.recv()).await.unwrap();
    assert_eq!(copy.request.headers()["authorization"], format!("Bearer {KEY}"));
}

#[tokio::test]
async fn calls_that_name_a_deployment_are_never_copied() {
    let (live, _) = start_counting_model("blue").await;
    let (shadow, copies) = start_counting_model("shadow").await;
    let router = Router::start(&[&mirrored_document(live.address, shadow.address, 50, "")]);
    let named = async |name: &str| {
        let mut request = score("{}");
        request.headers_mut().insert("azureml-model-deployment", name.parse().unwrap());
        call(router.scoring, request).await.text()
    };
    for _ in 0..20 {
        assert_eq!(named("blue").await, "blue");
    }
    assert_eq!(copies.load(Ordering::Relaxed), 0);
    for _ in 0..20 {
        assert_eq!(named("shadow").await, "shadow");
    }
    assert_eq!(copies.load(Ordering::Relaxed), 20, "they are the shadow's own");
}

#[tokio::test]
async fn of_twenty_thousand_requests_the_share_is_copied() {
    for percent in [10, 50] {
        let (live, _) = start_counting_model("blue").await;
        let (shadow, copies) = start_counting_model("shadow").await;
        let router = Router::start(&[&mirrored_document(live.address, shadow.address, percent, "")]);
        assert_eq!(count_failures(&router, 20_000).await, 0);
        let wanted = 20_000.0 * f64::from(percent) / 100.0;
        let copied =
            async || mirror_result_count(&router, "answered").await + mirror_result_count(&router, "no_slot").await;
        with_timeout("the copies", async { while copied().await < wanted * 0.99 {} }).await;
        let (copied, arrived) = (copied().await, copies.load(Ordering::Relaxed) as f64);
        assert!(copied <= wanted && arrived <= wanted, "never above: {copied}, {arrived} of {wanted}");
    }
}

#[tokio::test]
async fn rules_change_without_a_restart() {
    let (live, _) = start_counting_model("blue").await;
    let (shadow, copies) = start_counting_model("shadow").await;
    let with = |percent| mirrored_document(live.address, shadow.address, percent, "");
    let router = Router::start(&[&with(50)]);
    assert_eq!(count_failures(&router, 40).await, 0);
    wait_until_mirror_result(&router, "answered", 15.0).await;
    for off in [with(0), with(50).replace("mirrorTraffic: {shadow: 50}", "mirrorTraffic: {}")] {
        replace(&router.file("0.yaml"), &off);
        router.wait_until("the mirror is off", |all| all["endpoints"][0]["mirror"].is_null()).await;
        let before = copies.load(Ordering::Relaxed);
        assert_eq!(count_failures(&router, 40).await, 0);
        assert_eq!(copies.load(Ordering::Relaxed), before);
        replace(&router.file("0.yaml"), &with(50));
        router.wait_until("the mirror is on", |all| all["endpoints"][0]["mirror"]["percent"] == 50).await;
    }
    let before = copies.load(Ordering::Relaxed);
    assert_eq!(count_failures(&router, 40).await, 0);
    with_timeout("copies again", async {
        while copies.load(Ordering::Relaxed) < before + 15 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// So many bytes, with no period that a mistake could hide in.
fn aperiodic_bytes(length: usize) -> Bytes {
    let mut state = 7_u32;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()
    });
    Bytes::from_iter(words.take(length / 4).flatten())
}

/// Pieces of a body, and how far ahead of a model a client of the tests gets.
const PIECE: usize = 65_536;
const MAX_AHEAD_BYTES: usize = 4 * PIECE;

/// A request with this body, piece by piece, no faster than `live` takes it, nor than `shadow` if that has begun; and
/// whether it says how long it is.
fn paced_request(
    body: &Bytes,
    is_announced: bool,
    [live, shadow]: [&Arc<AtomicUsize>; 2],
) -> Request<BoxBody<Bytes, std::convert::Infallible>> {
    let (whole, live, shadow) = (body.clone(), live.clone(), shadow.clone());
    [&live, &shadow].iter().for_each(|taken| taken.store(0, Ordering::Relaxed));
    let pieces = futures_util::stream::unfold(0, move |from| {
        let (whole, live, shadow) = (whole.clone(), live.clone(), shadow.clone());
        async move {
            let piece = (from < whole.len()).then(|| whole.slice(from..whole.len().min(from + PIECE)))?;
            let begun = tokio::time::Instant::now();
            let waits = || {
                let [live, shadow] = [&live, &shadow].map(|taken| taken.load(Ordering::Relaxed));
                let may_begin = from == PIECE && shadow == 0 && begun.elapsed() < Duration::from_millis(200);
                may_begin || from > live + MAX_AHEAD_BYTES || shadow > 0 && from > shadow + MAX_AHEAD_BYTES
            };
            while waits() {
                tokio::task::yield_now().await;
            }
            Some((Ok(Frame::data(piece)), from + PIECE))
        }
    });
    let mut request = score("").map(|_| BoxBody::new(StreamBody::new(SyncStream(Box::pin(pieces)))));
    if is_announced {
        request.headers_mut().insert("content-length", body.len().into());
    }
    request
}

/// A model that says how much of a body it has taken, and whether one that came to its end is this one.
async fn start_comparing_model(body: &Bytes) -> (Model, Arc<AtomicUsize>, mpsc::UnboundedReceiver<bool>) {
    let (sender, seen) = mpsc::unbounded_channel();
    let (expected, taken) = (body.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = taken.clone();
    let model = Model::http(move |request: Request<Incoming>| {
        let (sender, expected, taken) = (sender.clone(), expected.clone(), counted.clone());
        async move {
            let (mut body, mut at, mut is_same) = (request.into_body(), 0, true);
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map(|frame| frame.into_data().unwrap_or_default()) else {
                    return Response::new(full_body("cut"));
                };
                is_same &= expected.get(at..at + data.len()) == Some(&data[..]);
                at += data.len();
                taken.store(at, Ordering::Relaxed);
            }
            let _ = sender.send(is_same && at == expected.len());
            Response::new(full_body("blue"))
        }
    });
    (model.await, taken, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_body_is_copied_whole_with_and_without_its_length() {
    let body = aperiodic_bytes(100 * 1024 * 1024);
    for is_announced in [true, false] {
        let (live, taken, mut at_live) = start_comparing_model(&body).await;
        let (shadow, taken_too, mut at_shadow) = start_comparing_model(&body).await;
        let router = Router::start(&[&mirrored_document(live.address, shadow.address, 50, "")]);
        // At most one of two is copied, at the latest one of six.
        while mirror_result_count(&router, "answered").await == 0.0 {
            let request = paced_request(&body, is_announced, [&taken, &taken_too]);
            let answer = send(router.scoring, request).await.unwrap();
            assert_eq!((answer.status().as_u16(), at_live.recv().await), (200, Some(true)));
            assert_eq!(mirror_result_count(&router, "lagging").await, 0.0, "no faster than the shadow");
        }
        assert_eq!(at_shadow.recv().await, Some(true));
    }
}

#[tokio::test]
async fn shadows_that_fail_in_any_way_cost_the_live_requests_nothing() {
    // What a shadow does, and how its copies end.
    let (live, _) = start_counting_model("blue").await;
    let dead = unused_address();
    let silent = Model::from_connections(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let closing = Model::from_connections(|mut stream| async move { drop(stream.read(&mut [0; 4096]).await) }).await;
    let breaking = Model::from_connections(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    })
    .await;
    let early = Model::from_connections(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let shadows = [
        (dead, "unreachable"),
        (silent.address, "timeout"),
        (closing.address, "closed"),
        (breaking.address, "broke_off"),
        (early.address, "answered"),
    ];
    for (shadow, how) in shadows {
        let rules = ", requestSettings: {requestTimeoutMs: 100, maxConcurrentRequestsPerInstance: 2}";
        let document = mirrored_document(live.address, shadow, 50, "");
        let document = document.replace(
            "scoringPath: /shadow, requestSettings: {maxConcurrentRequestsPerInstance: 64}",
            &format!("scoringPath: /shadow{rules}"),
        );
        let router = Router::start(&[&document]);
        assert_eq!(count_failures(&router, 200).await, 0, "{how}");
        if how != "answered" {
            wait_until_mirror_result(&router, how, 1.0).await;
        }
        let blue = &router.endpoints().await["endpoints"][0]["deployments"][0];
        assert_eq!((&blue["replicas"][0]["state"], &blue["queue"]), (&"ready".into(), &0.into()), "{how}");
        assert_eq!(router.metric("inference_router_requests_total{code=\"200\",deployment_name=\"blue\",endpoint_name=\"my-endpoint\",model_code=\"200\"}").await, Some(200.0));
    }
}

#[tokio::test]
async fn a_shadow_gets_no_more_at_once_than_it_takes_and_nothing_waits_for_it() {
    let (live, _) = start_counting_model("blue").await;
    let (shadow, mut copied) = Model::manual().await;
    let document = mirrored_document(live.address, shadow.address, 50, "").replace(
        "scoringPath: /shadow, requestSettings: {maxConcurrentRequestsPerInstance: 64}",
        "scoringPath: /shadow, requestSettings: {maxConcurrentRequestsPerInstance: 2, requestTimeoutMs: 60000}",
    );
    let router = Router::start(&[&document]);
    assert_eq!(count_failures(&router, 100).await, 0);
    let held = [with_timeout("a copy", copied.recv()).await, with_timeout("a copy", copied.recv()).await];
    assert!(copied.try_recv().is_err(), "two are all it takes");
    wait_until_mirror_result(&router, "no_slot", 40.0).await;
    let shadow = &router.endpoints().await["endpoints"][0]["deployments"][1];
    assert_eq!((&shadow["slots"]["busy"], &shadow["queue"]), (&2.into(), &0.into()));
    held.into_iter().flatten().for_each(|asked| asked.answer("late"));
    wait_until_mirror_result(&router, "answered", 2.0).await;
}

#[tokio::test]
async fn a_shadow_that_takes_nothing_of_a_body_loses_its_copy_alone() {
    let body = aperiodic_bytes(32 * 1024 * 1024);
    let (live, taken, mut at_live) = start_comparing_model(&body).await;
    let never = Arc::default();
    let silent = Model::from_connections(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let router = Router::start(&[&mirrored_document(live.address, silent.address, 50, "")]);
    for _ in 0..6 {
        let answer = send(router.scoring, paced_request(&body, true, [&taken, &never])).await.unwrap();
        assert_eq!((answer.status().as_u16(), at_live.recv().await), (200, Some(true)));
    }
    wait_until_mirror_result(&router, "lagging", 1.0).await;
}

/// A copy that has arrived, of a client that has left before its answer.
async fn start_abandoned_copy(on_client_abort: &str) -> (Router, Answer) {
    let (live, mut asked) = Model::manual().await;
    let (shadow, mut copied) = Model::manual().await;
    let document = mirrored_document(live.address, shadow.address, 50, "")
        .replace("mirrorTraffic:", &format!("mirrorSettings: {{onClientAbort: {on_client_abort}}}\n  mirrorTraffic:"));
    let router = Router::start(&[&document]);
    loop {
        let client = tokio::spawn(send(router.scoring, score("{}").map(BoxBody::new)));
        let at_live = with_timeout("the live request", asked.recv()).await.unwrap();
        let copy = tokio::time::timeout(Duration::from_millis(200), copied.recv()).await;
        let Ok(Some(copy)) = copy else {
            at_live.answer("live");
            drop(client.await);
            continue;
        };
        client.abort();
        with_timeout("the client's leave", async {
            let left = "inference_router_requests_total{code=\"499\",deployment_name=\"blue\",endpoint_name=\"my-endpoint\",model_code=\"\"}";
            while router.metric(left).await.is_none() {}
        })
        .await;
        copy.answer("shadow");
        at_live.answer("live");
        let metrics = router.admin("/metrics").await;
        return (router, metrics);
    }
}

#[tokio::test]
async fn a_copy_whose_client_has_gone_is_finished_or_dropped_as_the_document_says() {
    let (router, _) = start_abandoned_copy("finish").await;
    wait_until_mirror_result(&router, "answered", 1.0).await;
    let (router, _) = start_abandoned_copy("drop").await;
    wait_until_mirror_result(&router, "client_left", 1.0).await;
}
