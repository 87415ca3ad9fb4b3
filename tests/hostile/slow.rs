//! Clients that take their time, a byte now and then: each has a limit, and holds nothing after it.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::frames::{H2Connection, HEADERS, POST_PSEUDO_HEADERS, PREFACE, block, frame, head};
use crate::harness::with_timeout;
use crate::target::{Target, post};

/// Between two bytes of a slow client.
const BYTE_INTERVAL: Duration = Duration::from_millis(20);
const READ_TIMEOUT: Duration = Duration::from_millis(400);

async fn start_impatient_target(request_settings: &str) -> Target {
    Target::start_with(request_settings, |settings| {
        settings.limits.header_read_timeout = READ_TIMEOUT;
        settings.limits.body_idle_timeout = READ_TIMEOUT;
    })
    .await
}

/// Writes `bytes` one by one until they or the connection end; returns what was answered, and how long it took.
async fn write_slowly(stream: TcpStream, bytes: &[u8]) -> (String, Duration) {
    let since = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let mut answer = Vec::new();
    let writing = async {
        for byte in bytes {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(BYTE_INTERVAL).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = writing => {}
        _ = with_timeout("the end of a slow client", reader.read_to_end(&mut answer)) => {}
    }
    (String::from_utf8_lossy(&answer).into_owned(), since.elapsed())
}

fn is_timeout(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"code\":\"client_timeout\"")
}

#[tokio::test]
async fn a_head_that_drips_is_ended_by_its_limit() {
    let mut target = start_impatient_target("{}").await;
    let whole = post(&format!("x: {}\r\n", "y".repeat(1000)), "");
    // From its first letter on, which could be that of HTTP/2 too.
    for bytes in [&whole[..], b"P", b"G", b"\r\n\r\n\r\n", b"POST / HTTP/1.1\r\n"] {
        let stream = TcpStream::connect(target.router.scoring).await.unwrap();
        let (answer, took) = target.serve_good_client_during(write_slowly(stream, bytes)).await;
        assert!(is_timeout(&answer), "{:?}: {answer:?}", String::from_utf8_lossy(bytes));
        assert!(took >= READ_TIMEOUT && took < 20 * READ_TIMEOUT, "{took:?}");
    }
    // The second head of a connection has the same limit.
    let mut stream = TcpStream::connect(target.router.scoring).await.unwrap();
    stream.write_all(&post("content-length: 0\r\n", "")).await.unwrap();
    let (answer, _) = target.serve_good_client_during(write_slowly(stream, &whole)).await;
    let (first, second) = answer.split_at(answer.find("ok").unwrap() + 2);
    assert!(first.starts_with("HTTP/1.1 200 ") && is_timeout(second), "{answer}");
    assert_eq!(target.recorder.take_requests().len(), 1);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_without_a_word() {
    let mut target = start_impatient_target("{}").await;
    for bytes in
        [&b""[..], &PREFACE[..10], PREFACE, &[PREFACE, &frame(HEADERS, 0, 1, &block(&POST_PSEUDO_HEADERS))].concat()]
    {
        let mut stream = TcpStream::connect(target.router.scoring).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let end = target
            .serve_good_client_during(async { with_timeout("the end", stream.read_to_end(&mut answer)).await })
            .await;
        assert!(end.is_ok_and(|_| !answer.starts_with(b"HTTP/1.1 2")), "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_drips_is_ended_by_the_request_s_limit() {
    let mut target = start_impatient_target("{requestTimeoutMs: 700}").await;
    for (fields, body) in [
        ("content-length: 1000\r\n", "x".repeat(1000)),
        ("content-length: 1000000\r\n", "x".repeat(1000)),
        ("transfer-encoding: chunked\r\n", "1\r\nx\r\n".repeat(300)),
        ("transfer-encoding: chunked\r\n", format!("1;{}", "x".repeat(1000))),
    ] {
        let mut stream = TcpStream::connect(target.router.scoring).await.unwrap();
        stream.write_all(&post(fields, "")).await.unwrap();
        let (answer, took) = target.serve_good_client_during(write_slowly(stream, body.as_bytes())).await;
        assert!(is_timeout(&answer), "{fields:?}: {answer:?}");
        assert!(took < Duration::from_secs(10), "{fields:?}: {took:?}");
        target.wait_until_idle().await;
        assert!(target.recorder.take_requests().iter().all(|seen| !seen.is_complete), "{fields:?}");
    }
}

#[tokio::test]
async fn a_body_that_falls_silent_is_ended_by_its_own_limit() {
    let mut target = start_impatient_target("{requestTimeoutMs: 300000}").await;
    for (fields, body) in [
        ("content-length: 5\r\n", ""),
        ("content-length: 5\r\n", "hel"),
        ("content-length: 1000000\r\n", "hel"),
        ("transfer-encoding: chunked\r\n", ""),
        ("transfer-encoding: chunked\r\n", "5\r\nhel"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\nx: y"),
    ] {
        let struck = target.send_attack(&post(fields, body)).await;
        assert_eq!(struck.answers, [(408, "client_timeout".to_owned())], "{fields:?} {body:?}");
        assert!(struck.seen.iter().all(|seen| !seen.is_complete), "{fields:?} {body:?}: {struck:?}");
    }
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    client.write(&head(1, 0, &[("content-length", "5")])).await;
    let frames = target.serve_good_client_during(client.read_until_stream_end(1)).await;
    assert!(
        frames.iter().any(|frame| String::from_utf8_lossy(&frame.payload).contains("client_timeout")),
        "{frames:?}"
    );
    target.wait_until_idle().await;
}

#[tokio::test]
async fn an_answer_that_is_read_byte_by_byte_is_cut_and_its_slot_comes_back() {
    let answer = "x".repeat(32 << 20);
    let model = crate::harness::Model::http(move |_| {
        let answer = answer.clone();
        async move { http::Response::new(crate::harness::full_body(answer)) }
    })
    .await;
    let router = crate::harness::Router::start_with(&[&crate::harness::endpoint(&[model.address], "{}")], |settings| {
        settings.limits.body_idle_timeout = READ_TIMEOUT;
    });
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(router.scoring).await.unwrap();
    stream.write_all(&post("content-length: 0\r\n", "")).await.unwrap();
    let mut byte = [0];
    let reading = async {
        while stream.read(&mut byte).await.is_ok_and(|read| read > 0) {
            tokio::time::sleep(BYTE_INTERVAL).await;
        }
    };
    let slots = |all: &serde_json::Value, free: u64| all["endpoints"][0]["deployments"][0]["slots"]["free"] == free;
    let cut = async {
        router.wait_until("a busy slot", |all| slots(all, 0)).await;
        router.wait_until("a free slot", |all| slots(all, 1)).await;
    };
    // What the system has buffered for it the client can read on; the router has given it up.
    tokio::join!(cut, async { tokio::time::timeout(10 * READ_TIMEOUT, reading).await.ok() });
}

#[tokio::test]
async fn many_slow_clients_at_once_are_ended_and_leave_nothing() {
    const SLOW_CLIENTS: usize = 200;
    let mut target = start_impatient_target("{requestTimeoutMs: 700}").await;
    let address = target.router.scoring;
    let slow = async move {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..SLOW_CLIENTS {
            let (start, rest) = match number % 3 {
                0 => (Vec::new(), post(&format!("x: {}\r\n", "y".repeat(1000)), "")),
                1 => (post("content-length: 1000\r\n", ""), vec![b'x'; 1000]),
                _ => (b"POST ".to_vec(), vec![b'y'; 1000]),
            };
            tasks.spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(&start).await.unwrap();
                write_slowly(stream, &rest).await.0
            });
        }
        tasks.join_all().await
    };
    let answers = target.serve_good_client_during(slow).await;
    let (told, others): (Vec<&String>, Vec<&String>) = answers.iter().partition(|answer| is_timeout(answer));
    // The model has one slot: some of those with a body have waited for it in vain.
    assert!(others.iter().all(|answer| answer.contains("too_many_requests")), "{others:?}");
    assert!(told.len() >= SLOW_CLIENTS / 3, "{}", told.len());
    target.wait_until_idle().await;
    let open = r#"inference_router_connections{listener="scoring"}"#;
    with_timeout("the end of the connections", async {
        while target.router.metric(open).await != Some(1.0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
