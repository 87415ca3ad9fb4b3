//! Request lines and header fields: what is no HTTP, and what is too much of it.

use std::fmt::Write as _;

use crate::harness::KEY;
use crate::target::Http1Expectation::{self, Passed, Refused, RefusedKeptAlive};
use crate::target::{Target, canary, post};

const BAD: Http1Expectation = Refused(400, "bad_request");
const TOO_LARGE: Http1Expectation = Refused(431, "head_too_large");
const PATH: &str = "/api/v1/endpoint/my-endpoint/score";

/// A request with this first line.
fn line(line: &str) -> String {
    format!("{line}\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\r\n")
}

#[tokio::test]
async fn a_request_line_has_three_parts_and_a_version_we_speak() {
    let mut target = Target::start().await;
    for (start, expected) in [
        (format!("GET {PATH} HTTP/1.1"), Passed("")),
        (format!("get {PATH} HTTP/1.1"), Passed("")),
        (format!("M-SEARCH {PATH} HTTP/1.1"), Passed("")),
        (format!("GET {PATH}"), BAD),
        (format!("GET {PATH} HTTP/0.9"), BAD),
        (format!("GET {PATH} HTTP/1.2"), BAD),
        (format!("GET {PATH} HTTP/1.10"), BAD),
        (format!("GET {PATH} HTTP/2.0"), BAD),
        (format!("GET {PATH} HTTP/3"), BAD),
        (format!("GET {PATH} http/1.1"), BAD),
        (format!("GET {PATH} HTTP/1.1 "), BAD),
        (format!("GET {PATH} HTTP/1.1 HTTP/1.1"), BAD),
        (format!("GET {PATH} HTTP /1.1"), BAD),
        (format!("GET {PATH} XTTP/1.1"), BAD),
        (format!("GET  {PATH} HTTP/1.1"), BAD),
        (format!("GET\t{PATH} HTTP/1.1"), BAD),
        (format!("GET {PATH}\tHTTP/1.1"), BAD),
        (format!("GET {PATH}  HTTP/1.1"), BAD),
        (format!(" GET {PATH} HTTP/1.1"), BAD),
        (format!("G\0T {PATH} HTTP/1.1"), BAD),
        (format!("G(T {PATH} HTTP/1.1"), BAD),
        (format!("G\u{e9}T {PATH} HTTP/1.1"), BAD),
        (format!("GET: {PATH} HTTP/1.1"), BAD),
        (format!("{PATH} HTTP/1.1"), BAD),
        (" HTTP/1.1".to_owned(), BAD),
        ("GET".to_owned(), BAD),
        (format!("GET {PATH} x HTTP/1.1"), BAD),
        (format!("GET {PATH}\u{b}x HTTP/1.1"), BAD),
        (format!("GET {PATH}\0 HTTP/1.1"), BAD),
        (format!("GET {PATH}\u{7f} HTTP/1.1"), BAD),
        (format!("TRACE {PATH} HTTP/1.1"), RefusedKeptAlive(405, "method_not_allowed")),
    ] {
        target.assert_attack(&start, line(&start).as_bytes(), expected).await;
    }
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_closed() {
    let mut target = Target::start().await;
    let hello: &[u8] = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x5a\x1b\x22\x00\x01\x02\x13\x01\x13\x02\r\n\r\n";
    let mut noise = vec![0_u8; 4096];
    let mut state = 7_u32;
    noise.fill_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    for (what, bytes) in [
        ("TLS", hello),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        ("PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
        ("PROXY protocol 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\0\x01\0\x02"),
        ("noise", &noise),
        ("NULs", &[0; 100]),
        ("high bytes", &[0xff; 100]),
        ("a response", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("Redis", b"*1\r\n$4\r\nPING\r\n"),
    ] {
        target.assert_attack(what, bytes, BAD).await;
    }
    // Prior knowledge gone wrong: nobody knows which protocol would be understood.
    for bytes in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.0\r\nhost: x\r\n\r\n"] {
        let struck = target.send_attack(&[bytes.as_bytes(), canary().as_bytes()].concat()).await;
        assert!(struck.answers.iter().all(|(status, _)| *status == 400), "{bytes:?}: {struck:?}");
        assert!(struck.seen.is_empty(), "{bytes:?}: {struck:?}");
    }
}

#[tokio::test]
async fn header_fields_keep_to_their_characters() {
    let mut target = Target::start().await;
    for (field, expected) in [
        ("x: y\r\n", Passed("")),
        ("x:\r\n", Passed("")),
        ("x!#$%&'*+-.^_`|~1: y\r\n", Passed("")),
        ("x: \u{e4}\u{20ac}\r\n", Passed("")),
        ("x: a\tb\r\n", Passed("")),
        (": y\r\n", BAD),
        ("x\r\n", BAD),
        ("x : y\r\n", BAD),
        ("x\t: y\r\n", BAD),
        ("x y: z\r\n", BAD),
        ("x\0: y\r\n", BAD),
        ("x\u{1}: y\r\n", BAD),
        ("x\u{7f}: y\r\n", BAD),
        ("x(: y\r\n", BAD),
        ("x/: y\r\n", BAD),
        ("x@: y\r\n", BAD),
        ("x\u{e4}: y\r\n", BAD),
        ("\"x\": y\r\n", BAD),
        ("x: y\0z\r\n", BAD),
        ("x: \u{1}\r\n", BAD),
        ("x: \u{8}\r\n", BAD),
        ("x: \u{1b}[31m\r\n", BAD),
        ("x: \u{7f}\r\n", BAD),
        ("x: y\rz: 1\r\n", BAD),
        ("x: y\r\n z\r\n", BAD),
        ("x: y\r\n\tz\r\n", BAD),
        (" x: y\r\n", BAD),
    ] {
        target.assert_attack(&format!("{field:?}"), &post(field, ""), expected).await;
    }
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_in_fields() {
    let mut target = Target::start().await;
    let flood = |count: usize| {
        let mut fields = String::new();
        for number in 0..count {
            write!(fields, "x-{number}: y\r\n").unwrap();
        }
        fields
    };
    let one = |name: usize, value: usize| format!("{}: {}\r\n", "x".repeat(name), "y".repeat(value));
    for (what, fields, expected) in [
        // With `host` and `authorization`, 100 fields.
        ("as many fields as may be", flood(98), Passed("")),
        ("one more", flood(99), TOO_LARGE),
        ("five thousand", flood(5000), TOO_LARGE),
        ("the same over and over", "x: y\r\n".repeat(1000), TOO_LARGE),
        ("a large one", one(1, 60_000), Passed("")),
        ("one too large", one(1, 70_000), TOO_LARGE),
        ("one far too large", one(1, 4_000_000), TOO_LARGE),
        ("a name too large", one(70_000, 1), Http1Expectation::Refused(431, "head_too_large")),
        ("together too large", one(10, 1000).repeat(90), TOO_LARGE),
    ] {
        target.assert_attack(what, &post(&fields, ""), expected).await;
    }
}

#[tokio::test]
async fn a_huge_target_is_too_large() {
    let mut target = Target::start().await;
    for (what, start, expected) in [
        ("a long path", format!("GET {PATH}/{} HTTP/1.1", "a/".repeat(20_000)), Passed("")),
        ("a long query", format!("GET {PATH}?{} HTTP/1.1", "a=".repeat(20_000)), Passed("")),
        (
            "a long name",
            format!("GET /api/v1/endpoint/{}/score HTTP/1.1", "a".repeat(60_000)),
            RefusedKeptAlive(404, "endpoint_not_found"),
        ),
        ("a path too long", format!("GET {PATH}/{} HTTP/1.1", "a/".repeat(33_000)), TOO_LARGE),
        ("a query too long", format!("GET {PATH}?{} HTTP/1.1", "a".repeat(70_000)), TOO_LARGE),
        ("a target that never ends", format!("GET /{}", "a".repeat(1_000_000)), TOO_LARGE),
        ("a method that never ends", "G".repeat(1_000_000), TOO_LARGE),
    ] {
        target.assert_attack(what, line(&start).as_bytes(), expected).await;
    }
}
