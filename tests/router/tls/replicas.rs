//! TLS towards replicas.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Authority, CertifiedKeyPair, provider};
use crate::harness::{Model, Router, document, replace, score, unused_address, with_timeout};
use crate::raw_peers::{
    ANSWER, connect_and_send, join_task, metric_sum, next_arrival, request, spawn_scoring, wait_until_busy_and_queued,
    wait_until_idle,
};

/// A replica's connection with a request on it, in the hands of the test.
struct ReceivedTlsRequest {
    stream: TlsStream<TcpStream>,
}

impl ReceivedTlsRequest {
    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }
}

/// Reads a head and a body of two bytes, as [`request`] with `{}` makes it. `None`: the connection ended.
async fn read_request(stream: &mut TlsStream<TcpStream>) -> Option<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n{}") {
        if stream.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
}

/// A replica with this certificate, which asks for one of `clients` if there are any; it hands each connection over
/// when a request has come.
async fn start_tls_replica(
    pair: &CertifiedKeyPair,
    clients: Option<&Authority>,
) -> (Model, mpsc::UnboundedReceiver<ReceivedTlsRequest>) {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider()).build().unwrap(),
        ),
    };
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(pair.chain(), pair.private_key()).unwrap()));
    let (sender, receiver) = mpsc::unbounded_channel();
    let model = Model::from_connections(move |stream| {
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if read_request(&mut stream).await.is_some() {
                let _ = sender.send(ReceivedTlsRequest { stream });
            }
        }
    })
    .await;
    (model, receiver)
}

fn document_with_upstream_tls(addresses: &[SocketAddr], tls: &str) -> String {
    let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    document(
        "traffic: {blue: 100}",
        &format!(
            "- {{name: blue, instances: [{}], upstreamTls: {tls}, requestSettings: {{maxQueueWaitMs: 60000, \
             requestTimeoutMs: 60000}}}}",
            addresses.join(", ")
        ),
    )
}

/// A folder with an authority's certificate as `ca.crt`, for documents to name.
fn folder(authority: &Authority) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), &authority.pem).unwrap();
    let ca = format!("caFile: {}", folder.path().join("ca.crt").display());
    (folder, ca)
}

#[tokio::test]
async fn a_verified_replica_is_spoken_to_and_its_connection_kept() {
    let authority = Authority::new();
    let (_folder, ca) = folder(&authority);
    let (model, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), None).await;
    let router = Router::start(&[&document_with_upstream_tls(&[model.address], &format!("{{{ca}}}"))]);
    let answered = spawn_scoring(&router, "{}");
    let mut arrived = next_arrival(&mut arrivals).await;
    arrived.write(ANSWER).await;
    assert_eq!(join_task(answered).await.text(), "ok");
    // Session tickets came meanwhile: they are nothing that was not asked for.
    wait_until_idle(&router).await;
    let answered = spawn_scoring(&router, "{}");
    with_timeout("a request on the same connection", read_request(&mut arrived.stream)).await.expect("kept");
    arrived.write(ANSWER).await;
    assert_eq!(join_task(answered).await.text(), "ok");
}

#[tokio::test]
async fn a_replica_that_cannot_be_verified_gets_nothing() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (_folder, ca) = folder(&authority);
    for (pair, rules) in [
        (authority.sign(&["elsewhere.example"]), format!("{{{ca}}}")),
        (authority.sign(&["127.0.0.1"]), format!("{{{ca}, serverName: other.example}}")),
        (stranger.sign(&["127.0.0.1"]), format!("{{{ca}}}")),
        (authority.sign(&["127.0.0.1"]), "{}".to_owned()),
    ] {
        let (model, mut arrivals) = start_tls_replica(&pair, None).await;
        let router = Router::start(&[&document_with_upstream_tls(&[model.address], &rules)]);
        let answer = router.score("{}").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "replica_unreachable"), "{rules}");
        assert!(arrivals.try_recv().is_err());
    }
}

#[tokio::test]
async fn the_name_to_verify_can_be_given_and_verifying_be_left_out() {
    let authority = Authority::new();
    let (_folder, ca) = folder(&authority);
    for rules in [format!("{{{ca}, serverName: models.example}}"), "{skipVerify: true}".to_owned()] {
        let (model, mut arrivals) = start_tls_replica(&authority.sign(&["models.example"]), None).await;
        let router = Router::start(&[&document_with_upstream_tls(&[model.address], &rules)]);
        let answered = spawn_scoring(&router, "{}");
        next_arrival(&mut arrivals).await.write(ANSWER).await;
        assert_eq!(join_task(answered).await.text(), "ok", "{rules}");
    }
}

#[tokio::test]
async fn a_request_goes_to_another_replica_when_a_handshake_fails() {
    let authority = Authority::new();
    let (_folder, ca) = folder(&authority);
    let (bad, _never) = start_tls_replica(&Authority::new().sign(&["127.0.0.1"]), None).await;
    let plain = Model::named("plain").await;
    let (good, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), None).await;
    let addresses = [bad.address, plain.address, good.address];
    let router = Router::start(&[&document_with_upstream_tls(&addresses, &format!("{{{ca}}}"))]);
    let answered = spawn_scoring(&router, "{}");
    next_arrival(&mut arrivals).await.write(ANSWER).await;
    assert_eq!(join_task(answered).await.text(), "ok");
    assert!(metric_sum(&router, "inference_router_retries_total", "unreachable").await <= 2.0);
}

#[tokio::test]
async fn the_router_shows_its_own_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (folder, ca) = folder(&authority);
    clients.sign(&["router"]).replace(folder.path());
    let own = ["certFile", "keyFile"].into_iter().zip(["tls.crt", "tls.key"]);
    let own: Vec<String> = own.map(|(key, file)| format!("{key}: {}", folder.path().join(file).display())).collect();
    let (model, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), Some(&clients)).await;
    let router =
        Router::start(&[&document_with_upstream_tls(&[model.address], &format!("{{{ca}, {}}}", own.join(", ")))]);
    let answered = spawn_scoring(&router, "{}");
    next_arrival(&mut arrivals).await.write(ANSWER).await;
    assert_eq!(join_task(answered).await.text(), "ok");
}

/// In TLS 1.3 the replica says so when the request is on its way already; it was not read.
#[tokio::test]
async fn a_replica_that_wants_another_certificate_of_the_router_is_unreachable() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (folder, ca) = folder(&authority);
    Authority::new().sign(&["router"]).replace(folder.path());
    let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let other = format!("{{{ca}, certFile: {}, keyFile: {}}}", cert.display(), key.display());
    for rules in [format!("{{{ca}}}"), other] {
        let (model, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), Some(&clients)).await;
        let router = Router::start(&[&document_with_upstream_tls(&[model.address], &rules)]);
        let answer = router.score("{}").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "replica_unreachable"), "{rules}");
        assert!(arrivals.try_recv().is_err());
    }
}

#[tokio::test]
async fn authorities_of_replicas_are_read_again_and_connections_from_before_not_used() {
    let (before, after) = (Authority::new(), Authority::new());
    let (folder, ca) = folder(&before);
    let (model, mut arrivals) = start_tls_replica(&before.sign(&["127.0.0.1"]), None).await;
    let router = Router::start(&[&document_with_upstream_tls(&[model.address], &format!("{{{ca}}}"))]);
    let answered = spawn_scoring(&router, "{}");
    let mut arrived = next_arrival(&mut arrivals).await;
    arrived.write(ANSWER).await;
    assert_eq!(join_task(answered).await.text(), "ok");
    replace(&folder.path().join("ca.crt"), &after.pem);
    with_timeout("the other authority", async {
        while metric_sum(&router, "inference_router_config_reloads_total", "\"ok\"").await < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(router.score("{}").await.code(), "replica_unreachable");
    with_timeout("the end of the kept connection", read_request(&mut arrived.stream)).await;
}

#[tokio::test]
async fn a_client_that_leaves_does_not_free_a_replica_and_the_replica_is_told() {
    let authority = Authority::new();
    let (_folder, ca) = folder(&authority);
    let (model, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), None).await;
    let router = Router::start(&[&document_with_upstream_tls(&[model.address], &format!("{{{ca}}}"))]);
    let leaving = connect_and_send(router.scoring, &request("POST", "{}")).await;
    let mut arrived = next_arrival(&mut arrivals).await;
    drop(leaving);
    // The end of TLS, announced.
    let mut rest = Vec::new();
    let ended = with_timeout("the router's end", arrived.stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "{ended:?}");
    let waiting = spawn_scoring(&router, "{}");
    wait_until_busy_and_queued(&router, 1, 1).await;
    arrived.write(ANSWER).await;
    next_arrival(&mut arrivals).await.write(ANSWER).await;
    assert_eq!(join_task(waiting).await.text(), "ok");
}

#[tokio::test]
async fn a_body_up_to_the_end_is_whole_only_if_the_end_is_announced() {
    let authority = Authority::new();
    let (_folder, ca) = folder(&authority);
    let (model, mut arrivals) = start_tls_replica(&authority.sign(&["127.0.0.1"]), None).await;
    let router = Router::start(&[&document_with_upstream_tls(&[model.address], &format!("{{{ca}}}"))]);
    for whole in [true, false] {
        let answered = tokio::spawn(crate::harness::try_call(router.scoring, score("{}")));
        let mut arrived = next_arrival(&mut arrivals).await;
        arrived.write("HTTP/1.1 200 OK\r\n\r\nsome").await;
        if whole {
            arrived.stream.shutdown().await.unwrap();
        }
        drop(arrived);
        let answer = join_task(answered).await;
        assert_eq!(answer.map(|answer| answer.text()).ok(), whole.then(|| "some".to_owned()));
    }
}

#[tokio::test]
async fn no_answer_at_the_port_is_as_unreachable_as_ever() {
    let router = Router::start(&[&document_with_upstream_tls(&[unused_address()], "{skipVerify: true}")]);
    assert_eq!(router.score("{}").await.code(), "replica_unreachable");
}
