//! People with a kubeconfig: tokens, keys, requests.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Cluster, KEY};
use crate::router::start_with_one_model;
use crate::wait_until;

/// What the kubeconfig of the tests shows.
const USER_TOKEN: &str = "token-of-the-test";

/// Runs a command with a kubeconfig.
fn run(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("request.json");
    std::fs::write(&file, input).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let arguments = arguments.iter().map(|argument| if *argument == "REQUEST" { file.as_str() } else { argument });
    Command::new(env!("CARGO_BIN_EXE_inference-router"))
        .args(arguments)
        .env("KUBECONFIG", &cluster.kubeconfig)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn prints(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

const ROWS: &str = r#"{"data": [[1,2,3,4,5,6,7,8,9,10]]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_shown_and_rotated_and_requests_sent_with_a_kubeconfig() {
    let (cluster, router, _model) = start_with_one_model("127.0.11.1").await;
    let uri = router.uri("scored", "score");
    let at = ["--endpoint", "scored", "-n", &cluster.namespace];
    let shown: Value =
        serde_json::from_str(&prints(&run(&cluster, &[&["keys", "show"], &at[..]].concat(), ""))).unwrap();
    assert_eq!(shown, json!({"primaryKey": KEY}));
    let rotated = prints(&run(&cluster, &[&["keys", "rotate", "--key", "secondary"], &at[..]].concat(), ""));
    let key = rotated.strip_prefix("secondary: ").unwrap().trim().to_owned();
    wait_until("the new key is good", || async { (router.score("scored", &key).await.0 == 200).then_some(()) }).await;
    assert_eq!(router.score("scored", KEY).await.0, 200);
    let invoke = [&["invoke", "--request-file", "REQUEST", "--scoring-uri", &uri], &at[..]].concat();
    let answer: Value = serde_json::from_str(&prints(&run(&cluster, &invoke, ROWS))).unwrap();
    assert!(answer[0].is_number(), "{answer}");
    let missing = run(&cluster, &[&invoke[..], &["--deployment-name", "green"]].concat(), ROWS);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("deployment_not_found"), "{missing:?}");
    let nobody = run(&cluster, &["keys", "show", "--endpoint", "nobody", "-n", &cluster.namespace], "");
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    cluster.delete_namespaces().await;
}

/// Only the server of the tests can be told who somebody is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_the_cluster_get_tokens_if_they_may() {
    let (cluster, router, _model) = start_with_one_model("127.0.12.1").await;
    let uri = router.uri("scored", "score");
    if cluster.api_server.is_none() {
        return cluster.delete_namespaces().await;
    }
    let server = cluster.api_server.as_ref().unwrap();
    cluster.patch_endpoint("scored", json!({"spec": {"authMode": "aml_token", "keys": null}})).await;
    wait_until("it takes tokens", || async { (router.score("scored", KEY).await.0 == 401).then_some(()) }).await;
    let asked = async |token: &str| {
        let answer = router.http.post(router.uri("scored", "token")).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(asked(USER_TOKEN).await.0, 401, "nobody knows it");
    server.store.add_user(USER_TOKEN, "jane");
    let (status, told) = asked(USER_TOKEN).await;
    assert_eq!(status, 403, "{told}");
    assert!(told.contains("onlineendpoints/token"), "{told}");
    server.store.allow_tokens("jane", &cluster.namespace, "another");
    assert_eq!(asked(USER_TOKEN).await.0, 403);
    server.store.allow_tokens("jane", &cluster.namespace, "scored");
    let (status, told) = asked(USER_TOKEN).await;
    assert_eq!(status, 200, "{told}");
    let token: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(router.score("scored", token["accessToken"].as_str().unwrap()).await.0, 200);
    let at = ["--endpoint", "scored", "-n", &cluster.namespace, "--scoring-uri", &uri];
    let printed: Value = serde_json::from_str(&prints(&run(&cluster, &[&["token"], &at[..]].concat(), ""))).unwrap();
    assert_eq!(router.score("scored", printed["accessToken"].as_str().unwrap()).await.0, 200);
    let answer = prints(&run(&cluster, &[&["invoke", "--request-file", "REQUEST"], &at[..]].concat(), ROWS));
    assert!(answer.starts_with('['), "{answer}");
    server.set_unavailable().await;
    assert_eq!(asked("another").await.0, 503, "nobody can tell now");
}

/// A real cluster has no Service of the router that the test has started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_is_compared_through_the_api_server() {
    let (cluster, router, _model) = start_with_one_model("127.0.13.1").await;
    let Some(server) = &cluster.api_server else { return cluster.delete_namespaces().await };
    let arguments = ["compare", "--endpoint", "scored", "-n", &cluster.namespace];
    let compare = || run(&cluster, &arguments, "");
    let nowhere = compare();
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(said.contains("services \"http:inference-router-admin:admin\" not found"), "{said}");
    server.store.set_service_authority(router.admin.trim_start_matches("http://"));
    let plain = compare();
    assert!(String::from_utf8_lossy(&plain.stderr).contains("set spec.mirrorTraffic"), "{plain:?}");
    cluster.create_workload("shadow", 1).await;
    let mut deployments = cluster.endpoints().get("scored").await.unwrap().data["spec"]["deployments"].clone();
    let mut shadow = deployments[0].clone();
    (shadow["name"], shadow["targetRef"]["name"]) = (json!("shadow"), json!("shadow"));
    deployments.as_array_mut().unwrap().push(shadow);
    let mirrored = json!({"deployments": deployments, "mirrorTraffic": {"shadow": 10}, "mirrorComparison": {}});
    cluster.patch_endpoint("scored", json!({"spec": mirrored})).await;
    let table = wait_until("it is compared", || async {
        let output = compare();
        output.status.success().then(|| prints(&output))
    });
    let (table, _) = table.await;
    assert!(
        table.contains("live (blue 100 %) against shadow shadow") && table.contains("nothing to compare yet"),
        "{table}"
    );
    let nobody = run(&cluster, &["compare", "--endpoint", "nobody", "-n", &cluster.namespace], "");
    assert!(
        nobody.status.code() == Some(1) && String::from_utf8_lossy(&nobody.stderr).contains("nobody"),
        "{nobody:?}"
    );
    cluster.delete_namespaces().await;
}
