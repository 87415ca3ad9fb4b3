//! Endpoints as objects: made, changed, broken, deleted; their names, their keys, their status.

use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::{Cluster, KEY, base64, object};
use crate::router::start_with_one_model;
use crate::wait_until;

const OTHER_KEY: &str = "another-key-of-the-endpoint-of-the-test";

pub async fn wait_until_condition(cluster: &Cluster, name: &str, kind: &str, wanted: (&str, &str)) {
    let look = || async {
        let (status, reason) = cluster.condition(name, kind).await?;
        ((status.as_str(), reason.as_str()) == wanted).then_some(())
    };
    wait_until(&format!("{kind} of {name} is {wanted:?}"), look).await;
}

#[tokio::test]
async fn an_endpoint_is_made_changed_broken_and_deleted() {
    let (cluster, router, _model) = start_with_one_model("127.0.5.1").await;
    wait_until_condition(&cluster, "scored", "Accepted", ("True", "Accepted")).await;
    wait_until_condition(&cluster, "scored", "Ready", ("True", "Serving")).await;
    let status = cluster.endpoints().get("scored").await.unwrap().data["status"].clone();
    assert_eq!(status["scoringUri"], "https://models.example/api/v1/endpoint/scored/score");
    assert_eq!(status["deployments"][0]["readyReplicas"], 1, "{status}");
    cluster.patch_endpoint("scored", json!({"spec": {"authMode": "none", "keys": null}})).await;
    wait_until("nobody is asked for a key", || async { (router.score("scored", "x").await.0 == 200).then_some(()) })
        .await;
    // What the API server lets through and the router does not.
    let deployments = cluster.endpoints().get("scored").await.unwrap().data["spec"]["deployments"].clone();
    let mut collecting = deployments.clone();
    collecting[0]["dataCollector"] = json!({"collections": {"request": {"enabled": true}}});
    cluster.patch_endpoint("scored", json!({"spec": {"deployments": collecting}})).await;
    wait_until_condition(&cluster, "scored", "Accepted", ("False", "Invalid")).await;
    assert_eq!(router.score("scored", "x").await.0, 200, "the last good version serves");
    cluster.patch_endpoint("scored", json!({"spec": {"deployments": deployments}})).await;
    wait_until_condition(&cluster, "scored", "Accepted", ("True", "Accepted")).await;
    cluster.endpoints().delete("scored", &DeleteParams::default()).await.unwrap();
    wait_until("it is gone", || async { (router.score("scored", "x").await.0 == 404).then_some(()) }).await;
    cluster.delete_namespaces().await;
}

#[tokio::test]
async fn keys_are_those_of_the_secret_a_second_after_it_has_changed() {
    let (cluster, router, _model) = start_with_one_model("127.0.6.1").await;
    assert_eq!(router.score("scored", OTHER_KEY).await.0, 401);
    let both = json!({"data": {"secondaryKey": base64(OTHER_KEY)}});
    cluster.secrets().patch("keys", &PatchParams::default(), &Patch::Merge(both)).await.unwrap();
    let look = || async { (router.score("scored", OTHER_KEY).await.0 == 200).then_some(()) };
    let (_, took) = wait_until("the second key is good", look).await;
    assert!(took.as_secs() < 1, "{took:?}");
    assert_eq!(router.score("scored", KEY).await.0, 200);
    let one = json!({"data": {"primaryKey": base64(OTHER_KEY), "secondaryKey": null}});
    cluster.secrets().patch("keys", &PatchParams::default(), &Patch::Merge(one)).await.unwrap();
    let look = || async { (router.score("scored", KEY).await.0 == 401).then_some(()) };
    let (_, took) = wait_until("the first key is not any more", look).await;
    assert!(took.as_secs() < 1, "{took:?}");
    // One that is no key, and none at all: what was good stays, and the status says it.
    let short = json!({"data": {"primaryKey": base64("short")}});
    cluster.secrets().patch("keys", &PatchParams::default(), &Patch::Merge(short)).await.unwrap();
    wait_until_condition(&cluster, "scored", "Accepted", ("False", "BadSecret")).await;
    assert_eq!(router.score("scored", OTHER_KEY).await.0, 200);
    cluster.secrets().delete("keys", &DeleteParams::default()).await.unwrap();
    let good = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": cluster.namespace},
        "type": "inference-router.dev/endpoint-keys", "data": {"primaryKey": base64(KEY)},
    });
    cluster.secrets().create(&PostParams::default(), &object(good)).await.unwrap();
    wait_until_condition(&cluster, "scored", "Accepted", ("True", "Accepted")).await;
    router.wait_until_scores("scored", 200).await;
    cluster.delete_namespaces().await;
}

#[tokio::test]
async fn of_two_with_one_name_the_older_has_it_until_it_is_gone() {
    let (cluster, router, _model) = start_with_one_model("127.0.9.1").await;
    // The API server's times are of seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.create_endpoint_in(&cluster.other_namespace, "scored", 1, json!({})).await;
    let neighbour = async |kind: &str| cluster.condition_in(&cluster.other_namespace, "scored", kind).await;
    let is = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    let conflict = || async { (neighbour("Accepted").await == is("False", "NameConflict")).then_some(()) };
    wait_until("the later one says so", conflict).await;
    assert_eq!(neighbour("Ready").await, is("False", "NotAccepted"));
    assert_eq!(router.score("scored", KEY).await.0, 200);
    assert_eq!(cluster.condition("scored", "Accepted").await, is("True", "Accepted"));
    cluster.endpoints().delete("scored", &DeleteParams::default()).await.unwrap();
    // It has no keys in its namespace, and so no good version yet.
    let missing = || async { (neighbour("Accepted").await == is("False", "BadSecret")).then_some(()) };
    wait_until("the later one has the name", missing).await;
    wait_until("it is not served yet", || async { (router.score("scored", KEY).await.0 == 404).then_some(()) }).await;
    cluster.delete_namespaces().await;
}

#[tokio::test]
async fn what_an_endpoint_names_must_be_there_and_nobody_elses() {
    let (cluster, router, _model) = start_with_one_model("127.0.7.1").await;
    // The API server's times are of seconds. Its name comes before the other's, and is of no help to it.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.create_endpoint("another", 1, json!({})).await;
    wait_until_condition(&cluster, "another", "Accepted", ("False", "TargetInUse")).await;
    assert_eq!(router.score("another", KEY).await.0, 503);
    assert_eq!(router.score("scored", KEY).await.0, 200);
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "missing"});
    let deployments = json!([{"name": "blue", "targetRef": target}]);
    cluster.patch_endpoint("another", json!({"spec": {"deployments": deployments}})).await;
    wait_until_condition(&cluster, "another", "Accepted", ("False", "TargetNotFound")).await;
    cluster.create_workload("missing", 1).await;
    wait_until_condition(&cluster, "another", "Accepted", ("True", "Accepted")).await;
    wait_until_condition(&cluster, "another", "Ready", ("False", "NoReadyReplica")).await;
    let autoscaler = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "somebody", "namespace": cluster.namespace},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 2},
    });
    let autoscalers = cluster.namespaced_api("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers");
    autoscalers.create(&PostParams::default(), &object(autoscaler)).await.unwrap();
    let scale = json!({"type": "target_utilization", "minInstances": 2, "maxInstances": 3});
    let deployments = json!([{"name": "blue", "targetRef": target, "scaleSettings": scale}]);
    cluster.patch_endpoint("another", json!({"spec": {"deployments": deployments}})).await;
    wait_until_condition(&cluster, "another", "Scaled", ("False", "HorizontalPodAutoscaler")).await;
    let replicas = async || cluster.deployments().get("missing").await.unwrap().data["spec"]["replicas"].as_u64();
    assert_eq!(replicas().await, Some(1), "it is left to the other");
    let events = cluster.namespaced_api("events.k8s.io/v1", "Event", "events");
    let has_event = || async {
        let all = events.list(&kube::api::ListParams::default()).await.unwrap();
        all.items.iter().any(|event| event.data["reason"] == "HorizontalPodAutoscaler").then_some(())
    };
    wait_until("an Event says so", has_event).await;
    autoscalers.delete("somebody", &DeleteParams::default()).await.unwrap();
    wait_until("minInstances counts", || async { (replicas().await == Some(2)).then_some(()) }).await;
    wait_until_condition(&cluster, "another", "Scaled", ("True", "Scaling")).await;
    cluster.delete_namespaces().await;
}
