//! Local replicas that are killed, and a router that is killed with them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{
    CheckedRequest, CheckingClient, OUTCOME_CLOSED_ON_NEW, OUTCOME_CLOSED_ON_REUSE, OUTCOME_CONNECT_REFUSED,
    OUTCOME_CUT_SHORT, head,
};
use crate::load::Load;
use crate::process_stats::{ProcessStats, descendants, is_running};
use crate::program::{MEMORY_MARGIN_KIB, Program, Setup, endpoint};
use crate::{POLL_INTERVAL, with_timeout};

const REPLICAS: usize = 2;
const SLOTS: u64 = 4;

/// Two replicas of the sample model as local processes.
fn document() -> String {
    endpoint(&[format!(
        "{{name: blue, process: {{command: [inference-router, model-server, --port, \"{{port}}\", --concurrency, \
         \"{SLOTS}\", --delay-ms, \"5\"]}}, scaleSettings: {{instanceCount: {REPLICAS}}}, requestSettings: \
         {{maxConcurrentRequestsPerInstance: {SLOTS}, maxQueueWaitMs: 20000}}}}"
    )])
}

fn are_all_ready(all: &[Value]) -> bool {
    all[0]["readyReplicas"] == REPLICAS && all[0]["pendingReplicas"] == 0
}

/// The models' processes: below the router and the guards, with nothing below them.
pub fn model_pids(router: &Program) -> Vec<u32> {
    descendants(router.pid()).into_iter().filter(|pid| descendants(*pid).is_empty()).collect()
}

/// Questions whose answers, each its own, were learnt when nothing was wrong.
pub async fn learn_requests(router: &Program) -> impl Fn(u64) -> CheckedRequest + Send + Sync + use<> {
    let mut caller = CheckingClient::new(router.scoring);
    let mut learnt: Vec<CheckedRequest> = Vec::new();
    for number in 0..16 {
        let body = format!("{{\"data\": [[{number}, 2, 3, 4, 5, 6, 7, 8, 9, 10]]}}").into_bytes();
        caller.connect().await.unwrap();
        let request = [head("score", "", body.len()).as_bytes(), &body].concat();
        let answer = with_timeout("an answer", caller.exchange(&request)).await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(learnt.iter().all(|other| other.expected != answer.body), "{answer:?}");
        learnt.push(CheckedRequest { path: "score", fields: "", body, expected: answer.body });
    }
    let learnt = Arc::new(learnt);
    move |number| learnt[number as usize % learnt.len()].clone()
}

/// Kills a process, and waits until another has taken its place.
async fn kill_and_wait_for_replacement(router: &mut Program, model: u32, signal: Signal) {
    kill_process(Pid::from_raw(model as i32).unwrap(), signal).unwrap();
    with_timeout("another model in its place", async {
        loop {
            let below = descendants(router.pid());
            if !below.contains(&model) && below.len() == 2 * REPLICAS && are_all_ready(&router.deployments().await) {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
    assert!(!is_running(model));
}

/// What the router is like with models that it has no connection to: new ones.
async fn restart_all_models(router: &mut Program) -> ProcessStats {
    router.wait_until_idle().await;
    for model in model_pids(router) {
        kill_and_wait_for_replacement(router, model, Signal::KILL).await;
    }
    router.stats_when_idle(&[]).await
}

/// Promise: a replica that dies is started again, and only what was on it is
/// lost: 502 `replica_closed`, or an answer cut short.
#[tokio::test]
async fn local_replicas_that_are_killed_under_load_come_back() {
    let mut router = Program::start(document(), "").await;
    router.wait_until("all replicas", are_all_ready).await;
    let questions = learn_requests(&router).await;
    let load = Load::start(router.scoring, 4, questions);
    load.wait_for_answers(300).await;
    let mut deaths = 0;
    let before = {
        let tally = load.stop().await;
        tally.assert_only(&[]);
        restart_all_models(&mut router).await
    };
    let load = Load::start(router.scoring, 4, self::learn_requests(&router).await);
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let model = model_pids(&router)[0];
        kill_and_wait_for_replacement(&mut router, model, signal).await;
        deaths += 1;
        load.wait_for_answers(50).await;
    }
    let tally = load.stop().await;
    tally.assert_only(&["502 replica_closed", OUTCOME_CUT_SHORT]);
    let lost = tally.outcome_count("502 replica_closed") + tally.outcome_count(OUTCOME_CUT_SHORT);
    println!("  {} exact answers, {deaths} deaths cost {lost}", tally.exact);
    assert!(lost <= deaths * SLOTS, "{tally:?}");
    let after = restart_all_models(&mut router).await;
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads));
    assert!(after.memory_kib <= before.memory_kib + MEMORY_MARGIN_KIB, "{after:?}, before {before:?}");
    let started = descendants(router.pid());
    router.signal(Signal::TERM);
    assert_eq!(router.wait_for_exit().await.code(), Some(0));
    assert!(!started.into_iter().any(is_running), "a process was left");
}

/// Promise: however the router ends, nothing of its replicas stays, and its addresses are
/// free at once.
#[tokio::test]
async fn a_router_that_is_killed_under_load_leaves_nothing_and_starts_again_at_once() {
    // Not where connections come from, so that none of theirs can have its port.
    let listen = ["127.0.9.1:0", "127.0.9.2:0"].map(|any| TcpListener::bind(any).unwrap().local_addr().unwrap());
    let [scoring, admin]: [SocketAddr; 2] = listen;
    let setup = Setup { document: document(), settings: "shutdown: {unreadyDelay: 0s}" };
    // A turn of one's own is had by the first that takes one.
    let turn = Program::turn().await;
    let mut router = Program::start_at(&setup, scoring, admin).await;
    router.wait_until("all replicas", are_all_ready).await;
    let load = Load::start(scoring, 4, learn_requests(&router).await);
    load.wait_for_answers(200).await;
    let started = descendants(router.pid());
    assert_eq!(started.len(), 2 * REPLICAS, "a guard and a model for each");
    router.signal(Signal::KILL);
    router.wait_for_exit().await;
    let killed = Instant::now();
    let mut next = Program::start_at(&setup, scoring, admin).await;
    next.wait_until("all replicas", are_all_ready).await;
    println!("  ready again after {:?}", killed.elapsed());
    load.wait_for_answers(200).await;
    // `no_ready_replica`: the listener is there before the models are.
    load.stop().await.assert_only(&[
        OUTCOME_CONNECT_REFUSED,
        OUTCOME_CLOSED_ON_REUSE,
        OUTCOME_CLOSED_ON_NEW,
        OUTCOME_CUT_SHORT,
        "503 no_ready_replica",
    ]);
    with_timeout("the end of every process", async {
        while started.iter().any(|pid| is_running(*pid)) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
    let load = Load::start(scoring, 4, learn_requests(&next).await);
    load.wait_for_answers(200).await;
    load.stop().await.assert_only(&[]);
    next.signal(Signal::TERM);
    assert_eq!(next.wait_for_exit().await.code(), Some(0));
    drop(turn);
}
