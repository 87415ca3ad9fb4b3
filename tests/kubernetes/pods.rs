//! Pods that appear, become ready and not ready, terminate, and vanish.

use std::time::Duration;

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::{Cluster, KEY, object};
use crate::router::{Model, Router, free_port};
use crate::support::apiserver::InjectedFault;
use crate::wait_until;

/// By a watch, that is, and not by looking now and then. How long it takes on a quiet machine: `size.rs`.
const MAX_REACTION_TIME: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_pod_gets_requests_while_it_is_ready() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _models = (Model::start("127.0.1.1", port, &[]).await, Model::start("127.0.1.2", port, &[]).await);
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 2).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    let router = Router::start_ready(&cluster).await;
    assert_eq!(router.score("scored", KEY).await.0, 503, "no pod is there");
    cluster.create_pod("one", "model").await;
    cluster.create_pod("two", "model").await;
    cluster.create_pod("other", "another").await;
    cluster.set_pod_status("other", "127.0.1.3", true).await;
    cluster.set_pod_status("one", "127.0.1.1", false).await;
    assert_eq!(router.score("scored", KEY).await.0, 503, "none is ready");
    cluster.set_pod_status("one", "127.0.1.1", true).await;
    let took = router.wait_until_scores("scored", 200).await;
    assert!(took < MAX_REACTION_TIME, "{took:?}");
    assert_eq!(router.score("scored", KEY).await.1, "at-127.0.1.1");
    cluster.set_pod_status("one", "127.0.1.1", false).await;
    let took = router.wait_until_scores("scored", 503).await;
    assert!(took < MAX_REACTION_TIME, "{took:?}");
    cluster.set_pod_status("two", "127.0.1.2", true).await;
    router.wait_until_scores("scored", 200).await;
    assert_eq!(router.score("scored", KEY).await.1, "at-127.0.1.2");
    let replicas = &router.deployments("scored").await[0];
    assert_eq!((replicas["readyReplicas"].as_u64(), replicas["pendingReplicas"].as_u64()), (Some(1), Some(1)));
    cluster.delete_pod("two").await;
    router.wait_until_scores("scored", 503).await;
    cluster.delete_namespaces().await;
}

/// Its readiness may last until its end.
#[tokio::test]
async fn a_pod_that_is_being_deleted_gets_nothing_new() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.2.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.2.1", true).await;
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("scored", 200).await;
    // Somebody holds it, as a finalizer of a node's shutdown does.
    let held = json!({"metadata": {"finalizers": ["test.example/held"]}});
    cluster.pods().patch("one", &PatchParams::default(), &Patch::Merge(held)).await.unwrap();
    cluster.pods().delete("one", &kube::api::DeleteParams::default()).await.unwrap();
    let took = router.wait_until_scores("scored", 503).await;
    assert!(took < MAX_REACTION_TIME, "{took:?}");
    let free = json!({"metadata": {"finalizers": null}});
    cluster.pods().patch("one", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    cluster.delete_namespaces().await;
}

#[tokio::test]
async fn what_vanishes_while_the_watch_is_down_is_gone_when_it_is_back() {
    let cluster = Cluster::start().await;
    // Faults are only for the server of the tests.
    if cluster.api_server.is_none() {
        return cluster.delete_namespaces().await;
    }
    let server = cluster.api_server.as_ref().unwrap();
    let port = free_port();
    let _model = Model::start("127.0.3.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.3.1", true).await;
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("scored", 200).await;
    server.set_unavailable().await;
    let pods = crate::support::apiserver::resource("", "v1", "pods");
    server.store.delete(&pods, &cluster.namespace, "one").unwrap();
    // Nobody can say any more what happened since.
    server.store.compact_history();
    wait_until("the router notices", || async { router.problems().await.contains("cannot be watched").then_some(()) })
        .await;
    assert_eq!(router.score("scored", KEY).await.0, 200, "what is known stays");
    server.set_available();
    router.wait_until_scores("scored", 503).await;
    wait_until("no problem is left", || async { router.problems().await.contains("\"problems\":[]").then_some(()) })
        .await;
}

/// Whatever has a `scale` subresource with a selector will do, and is scaled through it.
#[tokio::test]
async fn pods_are_those_of_any_kind_that_can_be_scaled() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.13.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.install_server_crd().await;
    let servers = cluster.namespaced_api("models.example/v1", "Server", "servers");
    let server = json!({
        "apiVersion": "models.example/v1", "kind": "Server", "metadata": {"name": "model"}, "spec": {"replicas": 1},
    });
    let create = async || servers.create(&PostParams::default(), &object(server.clone())).await.ok();
    wait_until("servers are known", create).await;
    let status = json!({"status": {"selector": "app in (model),role=serving", "replicas": 1}});
    servers.patch_status("model", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let target = json!({
        "targetRef": {"apiVersion": "models.example/v1", "kind": "Server", "name": "model"},
        "scaleSettings": {"instanceCount": 2},
    });
    cluster.create_endpoint("scored", port, target).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.13.1", true).await;
    let router = Router::start_ready(&cluster).await;
    assert_eq!(router.score("scored", KEY).await.0, 503, "its label is missing");
    let label = json!({"metadata": {"labels": {"role": "serving"}}});
    cluster.pods().patch("one", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    router.wait_until_scores("scored", 200).await;
    let replicas = async || servers.get("model").await.unwrap().data["spec"]["replicas"].as_u64();
    wait_until("instanceCount counts", || async { (replicas().await == Some(2)).then_some(()) }).await;
    cluster.delete_namespaces().await;
}

/// Watches that break, lists that fail, versions that are forgotten, answers that take long.
#[tokio::test]
async fn an_api_server_that_stumbles_is_asked_again_and_nothing_is_missed() {
    let cluster = Cluster::start().await;
    if cluster.api_server.is_none() {
        return cluster.delete_namespaces().await;
    }
    let server = cluster.api_server.as_ref().unwrap();
    let port = free_port();
    let _model = Model::start("127.0.10.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    for (path, code, times) in [("/pods", 500, 3), ("onlineendpoints", 429, 2), ("/deployments", 503, 2)] {
        server.store.inject_fault(InjectedFault { method: "GET", path, code, times });
    }
    server.store.set_latency(Duration::from_millis(50));
    let router = Router::start_ready(&cluster).await;
    for round in 0..4 {
        cluster.set_pod_status("one", "127.0.10.1", true).await;
        router.wait_until_scores("scored", 200).await;
        server.drop_connections().await;
        server.store.inject_fault(InjectedFault { method: "GET", path: "/pods", code: 500, times: 1 });
        if round % 2 == 0 {
            server.store.compact_history();
        }
        cluster.set_pod_status("one", "127.0.10.1", false).await;
        router.wait_until_scores("scored", 503).await;
    }
    let asked = server.store.requests();
    let is_list = |request: &&String| request.contains("/pods?") && !request.contains("watch=");
    let lists = asked.iter().filter(is_list).count();
    // Two namespaces, listed at the start, again after each failure, and twice when versions were forgotten.
    assert!((4..40).contains(&lists), "{lists} lists of pods among {} requests", asked.len());
}

#[tokio::test]
async fn while_the_api_server_is_away_requests_are_served_and_a_new_router_is_not_ready() {
    let cluster = Cluster::start().await;
    if cluster.api_server.is_none() {
        return cluster.delete_namespaces().await;
    }
    let server = cluster.api_server.as_ref().unwrap();
    let port = free_port();
    let _model = Model::start("127.0.4.1", port, &["--concurrency", "8"]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    let settings = json!({"requestSettings": {"maxConcurrentRequestsPerInstance": 8, "maxQueueWaitMs": 5000}});
    cluster.create_endpoint("scored", port, settings).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.4.1", true).await;
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("scored", 200).await;
    server.set_unavailable().await;
    let late = Router::start(&cluster).await;
    wait_until("it says why", || async { late.problems().await.contains("cannot be watched").then_some(()) }).await;
    assert!(!late.is_ready().await);
    assert_eq!(late.score("scored", KEY).await.0, 503, "whether there is such an endpoint, it does not know");
    let until_then = std::time::Instant::now() + Duration::from_secs(60);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (url, http) = (router.uri("scored", "score"), router.http.clone());
        asked.spawn(async move {
            let mut count = 0;
            while std::time::Instant::now() < until_then {
                let body = r#"{"data": [[1,2,3,4,5,6,7,8,9,10]]}"#;
                let answer = http.post(&url).bearer_auth(KEY).body(body).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                count += 1;
            }
            count
        });
    }
    let counts = asked.join_all().await;
    assert!(counts.iter().sum::<u32>() > 1000, "{counts:?}");
    server.set_available();
    wait_until("the late one is ready", || async { late.is_ready().await.then_some(()) }).await;
    late.wait_until_scores("scored", 200).await;
    assert_eq!(router.score("scored", KEY).await.0, 200);
}
