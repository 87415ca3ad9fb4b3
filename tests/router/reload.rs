//! Promises of hot reload: changes of endpoint files take effect, and never take traffic down.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{Answer, KEY, Model, Router, call, document, endpoint, replace, score, send, with_timeout};
use crate::raw_peers::{
    first_deployment, join_task, metric_sum, next_arrival, shut_down, spawn_scoring, streaming,
    wait_until_busy_and_queued, wait_until_idle,
};

/// Times nobody reaches.
const LONG_TIMEOUTS: &str = "maxQueueWaitMs: 60000, requestTimeoutMs: 60000";

fn cap(cap: usize) -> String {
    format!("{{maxConcurrentRequestsPerInstance: {cap}, {LONG_TIMEOUTS}}}")
}

/// Two deployments with such weights.
fn blue_and_green(blue: &Model, green: &Model, weights: (u8, u8)) -> String {
    let deployment = |name: &str, model: &Model| {
        format!("- {{name: {name}, instances: [\"{}\"], requestSettings: {}}}", model.address, cap(100))
    };
    document(
        &format!("traffic: {{blue: {}, green: {}}}", weights.0, weights.1),
        &format!("{}\n{}", deployment("blue", blue), deployment("green", green)),
    )
}

fn renamed(document: &str, name: &str) -> String {
    document.replace("{name: my-endpoint}", &format!("{{name: {name}}}"))
}

async fn score_named(router: &Router, name: &str) -> Answer {
    score_with_key(router, name, KEY).await
}

async fn score_with_key(router: &Router, name: &str, key: &str) -> Answer {
    let request = Request::post(format!("/api/v1/endpoint/{name}/score"))
        .header("authorization", format!("Bearer {key}"))
        .body(Full::from("{}"))
        .unwrap();
    call(router.scoring, request).await
}

fn names(all: &Value) -> Vec<&str> {
    all["endpoints"].as_array().unwrap().iter().map(|endpoint| endpoint["name"].as_str().unwrap()).collect()
}

/// Waits until the first deployment of the first endpoint is at these addresses.
async fn wait_until_replicas(router: &Router, addresses: &[SocketAddr]) {
    let mut wanted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    wanted.sort();
    router
        .wait_until(&format!("replicas at {wanted:?}"), |all| {
            let replicas = first_deployment(all)["replicas"].as_array();
            let mut now: Vec<&str> = replicas
                .into_iter()
                .flatten()
                .filter(|replica| replica["state"] != "draining")
                .map(|replica| replica["address"].as_str().unwrap())
                .collect();
            now.sort_unstable();
            now == wanted
        })
        .await;
}

async fn readiness_problems(router: &Router) -> Vec<String> {
    let ready = router.admin("/readyz").await;
    assert_eq!(ready.status, 200, "a bad change does not make the router unready");
    serde_json::from_value(ready.json()["problems"].clone()).unwrap()
}

async fn wait_until_problems(router: &Router, what: &str, condition: impl Fn(&[String]) -> bool) {
    with_timeout(what, async {
        while !condition(&readiness_problems(router).await) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn failed_reloads(router: &Router) -> f64 {
    metric_sum(router, "inference_router_config_reloads_total", "result=\"error\"").await
}

#[tokio::test]
async fn a_changed_weight_changes_the_traffic() {
    let (blue, green) = (Model::named("blue").await, Model::named("green").await);
    let router = Router::start(&[&blue_and_green(&blue, &green, (100, 0))]);
    for weights in [(0, 100), (100, 0), (0, 100)] {
        std::fs::write(router.file("0.yaml"), blue_and_green(&blue, &green, weights)).unwrap();
        let is_there = |all: &Value| {
            let deployments = all["endpoints"][0]["deployments"].as_array().unwrap();
            let of = |name: &str| deployments.iter().find(|deployment| deployment["name"] == name).unwrap();
            of("blue")["traffic"] == weights.0 && of("green")["traffic"] == weights.1
        };
        router.wait_until("the new weights", is_there).await;
        for _ in 0..20 {
            let answer = router.score("{}").await;
            assert_eq!(answer.text(), if weights.0 == 100 { "blue" } else { "green" });
        }
    }
    shut_down(router).await;
}

#[tokio::test]
async fn an_added_file_adds_an_endpoint_and_a_deleted_one_removes_it() {
    let model = Model::named("ok").await;
    let text = endpoint(&[model.address], &cap(10));
    let router = Router::start(&[&text]);
    assert_eq!(score_named(&router, "other").await.status, 404);
    std::fs::write(router.file("other.yaml"), renamed(&text, "other")).unwrap();
    router.wait_until("two endpoints", |all| names(all) == ["my-endpoint", "other"]).await;
    assert_eq!(score_named(&router, "other").await.status, 200);
    std::fs::remove_file(router.file("other.yaml")).unwrap();
    router.wait_until("one endpoint", |all| names(all) == ["my-endpoint"]).await;
    let gone = score_named(&router, "other").await;
    assert_eq!((gone.status.as_u16(), gone.code().as_str()), (404, "endpoint_not_found"));
    assert_eq!(router.score("{}").await.status, 200);
    std::fs::remove_file(router.file("0.yaml")).unwrap();
    router.wait_until("no endpoint", |all| names(all).is_empty()).await;
    assert_eq!(router.score("{}").await.status, 404, "the last one too");
    assert_eq!(readiness_problems(&router).await, Vec::<String>::new());
    shut_down(router).await;
}

#[tokio::test]
async fn a_file_renamed_over_the_old_one_takes_effect() {
    let (first, second) = (Model::named("first").await, Model::named("second").await);
    let router = Router::start(&[&endpoint(&[first.address], &cap(10))]);
    for model in [&second, &first, &second] {
        replace(&router.file("0.yaml"), &endpoint(&[model.address], &cap(10)));
        wait_until_replicas(&router, &[model.address]).await;
        let text = router.score("{}").await.text();
        assert_eq!(text, if model.address == first.address { "first" } else { "second" });
    }
    shut_down(router).await;
}

/// Publishes `files` in `folder` as the kubelet does: a new folder, then `..data` swapped by a rename.
fn publish(folder: &Path, version: u32, files: &[(&str, &str)]) {
    let data = format!("..2026_11_21_00_00_0{version}.123456789");
    std::fs::create_dir(folder.join(&data)).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(&data).join(name), text).unwrap();
    }
    let before = std::fs::read_link(folder.join("..data")).ok();
    std::os::unix::fs::symlink(&data, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for (name, _) in files {
        let link = folder.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("..") && !files.iter().any(|(file, _)| *file == name) {
            std::fs::remove_file(&path).unwrap();
        }
    }
    if let Some(before) = before {
        std::fs::remove_dir_all(folder.join(before)).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_that_is_updated_takes_effect() {
    let (first, second) = (Model::named("first").await, Model::named("second").await);
    let of = |model: &Model| endpoint(&[model.address], &cap(10));
    let folder = tempfile::tempdir().unwrap();
    publish(folder.path(), 0, &[("my-endpoint.yaml", &of(&first))]);
    let router = Router::start_in(folder, Box::new(std::io::stderr()), |_| ());
    assert_eq!(router.score("{}").await.text(), "first", "each file is read once, through its link");
    assert_eq!(names(&router.endpoints().await), ["my-endpoint"]);
    for (version, model) in [(1, &second), (2, &first), (3, &second)] {
        publish(router.folder.path(), version, &[("my-endpoint.yaml", &of(model))]);
        wait_until_replicas(&router, &[model.address]).await;
        assert_eq!(readiness_problems(&router).await, Vec::<String>::new());
    }
    assert_eq!(router.score("{}").await.text(), "second");
    let other = renamed(&of(&first), "other");
    publish(router.folder.path(), 4, &[("my-endpoint.yaml", &of(&second)), ("other.yaml", &other)]);
    router.wait_until("a file more", |all| names(all) == ["my-endpoint", "other"]).await;
    publish(router.folder.path(), 5, &[("other.yaml", &other)]);
    router.wait_until("a file less", |all| names(all) == ["other"]).await;
    shut_down(router).await;
}

#[tokio::test]
async fn requests_in_flight_finish_untouched_when_their_deployment_changes_or_their_endpoint_goes() {
    for change in ["other replicas", "another deployment", "deleted"] {
        let (model, mut arrivals) = Model::manual().await;
        let other = Model::named("other").await;
        let router = Router::start(&[&endpoint(&[model.address], &cap(10))]);
        let plain = spawn_scoring(&router, "plain");
        let asked = next_arrival(&mut arrivals).await;
        let streamed = tokio::spawn(send(router.scoring, score("streamed").map(BodyExt::boxed)));
        let (writer, response) = streaming();
        next_arrival(&mut arrivals).await.respond(response);
        writer.send(Bytes::from_static(b"before ")).unwrap();
        let mut body = join_task(streamed).await.unwrap().into_body();
        let frame = with_timeout("a frame", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "before ");
        if change == "deleted" {
            std::fs::remove_file(router.file("0.yaml")).unwrap();
            router.wait_until("gone", |all| names(all).is_empty()).await;
            assert_eq!(router.score("{}").await.status, 404);
        } else {
            let mut text = endpoint(&[other.address], &cap(10));
            if change == "another deployment" {
                text = text.replace("blue", "green");
            }
            replace(&router.file("0.yaml"), &text);
            wait_until_replicas(&router, &[other.address]).await;
            assert_eq!(router.score("{}").await.text(), "other");
        }
        writer.send(Bytes::from_static(b"after")).unwrap();
        drop(writer);
        let rest = with_timeout("the rest of the body", body.collect()).await.unwrap().to_bytes();
        assert_eq!(rest, "after", "{change}");
        asked.answer("answered");
        let answer = join_task(plain).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "answered"), "{change}");
        wait_until_idle(&router).await;
        shut_down(router).await;
    }
}

#[tokio::test]
async fn queued_requests_survive_a_reload() {
    let (model, mut arrivals) = Model::manual().await;
    let router = Router::start(&[&endpoint(&[model.address], &cap(1))]);
    let mut clients = vec![spawn_scoring(&router, "first")];
    let asked = next_arrival(&mut arrivals).await;
    clients.push(spawn_scoring(&router, "second"));
    wait_until_busy_and_queued(&router, 1, 1).await;
    // Something that has nothing to do with replicas.
    let text = endpoint(&[model.address], &cap(1)).replace("maxQueueWaitMs: 60000", "maxQueueWaitMs: 59000");
    replace(&router.file("0.yaml"), &text);
    router.wait_until("the change", |all| first_deployment(all)["requestSettings"]["maxQueueWaitMs"] == 59000).await;
    wait_until_busy_and_queued(&router, 1, 1).await;
    asked.answer("ok");
    next_arrival(&mut arrivals).await.answer("ok");
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

async fn wait_until_cap(router: &Router, cap: usize) {
    router
        .wait_until("the new cap", |all| {
            first_deployment(all)["requestSettings"]["maxConcurrentRequestsPerInstance"] == cap
        })
        .await;
}

#[tokio::test]
async fn a_changed_cap_holds_for_running_replicas_at_once() {
    let (model, mut arrivals) = Model::manual().await;
    let router = Router::start(&[&endpoint(&[model.address], &cap(1))]);
    let mut clients: Vec<_> = vec![spawn_scoring(&router, "{}")];
    let mut at_model = vec![next_arrival(&mut arrivals).await];
    for queued in 1..=5 {
        clients.push(spawn_scoring(&router, "{}"));
        wait_until_busy_and_queued(&router, 1, queued).await;
    }
    replace(&router.file("0.yaml"), &endpoint(&[model.address], &cap(3)));
    // Those who wait need not wait any more: no answer has to come first.
    wait_until_busy_and_queued(&router, 3, 3).await;
    for _ in 0..2 {
        at_model.push(next_arrival(&mut arrivals).await);
    }
    replace(&router.file("0.yaml"), &endpoint(&[model.address], &cap(1)));
    wait_until_cap(&router, 1).await;
    for left in [2, 1] {
        at_model.pop().unwrap().answer("ok");
        // As many in flight as before the cap was lowered, less those that have ended; nobody takes their place.
        router
            .wait_until("one less at the replica", |all| {
                first_deployment(all)["replicas"][0]["inFlight"] == left && first_deployment(all)["queue"] == 3
            })
            .await;
        assert!(arrivals.try_recv().is_err(), "over the new cap");
    }
    for queued in [2, 1, 0] {
        at_model.pop().unwrap().answer("ok");
        at_model.push(next_arrival(&mut arrivals).await);
        wait_until_busy_and_queued(&router, 1, queued).await;
    }
    at_model.pop().unwrap().answer("ok");
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn the_cap_is_exact_over_an_endpoint_that_is_deleted_and_created_again() {
    let (model, mut arrivals) = Model::manual().await;
    let text = endpoint(&[model.address], &cap(1));
    let router = Router::start(&[&text]);
    let first = spawn_scoring(&router, "first");
    let asked = next_arrival(&mut arrivals).await;
    std::fs::remove_file(router.file("0.yaml")).unwrap();
    router.wait_until("gone", |all| names(all).is_empty()).await;
    std::fs::write(router.file("0.yaml"), &text).unwrap();
    router.wait_until("back", |all| names(all) == ["my-endpoint"]).await;
    let second = spawn_scoring(&router, "second");
    with_timeout("the second request waits", async {
        while first_deployment(&router.endpoints().await)["queue"] != 1 {
            assert!(arrivals.try_recv().is_err(), "two requests at a replica with a cap of one");
            tokio::task::yield_now().await;
        }
    })
    .await;
    asked.answer("ok");
    assert_eq!(join_task(first).await.status, 200);
    next_arrival(&mut arrivals).await.answer("ok");
    assert_eq!(join_task(second).await.status, 200);
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn the_cap_is_exact_over_a_replica_that_is_removed_and_added_again() {
    let (model, mut arrivals) = Model::manual().await;
    let other = Model::named("other").await;
    let router = Router::start(&[&endpoint(&[model.address], &cap(1))]);
    let first = spawn_scoring(&router, "first");
    let asked = next_arrival(&mut arrivals).await;
    replace(&router.file("0.yaml"), &endpoint(&[other.address], &cap(1)));
    wait_until_replicas(&router, &[other.address]).await;
    assert_eq!(router.score("{}").await.text(), "other");
    replace(&router.file("0.yaml"), &endpoint(&[model.address], &cap(1)));
    wait_until_replicas(&router, &[model.address]).await;
    let second = spawn_scoring(&router, "second");
    with_timeout("the second request waits", async {
        while first_deployment(&router.endpoints().await)["queue"] != 1 {
            assert!(arrivals.try_recv().is_err(), "two requests at a replica with a cap of one");
            tokio::task::yield_now().await;
        }
    })
    .await;
    asked.answer("ok");
    assert_eq!(join_task(first).await.status, 200);
    next_arrival(&mut arrivals).await.answer("ok");
    assert_eq!(join_task(second).await.status, 200);
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_bad_change_keeps_the_last_good_version_and_is_visible_until_it_is_repaired() {
    let model = Model::named("ok").await;
    let good = endpoint(&[model.address], &cap(10));
    let router = Router::start(&[&good]);
    assert_eq!(readiness_problems(&router).await, Vec::<String>::new());
    let bad = [
        ("not YAML", "spec: [}".to_owned()),
        ("cut off", good[..good.len() / 2].to_owned()),
        ("traffic that does not sum up", good.replace("blue: 100", "blue: 99")),
        ("an unknown field", good.replace("traffic:", "trafic:")),
        ("a number out of range", good.replace("requestTimeoutMs: 60000", "requestTimeoutMs: 300001")),
        ("not text", String::from("\u{0}\u{1}")),
    ];
    for (what, text) in bad {
        let before = failed_reloads(&router).await;
        replace(&router.file("0.yaml"), &text);
        wait_until_problems(&router, what, |problems| !problems.is_empty()).await;
        let found = readiness_problems(&router).await;
        assert!(found.iter().all(|problem| problem.contains("0.yaml")), "{what}: which file? {found:?}");
        assert!(!found.concat().contains(KEY), "{what}: {found:?}");
        assert!(failed_reloads(&router).await > before, "{what}");
        for _ in 0..5 {
            assert_eq!(router.score("{}").await.text(), "ok", "{what}");
        }
        replace(&router.file("0.yaml"), &good);
        wait_until_problems(&router, "repaired", <[String]>::is_empty).await;
        assert_eq!(router.score("{}").await.text(), "ok", "{what}");
    }
    shut_down(router).await;
}

#[tokio::test]
async fn a_bad_document_does_not_stop_the_others_in_its_file() {
    let (first, second) = (Model::named("first").await, Model::named("second").await);
    let document = |name: &str, model: &Model| renamed(&endpoint(&[model.address], &cap(10)), name);
    let file = |documents: [String; 3]| documents.join("---\n");
    let before = file([document("one", &first), document("two", &first), document("three", &first)]);
    let router = Router::start(&[&before]);
    let broken = document("two", &second).replace("blue: 100", "blue: 50");
    replace(&router.file("0.yaml"), &file([document("one", &second), broken, document("three", &second)]));
    wait_until_problems(&router, "the broken document", |problems| !problems.is_empty()).await;
    with_timeout("the good documents", async {
        for name in ["one", "three"] {
            while score_named(&router, name).await.text() != "second" {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    assert_eq!(score_named(&router, "two").await.text(), "first", "the last good version");
    shut_down(router).await;
}

#[tokio::test]
async fn a_bad_file_does_not_stop_the_others() {
    let (first, second) = (Model::named("first").await, Model::named("second").await);
    let document = |name: &str, model: &Model| renamed(&endpoint(&[model.address], &cap(10)), name);
    let router = Router::start(&[&document("one", &first), &document("two", &first)]);
    replace(&router.file("0.yaml"), "{");
    wait_until_problems(&router, "the broken file", |problems| !problems.is_empty()).await;
    replace(&router.file("1.yaml"), &document("two", &second));
    with_timeout("the good file", async {
        while score_named(&router, "two").await.text() != "second" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(score_named(&router, "one").await.text(), "first");
    assert!(!readiness_problems(&router).await.is_empty(), "still broken");
    std::fs::remove_file(router.file("0.yaml")).unwrap();
    wait_until_problems(&router, "the broken file is gone", <[String]>::is_empty).await;
    assert_eq!(score_named(&router, "one").await.status, 404);
    shut_down(router).await;
}

#[tokio::test]
async fn an_emptied_file_keeps_the_last_good_version() {
    for emptied in ["", "\n", "# nothing\n", "---\n"] {
        let model = Model::named("ok").await;
        let text = endpoint(&[model.address], &cap(10));
        let router = Router::start(&[&text]);
        std::fs::write(router.file("0.yaml"), emptied).unwrap();
        std::fs::write(router.file("1.yaml"), renamed(&text, "later")).unwrap();
        router.wait_until("a later change", |all| names(all).contains(&"later")).await;
        assert_eq!(score_named(&router, "later").await.status, 200);
        // And a change after that, so that the emptied file was surely looked at.
        std::fs::remove_file(router.file("1.yaml")).unwrap();
        router.wait_until("a later change", |all| !names(all).contains(&"later")).await;
        assert_eq!(router.score("{}").await.status, 200, "{emptied:?}");
        assert!(
            !readiness_problems(&router).await.is_empty(),
            "{emptied:?}: an emptied file is an error that can be seen"
        );
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_rotated_key_file_takes_effect_and_the_other_key_works_all_the_time() {
    let model = Model::named("ok").await;
    // Elsewhere, as a mounted secret is.
    let secrets = tempfile::tempdir().unwrap();
    let (primary, secondary) = (secrets.path().join("primaryKey"), secrets.path().join("secondaryKey"));
    std::fs::write(&primary, "the-first-primary-key-000").unwrap();
    std::fs::write(&secondary, "the-secondary-key-00000000\n").unwrap();
    let keys = format!(
        "keys: {{primary: {{file: \"{}\"}}, secondary: {{file: \"{}\"}}}}",
        primary.display(),
        secondary.display()
    );
    let text = endpoint(&[model.address], &cap(10)).replace(&format!("keys: {{primary: {{value: {KEY}}}}}"), &keys);
    assert!(text.contains("secondary"));
    let router = Router::start(&[&text]);
    let status = async |key: &str| score_with_key(&router, "my-endpoint", key).await.status.as_u16();
    let mut before = "the-first-primary-key-000";
    for (renamed_over, after) in [(true, "the-next-primary-key-0001"), (false, "the-third-primary-key-002")] {
        assert_eq!(status(before).await, 200);
        assert_eq!(status(after).await, 401);
        assert_eq!(status("the-secondary-key-00000000").await, 200);
        if renamed_over {
            replace(&primary, after);
        } else {
            std::fs::write(&primary, after).unwrap();
        }
        with_timeout("the new key", async {
            while status(after).await != 200 {
                assert_eq!(status("the-secondary-key-00000000").await, 200);
            }
        })
        .await;
        assert_eq!(status(before).await, 401, "the old key is out");
        assert_eq!(status("the-secondary-key-00000000").await, 200);
        before = after;
    }
    shut_down(router).await;
}

#[tokio::test]
async fn a_key_changed_in_the_document_takes_effect() {
    let model = Model::named("ok").await;
    let text = endpoint(&[model.address], &cap(10));
    let router = Router::start(&[&text]);
    replace(&router.file("0.yaml"), &text.replace(KEY, "another-key-0123456789"));
    with_timeout("the new key", async {
        while score_with_key(&router, "my-endpoint", "another-key-0123456789").await.status != 200 {}
    })
    .await;
    assert_eq!(router.score("{}").await.status, 401);
    shut_down(router).await;
}

#[tokio::test]
async fn reloads_every_few_milliseconds_under_load_fail_no_request() {
    let models = [Model::named("ok").await, Model::named("ok").await, Model::named("ok").await];
    let [a, b, c] = [models[0].address, models[1].address, models[2].address];
    let router = Router::start_with(&[&endpoint(&[a, b], &cap(2))], |settings| {
        settings.workers = inference_router::config::WorkerCount::Count(2.try_into().unwrap());
    });
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (address, stop) = (router.scoring, stop.clone());
        clients.spawn(async move {
            let mut answered = 0_u32;
            while !stop.load(SeqCst) {
                let answer = call(address, score("{}")).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                answered += 1;
            }
            answered
        });
    }
    // The pace of the changes is what is tested here.
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    let versions = [
        endpoint(&[a, b], &cap(1)),
        endpoint(&[b, c], &cap(2)),
        endpoint(&[c], &cap(3)),
        "spec: {".to_owned(),
        endpoint(&[a, b, c], &cap(1)),
    ];
    for round in 0..250 {
        pace.tick().await;
        let text = &versions[round % versions.len()];
        if round % 3 == 0 {
            // Not at once: for a moment the file is empty or cut off.
            std::fs::write(router.file("0.yaml"), text).unwrap();
        } else {
            replace(&router.file("0.yaml"), text);
        }
    }
    replace(&router.file("0.yaml"), &endpoint(&[b], &cap(2)));
    wait_until_replicas(&router, &[b]).await;
    wait_until_problems(&router, "no problem is left", <[String]>::is_empty).await;
    stop.store(true, SeqCst);
    let mut answered = 0;
    while let Some(client) = with_timeout("all clients", clients.join_next()).await {
        answered += client.unwrap();
    }
    assert!(answered > 8, "{answered}");
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn of_two_endpoints_with_one_name_the_first_keeps_serving() {
    let (first, second) = (Model::named("first").await, Model::named("second").await);
    let router = Router::start(&[&endpoint(&[first.address], &cap(10))]);
    // Sorted before the one that is there, and written in other letters.
    let intruder = renamed(&endpoint(&[second.address], &cap(10)), "My-Endpoint");
    for file in ["00-before.yaml", "9-after.yaml"] {
        std::fs::write(router.file(file), &intruder).unwrap();
        wait_until_problems(&router, "the conflict", |problems| !problems.is_empty()).await;
        let found = readiness_problems(&router).await;
        assert!(found.iter().any(|problem| problem.contains(file)), "{found:?}");
        assert_eq!(router.endpoints().await["endpoints"].as_array().unwrap().len(), 1);
        for _ in 0..5 {
            assert_eq!(router.score("{}").await.text(), "first", "with {file}");
        }
        std::fs::remove_file(router.file(file)).unwrap();
        wait_until_problems(&router, "no conflict any more", <[String]>::is_empty).await;
    }
    std::fs::write(router.file("9-after.yaml"), &intruder).unwrap();
    wait_until_problems(&router, "the conflict", |problems| !problems.is_empty()).await;
    std::fs::remove_file(router.file("0.yaml")).unwrap();
    with_timeout("the other one has the name now", async {
        loop {
            let answer = router.score("{}").await;
            if answer.status == 200 && answer.text() == "second" {
                break;
            }
        }
    })
    .await;
    wait_until_problems(&router, "no conflict any more", <[String]>::is_empty).await;
    shut_down(router).await;
}

#[tokio::test]
async fn reloads_that_took_effect_are_counted() {
    let model = Model::named("ok").await;
    let text = endpoint(&[model.address], &cap(1));
    let router = Router::start(&[&text]);
    let all = async || metric_sum(&router, "inference_router_config_reloads_total", "").await;
    let before = (all().await, failed_reloads(&router).await);
    replace(&router.file("0.yaml"), &endpoint(&[model.address], &cap(2)));
    wait_until_cap(&router, 2).await;
    with_timeout("the count", async { while all().await <= before.0 {} }).await;
    assert_eq!(failed_reloads(&router).await, before.1);
    shut_down(router).await;
}
