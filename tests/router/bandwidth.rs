//! Promises of `bandwidthLimitBytesPerSecond`: what is over the limit waits, copies first, and is told.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};

use crate::harness::{Answer, Model, Router, call, document, full, score, send, soon};
use crate::http::http2;

const MEGABYTE: usize = 1_000_000;

/// A model that answers `0`, or so many megabytes, as the request's `x-megabytes` says.
async fn model() -> Model {
    let model = Model::http(|request| async move {
        let megabytes =
            request.headers().get("x-megabytes").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        let _ = request.into_body().collect().await;
        Response::new(full(if megabytes == 0 {
            Bytes::from_static(b"0")
        } else {
            vec![b'x'; megabytes * MEGABYTE].into()
        }))
    });
    model.await
}

/// One megabyte a second, of which one may come at once.
fn limited(model: &Model, more: &str) -> String {
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
fn delays(trailers: Option<&HeaderMap>) -> (u64, u64) {
    let trailers = trailers.expect("trailers");
    let of = |which: &str| {
        let name = format!("ms-azureml-bandwidth-{which}-delay-ms");
        trailers[&name].to_str().unwrap().parse().unwrap()
    };
    (of("request"), of("response"))
}

async fn timed(answer: impl Future<Output = Answer>) -> (Answer, Duration) {
    let begun = Instant::now();
    let answer = answer.await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer, begun.elapsed())
}

#[tokio::test]
async fn an_answer_over_the_limit_takes_its_time_and_says_so() {
    let model = model().await;
    let router = Router::start(&[&limited(&model, "")]);
    let (answer, took) = timed(call(router.scoring, large(2))).await;
    assert_eq!(answer.body.len(), 2 * MEGABYTE);
    let (request, response) = delays(answer.trailers.as_ref());
    // The second of two megabytes has to wait; what sending takes anyway is no delay.
    assert!(
        took >= Duration::from_millis(990) && request == 0 && (500..2_000).contains(&response),
        "{took:?} {response}"
    );
    assert!(!answer.headers.contains_key("content-length") && answer.headers.contains_key("trailer"), "{answer:?}");
}

#[tokio::test]
async fn who_takes_no_trailers_gets_the_length_and_http2_gets_both() {
    let model = model().await;
    let router = Router::start(&[&limited(&model, "")]);
    let mut plain = large(1);
    plain.headers_mut().remove("te");
    let answer = call(router.scoring, plain).await;
    assert!(answer.header("content-length") == MEGABYTE.to_string() && answer.trailers.is_none(), "{answer:?}");
    let mut client = http2(&router).await;
    let mut request = large(1);
    *request.uri_mut() = "http://router/api/v1/endpoint/my-endpoint/score".parse().unwrap();
    request.headers_mut().remove("te");
    let request = request.map(|_| full(""));
    let answer = soon("an answer", client.send_request(request)).await.unwrap();
    let body = soon("its body", answer.into_body().collect()).await.unwrap();
    assert!(delays(body.trailers()).1 >= 500, "{:?}", body.trailers());
    assert_eq!(body.to_bytes().len(), MEGABYTE);
}

#[tokio::test]
async fn a_request_over_the_limit_waits_and_its_model_is_not_to_blame() {
    let model = model().await;
    let router = Router::start(&[&limited(&model, "")]);
    let mut request = score(vec![b'x'; 2 * MEGABYTE]);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    // Longer than `requestTimeoutMs`.
    let (answer, took) = timed(call(router.scoring, request)).await;
    let (request, response) = delays(answer.trailers.as_ref());
    assert!(took >= Duration::from_millis(990) && request >= 900, "{took:?} {request} {response}");
}

#[tokio::test]
async fn all_clients_of_an_endpoint_share_the_limit_and_no_other_endpoint_has_it() {
    let model = model().await;
    let other = document("traffic: {blue: 100}", &format!("- {{name: blue, instances: [\"{}\"]}}", model.address));
    let router = Router::start(&[&limited(&model, ""), &other.replace("my-endpoint", "other")]);
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
    let (model, shadow) = (model().await, model().await);
    let of = limited(&model, "\n  mirrorTraffic: {shadow: 50}");
    let at = of.rfind(&model.address.to_string()).unwrap();
    let of = of[..at].to_owned() + &of[at..].replace(&model.address.to_string(), &shadow.address.to_string());
    let router = Router::start(&[&of]);
    for _ in 0..20 {
        timed(call(router.scoring, score("{}"))).await;
    }
    let count = async |result: &str| {
        let series = "inference_router_mirror_requests_total{deployment=\"shadow\",endpoint=\"my-endpoint\",result=";
        router.metric(&format!("{series}\"{result}\"}}")).await.unwrap_or_default()
    };
    assert_eq!(count("over_bandwidth").await, 0.0, "there is room");
    // All there is for some time, and what comes meanwhile.
    let mut all = send(router.scoring, large(3).map(|body| body.boxed())).await.unwrap().into_body();
    let mut read = 0;
    while read < MEGABYTE / 2 {
        read += soon("a piece", all.frame()).await.unwrap().unwrap().data_ref().map_or(0, Bytes::len);
    }
    let rest = tokio::spawn(all.collect());
    futures_util::future::join_all((0..20).map(|_| timed(call(router.scoring, score("{}"))))).await;
    rest.await.unwrap().unwrap();
    assert!(count("over_bandwidth").await > 0.0);
}

/// What is written, kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_access_log_has_the_delays() {
    let model = model().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("endpoint.yaml"), limited(&model, "")).unwrap();
    let log = Kept::default();
    let mut router = Router::start_in(folder, Box::new(log.clone()), |settings| settings.log.access = true);
    let answer = call(router.scoring, large(2)).await;
    let (_, told) = delays(answer.trailers.as_ref());
    router.tell_to_stop();
    router.join().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&log.0.lock().unwrap()).unwrap();
    assert_eq!(line["RequestThrottlingDelayMs"], 0.0, "{line}");
    assert_eq!(line["ResponseThrottlingDelayMs"].as_f64().unwrap().floor() as u64, told, "{line}");
}
