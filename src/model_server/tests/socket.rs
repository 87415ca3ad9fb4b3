//! The whole server, spoken to over TCP. The clock is paused where time matters: it jumps ahead only when every task
//! and every socket is idle.

use hyper::client::conn::http1::{SendRequest, handshake};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;
use hyper_util::rt::TokioIo;

const HOUR: Duration = Duration::from_secs(3600);

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Sends `request` as it is, ends the sending half, and returns all that comes back until the server closes.
async fn send_raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn raw_sample() -> String {
    format!(
        "POST /score HTTP/1.1\r\nhost: model\r\ncontent-length: {}\r\n\r\n{SAMPLE_REQUEST_BODY}",
        SAMPLE_REQUEST_BODY.len()
    )
}

async fn collect_body<B: hyper::body::Body<Error: std::fmt::Debug>>(response: Response<B>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let mut client = connect(start_server(default_options()).await).await;
    for _ in 0..3 {
        client.ready().await.unwrap();
        let health = client.send_request(request("GET", "/", "")).await.unwrap();
        assert_eq!(collect_body(health).await, "Healthy");
        client.ready().await.unwrap();
        let score = client.send_request(sample_request()).await.unwrap();
        assert_eq!(score.status(), 200);
        assert_eq!(collect_body(score).await, SAMPLE_RESPONSE_BODY);
    }
}

#[tokio::test]
async fn a_head_request_for_health_has_no_body() {
    let answer = send_raw(start_server(default_options()).await, "HEAD / HTTP/1.1\r\nhost: model\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: 7\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_announced_as_too_large_is_refused_before_it_is_sent() {
    let head = "POST /score HTTP/1.1\r\nhost: model\r\ncontent-length: 104857601\r\n\r\n";
    let answer = send_raw(start_server(default_options()).await, head).await;
    assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400_and_takes_no_slot() {
    let address = start_server(default_options()).await;
    let answer = send_raw(address, "POST /score HTTP/1.1\r\nhost: model\r\ncontent-length: 10\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(send_raw(address, &raw_sample()).await.ends_with(SAMPLE_RESPONSE_BODY));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_half_gets_its_answer_and_sees_the_run_end() {
    let address = start_server(ModelServerOptions { delay: HOUR, ..default_options() }).await;
    let begin = Instant::now();
    let answer = send_raw(address, &raw_sample()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(SAMPLE_RESPONSE_BODY), "{answer}");
    assert!(begin.elapsed() >= HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_keeps_the_only_slot_busy() {
    let address = start_server(ModelServerOptions { delay: HOUR, ..default_options() }).await;
    let begin = Instant::now();
    let mut gone = TcpStream::connect(address).await.unwrap();
    gone.write_all(raw_sample().as_bytes()).await.unwrap();
    // An answer on another connection shows that the server has had its turn to read the first one.
    assert!(send_raw(address, "GET / HTTP/1.1\r\nhost: model\r\n\r\n").await.ends_with("Healthy"));
    gone.set_zero_linger().unwrap();
    drop(gone);
    assert!(send_raw(address, &raw_sample()).await.ends_with(SAMPLE_RESPONSE_BODY));
    assert!(begin.elapsed() >= 2 * HOUR, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_stream_is_chunked_server_sent_events() {
    let address = start_server(ModelServerOptions { is_streaming: true, ..default_options() }).await;
    let answer = send_raw(address, &raw_sample()).await;
    assert!(answer.contains("content-type: text/event-stream\r\n"), "{answer}");
    assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
    let mut client = connect(address).await;
    let events = client.send_request(sample_request()).await.unwrap();
    let expected = "data: 11055.977245525679\n\ndata: 4503.079536107787\n\ndata: [DONE]\n\n";
    assert_eq!(collect_body(events).await, expected);
}

/// A server that streams two events, half of `delay` each, told to stop after the first. What came after it, how long
/// the server took to end, and whether it still listens.
async fn stop_between_events(delay: Duration) -> (Result<Bytes, hyper::Error>, Duration, bool) {
    let server =
        SampleModelServer::bind(ModelServerOptions { delay, is_streaming: true, ..default_options() }).await.unwrap();
    let address = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { drop(stopped.await) }));
    let mut client = connect(address).await;
    let idle = connect(address).await;
    let mut events = client.send_request(sample_request()).await.unwrap().into_body();
    assert!(events.frame().await.unwrap().unwrap().is_data());
    let begin = Instant::now();
    stop.send(()).unwrap();
    let rest = events.collect().await.map(http_body_util::Collected::to_bytes);
    running.await.unwrap().unwrap();
    let took = begin.elapsed();
    drop(idle);
    (rest, took, TcpStream::connect(address).await.is_ok())
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_finishes_what_runs_and_does_not_wait_for_idle_connections() {
    let (rest, took, listens) = stop_between_events(Duration::from_secs(3)).await;
    assert_eq!(rest.unwrap(), "data: 4503.079536107787\n\ndata: [DONE]\n\n");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(!listens);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_waits_two_seconds_and_no_more() {
    let (rest, took, listens) = stop_between_events(HOUR).await;
    assert!(rest.is_err());
    assert_eq!(took.as_millis() / 100, 20, "{took:?}");
    assert!(!listens);
}
