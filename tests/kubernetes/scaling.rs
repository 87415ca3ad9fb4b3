//! Scaling of workloads whose pods are created by a stand-in for the cluster's controllers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kube::api::ListParams;
use serde_json::json;

use crate::cluster::{Cluster, KEY};
use crate::router::{Model, Router, free_port};
use crate::wait_until;

/// How long a pod takes to start.
const POD_START_TIME: Duration = Duration::from_secs(20);

/// Makes and deletes pods as a Deployment's controller and a kubelet would, each with a model server, until it is dropped.
struct Controller(tokio::task::JoinHandle<()>);

impl Controller {
    fn start(cluster: &Arc<Cluster>, net: u8, port: u16) -> Self {
        let cluster = cluster.clone();
        Self(tokio::spawn(async move {
            // By number: since when it starts, and its model once it runs.
            let mut pods: BTreeMap<u32, (Instant, Option<Model>)> = BTreeMap::new();
            let mut next = 1;
            loop {
                let wanted = cluster.deployments().get("model").await.unwrap().data["spec"]["replicas"].as_u64();
                while pods.len() < wanted.unwrap() as usize {
                    cluster.create_pod(&format!("model-{next}"), "model").await;
                    pods.insert(next, (Instant::now(), None));
                    next += 1;
                }
                while pods.len() > wanted.unwrap() as usize {
                    // Like a ReplicaSet: those that are not ready first, then the cheapest.
                    let listed = cluster.pods().list(&ListParams::default().labels("app=model")).await.unwrap();
                    let cost = |number: &u32| {
                        let name = format!("model-{number}");
                        let pod = listed.items.iter().find(|pod| pod.metadata.name.as_deref() == Some(&name));
                        let annotations = pod.and_then(|pod| pod.metadata.annotations.clone()).unwrap_or_default();
                        let cost = annotations.get("controller.kubernetes.io/pod-deletion-cost");
                        cost.map_or(0, |cost| cost.parse::<u32>().unwrap())
                    };
                    let first = *pods.keys().min_by_key(|number| (pods[number].1.is_some(), cost(number))).unwrap();
                    cluster.delete_pod(&format!("model-{first}")).await;
                    let (_, model) = pods.remove(&first).unwrap();
                    // Its grace, in which what is in flight finishes.
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        drop(model);
                    });
                }
                for (number, (since, model)) in &mut pods {
                    // The first was there before.
                    if model.is_none() && (*number == 1 || since.elapsed() >= POD_START_TIME) {
                        let ip = format!("127.0.{net}.{number}");
                        *model = Some(Model::start(&ip, port, &["--delay-ms", "50"]).await);
                        cluster.set_pod_status(&format!("model-{number}"), &ip, true).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Requests that come whether others are answered or not.
struct Load {
    is_over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn start(router: &Router, every: Duration) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (url, http) = (router.uri("scored", "score"), router.http.clone());
        let until = is_over.clone();
        let task = tokio::spawn(async move {
            let (mut asked, mut times) = (tokio::task::JoinSet::new(), tokio::time::interval(every));
            while !until.load(Ordering::Relaxed) {
                times.tick().await;
                let body = r#"{"data": [[1,2,3,4,5,6,7,8,9,10]]}"#;
                let request = http.post(&url).bearer_auth(KEY).body(body).send();
                asked.spawn(async move { assert_eq!(request.await.unwrap().status(), 200) });
            }
            asked.join_all().await.len()
        });
        Self { is_over, task }
    }

    /// How many requests were answered, all of them with 200.
    async fn stop(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn pods_that_take_long_to_start_follow_the_load_up_and_down_and_no_request_fails() {
    let cluster = Arc::new(Cluster::start().await);
    let port = free_port();
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 1).await;
    let settings = json!({
        "requestSettings": {"maxQueueWaitMs": 120000},
        "scaleSettings": {"type": "target_utilization", "minInstances": 1, "maxInstances": 4},
    });
    cluster.create_endpoint("scored", port, settings).await;
    let controller = Controller::start(&cluster, 8, port);
    let router = Router::start_ready(&cluster).await;
    router.wait_until_scores("scored", 200).await;
    let replicas = async || cluster.deployments().get("model").await.unwrap().data["spec"]["replicas"].as_u64();
    // Fifty a second for 50 ms each are two and a half at a time: four at 70 %.
    let load = Load::start(&router, Duration::from_millis(20));
    wait_until("four are asked for", || async { (replicas().await == Some(4)).then_some(()) }).await;
    let ready = async || router.deployments("scored").await[0]["readyReplicas"].as_u64().unwrap();
    let all = || async { (ready().await == 4).then_some(()) };
    let (_, took) = wait_until("four are ready", all).await;
    assert!(took > POD_START_TIME - Duration::from_secs(5), "{took:?}");
    assert_eq!(replicas().await, Some(4), "those that start count");
    assert!(load.stop().await > 100);
    // A light load goes on while pods go.
    let light = Load::start(&router, Duration::from_millis(200));
    let started = Instant::now();
    while replicas().await != Some(1) {
        assert!(started.elapsed() < Duration::from_secs(150), "{}", router.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(started.elapsed() > Duration::from_secs(55), "{:?}", started.elapsed());
    wait_until("one is left", || async { (ready().await == 1).then_some(()) }).await;
    light.stop().await;
    // Events are written once per second, after the change itself.
    let events = cluster.namespaced_api("events.k8s.io/v1", "Event", "events");
    wait_until("there are Events of both directions", || async {
        let events = events.list(&ListParams::default()).await.unwrap();
        let has = |reason: &str| events.items.iter().any(|event| event.data["reason"] == reason);
        (has("ScaledUp") && has("ScaledDown")).then_some(())
    })
    .await;
    drop(controller);
    Arc::into_inner(cluster).into_iter().for_each(drop);
}

#[tokio::test]
async fn the_first_request_has_a_pod_be_started_where_there_is_none() {
    let cluster = Cluster::start().await;
    let port = free_port();
    let _model = Model::start("127.0.15.1", port, &[]).await;
    cluster.create_key_secret("keys", KEY).await;
    cluster.create_workload("model", 0).await;
    let scale = json!({"type": "target_utilization", "minInstances": 0, "maxInstances": 2, "idleBeforeZero": "2s"});
    cluster.create_endpoint("scored", port, json!({"scaleSettings": scale})).await;
    let router = Router::start_ready(&cluster).await;
    let ready = || async { cluster.condition("scored", "Ready").await.filter(|(status, _)| status == "True") };
    wait_until("it says that it can serve", ready).await;
    let replicas = async || cluster.deployments().get("model").await.unwrap().data["spec"]["replicas"].as_u64();
    let asked = async {
        wait_until("one is asked for", || async { (replicas().await == Some(1)).then_some(()) }).await;
        cluster.create_pod("one", "model").await;
        cluster.set_pod_status("one", "127.0.15.1", true).await;
    };
    let ((status, _), ()) = tokio::join!(router.score("scored", KEY), asked);
    assert_eq!(status, 200, "it has waited for the pod");
    wait_until("none is asked for", || async { (replicas().await == Some(0)).then_some(()) }).await;
    cluster.delete_namespaces().await;
}
