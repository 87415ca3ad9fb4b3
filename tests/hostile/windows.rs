//! Clients that ask and do not take: what is kept for them is bounded in size and in time, and their slot comes back.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::frames::{DATA, END_STREAM, Frame, GOAWAY, H2Connection, HEADERS, RST_STREAM, WINDOW_UPDATE, frame, head};
use crate::harness::{Model, Router, document, with_timeout};
use crate::target::post;

/// How long a client may take nothing.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// What a model has to say.
const ANSWER: usize = 64 << 20;
/// The most of it that the buffers of two loopback connections and of HTTP/2 hold.
const MAX_BUFFERED_BYTES: usize = 40 << 20;

/// A model with one slot that answers with `ANSWER` bytes, as far as they are taken; says how many were.
async fn start_large_response_model(
    requests: &str,
    limit: Duration,
) -> (Model, Router, mpsc::UnboundedReceiver<usize>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let model = Model::from_connections(move |stream| {
        let sender = sender.clone();
        async move {
            let taken = write_until_stalled(stream).await;
            let _ = sender.send(taken);
        }
    })
    .await;
    let deployments = format!("- {{name: blue, instances: [\"{}\"], requestSettings: {requests}}}", model.address);
    let router = Router::start_with(&[&document("traffic: {blue: 100}", &deployments)], |settings| {
        settings.limits.body_idle_timeout = limit;
        settings.shutdown.drain_timeout = Duration::from_millis(100);
    });
    (model, router, receiver)
}

async fn write_until_stalled(mut stream: TcpStream) -> usize {
    let mut request = [0; 4096];
    let read = stream.read(&mut request).await.unwrap_or_default();
    if request[..read].starts_with(b"GET ") {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        return 0;
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {ANSWER}\r\n\r\n");
    let (mut taken, mut stalled, block) = (0, None, vec![b'x'; 64 << 10]);
    let _ = stream.write_all(head.as_bytes()).await;
    while taken < ANSWER {
        let piece = &block[..block.len().min(ANSWER - taken)];
        let mut write = std::pin::pin!(stream.write(piece));
        let written = match tokio::time::timeout(BODY_IDLE_TIMEOUT / 4, &mut write).await {
            Ok(written) => written,
            Err(_) => {
                // What is taken later is not kept: nobody waits for it any more.
                stalled.get_or_insert(taken);
                write.await
            }
        };
        match written {
            Ok(written) => taken += written,
            Err(_) => break,
        }
    }
    stalled.unwrap_or(taken)
}

/// Waits until the router has given up: the model is told how much was taken, and the slot is free.
async fn wait_until_given_up(what: &str, router: &Router, taken: &mut mpsc::UnboundedReceiver<usize>, since: Instant) {
    let taken = with_timeout(what, taken.recv()).await.unwrap();
    assert!(taken <= MAX_BUFFERED_BYTES, "{what}: {taken} bytes were taken from the model");
    let free = |all: &serde_json::Value| all["endpoints"][0]["deployments"][0]["slots"]["free"] == 1;
    router.wait_until("a free slot", free).await;
    assert!(since.elapsed() >= BODY_IDLE_TIMEOUT, "{what}: given up after {:?} only", since.elapsed());
}

fn is_reset_or_closed(frames: &[Frame]) -> bool {
    frames.last().is_none_or(|last| matches!(last.kind, RST_STREAM | GOAWAY))
}

#[tokio::test]
async fn a_stream_whose_window_never_opens_is_reset_and_its_slot_comes_back() {
    let (_model, router, mut taken) = start_large_response_model("{}", BODY_IDLE_TIMEOUT).await;
    let since = Instant::now();
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let mut client = H2Connection::connect(router.scoring, &[(4, 0)]).await;
    client.write(&head(1, END_STREAM, &[])).await;
    let frames = client.read_until_stream_end(1).await;
    assert!(frames.iter().any(|frame| frame.kind == HEADERS && frame.stream == 1), "{frames:?}");
    assert!(is_reset_or_closed(&frames), "{frames:?}");
    wait_until_given_up("a window of 0", &router, &mut taken, since).await;
    // Another stream of the same connection is served, once it has a window.
    let get = crate::frames::block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/api/v1/endpoint/my-endpoint/score"),
        (":authority", "router"),
        ("authorization", &format!("Bearer {}", crate::harness::KEY)),
    ]);
    client.write(&frame(HEADERS, END_STREAM | crate::frames::END_HEADERS, 3, &get)).await;
    client.write(&frame(WINDOW_UPDATE, 0, 3, &100_u32.to_be_bytes())).await;
    let frames = client.read_until_stream_end(3).await;
    assert!(frames.iter().any(|frame| frame.kind == DATA && frame.payload == b"ok"), "{frames:?}");
}

#[tokio::test]
async fn a_window_that_opens_and_closes_for_good_is_given_up_too() {
    let (_model, router, mut taken) = start_large_response_model("{}", BODY_IDLE_TIMEOUT).await;
    let since = Instant::now();
    // The connection's window, 65,535 bytes, is not opened either.
    let mut client = H2Connection::connect(router.scoring, &[(4, 1_000_000)]).await;
    client.write(&head(1, END_STREAM, &[])).await;
    let frames = client.read_until_stream_end(1).await;
    let data: usize = frames.iter().filter(|frame| frame.kind == DATA).map(|frame| frame.payload.len()).sum();
    assert_eq!(data, 65_535);
    assert!(is_reset_or_closed(&frames), "{:?}", frames.last());
    wait_until_given_up("a window that closes", &router, &mut taken, since).await;
}

#[tokio::test]
async fn a_window_of_one_byte_costs_no_more_than_its_bytes() {
    let (_model, router, mut taken) = start_large_response_model("{}", 4 * BODY_IDLE_TIMEOUT).await;
    let mut client = H2Connection::connect(router.scoring, &[(4, 1)]).await;
    client.write(&head(1, END_STREAM, &[])).await;
    let mut got = 0;
    while got < 100 {
        let next = client.next().await.expect("the stream should live while the client takes");
        if next.kind == DATA {
            assert_eq!(next.payload.len(), 1);
            got += 1;
            client.write(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
        }
    }
    let since = Instant::now();
    assert!(is_reset_or_closed(&client.read_until_stream_end(1).await));
    wait_until_given_up("a window of 1", &router, &mut taken, since).await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let (_model, router, mut taken) = start_large_response_model("{}", BODY_IDLE_TIMEOUT).await;
    let since = Instant::now();
    let mut stream = TcpStream::connect(router.scoring).await.unwrap();
    stream.write_all(&post("content-length: 0\r\n", "")).await.unwrap();
    wait_until_given_up("HTTP/1", &router, &mut taken, since).await;
    let since = Instant::now();
    let mut client = H2Connection::connect(router.scoring, &[(4, 0x7fff_ffff)]).await;
    client.write(&frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes())).await;
    client.write(&head(1, END_STREAM, &[])).await;
    wait_until_given_up("HTTP/2", &router, &mut taken, since).await;
}

#[tokio::test]
async fn many_streams_without_a_window_are_bounded_together() {
    let (_model, router, mut taken) =
        start_large_response_model("{maxConcurrentRequestsPerInstance: 50}", BODY_IDLE_TIMEOUT).await;
    let mut client = H2Connection::connect(router.scoring, &[(4, 0)]).await;
    let heads: Vec<u8> = (0..50).flat_map(|n| head(1 + 2 * n, END_STREAM, &[])).collect();
    client.write(&heads).await;
    let mut all = 0;
    for _ in 0..50 {
        all += with_timeout("the end of a response", taken.recv()).await.unwrap();
    }
    assert!(all <= 50 * MAX_BUFFERED_BYTES, "{all}");
    let free = |all: &serde_json::Value| all["endpoints"][0]["deployments"][0]["slots"]["free"] == 50;
    router.wait_until("free slots", free).await;
}
