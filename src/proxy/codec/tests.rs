use super::*;
use http::HeaderName;

fn request(method: Method, headers: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = "/score?a=1".parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    request
}

fn written_head(request: &Request<()>, body: BodyFraming) -> String {
    let mut out = BytesMut::new();
    write_head(&mut out, request, body);
    String::from_utf8(out.to_vec()).unwrap()
}

/// The head, and everything of the body with how it ends: `bytes` come all at once, then one by one.
fn read_response(method: Method, bytes: &str) -> Result<(StatusCode, String, bool), InvalidResponse> {
    let at_once = read_in_pieces(&method, [bytes.as_bytes()].into_iter());
    let one_by_one = read_in_pieces(&method, bytes.as_bytes().chunks(1));
    assert_eq!(at_once, one_by_one, "{bytes:?}");
    at_once
}

fn read_in_pieces<'a>(
    method: &Method,
    mut pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<(StatusCode, String, bool), InvalidResponse> {
    let mut input = BytesMut::new();
    let head = loop {
        match read_head(&mut input, method)? {
            Some(head) => break head,
            None => input.extend_from_slice(pieces.next().ok_or(InvalidResponse)?),
        }
    };
    let (mut decoder, mut body) = (head.decoder, String::new());
    loop {
        match decoder.next(&mut input)? {
            BodyPiece::Data(data) => body += std::str::from_utf8(&data).unwrap(),
            BodyPiece::Trailers(trailers) => body += &format!("{trailers:?}"),
            BodyPiece::End => break,
            BodyPiece::NeedsInput => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => {
                    body += " …";
                    break;
                }
            },
        }
    }
    assert!(decoder.is_over() || body.ends_with('…'));
    Ok((head.parts.status, body, head.is_keep_alive))
}

#[test]
fn a_request_head_has_the_framing_of_its_body_and_no_other() {
    let headers = &[("host", "model"), ("content-length", "7"), ("transfer-encoding", "chunked"), ("x-a", "b")];
    let posted = request(Method::POST, headers);
    let start = "POST /score?a=1 HTTP/1.1\r\nhost: model\r\nx-a: b\r\n";
    assert_eq!(written_head(&posted, BodyFraming::Length(5)), format!("{start}content-length: 5\r\n\r\n"));
    assert_eq!(written_head(&posted, BodyFraming::Chunked), format!("{start}transfer-encoding: chunked\r\n\r\n"));
    assert_eq!(written_head(&posted, BodyFraming::Length(0)), format!("{start}content-length: 0\r\n\r\n"));
}

#[test]
fn an_empty_body_is_announced_only_where_one_is_expected() {
    let empty = |method, headers: &[_]| written_head(&request(method, headers), BodyFraming::Length(0));
    assert_eq!(empty(Method::GET, &[]), "GET /score?a=1 HTTP/1.1\r\n\r\n");
    assert_eq!(empty(Method::GET, &[("content-length", "0")]), "GET /score?a=1 HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(empty(Method::POST, &[]), "POST /score?a=1 HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
}

#[test]
fn chunks_end_with_the_trailers() {
    let mut out = BytesMut::new();
    write_chunk_size(&mut out, 255);
    let trailers = request(Method::POST, &[("x-sum", "1"), ("x-more", "2")]);
    write_last_chunk(&mut out, Some(trailers.headers()));
    assert_eq!(&out[..], b"ff\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n");
}

#[test]
fn a_body_ends_where_its_head_says() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for (head, body, expected, keeps_alive) in [
        ("content-length: 2\r\n", "ok", "ok", true),
        ("content-length: 0\r\n", "", "", true),
        ("content-length: 2\r\ncontent-length: 2\r\n", "ok", "ok", true),
        ("content-length: 3\r\n", "ok", "ok …", true),
        ("content-length: 2\r\nconnection: Close\r\n", "ok", "ok", false),
        ("content-length: 2\r\nconnection: x, close\r\n", "ok", "ok", false),
        ("", "until the end", "until the end …", false),
        ("transfer-encoding: Chunked\r\n", "2\r\nok\r\n1;x=y\r\n!\r\n0\r\n\r\n", "ok!", true),
        ("transfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", "ok{\"x-sum\": \"1\"}", true),
        ("transfer-encoding: chunked\r\ncontent-length: 9\r\n", "2\r\nok\r\n0\r\n\r\n", "ok", false),
        ("transfer-encoding: chunked\r\n", "2\r\nok\r\n", "ok …", true),
    ] {
        let read = read_response(Method::POST, &format!("{ok}{head}\r\n{body}"));
        assert_eq!(read, Ok((StatusCode::OK, expected.to_owned(), keeps_alive)), "{head:?} {body:?}");
    }
}

#[test]
fn some_responses_have_no_body_whatever_their_head_says() {
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::GET, 101)] {
        let read = read_response(method, &format!("HTTP/1.1 {status} X\r\ncontent-length: 9\r\n\r\n"));
        assert_eq!(read, Ok((StatusCode::from_u16(status).unwrap(), String::new(), status != 101)), "{status}");
    }
}

#[test]
fn interim_responses_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let read = read_response(Method::POST, &format!("{interim}HTTP/1.1 500 Oh\r\ncontent-length: 1\r\n\r\n!"));
    assert_eq!(read, Ok((StatusCode::INTERNAL_SERVER_ERROR, "!".to_owned(), true)));
}

#[test]
fn http_1_0_closes_unless_it_says_otherwise() {
    let read =
        |headers: &str| read_response(Method::POST, &format!("HTTP/1.0 200 OK\r\n{headers}content-length: 1\r\n\r\n!"));
    assert!(!read("").unwrap().2);
    assert!(read("connection: keep-alive\r\n").unwrap().2);
}

#[test]
fn what_could_be_read_in_two_ways_is_garbage() {
    for response in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n!",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx : y\r\n\r\n",
    ] {
        assert_eq!(read_response(Method::POST, response), Err(InvalidResponse), "{response:?}");
    }
}

#[test]
fn heads_and_chunk_sizes_that_do_not_end_are_given_up() {
    let mut input = BytesMut::from("HTTP/1.1 200 OK\r\nx: ");
    input.extend_from_slice(&[b'x'; MAX_HEAD_BYTES]);
    assert!(matches!(read_head(&mut input, &Method::POST), Err(InvalidResponse)));
    let mut input = BytesMut::from("1;");
    input.extend_from_slice(&[b'x'; MAX_HEAD_BYTES]);
    assert_eq!(BodyDecoder::Chunked(ChunkState::Size).next(&mut input), Err(InvalidResponse));
}
