//! Clients that speak TLS, and some that do not.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use inference_router::model::tls::{CertificateSource, TlsVersion};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Authority, TLS_VERSIONS, TlsRouter, connect, http1, http2, peer_certificate};
use crate::harness::{KEY, Model, call, endpoint, full_body, raw_scoring_request, score, send_raw, with_timeout};

#[tokio::test]
async fn both_versions_of_tls_carry_both_versions_of_http() {
    let model = Model::http(|request| async move {
        let proto = request.headers()["x-forwarded-proto"].to_str().unwrap().to_owned();
        http::Response::new(full_body(proto))
    })
    .await;
    let tls = TlsRouter::start(&[&endpoint(&[model.address], "{}")]);
    for version in TLS_VERSIONS {
        for (alpn, expected) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
        {
            let mut config = tls.authority.client_config_with(&[version], None);
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            let stream = tls.connect(&Arc::new(config)).await.unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            assert_eq!(stream.get_ref().1.alpn_protocol(), expected.map(str::as_bytes));
            let answer = match expected {
                Some("h2") => http2(stream, score("{}")).await,
                _ => http1(stream, score("{}")).await,
            };
            assert_eq!(answer.unwrap().text(), "https", "{version:?} {alpn:?}");
        }
    }
    // Who settles nothing may still begin with HTTP/2.
    let stream = tls.connect(&Arc::new(tls.authority.client())).await.unwrap();
    assert_eq!(http2(stream, score("{}")).await.unwrap().text(), "https");
}

#[tokio::test]
async fn who_settled_on_http1_does_not_get_http2() {
    let tls = TlsRouter::start(&[]);
    let mut config = tls.authority.client();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = tls.connect(&Arc::new(config)).await.unwrap();
    assert!(http2(stream, score("{}")).await.is_err());
}

#[tokio::test]
async fn versions_below_the_least_are_refused() {
    let tls = TlsRouter::start_with(&[], |tls, _| tls.min_version = TlsVersion::V1_3);
    let error = tls.connect(&Arc::new(tls.authority.client_config_with(&[&TLS12], None))).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    tls.connect(&Arc::new(tls.authority.client_config_with(&[&TLS13], None))).await.unwrap();
    tls.wait_until_metric("inference_router_tls_handshakes_total{listener=\"scoring_tls\",result=\"failed\"}", 1.0)
        .await;
}

/// A ClientHello of a version that nobody should speak any more, with a cipher suite of its time.
fn old_hello(version: u8) -> Vec<u8> {
    let mut body = vec![3, version];
    body.extend([7; 32]);
    // No session; TLS_RSA_WITH_AES_128_CBC_SHA; no compression.
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut message = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
    message.extend(body);
    let mut record = vec![22, 3, version, 0, u8::try_from(message.len()).unwrap()];
    record.extend(message);
    record
}

#[tokio::test]
async fn tls_1_0_and_1_1_are_refused_with_an_alert() {
    let tls = TlsRouter::start(&[]);
    for version in [1, 2] {
        let mut stream = TcpStream::connect(tls.address()).await.unwrap();
        stream.write_all(&old_hello(version)).await.unwrap();
        let mut answer = Vec::new();
        with_timeout("the end", stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!((answer[0], answer[5]), (21, 2), "a fatal alert: {answer:?}");
    }
}

#[tokio::test]
async fn the_certificate_follows_the_name_that_is_asked_for() {
    let other = Authority::new();
    let (exact, wildcard) = (other.sign(&["a.example.com", "Upper.example.org"]), other.sign(&["*.example.com"]));
    let (exact_cert, wildcard_cert) = (exact.chain().remove(0), wildcard.chain().remove(0));
    let tls = TlsRouter::start_with(&[], |tls, folder| {
        for (name, pair) in [("exact", exact), ("wildcard", wildcard)] {
            let folder = folder.join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("cert.pem"), pair.cert).unwrap();
            std::fs::write(folder.join("key.pem"), pair.key).unwrap();
            tls.certificates.push(CertificateSource::Folder(folder));
        }
    });
    let config = Arc::new(other.client());
    for (name, expected) in [
        ("a.example.com", &exact_cert),
        ("upper.example.org", &exact_cert),
        ("b.example.com", &wildcard_cert),
        ("B.EXAMPLE.com", &wildcard_cert),
    ] {
        let stream = connect(tls.address(), name, &config).await.unwrap();
        assert_eq!(peer_certificate(&stream), *expected, "{name}");
    }
    // Unknown names, one label too many, and no name at all get the first.
    let config = Arc::new(tls.authority.client());
    connect(tls.address(), "127.0.0.1", &config).await.unwrap();
    connect(tls.address(), "localhost", &config).await.unwrap();
    for name in ["a.b.example.com", "example.com", "elsewhere"] {
        let error = connect(tls.address(), name, &config).await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_given_up() {
    let tls = TlsRouter::start_with(&[], |tls, _| tls.handshake_timeout = Duration::from_millis(100));
    for said in [&[][..], &[22, 3, 1]] {
        let began = Instant::now();
        let mut stream = TcpStream::connect(tls.address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let _ = with_timeout("the end", stream.read_to_end(&mut answer)).await;
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
    tls.wait_until_metric("inference_router_tls_handshakes_total{listener=\"scoring_tls\",result=\"timed_out\"}", 2.0)
        .await;
}

#[tokio::test]
async fn a_client_that_says_nothing_after_its_handshake_is_not_waited_for() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.sign(&["localhost"]).replace(folder.path());
    let router = crate::harness::Router::start_with(&[], |settings| {
        settings.limits.header_read_timeout = Duration::from_millis(100);
        let certificates = vec![CertificateSource::Folder(folder.path().to_owned())];
        // TLS alone: on the one listener there is.
        settings.tls = Some(inference_router::model::tls::ServerTls { certificates, ..Default::default() });
    });
    let mut stream = connect(router.scoring, "localhost", &Arc::new(authority.client())).await.unwrap();
    let mut answer = Vec::new();
    with_timeout("the end", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"", "closed, and said so");
    let mut stream = connect(router.scoring, "localhost", &Arc::new(authority.client())).await.unwrap();
    stream.write_all(b"POST /api").await.unwrap();
    with_timeout("the end", stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so_and_tls_on_the_plain_port_refused() {
    let tls = TlsRouter::start(&[]);
    let answer = send_raw(tls.address(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("use https://"), "{answer}");
    let answer = send_raw(tls.router.scoring, old_hello(3)).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // Neither HTTP nor TLS.
    let mut stream = TcpStream::connect(tls.address()).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    let mut answer = Vec::new();
    with_timeout("the end", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer[0], 21, "an alert: {answer:?}");
}

#[tokio::test]
async fn clients_show_a_certificate_where_that_is_asked() {
    let clients = Authority::new();
    let model = Model::named("m").await;
    let tls = TlsRouter::start_with(&[&endpoint(&[model.address], "{}")], |tls, folder| {
        std::fs::write(folder.join("ca.crt"), &clients.pem).unwrap();
        tls.client_ca_file = Some(folder.join("ca.crt"));
    });
    for version in TLS_VERSIONS {
        let (known, stranger) = (clients.sign(&["client"]), Authority::new().sign(&["client"]));
        let stream = tls.connect(&Arc::new(tls.authority.client_config_with(&[version], Some(&known)))).await.unwrap();
        assert_eq!(http1(stream, score("{}")).await.unwrap().text(), "m");
        for own in [None, Some(&stranger)] {
            // In TLS 1.3 a client hears of it only after its own part is done.
            let refused = match tls.connect(&Arc::new(tls.authority.client_config_with(&[version], own))).await {
                Ok(stream) => http1(stream, score("{}")).await.is_err(),
                Err(_) => true,
            };
            assert!(refused, "{version:?}");
        }
    }
}

#[tokio::test]
async fn large_uploads_and_answers_come_through_whole() {
    const LENGTH: usize = 8 << 20;
    let model = Model::http(|request| async move {
        let body = http_body_util::BodyExt::collect(request).await.unwrap().to_bytes();
        http::Response::new(full_body(body))
    })
    .await;
    let tls = TlsRouter::start(&[&endpoint(&[model.address], "{}")]);
    let body: Bytes = (0..LENGTH).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into();
    for multiplexed in [false, true] {
        let request = Request::post("/api/v1/endpoint/my-endpoint/score")
            .header("authorization", format!("Bearer {KEY}"))
            .body(Full::new(body.clone()))
            .unwrap();
        let mut config = tls.authority.client();
        config.alpn_protocols = if multiplexed { vec![b"h2".to_vec()] } else { Vec::new() };
        let stream = tls.connect(&Arc::new(config)).await.unwrap();
        let answer = if multiplexed { http2(stream, request).await } else { http1(stream, request).await };
        assert!(answer.unwrap().body == body);
    }
}

#[tokio::test]
async fn connections_and_certificates_are_in_the_metrics() {
    let end = SystemTime::now() + Duration::from_secs(90 * 24 * 3600);
    let tls = TlsRouter::start(&[]);
    tls.authority.sign_valid_until(&["localhost"], end).replace(tls.folder.path());
    let seconds = end.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let series = format!(
        "inference_router_tls_certificate_not_after_timestamp_seconds{{certificate=\"{}\"}}",
        tls.folder.path().display()
    );
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century are exact")]
    tls.wait_until_metric(&series, seconds as f64).await;
    let stream = tls.connect(&Arc::new(tls.authority.client())).await.unwrap();
    tls.wait_until_metric("inference_router_connections{listener=\"scoring_tls\"}", 1.0).await;
    tls.wait_until_metric("inference_router_tls_handshakes_total{listener=\"scoring_tls\",result=\"full\"}", 1.0).await;
    drop(stream);
    tls.wait_until_metric("inference_router_connections{listener=\"scoring_tls\"}", 0.0).await;
}

#[tokio::test]
async fn a_queued_request_whose_client_left_is_dropped_although_its_body_is_unread() {
    let (model, mut arrivals) = Model::manual().await;
    let tls = TlsRouter::start(&[&endpoint(
        &[model.address],
        "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}",
    )]);
    let first = tokio::spawn(call(tls.router.scoring, score("first")));
    let asked = with_timeout("a request", arrivals.recv()).await.unwrap();
    let config = Arc::new(tls.authority.client_config_with(&TLS_VERSIONS, None));
    let mut leaving = tls.connect(&config).await.unwrap();
    leaving.write_all(&raw_scoring_request(100_000)).await.unwrap();
    leaving.flush().await.unwrap();
    let queued = "inference_router_queue_length{deployment_name=\"blue\",endpoint_name=\"my-endpoint\"}";
    tls.wait_until_metric(queued, 1.0).await;
    drop(leaving);
    tls.wait_until_metric(queued, 0.0).await;
    asked.answer("ok");
    assert_eq!(first.await.unwrap().status, 200);
}
