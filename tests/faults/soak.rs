//! Everything at once for a long time: small requests, event streams, large bodies both ways, clients that vanish,
//! reloads, a replica that dies. Memory and descriptors must stay flat, and every answer must be exact or explained.
//!
//! `SOAK_SECONDS=1800 cargo test --test faults soak -- --ignored --nocapture` is the long run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::client::{
    CheckedRequest, CheckingClient, DisconnectKind, OUTCOME_CUT_SHORT, OUTCOME_EXACT, connect_and_send, head,
};
use crate::message::Message;
use crate::model::{Replica, RouterConnection, echo_response};
use crate::process_stats::ProcessStats;
use crate::program::{Program, deployment, endpoint};

/// How long without `SOAK_SECONDS`.
const SECONDS: u64 = 18;
const CLIENTS: u64 = 6;
/// Rest of a client between two questions: all this is to take one processor at most.
const CLIENT_PAUSE: Duration = Duration::from_millis(12);
/// How much higher the last third of the run may be than the one before it, in KiB and in descriptors. What the allocator
/// holds goes up and down by more than a short run evens out; in a long one this is some ten bytes a request.
const MEMORY_GROWTH_MARGIN_KIB: f64 = 12.0 * 1024.0;
const DESCRIPTOR_MARGIN: f64 = 6.0;
/// What may be left of it all at the end, in KiB.
const FINAL_MEMORY_MARGIN_KIB: u64 = 8 * 1024;
const EVENTS: u64 = 12;
const LARGE: usize = 1 << 20;
const UPLOAD: usize = 2 << 20;

/// A question of the mixture.
fn mixed_request(number: u64) -> CheckedRequest {
    let body = format!("{{\"question\": {number}}}").into_bytes();
    let fields = "";
    match number % 40 {
        0 => CheckedRequest { path: "large", expected: large(number), body, fields },
        13 => {
            let body = [format!("{number} ").into_bytes(), vec![number as u8; UPLOAD]].concat();
            let mut digest = BodyDigest::default();
            digest.add(&body);
            CheckedRequest { path: "digest", fields, expected: digest.text().into_bytes(), body }
        }
        5 | 15 | 25 | 35 => {
            let expected = (0..EVENTS).map(|event| event_of(number, event)).collect::<String>().into_bytes();
            CheckedRequest { path: "events", fields, body, expected }
        }
        _ => CheckedRequest::echo("blue", number),
    }
}

fn event_of(number: u64, event: u64) -> String {
    format!("data: {event} of {number}\n\n")
}

fn large(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(LARGE / 8)
}

/// Length and FNV-1a hash of a body.
struct BodyDigest(usize, u64);

impl Default for BodyDigest {
    fn default() -> Self {
        Self(0, 0xcbf2_9ce4_8422_2325)
    }
}

impl BodyDigest {
    fn add(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
        self.1 = bytes.iter().fold(self.1, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }

    fn text(&self) -> String {
        format!("{} {:x}", self.0, self.1)
    }
}

/// A model for the mixture.
async fn serve_mixed_requests(mut peer: RouterConnection) {
    while let Ok(request) = Message::read_head(&mut peer).await {
        if answer_request(&mut peer, request).await.is_err() {
            return;
        }
    }
}

async fn answer_request(peer: &mut RouterConnection, mut request: Message) -> std::io::Result<()> {
    if request.path() == "/digest" {
        let (mut digest, mut left, mut block) = (BodyDigest::default(), request.length(), vec![0; 64 << 10]);
        while left > 0 {
            let most = left.min(block.len());
            let read = peer.read(&mut block[..most]).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            digest.add(&block[..read]);
            left -= read;
        }
        return write_response(peer, digest.text().as_bytes()).await;
    }
    request.body = vec![0; request.length()];
    peer.read_exact(&mut request.body).await?;
    match request.path() {
        "/large" => write_response(peer, &large(request_number(&request))).await,
        "/events" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            peer.get_mut().write_all(head.as_bytes()).await?;
            for event in 0..EVENTS {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let event = event_of(request_number(&request), event);
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                peer.get_mut().write_all(chunk.as_bytes()).await?;
            }
            peer.get_mut().write_all(b"0\r\n\r\n").await
        }
        _ => peer.get_mut().write_all(&echo_response("blue", &request)).await,
    }
}

async fn write_response(peer: &mut RouterConnection, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    peer.get_mut().write_all(head.as_bytes()).await?;
    peer.get_mut().write_all(body).await
}

fn request_number(request: &Message) -> u64 {
    let question: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    question["question"].as_u64().unwrap()
}

/// An answer that was not exact.
#[derive(Debug)]
struct UnexpectedOutcome {
    outcome: String,
    asked: Instant,
    answered: Instant,
}

/// What happens to the router, noted by those who do it.
#[derive(Default)]
struct SoakEvents {
    stop: AtomicBool,
    exact: AtomicU64,
    disconnects: AtomicU64,
    reloads: AtomicU64,
    unexpected: Mutex<Vec<UnexpectedOutcome>>,
    deaths: Mutex<Vec<Instant>>,
}

impl SoakEvents {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Whether an answer is one that the death of a replica explains: it was on its way at that moment.
    fn is_explained_by_death(&self, odd: &UnexpectedOutcome) -> bool {
        let dying = Duration::from_millis(100);
        ["502 replica_closed", OUTCOME_CUT_SHORT].contains(&odd.outcome.as_str())
            && self.deaths.lock().unwrap().iter().any(|death| odd.asked <= *death + dying && *death <= odd.answered)
    }
}

async fn run_client(address: std::net::SocketAddr, client: u64, events: Arc<SoakEvents>) {
    let mut caller = CheckingClient::new(address);
    let mut number = client;
    while events.is_running() {
        number += CLIENTS;
        let asked = Instant::now();
        let outcome = caller.send(&mixed_request(number)).await;
        if outcome == OUTCOME_EXACT {
            events.exact.fetch_add(1, Ordering::Relaxed);
        } else {
            events.unexpected.lock().unwrap().push(UnexpectedOutcome { outcome, asked, answered: Instant::now() });
        }
        if number.is_multiple_of(7) {
            caller.close_connection();
        }
        tokio::time::sleep(CLIENT_PAUSE).await;
    }
}

/// Clients that leave, each at another moment of another request.
async fn run_disconnecting_clients(address: std::net::SocketAddr, events: Arc<SoakEvents>) {
    let mut turn = 0;
    while events.is_running() {
        turn += 1;
        let whole = mixed_request(turn).bytes();
        let bytes = match turn % 4 {
            0 => &whole[..whole.len() / 2],
            1 => &whole[..whole.len() / 9],
            _ => &whole[..],
        };
        let mut stream = match turn % 5 {
            4 => connect_and_send(address, head("digest", "", UPLOAD).into_bytes()).await,
            _ => connect_and_send(address, bytes).await,
        };
        if turn % 2 == 0 {
            // Some leave in the middle of the answer, some before it.
            let _ = tokio::time::timeout(Duration::from_millis(turn % 20), stream.read(&mut [0; 300])).await;
        }
        DisconnectKind::ALL[(turn / 2 % 2) as usize].close(stream);
        events.disconnects.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

async fn run_reloads(file: std::path::PathBuf, versions: Vec<String>, events: Arc<SoakEvents>) {
    while events.is_running() {
        let turn = events.reloads.fetch_add(1, Ordering::Relaxed) as usize;
        let beside = file.with_extension("new");
        std::fs::write(&beside, &versions[turn % versions.len()]).unwrap();
        std::fs::rename(&beside, &file).unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn run_replica_deaths(mut mortal: Replica, events: Arc<SoakEvents>) -> Replica {
    while events.is_running() {
        events.deaths.lock().unwrap().push(Instant::now());
        mortal.stop_listening().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        mortal.listen_again().await;
        tokio::time::sleep(Duration::from_millis(2700)).await;
    }
    mortal
}

/// All of it for so long, with a sample of the router every second.
async fn run(
    router: &Program,
    versions: &[String],
    mortal: Replica,
    seconds: u64,
) -> (Vec<ProcessStats>, Arc<SoakEvents>, Replica) {
    let events = Arc::new(SoakEvents::default());
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        tasks.spawn(run_client(router.scoring, client, events.clone()));
    }
    tasks.spawn(run_disconnecting_clients(router.scoring, events.clone()));
    tasks.spawn(run_reloads(router.document(), versions.to_vec(), events.clone()));
    let dying = tokio::spawn(run_replica_deaths(mortal, events.clone()));
    let (mut samples, mut ticks) = (Vec::new(), tokio::time::interval(Duration::from_secs(1)));
    for second in 0..=seconds {
        ticks.tick().await;
        samples.push(router.process_stats());
        if second % seconds.div_ceil(60) == 0 {
            print_line(second, &samples, &events);
        }
    }
    events.stop.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let mortal = dying.await.unwrap();
    (samples, events, mortal)
}

fn print_line(second: u64, samples: &[ProcessStats], events: &SoakEvents) {
    let (now, count) = (samples[samples.len() - 1], |counter: &AtomicU64| counter.load(Ordering::Relaxed));
    println!(
        "  {second:>5} s {:>7} KiB {:>4} descriptors {:>3} threads {:>8.2} s cpu {:>8} exact {:>4} odd {:>6} vanished \
         {:>5} reloads {:>4} deaths",
        now.memory_kib,
        now.descriptors,
        now.threads,
        now.cpu.as_secs_f64(),
        count(&events.exact),
        events.unexpected.lock().unwrap().len(),
        count(&events.disconnects),
        count(&events.reloads),
        events.deaths.lock().unwrap().len(),
    );
}

fn mean(samples: &[ProcessStats], value: impl Fn(&ProcessStats) -> f64) -> f64 {
    samples.iter().map(value).sum::<f64>() / samples.len() as f64
}

/// Checks that nothing grew from the second third of the run to the last, and that every answer is explained.
fn assert_flat(samples: &[ProcessStats], events: &SoakEvents, threads: usize) {
    let odd = events.unexpected.lock().unwrap();
    let unexplained: Vec<&UnexpectedOutcome> = odd.iter().filter(|odd| !events.is_explained_by_death(odd)).collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    let third = samples.len() / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let memory = |samples| mean(samples, |vitals: &ProcessStats| vitals.memory_kib as f64);
    let descriptors = |samples| mean(samples, |vitals: &ProcessStats| vitals.descriptors as f64);
    let share = (samples[samples.len() - 1].cpu - samples[0].cpu).as_secs_f64() / (samples.len() - 1) as f64;
    println!(
        "  memory {:.0} then {:.0} KiB, descriptors {:.1} then {:.1}; {} exact answers, {} that deaths explain; {:.0} % of \
         a processor",
        memory(middle),
        memory(last),
        descriptors(middle),
        descriptors(last),
        events.exact.load(Ordering::Relaxed),
        odd.len(),
        share * 100.0
    );
    assert!(memory(last) <= memory(middle) + MEMORY_GROWTH_MARGIN_KIB, "memory grows");
    assert!(descriptors(last) <= descriptors(middle) + DESCRIPTOR_MARGIN, "descriptors grow");
    assert!(samples[1..].iter().all(|sample| sample.threads == threads), "threads come and go");
}

#[tokio::test]
#[ignore = "takes more than 20 s; `.ci/run run_long_tests` runs it"]
async fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let (one, two, mortal) = (
        Replica::new(serve_mixed_requests).await,
        Replica::new(serve_mixed_requests).await,
        Replica::new(serve_mixed_requests).await,
    );
    let settings =
        |cap| format!("maxConcurrentRequestsPerInstance: {cap}, maxQueueWaitMs: 30000, requestTimeoutMs: 20000");
    let version = |replicas: &[&Replica], cap| endpoint(&[deployment("blue", replicas, &settings(cap))]);
    let versions = [
        version(&[&one, &two, &mortal], 4),
        version(&[&one, &mortal], 3),
        version(&[&mortal, &two], 6),
        version(&[&one, &two, &mortal], 2),
    ];
    let mut router = Program::start(versions[0].clone(), "").await;
    // A round that is not judged fills caches, pools and the allocator's tables.
    let (_, _, mortal) = run(&router, &versions, mortal, 3 + seconds / 20).await;
    let before = router.warm_up(&[&one, &two, &mortal]).await;
    let (samples, events, mortal) = run(&router, &versions, mortal, seconds).await;
    assert_flat(&samples, &events, before.threads);
    router.assert_back_to(&before, &[&one, &two, &mortal], FINAL_MEMORY_MARGIN_KIB).await;
}
