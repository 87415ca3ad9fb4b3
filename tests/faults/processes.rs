//! Local replicas that are killed, and a router that is, with them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{CUT_KEPT, CUT_NEW, Caller, Question, REFUSED, SHORT, head};
use crate::load::Load;
use crate::program::{MARGIN, Program, Setup, endpoint};
use crate::vitals::{Vitals, descendants, runs};
use crate::{LOOK, soon};

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

fn all_ready(all: &[Value]) -> bool {
    all[0]["readyReplicas"] == REPLICAS && all[0]["pendingReplicas"] == 0
}

/// The models' processes: below the router and the guards, with nothing below them.
pub fn models(router: &Program) -> Vec<u32> {
    descendants(router.pid()).into_iter().filter(|pid| descendants(*pid).is_empty()).collect()
}

/// Questions whose answers, each its own, were learnt when nothing was wrong.
pub async fn questions(router: &Program) -> impl Fn(u64) -> Question + Send + Sync + use<> {
    let mut caller = Caller::new(router.scoring);
    let mut learnt: Vec<Question> = Vec::new();
    for number in 0..16 {
        let body = format!("{{\"data\": [[{number}, 2, 3, 4, 5, 6, 7, 8, 9, 10]]}}").into_bytes();
        caller.connect().await.unwrap();
        let request = [head("score", "", body.len()).as_bytes(), &body].concat();
        let answer = soon("an answer", caller.exchange(&request)).await.unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(learnt.iter().all(|other| other.expected != answer.body), "{answer:?}");
        learnt.push(Question { path: "score", fields: "", body, expected: answer.body });
    }
    let learnt = Arc::new(learnt);
    move |number| learnt[number as usize % learnt.len()].clone()
}

/// Kills a process, and waits until another has taken its place.
async fn replace(router: &mut Program, model: u32, signal: Signal) {
    kill_process(Pid::from_raw(model as i32).unwrap(), signal).unwrap();
    soon("another model in its place", async {
        loop {
            let below = descendants(router.pid());
            if !below.contains(&model) && below.len() == 2 * REPLICAS && all_ready(&router.deployments().await) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
    assert!(!runs(model));
}

/// What the router is like with models that it has no connection to: new ones.
async fn with_new_models(router: &mut Program) -> Vitals {
    router.until_idle().await;
    for model in models(router) {
        replace(router, model, Signal::KILL).await;
    }
    router.at_rest(&[]).await
}

/// Contract (README, "Local processes"; PRODUCT.md 10): a replica that dies is started again, and only what was on it is
/// lost: 502 `replica_closed`, or an answer cut short.
#[tokio::test]
async fn local_replicas_that_are_killed_under_load_come_back() {
    let mut router = Program::start(document(), "").await;
    router.until("all replicas", all_ready).await;
    let questions = questions(&router).await;
    let load = Load::start(router.scoring, 4, questions);
    load.go_on_for(300).await;
    let mut deaths = 0;
    let before = {
        let tally = load.stop().await;
        tally.only(&[]);
        with_new_models(&mut router).await
    };
    let load = Load::start(router.scoring, 4, self::questions(&router).await);
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let model = models(&router)[0];
        replace(&mut router, model, signal).await;
        deaths += 1;
        load.go_on_for(50).await;
    }
    let tally = load.stop().await;
    tally.only(&["502 replica_closed", SHORT]);
    let lost = tally.times("502 replica_closed") + tally.times(SHORT);
    println!("  {} exact answers, {deaths} deaths cost {lost}", tally.exact);
    assert!(lost <= deaths * SLOTS, "{tally:?}");
    let after = with_new_models(&mut router).await;
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads));
    assert!(after.memory <= before.memory + MARGIN, "{after:?}, before {before:?}");
    let started = descendants(router.pid());
    router.signal(Signal::TERM);
    assert_eq!(router.ended().await.code(), Some(0));
    assert!(!started.into_iter().any(runs), "a process was left");
}

/// Contract (README, "Local processes"): however the router ends, nothing of its replicas stays, and its addresses are
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
    router.until("all replicas", all_ready).await;
    let load = Load::start(scoring, 4, questions(&router).await);
    load.go_on_for(200).await;
    let started = descendants(router.pid());
    assert_eq!(started.len(), 2 * REPLICAS, "a guard and a model for each");
    router.signal(Signal::KILL);
    router.ended().await;
    let killed = Instant::now();
    let mut next = Program::start_at(&setup, scoring, admin).await;
    next.until("all replicas", all_ready).await;
    println!("  ready again after {:?}", killed.elapsed());
    load.go_on_for(200).await;
    // `no_ready_replica`: the listener is there before the models are.
    load.stop().await.only(&[REFUSED, CUT_KEPT, CUT_NEW, SHORT, "503 no_ready_replica"]);
    soon("the end of every process", async {
        while started.iter().any(|pid| runs(*pid)) {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
    let load = Load::start(scoring, 4, questions(&next).await);
    load.go_on_for(200).await;
    load.stop().await.only(&[]);
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await.code(), Some(0));
    drop(turn);
}
