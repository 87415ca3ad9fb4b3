//! Many connections: a thousand that ask at once, and tens of thousands that say nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::client::{Caller, Question};
use crate::load::Tally;
use crate::message::Message;
use crate::model::Replica;
use crate::program::{MARGIN, Program, deployment, endpoint};
use crate::soon;
use crate::vitals::Vitals;

const CROWD: usize = 1000;

/// A thousand clients that connect, wait for each other, and ask `question` at the same moment.
async fn at_once(address: SocketAddr, question: fn(u64) -> Question) -> Tally {
    let barrier = Arc::new(Barrier::new(CROWD));
    let mut clients = JoinSet::new();
    for number in 0..CROWD as u64 {
        let barrier = barrier.clone();
        clients.spawn(async move {
            let mut caller = Caller::new(address);
            caller.connect().await.unwrap();
            barrier.wait().await;
            let asked = Instant::now();
            (number, caller.ask(&question(number)).await, asked.elapsed())
        });
    }
    let mut tally = Tally::default();
    while let Some(client) = clients.join_next().await {
        let (number, outcome, took) = client.unwrap();
        tally.count(number, outcome, took);
    }
    tally
}

/// Contract (PRODUCT.md 6, 7): with room in the queue everybody is served; without, it is 503 `too_many_requests` with
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
    at_once(router.scoring, |number| Question::echo("blue", number)).await.only(&[]);
    let before = router.warmed_up(&all).await;
    let load = router.load();
    let roomy = at_once(router.scoring, |number| Question::echo("blue", number)).await;
    roomy.only(&[]);
    assert_eq!(roomy.exact, CROWD as u64);
    let tight = at_once(router.scoring, Question::to_green).await;
    tight.only(&["503 too_many_requests"]);
    println!("  with a queue of 50: {} answered, {} turned away", tight.exact, tight.times("503 too_many_requests"));
    assert!(tight.exact >= 52 && tight.times("503 too_many_requests") > 0, "{tight:?}");
    router.recovers(load, &[], &before, &all).await;
}

/// Connections that are to be idle at once, if the limit of open files lets them.
const IDLE: u64 = 20_000;
/// Descriptors that this process and the router need for other things.
const RESERVE: u64 = 400;
/// What an idle connection may cost in the router, in KiB: one that has said nothing, and one that has had an answer,
/// whose buffers for reading and writing are kept.
const COST_OF_SILENT: f64 = 6.0;
const COST_OF_SERVED: f64 = 30.0;
/// What the router may keep after its first crowd, in KiB: tables that grew, and free memory between what is in use.
const AFTER_A_CROWD: u64 = 32 * 1024;

/// Raises the limit of open files of a process as far as it goes, and returns it.
fn raise_limit(process: Option<Pid>) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let wanted = IDLE + RESERVE;
    if before.maximum.is_none_or(|maximum| maximum >= wanted) {
        let enough = Rlimit { current: Some(wanted), maximum: before.maximum };
        prlimit(process, Resource::Nofile, enough).unwrap();
        return wanted;
    }
    match prlimit(process, Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(wanted) }) {
        Ok(_) => wanted,
        Err(error) => {
            let most = before.maximum.unwrap_or(wanted);
            println!("  the limit of open files cannot be raised over {most} ({error}): fewer connections than {IDLE}");
            prlimit(process, Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
            most
        }
    }
}

/// So many idle connections, a part of which has served a request.
async fn idle_connections(router: SocketAddr, count: u64, asked_first: bool) -> Vec<TcpStream> {
    let at_once = Arc::new(Semaphore::new(64));
    let mut connecting = JoinSet::new();
    for number in 0..count {
        let at_once = at_once.clone();
        connecting.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            // A source address has fewer ports than this takes.
            socket.bind(SocketAddr::from(([127, 0, 0, 2 + (number % 8) as u8], 0))).unwrap();
            let mut stream = soon("a connection", socket.connect(router)).await.unwrap();
            if asked_first {
                let question = Question::echo("blue", number);
                tokio::io::AsyncWriteExt::write_all(&mut stream, &question.bytes()).await.unwrap();
                let mut reader = tokio::io::BufReader::new(stream);
                let answer = soon("an answer", Message::read(&mut reader)).await.unwrap();
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
async fn idle_crowd(router: &mut Program, half: u64) -> [f64; 2] {
    let load = router.load();
    load.go_on_for(100).await;
    let none = router.vitals();
    let silent = idle_connections(router.scoring, half, false).await;
    let some = until_open(router, half).await;
    let served = idle_connections(router.scoring, half, true).await;
    let all = until_open(router, 2 * half).await;
    load.go_on_for(200).await;
    drop((silent, served));
    load.go_on_for(100).await;
    let tally = load.stop().await;
    tally.only(&[]);
    assert!(tally.slowest < Duration::from_secs(3), "{tally:?}");
    let cost = |from: Vitals, to: Vitals| to.memory.saturating_sub(from.memory) as f64 / half as f64;
    [cost(none, some), cost(some, all)]
}

/// Contract: `limits.maxConnections` is the bound, good clients are served beside them. What they cost is measured; that
/// a second crowd leaves no more behind than the first shows that nothing of them stays.
#[tokio::test]
async fn tens_of_thousands_of_idle_connections_are_cheap_and_leave_nothing_behind() {
    let blue = Replica::echo("blue", Duration::ZERO).await;
    let document =
        endpoint(&[deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 64, maxQueueWaitMs: 20000")]);
    let limits = "limits: {maxConnections: 30000, headerReadTimeout: 10m, keepAliveTimeout: 10m}";
    let mut router = Program::start(document, limits).await;
    let most = raise_limit(None).min(raise_limit(Pid::from_raw(router.pid() as i32)));
    let half = IDLE.min(most - RESERVE) / 2;
    let fresh = router.warmed_up(&[&blue]).await;
    let [silent, served] = idle_crowd(&mut router, half).await;
    println!("  {} idle connections: {silent:.1} KiB each before, {served:.1} KiB after a request", 2 * half);
    router.back_to(&fresh, &[&blue], AFTER_A_CROWD).await;
    let before = router.vitals();
    idle_crowd(&mut router, half).await;
    router.back_to(&before, &[&blue], MARGIN).await;
    assert!(silent <= COST_OF_SILENT && served <= COST_OF_SERVED, "{silent} and {served} KiB");
}

/// Waits until so many connections are open, and says what the router is like then.
async fn until_open(router: &mut Program, connections: u64) -> Vitals {
    soon("open connections", async {
        while router.metric("connections", &["scoring"]).await < connections as f64 {
            tokio::time::sleep(crate::LOOK).await;
        }
    })
    .await;
    router.vitals()
}
