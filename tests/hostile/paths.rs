//! Paths: whatever is written in one, the endpoint whose rules were applied is the endpoint whose model is asked.

use crate::harness::KEY;
use crate::target::{OTHER_KEY, Target};

/// What must become of a path.
enum PathExpectation {
    /// The model behind `my-endpoint` gets this target.
    Reaches(&'static str),
    /// The answer has this status.
    Refused(u16),
}
use PathExpectation::{Reaches, Refused};

/// Below `/api/v1/endpoint/`.
const PATHS: &[(&[u8], PathExpectation)] = &[
    (b"my-endpoint/score", Reaches("/score")),
    (b"MY-Endpoint/score", Reaches("/score")),
    (b"my-endpoint", Reaches("/")),
    (b"my-endpoint/", Reaches("/")),
    (b"my-endpoint?a=/../b", Reaches("/?a=/../b")),
    (b"my-endpoint/score?", Reaches("/score?")),
    (b"my-endpoint/score/", Reaches("/score/")),
    (b"my-endpoint/Score", Reaches("/Score")),
    (b"my-endpoint//score", Reaches("//score")),
    (b"my-endpoint/a%2Fb", Reaches("/a%2Fb")),
    (b"my-endpoint/a%5cb", Reaches("/a%5cb")),
    (b"my-endpoint/a;b=c/d,e", Reaches("/a;b=c/d,e")),
    (b"my-endpoint/...", Reaches("/...")),
    (b"my-endpoint/.hidden/a..b", Reaches("/.hidden/a..b")),
    // Cut by the parser of targets before any rule is applied.
    (b"my-endpoint/a#/../../other-endpoint/score", Reaches("/a")),
    // Decoded once it is no dot segment, and nobody may decode twice (RFC 3986 section 2.4).
    (b"my-endpoint/%252e%252e/other-endpoint/score", Reaches("/%252e%252e/other-endpoint/score")),
    (b"my-endpoint/%25%32%65%25%32%65/x", Reaches("/%25%32%65%25%32%65/x")),
    // Not UTF-8, and no dot for anybody who keeps to RFC 3629.
    (b"my-endpoint/%c0%ae%c0%ae/x", Reaches("/%c0%ae%c0%ae/x")),
    (b"my-endpoint/%e0%80%ae%e0%80%ae/x", Reaches("/%e0%80%ae%e0%80%ae/x")),
    (b"my-endpoint/%ef%bc%8e%ef%bc%8e/x", Reaches("/%ef%bc%8e%ef%bc%8e/x")),
    (b"my-endpoint/..", Refused(400)),
    (b"my-endpoint/.", Refused(400)),
    (b"my-endpoint/../other-endpoint/score", Refused(400)),
    (b"my-endpoint/./../other-endpoint/score", Refused(400)),
    (b"my-endpoint/a/../../other-endpoint/score", Refused(400)),
    (b"my-endpoint//../other-endpoint/score", Refused(400)),
    (b"my-endpoint/score/../../other-endpoint/score", Refused(400)),
    (b"my-endpoint/%2e%2e/other-endpoint/score", Refused(400)),
    (b"my-endpoint/%2E%2e/other-endpoint/score", Refused(400)),
    (b"my-endpoint/.%2e/other-endpoint/score", Refused(400)),
    (b"my-endpoint/%2E./other-endpoint/score", Refused(400)),
    (b"my-endpoint/%2e/x", Refused(400)),
    (b"my-endpoint/..%2fother-endpoint/score", Refused(400)),
    (b"my-endpoint/%2e%2e%2fother-endpoint%2fscore", Refused(400)),
    (b"my-endpoint/a%2F..%2F..%2Fother-endpoint/score", Refused(400)),
    (b"my-endpoint/..%5cother-endpoint/score", Refused(400)),
    (b"my-endpoint/a%5C..%5C..%5Cother-endpoint", Refused(400)),
    (b"my-endpoint/..\\other-endpoint/score", Refused(400)),
    (b"my-endpoint/..?x", Refused(400)),
    (b"my-endpoint/..#x", Refused(400)),
    (b"my-endpoint/%", Refused(400)),
    (b"my-endpoint/%2", Refused(400)),
    (b"my-endpoint/%zz", Refused(400)),
    (b"my-endpoint/%u002e%u002e/x", Refused(400)),
    (b"my-endpoint/%-1", Refused(400)),
    (b"my-endpoint/a b", Refused(400)),
    (b"my-endpoint/a\tb", Refused(400)),
    (b"my-endpoint/a\0b", Refused(400)),
    (b"my-endpoint/a\x0bb", Refused(400)),
    (b"my-endpoint/a\x1fb", Refused(400)),
    (b"my-endpoint/a\x7fb", Refused(400)),
    (b"my-endpoint/a\xffb", Refused(400)),
    (b"my-endpoint/\xc0\xae\xc0\xae/x", Refused(400)),
    (b"my-endpoint/a<b", Refused(400)),
    (b"my%2dendpoint/score", Refused(404)),
    (b"%6dy-endpoint/score", Refused(404)),
    (b"my-endpoint%00/score", Refused(404)),
    (b"my-endpoint%20/score", Refused(404)),
    (b"my-endpoint./score", Refused(404)),
    (b"my-endpoint;x/score", Refused(404)),
    (b"my-endpoint%2fscore", Refused(404)),
    (b"my-endpoint%2f..%2fother-endpoint/score", Refused(404)),
    (b"my-endpoint\\..\\other-endpoint/score", Refused(404)),
    (b"/my-endpoint/score", Refused(404)),
    (b"./my-endpoint/score", Refused(404)),
    (b"../endpoint/my-endpoint/score", Refused(404)),
    (b"%2e%2e/endpoint/my-endpoint/score", Refused(404)),
    (b"x/../my-endpoint/score", Refused(400)),
    (b"*/score", Refused(404)),
    (b"", Refused(404)),
];

/// A request with this key that asks for no second one on its connection.
fn request(prefix: &str, path: &[u8], key: &str) -> Vec<u8> {
    let rest = format!(" HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
    [b"GET ", prefix.as_bytes(), path, rest.as_bytes()].concat()
}

#[tokio::test]
async fn a_path_asks_the_model_of_the_endpoint_whose_rules_were_applied_or_none() {
    let mut target = Target::start().await;
    for prefix in ["/api/v1/endpoint/", "/api/v1/service/", "http://router/api/v1/endpoint/"] {
        for (path, must) in PATHS {
            let shown = format!("{prefix}{}", path.escape_ascii());
            let struck = target.send_attack(&request(prefix, path, KEY)).await;
            let (status, codes): (u16, &[&str]) = match must {
                Reaches(_) => (200, &[""]),
                Refused(404) => (404, &["endpoint_not_found"]),
                Refused(status) => (*status, &["bad_request"]),
            };
            assert_eq!(struck.answers.len(), 1, "{shown}: {struck:?}");
            assert_eq!(struck.answers[0].0, status, "{shown}: {struck:?}");
            assert!(codes.contains(&&*struck.answers[0].1), "{shown}: {struck:?}");
            let targets: Vec<&str> = struck.seen.iter().map(|seen| seen.target()).collect();
            match must {
                Reaches(expected) => assert_eq!(targets, [*expected], "{shown}"),
                Refused(_) => assert!(targets.is_empty(), "{shown}: {targets:?}"),
            }
            let others = target.other_recorder.take_requests();
            assert!(others.is_empty(), "{shown} with the key of another endpoint: {others:?}");
        }
    }
}

#[tokio::test]
async fn the_key_of_one_endpoint_never_opens_another_however_its_path_is_written() {
    let mut target = Target::start().await;
    for prefix in ["/api/v1/endpoint/", "/api/v1/service/"] {
        for (path, _) in PATHS {
            let shown = format!("{prefix}{}", path.escape_ascii());
            let struck = target.send_attack(&request(prefix, path, OTHER_KEY)).await;
            assert!(struck.seen.is_empty(), "{shown}: {struck:?}");
            assert!([400, 401, 404].contains(&struck.answers[0].0), "{shown}: {struck:?}");
        }
    }
    // As a check that the key is one at all.
    let struck = target.send_attack(&request("/api/v1/endpoint/", b"other-endpoint/score", OTHER_KEY)).await;
    assert_eq!((struck.answers.len(), struck.answers[0].0, target.other_recorder.take_requests().len()), (1, 200, 1));
}
