//! Sessions that clients go on with.

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Authority, TLS_VERSIONS, TlsRouter, http1, kind, peer_certificate};
use crate::harness::{Model, endpoint, score, with_timeout};

/// Makes a request, so that the tickets of TLS 1.3 arrive.
async fn use_connection(stream: TlsStream<TcpStream>) {
    assert_eq!(http1(stream, score("{}")).await.unwrap().status, 200);
}

async fn next_handshake_kind(tls: &TlsRouter, config: &Arc<ClientConfig>) -> HandshakeKind {
    let stream = tls.connect(config).await.unwrap();
    let kind = kind(&stream);
    use_connection(stream).await;
    kind
}

#[tokio::test]
async fn a_session_goes_on_with_another_worker_and_after_a_change_of_certificates() {
    let model = Model::named("m").await;
    let tls = TlsRouter::start_workers(&[&endpoint(&[model.address], "{}")], 2, |_, _| ());
    for version in TLS_VERSIONS {
        let config = Arc::new(tls.authority.client_config_with(&[version], None));
        assert_ne!(next_handshake_kind(&tls, &config).await, HandshakeKind::Resumed);
        // The worker with the fewest connections gets the next one: of three, two are with one and one with the other.
        let mut held = Vec::new();
        for _ in 0..3 {
            let stream = tls.connect(&config).await.unwrap();
            assert_eq!(kind(&stream), HandshakeKind::Resumed, "{version:?}");
            held.push(stream);
            use_connection(tls.connect(&config).await.unwrap()).await;
        }
        let pair = tls.authority.sign(&["localhost"]);
        pair.replace(tls.folder.path());
        let mut newcomer = tls.authority.client_config_with(&[version], None);
        newcomer.resumption = rustls::client::Resumption::disabled();
        let newcomer = Arc::new(newcomer);
        with_timeout("the new certificate", async {
            while peer_certificate(&tls.connect(&newcomer).await.unwrap()) != pair.chain()[0] {}
        })
        .await;
        assert_eq!(next_handshake_kind(&tls, &config).await, HandshakeKind::Resumed, "{version:?}, reloaded");
    }
}

#[tokio::test]
async fn a_session_does_not_outlive_those_who_signed_its_clients_certificate() {
    let (clients, others) = (Authority::new(), Authority::new());
    let model = Model::named("m").await;
    let tls = TlsRouter::start_with(&[&endpoint(&[model.address], "{}")], |tls, folder| {
        std::fs::write(folder.join("ca.crt"), &clients.pem).unwrap();
        tls.client_ca_file = Some(folder.join("ca.crt"));
    });
    for version in TLS_VERSIONS {
        crate::harness::replace(&tls.path("ca.crt"), &clients.pem);
        let own = clients.sign(&["client"]);
        let fresh = || Arc::new(tls.authority.client_config_with(&[version], Some(&own)));
        with_timeout("the first authority", async {
            loop {
                let Ok(stream) = tls.connect(&fresh()).await else { continue };
                if http1(stream, score("{}")).await.is_ok() {
                    return;
                }
            }
        })
        .await;
        let config = fresh();
        next_handshake_kind(&tls, &config).await;
        assert_eq!(next_handshake_kind(&tls, &config).await, HandshakeKind::Resumed);
        let reloads = "inference_router_tls_reloads_total{result=\"ok\"}";
        let before = tls.router.metric(reloads).await.unwrap_or_default();
        crate::harness::replace(&tls.path("ca.crt"), &others.pem);
        tls.wait_until_metric(reloads, before + 1.0).await;
        let refused = match tls.connect(&config).await {
            Ok(stream) => http1(stream, score("{}")).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "{version:?}");
    }
}
