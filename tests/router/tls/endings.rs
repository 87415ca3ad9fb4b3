//! How connections with TLS end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{TlsRouter, http1};
use crate::harness::{Model, endpoint, score, with_timeout};
use crate::raw_peers::{next_arrival, request, start_handover_model, streaming};

async fn connect_and_write(tls: &TlsRouter, bytes: &str) -> TlsStream<TcpStream> {
    let mut stream = tls.connect(&Arc::new(tls.authority.client())).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// Reads to the end; the error is that of an end nobody announced.
async fn read_to_end(stream: &mut TlsStream<TcpStream>) -> (String, io::Result<usize>) {
    let mut bytes = Vec::new();
    let ended = with_timeout("the end", stream.read_to_end(&mut bytes)).await;
    (String::from_utf8(bytes).unwrap(), ended)
}

#[tokio::test]
async fn draining_says_goodbye_to_idle_clients_and_finishes_with_others() {
    let (model, mut asked) = Model::manual().await;
    let mut tls = TlsRouter::start(&[&endpoint(&[model.address], "{}")]);
    let config = Arc::new(tls.authority.client());
    let mut idle = tls.connect(&config).await.unwrap();
    let silent = TcpStream::connect(tls.address()).await.unwrap();
    let busy = tokio::spawn({
        let stream = tls.connect(&config).await.unwrap();
        async move { http1(stream, score("{}")).await.unwrap() }
    });
    let asked = next_arrival(&mut asked).await;
    tls.router.begin_shutdown();
    let (said, ended) = read_to_end(&mut idle).await;
    assert!(said.is_empty() && ended.is_ok(), "an idle client is told: {said} {ended:?}");
    let mut nothing = Vec::new();
    let _ = with_timeout("the end", { silent }.read_to_end(&mut nothing)).await;
    asked.answer("done");
    let answer = busy.await.unwrap();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("done", "close"));
    tls.router.join().unwrap();
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_is_seen() {
    let tls = TlsRouter::start(&[]);
    let head = "POST /api/v1/endpoint/none/score HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    let mut stream = connect_and_write(&tls, head).await;
    let (answer, ended) = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && ended.is_ok(), "{answer} {ended:?}");
}

#[tokio::test]
async fn an_http_1_0_client_can_tell_a_broken_body_from_a_whole_one() {
    let (model, mut arrivals) = start_handover_model().await;
    let tls = TlsRouter::start(&[&endpoint(&[model.address], "{}")]);
    let old = request("POST", "{}").replace("HTTP/1.1", "HTTP/1.0");
    for whole in [true, false] {
        let mut stream = connect_and_write(&tls, &old).await;
        let mut arrived = next_arrival(&mut arrivals).await;
        arrived.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n").await;
        if whole {
            arrived.write("0\r\n\r\n").await;
        }
        drop(arrived);
        let (answer, ended) = read_to_end(&mut stream).await;
        assert_eq!(ended.is_ok(), whole, "{answer}");
    }
}

#[tokio::test]
async fn events_come_one_by_one() {
    let (model, mut asked) = Model::manual().await;
    let tls = TlsRouter::start(&[&endpoint(&[model.address], "{}")]);
    let mut stream = connect_and_write(&tls, &request("POST", "{}")).await;
    let (sender, response) = streaming();
    next_arrival(&mut asked).await.respond(response);
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        sender.send(event.into()).unwrap();
        let mut seen = Vec::new();
        with_timeout(event, async {
            while !seen.ends_with(format!("{event}\r\n").as_bytes()) {
                stream.read_buf(&mut seen).await.unwrap();
            }
        })
        .await;
    }
    drop(sender);
    let mut seen = Vec::new();
    with_timeout("the end of the body", async {
        while !seen.ends_with(b"0\r\n\r\n") {
            stream.read_buf(&mut seen).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
    let model = Model::from_connections(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let tls = TlsRouter::start_settings(&[&endpoint(&[model.address], "{}")], |settings| {
        settings.limits.body_idle_timeout = Duration::from_millis(200);
    });
    // Counted from before its handshake on; whoever looks a moment later may find it gone already.
    let client = connect_and_write(&tls, &request("POST", "{}")).await;
    tls.wait_until_metric("inference_router_connections{listener=\"scoring_tls\"}", 0.0).await;
    drop(client);
}
