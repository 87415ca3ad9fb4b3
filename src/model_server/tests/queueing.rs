//! Who waits for whom, on a clock that the tests move.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::*;

const DELAY: Duration = Duration::from_millis(100);

/// When each of `count` scores that arrive together ends, in delays.
async fn completion_times(concurrency: usize, count: usize) -> Vec<u128> {
    let scorer = scoring_service(ModelServerOptions { concurrency, delay: DELAY, ..default_options() });
    let begin = Instant::now();
    let one = async || {
        assert_eq!(handle_request(&scorer, sample_request()).await.status(), 200);
        begin.elapsed().as_millis() / DELAY.as_millis()
    };
    join_all((0..count).map(|_| one())).await
}

#[tokio::test(start_paused = true)]
async fn the_excess_over_the_concurrency_waits_first_come_first_served() {
    assert_eq!(completion_times(1, 4).await, [1, 2, 3, 4]);
    assert_eq!(completion_times(2, 5).await, [1, 1, 2, 2, 3]);
    assert_eq!(completion_times(8, 5).await, [1, 1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn health_does_not_wait_for_scores() {
    let scorer = Arc::new(scoring_service(ModelServerOptions { delay: DELAY, ..default_options() }));
    let busy = tokio::spawn({
        let scorer = scorer.clone();
        async move { handle_request(&scorer, sample_request()).await.status() }
    });
    tokio::task::yield_now().await;
    let begin = Instant::now();
    assert_eq!(handle_request(&scorer, request("GET", "/", "")).await.status(), 200);
    assert_eq!((begin.elapsed(), busy.is_finished()), (Duration::ZERO, false));
    assert_eq!(busy.await.unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_does_not_free_the_slot() {
    for is_streaming in [false, true] {
        let scorer = scoring_service(ModelServerOptions { delay: DELAY, is_streaming, ..default_options() });
        let begin = Instant::now();
        // Dropped while it runs: before its head when whole, before its first event when streamed.
        let left =
            timeout(DELAY / 10, async { handle_request(&scorer, sample_request()).await.into_body().collect().await })
                .await;
        assert!(left.is_err());
        assert_eq!(read_response(handle_request(&scorer, sample_request()).await).await.0, 200);
        assert_eq!(begin.elapsed().as_millis() / 10, 2 * DELAY.as_millis() / 10, "stream: {is_streaming}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_run_excludes_the_wait_in_line() {
    let scorer = scoring_service(ModelServerOptions { delay: DELAY, ..default_options() });
    let (first, second) =
        tokio::join!(handle_request(&scorer, sample_request()), handle_request(&scorer, sample_request()));
    for answer in [first, second] {
        let (whole, decimals) = header(&answer, "x-ms-run-fn-exec-ms").split_once('.').unwrap();
        assert!((100..=101).contains(&whole.parse().unwrap()), "{whole}");
        assert_eq!(decimals.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_input_does_not_take_the_delay() {
    let scorer = scoring_service(ModelServerOptions { delay: DELAY, ..default_options() });
    let begin = Instant::now();
    assert_eq!(handle_request(&scorer, request("POST", "/score", "{}")).await.status(), 400);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stream_splits_the_delay_between_its_events_and_says_when_it_is_done() {
    let scorer = scoring_service(ModelServerOptions { delay: DELAY, is_streaming: true, ..default_options() });
    let begin = Instant::now();
    let answer = handle_request(&scorer, sample_request()).await;
    assert_eq!((begin.elapsed(), header(&answer, "content-type")), (Duration::ZERO, "text/event-stream"));
    let mut body = answer.into_body();
    let mut got = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
        got.push((begin.elapsed().as_millis() / 50, data));
    }
    let expected = [(1, "data: 11055.977245525679\n\n"), (2, "data: 4503.079536107787\n\n"), (2, "data: [DONE]\n\n")];
    assert_eq!(got, expected.map(|(time, data)| (time, data.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_failure_on_purpose_takes_as_long_as_a_success_also_when_streaming() {
    for is_streaming in [false, true] {
        let scorer =
            scoring_service(ModelServerOptions { delay: DELAY, fail_rate: 1.0, is_streaming, ..default_options() });
        let begin = Instant::now();
        assert_eq!(handle_request(&scorer, sample_request()).await.status(), 500);
        assert!(begin.elapsed() >= DELAY);
    }
}
