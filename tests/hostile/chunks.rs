//! Chunked bodies: what ends a chunk, a body, and the patience with either.

use std::fmt::Write as _;

use crate::target::Http1Expectation::{self, Passed, Refused};
use crate::target::{Target, post};

const BAD: Http1Expectation = Refused(400, "bad_request");
const CHUNKED: &str = "transfer-encoding: chunked\r\n";

async fn assert_all(cases: &[(&str, Http1Expectation)]) {
    let mut target = Target::start().await;
    for (body, expected) in cases {
        let shown = &body[..body.len().min(60)];
        target.assert_attack(&format!("{shown:?}"), &post(CHUNKED, body), *expected).await;
    }
}

#[tokio::test]
async fn a_chunk_size_is_hexadecimal_digits() {
    assert_all(&[
        ("5\r\nhello\r\n0\r\n\r\n", Passed("hello")),
        ("05\r\nhello\r\n00000\r\n\r\n", Passed("hello")),
        ("A\r\nhellohello\r\n0\r\n\r\n", Passed("hellohello")),
        ("5 \t\r\nhello\r\n0\r\n\r\n", Passed("hello")),
        ("-5\r\nhello\r\n0\r\n\r\n", BAD),
        ("+5\r\nhello\r\n0\r\n\r\n", BAD),
        ("0x5\r\nhello\r\n0\r\n\r\n", BAD),
        (" 5\r\nhello\r\n0\r\n\r\n", BAD),
        ("5 5\r\nhello\r\n0\r\n\r\n", BAD),
        ("\r\nhello\r\n0\r\n\r\n", BAD),
        ("g\r\nhello\r\n0\r\n\r\n", BAD),
        ("5.\r\nhello\r\n0\r\n\r\n", BAD),
        ("5_0\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\0\r\nhello\r\n0\r\n\r\n", BAD),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", BAD),
        ("fffffffffffffffff\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\u{b}\r\nhello\r\n0\r\n\r\n", BAD),
    ])
    .await;
}

#[tokio::test]
async fn a_chunk_that_never_ends_is_given_up() {
    let late = Refused(408, "client_timeout");
    assert_all(&[("ffffffffffffffff\r\nhello\r\n0\r\n\r\n", late), ("7fffffffffffffff\r\nhello\r\n0\r\n\r\n", late)])
        .await;
}

#[tokio::test]
async fn chunks_and_their_data_end_with_cr_lf() {
    assert_all(&[
        ("5\nhello\r\n0\r\n\r\n", BAD),
        ("5\rhello\r\n0\r\n\r\n", BAD),
        ("5\r\nhello\n0\r\n\r\n", BAD),
        ("5\r\nhello0\r\n\r\n", BAD),
        ("5\r\nhelloworld\r\n0\r\n\r\n", BAD),
        ("3\r\nhello\r\n0\r\n\r\n", BAD),
        ("5\r\nhello\r\r\n0\r\n\r\n", BAD),
        ("5\r\nhello\r\n0\n\n", BAD),
        ("5\r\nhello\r\n0\r\nx\r\n\r\n", BAD),
    ])
    .await;
}

#[tokio::test]
async fn chunk_extensions_are_skipped_and_bounded() {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    let many = format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "y".repeat(100)).repeat(400));
    assert_all(&[
        ("5;name=value\r\nhello\r\n0;last\r\n\r\n", Passed("hello")),
        ("5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n", Passed("hello")),
        ("5;a=\"\r\nhello\r\n0\r\n\r\n", Passed("hello")),
        ("5;a\nhello\r\n0\r\n\r\n", BAD),
        ("5;a\rhello\r\n0\r\n\r\n", BAD),
        (&long, BAD),
        (&many, BAD),
    ])
    .await;
}

#[tokio::test]
async fn trailers_are_bounded_and_change_nothing_of_the_request() {
    let mut target = Target::start().await;
    let mut flood = String::new();
    for number in 0..200 {
        write!(flood, "x-{number}: y\r\n").unwrap();
    }
    let large = format!("x: {}\r\n", "y".repeat(70_000));
    for (trailers, expected) in [
        ("x: y\r\n", Passed("hello")),
        ("x : y\r\n", BAD),
        (": y\r\n", BAD),
        ("x y\r\n", BAD),
        ("x: y\0\r\n", BAD),
        (&flood, BAD),
        (&large, BAD),
        ("content-length: 3\r\n", Passed("hello")),
        ("transfer-encoding: chunked\r\n", Passed("hello")),
        ("host: evil\r\nauthorization: Bearer evil\r\n", Passed("hello")),
    ] {
        let body = format!("5\r\nhello\r\n0\r\n{trailers}\r\n");
        let announced = "trailer: x, content-length, transfer-encoding, host, authorization\r\nte: trailers\r\n";
        for fields in [CHUNKED, &format!("{CHUNKED}{announced}")] {
            let what = &trailers[..trailers.len().min(40)];
            let seen = target.assert_attack(what, &post(fields, &body), expected).await;
            for (name, _) in seen.iter().flat_map(|seen| &seen.trailers) {
                assert_eq!(name, "x", "a trailer that the model could take for a header: {seen:?}");
            }
        }
    }
}
