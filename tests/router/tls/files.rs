//! Certificates that change while they are used.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use inference_router::app::{App, AppEnvironment, BuildError, EndpointSource};
use inference_router::config::{RouterSettings, TlsListener};
use inference_router::model::tls::{CertificateSource, ServerTls};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;

use super::{Authority, CertifiedKeyPair, TlsRouter, connect, http1, peer_certificate};
use crate::harness::{Model, endpoint, score, with_timeout};

/// How long a change may take to count.
const MAX_RELOAD_TIME: Duration = Duration::from_secs(1);

/// Waits until new handshakes show `cert`.
async fn wait_until_certificate(tls: &TlsRouter, config: &Arc<ClientConfig>, cert: &CertificateDer<'_>) {
    with_timeout("the new certificate", async {
        while peer_certificate(&tls.connect(config).await.unwrap()) != *cert {}
    })
    .await;
}

/// Requests without end, over connections of their own and over a kept one.
fn load(tls: &TlsRouter, config: &Arc<ClientConfig>, stop: &Arc<AtomicBool>, done: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for kept in [true, false] {
        let (address, config, stop, done) = (tls.address(), config.clone(), stop.clone(), done.clone());
        clients.spawn(async move {
            while !stop.load(SeqCst) {
                let stream = connect(address, "localhost", &config).await.unwrap();
                if !kept {
                    assert_eq!(http1(stream, score("{}")).await.unwrap().status, 200);
                    done.fetch_add(1, SeqCst);
                    continue;
                }
                let io = hyper_util::rt::TokioIo::new(stream);
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                while !stop.load(SeqCst) {
                    let mut request = score("{}");
                    request.headers_mut().insert("host", "localhost".parse().unwrap());
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 200);
                    http_body_util::BodyExt::collect(answer).await.unwrap();
                    done.fetch_add(1, SeqCst);
                }
            }
        });
    }
    clients
}

/// Kubernetes' way: a link to a folder of this generation is swapped.
fn swap_generation(folder: &Path, generation: &str, pair: &CertifiedKeyPair) {
    std::fs::create_dir(folder.join(generation)).unwrap();
    std::fs::write(folder.join(generation).join("tls.crt"), &pair.cert).unwrap();
    std::fs::write(folder.join(generation).join("tls.key"), &pair.key).unwrap();
    symlink(generation, folder.join("..new")).unwrap();
    std::fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn certificates_are_swapped_under_load_without_a_failed_request() {
    let model = Model::named("m").await;
    let document = endpoint(&[model.address], "{maxConcurrentRequestsPerInstance: 100}");
    let tls = TlsRouter::start_with(&[&document], |tls, folder| {
        // As a Secret is mounted.
        let mount = folder.join("mount");
        std::fs::create_dir(&mount).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), mount.join(name)).unwrap();
        }
        let pair = CertifiedKeyPair {
            cert: std::fs::read_to_string(folder.join("tls.crt")).unwrap(),
            key: std::fs::read_to_string(folder.join("tls.key")).unwrap(),
        };
        swap_generation(&mount, "..1", &pair);
        tls.certificates = vec![CertificateSource::Pair { cert: mount.join("tls.crt"), key: mount.join("tls.key") }];
    });
    let mut config = tls.authority.client();
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = load(&tls, &config, &stop, &done);
    for way in ["link", "rename", "in place"] {
        let before = done.load(SeqCst);
        with_timeout("requests", async {
            while done.load(SeqCst) < before + 20 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let pair = tls.authority.sign(&["localhost", "127.0.0.1"]);
        let mount = tls.path("mount");
        match way {
            "link" => swap_generation(&mount, "..2", &pair),
            "rename" => pair.replace(&mount),
            _ => {
                std::fs::write(mount.join("tls.crt"), &pair.cert).unwrap();
                std::fs::write(mount.join("tls.key"), &pair.key).unwrap();
            }
        }
        let began = Instant::now();
        wait_until_certificate(&tls, &config, &pair.chain()[0]).await;
        assert!(began.elapsed() < MAX_RELOAD_TIME, "{way}: {:?}", began.elapsed());
    }
    stop.store(true, SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn what_is_broken_leaves_the_last_good_certificate_and_shows() {
    let tls = TlsRouter::start(&[]);
    let mut config = tls.authority.client();
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    let good = peer_certificate(&tls.connect(&config).await.unwrap());
    let other = tls.authority.sign(&["localhost"]);
    let half = &other.cert[..other.cert.len() / 2];
    let whole = std::fs::read(tls.path("tls.crt")).unwrap();
    let (mut errors, mut oks) = (0.0, 0.0);
    for text in [Some(half), Some("no PEM at all"), Some(&other.cert[..]), None] {
        match text {
            Some(text) => std::fs::write(tls.path("tls.crt"), text).unwrap(),
            None => std::fs::remove_file(tls.path("tls.crt")).unwrap(),
        }
        errors += 1.0;
        tls.wait_until_metric("inference_router_tls_invalid_files", 1.0).await;
        tls.wait_until_metric("inference_router_tls_reloads_total{result=\"error\"}", errors).await;
        let problems = tls.router.admin("/readyz").await.json()["problems"].to_string();
        assert!(problems.contains("scoringTls") && problems.contains("tls.crt"), "{problems}");
        assert_eq!(peer_certificate(&tls.connect(&config).await.unwrap()), good);
        crate::harness::replace(&tls.path("tls.crt"), std::str::from_utf8(&whole).unwrap());
        oks += 1.0;
        tls.wait_until_metric("inference_router_tls_reloads_total{result=\"ok\"}", oks).await;
        tls.wait_until_metric("inference_router_tls_invalid_files", 0.0).await;
        with_timeout("no problem", async {
            while tls.router.admin("/readyz").await.json()["problems"] != serde_json::json!([]) {}
        })
        .await;
    }
}

#[tokio::test]
async fn one_broken_certificate_does_not_hold_up_another() {
    let second = Authority::new();
    let tls = TlsRouter::start_with(&[], |tls, folder| {
        let folder = folder.join("second");
        std::fs::create_dir(&folder).unwrap();
        second.sign(&["second.example"]).replace(&folder);
        tls.certificates.push(CertificateSource::Folder(folder));
    });
    std::fs::write(tls.path("tls.key"), "broken").unwrap();
    tls.wait_until_metric("inference_router_tls_invalid_files", 1.0).await;
    let pair = second.sign(&["second.example"]);
    pair.replace(&tls.path("second"));
    let config = Arc::new(second.client());
    with_timeout("the other's new certificate", async {
        while peer_certificate(&connect(tls.address(), "second.example", &config).await.unwrap()) != pair.chain()[0] {}
    })
    .await;
    tls.connect(&Arc::new(tls.authority.client())).await.unwrap();
}

/// What a router says that does not start with such files.
fn refused_problems(tls: ServerTls) -> String {
    let settings = RouterSettings {
        scoring_tls: Some(TlsListener { address: "127.0.0.1:0".parse().unwrap(), tls }),
        scoring: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        ..RouterSettings::default()
    };
    let surroundings = AppEnvironment {
        endpoint_source: EndpointSource::Fixed(Vec::new()),
        environment: Arc::new(|_| None),
        executable: env!("CARGO_BIN_EXE_inference-router").into(),
        access_log: Box::new(std::io::sink()),
    };
    let Err(BuildError::Configuration(problems)) = App::build(settings, surroundings) else { panic!("not refused") };
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_router_does_not_start_with_files_it_cannot_use_and_says_which() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    let (pair, other) = (authority.sign(&["a"]), authority.sign(&["b"]));
    for (name, text) in [
        ("a.crt", pair.cert.as_str()),
        ("a.key", &pair.key),
        ("b.key", &other.key),
        ("encrypted.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
        ("half.crt", &pair.cert[..100]),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    for (cert, key, culprit, why) in [
        ("a.crt", "b.key", "b.key", "is not the key of the first certificate in"),
        ("a.crt", "gone.key", "gone.key", "cannot be read"),
        ("a.key", "a.key", "a.key", "has no certificate"),
        ("a.crt", "a.crt", "a.crt", "has no private key"),
        ("a.crt", "encrypted.key", "encrypted.key", "passphrase"),
        ("half.crt", "a.key", "half.crt", "PEM"),
    ] {
        let pair = CertificateSource::Pair { cert: path(cert), key: path(key) };
        let said = refused_problems(ServerTls { certificates: vec![pair], ..ServerTls::default() });
        let expected = format!("scoringTls: {} ", path(culprit).display());
        assert!(said.starts_with(&expected) && said.contains(why), "{cert}, {key}: {said}");
    }
    let empty = vec![CertificateSource::Folder(path("nowhere"))];
    let said = refused_problems(ServerTls {
        certificates: empty,
        client_ca_file: Some(path("a.key")),
        ..ServerTls::default()
    });
    assert!(said.contains("tls.crt cannot be read") && said.contains("a.key has no certificate"), "all: {said}");
}

#[test]
fn check_and_serve_look_at_certificates_too() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("router.yaml");
    std::fs::create_dir(folder.path().join("endpoints")).unwrap();
    std::fs::write(&settings, "scoringTls: {address: '127.0.0.1:0', certFile: a.crt, keyFile: a.key}").unwrap();
    for (arguments, code) in [(&["check"][..], 1), (&["serve", "--config"], 78)] {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_inference-router"));
        let ended = { program }.args(arguments).arg(&settings).output().unwrap();
        let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{said}");
        assert!(said.contains("scoringTls: ") && said.contains("a.crt cannot be read"), "{said}");
    }
}
