//! Promises about scoring over HTTP (`docs/reference/http.md`).

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Answer, KEY, Model, Router, call, document, endpoint, full_body, score, with_timeout};
use crate::wire::{self, Head, Wire, channel_frames, next_value};

const POST: &str = "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\n";
/// Long enough never to be in the way.
const LONG_TIMEOUTS: &str = "{requestTimeoutMs: 60000, maxQueueWaitMs: 60000, maxConcurrentRequestsPerInstance: 8}";

fn fields() -> String {
    format!("host: router.example\r\nauthorization: Bearer {KEY}\r\n")
}

/// Ends soon, whatever is still in flight.
fn start(document: &str) -> Router {
    Router::start_with(&[document], |settings| settings.shutdown.drain_timeout = Duration::from_millis(100))
}

/// A model that answers with what it was asked, as JSON: method, target, headers (lists), body.
async fn echo() -> Model {
    Model::http(|request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        let mut headers = serde_json::Map::new();
        for (name, value) in &head.headers {
            let values = headers.entry(name.as_str()).or_insert_with(|| serde_json::json!([]));
            values.as_array_mut().unwrap().push(value.to_str().unwrap().into());
        }
        let seen = serde_json::json!({
            "method": head.method.as_str(), "target": head.uri.to_string(), "headers": headers,
            "body": body.unwrap_or_default(),
        });
        Response::new(full_body(seen.to_string()))
    })
    .await
}

/// The values of a header in an echo, joined.
fn echoed(answer: &Answer, name: &str) -> Option<String> {
    let json = answer.json();
    let values: Vec<&str> = json["headers"][name].as_array()?.iter().map(|value| value.as_str().unwrap()).collect();
    Some(values.join(", "))
}

fn request(method: Method, path: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {KEY}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

async fn send_with_fields(router: &Router, method: Method, path: &str, fields: &[(&str, &str)]) -> Answer {
    call(router.scoring, request(method, path, fields)).await
}

async fn get(router: &Router, fields: &[(&str, &str)]) -> Answer {
    send_with_fields(router, Method::GET, "/api/v1/endpoint/my-endpoint/score", fields).await
}

#[track_caller]
fn assert_uuid_v4(text: &str) {
    let shape: String = text
        .chars()
        .map(|c| match c {
            '0'..='9' | 'a'..='f' => 'h',
            other => other,
        })
        .collect();
    assert_eq!(shape, "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "{text}");
    assert!(text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]), "not a v4: {text}");
}

// Paths and methods.

#[tokio::test]
async fn score_and_swagger_go_to_the_deployments_own_paths() {
    let model = echo().await;
    let deployments = format!(
        "- {{name: blue, instances: [\"{}\"], scoringPath: /predict, swaggerPath: /docs/openapi.json}}",
        model.address
    );
    let router = start(&document("traffic: {blue: 100}", &deployments));
    for family in ["endpoint", "service"] {
        let base = format!("/api/v1/{family}/my-endpoint");
        for (method, path, expected) in [
            (Method::POST, "/score", "/predict"),
            (Method::GET, "/score", "/predict"),
            (Method::POST, "/score?a=1&b=%20", "/predict?a=1&b=%20"),
            (Method::GET, "/swagger.json", "/docs/openapi.json"),
            (Method::GET, "/swagger.json?version=3", "/docs/openapi.json?version=3"),
        ] {
            let answer = send_with_fields(&router, method.clone(), &format!("{base}{path}"), &[]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["target"], expected, "{method} {base}{path}");
        }
    }
}

#[tokio::test]
async fn any_other_path_reaches_the_model_as_it_is_with_its_query() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for family in ["endpoint", "service"] {
        for path in [
            "/v1/chat/completions",
            "/v2/models/iris/infer?x=1&x=2",
            "/v1/models/half:predict",
            "/a%20b/%C3%A9?q=%2F..%2F&r=a+b",
            "/scores",
            "/score/extra",
            "/trailing/",
            "/a?",
            "/.hidden/..name/a..b/...",
        ] {
            let answer =
                send_with_fields(&router, Method::POST, &format!("/api/v1/{family}/my-endpoint{path}"), &[]).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert_eq!(answer.json()["target"], path);
        }
    }
}

#[tokio::test]
async fn dot_segments_plain_or_encoded_are_refused() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for path in ["/../admin", "/a/../b", "/a/./b", "/a/..", "/.", "/%2e%2e/admin", "/%2E./a", "/.%2e", "/a/%2e/b"] {
        let path = format!("/api/v1/endpoint/my-endpoint{path}");
        let answer = send_with_fields(&router, Method::GET, &path, &[]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "bad_request"), "{path}");
    }
}

#[tokio::test]
async fn dot_segments_behind_an_encoded_separator_are_refused() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for path in ["/..%2fadmin", "/a%2F..%2Fb", "/%2e%2e%2fadmin", "/a%2f%2e%2e"] {
        let path = format!("/api/v1/endpoint/my-endpoint{path}");
        let answer = send_with_fields(&router, Method::GET, &path, &[]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "bad_request"), "{path}");
    }
}

#[tokio::test]
async fn a_percent_sign_without_two_digits_is_refused() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for path in ["/%zz", "/a%2", "/%"] {
        let path = format!("/api/v1/endpoint/my-endpoint{path}");
        let answer = send_with_fields(&router, Method::GET, &path, &[]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "bad_request"), "{path}");
    }
}

#[tokio::test]
async fn every_method_but_connect_and_trace_reaches_the_model() {
    let model = Model::http(|request: Request<_>| async move {
        Response::builder().header("x-method", request.method().as_str()).body(full_body("")).unwrap()
    })
    .await;
    let router = start(&endpoint(&[model.address], "{}"));
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "QUERY"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = send_with_fields(&router, method.clone(), "/api/v1/endpoint/my-endpoint/thing", &[]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-method")), (200, method.as_str()));
    }
    for target in ["TRACE /api/v1/endpoint/my-endpoint/score", "CONNECT my-endpoint:80"] {
        let mut client = Wire::connect(router.scoring).await;
        client.write(format!("{target} HTTP/1.1\r\n{}\r\n", fields())).await;
        let head = client.head().await;
        assert!(matches!(head.status(), 400 | 404 | 405 | 501), "{target}: {head:?}");
        assert_eq!(head.get("x-method"), None, "the model was asked: {head:?}");
        assert_eq!(head.get("content-type").as_deref(), Some("application/problem+json"), "{target}");
    }
}

#[tokio::test]
async fn an_answer_to_head_keeps_the_models_length_and_has_no_body() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    for _ in 0..2 {
        client.write(format!("HEAD /api/v1/endpoint/my-endpoint/x HTTP/1.1\r\n{}\r\n", fields())).await;
        let mut upstream = next_value("a connection", &mut wires).await;
        assert!(upstream.head().await.start_line.starts_with("HEAD /x "));
        upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nconnection: close\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!((head.status(), head.length()), (200, 1234));
    }
    assert!(client.is_silent());
}

#[tokio::test]
async fn endpoint_names_are_compared_without_case() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for path in ["/api/v1/endpoint/MY-ENDPOINT/score", "/api/v1/service/My-Endpoint/score"] {
        assert_eq!(send_with_fields(&router, Method::POST, path, &[]).await.status, 200, "{path}");
    }
}

// The choice of a deployment.

fn blue_and_green_document(blue: SocketAddr, green: SocketAddr, traffic: &str) -> String {
    document(
        &format!("traffic: {traffic}"),
        &format!("- {{name: blue, instances: [\"{blue}\"]}}\n- {{name: green, instances: [\"{green}\"]}}"),
    )
}

#[tokio::test]
async fn a_named_deployment_answers_whatever_its_weight_and_in_any_case() {
    let (blue, green) = (Model::named("from blue").await, Model::named("from green").await);
    let router = start(&blue_and_green_document(blue.address, green.address, "{blue: 100, green: 0}"));
    for (name, expected) in [("green", "green"), ("GREEN", "green"), ("gReEn", "green"), ("Blue", "blue")] {
        let answer = get(&router, &[("azureml-model-deployment", name)]).await;
        assert_eq!(answer.text(), format!("from {expected}"));
        assert_eq!(answer.header("azureml-model-deployment"), expected);
    }
    let answer = get(&router, &[("azureml-model-deployment", "red")]).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (404, "deployment_not_found"));
}

#[tokio::test]
async fn live_traffic_is_split_by_weight_on_keep_alive_connections() {
    const REQUESTS: u32 = 2000;
    const CONNECTIONS: u32 = 4;
    let (blue, green) = (Model::named("from blue").await, Model::named("from green").await);
    let router = start(&blue_and_green_document(blue.address, green.address, "{blue: 90, green: 10}"));
    let mut greens = 0;
    for _ in 0..CONNECTIONS {
        let mut client = Wire::connect(router.scoring).await;
        for _ in 0..REQUESTS / CONNECTIONS {
            client.write(format!("{POST}{}content-length: 2\r\n\r\n{{}}", fields())).await;
            let (head, body) = client.message().await;
            assert_eq!(head.get("azureml-model-deployment").map(|name| format!("from {name}")), Some(body.clone()));
            greens += u32::from(body == "from green");
        }
    }
    let expected = 0.1 * f64::from(REQUESTS);
    let sigma = (f64::from(REQUESTS) * 0.1 * 0.9).sqrt();
    assert!((f64::from(greens) - expected).abs() <= 5.0 * sigma, "{greens} of {REQUESTS} went to 10 %");
}

// Headers.

#[tokio::test]
async fn the_request_id_is_always_fresh_and_the_same_for_model_and_client() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let mut seen = HashSet::new();
    for own in [&[][..], &[("x-request-id", "11111111-1111-4111-8111-111111111111")], &[("x-request-id", "mine")]] {
        for _ in 0..3 {
            let answer = get(&router, own).await;
            let id = answer.header("x-request-id").to_owned();
            assert_uuid_v4(&id);
            assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
            assert_eq!(echoed(&answer, "x-request-id").as_deref(), Some(&*id));
            assert!(seen.insert(id), "not fresh");
        }
    }
    assert!(!seen.contains("11111111-1111-4111-8111-111111111111"));
}

#[tokio::test]
async fn a_models_own_request_id_does_not_replace_the_routers() {
    let model = Model::http(|_| async {
        Response::builder().header("x-request-id", "models-own").body(full_body("")).unwrap()
    })
    .await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = get(&router, &[]).await;
    assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
    assert_uuid_v4(answer.header("x-request-id"));
}

#[tokio::test]
async fn a_client_request_id_is_echoed_and_cut_at_40() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for (sent, expected) in [
        ("abc-DEF_123".to_owned(), "abc-DEF_123".to_owned()),
        ("x".repeat(40), "x".repeat(40)),
        ("y".repeat(41), "y".repeat(40)),
    ] {
        let answer = get(&router, &[("x-ms-client-request-id", &sent)]).await;
        assert_eq!(answer.header("x-ms-client-request-id"), expected);
        assert_eq!(answer.headers.get_all("x-ms-client-request-id").iter().count(), 1);
    }
    // Errors carry it too.
    let mut wrong = request(Method::GET, "/api/v1/endpoint/my-endpoint/score", &[("x-ms-client-request-id", "mine")]);
    wrong.headers_mut().insert("authorization", "Bearer wrong".parse().unwrap());
    assert_eq!(call(router.scoring, wrong).await.header("x-ms-client-request-id"), "mine");
    assert!(!get(&router, &[]).await.headers.contains_key("x-ms-client-request-id"));
}

#[tokio::test]
async fn other_characters_of_a_client_request_id_are_not_echoed() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for sent in ["a b", "a;b=<script>", "../../etc", "a,b"] {
        let answer = get(&router, &[("x-ms-client-request-id", sent)]).await;
        let seen = answer.headers.get("x-ms-client-request-id").map(|value| value.to_str().unwrap().to_owned());
        assert!(seen.as_deref().is_none_or(is_client_request_id), "{sent}: {seen:?}");
    }
}

#[tokio::test]
async fn the_model_sees_a_client_request_id_only_as_it_is_echoed() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    for sent in ["abc-DEF_123".to_owned(), "y".repeat(41), "a b".to_owned()] {
        let answer = get(&router, &[("x-ms-client-request-id", &sent)]).await;
        let client = answer.headers.get("x-ms-client-request-id").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(echoed(&answer, "x-ms-client-request-id"), client, "{sent}");
    }
}

fn is_client_request_id(id: &str) -> bool {
    id.len() <= 40 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[tokio::test]
async fn a_w3c_trace_is_continued() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = get(&router, &[("traceparent", sent), ("tracestate", "vendor=a,other=b")]).await;
    let seen = echoed(&answer, "traceparent").unwrap();
    let parts: Vec<&str> = seen.split('-').collect();
    assert_eq!((parts.len(), parts[0], parts[1]), (4, "00", "4bf92f3577b34da6a3ce929d0e0e4736"), "{seen}");
    assert_eq!((parts[2].len(), parts[3]), (16, "01"), "{seen}");
    assert_eq!(echoed(&answer, "tracestate").as_deref(), Some("vendor=a,other=b"));
}

#[tokio::test]
async fn hop_by_hop_headers_of_the_client_do_not_reach_the_model() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = get(
        &router,
        &[
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("connection", "X-Other-Hop"),
            ("x-other-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("x-end-to-end", "kept"),
        ],
    )
    .await;
    assert_eq!(echoed(&answer, "x-end-to-end").as_deref(), Some("kept"));
    for name in ["x-hop", "x-other-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"] {
        assert_eq!(echoed(&answer, name), None, "{name} reached the model");
    }
    let connection = echoed(&answer, "connection").unwrap_or_default().to_ascii_lowercase();
    assert!(!connection.contains("hop"), "{connection}");
}

#[tokio::test]
async fn hop_by_hop_headers_of_the_model_do_not_reach_the_client() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    let hops = "connection: x-hop, close\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: close\r\n\
                upgrade: h2c\r\nx-end-to-end: kept\r\n";
    upstream.write(format!("HTTP/1.1 200 OK\r\n{hops}content-length: 2\r\n\r\nok")).await;
    let (head, body) = client.message().await;
    assert_eq!((head.status(), &*body, head.get("x-end-to-end").as_deref()), (200, "ok", Some("kept")));
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(head.get(name), None, "{name} reached the client");
    }
    assert!(head.get("connection").is_none_or(|value| value.eq_ignore_ascii_case("keep-alive")), "{head:?}");
    // The model's `close` was for the router: the client's connection goes on.
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("another connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nagain").await;
    assert_eq!(client.message().await.1, "again");
}

#[tokio::test]
async fn the_model_learns_who_asked_by_appended_forwarded_headers() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = get(&router, &[("host", "api.example")]).await;
    for (name, expected) in
        [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "api.example")]
    {
        assert_eq!(echoed(&answer, name).as_deref(), Some(expected), "{name}");
    }
    let before = [
        ("host", "api.example"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public.example"),
    ];
    let answer = get(&router, &before).await;
    for (name, expected) in [
        ("x-forwarded-for", "203.0.113.9, 127.0.0.1"),
        ("x-forwarded-proto", "https, http"),
        ("x-forwarded-host", "public.example, api.example"),
    ] {
        assert_eq!(echoed(&answer, name).as_deref(), Some(expected), "{name}");
    }
}

#[tokio::test]
async fn host_is_the_address_of_the_replica() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = get(&router, &[("host", "api.example")]).await;
    assert_eq!(echoed(&answer, "host"), Some(model.address.to_string()));
}

#[tokio::test]
async fn the_clients_credential_is_hidden_from_the_model_unless_asked() {
    let model = echo().await;
    for (setting, expected) in
        [("", None), (", forwardAuthorization: false", None), (", forwardAuthorization: true", Some("Bearer"))]
    {
        let deployments = format!("- {{name: blue, instances: [\"{}\"]{setting}}}", model.address);
        let router = start(&document("traffic: {blue: 100}", &deployments));
        let seen = echoed(&get(&router, &[]).await, "authorization");
        assert_eq!(seen, expected.map(|scheme| format!("{scheme} {KEY}")), "{setting}");
    }
}

#[tokio::test]
async fn answers_say_who_answered_and_how_long_it_took() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = get(&router, &[]).await;
    assert_eq!(answer.header("azureml-model-deployment"), "blue");
    let time: f64 = answer.header("ms-azureml-model-time").parse().unwrap();
    assert!((0.0..20_000.0).contains(&time), "{time}");
    let timing: Vec<&str> = answer.header("server-timing").split(',').map(str::trim).collect();
    for metric in ["queue", "model"] {
        let found = timing.iter().find_map(|item| item.strip_prefix(metric)?.strip_prefix(";dur="));
        assert!(found.is_some_and(|text| text.parse::<f64>().is_ok_and(|ms| ms >= 0.0)), "{metric}: {timing:?}");
    }
}

// Bodies.

/// A client and the model's side of its request, after the head of a chunked request passed.
async fn start_chunked_request(
    router: &Router,
    wires: &mut tokio::sync::mpsc::UnboundedReceiver<Wire>,
    more: &str,
) -> (Wire, Wire, Head) {
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}{more}transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n", fields())).await;
    let mut upstream = next_value("a connection", wires).await;
    let head = upstream.head().await;
    upstream.expect_chunks("first").await;
    (client, upstream, head)
}

#[tokio::test]
async fn bodies_stream_both_ways_piece_by_piece() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    // That the model has the first piece before the client sends the second is in here.
    let (mut client, mut upstream, _) = start_chunked_request(&router, &mut wires, "").await;
    client.write("6\r\nsecond\r\n").await;
    upstream.expect_chunks("second").await;
    // The response may begin before the request has ended.
    upstream.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nalpha\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("alpha").await;
    client.write("5\r\nthird\r\n0\r\n\r\n").await;
    upstream.expect_chunks("third").await;
    upstream.read_last_chunk().await;
    upstream.write("4\r\nbeta\r\n").await;
    client.expect_chunks("beta").await;
    upstream.write("0\r\n\r\n").await;
    client.read_last_chunk().await;
}

#[tokio::test]
async fn bodies_of_known_length_stream_too() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 11\r\n\r\nfirst", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    assert_eq!(upstream.head().await.length(), 11);
    assert_eq!(upstream.read_exact_text(5).await, "first");
    client.write("second").await;
    assert_eq!(upstream.read_exact_text(6).await, "second");
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nalpha").await;
    assert_eq!(client.head().await.length(), 9);
    assert_eq!(client.read_exact_text(5).await, "alpha");
    upstream.write("beta").await;
    assert_eq!(client.read_exact_text(4).await, "beta");
}

#[tokio::test]
async fn server_sent_events_pass_event_by_event() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.get("content-type").as_deref(), Some("text/event-stream"));
    for event in ["data: one\n\n", "data: two\n\n", ": ping\n\n", "data: [DONE]\n\n"] {
        upstream.write(format!("{:x}\r\n{event}\r\n", event.len())).await;
        client.expect_chunks(event).await;
    }
    upstream.write("0\r\n\r\n").await;
    client.read_last_chunk().await;
}

#[tokio::test]
async fn a_response_that_ends_with_the_models_connection_is_whole() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let asked = tokio::spawn(call(router.scoring, score("{}")));
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    drop(upstream);
    assert_eq!(asked.await.unwrap().text(), "until the end");
}

/// What nobody announced can end only with the connection; a connection that breaks ends nothing.
#[tokio::test]
async fn a_response_whose_connection_breaks_is_not_whole() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\n\r\nfirst half").await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("first half").await;
    let stream = upstream.stream.into_inner();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(client.read_to_end().await, "", "the last chunk would say that it is whole");
    let broken = r#"inference_router_requests_rejected_total{deployment_name="blue",endpoint_name="my-endpoint",reason="response_broke_off"}"#;
    assert_eq!(router.metric(broken).await, Some(1.0));
}

#[tokio::test]
async fn a_model_that_takes_no_body_is_late_not_its_client() {
    let (model, mut wires) = wire::start_wire_model().await;
    let settings = "{requestTimeoutMs: 300, maxConcurrentRequestsPerInstance: 8}";
    let router = start(&endpoint(&[model.address], settings));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 50000000\r\n\r\n", fields())).await;
    let piece = vec![b'x'; 1 << 20];
    // Ends when the router gives up and closes.
    let (mut from, mut to) = client.stream.into_inner().into_split();
    let sent = tokio::spawn(async move { while to.write_all(&piece).await.is_ok() {} });
    let _upstream = next_value("a connection", &mut wires).await;
    let mut answer = String::new();
    with_timeout("an answer", from.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("model_timeout"), "{answer}");
    with_timeout("the end", sent).await.unwrap();
}

#[tokio::test]
async fn trailers_cannot_pass_for_headers_of_the_router() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    let head = "transfer-encoding: chunked\r\nte: trailers\r\nconnection: te\r\n";
    let trailers = "x-ok: 1\r\nconnection: close\r\nkeep-alive: 5\r\nx-request-id: evil\r\nx-forwarded-for: evil\r\n";
    client.write(format!("{POST}{}{head}\r\n0\r\n{trailers}\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.head().await;
    let kept = [("x-ok".to_owned(), "1".to_owned())];
    assert_eq!(upstream.read_last_chunk().await, kept);
    let announced = "trailer: x-ok, connection, keep-alive, x-request-id, x-forwarded-for\r\n";
    upstream
        .write(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{announced}\r\n2\r\nok\r\n0\r\n{trailers}\r\n"
        ))
        .await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("ok").await;
    assert_eq!(client.read_last_chunk().await, kept);
}

/// HTTP/2 forbids fields of a connection: among trailers they would cost the client the whole answer.
#[tokio::test]
async fn trailers_of_a_connection_do_not_cost_http2_clients_their_answer() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut sender = connect_http2(&router).await;
    for (answer, text) in [
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nconnection: close\r\nx-ok: 1\r\n\r\n", "ok"),
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nte: x\r\n\r\n", "ok"),
        ("204 No Content\r\ncontent-length: 5\r\n\r\n", ""),
    ] {
        let asked = tokio::spawn(sender.send_request(http2_scoring_request(full_body(""))));
        let mut upstream = next_value("a connection", &mut wires).await;
        upstream.message().await;
        upstream.write(format!("HTTP/1.1 {answer}")).await;
        drop(upstream);
        let response = with_timeout("a response", asked).await.unwrap().unwrap();
        assert!(!response.headers().contains_key("content-length"), "{answer}");
        let body = with_timeout("a body", response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes(), text, "{answer}");
    }
}

/// A client must know whether its connection can be used again: the body of a request that is refused is read where it
/// is there, and where it is not, the answer says that the connection ends.
#[tokio::test]
async fn a_refusal_says_whether_the_connection_goes_on() {
    let model = Model::named("never").await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let wrong = "POST /api/v1/endpoint/nobody/score HTTP/1.1\r\nhost: x\r\n";
    let mut client = Wire::connect(router.scoring).await;
    for body in
        ["content-length: 0\r\n\r\n", "content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"]
    {
        client.write(format!("{wrong}{body}")).await;
        let (head, _) = client.message().await;
        assert_eq!((head.status(), head.get("connection")), (404, None), "{body:?}");
    }
    client.write(format!("{wrong}content-length: 5\r\n\r\n")).await;
    let (head, _) = client.message().await;
    assert_eq!((head.status(), head.get("connection").as_deref()), (404, Some("close")));
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn trailers_of_a_response_pass() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}te: trailers\r\nconnection: te\r\ncontent-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream
        .write(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n2\r\nok\r\n0\r\n\
             x-checksum: abc\r\n\r\n",
        )
        .await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("ok").await;
    assert_eq!(client.read_last_chunk().await, [("x-checksum".to_owned(), "abc".to_owned())]);
}

#[tokio::test]
async fn trailers_of_a_request_pass() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let (mut client, mut upstream, head) = start_chunked_request(&router, &mut wires, "trailer: x-checksum\r\n").await;
    assert_eq!(head.get("trailer").as_deref(), Some("x-checksum"));
    // Announced or not; those that would change what the request means, not.
    client.write("0\r\nx-checksum: abc\r\ncontent-length: 5\r\nx-unannounced: def\r\n\r\n").await;
    let trailers = [("x-checksum", "abc"), ("x-unannounced", "def")];
    assert_eq!(upstream.read_last_chunk().await, trailers.map(|(name, value)| (name.to_owned(), value.to_owned())));
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.message().await.1, "ok");
}

#[tokio::test]
async fn a_response_may_have_many_headers() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    let many: String = (0..200).map(|number| format!("x-{number}: {number}\r\n")).collect();
    upstream.write(format!("HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok")).await;
    let (head, body) = client.message().await;
    assert_eq!((head.status(), body.as_str(), head.get("x-199").as_deref()), (200, "ok", Some("199")));
}

#[tokio::test]
async fn informational_responses_of_the_model_are_not_its_answer() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let asked = tokio::spawn(call(router.scoring, score("{}")));
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let answer = asked.await.unwrap();
    assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "ok"));
}

// Connections of clients.

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_continue_and_then_answered() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}expect: 100-continue\r\ncontent-length: 5\r\n\r\n", fields())).await;
    assert_eq!(client.head().await.status(), 100);
    client.write("hello").await;
    let (head, body) = client.message().await;
    assert_eq!(head.status(), 200, "{head:?}");
    assert!(body.contains("hello"), "{body}");
}

#[tokio::test]
async fn a_client_that_expects_100_with_a_wrong_key_gets_only_401() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let mut client = Wire::connect(router.scoring).await;
    let wrong = "host: x\r\nauthorization: Bearer wrong\r\n";
    client.write(format!("{POST}{wrong}expect: 100-continue\r\ncontent-length: 5\r\n\r\n")).await;
    assert_eq!(client.head().await.status(), 401);
}

#[tokio::test]
async fn a_client_that_expects_100_is_not_told_to_continue_before_it_is_admitted() {
    let (model, mut asked) = Model::manual().await;
    let router = start(&endpoint(&[model.address], "{requestTimeoutMs: 60000, maxQueueWaitMs: 60000}"));
    let first = tokio::spawn(call(router.scoring, score("{}")));
    let busy = next_value("the first request", &mut asked).await;
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}expect: 100-continue\r\ncontent-length: 5\r\n\r\n", fields())).await;
    with_timeout("a request in the queue", async {
        loop {
            let metrics = router.admin("/metrics").await.text();
            if metrics.lines().any(|l| l.starts_with("inference_router_queue_length{") && l.ends_with(" 1")) {
                break;
            }
        }
    })
    .await;
    assert!(client.is_silent(), "told to continue before it was admitted");
    busy.answer("first");
    assert_eq!(first.await.unwrap().text(), "first");
    assert_eq!(client.head().await.status(), 100);
    client.write("hello").await;
    next_value("the second request", &mut asked).await.answer("second");
    assert_eq!(client.message().await.1, "second");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let one = |n| format!("GET /api/v1/endpoint/my-endpoint/n?{n} HTTP/1.1\r\n{}\r\n", fields());
    let mut client = Wire::connect(router.scoring).await;
    client.write((0..5).map(one).collect::<String>()).await;
    for n in 0..5 {
        let (head, body) = client.message().await;
        assert_eq!(head.status(), 200);
        assert!(body.contains(&format!("\"/n?{n}\"")), "{n}: {body}");
    }
}

#[tokio::test]
async fn a_clients_connection_serves_one_request_after_another() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let mut client = Wire::connect(router.scoring).await;
    for n in 0..10 {
        client.write(format!("{POST}{}content-length: 3\r\n\r\nn={n}", fields())).await;
        let (head, body) = client.message().await;
        assert_eq!(head.status(), 200);
        assert!(body.contains(&format!("n={n}")), "{body}");
    }
    client.write(format!("{POST}{}connection: close\r\ncontent-length: 0\r\n\r\n", fields())).await;
    let (head, _) = client.message().await;
    assert_eq!(head.get("connection").as_deref(), Some("close"));
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn connections_to_a_replica_are_reused() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    let mut upstream = None;
    for _ in 0..5 {
        client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
        let upstream = match &mut upstream {
            None => upstream.insert(next_value("a connection", &mut wires).await),
            Some(upstream) => upstream,
        };
        upstream.message().await;
        upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(client.message().await.1, "ok");
    }
    assert!(wires.try_recv().is_err(), "more than one connection");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_answer_it_can_read() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    let key = format!("authorization: Bearer {KEY}\r\n");
    client.write(format!("GET /api/v1/endpoint/my-endpoint/score HTTP/1.0\r\n{key}\r\n")).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("transfer-encoding")), (200, None));
    assert_eq!(client.read_to_end().await, "onetwo");
}

// Responses that break off.

#[tokio::test]
async fn a_chunked_response_that_breaks_off_does_not_look_whole() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nalpha\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("alpha").await;
    drop(upstream);
    assert_eq!(client.read_to_end().await, "", "the connection must just end");
}

#[tokio::test]
async fn a_response_of_known_length_that_breaks_off_is_closed_short() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nalpha").await;
    assert_eq!(client.head().await.length(), 10);
    assert_eq!(client.read_exact_text(5).await, "alpha");
    drop(upstream);
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn a_response_that_falls_silent_breaks_off() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], "{streamIdleTimeoutMs: 50}"));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nalpha\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.expect_chunks("alpha").await;
    assert_eq!(client.read_to_end().await, "", "the connection must just end");
}

// Back-pressure.

const LARGE_BODY_BYTES: usize = 64 << 20;
/// More than the kernel's buffers of two loopback connections hold.
const MAX_BUFFERED_BYTES: usize = 40 << 20;

/// Writes `ENDLESS` bytes, or as many as are taken until the other side has taken nothing for a while.
async fn write_until_stalled(stream: &mut TcpStream) -> usize {
    let block = vec![b'x'; 64 << 10];
    let mut taken = 0;
    while taken < LARGE_BODY_BYTES {
        let most = block.len().min(LARGE_BODY_BYTES - taken);
        match tokio::time::timeout(Duration::from_secs(1), stream.write(&block[..most])).await {
            Ok(written) => taken += written.unwrap(),
            Err(_) => break,
        }
    }
    taken
}

/// Writes what `fill` left, while the other side reads again.
async fn write_remaining(stream: &mut TcpStream, taken: usize) {
    stream.write_all(&vec![b'x'; LARGE_BODY_BYTES - taken]).await.unwrap();
}

async fn read_all_bytes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> usize {
    let (mut total, mut block) = (0, vec![0; 64 << 10]);
    while total < LARGE_BODY_BYTES {
        match stream.read(&mut block).await.unwrap() {
            0 => break,
            read => total += read,
        }
    }
    total
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_the_model() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE_BODY_BYTES}\r\n\r\n")).await;
    client.head().await;
    let upstream = upstream.stream.get_mut();
    let taken = write_until_stalled(upstream).await;
    assert!(taken <= MAX_BUFFERED_BYTES, "{taken} bytes were taken for a client that reads nothing");
    let (drained, ()) = with_timeout("the rest", async {
        tokio::join!(read_all_bytes(&mut client.stream), write_remaining(upstream, taken))
    })
    .await;
    assert_eq!(drained, LARGE_BODY_BYTES);
}

#[tokio::test]
async fn a_model_that_stops_reading_stops_the_client() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: {LARGE_BODY_BYTES}\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.head().await;
    let stream = client.stream.get_mut();
    let taken = write_until_stalled(stream).await;
    assert!(taken <= MAX_BUFFERED_BYTES, "{taken} bytes were taken for a model that reads nothing");
    let (drained, ()) = with_timeout("the rest", async {
        tokio::join!(read_all_bytes(&mut upstream.stream), write_remaining(stream, taken))
    })
    .await;
    assert_eq!(drained, LARGE_BODY_BYTES);
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.message().await.1, "ok");
}

// HTTP/2.

type H2Sender = SendRequest<BoxBody<Bytes, std::io::Error>>;

pub(crate) async fn connect_http2(router: &Router) -> H2Sender {
    let stream = TcpStream::connect(router.scoring).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn http2_scoring_request(body: BoxBody<Bytes, std::io::Error>) -> Request<BoxBody<Bytes, std::io::Error>> {
    Request::post("http://router.example/api/v1/endpoint/my-endpoint/score")
        .header("authorization", format!("Bearer {KEY}"))
        .body(body)
        .unwrap()
}

async fn collect<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Answer {
    let (head, body) = response.into_parts();
    let body = with_timeout("a body", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned();
    Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
}

/// The next piece of data of a body.
async fn data<B: Body<Data = Bytes, Error: std::fmt::Debug> + Unpin>(body: &mut B) -> Bytes {
    with_timeout("a frame", body.frame()).await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let mut client = connect_http2(&router).await;
    let answer = collect(
        with_timeout("an answer", client.send_request(http2_scoring_request(full_body("hello")))).await.unwrap(),
    )
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((answer.json()["target"].as_str(), answer.json()["body"].as_str()), (Some("/score"), Some("hello")));
    assert_eq!(echoed(&answer, "host"), Some(model.address.to_string()));
    assert_uuid_v4(answer.header("x-request-id"));
    let mut wrong = http2_scoring_request(full_body("hello"));
    wrong.headers_mut().insert("authorization", "Bearer wrong".parse().unwrap());
    let answer = collect(with_timeout("an answer", client.send_request(wrong)).await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (401, "invalid_key"));
}

#[tokio::test]
async fn the_authority_of_http2_is_the_forwarded_host() {
    let model = echo().await;
    let router = start(&endpoint(&[model.address], "{}"));
    let answer = collect(
        with_timeout("an answer", connect_http2(&router).await.send_request(http2_scoring_request(full_body(""))))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(echoed(&answer, "x-forwarded-host").as_deref(), Some("router.example"));
}

#[tokio::test]
async fn http2_streams_are_independent() {
    let (model, mut asked) = Model::manual().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = connect_http2(&router).await;
    let (first, second) = (
        client.send_request(http2_scoring_request(full_body("1"))),
        client.send_request(http2_scoring_request(full_body("2"))),
    );
    let (first, second) = (tokio::spawn(first), tokio::spawn(second));
    let mut reached = Vec::new();
    for _ in 0..2 {
        let mut request = next_value("a request", &mut asked).await;
        let body = data(request.request.body_mut()).await;
        reached.push((body, request));
    }
    reached.sort_by(|a, b| a.0.cmp(&b.0));
    // The later one is answered first.
    reached.pop().unwrap().1.answer("second");
    assert_eq!(collect(with_timeout("the second", second).await.unwrap().unwrap()).await.text(), "second");
    assert!(!first.is_finished());
    reached.pop().unwrap().1.answer("first");
    assert_eq!(collect(with_timeout("the first", first).await.unwrap().unwrap()).await.text(), "first");
}

#[tokio::test]
async fn http2_bodies_and_trailers_stream_both_ways() {
    let (model, mut asked) = Model::manual().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = connect_http2(&router).await;
    let (upload, body) = channel_frames();
    let mut request = http2_scoring_request(body);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request.headers_mut().insert("trailer", "x-sent".parse().unwrap());
    let answered = tokio::spawn(client.send_request(request));
    upload.send(Ok(Frame::data("first".into()))).unwrap();
    let mut request = next_value("the request", &mut asked).await;
    assert_eq!(data(request.request.body_mut()).await, "first");
    upload.send(Ok(Frame::data("second".into()))).unwrap();
    assert_eq!(data(request.request.body_mut()).await, "second");
    let trailer = |name: &'static str| HeaderMap::from_iter([(name.parse().unwrap(), "abc".parse().unwrap())]);
    upload.send(Ok(Frame::trailers(trailer("x-sent")))).unwrap();
    drop(upload);
    let end = with_timeout("the request's trailers", request.request.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["x-sent"], "abc");
    let (download, body) = channel_frames();
    request.respond(Response::builder().header("trailer", "x-got").body(body).unwrap());
    download.send(Ok(Frame::data("alpha".into()))).unwrap();
    let mut response = with_timeout("the head", answered).await.unwrap().unwrap();
    assert_eq!(data(response.body_mut()).await, "alpha");
    download.send(Ok(Frame::data("beta".into()))).unwrap();
    assert_eq!(data(response.body_mut()).await, "beta");
    download.send(Ok(Frame::trailers(trailer("x-got")))).unwrap();
    drop(download);
    let end = with_timeout("the response's trailers", response.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(end.into_trailers().unwrap()["x-got"], "abc");
}

#[tokio::test]
async fn a_reset_http2_stream_is_canceled_at_the_model() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = connect_http2(&router).await;
    let answered = tokio::spawn(client.send_request(http2_scoring_request(full_body("{}"))));
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    answered.abort();
    assert_eq!(upstream.read_to_end().await, "", "the model must see the end of its client");
    // The other streams live.
    let answered = tokio::spawn(client.send_request(http2_scoring_request(full_body("{}"))));
    let mut upstream = next_value("another connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(collect(with_timeout("an answer", answered).await.unwrap().unwrap()).await.text(), "ok");
}

#[tokio::test]
async fn an_http2_response_that_breaks_off_resets_its_stream_only() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = connect_http2(&router).await;
    for framing in ["transfer-encoding: chunked\r\n\r\n5\r\nalpha\r\n", "content-length: 10\r\n\r\nalpha"] {
        let answered = tokio::spawn(client.send_request(http2_scoring_request(full_body("{}"))));
        let mut upstream = next_value("a connection", &mut wires).await;
        upstream.message().await;
        upstream.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        let mut response = with_timeout("the head", answered).await.unwrap().unwrap();
        assert_eq!(data(response.body_mut()).await, "alpha");
        drop(upstream);
        let end = with_timeout("the end", response.body_mut().frame()).await;
        assert!(matches!(end, Some(Err(_))), "looks whole: {end:?}");
    }
    let answered = tokio::spawn(client.send_request(http2_scoring_request(full_body("{}"))));
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(collect(with_timeout("an answer", answered).await.unwrap().unwrap()).await.text(), "ok");
}

#[tokio::test]
async fn an_http2_client_that_stops_reading_stops_the_model() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = connect_http2(&router).await;
    let answered = tokio::spawn(client.send_request(http2_scoring_request(full_body("{}"))));
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    upstream.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE_BODY_BYTES}\r\n\r\n")).await;
    let response = with_timeout("the head", answered).await.unwrap().unwrap();
    let taken = write_until_stalled(upstream.stream.get_mut()).await;
    assert!(taken <= MAX_BUFFERED_BYTES, "{taken} bytes were taken for a client that reads nothing");
    let rest = async { tokio::join!(collect(response), write_remaining(upstream.stream.get_mut(), taken)) };
    let (answer, ()) = with_timeout("the rest", rest).await;
    assert_eq!(answer.body.len(), LARGE_BODY_BYTES);
}

#[tokio::test]
async fn an_early_leaving_client_is_seen_by_the_model() {
    let (model, mut wires) = wire::start_wire_model().await;
    let router = start(&endpoint(&[model.address], LONG_TIMEOUTS));
    let mut client = Wire::connect(router.scoring).await;
    client.write(format!("{POST}{}content-length: 0\r\n\r\n", fields())).await;
    let mut upstream = next_value("a connection", &mut wires).await;
    upstream.message().await;
    drop(client);
    assert_eq!(upstream.read_to_end().await, "");
}

#[tokio::test]
async fn nothing_of_a_large_body_is_lost_or_changed() {
    const SIZE: u32 = 5_000_003;
    let model =
        Model::http(|request| async move { Response::new(request.into_body().map_err(std::io::Error::other).boxed()) })
            .await;
    let router = start(&endpoint(&[model.address], "{}"));
    let body: Bytes = (0..SIZE).map(|n| n.wrapping_mul(31).to_le_bytes()[1]).collect();
    let mut request = score("");
    *request.body_mut() = Full::from(body.clone());
    let answer = call(router.scoring, request).await;
    assert!(answer.body == body, "{} of {SIZE} bytes, or others", answer.body.len());
}
