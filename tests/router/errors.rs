//! Promises about errors (`docs/reference/errors.md`): every error of the router, in both sets of status codes.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use inference_router::config::RouterSettings;
use inference_router::model::router_settings::StatusCodes::{self, Kubernetes, Managed};
use tokio::sync::mpsc;

use crate::harness::{
    Answer, KEY, Model, Router, call, document, endpoint, full_body, score, unused_address, with_timeout,
};
use crate::wire::{self, Wire, next_value};

const BOTH: [StatusCodes; 2] = [Kubernetes, Managed];

/// What goes between the start line and the end of a raw head.
fn fields() -> String {
    format!("host: router.example\r\nauthorization: Bearer {KEY}\r\n")
}

const POST: &str = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\n";

fn start(document: &str, codes: StatusCodes) -> Router {
    start_with(document, codes, |_| ())
}

fn start_with(document: &str, codes: StatusCodes, change: impl FnOnce(&mut RouterSettings)) -> Router {
    Router::start_with(&[document], |settings| {
        settings.status_codes = codes;
        settings.shutdown.drain_timeout = Duration::from_millis(100);
        change(settings);
    })
}

/// Parses a response as it was on the wire, up to the end of the connection.
fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let mut response = Response::builder().status(status);
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        response = response.header(name, value);
    }
    let (head, ()) = response.body(()).unwrap().into_parts();
    Answer { status: head.status, headers: head.headers, body: Bytes::from(body.to_owned()), trailers: None }
}

/// Reads one response, of known length.
async fn read_answer(wire: &mut Wire) -> Answer {
    let (head, body) = wire.message().await;
    let mut response = Response::builder().status(head.status());
    for (name, value) in &head.fields {
        response = response.header(name, value);
    }
    let (head, ()) = response.body(()).unwrap().into_parts();
    Answer { status: head.status, headers: head.headers, body: Bytes::from(body), trailers: None }
}

/// Reads until the end, and parses it.
async fn read_answer_to_end(wire: &mut Wire) -> Answer {
    parse(&wire.read_to_end().await)
}

/// Asserts that `answer` is a complete problem document that tells nothing of `hidden`.
#[track_caller]
fn assert_problem(answer: &Answer, status: u16, code: &str, hidden: &[SocketAddr]) {
    assert_problem_without_request_id(answer, status, code, hidden);
    assert_eq!(answer.json()["requestId"], answer.header("x-request-id"), "{answer:?}");
}

/// The same for a request of which no head was read, without the request id.
#[track_caller]
fn assert_problem_without_request_id(answer: &Answer, status: u16, code: &str, hidden: &[SocketAddr]) {
    assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{answer:?}");
    let json = answer.json();
    for member in ["type", "title", "detail", "code"] {
        assert!(json[member].as_str().is_some_and(|text| !text.is_empty()), "no {member}: {json}");
    }
    assert_eq!(json["status"], status, "{json}");
    let all = format!("{:?} {}", answer.headers, answer.text());
    for address in hidden {
        // As a word: five digits of a port can be part of a random request id.
        let port = address.port().to_string();
        assert!(!all.contains(&address.to_string()) && !all.contains(&format!(":{port}")), "{all}");
        let found = answer.text().split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == port);
        assert!(!found, "{port} in {all}");
    }
    for name in ["ms-azureml-model-error-statuscode", "ms-azureml-model-error-reason"] {
        assert!(!answer.headers.contains_key(name), "looks like the model's: {answer:?}");
    }
}

#[track_caller]
fn assert_names(answer: &Answer, endpoint: Option<&str>, deployment: Option<&str>) {
    let json = answer.json();
    assert_eq!((json["endpoint"].as_str(), json["deployment"].as_str()), (endpoint, deployment), "{json}");
}

#[track_caller]
fn assert_retry_after(answer: &Answer) {
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!(seconds >= 1, "{answer:?}");
}

fn with_authorization(value: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = score("{}");
    request.headers_mut().remove("authorization");
    if let Some(value) = value {
        request.headers_mut().insert("authorization", value.parse().unwrap());
    }
    request
}

/// A model that must not be asked: says how often it was.
async fn start_counting_model() -> (Model, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let model = Model::http(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Response::new(full_body("answered")) }
    })
    .await;
    (model, asked)
}

#[tokio::test]
async fn a_missing_or_malformed_credential_is_401_missing_credential() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        let basic = format!("Basic {KEY}");
        for value in [None, Some(""), Some("Bearer"), Some("Bearer "), Some(&*basic)] {
            let answer = call(router.scoring, with_authorization(value)).await;
            assert_problem(&answer, 401, "missing_credential", &[model.address]);
            assert_names(&answer, Some("my-endpoint"), None);
            assert!(answer.header("www-authenticate").to_ascii_lowercase().starts_with("bearer"), "{answer:?}");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_wrong_key_is_401_invalid_key_and_is_not_repeated() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        for wrong in ["wrong-key-that-nobody-knows".to_owned(), KEY[..KEY.len() - 1].to_owned(), format!("{KEY}x")] {
            let answer = call(router.scoring, with_authorization(Some(&format!("Bearer {wrong}")))).await;
            assert_problem(&answer, 401, "invalid_key", &[model.address]);
            assert_names(&answer, Some("my-endpoint"), None);
            assert!(answer.header("www-authenticate").to_ascii_lowercase().starts_with("bearer"), "{answer:?}");
            assert!(!answer.text().contains(&wrong) && !answer.text().contains(KEY), "{answer:?}");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_unknown_endpoint_is_404_endpoint_not_found() {
    let (model, _) = start_counting_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        for path in ["/api/v1/endpoint/another/score", "/api/v1/service/another/score"] {
            let mut request = score("{}");
            *request.uri_mut() = path.parse().unwrap();
            assert_problem(&call(router.scoring, request).await, 404, "endpoint_not_found", &[model.address]);
        }
    }
}

#[tokio::test]
async fn a_path_that_is_no_endpoint_is_404() {
    let (model, asked) = start_counting_model().await;
    let router = start(&endpoint(&[model.address], "{}"), Kubernetes);
    for path in ["/", "/score", "/api/v1/endpoint/", "/api/v2/endpoint/my-endpoint/score"] {
        let mut request = score("{}");
        *request.uri_mut() = path.parse().unwrap();
        let answer = call(router.scoring, request).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        answer.code();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_unknown_deployment_is_404_deployment_not_found() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        let mut request = score("{}");
        request.headers_mut().insert("azureml-model-deployment", "purple".parse().unwrap());
        let answer = call(router.scoring, request).await;
        assert_problem(&answer, 404, "deployment_not_found", &[model.address]);
        assert_eq!(answer.json()["endpoint"], "my-endpoint");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_endpoint_without_live_traffic_is_404_no_live_deployment() {
    let (model, asked) = start_counting_model().await;
    let deployments = format!("- {{name: blue, instances: [\"{}\"]}}", model.address);
    for codes in BOTH {
        for traffic in ["authMode: key", "traffic: {}", "traffic: {blue: 0}"] {
            let router = start(&document(traffic, &deployments), codes);
            let answer = router.score("{}").await;
            assert_problem(&answer, 404, "no_live_deployment", &[model.address]);
            assert_names(&answer, Some("my-endpoint"), None);
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_announced_too_large_is_413_before_any_of_it_is_sent() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router =
            start_with(&endpoint(&[model.address], "{}"), codes, |settings| settings.limits.max_payload_bytes = 1000);
        let mut client = Wire::connect(router.scoring).await;
        client.write(format!("{POST}{}content-length: 1001\r\n\r\n", fields())).await;
        let head = client.head().await;
        let body = client.read_exact_text(head.length()).await;
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((head.status(), json["code"].as_str()), (413, Some("payload_too_large")), "{head:?} {body}");
        assert_eq!(head.get("content-type").as_deref(), Some("application/problem+json"));
        assert_eq!(asked.load(Ordering::SeqCst), 0, "the model was asked");
        // The limit itself is allowed.
        let mut request = score("");
        *request.body_mut() = Full::from("x".repeat(1000));
        assert_eq!(call(router.scoring, request).await.status, 200);
        asked.store(0, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_body_found_too_large_while_streaming_is_413_and_breaks_off_towards_the_model() {
    let (model, mut asked) = Model::manual().await;
    for codes in BOTH {
        let router =
            start_with(&endpoint(&[model.address], "{}"), codes, |settings| settings.limits.max_payload_bytes = 1000);
        let mut client = Wire::connect(router.scoring).await;
        let chunk = format!("258\r\n{}\r\n", "x".repeat(600));
        client.write(format!("{POST}{}transfer-encoding: chunked\r\n\r\n{chunk}", fields())).await;
        let mut request = next_value("the request at the model", &mut asked).await;
        client.write(&chunk).await;
        let seen = with_timeout("the end of the model's request", async {
            loop {
                match request.request.body_mut().frame().await {
                    Some(Ok(_)) => {}
                    other => break other.map(|frame| frame.map(|_| ())),
                }
            }
        })
        .await;
        assert!(matches!(seen, Some(Err(_))), "the model took the cut body for a whole one: {seen:?}");
        assert_problem(&read_answer(&mut client).await, 413, "payload_too_large", &[model.address]);
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_body_announces_the_end_of_the_connection() {
    let (model, mut asked) = Model::manual().await;
    let router = start_with(&endpoint(&[model.address], "{requestTimeoutMs: 300000}"), Kubernetes, |settings| {
        settings.limits.max_payload_bytes = 1000;
    });
    let mut client = Wire::connect(router.scoring).await;
    let chunk = format!("258\r\n{}\r\n", "x".repeat(600));
    client.write(format!("{POST}{}transfer-encoding: chunked\r\n\r\n{chunk}", fields())).await;
    let _unanswered = next_value("the request at the model", &mut asked).await;
    client.write(&chunk).await;
    let answer = read_answer(&mut client).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.header("connection"), "close", "the client cannot know that its next request is not read");
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_body_ends_the_connection_without_waiting_for_the_model() {
    let (model, mut asked) = Model::manual().await;
    let router = start_with(&endpoint(&[model.address], "{requestTimeoutMs: 300000}"), Kubernetes, |settings| {
        settings.limits.max_payload_bytes = 1000;
    });
    let mut client = Wire::connect(router.scoring).await;
    let chunk = format!("258\r\n{}\r\n", "x".repeat(600));
    client.write(format!("{POST}{}transfer-encoding: chunked\r\n\r\n{chunk}", fields())).await;
    let _unanswered = next_value("the request at the model", &mut asked).await;
    client.write(&chunk).await;
    assert_eq!(read_answer(&mut client).await.status, 413);
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn a_client_too_slow_with_its_head_gets_408_client_timeout() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start_with(&endpoint(&[model.address], "{}"), codes, |settings| {
            settings.limits.header_read_timeout = Duration::from_millis(50);
        });
        let mut client = Wire::connect(router.scoring).await;
        client.write(format!("{POST}host: router")).await;
        assert_problem_without_request_id(
            &read_answer_to_end(&mut client).await,
            408,
            "client_timeout",
            &[model.address],
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_too_slow_with_its_body_gets_408_client_timeout() {
    let (model, mut asked) = Model::manual().await;
    for codes in BOTH {
        let router = start_with(&endpoint(&[model.address], "{}"), codes, |settings| {
            settings.limits.body_idle_timeout = Duration::from_millis(50);
        });
        let mut client = Wire::connect(router.scoring).await;
        client.write(format!("{POST}{}content-length: 10\r\n\r\nabc", fields())).await;
        let request = next_value("the request at the model", &mut asked).await;
        let whole = with_timeout("the end of the model's request", request.request.into_body().collect()).await;
        assert!(whole.is_err(), "the model took the cut body for a whole one");
        assert_problem(&read_answer(&mut client).await, 408, "client_timeout", &[model.address]);
    }
}

#[tokio::test]
async fn a_head_with_too_many_bytes_is_431_head_too_large() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router =
            start_with(&endpoint(&[model.address], "{}"), codes, |settings| settings.limits.max_header_bytes = 8192);
        let mut client = Wire::connect(router.scoring).await;
        client.write(format!("{POST}{}x-long: {}\r\n\r\n", fields(), "x".repeat(10_000))).await;
        assert_problem_without_request_id(
            &read_answer_to_end(&mut client).await,
            431,
            "head_too_large",
            &[model.address],
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_head_with_too_many_fields_is_431_head_too_large() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start_with(&endpoint(&[model.address], "{}"), codes, |settings| settings.limits.max_headers = 20);
        let mut client = Wire::connect(router.scoring).await;
        let many: String = (0..30).map(|n| format!("x-{n}: y\r\n")).collect();
        client.write(format!("{POST}{}{many}\r\n", fields())).await;
        assert_problem_without_request_id(
            &read_answer_to_end(&mut client).await,
            431,
            "head_too_large",
            &[model.address],
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_malformed_request_is_400_bad_request() {
    let (model, asked) = start_counting_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        let fields = fields();
        for malformed in [
            "this is not HTTP\r\n\r\n".to_owned(),
            format!("{POST}{fields}no colon here\r\n\r\n"),
            format!("{POST}{fields}bad name: x\r\n\r\n"),
            format!("{POST}{fields}content-length: two\r\n\r\n{{}}"),
            format!("{POST}{fields}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}} "),
        ] {
            let mut client = Wire::connect(router.scoring).await;
            client.write(&malformed).await;
            let text = client.read_to_end().await;
            assert!(!text.is_empty(), "closed without an answer: {malformed:?}");
            assert_problem_without_request_id(&parse(&text), 400, "bad_request", &[model.address]);
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_of_http_1_1_without_a_host_is_400_bad_request() {
    let (model, asked) = start_counting_model().await;
    let router = start(&endpoint(&[model.address], "{}"), Kubernetes);
    let mut client = Wire::connect(router.scoring).await;
    client
        .write(format!("{POST}authorization: Bearer {KEY}\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"))
        .await;
    assert_problem(&read_answer_to_end(&mut client).await, 400, "bad_request", &[model.address]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_malformed_chunk_is_400_bad_request() {
    let (model, mut asked) = Model::manual().await;
    let router = start(&endpoint(&[model.address], "{}"), Kubernetes);
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n", fields())).await;
    let request = next_value("the request at the model", &mut asked).await;
    client.write("not a size\r\n").await;
    let whole = with_timeout("the end of the model's request", request.request.into_body().collect()).await;
    assert!(whole.is_err(), "the model took the cut body for a whole one");
    assert_problem(&read_answer(&mut client).await, 400, "bad_request", &[model.address]);
}

#[tokio::test]
async fn a_request_that_finds_the_queue_full_is_too_many_requests() {
    let (model, mut asked) = Model::manual().await;
    for (codes, status) in [(Kubernetes, 503), (Managed, 429)] {
        let router = start(&endpoint(&[model.address], "{maxQueueLength: 0, requestTimeoutMs: 60000}"), codes);
        let first = tokio::spawn(call(router.scoring, score("{}")));
        let request = next_value("the first request", &mut asked).await;
        let answer = router.score("{}").await;
        assert_problem(&answer, status, "too_many_requests", &[model.address]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
        assert_retry_after(&answer);
        request.answer("first");
        assert_eq!(first.await.unwrap().text(), "first");
    }
}

#[tokio::test]
async fn a_request_that_waited_too_long_is_too_many_requests() {
    let (model, mut asked) = Model::manual().await;
    for (codes, status) in [(Kubernetes, 503), (Managed, 429)] {
        let router = start(&endpoint(&[model.address], "{maxQueueWaitMs: 30, requestTimeoutMs: 60000}"), codes);
        let first = tokio::spawn(call(router.scoring, score("{}")));
        let request = next_value("the first request", &mut asked).await;
        let answer = router.score("{}").await;
        assert_problem(&answer, status, "too_many_requests", &[model.address]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
        assert_retry_after(&answer);
        request.answer("first");
        assert_eq!(first.await.unwrap().text(), "first");
        assert!(asked.try_recv().is_err(), "the model was asked what had been refused");
    }
}

#[tokio::test]
async fn a_deployment_without_a_ready_replica_is_503_no_ready_replica() {
    for codes in BOTH {
        let never = r#"- {name: blue, process: {command: ["sh", "-c", "exec sleep 60 # {port}"], readinessPath: /}}"#;
        let router = start(&document("traffic: {blue: 100}", never), codes);
        let answer = router.score("{}").await;
        assert_problem(&answer, 503, "no_ready_replica", &[]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
        assert_retry_after(&answer);
    }
}

#[tokio::test]
async fn a_model_that_takes_too_long_is_model_timeout() {
    let (model, mut asked) = Model::manual().await;
    for (codes, status) in [(Kubernetes, 504), (Managed, 408)] {
        let router = start(&endpoint(&[model.address], "{requestTimeoutMs: 50}"), codes);
        let answer = router.score("{}").await;
        assert_problem(&answer, status, "model_timeout", &[model.address]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
        drop(next_value("the request", &mut asked).await);
        assert!(asked.try_recv().is_err(), "the request was sent twice");
    }
}

#[tokio::test]
async fn a_replica_that_refuses_connections_is_502_replica_unreachable() {
    for codes in BOTH {
        let address = unused_address();
        let router = start(&endpoint(&[address], "{}"), codes);
        let answer = router.score("{}").await;
        assert_problem(&answer, 502, "replica_unreachable", &[address]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_on_another_replica() {
    let (model, asked) = start_counting_model().await;
    for round in 0..5 {
        let router = start(&endpoint(&[unused_address(), unused_address(), model.address], "{}"), Kubernetes);
        assert_eq!(router.score("{}").await.status, 200, "round {round}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 5);
}

/// A model that reads one request, answers with `bytes` and closes; says how often it was asked.
async fn start_raw_model(
    bytes: &'static str,
) -> (Model, mpsc::UnboundedReceiver<wire::Head>, mpsc::UnboundedSender<wire::Head>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let model = start_raw_model_into(bytes, sender.clone()).await;
    (model, receiver, sender)
}

async fn start_raw_model_into(bytes: &'static str, sender: mpsc::UnboundedSender<wire::Head>) -> Model {
    Model::from_connections(move |stream| {
        let sender = sender.clone();
        async move {
            let mut wire = Wire::from_stream(stream);
            let (head, _) = wire.message().await;
            wire.write(bytes).await;
            drop(wire);
            let _ = sender.send(head);
        }
    })
    .await
}

#[tokio::test]
async fn a_replica_that_closes_before_answering_is_502_replica_closed_and_never_retried() {
    let (one, mut asked, sender) = start_raw_model("").await;
    let other = start_raw_model_into("", sender).await;
    for codes in BOTH {
        let router = start(&endpoint(&[one.address, other.address], "{}"), codes);
        let answer = router.score("{}").await;
        assert_problem(&answer, 502, "replica_closed", &[one.address, other.address]);
        assert_names(&answer, Some("my-endpoint"), Some("blue"));
        next_value("the request", &mut asked).await;
        assert!(asked.try_recv().is_err(), "the request was sent twice");
    }
}

#[tokio::test]
async fn a_replica_that_closes_inside_its_head_is_502_replica_closed_and_never_retried() {
    let (one, mut asked, sender) = start_raw_model("HTTP/1.1 200 OK\r\ncontent-le").await;
    let other = start_raw_model_into("HTTP/1.1 200 OK\r\ncontent-le", sender).await;
    for codes in BOTH {
        let router = start(&endpoint(&[one.address, other.address], "{}"), codes);
        assert_problem(&router.score("{}").await, 502, "replica_closed", &[one.address, other.address]);
        next_value("the request", &mut asked).await;
        assert!(asked.try_recv().is_err(), "the request was sent twice");
    }
}

#[tokio::test]
async fn a_replica_that_speaks_garbage_is_502_and_its_bytes_do_not_reach_the_client() {
    for garbage in ["220 mail.internal ESMTP at 10.1.2.3\r\n", "\u{1}\u{2}\u{3}\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
        let (one, mut asked, sender) = start_raw_model(garbage).await;
        let other = start_raw_model_into(garbage, sender).await;
        for codes in BOTH {
            let router = start(&endpoint(&[one.address, other.address], "{}"), codes);
            let answer = router.score("{}").await;
            let code = answer.code();
            assert!(code.starts_with("replica_"), "{code}");
            assert_problem(&answer, 502, &code, &[one.address, other.address]);
            assert!(!answer.text().contains("10.1.2.3"), "{answer:?}");
            next_value("the request", &mut asked).await;
            assert!(asked.try_recv().is_err(), "the request was sent twice");
        }
    }
}

#[tokio::test]
async fn a_pooled_connection_that_the_replica_closed_is_no_error() {
    let (model, mut asked, _sender) = start_raw_model("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let router = start(&endpoint(&[model.address], "{}"), Kubernetes);
    for number in 0..10 {
        let answer = router.score("{}").await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "ok"), "request {number}");
        next_value("the closed connection", &mut asked).await;
    }
}

/// A model that answers with the status that is its path.
async fn start_status_model() -> Model {
    Model::http(|request: Request<_>| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        let body = if status == 304 || status == 204 { "" } else { "{\"message\": \"the model says so\"}" };
        Response::builder()
            .status(status)
            .header("content-type", "application/x-model")
            .header("x-model", "own")
            .body(full_body(body))
            .unwrap()
    })
    .await
}

#[tokio::test]
async fn a_models_own_error_passes_with_its_body_and_says_that_it_is_the_models() {
    let model = start_status_model().await;
    for (codes, statuses) in [
        (Kubernetes, [(500, 502), (501, 501), (503, 503), (400, 400), (404, 404), (401, 401), (429, 429)]),
        (Managed, [(500, 424), (501, 424), (503, 424), (400, 424), (404, 424), (401, 424), (429, 424)]),
    ] {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        for (own, expected) in statuses {
            let request = Request::post(format!("/api/v1/endpoint/my-endpoint/{own}"))
                .header("authorization", format!("Bearer {KEY}"))
                .body(Full::from("{}"))
                .unwrap();
            let answer = call(router.scoring, request).await;
            assert_eq!(answer.status.as_u16(), expected, "{own}: {answer:?}");
            assert_eq!(answer.header("ms-azureml-model-error-statuscode"), own.to_string());
            assert!(!answer.header("ms-azureml-model-error-reason").is_empty());
            assert_eq!(answer.text(), "{\"message\": \"the model says so\"}");
            assert_eq!(answer.header("content-type"), "application/x-model");
            assert_eq!(answer.header("x-model"), "own");
            assert_eq!(answer.header("azureml-model-deployment"), "blue");
            answer.header("x-request-id");
        }
    }
}

#[tokio::test]
async fn a_models_redirect_is_another_non_2xx_and_says_so() {
    let model = start_status_model().await;
    for (codes, expected) in [(Kubernetes, 302), (Managed, 424)] {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        let mut request = score("{}");
        *request.uri_mut() = "/api/v1/endpoint/my-endpoint/302".parse().unwrap();
        let answer = call(router.scoring, request).await;
        assert_eq!(answer.status.as_u16(), expected, "{answer:?}");
        assert_eq!(answer.header("ms-azureml-model-error-statuscode"), "302", "{codes:?}");
        assert_eq!(answer.text(), "{\"message\": \"the model says so\"}");
    }
}

#[tokio::test]
async fn a_models_success_is_not_called_an_error() {
    let model = start_status_model().await;
    for codes in BOTH {
        let router = start(&endpoint(&[model.address], "{}"), codes);
        for own in [200, 201, 202, 204, 206] {
            let request = Request::post(format!("/api/v1/endpoint/my-endpoint/{own}"))
                .header("authorization", format!("Bearer {KEY}"))
                .body(Full::from("{}"))
                .unwrap();
            let answer = call(router.scoring, request).await;
            assert_eq!(answer.status.as_u16(), own);
            assert!(!answer.headers.contains_key("ms-azureml-model-error-statuscode"), "{answer:?}");
            assert!(!answer.headers.contains_key("ms-azureml-model-error-reason"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_error_leaves_the_clients_connection_usable() {
    let (model, _) = start_counting_model().await;
    let router = start(&endpoint(&[model.address], "{}"), Kubernetes);
    let mut client = Wire::connect(router.scoring).await;
    let wrong = "host: x\r\nauthorization: Bearer wrong\r\ncontent-length: 2\r\n\r\n{}";
    client.write(format!("{POST}{wrong}")).await;
    assert_eq!(client.message().await.0.status(), 401);
    client.write(format!("{POST}{}content-length: 2\r\n\r\n{{}}", fields())).await;
    let (head, body) = client.message().await;
    assert_eq!((head.status(), &*body), (200, "answered"));
}

#[tokio::test]
async fn even_the_error_of_a_request_that_cannot_be_read_has_a_request_id() {
    let (model, _) = start_counting_model().await;
    let router = start_with(&endpoint(&[model.address], "{}"), Kubernetes, |settings| {
        settings.limits.max_header_bytes = 8192;
        settings.limits.header_read_timeout = Duration::from_millis(50);
    });
    for (head, code) in [
        ("this is not HTTP\r\n\r\n".to_owned(), "bad_request"),
        (format!("{POST}{}x-long: {}\r\n\r\n", fields(), "x".repeat(10_000)), "head_too_large"),
        (format!("{POST}host: router"), "client_timeout"),
    ] {
        let mut client = Wire::connect(router.scoring).await;
        client.write(&head).await;
        let answer = read_answer_to_end(&mut client).await;
        assert_eq!(answer.code(), code);
        assert_eq!(answer.json()["requestId"], answer.header("x-request-id"), "{answer:?}");
    }
}

#[tokio::test]
async fn every_error_has_a_request_id_of_its_own() {
    let router = start(&endpoint(&[unused_address()], "{}"), Kubernetes);
    let first = call(router.scoring, with_authorization(None)).await;
    let second = call(router.scoring, with_authorization(None)).await;
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    assert_ne!(first.json()["requestId"], second.json()["requestId"]);
}
