//! Promises of admission: the exact cap, the queue, who gets a slot, and what is tried again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use inference_router::config::{RouterSettings, WorkerCount};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::harness::{
    KEY, Model, PendingRequest, Router, call, endpoint, full_body, raw_scoring_request, score, send, with_timeout,
};
use crate::raw_peers::{
    ANSWER, ReceivedRequest, RefusingPort, connect_and_send, first_deployment, join_task, metric_sum, next_arrival,
    read_eof, read_message, request, shut_down, spawn_scoring, start_handover_model, streaming,
    wait_until_busy_and_queued, wait_until_idle,
};

/// One slot, and times nobody reaches.
const ONE_SLOT: &str = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}";
/// More slots than any test needs, and times nobody reaches.
const MANY_SLOTS: &str = "{maxConcurrentRequestsPerInstance: 1000, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}";

fn with_workers(count: usize) -> impl FnOnce(&mut RouterSettings) {
    move |settings| settings.workers = WorkerCount::Count(count.try_into().unwrap())
}

/// How many requests a model has at once, and had at most.
#[derive(Default)]
struct ConcurrencyGauge {
    current: AtomicUsize,
    highest: AtomicUsize,
    total: AtomicUsize,
}

impl ConcurrencyGauge {
    fn enter(&self) {
        self.total.fetch_add(1, SeqCst);
        self.highest.fetch_max(self.current.fetch_add(1, SeqCst) + 1, SeqCst);
    }
    fn leave(&self) {
        self.current.fetch_sub(1, SeqCst);
    }
}

/// A model that counts, and answers while the gate is open.
async fn start_gated_model(gauge: Arc<ConcurrencyGauge>, gate: Arc<Semaphore>) -> Model {
    Model::http(move |_| {
        let (gauge, gate) = (gauge.clone(), gate.clone());
        async move {
            gauge.enter();
            gate.acquire().await.unwrap().forget();
            // A little time, in which others would arrive if they could.
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            gauge.leave();
            Response::new(full_body("ok"))
        }
    })
    .await
}

/// 64 clients against so many replicas with such a cap: all slots are used, never one more, and all are answered.
async fn assert_cap_is_exact(worker_count: usize, replicas: usize, cap: usize) {
    const CLIENTS: usize = 64;
    const REQUESTS_PER_CLIENT: usize = 5;
    let what = format!("{worker_count} workers, {replicas} replicas, cap {cap}");
    let gate = Arc::new(Semaphore::new(0));
    let gauges: Vec<Arc<ConcurrencyGauge>> = (0..replicas).map(|_| Arc::default()).collect();
    let mut models = Vec::new();
    for gauge in &gauges {
        models.push(start_gated_model(gauge.clone(), gate.clone()).await);
    }
    let addresses: Vec<SocketAddr> = models.iter().map(|model| model.address).collect();
    let settings =
        format!("{{maxConcurrentRequestsPerInstance: {cap}, maxQueueWaitMs: 60000, requestTimeoutMs: 60000}}");
    let router = Router::start_with(&[&endpoint(&addresses, &settings)], with_workers(worker_count));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let address = router.scoring;
        clients.spawn(async move {
            for _ in 0..REQUESTS_PER_CLIENT {
                assert_eq!(call(address, score("{}")).await.status, 200);
            }
        });
    }
    let slots = replicas * cap;
    wait_until_busy_and_queued(&router, slots, CLIENTS - slots).await;
    router
        .wait_until("every slot taken", |all| {
            let replicas = first_deployment(all)["replicas"].as_array().unwrap();
            replicas.iter().all(|replica| replica["inFlight"] == cap)
        })
        .await;
    gate.add_permits(CLIENTS * REQUESTS_PER_CLIENT);
    while let Some(client) = with_timeout(&what, clients.join_next()).await {
        client.unwrap();
    }
    for gauge in &gauges {
        assert_eq!(gauge.highest.load(SeqCst), cap, "{what}");
    }
    assert_eq!(
        gauges.iter().map(|gauge| gauge.total.load(SeqCst)).sum::<usize>(),
        CLIENTS * REQUESTS_PER_CLIENT,
        "{what}"
    );
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_replica_never_has_more_in_flight_than_its_cap_and_every_slot_is_used_with_one_worker() {
    for (replicas, cap) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
        assert_cap_is_exact(1, replicas, cap).await;
    }
}

#[tokio::test]
async fn a_replica_never_has_more_in_flight_than_its_cap_and_every_slot_is_used_with_two_workers() {
    for (replicas, cap) in [(1, 1), (1, 3), (3, 1), (3, 3)] {
        assert_cap_is_exact(2, replicas, cap).await;
    }
}

#[tokio::test]
async fn the_least_loaded_replica_gets_the_next_request() {
    let (first, mut at_first) = Model::manual().await;
    let (second, mut at_second) = Model::manual().await;
    let router = Router::start_with(&[&endpoint(&[first.address, second.address], MANY_SLOTS)], with_workers(2));
    let mut held: [Vec<PendingRequest>; 2] = [Vec::new(), Vec::new()];
    let mut clients = Vec::new();
    let mut send_one = async |held: &mut [Vec<PendingRequest>; 2]| {
        clients.push(spawn_scoring(&router, "{}"));
        with_timeout("a request at a model", async {
            tokio::select! {
                Some(asked) = at_first.recv() => held[0].push(asked),
                Some(asked) = at_second.recv() => held[1].push(asked),
            }
        })
        .await;
    };
    for sent in 1..=8 {
        send_one(&mut held).await;
        assert!(held[0].len().abs_diff(held[1].len()) <= 1, "after {sent}: {} and {}", held[0].len(), held[1].len());
    }
    for asked in held[0].drain(1..) {
        asked.answer("ok");
    }
    router.wait_until("three slots free again", |all| first_deployment(all)["slots"]["busy"] == 5).await;
    for _ in 0..3 {
        send_one(&mut held).await;
    }
    assert_eq!((held[0].len(), held[1].len()), (4, 4), "the emptier replica is filled up first");
    for asked in held.into_iter().flatten() {
        asked.answer("ok");
    }
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

async fn read_request_body(asked: &mut PendingRequest) -> String {
    let bytes = with_timeout("a request body", asked.request.body_mut().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn assert_first_come_first_served(worker_count: usize) {
    const BODIES: [&str; 9] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
    let (model, mut arrivals) = Model::manual().await;
    let router = Router::start_with(&[&endpoint(&[model.address], ONE_SLOT)], with_workers(worker_count));
    let mut clients = Vec::new();
    for (ahead, body) in BODIES.into_iter().enumerate() {
        clients.push(spawn_scoring(&router, body));
        wait_until_busy_and_queued(&router, 1, ahead).await;
    }
    for body in BODIES {
        let mut asked = next_arrival(&mut arrivals).await;
        assert_eq!(read_request_body(&mut asked).await, body);
        asked.answer("ok");
    }
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn queued_requests_are_served_in_the_order_in_which_they_came_with_one_worker() {
    assert_first_come_first_served(1).await;
}

#[tokio::test]
async fn queued_requests_are_served_in_the_order_in_which_they_came_with_two_workers() {
    assert_first_come_first_served(2).await;
}

#[tokio::test]
async fn a_request_waits_at_most_max_queue_wait_ms() {
    let (model, mut arrivals) = Model::manual().await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 150, requestTimeoutMs: 60000}";
    let router = Router::start(&[&endpoint(&[model.address], settings)]);
    let first = spawn_scoring(&router, "first");
    let asked = next_arrival(&mut arrivals).await;
    let start = Instant::now();
    let refused = router.score("second").await;
    assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    assert_eq!(refused.status, 503);
    assert_eq!(refused.code(), "too_many_requests");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    wait_until_busy_and_queued(&router, 1, 0).await;
    asked.answer("ok");
    assert_eq!(join_task(first).await.status, 200);
    assert!(arrivals.try_recv().is_err(), "a refused request reached the model");
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn at_most_max_queue_length_requests_wait() {
    let (model, mut arrivals) = Model::manual().await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, maxQueueLength: 2, \
                    requestTimeoutMs: 60000}";
    for worker_count in [1, 2] {
        let router = Router::start_with(&[&endpoint(&[model.address], settings)], with_workers(worker_count));
        let mut clients = Vec::new();
        for ahead in 0..3 {
            clients.push(spawn_scoring(&router, "{}"));
            wait_until_busy_and_queued(&router, 1, ahead).await;
        }
        for _ in 0..4 {
            let refused = router.score("too many").await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "too_many_requests"));
            assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
        }
        wait_until_busy_and_queued(&router, 1, 2).await;
        for _ in 0..3 {
            next_arrival(&mut arrivals).await.answer("ok");
        }
        for client in clients {
            assert_eq!(join_task(client).await.status, 200);
        }
        assert!(arrivals.try_recv().is_err(), "a refused request reached the model");
        wait_until_idle(&router).await;
        shut_down(router).await;
    }
}

#[tokio::test]
async fn without_a_queue_a_request_is_served_or_refused_at_once() {
    for settings in ["maxQueueWaitMs: 0", "maxQueueWaitMs: 60000, maxQueueLength: 0"] {
        let (model, mut arrivals) = Model::manual().await;
        let settings = format!("{{maxConcurrentRequestsPerInstance: 1, requestTimeoutMs: 60000, {settings}}}");
        let router = Router::start_with(&[&endpoint(&[model.address], &settings)], with_workers(2));
        for _ in 0..10 {
            let first = spawn_scoring(&router, "{}");
            let asked = next_arrival(&mut arrivals).await;
            let refused = router.score("too many").await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "too_many_requests"));
            assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
            asked.answer("ok");
            assert_eq!(join_task(first).await.status, 200, "a slot is free");
            // The slot ends with the last byte, which the client may see a moment before.
            wait_until_idle(&router).await;
        }
        assert!(arrivals.try_recv().is_err(), "a refused request reached the model");
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_queued_request_whose_client_left_is_dropped() {
    for worker_count in [1, 2] {
        let (model, mut arrivals) = Model::manual().await;
        let router = Router::start_with(&[&endpoint(&[model.address], ONE_SLOT)], with_workers(worker_count));
        let first = spawn_scoring(&router, "first");
        let asked = next_arrival(&mut arrivals).await;
        let leaving = connect_and_send(router.scoring, &request("POST", "leaving")).await;
        wait_until_busy_and_queued(&router, 1, 1).await;
        let last = spawn_scoring(&router, "last");
        wait_until_busy_and_queued(&router, 1, 2).await;
        drop(leaving);
        wait_until_busy_and_queued(&router, 1, 1).await;
        asked.answer("ok");
        let mut asked = next_arrival(&mut arrivals).await;
        assert_eq!(read_request_body(&mut asked).await, "last");
        asked.answer("ok");
        assert_eq!(join_task(first).await.status, 200);
        assert_eq!(join_task(last).await.status, 200);
        wait_until_idle(&router).await;
        assert!(arrivals.try_recv().is_err(), "the model saw a request whose client had left");
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_queued_request_whose_client_left_is_dropped_although_its_body_is_unread() {
    // More than is read before there is a slot. What the system takes no more of hides an end, but no reset.
    for (length, resets) in [(100_000, false), (300_000, true)] {
        let (model, mut arrivals) = Model::manual().await;
        let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
        let first = spawn_scoring(&router, "first");
        let asked = next_arrival(&mut arrivals).await;
        let mut leaving = TcpStream::connect(router.scoring).await.unwrap();
        leaving.write_all(&raw_scoring_request(length)).await.unwrap();
        wait_until_busy_and_queued(&router, 1, 1).await;
        if resets {
            SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(leaving);
        wait_until_busy_and_queued(&router, 1, 0).await;
        // One that stays is served, and all of its body comes.
        let mut staying = TcpStream::connect(router.scoring).await.unwrap();
        staying.write_all(&raw_scoring_request(length)).await.unwrap();
        wait_until_busy_and_queued(&router, 1, 1).await;
        asked.answer("ok");
        let mut asked = next_arrival(&mut arrivals).await;
        assert_eq!(read_request_body(&mut asked).await.len(), length);
        asked.answer("ok");
        assert_eq!(join_task(first).await.status, 200);
        wait_until_idle(&router).await;
        shut_down(router).await;
    }
}

/// A request at the model whose client has left, and another one waiting for its slot.
async fn start_abandoned_and_queued(
    settings: &str,
    worker_count: usize,
) -> (
    Router,
    Model,
    mpsc::UnboundedReceiver<ReceivedRequest>,
    ReceivedRequest,
    tokio::task::JoinHandle<crate::harness::Answer>,
) {
    let (model, mut arrivals) = start_handover_model().await;
    let router = Router::start_with(&[&endpoint(&[model.address], settings)], with_workers(worker_count));
    let leaving = connect_and_send(router.scoring, &request("POST", "leaving")).await;
    let mut abandoned = next_arrival(&mut arrivals).await;
    assert!(abandoned.text.ends_with("leaving"));
    drop(leaving);
    read_eof(&mut abandoned.stream).await;
    wait_until_busy_and_queued(&router, 1, 0).await;
    let waiting = spawn_scoring(&router, "waiting");
    wait_until_busy_and_queued(&router, 1, 1).await;
    assert!(arrivals.try_recv().is_err(), "the model still works on the request of the client that left");
    (router, model, arrivals, abandoned, waiting)
}

async fn assert_served_next(
    router: Router,
    arrivals: &mut mpsc::UnboundedReceiver<ReceivedRequest>,
    waiting: tokio::task::JoinHandle<crate::harness::Answer>,
) {
    let mut served = next_arrival(arrivals).await;
    assert!(served.text.ends_with("waiting"));
    served.write(ANSWER).await;
    assert_eq!(join_task(waiting).await.status, 200);
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn when_the_client_leaves_the_slot_stays_busy_until_the_model_closes() {
    for worker_count in [1, 2] {
        let (router, _model, mut arrivals, abandoned, waiting) =
            start_abandoned_and_queued(ONE_SLOT, worker_count).await;
        drop(abandoned);
        assert_served_next(router, &mut arrivals, waiting).await;
    }
}

#[tokio::test]
async fn when_the_client_leaves_the_slot_stays_busy_until_the_model_has_answered() {
    for worker_count in [1, 2] {
        let (router, _model, mut arrivals, mut abandoned, waiting) =
            start_abandoned_and_queued(ONE_SLOT, worker_count).await;
        abandoned.write("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await;
        wait_until_busy_and_queued(&router, 1, 1).await;
        abandoned.write("full").await;
        assert_served_next(router, &mut arrivals, waiting).await;
    }
}

#[tokio::test]
async fn when_the_client_leaves_the_slot_is_kept_no_longer_than_the_request_timeout() {
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, requestTimeoutMs: 1500}";
    let start = Instant::now();
    let (router, _model, mut arrivals, mut abandoned, waiting) = start_abandoned_and_queued(settings, 1).await;
    let mut served = next_arrival(&mut arrivals).await;
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    served.write(ANSWER).await;
    assert_eq!(join_task(waiting).await.status, 200);
    // The connection is gone, whatever the model still writes.
    with_timeout("the end of the connection", async {
        while abandoned.stream.write_all(b"x").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn when_the_client_leaves_during_the_response_the_slot_stays_busy_until_the_model_ends() {
    for ending in ["closes", "ends the response"] {
        let (model, mut arrivals) = start_handover_model().await;
        let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
        let mut leaving = connect_and_send(router.scoring, &request("POST", "leaving")).await;
        let mut abandoned = next_arrival(&mut arrivals).await;
        abandoned.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        let mut seen = Vec::new();
        with_timeout("the first frame", async {
            while !seen.ends_with(b"first\r\n") {
                assert_ne!(leaving.read_buf(&mut seen).await.unwrap(), 0);
            }
        })
        .await;
        drop(leaving);
        read_eof(&mut abandoned.stream).await;
        let waiting = spawn_scoring(&router, "waiting");
        wait_until_busy_and_queued(&router, 1, 1).await;
        // What the model still says goes nowhere, and does not stop it.
        abandoned.write("6\r\nsecond\r\n").await;
        wait_until_busy_and_queued(&router, 1, 1).await;
        if ending == "closes" {
            drop(abandoned);
        } else {
            abandoned.write("0\r\n\r\n").await;
        }
        assert_served_next(router, &mut arrivals, waiting).await;
    }
}

#[tokio::test]
async fn a_slot_is_held_until_the_last_byte_of_the_response() {
    for worker_count in [1, 2] {
        let (model, mut arrivals) = Model::manual().await;
        let router = Router::start_with(&[&endpoint(&[model.address], ONE_SLOT)], with_workers(worker_count));
        let first = tokio::spawn(send(router.scoring, score("first").map(BodyExt::boxed)));
        let (writer, response) = streaming();
        next_arrival(&mut arrivals).await.respond(response);
        writer.send(Bytes::from_static(b"one")).unwrap();
        let mut body = join_task(first).await.unwrap().into_body();
        let frame = with_timeout("the first frame", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one");
        let second = spawn_scoring(&router, "second");
        wait_until_busy_and_queued(&router, 1, 1).await;
        writer.send(Bytes::from_static(b"two")).unwrap();
        let frame = with_timeout("the second frame", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "two");
        wait_until_busy_and_queued(&router, 1, 1).await;
        assert!(arrivals.try_recv().is_err());
        drop(writer);
        assert!(with_timeout("the end of the body", body.frame()).await.is_none());
        next_arrival(&mut arrivals).await.answer("ok");
        assert_eq!(join_task(second).await.status, 200);
        wait_until_idle(&router).await;
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_request_never_waits_while_a_slot_is_free() {
    // Nobody may wait at all here, so a request that does not get a free slot at once is refused.
    const CLIENTS: usize = 12;
    let gate = Arc::new(Semaphore::new(1_000_000));
    let gauges: [Arc<ConcurrencyGauge>; 3] = Default::default();
    let mut models = Vec::new();
    for gauge in &gauges {
        models.push(start_gated_model(gauge.clone(), gate.clone()).await);
    }
    let addresses: Vec<SocketAddr> = models.iter().map(|model| model.address).collect();
    // A client may see the last byte a moment before the slot is free: so one more slot per client.
    let settings = "{maxConcurrentRequestsPerInstance: 8, maxQueueWaitMs: 0, requestTimeoutMs: 60000}";
    for worker_count in [1, 2] {
        let router = Router::start_with(&[&endpoint(&addresses, settings)], with_workers(worker_count));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let address = router.scoring;
            clients.spawn(async move {
                for _ in 0..30 {
                    assert_eq!(call(address, score("{}")).await.status, 200);
                }
            });
        }
        while let Some(client) = with_timeout("all clients", clients.join_next()).await {
            client.unwrap();
        }
        assert_eq!(metric_sum(&router, "inference_router_requests_rejected_total", "").await, 0.0);
        wait_until_idle(&router).await;
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_free_slot_of_any_replica_ends_the_wait() {
    let (first, mut at_first) = Model::manual().await;
    let (second, mut at_second) = Model::manual().await;
    let router = Router::start_with(&[&endpoint(&[first.address, second.address], ONE_SLOT)], with_workers(2));
    let clients = [spawn_scoring(&router, "a"), spawn_scoring(&router, "b")];
    let (mut one, two) = (next_arrival(&mut at_first).await, next_arrival(&mut at_second).await);
    for _ in 0..5 {
        // Only the first replica becomes free, again and again.
        let waiting = spawn_scoring(&router, "waiting");
        wait_until_busy_and_queued(&router, 2, 1).await;
        one.answer("ok");
        one = next_arrival(&mut at_first).await;
        wait_until_busy_and_queued(&router, 2, 0).await;
        drop(waiting);
    }
    one.answer("ok");
    two.answer("ok");
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

fn replica_state(all: &Value, address: SocketAddr) -> String {
    let replicas = first_deployment(all)["replicas"].as_array().unwrap();
    let replica = replicas.iter().find(|replica| replica["address"] == address.to_string());
    replica.unwrap_or_else(|| panic!("no {address}: {all}"))["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn requests_that_a_replica_refused_to_take_go_to_another_and_it_is_ejected() {
    const REQUESTS: usize = 12;
    let refusing = RefusingPort::bind();
    let (good, mut arrivals) = Model::manual().await;
    let router = Router::start(&[&endpoint(&[refusing.address, good.address], MANY_SLOTS)]);
    // The good one is always the more loaded one.
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        clients.push(spawn_scoring(&router, "{}"));
        held.push(next_arrival(&mut arrivals).await);
    }
    assert!(metric_sum(&router, "inference_router_retries_total", "").await >= 1.0);
    router.wait_until("the refusing replica is ejected", |all| replica_state(all, refusing.address) == "ejected").await;
    assert_eq!(replica_state(&router.endpoints().await, good.address), "ready");
    assert!(metric_sum(&router, "inference_router_replicas", "state=\"ejected\"").await >= 1.0);
    for asked in held {
        asked.answer("ok");
    }
    for client in clients {
        assert_eq!(join_task(client).await.status, 200);
    }
    assert!(arrivals.try_recv().is_err());
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_replica_that_comes_back_is_probed_with_one_request_and_then_used_again() {
    let refusing = RefusingPort::bind();
    let address = refusing.address;
    // Holds what says `hold`, so that it is the more loaded one; answers everything else.
    let (sender, mut holding) = mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
    let gate = release.clone();
    let good = Model::http(move |request| {
        let (sender, gate) = (sender.clone(), gate.clone());
        async move {
            if request.into_body().collect().await.unwrap().to_bytes() == "hold" {
                let _ = sender.send(());
                gate.acquire().await.unwrap().forget();
            }
            Response::new(full_body("good"))
        }
    })
    .await;
    let router = Router::start(&[&endpoint(&[address, good.address], MANY_SLOTS)]);
    let held = spawn_scoring(&router, "hold");
    next_arrival(&mut holding).await;
    let held_too = spawn_scoring(&router, "hold");
    next_arrival(&mut holding).await;
    with_timeout("set aside", async {
        while replica_state(&router.endpoints().await, address) != "ejected" {
            assert_eq!(router.score("{}").await.text(), "good");
        }
    })
    .await;
    let listener = refusing.listen();
    let (sender, mut at_returned) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(text) = read_message(&mut stream).await {
                    let (answer, answered) = tokio::sync::oneshot::channel::<()>();
                    let _ = sender.send((text, answer));
                    let _ = answered.await;
                    let _ = stream.write_all(ANSWER.as_bytes()).await;
                }
            });
        }
    });
    let mut asking = spawn_scoring(&router, "{}");
    let (_, probe) = with_timeout("a probe", async {
        loop {
            tokio::select! {
                biased;
                Some(probe) = at_returned.recv() => break probe,
                answer = &mut asking => {
                    assert_eq!(answer.unwrap().text(), "good");
                    asking = spawn_scoring(&router, "{}");
                }
            }
        }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(router.score("{}").await.text(), "good", "only one request is a probe");
    }
    assert!(at_returned.try_recv().is_err(), "only one request is a probe");
    probe.send(()).unwrap();
    assert_eq!(join_task(asking).await.text(), "ok");
    router.wait_until("ready again", |all| replica_state(all, address) == "ready").await;
    for _ in 0..5 {
        let asking = spawn_scoring(&router, "{}");
        next_arrival(&mut at_returned).await.1.send(()).unwrap();
        assert_eq!(join_task(asking).await.text(), "ok", "the less loaded replica is used again");
    }
    release.add_permits(2);
    assert_eq!(join_task(held).await.status, 200);
    assert_eq!(join_task(held_too).await.status, 200);
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_request_that_waits_for_an_ejected_replica_is_served_when_it_is_back() {
    let refusing = RefusingPort::bind();
    let address = refusing.address;
    let router = Router::start(&[&endpoint(&[address], ONE_SLOT)]);
    with_timeout("set aside", async {
        while replica_state(&router.endpoints().await, address) != "ejected" {
            assert_eq!(router.score("{}").await.code(), "replica_unreachable");
        }
    })
    .await;
    let listener = refusing.listen();
    let waiting = spawn_scoring(&router, "waiting");
    let (mut stream, _) = with_timeout("the probe", listener.accept()).await.unwrap();
    assert!(read_message(&mut stream).await.unwrap().ends_with("waiting"));
    stream.write_all(ANSWER.as_bytes()).await.unwrap();
    assert_eq!(join_task(waiting).await.status, 200);
    router.wait_until("ready again", |all| replica_state(all, address) == "ready").await;
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn with_no_replica_that_can_be_reached_the_answer_says_so() {
    let settings = "{}";
    let refusing = RefusingPort::bind();
    let router = Router::start(&[&endpoint(&[refusing.address], settings)]);
    let first = router.score("{}").await;
    assert_eq!((first.status.as_u16(), first.code().as_str()), (502, "replica_unreachable"));
    with_timeout("set aside", async {
        while replica_state(&router.endpoints().await, refusing.address) != "ejected" {
            let code = router.score("{}").await.code();
            assert!(code == "replica_unreachable" || code == "no_ready_replica", "{code}");
        }
    })
    .await;
    for _ in 0..10 {
        let answer = router.score("{}").await;
        match answer.code().as_str() {
            "replica_unreachable" => assert_eq!(answer.status, 502),
            "no_ready_replica" => {
                assert_eq!(answer.status, 503);
                assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            }
            other => panic!("{other}"),
        }
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_pooled_connection_that_the_model_closed_does_not_fail_the_next_request() {
    let (model, mut arrivals) = start_handover_model().await;
    let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
    for round in 0..50 {
        let mut asking = spawn_scoring(&router, "{}");
        let mut arrived = tokio::select! {
            arrived = next_arrival(&mut arrivals) => arrived,
            answer = &mut asking => panic!("round {round}: {:?}", answer.unwrap()),
        };
        arrived.write(ANSWER).await;
        assert_eq!(join_task(asking).await.status, 200, "round {round}");
        // Closes the connection that the router keeps.
        drop(arrived);
    }
    assert_eq!(replica_state(&router.endpoints().await, model.address), "ready");
    wait_until_idle(&router).await;
    shut_down(router).await;
}

async fn assert_not_sent_again(method: &str) {
    let arrived = Arc::new(AtomicUsize::new(0));
    let model = async || {
        let arrived = arrived.clone();
        Model::from_connections(move |mut stream| {
            let arrived = arrived.clone();
            async move {
                if read_message(&mut stream).await.is_some() {
                    arrived.fetch_add(1, SeqCst);
                }
            }
        })
        .await
    };
    let models = [model().await, model().await, model().await];
    let addresses: Vec<SocketAddr> = models.iter().map(|model| model.address).collect();
    let router = Router::start(&[&endpoint(&addresses, ONE_SLOT)]);
    let mut asking = connect_and_send(router.scoring, &request(method, "")).await;
    let answer = read_message(&mut asking).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("\"replica_closed\""), "{answer}");
    assert_eq!(arrived.load(SeqCst), 1, "a request that a model may have seen is not sent again");
    assert_eq!(metric_sum(&router, "inference_router_retries_total", "").await, 0.0);
    wait_until_idle(&router).await;
    drop(asking);
    shut_down(router).await;
}

#[tokio::test]
async fn a_post_that_a_model_may_have_seen_is_not_sent_again() {
    assert_not_sent_again("POST").await;
}

#[tokio::test]
async fn a_get_that_a_model_may_have_seen_is_not_sent_again() {
    assert_not_sent_again("GET").await;
}

#[tokio::test]
async fn a_request_that_arrived_over_a_pooled_connection_is_not_sent_again() {
    for (method, body) in [("POST", "second"), ("GET", "")] {
        let (model, mut arrivals) = start_handover_model().await;
        let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
        let first = spawn_scoring(&router, "first");
        let mut arrived = next_arrival(&mut arrivals).await;
        arrived.write(ANSWER).await;
        assert_eq!(join_task(first).await.status, 200);
        wait_until_idle(&router).await;
        let mut asking = connect_and_send(router.scoring, &request(method, body)).await;
        drop(arrived.next_request().await);
        let answer = read_message(&mut asking).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\"replica_closed\""), "{answer}");
        assert!(arrivals.try_recv().is_err(), "{method} was sent twice");
        wait_until_idle(&router).await;
        drop(asking);
        shut_down(router).await;
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_tried_again_and_the_client_can_tell() {
    let (model, mut arrivals) = start_handover_model().await;
    let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
    let mut asking = connect_and_send(router.scoring, &request("POST", "{}")).await;
    let mut arrived = next_arrival(&mut arrivals).await;
    arrived.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let mut seen = Vec::new();
    with_timeout("half of the response", async {
        while !seen.ends_with(b"\r\n\r\nhalf") {
            assert_ne!(asking.read_buf(&mut seen).await.unwrap(), 0);
        }
    })
    .await;
    drop(arrived);
    let length = seen.len();
    // A reset is a break like any other.
    let _ = with_timeout("the end of the connection", asking.read_to_end(&mut seen)).await;
    assert_eq!(seen.len(), length, "{}", String::from_utf8_lossy(&seen));
    wait_until_idle(&router).await;
    assert!(arrivals.try_recv().is_err());
    shut_down(router).await;
}

#[tokio::test]
async fn a_response_that_breaks_off_at_once_still_reaches_the_client_as_far_as_it_came() {
    let (model, mut arrivals) = start_handover_model().await;
    let router = Router::start(&[&endpoint(&[model.address], ONE_SLOT)]);
    let mut asking = connect_and_send(router.scoring, &request("POST", "{}")).await;
    let mut arrived = next_arrival(&mut arrivals).await;
    arrived.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    drop(arrived);
    let mut seen = Vec::new();
    let _ = with_timeout("the end of the connection", asking.read_to_end(&mut seen)).await;
    let seen = String::from_utf8(seen).unwrap();
    // Or the router's own error; but not a connection that ends as if nobody had been there.
    let passed_on = seen.starts_with("HTTP/1.1 200 ");
    assert!(passed_on || seen.starts_with("HTTP/1.1 502 "), "{seen:?}");
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn what_a_model_answers_never_ejects_its_replica() {
    let model = Model::http(|request: Request<_>| async move {
        let status: StatusCode = request.uri().query().unwrap().parse().unwrap();
        Response::builder().status(status).body(full_body("no")).unwrap()
    })
    .await;
    let router = Router::start(&[&endpoint(&[model.address], MANY_SLOTS)]);
    for status in [400, 404, 408, 409, 429, 500, 502, 503, 504] {
        for _ in 0..20 {
            let request = Request::post(format!("/api/v1/endpoint/my-endpoint/score?{status}"))
                .header("authorization", format!("Bearer {KEY}"))
                .body(Full::from("{}"))
                .unwrap();
            let answer = call(router.scoring, request).await;
            assert_eq!(answer.status, if status == 500 { 502 } else { status });
            assert_eq!(answer.header("ms-azureml-model-error-statuscode"), status.to_string());
        }
        assert_eq!(replica_state(&router.endpoints().await, model.address), "ready", "after many {status}");
    }
    wait_until_idle(&router).await;
    shut_down(router).await;
}

async fn run_mixed_requests(worker_count: usize) {
    const CLIENTS: usize = 50;
    const REQUESTS_PER_CLIENT: usize = 20;
    let broken = Arc::new(AtomicBool::new(false));
    let model = async || {
        Model::http(|request: Request<_>| async move {
            match request.uri().query() {
                Some("never") => std::future::pending().await,
                Some("later") => {
                    for _ in 0..50 {
                        tokio::task::yield_now().await;
                    }
                }
                _ => {}
            }
            Response::new(full_body("ok"))
        })
        .await
    };
    let models = [model().await, model().await];
    let settings = "{maxConcurrentRequestsPerInstance: 4, maxQueueWaitMs: 60000, requestTimeoutMs: 300}";
    let addresses: Vec<SocketAddr> = models.iter().map(|model| model.address).collect();
    let router = Router::start_with(&[&endpoint(&addresses, settings)], with_workers(worker_count));
    let address = router.scoring;
    let mut clients = JoinSet::new();
    for client_number in 0..CLIENTS {
        let broken = broken.clone();
        clients.spawn(async move {
            for number in 0..REQUESTS_PER_CLIENT {
                let kind = (client_number * REQUESTS_PER_CLIENT + number) % 20;
                let query = if kind == 0 { "never" } else { "later" };
                let bytes = request("POST", "{}").replace("/score ", &format!("/score?{query} "));
                let mut stream = connect_and_send(address, &bytes).await;
                match kind {
                    // Leaves at once, or when the request may be anywhere.
                    1 | 2 => drop(stream),
                    3..8 => {
                        for _ in 0..kind * 20 {
                            tokio::task::yield_now().await;
                        }
                        drop(stream);
                    }
                    _ => {
                        let answer = read_message(&mut stream).await.expect("an answer");
                        let timed_out = answer.starts_with("HTTP/1.1 504 ");
                        if !timed_out && (kind == 0 || !answer.starts_with("HTTP/1.1 200 ")) {
                            broken.store(true, SeqCst);
                            panic!("{answer}");
                        }
                    }
                }
            }
        });
    }
    while let Some(client) = with_timeout("all clients", clients.join_next()).await {
        client.unwrap();
    }
    assert!(!broken.load(SeqCst));
    wait_until_idle(&router).await;
    assert_eq!(metric_sum(&router, "inference_router_requests_in_flight", "").await, 0.0);
    assert_eq!(metric_sum(&router, "inference_router_queue_length", "").await, 0.0);
    assert_eq!(metric_sum(&router, "inference_router_slots", "state=\"busy\"").await, 0.0);
    assert_eq!(metric_sum(&router, "inference_router_slots", "state=\"free\"").await, 8.0);
    shut_down(router).await;
}

#[tokio::test]
async fn a_thousand_mixed_requests_leave_nothing_behind_with_one_worker() {
    run_mixed_requests(1).await;
}

#[tokio::test]
async fn a_thousand_mixed_requests_leave_nothing_behind_with_two_workers() {
    run_mixed_requests(2).await;
}

#[tokio::test]
async fn a_model_that_is_late_costs_its_slot_only_until_the_timeout() {
    let (model, mut arrivals) = start_handover_model().await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 60000, requestTimeoutMs: 300}";
    let router = Router::start(&[&endpoint(&[model.address], settings)]);
    let start = Instant::now();
    let late = spawn_scoring(&router, "late");
    let arrived = next_arrival(&mut arrivals).await;
    let answer = join_task(late).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "model_timeout"));
    wait_until_idle(&router).await;
    let second = spawn_scoring(&router, "second");
    let mut served = next_arrival(&mut arrivals).await;
    assert!(served.text.ends_with("second"));
    served.write(ANSWER).await;
    assert_eq!(join_task(second).await.status, 200);
    drop(arrived);
    wait_until_idle(&router).await;
    shut_down(router).await;
}

#[tokio::test]
async fn a_client_that_keeps_its_connection_gets_the_slot_back_with_every_answer() {
    let model = Model::named("ok").await;
    let settings = "{maxConcurrentRequestsPerInstance: 1, maxQueueWaitMs: 0, requestTimeoutMs: 60000}";
    let router = Router::start(&[&endpoint(&[model.address], settings)]);
    let mut stream: TcpStream = connect_and_send(router.scoring, &request("POST", "{}")).await;
    for round in 0..100 {
        let answer = read_message(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "round {round}: {answer}");
        // One client after its own last byte never finds its slot taken, or a cap of one would refuse its only client.
        stream.write_all(request("POST", "{}").as_bytes()).await.unwrap();
    }
    read_message(&mut stream).await.unwrap();
    wait_until_idle(&router).await;
    drop(stream);
    shut_down(router).await;
}
