//! Clients that vanish, in every way and at every moment, beside others that continue.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::{DisconnectKind, connect_and_send, head};
use crate::message::Message;
use crate::model::{Replica, RouterConnection, echo_response};
use crate::program::{Program, deployment, endpoint};
use crate::with_timeout;

/// Slots of the deployment that clients vanish from.
const SLOTS: usize = 6;
const ROUNDS: usize = 8;
const GREEN: &str = "azureml-model-deployment: green\r\n";

/// A model that answers `hold` when it is told to, the half of `half`, and anything else never. The last two end when
/// the router closes its direction.
async fn slow(mut peer: RouterConnection, mut release: watch::Receiver<bool>) {
    while let Ok(request) = Message::read_head(&mut peer).await {
        if request.path() == "/hold" {
            release.wait_for(|told| *told).await.unwrap();
            // Whoever held may have left.
            let _ = peer.get_mut().write_all(&echo_response("green", &request)).await;
            continue;
        }
        if request.path() == "/half" {
            let half = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{:1000}", "half");
            peer.get_mut().write_all(half.as_bytes()).await.unwrap();
        }
        let _ = tokio::io::copy(&mut peer, &mut tokio::io::sink()).await;
    }
}

/// So many clients that have sent `bytes`.
async fn send_from_clients(router: &Program, bytes: &str) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..SLOTS {
        clients.push(connect_and_send(router.scoring, bytes).await);
    }
    clients
}

/// Waits until so many requests are in slots and in the queue of the deployment that clients vanish from.
async fn wait_until_green(router: &mut Program, busy: usize, queued: usize) {
    let what = format!("{busy} busy slots and {queued} queued requests");
    router.wait_until(&what, |all| all[1]["slots"]["busy"] == busy && all[1]["queue"] == queued).await;
}

/// Some clients vanish so, at each moment in turn.
async fn disconnect_at_each_moment(router: &mut Program, vanish: DisconnectKind, release: &watch::Sender<bool>) {
    // In the middle of the head: all that can be seen is the open connections, which the end looks at.
    let whole = head("score", GREEN, 0);
    for client in send_from_clients(router, &whole[..whole.len() / 2]).await {
        vanish.close(client);
    }
    // In the middle of an upload that is on its way to the model.
    let upload = head("score", GREEN, 1_000_000) + &"upload".repeat(20_000);
    let uploading = send_from_clients(router, &upload).await;
    wait_until_green(router, SLOTS, 0).await;
    uploading.into_iter().for_each(|client| vanish.close(client));
    wait_until_green(router, 0, 0).await;
    // In the middle of the response.
    let mut reading = send_from_clients(router, &head("half", GREEN, 0)).await;
    for client in &mut reading {
        with_timeout("a part of the response", client.read_exact(&mut [0; 1200])).await.unwrap();
    }
    reading.into_iter().for_each(|client| vanish.close(client));
    wait_until_green(router, 0, 0).await;
    // In the queue, behind requests that hold all slots: only those that wait are dropped.
    let mut holding = send_from_clients(router, &head("hold", GREEN, 0)).await;
    wait_until_green(router, SLOTS, 0).await;
    let waiting = send_from_clients(router, &head("hold", GREEN, 0)).await;
    wait_until_green(router, SLOTS, SLOTS).await;
    waiting.into_iter().for_each(|client| vanish.close(client));
    wait_until_green(router, SLOTS, 0).await;
    release.send(true).unwrap();
    for client in &mut holding {
        let answer = with_timeout("an answer", Message::read(&mut BufReader::new(client))).await.unwrap();
        assert_eq!((answer.status(), &*answer.body), (200, &b"green "[..]));
    }
    release.send(false).unwrap();
    drop(holding);
    wait_until_green(router, 0, 0).await;
}

/// Promise: a queued request whose client left is dropped, a slot is kept only as long as the model
/// works; nobody else notices: all other answers are exact.
#[tokio::test]
async fn clients_that_vanish_leave_nothing_behind_and_disturb_nobody() {
    let (tell, told) = watch::channel(false);
    let blue = Replica::echo("blue", Duration::from_millis(2)).await;
    let green = Replica::new(move |peer| slow(peer, told.clone())).await;
    let patient = format!("maxConcurrentRequestsPerInstance: {SLOTS}, maxQueueWaitMs: 60000, requestTimeoutMs: 60000");
    let document = endpoint(&[
        deployment("blue", &[&blue], "maxConcurrentRequestsPerInstance: 2"),
        deployment("green", &[&green], &patient),
    ]);
    let mut router = Program::start(document, "").await;
    for vanish in DisconnectKind::ALL {
        disconnect_at_each_moment(&mut router, vanish, &tell).await;
    }
    let before = router.warm_up(&[&blue, &green]).await;
    let load = router.load();
    for _ in 0..ROUNDS {
        for vanish in DisconnectKind::ALL {
            disconnect_at_each_moment(&mut router, vanish, &tell).await;
        }
    }
    let tally = router.assert_recovers(load, &[], &before, &[&blue, &green]).await;
    assert!(tally.slowest < Duration::from_secs(2), "{tally:?}");
    // Those that left before an answer had begun: uploading and waiting.
    let left = router.metric("requests_total", &["deployment_name=\"green\"", "code=\"499\""]).await;
    assert_eq!(left, (2 * (1 + ROUNDS) * 2 * SLOTS) as f64);
}
