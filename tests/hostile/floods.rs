//! Floods of HTTP/2 frames that cost a client nothing: each ends the connection, and costs the router no more than it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, GOAWAY, H2Connection, HEADERS, PING,
    POST_PSEUDO_HEADERS, PRIORITY, RST_STREAM, WINDOW_UPDATE, block, frame, head, hpack_string, settings,
};
use crate::target::Target;

/// A target that only a flood makes lose its patience within a test.
async fn start_patient_target(request_settings: &str) -> Target {
    Target::start_with(request_settings, |settings| {
        settings.limits.header_read_timeout = LONG_TIMEOUT;
        settings.limits.body_idle_timeout = LONG_TIMEOUT;
    })
    .await
}

const LONG_TIMEOUT: Duration = Duration::from_secs(600);

/// Writes `first`, then `rounds` times `round`, or until the router closes; it must. Returns the frames that came.
async fn flood(target: &mut Target, first: &[u8], rounds: usize, round: impl Fn(usize) -> Vec<u8>) -> Vec<Frame> {
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    client.write(first).await;
    let attack = async move {
        let mut frames = Vec::new();
        for number in 0..rounds {
            if client.stream.write_all(&round(number)).await.is_err() {
                break;
            }
            // Answers are taken, or the router would not read on.
            frames.extend(std::iter::from_fn(|| client.try_next()));
            tokio::task::yield_now().await;
        }
        while let Some(frame) = client.next().await {
            frames.push(frame);
        }
        frames
    };
    target.serve_good_client_during(attack).await
}

/// Asserts that the attacker, if it was told anything, was told to calm down. (A GOAWAY can be lost in the reset that
/// follows when the attacker goes on writing.)
fn assert_told_to_calm_down(what: &str, frames: &[Frame]) {
    if let Some(last) = frames.iter().rev().find(|frame| frame.kind == GOAWAY) {
        assert_eq!(last.error(), ENHANCE_YOUR_CALM, "{what}: {last:?}");
    }
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let mut target = start_patient_target("{maxConcurrentRequestsPerInstance: 1000}").await;
    let round = |round: usize| {
        let streams = (0..20).map(|n| 1 + 2 * (20 * round as u32 + n));
        let reset = |stream| [head(stream, END_STREAM, &[]), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
        streams.flat_map(reset).collect()
    };
    assert_told_to_calm_down("rapid resets", &flood(&mut target, &[], 500, round).await);
    target.wait_until_idle().await;
}

#[tokio::test]
async fn resets_slow_enough_to_be_looked_at_end_the_connection_too() {
    let mut target = start_patient_target("{maxConcurrentRequestsPerInstance: 1000}").await;
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    let attack = async move {
        for number in 0..300 {
            let streams = (0..10).map(|n| 1 + 2 * (10 * number + n));
            let reset = |stream| [head(stream, END_STREAM, &[]), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
            client.write(&streams.flat_map(reset).collect::<Vec<u8>>()).await;
            // The answer to a ping shows that they were looked at.
            client.write(&frame(PING, 0, 0, &[7; 8])).await;
            loop {
                match client.next().await {
                    None => return number,
                    Some(frame) if frame.kind == PING => break,
                    Some(_) => {}
                }
            }
        }
        300
    };
    let rounds = target.serve_good_client_during(attack).await;
    assert!((50..150).contains(&rounds), "cut off after {rounds} rounds of ten");
    target.wait_until_idle().await;
}

#[tokio::test]
async fn heads_without_end_end_the_connection() {
    let mut target = start_patient_target("{}").await;
    let start = frame(HEADERS, END_STREAM, 1, &block(&POST_PSEUDO_HEADERS));
    for (what, piece) in [
        ("empty", Vec::new()),
        ("small", block(&[("x", "y")])),
        ("large", block(&[("x", &"y".repeat(16_000))])),
        ("half a field", [vec![0], hpack_string(b"x"), vec![0x7f, 0x80]].concat()),
    ] {
        let frames = flood(&mut target, &start, 10_000, |_| frame(CONTINUATION, 0, 1, &piece)).await;
        assert!(frames.iter().all(|frame| frame.kind != DATA), "{what}: {frames:?}");
    }
    assert!(target.recorder.take_requests().is_empty());
}

#[tokio::test]
async fn frames_that_ask_for_nothing_end_the_connection() {
    let mut target = start_patient_target("{requestTimeoutMs: 300000}").await;
    let open = head(1, 0, &[]);
    for (what, first, piece) in [
        ("SETTINGS", &[][..], settings(&[(3, 100)])),
        ("PING", &[], frame(PING, 0, 0, &[7; 8])),
        ("acknowledged PING", &[], frame(PING, 1, 0, &[7; 8])),
        ("PRIORITY", &[], frame(PRIORITY, 0, 3, &[0; 5])),
        ("unknown", &[], frame(0xbb, 0, 0, b"?")),
        ("WINDOW_UPDATE", &[], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of a stream", &open, frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("empty DATA", &open, frame(DATA, 0, 1, &[])),
        ("DATA of one byte", &open, frame(DATA, 0, 1, b"x")),
    ] {
        assert_told_to_calm_down(what, &flood(&mut target, first, 1_000, |_| piece.repeat(100)).await);
        target.wait_until_idle().await;
    }
}

#[tokio::test]
async fn a_small_head_that_unpacks_to_a_large_one_is_not_unpacked() {
    let mut target = Target::start().await;
    // A field of 4,000 bytes goes into the table and is then named by one byte each.
    let large = [vec![0x40], hpack_string(b"x"), hpack_string("y".repeat(4_000).as_bytes())].concat();
    let start = [block(&POST_PSEUDO_HEADERS), large].concat();
    for (what, bytes) in [
        ("in one frame", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[start.clone(), vec![0xbe; 8_000]].concat())),
        (
            "in two",
            [frame(HEADERS, END_STREAM, 1, &start), frame(CONTINUATION, END_HEADERS, 1, &[0xbe; 16_000])].concat(),
        ),
    ] {
        let mut client = H2Connection::connect(target.router.scoring, &[]).await;
        client.write(&bytes).await;
        target.send_good_request().await;
        let frames = client.read_until_stream_end(1).await;
        let last = frames.last().unwrap_or_else(|| panic!("{what}: closed without a word"));
        assert_eq!((last.kind, last.error()), (GOAWAY, ENHANCE_YOUR_CALM), "{what}: {last:?}");
    }
    // A little too large is answered.
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    client.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &[start, vec![0xbe; 20]].concat())).await;
    let frames = client.read_until_stream_end(1).await;
    let body: Vec<u8> = frames.iter().filter(|f| f.kind == DATA).flat_map(|f| f.payload.clone()).collect();
    let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((document["status"].as_u64(), document["code"].as_str()), (Some(431), Some("head_too_large")));
    target.send_good_request().await;
    assert!(target.recorder.take_requests().is_empty());
}

#[tokio::test]
async fn no_more_streams_than_announced() {
    let mut target = Target::start_with("{requestTimeoutMs: 1000}", |_| ()).await;
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    // Open, with bodies that never come.
    let heads: Vec<u8> = (0..300).flat_map(|n| head(1 + 2 * n, 0, &[("content-length", "5")])).collect();
    client.write(&heads).await;
    target.send_good_request().await;
    let mut refused = 0;
    while refused < 44 {
        let frame = client.next().await.expect("the connection should live");
        refused += usize::from(frame.kind == RST_STREAM && frame.error() == 7);
    }
    drop(client);
    target.send_good_request().await;
    target.wait_until_idle().await;
    assert!(target.recorder.take_requests().iter().all(|seen| !seen.is_complete));
}
