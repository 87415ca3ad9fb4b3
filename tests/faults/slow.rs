//! Clients that read a large response one byte a second.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{KEY, head};
use crate::message::Message;
use crate::model::Replica;
use crate::program::{Program, deployment, endpoint};
use crate::with_timeout;

const SLOW_READERS: usize = 16;
/// Far more than all the buffers on the way take.
const RESPONSE_BYTES: usize = 32 << 20;
/// Memory that each may take while it is served, in KiB; the bar is 4 MiB.
const MAX_KIB_PER_READER: u64 = 3 * 1024;
/// `limits.bodyIdleTimeout` in the settings.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A model that answers everything with [`RESPONSE`] bytes.
async fn start_large_response_model() -> Replica {
    Replica::new(|mut peer| async move {
        while Message::read(&mut peer).await.is_ok() {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE_BYTES}\r\n\r\n");
            let _ = peer.get_mut().write_all(head.as_bytes()).await;
            let block = vec![b'x'; 64 << 10];
            for _ in 0..RESPONSE_BYTES / block.len() {
                if peer.get_mut().write_all(&block).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// All slow clients at once, until the last of them is cut off.
async fn read_slowly(router: &mut Program, before: u64) {
    let started = Instant::now();
    let readers = (0..SLOW_READERS).map(|_| {
        let address = router.scoring;
        tokio::spawn(async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let request = head("score", "azureml-model-deployment: green\r\n", 0);
            stream.write_all(request.as_bytes()).await.unwrap();
            // Its pace is the fault.
            let mut pace = tokio::time::interval(Duration::from_secs(1));
            while stream.read(&mut [0]).await.is_ok_and(|read| read == 1) {
                pace.tick().await;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    router.wait_until("slow clients in all slots", |all| all[1]["slots"]["busy"] == SLOW_READERS).await;
    let mut most = 0;
    // What was sent before it was cut off a client can read long afterwards.
    while router.deployments().await[1]["slots"]["busy"] != 0 {
        most = most.max(router.process_stats().memory_kib);
        assert!(started.elapsed() < crate::WAIT_TIMEOUT, "still served");
        tokio::time::sleep(crate::POLL_INTERVAL).await;
    }
    let cut_after = started.elapsed();
    let more = most.saturating_sub(before);
    println!("  {SLOW_READERS} slow readers of {RESPONSE_BYTES} bytes: {more} KiB more, cut off after {cut_after:?}");
    assert!(more <= SLOW_READERS as u64 * MAX_KIB_PER_READER, "{more} KiB");
    assert!(cut_after >= BODY_IDLE_TIMEOUT, "cut off at once");
    readers.iter().for_each(|reader| reader.abort());
}

/// What bounds such a client: `limits.bodyIdleTimeout`, after which a client that takes nothing is cut off. A reader of
/// single bytes takes nothing: its system makes room only for larger pieces. From then on `requestTimeoutMs` bounds how
/// long the model may go on.
#[tokio::test]
async fn clients_that_read_a_byte_a_second_hold_no_memory_and_are_cut_off() {
    let blue = Replica::echo("blue", Duration::from_millis(2)).await;
    let green = start_large_response_model().await;
    let document = endpoint(&[
        deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 2"),
        deployment("green", &[&green], "maxConcurrentRequestsPerInstance: 16, requestTimeoutMs: 2000"),
    ]);
    let mut router = Program::start(document, "limits: {bodyIdleTimeout: 2s}").await;
    let first = router.warm_up(&[&blue, &green]).await;
    read_slowly(&mut router, first.memory_kib).await;
    let before = router.warm_up(&[&blue, &green]).await;
    let load = router.load();
    read_slowly(&mut router, before.memory_kib).await;
    let tally = router.assert_recovers(load, &[], &before, &[&blue, &green]).await;
    assert!(tally.slowest < Duration::from_secs(2), "others are slowed: {tally:?}");
}

/// An HTTP/2 client, whose socket does not tell that it takes nothing of one answer: only that stream is reset, and the
/// others on the connection go on.
#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn http2_streams_that_are_not_read_are_reset_and_no_other() {
    const STREAMS: usize = 3;
    let (blue, green) = (Replica::echo("blue", Duration::from_millis(2)).await, start_large_response_model().await);
    let document = endpoint(&[
        deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 2"),
        deployment("green", &[&green], "maxConcurrentRequestsPerInstance: 3, requestTimeoutMs: 2000"),
    ]);
    let mut router = Program::start(document, "limits: {bodyIdleTimeout: 2s}").await;
    let before = router.warm_up(&[&blue, &green]).await;
    let load = router.load();
    let stream = TcpStream::connect(router.scoring).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let mut client = hyper::client::conn::http2::Builder::new(executor);
    // What is not read of one answer leaves room on the connection for the others.
    let client = client.initial_stream_window_size(256 << 10).initial_connection_window_size(4 << 20);
    let (mut sender, connection) = client.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}/api/v1/endpoint/my-endpoint/score", router.scoring);
    let ask = |deployment: &str, body: &'static str| {
        let request = http::Request::post(&uri).version(http::Version::HTTP_2);
        let request = request.header("authorization", format!("Bearer {KEY}"));
        request.header("azureml-model-deployment", deployment).body(Full::<Bytes>::from(body)).unwrap()
    };
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        unread.push(with_timeout("a response", sender.send_request(ask("green", ""))).await.unwrap());
    }
    let started = Instant::now();
    while router.deployments().await[1]["slots"]["busy"] != 0 {
        let answer = with_timeout("a response", sender.send_request(ask("blue", "{}"))).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "blue {}");
        assert!(started.elapsed() < crate::WAIT_TIMEOUT, "still served");
        tokio::time::sleep(crate::POLL_INTERVAL).await;
    }
    let reset_after = started.elapsed();
    println!("  HTTP/2 streams that are not read are reset after {reset_after:?}");
    assert!(reset_after >= BODY_IDLE_TIMEOUT, "reset at once");
    for response in unread {
        assert!(with_timeout("the end of a stream", response.into_body().collect()).await.is_err(), "it looks whole");
    }
    // One that is read slowly, but read, is not reset.
    let mut slowly = with_timeout("a response", sender.send_request(ask("green", ""))).await.unwrap().into_body();
    let (mut taken, started) = (0, Instant::now());
    while let Some(frame) = with_timeout("a frame", slowly.frame()).await {
        taken += frame.unwrap().data_ref().map_or(0, Bytes::len);
        if started.elapsed() < 2 * BODY_IDLE_TIMEOUT {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(taken, RESPONSE_BYTES);
    drop((sender, slowly));
    router.assert_recovers(load, &[], &before, &[&blue, &green]).await;
}
