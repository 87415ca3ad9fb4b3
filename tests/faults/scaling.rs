//! Local replicas that follow the load. The models themselves check that none exceeds its cap.

use std::time::{Duration, Instant};

use inference_router::policy::health::EJECTION_FAILURES;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{CheckingClient, OUTCOME_CUT_SHORT, head};
use crate::load::Load;
use crate::processes::{learn_requests, model_pids};
use crate::program::{Program, endpoint};
use crate::{POLL_INTERVAL, with_timeout};

/// What a replica takes at a time.
const SLOTS_PER_REPLICA: u64 = 2;
/// Fewer replicas are wanted only after a minute.
const STABILIZATION_WINDOW: Duration = Duration::from_secs(60);

/// A deployment of the sample model, decided on ten times a second.
fn document(scale: &str) -> String {
    endpoint(&[format!(
        "{{name: blue, process: {{command: [inference-router, model-server, --port, \"{{port}}\", --concurrency, \
         \"{SLOTS_PER_REPLICA}\", --delay-ms, \"40\"]}}, requestSettings: {{maxConcurrentRequestsPerInstance: {SLOTS_PER_REPLICA}, \
         maxQueueWaitMs: 20000}}, scaleSettings: {{type: target_utilization, pollingInterval: 100ms, {scale}}}}}"
    )])
}

/// Waits until there are so many replicas, all of them ready.
async fn wait_until_ready(router: &mut Program, count: u64) {
    router
        .wait_until(&format!("{count} ready replicas"), |all| {
            let [ready, desired] = ["readyReplicas", "desiredReplicas"].map(|name| all[0][name].as_u64());
            ready == Some(count) && desired == Some(count) && all[0]["pendingReplicas"] == 0
        })
        .await;
}

/// Waits until so many processes run: those that are stopped take their time.
async fn wait_until_processes(router: &Program, count: usize) {
    with_timeout(&format!("{count} processes"), async {
        while model_pids(router).len() != count {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
}

/// How the number of replicas has changed, each with its reason.
async fn scale_changes(router: &mut Program) -> Vec<(u64, u64, String)> {
    let all = router.deployments().await;
    let changes = all[0]["autoscaling"]["changes"].as_array().unwrap().clone();
    let one = |change: &Value| {
        let number = |name: &str| change[name].as_u64().unwrap();
        (number("from"), number("to"), change["reason"].as_str().unwrap().to_owned())
    };
    changes.iter().map(one).collect()
}

/// The models say when they get more than they can take at a time.
fn assert_no_model_overloaded(router: &Program) {
    let log = router.log();
    let line = log.lines().find(|line| line.contains("score queued"));
    assert_eq!(line, None, "a replica got more than it may");
}

#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn replicas_follow_the_load_up_and_down_and_no_request_fails() {
    let mut router = Program::start(document("minInstances: 1, maxInstances: 4"), "").await;
    wait_until_ready(&mut router, 1).await;
    let questions = learn_requests(&router).await;
    let light = Load::start(router.scoring, 1, questions);
    let heavy = Load::start(router.scoring, 16, self::learn_requests(&router).await);
    wait_until_ready(&mut router, 4).await;
    heavy.wait_for_answers(300).await;
    heavy.stop().await.assert_only(&[]);
    let quiet = Instant::now();
    // Somebody goes on asking while replicas are drained and stopped.
    while scale_changes(&mut router).await.iter().all(|(from, to, _)| from < to) {
        light.wait_for_answers(5).await;
        assert!(quiet.elapsed() < 2 * STABILIZATION_WINDOW, "no replica goes");
    }
    assert!(quiet.elapsed() > STABILIZATION_WINDOW - Duration::from_secs(5), "{:?}", quiet.elapsed());
    wait_until_ready(&mut router, 1).await;
    light.wait_for_answers(20).await;
    light.stop().await.assert_only(&[]);
    let changes = scale_changes(&mut router).await;
    let (up, down): (Vec<_>, Vec<_>) = changes.iter().partition(|(from, to, _)| from < to);
    assert!(up.iter().all(|(.., why)| why == "more_demand"), "{changes:?}");
    assert!(down.iter().all(|(.., why)| why == "less_demand"), "{changes:?}");
    let log = router.log();
    assert!(log.contains("scaled deployment") && log.contains("less_demand"), "{log}");
    let ups = router.metric("autoscaler_decisions_total", &["\"up\"", "\"more_demand\""]).await;
    assert_eq!(ups as usize, up.len());
    assert_eq!(router.metric("autoscaler_desired_replicas", &["blue"]).await, 1.0);
    assert_no_model_overloaded(&router);
    wait_until_processes(&router, 1).await;
}

#[tokio::test]
async fn replicas_are_killed_and_settings_changed_while_it_scales() {
    let mut router = Program::start(document("minInstances: 1, maxInstances: 4"), "").await;
    wait_until_ready(&mut router, 1).await;
    let load = Load::start(router.scoring, 16, learn_requests(&router).await);
    router.wait_until("another one is wanted", |all| all[0]["desiredReplicas"].as_u64() > Some(1)).await;
    // One that serves, or one that is starting: whichever is first.
    kill_process(Pid::from_raw(model_pids(&router)[0] as i32).unwrap(), Signal::KILL).unwrap();
    wait_until_ready(&mut router, 4).await;
    load.wait_for_answers(100).await;
    let tally = load.stop().await;
    let ways = ["502 replica_closed", "502 replica_unreachable", OUTCOME_CUT_SHORT];
    tally.assert_only(&ways);
    // Those it was working on, and those it still got until it was set aside; there may be no other yet to try them on.
    let lost: u64 = ways.iter().map(|way| tally.outcome_count(way)).sum();
    assert!(lost < u64::from(EJECTION_FAILURES) + SLOTS_PER_REPLICA, "{tally:?}");
    // Fewer are allowed at once, more later: nothing fails for that.
    let load = Load::start(router.scoring, 16, learn_requests(&router).await);
    std::fs::write(router.document(), document("minInstances: 1, maxInstances: 2")).unwrap();
    wait_until_ready(&mut router, 2).await;
    load.wait_for_answers(100).await;
    std::fs::write(router.document(), document("minInstances: 3, maxInstances: 3")).unwrap();
    wait_until_ready(&mut router, 3).await;
    load.wait_for_answers(100).await;
    load.stop().await.assert_only(&[]);
    let why: Vec<String> = scale_changes(&mut router).await.into_iter().map(|(.., why)| why).collect();
    assert!(why.contains(&"maximum".to_owned()), "{why:?}");
    assert_no_model_overloaded(&router);
}

#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn the_first_request_starts_a_replica_and_the_last_replica_goes_when_nobody_asks() {
    let mut router = Program::start(document("minInstances: 0, maxInstances: 2, idleBeforeZero: 1s"), "").await;
    wait_until_ready(&mut router, 0).await;
    for _ in 0..2 {
        // Twelve at once, as far as the clients are: all wait for the same start.
        let body = b"{\"data\": [[1,2,3,4,5,6,7,8,9,10]]}";
        let request = [head("score", "", body.len()).as_bytes(), body].concat();
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (mut caller, request) = (CheckingClient::new(router.scoring), request.clone());
            asked.spawn(async move {
                caller.connect().await.unwrap();
                with_timeout("an answer", caller.exchange(&request)).await.unwrap().status()
            });
        }
        assert_eq!(asked.join_all().await, [200; 12]);
        wait_until_ready(&mut router, 0).await;
        wait_until_processes(&router, 0).await;
    }
    let changes = scale_changes(&mut router).await;
    assert_eq!(changes.first(), Some(&(0, 1, "cold_start".to_owned())), "{changes:?}");
    assert_eq!(changes.last().map(|(_, to, why)| (*to, why.as_str())), Some((0, "idle")), "{changes:?}");
    assert_no_model_overloaded(&router);
}

#[tokio::test]
async fn a_replica_that_does_not_start_is_waited_for_so_long_and_no_longer() {
    let never = "minInstances: 0, maxInstances: 1, coldStartTimeoutMs: 1500";
    let document = document(never).replace("--delay-ms, \"40\"]", "--delay-ms, \"40\"], readinessPath: /nothing");
    let router = Program::start(document, "").await;
    let body = b"{\"data\": [[1,2,3,4,5,6,7,8,9,10]]}";
    let request = [head("score", "", body.len()).as_bytes(), body].concat();
    let mut caller = CheckingClient::new(router.scoring);
    caller.connect().await.unwrap();
    let asked = Instant::now();
    let answer = with_timeout("an answer", caller.exchange(&request)).await.unwrap();
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.body).contains("no_ready_replica"), "{answer:?}");
    assert!(asked.elapsed() >= Duration::from_millis(1500), "{:?}", asked.elapsed());
    let retry_after: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=3).contains(&retry_after), "as long again as it has taken: {retry_after}");
}

#[tokio::test]
async fn who_waits_for_a_deployment_that_is_removed_is_told_at_once() {
    let never = document("minInstances: 0, maxInstances: 1, coldStartTimeoutMs: 600000")
        .replace("--delay-ms, \"40\"]", "--delay-ms, \"40\"], readinessPath: /nothing");
    let mut router = Program::start(never, "").await;
    let body = b"{\"data\": [[1,2,3,4,5,6,7,8,9,10]]}";
    let request = [head("score", "", body.len()).as_bytes(), body].concat();
    let mut caller = CheckingClient::new(router.scoring);
    caller.connect().await.unwrap();
    let asked = tokio::spawn(async move { with_timeout("an answer", caller.exchange(&request)).await.unwrap() });
    router.wait_until("it waits", |all| all[0]["queue"] == 1 && all[0]["pendingReplicas"] == 1).await;
    std::fs::write(router.document(), document("minInstances: 1, maxInstances: 1").replace("blue", "green")).unwrap();
    let answer = asked.await.unwrap();
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.body).contains("no_ready_replica"), "{answer:?}");
    wait_until_ready(&mut router, 1).await;
    wait_until_processes(&router, 1).await;
}

#[tokio::test]
async fn a_process_that_cannot_start_is_pending_and_says_why() {
    let missing =
        document("minInstances: 1, maxInstances: 1").replace("[inference-router, model-server", "[no-such-model");
    let mut router = Program::start(missing, "").await;
    router
        .wait_until("it says why", |all| {
            let problem = all[0]["problem"].as_str().unwrap_or_default();
            all[0]["pendingReplicas"] == 1 && problem.contains("blue/0 cannot be started: a program was not found")
        })
        .await;
    std::fs::write(router.document(), document("minInstances: 1, maxInstances: 1")).unwrap();
    wait_until_ready(&mut router, 1).await;
    router.wait_until("nothing is wrong any more", |all| all[0]["problem"].is_null()).await;
}
