//! Several routers in a cluster, which write down in a `Lease` who coordinates.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, KEY};
use crate::router::{Model, Router, free_port};
use crate::wait_until;

/// One of a group.
async fn start_fleet_router(cluster: &Cluster) -> Router {
    let peer = json!({"address": format!("127.0.0.1:{}", free_port())});
    let fleet = json!({"fleet": {"peer": peer, "leaderLock": {"kubernetes": {"name": "routers"}}, "termSeconds": 2}});
    let router = Router::start_with(cluster, fleet).await;
    wait_until("the router is ready", || async { router.is_ready().await.then_some(()) }).await;
    router
}

/// What a router says of its group.
async fn fleet_status(router: &Router) -> Value {
    let text = router.http.get(format!("{}/api/endpoints", router.admin)).send().await.unwrap().text().await.unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["fleet"].clone()
}

async fn is_coordinator(router: &Router) -> bool {
    let status = fleet_status(router).await;
    status["coordinator"] == status["router"]
}

async fn kubernetes_lease_spec(cluster: &Cluster) -> Value {
    cluster.namespaced_api("coordination.k8s.io/v1", "Lease", "leases").get("routers").await.unwrap().data["spec"]
        .clone()
}

#[tokio::test]
async fn of_two_routers_one_coordinates_and_when_it_leaves_the_other_does_within_a_second() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.21.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    cluster.create_endpoint("scored", port, json!({})).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.21.1", true).await;
    let first = start_fleet_router(&cluster).await;
    let second = start_fleet_router(&cluster).await;
    let both = || async { (fleet_status(&first).await["members"].as_array()?.len() == 2).then_some(()) };
    wait_until("both are members", both).await;
    let known =
        || async { (fleet_status(&second).await["coordinator"] == fleet_status(&first).await["router"]).then_some(()) };
    wait_until("the second knows the first", known).await;
    assert!(is_coordinator(&first).await && !is_coordinator(&second).await);
    let written = kubernetes_lease_spec(&cluster).await;
    let holder = written["holderIdentity"].as_str().unwrap().to_owned();
    assert!(holder.starts_with(fleet_status(&first).await["router"].as_str().unwrap()), "{written}");
    assert_eq!((&written["leaseTransitions"], &written["leaseDurationSeconds"]), (&json!(1), &json!(2)));
    first.wait_until_scores("scored", 200).await;
    second.wait_until_scores("scored", 200).await;

    let terminated_at = Instant::now();
    first.terminate();
    // The record says it first: what a router shows is looked at once a second.
    let other = || async {
        let holder = kubernetes_lease_spec(&cluster).await["holderIdentity"].as_str().unwrap_or_default().to_owned();
        holder.starts_with(fleet_status(&second).await["router"].as_str()?).then_some(())
    };
    wait_until("the second coordinates", other).await;
    assert!(terminated_at.elapsed() < Duration::from_secs(1), "{:?}", terminated_at.elapsed());
    assert_eq!(kubernetes_lease_spec(&cluster).await["leaseTransitions"], 2);
    for _ in 0..20 {
        assert_eq!(second.score("scored", KEY).await.0, 200);
    }
    cluster.delete_namespaces().await;
}

#[tokio::test]
async fn one_scales_by_what_all_routers_see() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.22.1", port, &["--delay-ms", "100"]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    let settings = json!({
        "requestSettings": {"maxQueueWaitMs": 60000},
        "scaleSettings": {"type": "target_utilization", "minInstances": 1, "maxInstances": 4},
    });
    cluster.create_endpoint("scored", port, settings).await;
    cluster.create_pod("one", "model").await;
    cluster.set_pod_status("one", "127.0.22.1", true).await;
    let first = start_fleet_router(&cluster).await;
    let second = start_fleet_router(&cluster).await;
    wait_until("the first coordinates", || async { is_coordinator(&first).await.then_some(()) }).await;
    second.wait_until_scores("scored", 200).await;
    let replicas = async || cluster.deployments().get("model").await.unwrap().data["spec"]["replicas"].as_u64();
    // All of the load is at the one that does not decide: eight at a time, where one can be served.
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (url, http) = (second.uri("scored", "score"), second.http.clone());
        asked.spawn(async move {
            for _ in 0..10 {
                let body = r#"{"data": [[1,2,3,4,5,6,7,8,9,10]]}"#;
                assert_eq!(http.post(&url).bearer_auth(KEY).body(body).send().await.unwrap().status(), 200);
            }
        });
    }
    wait_until("more are asked for", || async { (replicas().await > Some(1)).then_some(()) }).await;
    asked.join_all().await;
    let decided = async |router: &Router| {
        let text = router.http.get(format!("{}/metrics", router.admin)).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line.starts_with("inference_router_autoscaler_decisions_total"))
    };
    assert!(decided(&first).await && !decided(&second).await, "only the coordinator decides");

    // Whoever follows has seen nothing of that, and nobody asks any more.
    let most = replicas().await;
    first.terminate();
    let is_in_stabilization_window = || async {
        let text = second.http.get(format!("{}/api/endpoints", second.admin)).send().await.ok()?.text().await.ok()?;
        (is_coordinator(&second).await && text.contains(r#""stabilization_window""#)).then_some(())
    };
    wait_until("the other decides, and that fewer would do", is_in_stabilization_window).await;
    let decided = Instant::now();
    while decided.elapsed() < Duration::from_secs(5) {
        assert_eq!(replicas().await, most, "a change of coordinator scales nothing down");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.delete_namespaces().await;
}
