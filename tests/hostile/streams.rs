//! HTTP/2 requests and frames that are malformed (RFC 9113): refused for themselves, or with their connection, and
//! never made a request of HTTP/1.

use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, H2, HEADERS, PADDED, PING, POST, PRIORITY,
    PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, head, settings,
};
use crate::harness::KEY;
use crate::target::Target;

/// What must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// 200, with this body at the model.
    Passed(&'static str),
    /// A problem document.
    Problem(u16, &'static str),
    /// The stream is reset; the connection lives.
    Reset,
    /// The connection is closed, with a GOAWAY.
    Gone,
    /// Either of the two: RFC 9113 section 5.4 lets a stream error be taken for one of the connection.
    ResetOrGone,
}
use Expect::{Gone, Passed, Problem, Reset, ResetOrGone};

/// What came of it.
fn came_of(frames: &[Frame]) -> Expect {
    let body: Vec<u8> = frames.iter().filter(|f| f.kind == DATA).flat_map(|f| f.payload.clone()).collect();
    match frames.last().map(|last| last.kind) {
        Some(RST_STREAM) => Reset,
        None | Some(GOAWAY) => Gone,
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
async fn expect(target: &mut Target, what: &str, bytes: &[u8], expected: Expect) {
    let mut client = H2::connect(target.router.scoring, &[]).await;
    client.write(bytes).await;
    target.good().await;
    let frames = client.until_end(1).await;
    let came = came_of(&frames);
    let same = match expected {
        Passed(_) => came == Passed(""),
        ResetOrGone => matches!(came, Reset | Gone),
        other => came == other,
    };
    assert!(same, "{what}: {expected:?} expected, but {came:?}: {frames:?}");
    if came != Gone {
        client.write(&head(101, END_STREAM, &[])).await;
        let frames = client.until_end(101).await;
        assert_eq!(came_of(&frames), Passed(""), "{what}: the connection should live, but {frames:?}");
    }
    drop(client);
    target.good().await;
    target.idle().await;
    let whole: Vec<String> = target.mine.take().into_iter().filter(|s| s.whole).map(|s| s.body).collect();
    let mut bodies: Vec<&str> = if let Passed(body) = expected { vec![body] } else { vec![] };
    bodies.extend((came != Gone).then_some(""));
    assert_eq!(whole, bodies, "{what}");
    assert!(target.other.take().is_empty(), "{what}: reached the other endpoint");
}

/// A head of these fields alone, without the key.
fn only(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, 1, &block(fields))
}

/// An ordinary head without a body, one pseudo header replaced.
fn with(name: &str, value: &str) -> Vec<u8> {
    let key = format!("Bearer {KEY}");
    let mut fields = POST.to_vec();
    fields.iter_mut().filter(|(known, _)| *known == name).for_each(|field| field.1 = value);
    fields.push(("authorization", &key));
    only(END_STREAM, &fields)
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
        expect(&mut target, &format!("{name}: {value}"), &head(1, END_STREAM, &[(name, value)]), expected).await;
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
        expect(&mut target, &what, &head(1, END_STREAM, &[(name, value)]), ResetOrGone).await;
    }
}

#[tokio::test]
async fn pseudo_headers_are_there_once_and_first() {
    let mut target = Target::start().await;
    let key = format!("Bearer {KEY}");
    let key = ("authorization", &*key);
    let [method, scheme, path, authority] = POST;
    for (what, fields, expected) in [
        ("two methods", vec![method, method, scheme, path, authority, key], ResetOrGone),
        (
            "two paths",
            vec![method, scheme, path, (":path", "/api/v1/endpoint/other-endpoint/score"), authority, key],
            ResetOrGone,
        ),
        ("two authorities", vec![method, scheme, path, authority, authority, key], ResetOrGone),
        ("two schemes", vec![method, scheme, scheme, path, authority, key], ResetOrGone),
        ("one that is late", vec![method, scheme, path, key, authority], ResetOrGone),
        ("one that is unknown", vec![method, scheme, path, authority, (":evil", "x"), key], ResetOrGone),
        ("one of a response", vec![method, scheme, path, authority, (":status", "200"), key], ResetOrGone),
        (
            "a protocol",
            vec![(":method", "CONNECT"), scheme, path, authority, (":protocol", "websocket"), key],
            ResetOrGone,
        ),
        ("no method", vec![scheme, path, authority, key], ResetOrGone),
        ("no scheme", vec![method, path, authority, key], ResetOrGone),
        ("no path", vec![method, scheme, authority, key], ResetOrGone),
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
        expect(&mut target, what, &only(END_STREAM, &fields), expected).await;
    }
}

#[tokio::test]
async fn pseudo_headers_cannot_carry_more_than_their_own() {
    let mut target = Target::start().await;
    for (name, value, expected) in [
        (":path", "/api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nx: y", ResetOrGone),
        (":path", "/api/v1/endpoint/my-endpoint/score\r\n\r\nGET /smuggled HTTP/1.1", ResetOrGone),
        (":path", "/api/v1/endpoint/my-endpoint/score x", ResetOrGone),
        (":path", "/api/v1/endpoint/my-endpoint/\0", ResetOrGone),
        (":path", "/api/v1/endpoint/my-endpoint/../other-endpoint/score", Problem(400, "bad_request")),
        (":path", "/api/v1/endpoint/my-endpoint/%2e%2e/other-endpoint/score", Problem(400, "bad_request")),
        (":path", "api/v1/endpoint/my-endpoint/score", ResetOrGone),
        (":path", "http://router/api/v1/endpoint/my-endpoint/score", ResetOrGone),
        (":path", "", ResetOrGone),
        (":path", "*", Problem(404, "endpoint_not_found")),
        (":method", "GET / HTTP/1.1\r\n", ResetOrGone),
        (":method", "G T", ResetOrGone),
        (":method", "", ResetOrGone),
        (":scheme", "http\r\nx: y", ResetOrGone),
        (":scheme", "", Passed("")),
        (":authority", "router\r\nx: y", ResetOrGone),
        (":authority", "router/path", ResetOrGone),
        (":authority", "user@router", Problem(400, "bad_request")),
        (":authority", "user:password@router", Problem(400, "bad_request")),
    ] {
        expect(&mut target, &format!("{name}: {value:?}"), &with(name, value), expected).await;
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
        expect(&mut target, &format!("{lengths:?} for {data:?}"), &bytes, expected).await;
    }
    let large = head(1, 0, &[("content-length", "100000000000")]);
    expect(&mut target, "a length too large", &large, Problem(413, "payload_too_large")).await;
    expect(&mut target, "a length without a body", &head(1, END_STREAM, &[("content-length", "5")]), Reset).await;
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
        ("upper case", trailers(END_STREAM, &[("X", "y")]), ResetOrGone),
        ("a broken line", trailers(END_STREAM, &[("x", "y\r\nz: 1")]), ResetOrGone),
        ("not the end", trailers(0, &[("x", "y")]), ResetOrGone),
        ("a length", trailers(END_STREAM, &[("content-length", "3")]), Passed("hello")),
        ("a host", trailers(END_STREAM, &[("host", "evil")]), Passed("hello")),
        ("a large one", trailers(END_STREAM, &many), Passed("hello")),
    ] {
        expect(&mut target, what, &bytes, expected).await;
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
        expect(&mut target, what, &bytes, Gone).await;
    }
}

#[tokio::test]
async fn frames_that_break_a_stream_reset_it_or_mean_nothing() {
    let mut target = Target::start().await;
    let post = head(1, 0, &[]);
    let ended = frame(DATA, END_STREAM, 1, b"hello");
    for (what, bytes, expected) in [
        ("a window update of nothing", [post.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(), ResetOrGone),
        (
            "a window over 2^31",
            [post.clone(), frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())].concat(),
            ResetOrGone,
        ),
        (
            "a frame of an unknown kind",
            [frame(0xbb, 0xff, 7, b"?"), post.clone(), ended.clone()].concat(),
            Passed("hello"),
        ),
        ("an unknown setting", [settings(&[(0xbbbb, 7)]), post.clone(), ended].concat(), Passed("hello")),
    ] {
        expect(&mut target, what, &bytes, expected).await;
    }
}

#[tokio::test]
async fn http1_inside_of_http2_is_no_request() {
    let mut target = Target::start().await;
    let mut client = H2::connect(target.router.scoring, &[]).await;
    client.write(crate::target::canary().as_bytes()).await;
    let frames = client.until_end(1).await;
    assert_eq!(came_of(&frames), Gone, "{frames:?}");
    if let Some(last) = frames.last() {
        // A frame of 4,670,804 bytes is what `GET ` says.
        assert!([PROTOCOL_ERROR, 6].contains(&last.error()), "{last:?}");
    }
    target.good().await;
    assert!(target.mine.take().is_empty());
}
