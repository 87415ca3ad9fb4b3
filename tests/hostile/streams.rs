//! HTTP/2 requests and frames that are malformed (RFC 9113): refused for themselves, or with their connection, and
//! never made a request of HTTP/1.

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2Connection, HEADERS, PADDED, PING,
    POST_PSEUDO_HEADERS, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame,
    head, settings,
};
use crate::harness::KEY;
use crate::target::Target;

/// What must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamExpectation {
    /// 200, with this body at the model.
    Passed(&'static str),
    /// A problem document.
    Problem(u16, &'static str),
    /// The stream is reset; the connection lives.
    Reset,
    /// The connection is closed, with a GOAWAY.
    ConnectionClosed,
    /// Either of the two: RFC 9113 section 5.4 lets a stream error be taken for one of the connection.
    ResetOrConnectionClosed,
}
use StreamExpectation::{ConnectionClosed, Passed, Problem, Reset, ResetOrConnectionClosed};

/// What came of it.
fn stream_outcome(frames: &[Frame]) -> StreamExpectation {
    let body: Vec<u8> = frames.iter().filter(|f| f.kind == DATA).flat_map(|f| f.payload.clone()).collect();
    match frames.last().map(|last| last.kind) {
        Some(RST_STREAM) => Reset,
        None | Some(GOAWAY) => ConnectionClosed,
        _ if body == b"ok" => Passed(""),
        _ => {
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{frames:?}"));
            let code = document["code"].as_str().unwrap().to_owned();
            Problem(document["status"].as_u64().unwrap() as u16, code.leak())
        }
    }
}

/// Sends `bytes`, with stream 1 in them, over a connection of its own, and judges; where the connection should live, an
/// ordinary request must be answered after it.
async fn assert_stream(target: &mut Target, what: &str, bytes: &[u8], expected: StreamExpectation) {
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    client.write(bytes).await;
    target.send_good_request().await;
    let frames = client.read_until_stream_end(1).await;
    let came = stream_outcome(&frames);
    let same = match expected {
        Passed(_) => came == Passed(""),
        ResetOrConnectionClosed => matches!(came, Reset | ConnectionClosed),
        other => came == other,
    };
    assert!(same, "{what}: {expected:?} expected, but {came:?}: {frames:?}");
    if came != ConnectionClosed {
        client.write(&head(101, END_STREAM, &[])).await;
        let frames = client.read_until_stream_end(101).await;
        assert_eq!(stream_outcome(&frames), Passed(""), "{what}: the connection should live, but {frames:?}");
    }
    drop(client);
    target.send_good_request().await;
    target.wait_until_idle().await;
    let whole: Vec<String> =
        target.recorder.take_requests().into_iter().filter(|s| s.is_complete).map(|s| s.body).collect();
    let mut bodies: Vec<&str> = if let Passed(body) = expected { vec![body] } else { vec![] };
    bodies.extend((came != ConnectionClosed).then_some(""));
    assert_eq!(whole, bodies, "{what}");
    assert!(target.other_recorder.take_requests().is_empty(), "{what}: reached the other endpoint");
}

/// A head of these fields alone, without the key.
fn head_of_fields(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, 1, &block(fields))
}

/// An ordinary head without a body, one pseudo header replaced.
fn head_with_pseudo_header(name: &str, value: &str) -> Vec<u8> {
    let key = format!("Bearer {KEY}");
    let mut fields = POST_PSEUDO_HEADERS.to_vec();
    fields.iter_mut().filter(|(known, _)| *known == name).for_each(|field| field.1 = value);
    fields.push(("authorization", &key));
    head_of_fields(END_STREAM, &fields)
}

#[tokio::test]
async fn header_fields_of_the_connection_have_no_place_in_http2() {
    let mut target = Target::start().await;
    for (name, value, expected) in [
        ("x", "y", Passed("")),
        ("te", "trailers", Passed("")),
        ("te", "gzip", Reset),
        ("transfer-encoding", "chunked", Reset),
        ("transfer-encoding", "identity", Reset),
        ("connection", "close", Reset),
        ("connection", "x-forwarded-for", Reset),
        ("keep-alive", "timeout=5", Reset),
        ("proxy-connection", "keep-alive", Reset),
        ("upgrade", "websocket", Reset),
    ] {
        assert_stream(&mut target, &format!("{name}: {value}"), &head(1, END_STREAM, &[(name, value)]), expected).await;
    }
}

#[tokio::test]
async fn names_and_values_keep_to_their_characters() {
    let mut target = Target::start().await;
    for (name, value) in [
        ("X-Upper", "y"),
        ("Content-Length", "0"),
        ("x y", "z"),
        ("x:y", "z"),
        ("x\r\ny", "z"),
        ("x\0", "z"),
        ("x\u{e4}", "z"),
        ("", "z"),
        ("x", "y\r\nz: 1"),
        ("x", "y\nz: 1"),
        ("x", "y\rz"),
        ("x", "y\0z"),
        ("x", "y\u{7f}"),
        ("cookie", "a=b\r\nhost: evil"),
    ] {
        let what = format!("{name:?}: {value:?}");
        assert_stream(&mut target, &what, &head(1, END_STREAM, &[(name, value)]), ResetOrConnectionClosed).await;
    }
}

#[tokio::test]
async fn pseudo_headers_are_there_once_and_first() {
    let mut target = Target::start().await;
    let key = format!("Bearer {KEY}");
    let key = ("authorization", &*key);
    let [method, scheme, path, authority] = POST_PSEUDO_HEADERS;
    for (what, fields, expected) in [
        ("two methods", vec![method, method, scheme, path, authority, key], ResetOrConnectionClosed),
        (
            "two paths",
            vec![method, scheme, path, (":path", "/api/v1/endpoint/other-endpoint/score"), authority, key],
            ResetOrConnectionClosed,
        ),
        ("two authorities", vec![method, scheme, path, authority, authority, key], ResetOrConnectionClosed),
        ("two schemes", vec![method, scheme, scheme, path, authority, key], ResetOrConnectionClosed),
        ("one that is late", vec![method, scheme, path, key, authority], ResetOrConnectionClosed),
        ("one that is unknown", vec![method, scheme, path, authority, (":evil", "x"), key], ResetOrConnectionClosed),
        ("one of a response", vec![method, scheme, path, authority, (":status", "200"), key], ResetOrConnectionClosed),
        (
            "a protocol",
            vec![(":method", "CONNECT"), scheme, path, authority, (":protocol", "websocket"), key],
            ResetOrConnectionClosed,
        ),
        ("no method", vec![scheme, path, authority, key], ResetOrConnectionClosed),
        ("no scheme", vec![method, path, authority, key], ResetOrConnectionClosed),
        ("no path", vec![method, scheme, authority, key], ResetOrConnectionClosed),
        ("no authority and no host", vec![method, scheme, path, key], Problem(400, "bad_request")),
        ("a host instead of the authority", vec![method, scheme, path, key, ("host", "router")], Passed("")),
        ("the same host twice", vec![method, scheme, path, authority, key, ("host", "router")], Passed("")),
        ("another host", vec![method, scheme, path, authority, key, ("host", "evil")], Problem(400, "bad_request")),
        (
            "two hosts",
            vec![method, scheme, path, authority, key, ("host", "router"), ("host", "router")],
            Problem(400, "bad_request"),
        ),
        ("an odd host", vec![method, scheme, path, key, ("host", "a@b")], Problem(400, "bad_request")),
        ("a tunnel", vec![(":method", "CONNECT"), authority, key], Problem(405, "method_not_allowed")),
        ("TRACE", vec![(":method", "TRACE"), scheme, path, authority, key], Problem(405, "method_not_allowed")),
    ] {
        assert_stream(&mut target, what, &head_of_fields(END_STREAM, &fields), expected).await;
    }
}

#[tokio::test]
async fn pseudo_headers_cannot_carry_more_than_their_own() {
    let mut target = Target::start().await;
    for (name, value, expected) in [
        (":path", "/api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nx: y", ResetOrConnectionClosed),
        (":path", "/api/v1/endpoint/my-endpoint/score\r\n\r\nGET /smuggled HTTP/1.1", ResetOrConnectionClosed),
        (":path", "/api/v1/endpoint/my-endpoint/score x", ResetOrConnectionClosed),
        (":path", "/api/v1/endpoint/my-endpoint/\0", ResetOrConnectionClosed),
        (":path", "/api/v1/endpoint/my-endpoint/../other-endpoint/score", Problem(400, "bad_request")),
        (":path", "/api/v1/endpoint/my-endpoint/%2e%2e/other-endpoint/score", Problem(400, "bad_request")),
        (":path", "api/v1/endpoint/my-endpoint/score", ResetOrConnectionClosed),
        (":path", "http://router/api/v1/endpoint/my-endpoint/score", ResetOrConnectionClosed),
        (":path", "", ResetOrConnectionClosed),
        (":path", "*", Problem(404, "endpoint_not_found")),
        (":method", "GET / HTTP/1.1\r\n", ResetOrConnectionClosed),
        (":method", "G T", ResetOrConnectionClosed),
        (":method", "", ResetOrConnectionClosed),
        (":scheme", "http\r\nx: y", ResetOrConnectionClosed),
        (":scheme", "", Passed("")),
        (":authority", "router\r\nx: y", ResetOrConnectionClosed),
        (":authority", "router/path", ResetOrConnectionClosed),
        (":authority", "user@router", Problem(400, "bad_request")),
        (":authority", "user:password@router", Problem(400, "bad_request")),
    ] {
        assert_stream(&mut target, &format!("{name}: {value:?}"), &head_with_pseudo_header(name, value), expected)
            .await;
    }
}

#[tokio::test]
async fn a_content_length_is_true() {
    let mut target = Target::start().await;
    for (lengths, data, expected) in [
        (&["5"][..], &["hello"][..], Passed("hello")),
        (&["5"], &["he", "", "llo"], Passed("hello")),
        (&["005"], &["hello"], Problem(400, "bad_request")),
        (&["5", "5"], &["hello"], Problem(400, "bad_request")),
        (&["5", "6"], &["hello"], Reset),
        (&["5, 5"], &["hello"], Reset),
        (&["+5"], &["hello"], Reset),
        (&["-5"], &["hello"], Reset),
        (&["0x5"], &["hello"], Reset),
        (&[""], &["hello"], Reset),
        (&["18446744073709551621"], &["hello"], Reset),
        (&["6"], &["hello"], Reset),
        (&["4"], &["hello"], Reset),
        // (With a length of 0 the request is whole, and passed on, before the DATA that breaks it.)
        (&["4"], &["hel", "lo"], Reset),
    ] {
        let lengths: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        let mut bytes = head(1, 0, &lengths);
        for (number, part) in data.iter().enumerate() {
            let flags = if number + 1 == data.len() { END_STREAM } else { 0 };
            bytes.extend(frame(DATA, flags, 1, part.as_bytes()));
        }
        assert_stream(&mut target, &format!("{lengths:?} for {data:?}"), &bytes, expected).await;
    }
    let large = head(1, 0, &[("content-length", "100000000000")]);
    assert_stream(&mut target, "a length too large", &large, Problem(413, "payload_too_large")).await;
    assert_stream(&mut target, "a length without a body", &head(1, END_STREAM, &[("content-length", "5")]), Reset)
        .await;
}

#[tokio::test]
async fn trailers_are_fields_and_the_end() {
    let mut target = Target::start().await;
    let trailers = |flags: u8, fields: &[(&str, &str)]| {
        let announced = [("te", "trailers"), ("trailer", "x, content-length, transfer-encoding, host")];
        let trailers = frame(HEADERS, flags | END_HEADERS, 1, &block(fields));
        [head(1, 0, &announced), frame(DATA, 0, 1, b"hello"), trailers].concat()
    };
    let huge = "y".repeat(10_000);
    let many: Vec<(&str, &str)> = vec![("x", &huge); 1];
    for (what, bytes, expected) in [
        ("ordinary", trailers(END_STREAM, &[("x", "y")]), Passed("hello")),
        // The library leaves these out instead of resetting the stream.
        ("a pseudo header", trailers(END_STREAM, &[(":path", "/evil")]), Passed("hello")),
        ("a status", trailers(END_STREAM, &[(":status", "200")]), Passed("hello")),
        ("of the connection", trailers(END_STREAM, &[("connection", "close")]), Reset),
        ("an encoding", trailers(END_STREAM, &[("transfer-encoding", "chunked")]), Reset),
        ("upper case", trailers(END_STREAM, &[("X", "y")]), ResetOrConnectionClosed),
        ("a broken line", trailers(END_STREAM, &[("x", "y\r\nz: 1")]), ResetOrConnectionClosed),
        ("not the end", trailers(0, &[("x", "y")]), ResetOrConnectionClosed),
        ("a length", trailers(END_STREAM, &[("content-length", "3")]), Passed("hello")),
        ("a host", trailers(END_STREAM, &[("host", "evil")]), Passed("hello")),
        ("a large one", trailers(END_STREAM, &many), Passed("hello")),
    ] {
        assert_stream(&mut target, what, &bytes, expected).await;
    }
}

#[tokio::test]
async fn frames_that_break_the_connection_end_it() {
    let mut target = Target::start().await;
    let post = head(1, 0, &[]);
    let after = |bytes: Vec<u8>| [post.clone(), bytes].concat();
    for (what, bytes) in [
        ("DATA on an idle stream", frame(DATA, 0, 1, b"x")),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("HEADERS on stream 0", head(0, END_STREAM, &[])),
        ("HEADERS on a stream of the server", head(2, END_STREAM, &[])),
        ("a stream before the last", [head(3, 0, &[]), head(1, END_STREAM, &[])].concat()),
        ("a frame over the limit", frame(DATA, 0, 1, &[0; 16_385])),
        ("padding beyond the frame", after(frame(DATA, PADDED, 1, &[9, 0, 0]))),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ("RST_STREAM too short", after(frame(RST_STREAM, 0, 1, &[0, 0, 8]))),
        ("SETTINGS of half a pair", frame(SETTINGS, 0, 0, &[0, 4, 0])),
        ("SETTINGS on a stream", after(frame(SETTINGS, 0, 1, &[]))),
        ("an acknowledgement with content", frame(SETTINGS, ACK, 0, &[0, 4, 0, 0, 0, 0])),
        ("a window of more than 2^31", settings(&[(4, 0x8000_0000)])),
        ("a frame size under 2^14", settings(&[(5, 1)])),
        ("a push setting of 2", settings(&[(2, 2)])),
        ("PING too short", frame(PING, 0, 0, &[0; 7])),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ("a push from a client", after(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]))),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5])),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("another frame inside a head", [frame(HEADERS, 0, 1, &[]), frame(PING, 0, 0, &[0; 8])].concat()),
        (
            "another stream's CONTINUATION",
            [frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
        ),
        ("WINDOW_UPDATE of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window over 2^31", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a header block that is none", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 20])),
        ("an index that is not there", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xfe])),
        ("index 0", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80])),
        ("a table larger than allowed", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x3f, 0xe1, 0xff, 0x03])),
        ("a string longer than its block", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0, 0x7f, 0xff, 0x01])),
    ] {
        assert_stream(&mut target, what, &bytes, ConnectionClosed).await;
    }
}

#[tokio::test]
async fn frames_that_break_a_stream_reset_it_or_mean_nothing() {
    let mut target = Target::start().await;
    let post = head(1, 0, &[]);
    let ended = frame(DATA, END_STREAM, 1, b"hello");
    for (what, bytes, expected) in [
        (
            "a window update of nothing",
            [post.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            ResetOrConnectionClosed,
        ),
        (
            "a window over 2^31",
            [post.clone(), frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())].concat(),
            ResetOrConnectionClosed,
        ),
        (
            "a frame of an unknown kind",
            [frame(0xbb, 0xff, 7, b"?"), post.clone(), ended.clone()].concat(),
            Passed("hello"),
        ),
        ("an unknown setting", [settings(&[(0xbbbb, 7)]), post.clone(), ended].concat(), Passed("hello")),
    ] {
        assert_stream(&mut target, what, &bytes, expected).await;
    }
}

#[tokio::test]
async fn http1_inside_of_http2_is_no_request() {
    let mut target = Target::start().await;
    let mut client = H2Connection::connect(target.router.scoring, &[]).await;
    client.write(crate::target::canary().as_bytes()).await;
    let frames = client.read_until_stream_end(1).await;
    assert_eq!(stream_outcome(&frames), ConnectionClosed, "{frames:?}");
    if let Some(last) = frames.last() {
        // A frame of 4,670,804 bytes is what `GET ` says.
        assert!([PROTOCOL_ERROR, 6].contains(&last.error()), "{last:?}");
    }
    target.send_good_request().await;
    assert!(target.recorder.take_requests().is_empty());
}
