//! Secrets that are named: certificates and signing keys of the router, TLS towards pods; and the router's Service.

use std::process::Command;
use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::cluster::{Cluster, KEY, object};
use crate::router::{Router, free_port};
use crate::support::authority::{Authority, CertifiedKeyPair, provider};
use crate::wait_until;

const TLS: &str = "kubernetes.io/tls";

async fn write_tls_secret(cluster: &Cluster, name: &str, pair: &CertifiedKeyPair) {
    cluster.replace_secret(name, TLS, &[("tls.crt", &pair.cert), ("tls.key", &pair.key)]).await;
}

/// A key that tokens can be signed with.
fn signing_key() -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("signing.pem");
    let program = env!("CARGO_BIN_EXE_inference-router");
    let made = Command::new(program).args(["keys", "signing", "--file"]).arg(&file).status();
    assert!(made.unwrap().success());
    std::fs::read_to_string(file).unwrap()
}

fn client(authority: &Authority) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(authority.pem.as_bytes()).unwrap();
    // A connection that is kept shows no new certificate.
    reqwest::Client::builder().tls_certs_only([root]).pool_max_idle_per_host(0).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_signing_keys_are_in_secrets_of_the_routers_namespace() {
    let cluster = Cluster::start().await;
    let (first, second) = (Authority::new(), Authority::new());
    let port = free_port();
    let settings = json!({
        "scoringTls": {"address": format!("127.0.0.1:{port}"), "certSecret": "web"},
        "tokens": {"signingKeyFile": null, "signingSecret": "signing"},
    });
    let router = Router::start_with(&cluster, settings).await;
    let says = async |parts: &[&str]| {
        let problems = router.problems().await;
        parts.iter().all(|part| problems.contains(part)).then_some(())
    };
    wait_until("the Secrets are missed", || says(&["starting", "Secret web", "Secret signing", "no such Secret"]))
        .await;
    write_tls_secret(&cluster, "web", &first.sign(&["localhost", "127.0.0.1"])).await;
    wait_until("one Secret is missed", || says(&["Secret signing"])).await;
    let key = signing_key();
    cluster.replace_secret("signing", "Opaque", &[("signingKey", "no key")]).await;
    wait_until("the key is none", || says(&["starting", "its entry `signingKey` is not a private key"])).await;
    assert!(!router.is_ready().await);
    cluster.replace_secret("signing", "Opaque", &[("signingKey", &key)]).await;
    wait_until("the router is ready", || async { router.is_ready().await.then_some(()) }).await;

    let url = format!("https://localhost:{port}/api/v1/endpoint/nobody/score");
    let answers = async |authority: &Authority| {
        client(authority).get(&url).send().await.is_ok_and(|answer| answer.status() == 404).then_some(())
    };
    wait_until("the certificate is shown", || answers(&first)).await;
    assert!(answers(&second).await.is_none(), "the other authority has not signed it");
    write_tls_secret(&cluster, "web", &second.sign(&["localhost"])).await;
    let (_, took) = wait_until("the new certificate is shown", || answers(&second)).await;
    assert!(took.as_secs_f64() < 2.0, "{took:?}");

    let issued = async || {
        let known = router.http.get(format!("{}/.well-known/jwks.json", router.admin)).send().await.unwrap();
        let known: serde_json::Value = serde_json::from_str(&known.text().await.unwrap()).unwrap();
        known["keys"].as_array().unwrap().len()
    };
    assert_eq!(issued().await, 1);
    let entries = [("signingKey", &*signing_key()), ("previousKey1", &*key)];
    cluster.replace_secret("signing", "Opaque", &entries).await;
    wait_until("the key of before stays good", || async { (issued().await == 2).then_some(()) }).await;

    cluster.secrets().delete("web", &DeleteParams::default()).await.unwrap();
    wait_until("the Secret is missed", || says(&["ready", "Secret web", "no such Secret"])).await;
    assert!(answers(&second).await.is_some() && router.is_ready().await, "the last good one serves");
    cluster.delete_namespaces().await;
}

/// A model at `ip` with this certificate, which answers those that `clients` has signed.
async fn model(ip: &str, port: u16, own: &CertifiedKeyPair, clients: &Authority) {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients.roots()), provider()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier).with_single_cert(own.chain(), own.private_key()).unwrap();
    let (listener, acceptor) = (TcpListener::bind((ip, port)).await.unwrap(), TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut seen = Vec::new();
                while !seen.ends_with(b"]}") {
                    stream.read_buf(&mut seen).await.ok().filter(|read| *read > 0)?;
                }
                let answer = "HTTP/1.1 200 OK\r\nx-model-name: tls\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]";
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_towards_pods_is_made_of_a_secret_of_the_endpoints_namespace() {
    let cluster = Cluster::start().await;
    let (ip, port, models, routers) = ("127.0.13.1", free_port(), Authority::new(), Authority::new());
    model(ip, port, &models.sign(&["models.example"]), &routers).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    let tls = json!({"upstreamTls": {"secretRef": {"name": "upstream"}, "serverName": "models.example"}});
    cluster.create_endpoint("scored", port, tls).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", ip, true).await;
    let router = Router::start_ready(&cluster).await;
    let condition = async |reason: &str| {
        let (_, now) = cluster.condition("scored", "Accepted").await?;
        (now == reason).then_some(())
    };
    wait_until("the Secret is missed", || condition("Invalid")).await;
    assert_eq!(router.score("scored", KEY).await.0, 404, "there is no good version yet");
    let own = routers.sign(&["router"]);
    let all =
        |ca: &Authority| [("ca.crt", ca.pem.clone()), ("tls.crt", own.cert.clone()), ("tls.key", own.key.clone())];
    let texts = |all: &[(&'static str, String)]| all.to_vec();
    let put = async |entries: Vec<(&'static str, String)>| {
        let entries: Vec<(&str, &str)> = entries.iter().map(|(name, text)| (*name, text.as_str())).collect();
        cluster.replace_secret("upstream", "Opaque", &entries).await;
    };
    put(texts(&all(&models))).await;
    router.wait_until_scores("scored", 200).await;
    assert_eq!(router.score("scored", KEY).await, (200, "tls".to_owned()));
    wait_until("it is accepted", || condition("Accepted")).await;
    // One that cannot be read leaves the last good one.
    put(vec![("ca.crt", "no certificate".to_owned())]).await;
    wait_until("it is refused", || condition("Invalid")).await;
    assert_eq!(router.score("scored", KEY).await.0, 200);
    // Authorities that have not signed the model's certificate count at the next connection.
    put(texts(&all(&routers))).await;
    router.wait_until_scores("scored", 502).await;
    put(texts(&all(&models))).await;
    router.wait_until_scores("scored", 200).await;
    // Without TLS nobody watches the Secret any more, and the model understands nothing.
    cluster.patch_endpoint("scored", json!({"spec": {"deployments": [{
        "name": "blue", "port": port, "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "model"},
    }]}})).await;
    router.wait_until_scores("scored", 502).await;
    cluster.delete_namespaces().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scoring_uris_are_those_of_the_routers_service() {
    let cluster = Cluster::start().await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 0).await;
    cluster.create_endpoint("scored", 5001, json!({})).await;
    let settings = json!({"endpoints": {"kubernetes": {"service": "router"}}});
    let router = Router::start_with(&cluster, settings).await;
    wait_until("the Service is missed", || async {
        let problems = router.problems().await;
        (problems.contains("endpoints.kubernetes.service") && router.is_ready().await).then_some(())
    })
    .await;
    let services = cluster.namespaced_api("v1", "Service", "services");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "router", "namespace": cluster.namespace},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}], "selector": {"app": "router"}},
    });
    services.create(&PostParams::default(), &object(service)).await.unwrap();
    let uri_is = async |url: &str| {
        let endpoint = cluster.endpoints().get("scored").await.unwrap();
        (endpoint.data["status"]["scoringUri"] == format!("{url}/api/v1/endpoint/scored/score")).then_some(())
    };
    let inside = format!("http://router.{}.svc", cluster.namespace);
    wait_until("the name inside the cluster", || uri_is(&inside)).await;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    services.patch_status("router", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    wait_until("the address of the load balancer", || uri_is("http://192.0.2.7")).await;
    assert!(!router.problems().await.contains("endpoints.kubernetes.service"));
    cluster.delete_namespaces().await;
}
