use super::*;

fn header_map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[test]
fn hop_by_hop_headers_go_also_those_that_connection_names() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "close, X-Secret"),
        ("connection", "content-length"),
        ("x-secret", "1"),
        ("content-length", "5"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("upgrade", "websocket"),
        ("transfer-encoding", "chunked"),
        ("proxy-authorization", "Basic eA=="),
        ("x-kept", "1"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let present = PresentHeaders::from_headers(&headers);
    strip_hop_by_hop(&mut headers, &present);
    assert_eq!(headers, header_map(&[("content-length", "5"), ("x-kept", "1")]));
}

#[test]
fn a_client_request_id_is_echoed_only_when_clean_and_cut() {
    let id = |value: &'static str| echoed_client_request_id(&header_map(&[("x-ms-client-request-id", value)]));
    assert_eq!(id("abc-DEF_1").unwrap(), "abc-DEF_1");
    assert_eq!(id("0123456789012345678901234567890123456789tail").unwrap().len(), 40);
    for bad in ["", "a b", "a\tb", "<script>", "a:b"] {
        assert_eq!(id(bad), None, "{bad}");
    }
}

#[test]
fn durations_are_milliseconds_with_three_decimals() {
    for (micros, text) in [(0, "0.000"), (7, "0.007"), (1_000, "1.000"), (12_345, "12.345"), (98_765_432, "98765.432")]
    {
        let mut written = BytesMut::new();
        write_milliseconds(&mut written, Duration::from_micros(micros));
        assert_eq!(written, text);
    }
}

#[test]
fn forwarding_headers_grow() {
    let mut headers = header_map(&[("x-forwarded-for", "10.0.0.1")]);
    append_list_value(&mut headers, FORWARDED_FOR, HeaderValue::from_static("10.0.0.2"));
    assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 10.0.0.2");
}

#[test]
fn trailers_are_asked_for_only_if_the_client_does() {
    assert!(accepts_trailers(&header_map(&[("te", "gzip;q=0.5, Trailers")])));
    assert!(!accepts_trailers(&header_map(&[("te", "gzip")])));
}
