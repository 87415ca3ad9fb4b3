//! Unusual peers: what they do must neither confuse the other side nor outlast its cause.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{KEY, Model, Router, call, endpoint, score, send_raw, with_timeout};

/// A model that reads a request and answers with these bytes.
async fn start_raw_model(bytes: &'static [u8]) -> Model {
    Model::from_connections(move |mut stream| async move {
        let mut request = [0; 16 * 1024];
        if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
            let _ = stream.write_all(bytes).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_model_that_changes_the_protocol_unasked_is_an_error() {
    let model =
        start_raw_model(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: odd\r\n\r\n").await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let answer = router.score("{}").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_GATEWAY, "replica_closed"));
}

#[tokio::test]
async fn of_two_lengths_a_model_gives_the_encoding_counts() {
    let model = start_raw_model(
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    assert_eq!(router.score("{}").await.text(), "hello");
}

#[tokio::test]
async fn a_client_cannot_erase_where_a_request_came_from() {
    let (model, mut asked) = Model::manual().await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let mut request = score("{}");
    request.headers_mut().insert("x-forwarded-for", "10.1.2.3".parse().unwrap());
    request.headers_mut().insert("connection", "x-forwarded-for, content-length".parse().unwrap());
    let answer = tokio::spawn(call(router.scoring, request));
    let asked = with_timeout("the request", asked.recv()).await.unwrap();
    assert_eq!(asked.request.headers()["x-forwarded-for"], "10.1.2.3, 127.0.0.1");
    assert_eq!(asked.request.headers()["content-length"], "2");
    asked.answer("{}");
    assert_eq!(answer.await.unwrap().status, 200);
}

#[tokio::test]
async fn heads_that_come_by_http2_have_the_same_limits() {
    let model = Model::named("answer").await;
    let router = Router::start_with(&[&endpoint(&[model.address], "{}")], |settings| {
        settings.limits.max_headers = 20;
        settings.limits.max_header_bytes = 8192;
    });
    let stream = TcpStream::connect(router.scoring).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = |fields: usize, length: usize| {
        let mut request = Request::post(format!("http://{}/api/v1/endpoint/my-endpoint/score", router.scoring))
            .version(Version::HTTP_2)
            .header("authorization", format!("Bearer {KEY}"));
        for number in 0..fields {
            request = request.header(format!("x-{number}"), "a".repeat(length));
        }
        request.body(Full::<Bytes>::default()).unwrap()
    };
    for (fields, length, status) in [(10, 10, 200), (30, 1, 431), (10, 1000, 431), (10, 10, 200)] {
        let response = with_timeout("a response", sender.send_request(request(fields, length))).await.unwrap();
        assert_eq!(response.status(), status, "{fields} fields of {length} bytes");
        if status != 200 {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_is_counted_as_one_that_left() {
    let model = Model::named("never").await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let mut stream = TcpStream::connect(router.scoring).await.unwrap();
    let head = format!(
        "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: 100\r\n\r\nhalf"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let left = r#"inference_router_requests_total{code="499",deployment_name="blue",endpoint_name="my-endpoint",model_code=""}"#;
    with_timeout("the count", async {
        while router.metric(left).await != Some(1.0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn half_a_head_does_not_hold_up_the_end() {
    let model = Model::named("answer").await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let mut stream = TcpStream::connect(router.scoring).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    // Another connection's answer shows that the first one's bytes have been seen: one worker serves both.
    send_raw(router.scoring, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let told = Instant::now();
    tokio::task::spawn_blocking(move || router.join()).await.unwrap().unwrap();
    assert!(told.elapsed() < Duration::from_secs(6), "{:?}", told.elapsed());
}

#[tokio::test]
async fn heads_that_a_model_could_read_otherwise_are_refused() {
    let model = Model::named("never").await;
    let router = Router::start(&[&endpoint(&[model.address], "{}")]);
    let head = |lines: &str| {
        format!(
            "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\
             {lines}\r\n0\r\n\r\n"
        )
    };
    for lines in [
        "host: x\r\nhost: x\r\ntransfer-encoding: chunked\r\n",
        "host: a b\r\ntransfer-encoding: chunked\r\n",
        "host: a/b@c\r\ntransfer-encoding: chunked\r\n",
        "host: x\r\ntransfer-encoding: gzip, chunked\r\n",
        "host: x\r\ntransfer-encoding: chunked, chunked\r\n",
        "host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\n",
    ] {
        let answer = send_raw(router.scoring, head(lines)).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad_request"), "{lines:?}: {answer}");
    }
    let answer = send_raw(router.scoring, head("host: x\r\ntransfer-encoding: Chunked\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("never"), "{answer}");
}

#[tokio::test]
async fn of_two_dead_replicas_and_a_good_one_the_good_one_is_found() {
    let model = Model::named("found").await;
    // Held together for a moment, so that they differ.
    let dead =
        [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).map(|held| held.local_addr().unwrap());
    // Busier than the dead ones, the good one is the last to be tried.
    let router =
        Router::start(&[&endpoint(&[dead[0], model.address, dead[1]], "{maxConcurrentRequestsPerInstance: 8}")]);
    let answers = futures_util::future::join_all((0..16).map(|_| router.score("{}"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}
