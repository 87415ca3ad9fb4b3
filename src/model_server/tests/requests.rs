//! What is asked and what is answered, without a socket.

use std::convert::Infallible;

use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};

use super::*;
use crate::model_server::handler::MAX_BODY_BYTES;

#[tokio::test]
async fn the_sample_request_gives_the_sample_answer_to_the_byte() {
    assert_eq!(call_service("POST", "/score", SAMPLE_REQUEST_BODY).await, (200, SAMPLE_RESPONSE_BODY.into()));
}

#[test]
fn the_model_is_read_to_the_last_bit() {
    // serde_json's default reader of floats may be one unit off in the last place; not for these numbers.
    let written = include_str!("../diabetes-regression.json");
    let model: Value = serde_json::from_str(written).unwrap();
    let numbers = model["coefficients"].as_array().unwrap().iter().chain([&model["intercept"]]);
    for number in numbers {
        assert!(written.contains(&number.to_string()), "{number} is not in the file");
    }
}

#[tokio::test]
async fn a_get_scores_its_query_string() {
    let plain = "/score?x=1&data=[[1,2,3,4,5,6,7,8,9,10],[10,9,8,7,6,5,4,3,2,1]]";
    assert_eq!(call_service("GET", plain, "").await, (200, SAMPLE_RESPONSE_BODY.into()));
    let encoded = "/score?data=%5b%5B1%2c+2,3,4,5,6,7,8,9,10]%2C%20[10,9,8,7,6,5,4,3,2,1]%5D";
    assert_eq!(call_service("GET", encoded, "").await, (200, SAMPLE_RESPONSE_BODY.into()));
}

#[tokio::test]
async fn bad_input_is_400_and_says_what_is_wrong_where() {
    let ten = "[1,2,3,4,5,6,7,8,9,10]";
    for (body, told) in [
        (format!(r#"{{"data": [{ten}, [1,2,3]]}}"#), "data[1]: expected 10 numbers, found 3 at line 1"),
        (format!(r#"{{"data": [[1,2,3,4,5,6,7,8,9,10,11,12], {ten}]}}"#), "data[0]: expected 10 numbers, found 12"),
        (format!(r#"{{"data": [{ten}, [1,2,"x",4,5,6,7,8,9,10]]}}"#), "data[1][2]: invalid type: string \"x\""),
        (r#"{"data": [7]}"#.into(), "data[0]: invalid type: integer `7`, expected a row of 10 numbers"),
        (r#"{"data": []}"#.into(), "data: expected at least one row of 10 numbers"),
        (r#"{"rows": []}"#.into(), "missing field `data`"),
        (format!("[[{ten}]]"), r#"expected a JSON object {"data": [[10 numbers], ...]}"#),
        (format!(r#"{{"data": [{ten}]}} more"#), "trailing characters"),
        (format!(r#"{{"data": [{ten}"#), "data: EOF while parsing a list"),
        (String::new(), "EOF while parsing"),
        (r#"{"data": [[1e308,1e308,1e308,1,1,1,1,1,1e308,1]]}"#.into(), "data[0]: the numbers are too large"),
    ] {
        let (status, answer) = call_service("POST", "/score", &body).await;
        let message = serde_json::from_str::<Value>(&answer).unwrap()["message"].as_str().unwrap().to_owned();
        assert!(status == 400 && message.starts_with(told), "{body}\n{status} {message}");
    }
    for (target, told) in
        [("/score", "expected ?data="), ("/score?data=[[1]]", "data[0]: expected 10 numbers, found 1")]
    {
        let (status, answer) = call_service("GET", target, "").await;
        assert!(status == 400 && answer.contains(told), "{target}\n{status} {answer}");
    }
}

#[tokio::test]
async fn an_error_does_not_echo_megabytes() {
    let (status, answer) = call_service("POST", "/score", &format!(r#"{{"data": "{}"}}"#, "é".repeat(100_000))).await;
    assert!(status == 400 && answer.len() < 1_000, "{status}, {} bytes", answer.len());
}

#[tokio::test]
async fn health_is_text() {
    let answer = handle_request(&scoring_service(default_options()), request("GET", "/", "")).await;
    assert!(header(&answer, "content-type").starts_with("text/plain"));
    assert_eq!(read_response(answer).await, (200, "Healthy".into()));
}

#[tokio::test]
async fn other_paths_are_404_and_other_methods_405() {
    for target in ["/nothing", "/score/", "/swagger.json/x"] {
        let (status, body) = call_service("GET", target, "").await;
        assert!(status == 404 && body.starts_with(r#"{"message":"#), "{target}: {status} {body}");
    }
    for (method, target, allowed) in
        [("PUT", "/score", "GET, POST"), ("POST", "/", "GET, HEAD"), ("DELETE", "/swagger.json", "GET, HEAD")]
    {
        let answer = handle_request(&scoring_service(default_options()), request(method, target, "")).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "allow")), (405, allowed), "{method} {target}");
    }
}

#[tokio::test]
async fn a_body_over_100_mb_is_413_announced_or_not() {
    let megabyte = Bytes::from(vec![b' '; 1024 * 1024]);
    let announced = Full::new(Bytes::from(vec![b' '; MAX_BODY_BYTES + 1]));
    let answer_to_announced =
        handle_request(&scoring_service(default_options()), Request::post("/score").body(announced).unwrap()).await;
    assert_eq!(header(&answer_to_announced, "x-ms-run-function-failed"), "False");
    assert_eq!(read_response(answer_to_announced).await.0, 413);
    let frames = std::iter::repeat_n(megabyte, 101).map(|part| Ok::<_, Infallible>(Frame::data(part)));
    let unannounced = Request::post("/score").body(StreamBody::new(stream::iter(frames))).unwrap();
    assert_eq!(read_response(handle_request(&scoring_service(default_options()), unannounced).await).await.0, 413);
}

#[tokio::test]
async fn an_id_over_100_characters_is_431() {
    for name in ["x-request-id", "x-ms-request-id", "x-ms-client-request-id"] {
        for (length, expected) in [(100, 200), (101, 431)] {
            let mut request = request("GET", "/", "");
            request.headers_mut().insert(name, "a".repeat(length).parse().unwrap());
            let (status, body) =
                read_response(handle_request(&scoring_service(default_options()), request).await).await;
            assert_eq!(status, expected, "{name}, {length}: {body}");
            assert_eq!(body.contains(name), status == 431, "{body}");
        }
    }
}

#[tokio::test]
async fn a_score_carries_the_headers_of_azures_server() {
    let scorer = scoring_service(ModelServerOptions { model_name: Some("blue".into()), ..default_options() });
    let mut asked = sample_request();
    asked.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    asked.headers_mut().insert("x-ms-client-request-id", "theirs".parse().unwrap());
    let got = handle_request(&scorer, asked).await;
    for (name, value) in [
        ("x-request-id", "mine"),
        ("x-ms-request-id", "mine"),
        ("x-ms-client-request-id", "theirs"),
        ("x-ms-run-function-failed", "False"),
        ("x-ms-server-version", concat!("inference-router-model-server/", env!("CARGO_PKG_VERSION"))),
        ("x-model-name", "blue"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(header(&got, name), value, "{name}");
    }
}

#[tokio::test]
async fn a_request_without_an_id_gets_a_new_uuid_each_time() {
    let scorer = scoring_service(default_options());
    let (one, two) = (handle_request(&scorer, sample_request()).await, handle_request(&scorer, sample_request()).await);
    let id = header(&one, "x-request-id");
    assert_eq!(id, header(&one, "x-ms-request-id"));
    assert_ne!(id, header(&two, "x-request-id"));
    assert!(!one.headers().contains_key("x-ms-client-request-id"));
    let shape: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(shape, [8, 4, 4, 4, 12], "{id}");
    assert_eq!(&id[14..15], "4", "{id}");
    assert!("89ab".contains(&id[19..20]), "{id}");
}

#[tokio::test]
async fn a_failure_on_purpose_is_500_and_says_so() {
    let got =
        handle_request(&scoring_service(ModelServerOptions { fail_rate: 1.0, ..default_options() }), sample_request())
            .await;
    assert_eq!(header(&got, "x-ms-run-function-failed"), "True");
    let (status, body) = read_response(got).await;
    assert!(status == 500 && body.contains("on purpose"), "{status} {body}");
}

#[tokio::test]
async fn a_third_of_the_scores_fails_when_asked_to() {
    let scorer = scoring_service(ModelServerOptions { fail_rate: 1.0 / 3.0, ..default_options() });
    let mut failed = 0;
    for _ in 0..1_000 {
        failed += u32::from(handle_request(&scorer, sample_request()).await.status().is_server_error());
    }
    // Twelve standard deviations wide.
    assert!((150..=520).contains(&failed), "{failed}");
}

#[tokio::test]
async fn the_swagger_document_comes_in_three_versions_and_every_reference_resolves() {
    for (query, field, version) in [
        ("", "swagger", "2.0"),
        ("?version=2", "swagger", "2.0"),
        ("?version=3", "openapi", "3.0.3"),
        ("?version=3.1", "openapi", "3.1.0"),
    ] {
        for is_streaming in [false, true] {
            let scorer = scoring_service(ModelServerOptions { is_streaming, ..default_options() });
            let (status, body) =
                read_response(handle_request(&scorer, request("GET", &format!("/swagger.json{query}"), "")).await)
                    .await;
            let document: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, &document[field]), (200, &json!(version)), "{query}");
            assert!(document["paths"]["/score"]["post"].is_object() && document["paths"]["/"]["get"].is_object());
            assert_eq!(body.contains("text/event-stream"), is_streaming);
            for reference in body.split(r##""$ref":"#"##).skip(1) {
                let pointer = reference.split('"').next().unwrap();
                assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
            }
        }
    }
    assert_eq!(call_service("GET", "/swagger.json?version=4", "").await.0, 404);
}

#[tokio::test]
async fn options_out_of_range_are_refused() {
    for bad in [
        ModelServerOptions { concurrency: 0, ..default_options() },
        ModelServerOptions { fail_rate: 1.1, ..default_options() },
        ModelServerOptions { fail_rate: f64::NAN, ..default_options() },
        ModelServerOptions { model_name: Some("a\nb".into()), ..default_options() },
    ] {
        assert_eq!(SampleModelServer::bind(bad).await.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}
