//! Promises of the comparison of a shadow's answers with the live ones: what differs is found, and nothing else.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use serde_json::Value;

use crate::harness::{Model, Router, call, document, full_body, score, with_timeout};
use crate::mirror::connect_keep_alive;

/// Half of what `blue` gets is copied to `shadow`, and answers are compared by these rules.
fn compared_document(live: SocketAddr, shadow: SocketAddr, rules: &str, of_shadow: &str) -> String {
    document(
        &format!("traffic: {{blue: 100}}\n  mirrorTraffic: {{shadow: 50}}\n  mirrorComparison: {rules}"),
        &format!(
            "- {{name: blue, instances: [\"{live}\"], requestSettings: {{maxConcurrentRequestsPerInstance: 64}}}}\n\
             - {{name: shadow, instances: [\"{shadow}\"], requestSettings: \
             {{maxConcurrentRequestsPerInstance: 64{of_shadow}}}}}"
        ),
    )
}

/// A model that answers `{"score": s, "id": "…"}`, where `s` is made by `of` from the number that it gets.
async fn start_scoring_model(of: impl Fn(u64) -> f64 + Send + Sync + 'static) -> Model {
    let of = Arc::new(of);
    let model = Model::http(move |request| {
        let of = of.clone();
        async move {
            let id = request.headers()["x-request-id"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let number = serde_json::from_slice::<Value>(&body).unwrap()["number"].as_u64().unwrap();
            let answer = serde_json::json!({"score": of(number), "id": id, "unlike": rand::random::<u64>()});
            Response::new(full_body(answer.to_string()))
        }
    });
    model.await
}

/// A model that answers all requests alike.
async fn start_constant_model(
    answer: impl Fn() -> Response<BoxBody<Bytes, std::io::Error>> + Send + Sync + Clone + 'static,
) -> Model {
    let model = Model::http(move |request| {
        let answer = answer.clone();
        async move {
            let _ = request.into_body().collect().await;
            answer()
        }
    });
    model.await
}

async fn ask(router: &Router, requests: u64) {
    let mut sender = connect_keep_alive(router.scoring).await;
    for number in 0..requests {
        let mut request = score(format!("{{\"number\": {number}}}"));
        request.headers_mut().insert("host", "router".parse().unwrap());
        let answer = sender.send_request(request).await.unwrap();
        let _ = answer.into_body().collect().await.unwrap();
    }
}

/// What is said of `my-endpoint` once so many pairs have ended.
async fn wait_for_report(router: &Router, least: u64) -> Value {
    let path = "/api/endpoints/my-endpoint/comparison";
    with_timeout("enough pairs", async {
        loop {
            let said = router.admin(path).await.json();
            if said["report"]["pairs"].as_u64().unwrap() >= least {
                return said;
            }
        }
    })
    .await
}

const IGNORING: &str = "{numericTolerance: 1e-6, ignorePaths: [\"$.unlike\"]}";

#[tokio::test]
async fn a_planted_difference_of_one_in_a_hundred_is_found_where_it_is() {
    let live = start_scoring_model(|number| number as f64).await;
    // Other digits, within tolerance, of all; another number, of one in a hundred.
    let sown = Arc::new(AtomicU64::new(0));
    let counted = sown.clone();
    let of_shadow = move |number: u64| {
        if number.is_multiple_of(100) {
            counted.fetch_add(1, Ordering::Relaxed);
            return number as f64 + 0.5;
        }
        number as f64 * (1.0 + 1e-9)
    };
    let shadow = start_scoring_model(of_shadow).await;
    let router = Router::start(&[&compared_document(live.address, shadow.address, IGNORING, "")]);
    // Enough that about twenty of those copied are planted.
    ask(&router, 4_000).await;
    let said = wait_for_report(&router, 1_990).await;
    let report = &said["report"];
    let count = |result: &str| report["results"][result].as_u64().unwrap_or_default();
    let planted = count("different");
    assert_eq!(count("equal") + count("within_tolerance") + planted, report["pairs"].as_u64().unwrap(), "{said}");
    assert_eq!(planted, sown.load(Ordering::Relaxed), "{said}");
    assert!(planted > 0);
    assert_eq!(report["places"], serde_json::json!([{"place": "$.score", "pairs": planted}]));
    let agreement = &report["agreement"];
    let share = |of: &str| agreement[of].as_f64().unwrap();
    assert!(
        share("low") < share("share") && share("share") < share("high") && share("high") - share("low") < 0.03,
        "{agreement}"
    );
    let sample = &report["samples"][0];
    assert_eq!((&sample["liveStatus"], &sample["differences"][0]["place"]), (&200.into(), &"$.score".into()));
    let what = sample["differences"][0]["what"].as_str().unwrap();
    assert!(what.starts_with("numbers, by ") && what.ends_with(" %"), "{sample}");
    assert!(!sample["requestId"].as_str().unwrap().is_empty());
    let of = |side: &str| report[side]["statuses"]["2xx"].as_u64();
    assert_eq!((of("live"), of("shadow")), (report["pairs"].as_u64(), report["pairs"].as_u64()));
    assert!(report["live"]["latencyMs"]["p50"].as_f64().unwrap() > 0.0);
    let series = "inference_router_mirror_comparisons_total{endpoint_name=\"my-endpoint\",result=\"different\"}";
    assert_eq!(router.metric(series).await, Some(planted as f64));
}

#[tokio::test]
async fn nothing_is_found_where_there_is_nothing() {
    let (live, shadow) =
        (start_scoring_model(|number| number as f64).await, start_scoring_model(|number| number as f64).await);
    let router = Router::start(&[&compared_document(live.address, shadow.address, IGNORING, "")]);
    ask(&router, 1_000).await;
    let said = wait_for_report(&router, 490).await;
    let pairs = &said["report"]["pairs"];
    assert_eq!(said["report"]["results"], serde_json::json!({"equal": pairs}), "{said}");
    assert_eq!(said["report"]["places"], serde_json::json!([]));
    assert_eq!((&said["shadow"], &said["live"]), (&"shadow".into(), &serde_json::json!({"blue": 100})));
}

#[tokio::test]
async fn other_statuses_differ_and_a_shadow_that_is_too_slow_has_that_of_a_timeout() {
    let live = start_constant_model(|| Response::new(full_body("[1]"))).await;
    let failing = start_constant_model(|| Response::builder().status(500).body(full_body("[1]")).unwrap()).await;
    let router = Router::start(&[&compared_document(live.address, failing.address, "{}", "")]);
    ask(&router, 20).await;
    let said = wait_for_report(&router, 5).await;
    let pairs = &said["report"]["pairs"];
    assert_eq!(said["report"]["results"], serde_json::json!({"status_differs": pairs}), "{said}");
    assert_eq!(said["report"]["shadow"]["statuses"], serde_json::json!({"5xx": pairs}));
    assert_eq!(said["report"]["shadow"]["errors"]["share"], 1.0);

    let silent = Model::http(|_| std::future::pending()).await;
    let router = Router::start(&[&compared_document(live.address, silent.address, "{}", ", requestTimeoutMs: 100")]);
    ask(&router, 20).await;
    let said = wait_for_report(&router, 5).await;
    let samples = said["report"]["samples"].as_array().unwrap();
    assert!(samples.iter().all(|sample| sample["shadowStatus"] == 504 && sample["liveStatus"] == 200), "{said}");
    assert_eq!(said["report"]["shadow"]["latencyMs"], serde_json::json!({}), "there was no answer to time");
}

#[tokio::test]
async fn what_cannot_be_compared_says_why() {
    let long = || start_constant_model(|| Response::new(full_body("x".repeat(5_000))));
    let packed = |body: &'static str| {
        start_constant_model(move || {
            Response::builder().header("content-encoding", "gzip").body(full_body(body)).unwrap()
        })
    };
    let cases = [
        (long().await, long().await, "{maxBodyBytes: 4999}", "too_large"),
        (long().await, long().await, "{compareBodies: false}", "off"),
        (packed("one").await, packed("other").await, "{}", "encoded"),
    ];
    for (live, shadow, rules, reason) in cases {
        let router = Router::start(&[&compared_document(live.address, shadow.address, rules, "")]);
        ask(&router, 20).await;
        let said = wait_for_report(&router, 5).await;
        let pairs = &said["report"]["pairs"];
        assert_eq!(said["report"]["results"], serde_json::json!({"not_compared": pairs}), "{said}");
        assert_eq!(said["report"]["notCompared"], serde_json::json!({reason: pairs}), "{said}");
        assert_eq!(said["report"]["agreement"], Value::Null);
    }
}

#[tokio::test]
async fn a_client_that_leaves_says_nothing_of_the_answers() {
    let (live, mut asked) = Model::manual().await;
    let shadow = start_constant_model(|| Response::new(full_body("[1]"))).await;
    let router = Router::start(&[&compared_document(live.address, shadow.address, "{}", "")]);
    for _ in 0..20 {
        let call = tokio::spawn(call(router.scoring, score("{}")));
        let at_live = with_timeout("the live request", asked.recv()).await.unwrap();
        call.abort();
        let _ = call.await;
        // The model sees that its client has gone, and ends.
        drop(at_live);
    }
    let said = wait_for_report(&router, 5).await;
    let pairs = &said["report"]["pairs"];
    assert_eq!(said["report"]["notCompared"], serde_json::json!({"client_left": pairs}), "{said}");
}

#[tokio::test]
async fn what_there_is_not_says_what_to_do() {
    let model = start_constant_model(|| Response::new(full_body("[1]"))).await;
    let one = |name: &str, more: &str| {
        let of = document(
            &format!("traffic: {{blue: 100}}{more}"),
            &format!("- {{name: blue, instances: [\"{0}\"]}}\n- {{name: shadow, instances: [\"{0}\"]}}", model.address),
        );
        of.replace("my-endpoint", name)
    };
    let router = Router::start(&[&one("plain", ""), &one("copied", "\n  mirrorTraffic: {shadow: 1}")]);
    for (name, hint) in
        [("none", "/api/endpoints lists"), ("plain", "spec.mirrorTraffic"), ("copied", "spec.mirrorComparison")]
    {
        let answer = router.admin(&format!("/api/endpoints/{name}/comparison")).await;
        assert_eq!(answer.status, 404);
        assert!(answer.json()["detail"].as_str().unwrap().contains(hint), "{}", answer.text());
    }
    let shown = compare(&router, &["--endpoint", "copied"]).await;
    assert!(shown.0 == Some(1) && shown.2.contains("spec.mirrorComparison"), "{shown:?}");
}

#[tokio::test]
async fn the_command_prints_what_a_person_can_decide_on() {
    let (live, shadow) =
        (start_scoring_model(|number| number as f64).await, start_scoring_model(|number| number as f64 + 1.0).await);
    let router = Router::start(&[&compared_document(live.address, shadow.address, IGNORING, "")]);
    let nothing = compare(&router, &["--endpoint", "my-endpoint"]).await;
    assert!(nothing.0 == Some(0) && nothing.1.contains("nothing to compare yet"), "{nothing:?}");
    ask(&router, 100).await;
    wait_for_report(&router, 45).await;
    let (code, shown, _) = compare(&router, &["--endpoint", "my-endpoint"]).await;
    assert_eq!(code, Some(0));
    for part in [
        "live (blue 100 %) against shadow shadow, which gets 50 %",
        "answers agree   0.00 % of ",
        "$.score: numbers, by ",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let (_, json, _) = compare(&router, &["--endpoint", "my-endpoint", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["endpoint"], "my-endpoint");
    let (code, _, said) = run(&["--endpoint", "my-endpoint", "--admin", "http://127.0.0.1:1"]).await;
    assert!(code == Some(1) && said.contains("is a router running there?"), "{said}");
}

/// `compare` against this router: its exit code, output and complaints.
async fn compare(router: &Router, arguments: &[&str]) -> (Option<i32>, String, String) {
    let admin = format!("http://{}", router.admin);
    run(&[arguments, &["--admin", &admin]].concat()).await
}

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
    let ended = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-router"));
        command.arg("compare").args(arguments).stdin(Stdio::null()).output().unwrap()
    });
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}
