//! A large cluster: how long it takes to know it, how much memory that is, what one event costs.
//!
//! `cargo test --release --test kubernetes -- --ignored --nocapture --test-threads 1`

use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, KEY, base64};
use crate::router::{Model, Router, free_port};
use crate::support::apiserver::{Store, resource};

const ENDPOINTS: u32 = 10_000;
const PODS_EACH: u32 = 5;

/// Straight into the store: over HTTP it would take minutes.
fn fill(store: &Store, namespace: &str) {
    let (endpoints, deployments) =
        (resource("inference-router.dev", "v1alpha1", "onlineendpoints"), resource("apps", "v1", "deployments"));
    let pods = resource("", "v1", "pods");
    let secret = json!({
        "metadata": {"name": "keys"}, "type": "inference-router.dev/endpoint-keys",
        "data": {"primaryKey": base64(KEY)},
    });
    store.create(&resource("", "v1", "secrets"), namespace, secret).unwrap();
    for number in 0..ENDPOINTS {
        let model = format!("model-{number}");
        let labels = json!({"app": model, "tier": "models", "pod-template-hash": format!("{number:08x}")});
        let workload = json!({
            "metadata": {"name": model},
            "spec": {"replicas": PODS_EACH, "selector": {"matchLabels": {"app": model}}},
        });
        store.create(&deployments, namespace, workload).unwrap();
        let endpoint = json!({
            "metadata": {"name": format!("endpoint-{number}")},
            "spec": {
                "keys": {"secretRef": {"name": "keys"}}, "traffic": {"blue": 100},
                "deployments": [{"name": "blue",
                    "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": model}}],
            },
        });
        store.create(&endpoints, namespace, endpoint).unwrap();
        for pod in 0..PODS_EACH {
            let name = format!("{model}-{pod}");
            let spec = json!({"containers": [{"name": "model", "image": "registry.example/models/model:1",
                "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"memory": "1Gi"}}}]});
            store
                .create(&pods, namespace, json!({"metadata": {"name": name, "labels": labels}, "spec": spec}))
                .unwrap();
            let ip = format!("10.{}.{}.{}", pod + 1, number / 250, number % 250);
            let status = |object: &mut serde_json::Value| {
                object["status"] = json!({"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]});
                Ok(())
            };
            store.update(&pods, (namespace, &name, "status"), status).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures times, which needs a quiet machine: see the top of the file"]
async fn a_readiness_reaches_routing_within_a_tenth_of_a_second() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.14.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    let router = Router::start_ready(&cluster).await;
    let mut times = Vec::new();
    for round in 0..100 {
        let is_ready = round % 2 == 0;
        cluster.set_pod_status("one", "127.0.14.1", is_ready).await;
        times.push(router.wait_until_scores("scored", if is_ready { 200 } else { 503 }).await);
    }
    times.sort();
    println!("from the API server's answer to routing: median {:?}, longest {:?}", times[50], times[99]);
    assert!(times[99] < Duration::from_millis(100), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures a release build, for a minute: see the top of the file"]
async fn a_large_cluster_is_known_soon_and_fits() {
    let cluster = Cluster::start().await;
    let Some(server) = &cluster.api_server else { return };
    fill(&server.store, &cluster.namespace);
    let started = Instant::now();
    let router = Router::start_ready(&cluster).await;
    let known = started.elapsed();
    let all = router.deployments("endpoint-9999").await;
    assert_eq!(all[0]["readyReplicas"], PODS_EACH, "{all:?}");
    println!(
        "known after {known:?}, with {:?} of a processor, {:?} MiB now and at most",
        router.cpu(),
        router.memory()
    );
    assert!(known < Duration::from_secs(5), "{known:?}");
    // All statuses are written once.
    let is_last = || async { cluster.condition("endpoint-9999", "Ready").await };
    let mut waited = Duration::ZERO;
    while is_last().await.is_none() && waited < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waited += Duration::from_secs(1);
    }
    let quiet = router.cpu();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = router.cpu() - quiet;
    println!("at rest {:.1} % of a processor, {:?} MiB now and at most", idle.as_secs_f64() * 20.0, router.memory());
    assert!(router.memory().1 <= 250, "{:?} MiB", router.memory());
    for (what, is_pod) in [("pod", true), ("endpoint", false)] {
        let before = router.cpu();
        const EVENTS: u32 = 200;
        let begun = Instant::now();
        for number in 0..EVENTS {
            if is_pod {
                let ip = format!("10.1.{}.{}", number / 250, number % 250);
                cluster.set_pod_status(&format!("model-{number}-0"), &ip, false).await;
            } else {
                let change = json!({"spec": {"deployments": [{"name": "blue", "port": 5002,
                    "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("model-{number}")}}]}});
                let name = format!("endpoint-{number}");
                cluster.endpoints().patch(&name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
            }
        }
        // Looking at 10,000 endpoints costs more than the events do: once is enough, when the statuses are written too.
        tokio::time::sleep(Duration::from_secs(12)).await;
        let took = router.cpu() - before;
        let idle = idle.mul_f64(begun.elapsed().as_secs_f64() / 5.0);
        let deployment = &router.deployments(&format!("endpoint-{}", EVENTS - 1)).await[0];
        let replicas = deployment["replicas"].to_string();
        let is_known = if is_pod { deployment["readyReplicas"] == PODS_EACH - 1 } else { replicas.contains(":5002") };
        assert!(is_known, "{deployment}");
        let each = took.saturating_sub(idle) / EVENTS;
        println!("an event of a {what}: {each:?} of a processor");
        assert!(each < Duration::from_millis(1), "{each:?}");
    }
}
