//! SIGTERM under load.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::client::{
    CheckedRequest, CheckingClient, OUTCOME_CLOSED_ON_NEW, OUTCOME_CLOSED_ON_REUSE, OUTCOME_CONNECT_REFUSED,
    OUTCOME_EXACT,
};
use crate::message::Message;
use crate::model::{Replica, echo_response};
use crate::program::{Program, deployment, endpoint};

const QUEUED_REQUESTS: u64 = 40;

/// Promise: after SIGTERM everything that was accepted is answered, then the program ends with 0.
/// A client may see its connection refused, or, as with any HTTP server, closed before it has got its request through:
/// then no model has seen the request.
#[tokio::test]
async fn sigterm_under_load_loses_no_request() {
    for unready_delay in ["0s", "300ms"] {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let blue = start_recording_model(seen.clone()).await;
        let settings = "maxConcurrentRequestsPerInstance: 4, maxQueueWaitMs: 20000";
        let shutdown = format!("shutdown: {{unreadyDelay: {unready_delay}, drainTimeout: 20s}}").leak();
        let mut router = Program::start(endpoint(&[deployment("blue", &[&blue], settings)]), shutdown).await;
        let load = router.load();
        load.wait_for_answers(100).await;
        // On their way or in the queue when the signal comes.
        let mut waiting = JoinSet::new();
        for number in 0..QUEUED_REQUESTS {
            let mut caller = CheckingClient::new(router.scoring);
            caller.connect().await.unwrap();
            waiting.spawn(async move { caller.send(&CheckedRequest::echo("blue", 1_000_000 + number)).await });
        }
        router.wait_until("a queue", |all| all[0]["queue"].as_u64().unwrap() > QUEUED_REQUESTS / 2).await;
        let told = Instant::now();
        router.signal(Signal::TERM);
        while let Some(outcome) = waiting.join_next().await {
            assert_eq!(outcome.unwrap(), OUTCOME_EXACT, "it was accepted before the signal");
        }
        assert_eq!(router.wait_for_exit().await.code(), Some(0), "{}", router.log());
        let took = told.elapsed();
        let tally = load.stop().await;
        tally.assert_only(&[OUTCOME_CONNECT_REFUSED, OUTCOME_CLOSED_ON_REUSE, OUTCOME_CLOSED_ON_NEW]);
        assert!(tally.outcome_count(OUTCOME_CONNECT_REFUSED) > 0, "the load went on over the end");
        let seen = seen.lock().unwrap();
        let cut = [tally.numbers(OUTCOME_CLOSED_ON_REUSE), tally.numbers(OUTCOME_CLOSED_ON_NEW)].concat();
        println!("  ended after {took:?}; {} exact, {} cut before they were sent", tally.exact, cut.len());
        let lost: Vec<_> = cut.iter().filter(|number| seen.contains(number)).collect();
        assert!(lost.is_empty(), "a model has seen {lost:?}, and nobody its answer");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

/// An echoing model that notes the number of each request it has read.
async fn start_recording_model(seen: Arc<Mutex<BTreeSet<u64>>>) -> Replica {
    Replica::new(move |mut peer| {
        let seen = seen.clone();
        async move {
            while let Ok(request) = Message::read(&mut peer).await {
                let question: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
                seen.lock().unwrap().insert(question["question"].as_u64().unwrap());
                tokio::time::sleep(Duration::from_millis(20)).await;
                if peer.get_mut().write_all(&echo_response("blue", &request)).await.is_err() {
                    break;
                }
            }
        }
    })
    .await
}

/// Contract: what was accepted is answered, and it is the system that accepts: a router that was stopped (SIGSTOP) finds
/// connections with requests on them, made before the signal to end, of which it had known nothing.
#[tokio::test]
async fn what_the_system_accepted_before_sigterm_is_answered() {
    const NEW_CLIENTS: u64 = 600;
    let blue = Replica::echo("blue", Duration::from_millis(1)).await;
    let settings = "maxConcurrentRequestsPerInstance: 8, maxQueueWaitMs: 20000";
    let document = endpoint(&[deployment("blue", &[&blue], settings)]);
    let mut router = Program::start(document, "shutdown: {unreadyDelay: 0s, drainTimeout: 20s}").await;
    let mut callers: Vec<CheckingClient> = (0..100).map(|_| CheckingClient::new(router.scoring)).collect();
    for (number, caller) in callers.iter_mut().enumerate() {
        assert_eq!(caller.send(&CheckedRequest::echo("blue", number as u64)).await, OUTCOME_EXACT);
    }
    router.signal(Signal::STOP);
    callers.extend((0..NEW_CLIENTS).map(|_| CheckingClient::new(router.scoring)));
    for caller in &mut callers {
        caller.connect().await.unwrap();
    }
    let mut asking = JoinSet::new();
    for (number, mut caller) in callers.into_iter().enumerate() {
        asking.spawn(async move { caller.send(&CheckedRequest::echo("blue", number as u64)).await });
    }
    // Each has sent what it asks when it waits for the answer, and a write to a local socket is with the reader at once.
    tokio::task::yield_now().await;
    router.signal(Signal::TERM);
    router.signal(Signal::CONT);
    while let Some(outcome) = asking.join_next().await {
        assert_eq!(outcome.unwrap(), OUTCOME_EXACT);
    }
    assert_eq!(router.wait_for_exit().await.code(), Some(0));
}
