//! Which host a request is for, and forms of targets other than a path.

use crate::harness::KEY;
use crate::target::Http1Expectation::{self, Passed, Refused, RefusedKeptAlive};
use crate::target::Target;

const BAD: Http1Expectation = Refused(400, "bad_request");
const PATH: &str = "/api/v1/endpoint/my-endpoint/score";

/// A request to this target, with these `host` fields.
fn request(version: &str, target: &str, hosts: &str) -> String {
    format!("GET {target} {version}\r\n{hosts}authorization: Bearer {KEY}\r\n\r\n")
}

#[tokio::test]
async fn a_request_names_one_host() {
    let mut target = Target::start().await;
    for (hosts, expected) in [
        ("host: router\r\n", Passed("")),
        ("HOST: router:8080\r\n", Passed("")),
        ("host: [::1]:8080\r\n", Passed("")),
        ("host: r%C3%B6uter\r\n", Passed("")),
        ("", BAD),
        ("host: \r\n", BAD),
        ("host: router\r\nhost: router\r\n", BAD),
        ("host: router\r\nHost: evil\r\n", BAD),
        ("host: user@router\r\n", BAD),
        ("host: user:password@router\r\n", BAD),
        ("host: router/path\r\n", BAD),
        ("host: router?query\r\n", BAD),
        ("host: router#fragment\r\n", BAD),
        ("host: router evil\r\n", BAD),
        ("host: router\tevil\r\n", BAD),
        ("host: router\\evil\r\n", BAD),
        ("host: router\"\r\n", BAD),
        ("host: <script>\r\n", BAD),
        ("host: http://router\r\n", BAD),
        ("host: r\u{f6}uter\r\n", BAD),
        ("host: router\0\r\n", BAD),
        ("host : router\r\n", BAD),
    ] {
        target.assert_attack(&format!("{hosts:?}"), request("HTTP/1.1", PATH, hosts).as_bytes(), expected).await;
    }
    let old = request("HTTP/1.0", PATH, "connection: keep-alive\r\n");
    target.assert_attack("HTTP/1.0 needs none", old.as_bytes(), Passed("")).await;
}

#[tokio::test]
async fn of_a_target_and_a_host_field_the_target_counts_and_it_has_no_user() {
    let mut target = Target::start().await;
    for (authority, host, expected) in [
        ("router.example", "router.example", Passed("")),
        ("router.example:8080", "evil.example", Passed("")),
        ("[::1]", "evil.example", Passed("")),
        ("user@router.example", "router.example", BAD),
        ("user:password@router.example", "router.example", BAD),
        ("@router.example", "router.example", BAD),
        ("router.example@evil", "router.example", BAD),
    ] {
        let whole = format!("http://{authority}{PATH}");
        let request = request("HTTP/1.1", &whole, &format!("host: {host}\r\n"));
        let seen = target.assert_attack(&whole, request.as_bytes(), expected).await;
        if let Some(seen) = seen.first() {
            assert_eq!((seen.target(), seen.get("x-forwarded-host")), ("/score", Some(authority)), "{seen:?}");
            assert!(!format!("{seen:?}").contains("evil"), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn other_forms_of_targets_name_no_endpoint() {
    let mut target = Target::start().await;
    let not_found = RefusedKeptAlive(404, "endpoint_not_found");
    for (method, form, expected) in [
        ("OPTIONS", "*", not_found),
        ("GET", "*", not_found),
        ("GET", "http://router", not_found),
        ("GET", "http://router/", not_found),
        ("GET", "router", not_found),
        ("GET", "router:8080", not_found),
        ("GET", "api/v1/endpoint/my-endpoint/score", BAD),
        ("GET", "?/api/v1/endpoint/my-endpoint/score", BAD),
        ("GET", "http:///api/v1/endpoint/my-endpoint/score", BAD),
        ("GET", "http:/api/v1/endpoint/my-endpoint/score", BAD),
        ("GET", "http://rou ter/api/v1/endpoint/my-endpoint/score", BAD),
        ("GET", "//router/api/v1/endpoint/my-endpoint/score", not_found),
        ("GET", "\\api\\v1\\endpoint\\my-endpoint\\score", BAD),
    ] {
        let bytes = format!("{method} {form} HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\r\n");
        target.assert_attack(form, bytes.as_bytes(), expected).await;
    }
}

#[tokio::test]
async fn nobody_gets_a_tunnel() {
    let mut target = Target::start().await;
    for form in ["router:443", PATH, "http://router/api/v1/endpoint/my-endpoint/score", "127.0.0.1:22"] {
        let bytes = format!("CONNECT {form} HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\r\n");
        let struck = target.send_attack(&[bytes.as_bytes(), crate::target::canary().as_bytes()].concat()).await;
        let refused = [(405, "method_not_allowed".to_owned()), (400, "bad_request".to_owned())];
        assert!(refused.contains(&struck.answers[0]), "{form}: {struck:?}");
        assert!(struck.seen.iter().all(|seen| seen.target() == "/canary"), "{form}: {struck:?}");
    }
    for fields in [
        "upgrade: websocket\r\nconnection: upgrade\r\n",
        "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
    ] {
        let seen = target.assert_attack(fields, &crate::target::post(fields, ""), Passed("")).await;
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(seen[0].get(name), None, "{seen:?}");
        }
    }
}
