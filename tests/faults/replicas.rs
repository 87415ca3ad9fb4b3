//! Replicas that die at every moment of a request, and replicas that answer in odd ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::client::{CheckedRequest, CheckingClient, DisconnectKind, OUTCOME_CUT_SHORT, OUTCOME_EXACT};
use crate::load::Tally;
use crate::message::Message;
use crate::model::{Replica, RouterConnection, echo_response};
use crate::program::{Program, deployment, endpoint};

/// How a replica breaks off.
#[derive(Debug, Clone, Copy)]
enum BreakPoint {
    /// After an answer, while its connection is kept.
    AfterAnswer,
    /// With the head of a request read, or all of it.
    DuringRequest,
    /// With a half of the answer written.
    DuringResponse,
}

/// An echoing replica that breaks off every so often, by FIN and RST in turn, and counts how many requests that costs.
async fn start_breaking_replica(how: BreakPoint, broken: Arc<AtomicU64>) -> Replica {
    let turns = Arc::new(AtomicU64::new(0));
    Replica::new(move |peer| serve_or_break(peer, how, turns.clone(), broken.clone())).await
}

async fn serve_or_break(mut peer: RouterConnection, how: BreakPoint, turns: Arc<AtomicU64>, broken: Arc<AtomicU64>) {
    loop {
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let breaks = turn % 5 == 4;
        let vanish = DisconnectKind::ALL[(turn / 5 % 2) as usize];
        let request = match how {
            BreakPoint::DuringRequest if breaks && (turn / 10).is_multiple_of(2) => Message::read_head(&mut peer).await,
            _ => Message::read(&mut peer).await,
        };
        let Ok(request) = request else { return };
        let answer = echo_response("blue", &request);
        match how {
            _ if !breaks => peer.get_mut().write_all(&answer).await.unwrap(),
            BreakPoint::AfterAnswer => {
                let stream = peer.get_mut();
                stream.write_all(&answer).await.unwrap();
                stream.shutdown().await.unwrap();
                // A request that was on its way already when the connection was closed is lost, and no one's fault.
                if peer.read(&mut [0]).await.is_ok_and(|read| read > 0) {
                    broken.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
            BreakPoint::DuringRequest | BreakPoint::DuringResponse => {
                broken.fetch_add(1, Ordering::Relaxed);
                if matches!(how, BreakPoint::DuringResponse) {
                    peer.get_mut().write_all(&answer[..answer.len() - 2]).await.unwrap();
                    // Else the reset would overtake it.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                return vanish.close(peer.into_inner());
            }
        }
    }
}

/// Promise: a request whose replica broke off before its answer is 502 `replica_closed`, never sent
/// again; an answer that broke off is a connection closed short; a kept connection that was closed costs no request. The
/// replica counts what it broke: not one more may be lost.
#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn a_replica_that_breaks_off_costs_only_the_requests_it_had() {
    let good = Replica::echo("blue", Duration::from_millis(2)).await;
    for (how, word) in [
        (BreakPoint::AfterAnswer, "502 replica_closed"),
        (BreakPoint::DuringRequest, "502 replica_closed"),
        (BreakPoint::DuringResponse, OUTCOME_CUT_SHORT),
    ] {
        let broken = Arc::new(AtomicU64::new(0));
        let bad = start_breaking_replica(how, broken.clone()).await;
        let both = [&good, &bad];
        let document =
            endpoint(&[deployment("blue", &both, "maxConcurrentRequestsPerInstance: 4, maxQueueWaitMs: 20000")]);
        let mut router = Program::start(document, "").await;
        let load = router.load();
        load.wait_for_answers(200).await;
        load.stop().await.assert_only(&[word]);
        let before = router.stats_when_idle(&both).await;
        broken.store(0, Ordering::Relaxed);
        let load = router.load();
        load.wait_for_answers(600).await;
        let tally = router.assert_recovers(load, &[word], &before, &both).await;
        let broken = broken.load(Ordering::Relaxed);
        println!("  {how:?}: {broken} broken by the replica, {} times {word}", tally.outcome_count(word));
        assert_eq!(tally.outcome_count(word), broken, "{how:?}");
        assert!(broken > 0 || matches!(how, BreakPoint::AfterAnswer), "{how:?}");
    }
}

/// Promise: a request that found nobody listening goes to another replica; only what was on a replica
/// when it died is lost. The replica comes back into use by itself.
#[tokio::test]
async fn a_replica_that_dies_and_comes_back_costs_only_the_requests_it_had() {
    const SLOTS: u64 = 4;
    let good = Replica::echo("blue", Duration::from_millis(5)).await;
    let mut mortal = Replica::echo("blue", Duration::from_millis(5)).await;
    let settings = format!("maxConcurrentRequestsPerInstance: {SLOTS}, maxQueueWaitMs: 20000");
    let document = endpoint(&[deployment("blue", &[&good, &mortal], &settings)]);
    let mut router = Program::start(document, "").await;
    let before = router.warm_up(&[&good, &mortal]).await;
    // Dead before anybody connects: not one request is lost.
    mortal.stop_listening().await;
    let load = router.load();
    load.wait_for_answers(200).await;
    load.stop().await.assert_only(&[]);
    mortal.listen_again().await;
    let deaths = 5;
    let load = router.load();
    for _ in 0..deaths {
        let is_used = |all: &[serde_json::Value]| {
            all[0]["replicas"].as_array().unwrap().iter().all(|replica| replica["inFlight"] != 0)
        };
        router.wait_until("requests on both replicas", is_used).await;
        mortal.stop_listening().await;
        load.wait_for_answers(100).await;
        mortal.listen_again().await;
    }
    let all_ready = |all: &[serde_json::Value]| all[0]["readyReplicas"] == 2;
    router.wait_until("both replicas ready", all_ready).await;
    let lost = ["502 replica_closed", OUTCOME_CUT_SHORT];
    let tally = router.assert_recovers(load, &lost, &before, &[&good, &mortal]).await;
    let lost: u64 = lost.iter().map(|word| tally.outcome_count(word)).sum();
    println!("  {deaths} deaths cost {lost} requests");
    assert!(lost <= deaths * SLOTS, "{tally:?}");
}

/// What a smuggled answer would say.
const SMUGGLED_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";

/// A replica of this odd kind, which is also its name.
async fn start_odd_replica(kind: &'static str) -> Replica {
    let requests = Arc::new(AtomicU64::new(0));
    Replica::new(move |peer| answer_oddly(peer, kind, requests.clone())).await
}

async fn answer_oddly(mut peer: RouterConnection, kind: &'static str, requests: Arc<AtomicU64>) {
    while let Ok(mut request) = Message::read_head(&mut peer).await {
        let number = requests.fetch_add(1, Ordering::Relaxed);
        if kind == "leaving" && number.is_multiple_of(2) {
            return;
        }
        if kind == "early" {
            // Nothing of the body is read before the answer, which is why it is not what the others say.
            peer.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly").await.unwrap();
        }
        request.body = vec![0; request.length()];
        if peer.read_exact(&mut request.body).await.is_err() {
            // The router has had its answer and wants to send no more.
            return;
        }
        let mut answer = echo_response(kind, &request);
        match kind {
            "never" | "early" => answer.clear(),
            "continue" => answer = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
            // Every second time, as with the one that leaves, else it would be set aside.
            "garbage" if number.is_multiple_of(2) => answer = b"\x16\x03\x01 this is not HTTP\r\n\r\n".to_vec(),
            "longer" => answer.extend(SMUGGLED_RESPONSE),
            "shorter" => answer.truncate(answer.len() - 1),
            _ => {}
        }
        if peer.get_mut().write_all(&answer).await.is_err() || kind == "shorter" {
            return;
        }
    }
}

/// Promise: no answer in `requestTimeoutMs` is 504 `model_timeout`, also after an interim response; what
/// is not HTTP is 502 `replica_closed`; a body that is too short is a connection closed short; of one that is too long,
/// what its length says is passed, and the rest never becomes another request's answer; an answer before the end of the
/// upload is an answer. When the upload is not read to its end, that the connection closes is announced.
#[tokio::test]
async fn odd_answers_have_their_one_outcome_and_disturb_nobody() {
    let blue = Replica::echo("blue", Duration::from_millis(2)).await;
    let kinds = ["never", "continue", "garbage", "longer", "shorter", "early", "leaving"];
    let mut odds = Vec::new();
    for kind in kinds {
        odds.push(start_odd_replica(kind).await);
    }
    let all: Vec<&Replica> = std::iter::once(&blue).chain(&odds).collect();
    let mut deployments = vec![deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 2")];
    deployments.extend(kinds.iter().zip(&odds).map(|(kind, replica)| {
        // Short only for those that never answer: a machine may stop for as long.
        let timeout = if matches!(*kind, "never" | "continue") { 300 } else { 20_000 };
        let settings =
            format!("maxConcurrentRequestsPerInstance: 2, requestTimeoutMs: {timeout}, maxQueueWaitMs: 20000");
        deployment(kind, &[replica], &settings)
    }));
    let mut router = Program::start(endpoint(&deployments), "").await;
    send_to_all_odd_kinds(&router, &kinds).await;
    let before = router.warm_up(&all).await;
    let load = router.load();
    send_to_all_odd_kinds(&router, &kinds).await;
    router.assert_recovers(load, &[], &before, &all).await;
}

/// Asks all deployments of an odd kind at once, and checks what came of it.
async fn send_to_all_odd_kinds(router: &Program, kinds: &[&'static str]) {
    let mut asking = JoinSet::new();
    for kind in kinds.iter().copied() {
        let address = router.scoring;
        asking.spawn(async move { (kind, send_to_odd_kind(address, kind).await) });
    }
    while let Some(asked) = asking.join_next().await {
        let (kind, tally) = asked.unwrap();
        let (exact, word, times) = match kind {
            "never" | "continue" => (0, "504 model_timeout", 5),
            "garbage" | "leaving" => (20, "502 replica_closed", 20),
            "shorter" => (0, OUTCOME_CUT_SHORT, 40),
            _ => (40, OUTCOME_EXACT, 0),
        };
        assert_eq!((tally.exact, tally.outcome_count(word)), (exact, times), "{kind}: {tally:?}");
    }
}

/// Asks a deployment of an odd kind, over and over.
async fn send_to_odd_kind(address: std::net::SocketAddr, kind: &'static str) -> Tally {
    let (mut caller, mut tally) = (CheckingClient::new(address), Tally::default());
    let fields: &'static str = format!("azureml-model-deployment: {kind}\r\n").leak();
    let questions = if matches!(kind, "never" | "continue") { 5 } else { 40 };
    for number in 0..questions {
        let mut question = CheckedRequest { fields, ..CheckedRequest::echo(kind, number) };
        if matches!(kind, "early" | "leaving") {
            question.body = vec![b'x'; 2 << 20];
            question.expected =
                if kind == "early" { b"early".to_vec() } else { [b"leaving ", &*question.body].concat() };
        }
        let asked = Instant::now();
        tally.record_outcome(number, caller.send(&question).await, asked.elapsed());
    }
    tally
}
