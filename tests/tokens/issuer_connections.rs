//! Connections to issuers: over TLS, through a proxy, with a token of the router's own.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::harness::{Model, Router, with_timeout};
use crate::issuer::call_with_token;
use crate::signers::{Signer, jwk_set, unix_seconds};

/// Reads a request's head.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// An issuer over TLS: its address, and in PEM who has signed its certificate.
async fn start_tls_issuer(keys: String) -> (Model, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let model = Model::from_connections(move |stream| {
        let (acceptor, keys) = (acceptor.clone(), keys.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (model.await, authority.pem())
}

fn endpoint(name: &str, model: &Model, issuer: &str) -> String {
    format!(
        "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: {name}}}\nspec:\n  \
         authMode: aad_token\n  jwt: {{issuers: [{{audiences: [me], {issuer}}}]}}\n  \
         traffic: {{blue: 100}}\n  deployments:\n  - {{name: blue, instances: [\"{}\"]}}\n",
        model.address
    )
}

#[tokio::test]
async fn an_issuer_over_tls_is_trusted_by_its_authority_only() {
    let (model, signer) = (Model::named("scored").await, Signer::p256("k"));
    let (issuer, authority) = start_tls_issuer(jwk_set(&[signer.public()])).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), &authority).unwrap();
    let at = format!("issuer: corp, jwksUri: \"https://localhost:{}/keys\"", issuer.address.port());
    std::fs::write(folder.path().join("0.yaml"), endpoint("my-endpoint", &model, &format!("{at}, caFile: ca.pem")))
        .unwrap();
    std::fs::write(folder.path().join("1.yaml"), endpoint("other-one", &model, &at)).unwrap();
    let router = Router::start_in(folder, Box::new(std::io::sink()), |_| ());
    let token = signer.sign(&serde_json::json!({"iss": "corp", "aud": "me", "exp": unix_seconds() + 60}));
    assert_eq!(call_with_token(&router, &token).await.text(), "scored");
    let failed = r#"inference_router_key_set_fetches_total{issuer="corp",result="error"}"#;
    with_timeout("a failure of the other", async { while router.metric(failed).await.is_none() {} }).await;
}

/// Ends with the value.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn issuers_are_reached_through_the_proxy_of_the_environment() {
    let model = Model::named("scored").await;
    let (asked, mut asking) = mpsc::unbounded_channel();
    let proxy = Model::from_connections(move |mut stream| {
        let asked = asked.clone();
        async move {
            let _ = asked.send(head(&mut stream).await.lines().next().unwrap_or_default().to_owned());
        }
    })
    .await;
    let (direct, mut directly) = mpsc::unbounded_channel();
    let near = Model::from_connections(move |mut stream| {
        let direct = direct.clone();
        async move {
            let _ = direct.send(head(&mut stream).await);
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "of-the-router\n").unwrap();
    let near =
        format!("issuer: near, jwksUri: \"http://{}/keys\", allowHttp: true, bearerTokenFile: token", near.address);
    std::fs::write(folder.path().join("0.yaml"), endpoint("far-away", &model, "issuer: \"https://far.invalid\""))
        .unwrap();
    std::fs::write(folder.path().join("1.yaml"), endpoint("near-by", &model, &near)).unwrap();
    let settings = "scoring: {address: \"127.0.0.1:0\"}\nadmin: {address: \"127.0.0.1:0\"}\nendpoints: {files: [0.yaml, 1.yaml]}\n";
    std::fs::write(folder.path().join("router"), settings).unwrap();
    let _program = ChildGuard(
        Command::new(env!("CARGO_BIN_EXE_inference-router"))
            .args(["serve", "--config"])
            .arg(folder.path().join("router"))
            .env("HTTPS_PROXY", format!("http://{}", proxy.address))
            .env("HTTP_PROXY", format!("http://{}", proxy.address))
            .env("NO_PROXY", "127.0.0.1")
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    assert_eq!(with_timeout("the proxy's request", asking.recv()).await.unwrap(), "CONNECT far.invalid:443 HTTP/1.1");
    let head = with_timeout("the request without it", directly.recv()).await.unwrap();
    assert!(head.starts_with("GET /keys HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer of-the-router\r\n"), "{head}");
}

/// Everything that is written to it.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_access_log_says_who_called_and_never_with_what() {
    let (model, signer) = (Model::named("scored").await, Signer::ed25519("k"));
    let issuer =
        crate::issuer::FakeIssuer::start(crate::issuer::KeySetResponse::Keys(jwk_set(&[signer.public()]))).await;
    let (folder, log) = (tempfile::tempdir().unwrap(), LogBuffer::default());
    std::fs::write(folder.path().join("0.yaml"), issuer.endpoint(&model, "")).unwrap();
    let router = Router::start_in(folder, Box::new(log.clone()), |settings| settings.log.access = true);
    let good = signer.sign(&issuer.claims());
    let bad = Signer::ed25519("k").sign(&issuer.claims());
    assert_eq!(call_with_token(&router, &good).await.status, 200);
    assert_eq!(call_with_token(&router, &bad).await.status, 401);
    let shown = [router.admin("/metrics").await.text(), router.admin("/api/endpoints").await.text()].concat();
    tokio::task::spawn_blocking(move || router.join()).await.unwrap().unwrap();
    let written = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let who = |line: &serde_json::Value| (line["AuthType"].clone(), line["IdentityData"].clone());
    assert_eq!(who(&lines[0]), ("AADToken".into(), "somebody".into()));
    assert_eq!(who(&lines[1]), ("".into(), "".into()), "what a bad token says is not believed");
    for secret in [&good, &bad] {
        for part in secret.split('.').skip(1) {
            assert!(!written.contains(part) && !shown.contains(part));
        }
    }
}
