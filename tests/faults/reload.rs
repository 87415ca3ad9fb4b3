//! The endpoint's document, changed continuously.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::model::Replica;
use crate::program::{Program, deployment, endpoint};

/// The interval between changes.
const PACE: Duration = Duration::from_millis(50);
const CHANGES: usize = 60;

/// Promise: no request fails by a reload; each change takes effect.
#[tokio::test]
async fn a_reload_every_fifty_milliseconds_fails_nothing_and_leaves_nothing_behind() {
    let takes = Duration::from_millis(2);
    let replicas =
        [Replica::echo("blue", takes).await, Replica::echo("blue", takes).await, Replica::echo("blue", takes).await];
    let all: Vec<&Replica> = replicas.iter().collect();
    let green = Replica::echo("green", takes).await;
    // Replicas come and go, the cap changes, a second deployment comes and goes; the longest queue is the change's number.
    let version = |number: usize| {
        let blue = [&all[..2], &all[1..], &all[2..], &all[..]][number % 4];
        let settings = |cap| {
            format!("maxConcurrentRequestsPerInstance: {cap}, maxQueueWaitMs: 20000, maxQueueLength: {}", 1000 + number)
        };
        let mut deployments = vec![deployment("blue", blue, &settings(1 + number % 3))];
        if number.is_multiple_of(2) {
            deployments.push(deployment("green", &[&green], &settings(1)));
        }
        endpoint(&deployments)
    };
    let mut router = Program::start(version(0), "").await;
    let file = router.document();
    let write = |number: usize| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, version(number)).unwrap();
        std::fs::rename(&beside, &file).unwrap();
    };
    let is_there = |number: usize| move |all: &[Value]| all[0]["requestSettings"]["maxQueueLength"] == 1000 + number;
    // As many changes as follow, so that what they leave for good is there before.
    for number in 1..8 {
        write(number);
        router.wait_until("a change", is_there(number)).await;
    }
    let before = router.warm_up(&all).await;
    let load = router.load();
    let mut pace = tokio::time::interval(PACE);
    let mut slowest = Duration::ZERO;
    for number in 8..8 + CHANGES {
        pace.tick().await;
        let written = Instant::now();
        write(number);
        if number % 10 == 0 {
            router.wait_until("a change", is_there(number)).await;
            slowest = slowest.max(written.elapsed());
        }
    }
    // The version that was there at the start, but for its number.
    write(8 * 1000);
    router.wait_until("the last change", is_there(8 * 1000)).await;
    println!("  {CHANGES} changes, the slowest of those looked at took effect after {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(router.metric("config_reloads_total", &["error"]).await, 0.0);
    router.assert_recovers(load, &[], &before, &all).await;
}
