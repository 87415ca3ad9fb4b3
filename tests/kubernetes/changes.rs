//! What a change must not break: what serves, the caps of pods, other endpoints, the API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, KEY, object};
use crate::endpoints::wait_until_condition;
use crate::router::{Model, Router, free_port, start_with_one_model};
use crate::support::apiserver::InjectedFault;
use crate::wait_until;

fn blue(port: u16, target: &Value) -> Value {
    json!([{"name": "blue", "port": port, "targetRef": target, "requestSettings": {"maxQueueWaitMs": 5000}}])
}

fn target(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": name})
}

async fn port_of(cluster: &Cluster, name: &str) -> u16 {
    let endpoint = cluster.endpoints().get(name).await.unwrap();
    endpoint.data["spec"]["deployments"][0]["port"].as_u64().unwrap().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_cannot_be_used_leaves_the_last_good_version() {
    let (cluster, router, _model) = start_with_one_model("127.0.15.1").await;
    let port = port_of(&cluster, "scored").await;
    for (target, reason) in [
        (target("apps/v1", "Deployment", "missing"), "TargetNotFound"),
        (target("v1", "Secret", "keys"), "BadTarget"),
        (target("nobody.example/v1", "Thing", "model"), "BadTarget"),
    ] {
        cluster.patch_endpoint("scored", json!({"spec": {"deployments": blue(port, &target)}})).await;
        wait_until_condition(&cluster, "scored", "Accepted", ("False", reason)).await;
        assert_eq!(router.score("scored", KEY).await.0, 200, "{target}");
    }
    if let Some(server) = &cluster.api_server {
        let asked = server.store.requests();
        let is_of_all =
            |one: &&String| one.starts_with("GET") && one.contains("/secrets?") && !one.contains("fieldSelector");
        assert_eq!(asked.iter().find(is_of_all), None, "nobody has asked for all Secrets");
    }
    assert!(!router.problems().await.contains("Thing"), "an endpoint's mistake is no problem of the router's");
    // What is missing comes, and counts; what served before is let go of.
    let second = target("apps/v1", "Deployment", "second");
    cluster.patch_endpoint("scored", json!({"spec": {"deployments": blue(port, &second)}})).await;
    wait_until_condition(&cluster, "scored", "Accepted", ("False", "TargetNotFound")).await;
    let _second = Model::start("127.0.15.2", port, &[]).await;
    cluster.create_workload("second", 1).await;
    cluster.create_pod("two", "second").await;
    cluster.set_pod_status("two", "127.0.15.2", true).await;
    let look = || async { (router.score("scored", KEY).await == (200, "at-127.0.15.2".to_owned())).then_some(()) };
    wait_until("the second model answers", look).await;
    wait_until_condition(&cluster, "scored", "Accepted", ("True", "Accepted")).await;
    cluster.delete_namespaces().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_the_pods_of_an_endpoint_that_serves() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.16.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_workload("other", 0).await;
    let other = target("apps/v1", "Deployment", "other");
    cluster.create_endpoint("older", port, json!({"targetRef": other})).await;
    // Creation is told to the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.create_endpoint("younger", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.16.1", true).await;
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("younger", 200).await;
    let model = target("apps/v1", "Deployment", "model");
    cluster.patch_endpoint("older", json!({"spec": {"deployments": blue(port, &model)}})).await;
    wait_until_condition(&cluster, "older", "Accepted", ("False", "TargetInUse")).await;
    assert_eq!(router.score("younger", KEY).await.0, 200);
    wait_until_condition(&cluster, "younger", "Accepted", ("True", "Accepted")).await;
    // Nor after a restart.
    drop(router);
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("younger", 200).await;
    assert_eq!(router.score("older", KEY).await.0, 503);
    cluster.endpoints().delete("younger", &DeleteParams::default()).await.unwrap();
    router.wait_until_scores("older", 200).await;
    cluster.delete_namespaces().await;
}

/// A model that takes its time, and the most requests that it has had at once.
async fn start_counting_model(ip: &str, port: u16) -> Arc<AtomicUsize> {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (listener, counted) = (TcpListener::bind((ip, port)).await.unwrap(), most.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (most, now) = (counted.clone(), now.clone());
            tokio::spawn(async move {
                loop {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"]}") {
                        stream.read_buf(&mut seen).await.ok().filter(|read| *read > 0)?;
                    }
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").await.ok()?;
                }
                #[expect(unreachable_code, reason = "says what the block comes to")]
                Some(())
            });
        }
    });
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_changes_hands_never_gets_more_than_it_takes() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let most = start_counting_model("127.0.17.1", port).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({"requestSettings": {"maxQueueWaitMs": 5000}})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.17.1", true).await;
    let router = Arc::new(Router::start_ready(&cluster).await);
    router.wait_until_scores("scored", 200).await;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let router = router.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                for _ in 0..8 {
                    all.push(router.score("scored", KEY).await.0);
                }
                all
            })
        })
        .collect();
    let model = target("apps/v1", "Deployment", "model");
    for name in ["green", "blue", "green"] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut deployments = blue(port, &model);
        deployments[0]["name"] = json!(name);
        let other = if name == "blue" { "green" } else { "blue" };
        let change = json!({"spec": {"traffic": {name: 100, other: null}, "deployments": deployments}});
        cluster.patch_endpoint("scored", change).await;
    }
    let mut answers = Vec::new();
    for client in clients {
        answers.extend(client.await.unwrap());
    }
    assert_eq!(most.load(Ordering::SeqCst), 1, "{answers:?}");
    assert!(answers.iter().filter(|status| **status == 200).count() >= 24, "{answers:?}");
    cluster.delete_namespaces().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_ended_gets_nothing_whatever_it_still_says() {
    let (cluster, router, _model) = start_with_one_model("127.0.18.1").await;
    let failed = json!({"status": {"phase": "Failed", "reason": "Evicted"}});
    cluster.pods().patch_status("one", &PatchParams::default(), &Patch::Merge(failed)).await.unwrap();
    router.wait_until_scores("scored", 503).await;
    cluster.delete_namespaces().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_each_of_many_is_written_and_none_again_and_again() {
    let cluster = Cluster::start().await;
    let router = Router::start_ready(&cluster).await;
    let target = target("apps/v1", "Deployment", "missing");
    for number in 0..60 {
        let spec = json!({"authMode": "none", "traffic": {"blue": 100},
            "deployments": [{"name": "blue", "targetRef": target}]});
        let endpoint = json!({
            "apiVersion": "inference-router.dev/v1alpha1", "kind": "OnlineEndpoint",
            "metadata": {"name": format!("many-{number}"), "namespace": cluster.namespace}, "spec": spec,
        });
        cluster.endpoints().create(&PostParams::default(), &object(endpoint)).await.unwrap();
    }
    let written = || async {
        for number in 0..60 {
            cluster.condition(&format!("many-{number}"), "Accepted").await?;
        }
        Some(())
    };
    wait_until("every status", written).await;
    if let Some(server) = &cluster.api_server {
        let all = server.store.requests();
        let writes = |number: u32| all.iter().filter(|one| one.contains(&format!("/many-{number}/status"))).count();
        let most = (0..60).map(writes).max();
        assert!(most <= Some(2), "{most:?} writes of one");
    }
    assert!(router.is_ready().await);
    cluster.delete_namespaces().await;
}

/// Faults can only be asked of the server of the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_is_not_ready_before_it_knows_workloads_and_who_else_scales_them() {
    let cluster = Cluster::start().await;
    let Some(server) = &cluster.api_server else { return cluster.delete_namespaces().await };
    let port = free_port();
    let _model = Model::start("127.0.19.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({"scaleSettings": {"instanceCount": 3}})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.19.1", true).await;
    let autoscaler = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "somebody", "namespace": cluster.namespace},
        "spec": {"scaleTargetRef": target("apps/v1beta2", "Deployment", "model"), "minReplicas": 1, "maxReplicas": 2},
    });
    let autoscalers = cluster.namespaced_api("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers");
    autoscalers.create(&PostParams::default(), &object(autoscaler)).await.unwrap();
    for path in ["/deployments", "/horizontalpodautoscalers", "/apis/apps/v1"] {
        server.store.inject_fault(InjectedFault { method: "GET", path, code: 500, times: 6 });
        let router = Router::start_ready(&cluster).await;
        assert_eq!(router.score("scored", KEY).await.0, 200, "{path}: from the first moment on");
        wait_until_condition(&cluster, "scored", "Scaled", ("False", "HorizontalPodAutoscaler")).await;
        let replicas = cluster.deployments().get("model").await.unwrap().data["spec"]["replicas"].clone();
        assert_eq!(replicas, 1, "{path}: it is left to the other");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_secret_that_the_router_does_not_look_at_are_not_rotated() {
    let (cluster, router, _model) = start_with_one_model("127.0.20.1").await;
    cluster.replace_secret("keys", "Opaque", &[("primaryKey", KEY)]).await;
    let rotated = std::process::Command::new(env!("CARGO_BIN_EXE_inference-router"))
        .args(["keys", "rotate", "--endpoint", "scored", "-n", &cluster.namespace, "--key", "primary"])
        .env("KUBECONFIG", &cluster.kubeconfig)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&rotated.stderr);
    assert!(!rotated.status.success() && said.contains("inference-router.dev/endpoint-keys"), "{said}");
    assert_eq!(router.score("scored", KEY).await.0, 200, "the last good key");
    cluster.delete_namespaces().await;
}
