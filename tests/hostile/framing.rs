//! Where a request ends: every way to make two servers disagree on it.

use crate::harness::KEY;
use crate::target::Http1Expectation::{self, Passed, PassedAndClosed, Refused, RefusedKeptAlive};
use crate::target::{Target, post};

const BAD: Http1Expectation = Refused(400, "bad_request");
const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";

async fn assert_all(cases: &[(&str, &str, Http1Expectation)]) {
    let mut target = Target::start().await;
    for (fields, body, expected) in cases {
        target.assert_attack(fields, &post(fields, body), *expected).await;
    }
}

/// A body that is a request itself, for a server that finds the end of the one before it too early.
fn smuggled() -> String {
    format!("GET /api/v1/endpoint/my-endpoint/smuggled HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\r\n")
}

#[tokio::test]
async fn a_content_length_is_digits_and_one() {
    assert_all(&[
        ("content-length: 5\r\n", "hello", Passed("hello")),
        ("Content-Length:5\r\n", "hello", Passed("hello")),
        ("content-length:   5\t \r\n", "hello", Passed("hello")),
        ("content-length: 0\r\n", "", Passed("")),
        // The same twice is one (RFC 9110 section 8.6); the model gets it once.
        ("content-length: 5\r\ncontent-length: 5\r\n", "hello", Passed("hello")),
        ("content-length: 5\r\ncontent-length: 6\r\n", "hello", BAD),
        ("content-length: 6\r\ncontent-length: 5\r\n", "hello", BAD),
        ("content-length: 005\r\n", "hello", BAD),
        ("content-length: 00\r\n", "", BAD),
        ("content-length: 5, 5\r\n", "hello", BAD),
        ("content-length: 5, 6\r\n", "hello", BAD),
        ("content-length: 5,\r\n", "hello", BAD),
        ("content-length: +5\r\n", "hello", BAD),
        ("content-length: -5\r\n", "hello", BAD),
        ("content-length: -0\r\n", "", BAD),
        ("content-length: 0x5\r\n", "hello", BAD),
        ("content-length: 5.0\r\n", "hello", BAD),
        ("content-length: 5e0\r\n", "hello", BAD),
        ("content-length: 1_0\r\n", "hello", BAD),
        ("content-length: 5 5\r\n", "hello", BAD),
        ("content-length: 5;\r\n", "hello", BAD),
        ("content-length: \"5\"\r\n", "hello", BAD),
        ("content-length: \r\n", "hello", BAD),
        ("content-length: five\r\n", "hello", BAD),
        ("content-length: \u{665}\r\n", "hello", BAD),
        ("content-length: 5\u{b}\r\n", "hello", BAD),
    ])
    .await;
}

#[tokio::test]
async fn a_huge_content_length_is_neither_believed_nor_wrapped() {
    let too_large = Refused(413, "payload_too_large");
    assert_all(&[
        ("content-length: 104857601\r\n", "hello", too_large),
        ("content-length: 4294967301\r\n", "hello", too_large),
        ("content-length: 9223372036854775807\r\n", "hello", too_large),
        ("content-length: 18446744073709551613\r\n", "hello", too_large),
        // 2^64 and 2^64 + 5.
        ("content-length: 18446744073709551616\r\n", "hello", BAD),
        ("content-length: 18446744073709551621\r\n", "hello", BAD),
        ("content-length: 99999999999999999999999999999999999999999999\r\n", "hello", BAD),
    ])
    .await;
}

#[tokio::test]
async fn of_a_length_and_an_encoding_the_encoding_counts_and_nothing_follows() {
    // RFC 9112 section 6.1: such a request is answered by the encoding, and the connection is closed.
    assert_all(&[
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", CHUNKED, PassedAndClosed("hello")),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", CHUNKED, PassedAndClosed("hello")),
        ("content-length: 0\r\ntransfer-encoding: chunked\r\n", CHUNKED, PassedAndClosed("hello")),
        ("transfer-encoding: chunked\r\ncontent-length: 999999999\r\n", CHUNKED, PassedAndClosed("hello")),
        ("content-length: 3\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n", CHUNKED, PassedAndClosed("hello")),
        ("transfer-encoding: chunked\r\ncontent-length: 3\r\ncontent-length: 4\r\n", CHUNKED, PassedAndClosed("hello")),
        ("content-length: x\r\ntransfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("content-length: 3\r\ntransfer-encoding: xchunked\r\n", CHUNKED, BAD),
        ("content-length: 3\r\ntransfer-encoding: identity\r\n", CHUNKED, BAD),
    ])
    .await;
    let mut target = Target::start().await;
    let smuggled = smuggled();
    let by_length = format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", smuggled.len() + 5);
    let seen =
        target.assert_attack("CL.TE", &post(&by_length, &format!("0\r\n\r\n{smuggled}")), PassedAndClosed("")).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    let struck = target.send_attack(&post("content-length: 4\r\ntransfer-encoding: chunked\r\n", &chunk)).await;
    assert_eq!(struck.answers.len(), 1, "{struck:?}");
    assert_eq!((struck.seen.len(), &struck.seen[0].body), (1, &smuggled), "TE.CL: {struck:?}");
}

#[tokio::test]
async fn a_transfer_encoding_is_chunked_and_one() {
    assert_all(&[
        ("transfer-encoding: chunked\r\n", CHUNKED, Passed("hello")),
        ("Transfer-Encoding:Chunked\r\n", CHUNKED, Passed("hello")),
        ("transfer-encoding: \t chunked\t\r\n", CHUNKED, Passed("hello")),
        ("transfer-encoding: chunked, chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked,chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", CHUNKED, BAD),
        ("transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: xchunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunkedx\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked;q=1\r\n", CHUNKED, BAD),
        ("transfer-encoding: \"chunked\"\r\n", CHUNKED, BAD),
        ("transfer-encoding: 'chunked'\r\n", CHUNKED, BAD),
        ("transfer-encoding: \u{b}chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked\u{b}\r\n", CHUNKED, BAD),
        ("transfer-encoding: \u{c}chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked\u{85}\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked,\r\n", CHUNKED, BAD),
        ("transfer-encoding: ,chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked identity\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked, identity\r\n", CHUNKED, BAD),
        ("transfer-encoding: gzip, chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: identity\r\n", CHUNKED, BAD),
        ("transfer-encoding: gzip\r\n", CHUNKED, BAD),
        ("transfer-encoding:\r\n", CHUNKED, BAD),
        ("transfer-encoding : chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding\t: chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding\0: chunked\r\n", CHUNKED, BAD),
        (" transfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("x: y\r\n transfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding:\r\n chunked\r\n", CHUNKED, BAD),
        ("transfer-encoding: chunked\r\n , identity\r\n", CHUNKED, BAD),
        ("content-length: 5\r\n\t0\r\n", "hello", BAD),
        ("x: y\rtransfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("x: y\0\r\ntransfer-encoding: chunked\r\n", CHUNKED, BAD),
    ])
    .await;
}

#[tokio::test]
async fn http_1_0_has_no_transfer_encoding_and_no_second_request_unasked() {
    let mut target = Target::start().await;
    let head = format!("POST /api/v1/endpoint/my-endpoint/score HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n");
    for (fields, body, expected) in [
        ("transfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", CHUNKED, BAD),
        ("content-length: 5\r\n", "hello", PassedAndClosed("hello")),
        ("connection: keep-alive\r\ncontent-length: 5\r\n", "hello", Passed("hello")),
        // Without a length there is no body.
        ("", "hello", PassedAndClosed("")),
    ] {
        target.assert_attack(fields, format!("{head}{fields}\r\n{body}").as_bytes(), expected).await;
    }
}

#[tokio::test]
async fn a_request_that_is_refused_for_its_content_does_not_leave_its_body_behind() {
    let mut target = Target::start().await;
    let smuggled = smuggled();
    for (what, key, path, expected) in [
        ("a wrong key", "wrong-key-0123456789", "my-endpoint/score", RefusedKeptAlive(401, "invalid_key")),
        ("no endpoint", KEY, "no-endpoint/score", RefusedKeptAlive(404, "endpoint_not_found")),
        ("dots", KEY, "my-endpoint/../score", BAD),
    ] {
        let head = format!("POST /api/v1/endpoint/{path} HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {key}\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{smuggled}", smuggled.len());
        let seen = target.assert_attack(what, request.as_bytes(), expected).await;
        assert!(seen.iter().all(|seen| seen.target() == "/canary"), "{what}: {seen:?}");
    }
}

#[tokio::test]
async fn line_ends_are_never_seen_where_they_are_not() {
    let mut target = Target::start().await;
    let lf = String::from_utf8(post("content-length: 5\r\n", "hello")).unwrap();
    // RFC 9112 section 2.2 lets a lone LF end a line; the model gets CR LF.
    target.assert_attack("lone LF", lf.replace("\r\n", "\n").as_bytes(), Passed("hello")).await;
    target.assert_attack("lone CR", lf.replace("\r\n", "\r").as_bytes(), BAD).await;
    target.assert_attack("CR CR LF", lf.replace("\r\n", "\r\r\n").as_bytes(), BAD).await;
    target.assert_attack("LF CR", lf.replace("\r\n", "\n\r").as_bytes(), BAD).await;
    for line_end in ["\r\n", "\n", "\r\n\r\n"] {
        target.assert_attack("empty lines before", format!("{line_end}{lf}").as_bytes(), Passed("hello")).await;
    }
}
