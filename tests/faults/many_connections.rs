//! Many connections: a thousand with requests at once, and tens of thousands of idle ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::client::{CheckedRequest, CheckingClient};
use crate::load::Tally;
use crate::message::Message;
use crate::model::Replica;
use crate::process_stats::ProcessStats;
use crate::program::{MEMORY_MARGIN_KIB, Program, deployment, endpoint};
use crate::with_timeout;

const CONCURRENT_CLIENTS: usize = 1000;

/// A thousand clients that connect, wait for each other, and ask `question` at the same moment.
async fn send_concurrently(address: SocketAddr, question: fn(u64) -> CheckedRequest) -> Tally {
    let barrier = Arc::new(Barrier::new(CONCURRENT_CLIENTS));
    let mut clients = JoinSet::new();
    for number in 0..CONCURRENT_CLIENTS as u64 {
        let barrier = barrier.clone();
        clients.spawn(async move {
            let mut caller = CheckingClient::new(address);
            caller.connect().await.unwrap();
            barrier.wait().await;
            let asked = Instant::now();
            (number, caller.send(&question(number)).await, asked.elapsed())
        });
    }
    let mut tally = Tally::default();
    while let Some(client) = clients.join_next().await {
        let (number, outcome, took) = client.unwrap();
        tally.record_outcome(number, outcome, took);
    }
    tally
}

/// Promise: with room in the queue everybody is served; without, it is 503 `too_many_requests` with
/// `retry-after`, and nothing else.
#[tokio::test]
async fn a_thousand_connections_at_once_are_all_answered() {
    let blue = [Replica::echo("blue", Duration::from_millis(2)).await, Replica::echo("blue", Duration::ZERO).await];
    let green = Replica::echo("green", Duration::from_millis(20)).await;
    let roomy =
        "maxConcurrentRequestsPerInstance: 8, maxQueueLength: 2000, maxQueueWaitMs: 60000, requestTimeoutMs: 60000";
    let tight =
        "maxConcurrentRequestsPerInstance: 2, maxQueueLength: 50, maxQueueWaitMs: 60000, requestTimeoutMs: 60000";
    let all = [&blue[0], &blue[1], &green];
    let document = endpoint(&[deployment("blue", &all[..2], roomy), deployment("green", &all[2..], tight)]);
    let mut router = Program::start(document, "").await;
    send_concurrently(router.scoring, |number| CheckedRequest::echo("blue", number)).await.assert_only(&[]);
    let before = router.warm_up(&all).await;
    let load = router.load();
    let roomy = send_concurrently(router.scoring, |number| CheckedRequest::echo("blue", number)).await;
    roomy.assert_only(&[]);
    assert_eq!(roomy.exact, CONCURRENT_CLIENTS as u64);
    let tight = send_concurrently(router.scoring, CheckedRequest::to_green).await;
    tight.assert_only(&["503 too_many_requests"]);
    println!(
        "  with a queue of 50: {} answered, {} turned away",
        tight.exact,
        tight.outcome_count("503 too_many_requests")
    );
    assert!(tight.exact >= 52 && tight.outcome_count("503 too_many_requests") > 0, "{tight:?}");
    router.assert_recovers(load, &[], &before, &all).await;
}

/// Connections that are to be idle at once, if the limit of open files lets them.
const IDLE_CONNECTIONS: u64 = 20_000;
/// Descriptors that this process and the router need for other things.
const RESERVED_DESCRIPTORS: u64 = 400;
/// What an idle connection may cost in the router, in KiB: one that has said nothing, and one that has had an answer,
/// whose buffers for reading and writing are kept.
const MAX_SILENT_CONNECTION_KIB: f64 = 6.0;
const MAX_SERVED_CONNECTION_KIB: f64 = 30.0;
/// What the router may keep after its first crowd, in KiB: tables that grew, and free memory between what is in use.
const IDLE_MEMORY_MARGIN_KIB: u64 = 32 * 1024;

/// Raises the limit of open files of a process as far as it goes, and returns it.
fn raise_descriptor_limit(process: Option<Pid>) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let wanted = IDLE_CONNECTIONS + RESERVED_DESCRIPTORS;
    if before.maximum.is_none_or(|maximum| maximum >= wanted) {
        let enough = Rlimit { current: Some(wanted), maximum: before.maximum };
        prlimit(process, Resource::Nofile, enough).unwrap();
        return wanted;
    }
    match prlimit(process, Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(wanted) }) {
        Ok(_) => wanted,
        Err(error) => {
            let most = before.maximum.unwrap_or(wanted);
            println!(
                "  the limit of open files cannot be raised over {most} ({error}): fewer connections than {IDLE_CONNECTIONS}"
            );
            prlimit(process, Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
            most
        }
    }
}

/// So many idle connections, a part of which has served a request.
async fn open_idle_connections(router: SocketAddr, count: u64, with_request: bool) -> Vec<TcpStream> {
    let at_once = Arc::new(Semaphore::new(64));
    let mut connecting = JoinSet::new();
    for number in 0..count {
        let at_once = at_once.clone();
        connecting.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            // A source address has fewer ports than this takes.
            socket.bind(SocketAddr::from(([127, 0, 0, 2 + (number % 8) as u8], 0))).unwrap();
            let mut stream = with_timeout("a connection", socket.connect(router)).await.unwrap();
            if with_request {
                let question = CheckedRequest::echo("blue", number);
                tokio::io::AsyncWriteExt::write_all(&mut stream, &question.bytes()).await.unwrap();
                let mut reader = tokio::io::BufReader::new(stream);
                let answer = with_timeout("an answer", Message::read(&mut reader)).await.unwrap();
                assert_eq!(answer.body, question.expected);
                stream = reader.into_inner();
            }
            stream
        });
    }
    let mut streams = Vec::new();
    while let Some(stream) = connecting.join_next().await {
        streams.push(stream.unwrap());
    }
    streams
}

/// So many connections that say nothing, and as many that have had an answer, all at once beside clients that go on.
/// Returns what each costs in the router, in KiB.
async fn measure_idle_connections(router: &mut Program, half: u64) -> [f64; 2] {
    let load = router.load();
    load.wait_for_answers(100).await;
    let none = router.process_stats();
    let silent = open_idle_connections(router.scoring, half, false).await;
    let some = wait_until_open(router, half).await;
    let served = open_idle_connections(router.scoring, half, true).await;
    let all = wait_until_open(router, 2 * half).await;
    load.wait_for_answers(200).await;
    drop((silent, served));
    load.wait_for_answers(100).await;
    let tally = load.stop().await;
    tally.assert_only(&[]);
    assert!(tally.slowest < Duration::from_secs(3), "{tally:?}");
    let cost =
        |from: ProcessStats, to: ProcessStats| to.memory_kib.saturating_sub(from.memory_kib) as f64 / half as f64;
    [cost(none, some), cost(some, all)]
}

/// Contract: `limits.maxConnections` is the bound, good clients are served beside them. What they cost is measured; that
/// a second crowd leaves no more behind than the first shows that nothing of them stays.
#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn tens_of_thousands_of_idle_connections_are_cheap_and_leave_nothing_behind() {
    let blue = Replica::echo("blue", Duration::ZERO).await;
    let document =
        endpoint(&[deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 64, maxQueueWaitMs: 20000")]);
    let limits = "limits: {maxConnections: 30000, headerReadTimeout: 10m, keepAliveTimeout: 10m}";
    let mut router = Program::start(document, limits).await;
    let most = raise_descriptor_limit(None).min(raise_descriptor_limit(Pid::from_raw(router.pid() as i32)));
    let half = IDLE_CONNECTIONS.min(most - RESERVED_DESCRIPTORS) / 2;
    let fresh = router.warm_up(&[&blue]).await;
    let [silent, served] = measure_idle_connections(&mut router, half).await;
    println!("  {} idle connections: {silent:.1} KiB each before, {served:.1} KiB after a request", 2 * half);
    router.assert_back_to(&fresh, &[&blue], IDLE_MEMORY_MARGIN_KIB).await;
    let before = router.process_stats();
    measure_idle_connections(&mut router, half).await;
    router.assert_back_to(&before, &[&blue], MEMORY_MARGIN_KIB).await;
    assert!(silent <= MAX_SILENT_CONNECTION_KIB && served <= MAX_SERVED_CONNECTION_KIB, "{silent} and {served} KiB");
}

/// Waits until so many connections are open, and says what the router is like then.
async fn wait_until_open(router: &mut Program, connections: u64) -> ProcessStats {
    with_timeout("open connections", async {
        while router.metric("connections", &["scoring"]).await < connections as f64 {
            tokio::time::sleep(crate::POLL_INTERVAL).await;
        }
    })
    .await;
    router.process_stats()
}
