//! Properties of our parsers for every input. The fuzzer calls these functions with its own inputs (`fuzz/`), and
//! `corpus.rs` with the corpora.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version};
use inference_router::config::{self, WorkerCount};
use inference_router::control::documents;
use inference_router::control::index::{DesiredEndpoint, Index};
use inference_router::control::yaml;
use inference_router::model::name::Name;
use inference_router::model::problem::Problem;
use inference_router::model::validate::path::validate_uri_path as scoring_path;
use inference_router::policy::access::{Access, KeyDigest};
use inference_router::policy::identify::{EndpointPath, ModelPath, Unidentified, lookup_key, parse_endpoint_path};
use inference_router::proxy::codec::{self, BodyPiece, InvalidResponse, ResponseHead};
use inference_router::proxy::headers::{self, ForwardedInfo, PresentHeaders};
use inference_router::state::control_plane_status::ControlPlaneStatus;
use inference_router::state::gauges;
use inference_router::state::metrics::Metrics;
use inference_router::state::routing_table::PublishedTable;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::Value;

/// The path of a request, and a path in a document: the input is both.
pub fn paths(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    request_path(text);
    // As it comes out of the library's parser of targets.
    if let Ok(target) = text.parse::<Uri>() {
        request_path(target.path());
    }
    match scoring_path(text) {
        Ok(()) => {
            let parsed = PathAndQuery::try_from(text).unwrap();
            assert_eq!((parsed.as_str(), parsed.query()), (text, None), "another path would be sent");
            HeaderValue::from_str(text).unwrap();
        }
        Err(error) => assert_one_line(&error.to_string()),
    }
}

fn request_path(path: &str) {
    let called = match parse_endpoint_path(path) {
        Ok(called) => called,
        Err(Unidentified::DotSegment) => {
            return assert!(has_dot_segment(path), "refused for what it has not: {path:?}");
        }
        Err(Unidentified::Encoding) => return assert!(path.contains('%'), "refused for what it has not: {path:?}"),
        Err(Unidentified::NotFound) => return,
    };
    let EndpointPath { endpoint, model_path: asked } = called;
    assert!(!endpoint.contains('/'), "{endpoint:?}");
    let sub = match asked {
        ModelPath::Score => "/score",
        ModelPath::Swagger => "/swagger.json",
        ModelPath::Path(sub) => sub,
    };
    let family = path.find(endpoint).map_or("", |_| if path.starts_with("/api/v1/e") { "endpoint" } else { "service" });
    let whole = format!("/api/v1/{family}/{endpoint}{sub}");
    assert!(whole == path || whole == format!("{path}/"), "{path:?} is not {whole:?}");
    assert_eq!(parse_endpoint_path(&whole), Ok(called), "read again it is another");
    assert!(sub.starts_with('/') && !has_dot_segment(sub), "a model could leave {sub:?}");
    // Only what is a name finds an endpoint.
    let mut buffer = [0; 32];
    match (Name::new(endpoint), lookup_key(endpoint, &mut buffer)) {
        (Ok(name), key) => assert_eq!(key, Some(name.key())),
        (Err(_), key) => assert!(key.is_none_or(|key| Name::new(key).is_err()), "{endpoint:?} finds {key:?}"),
    }
}

/// Whether a server that decodes once could find a `.` or `..` segment.
fn has_dot_segment(path: &str) -> bool {
    let (mut decoded, bytes) = (Vec::new(), path.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        let hex = hex.filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (bytes[at], hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => (decoded.push(byte), at += 3).1,
            (byte, _) => (decoded.push(byte), at += 1).1,
        }
    }
    decoded.split(|byte| b"/\\".contains(byte)).any(|segment| segment == b"." || segment == b"..")
}

/// A request's head, as a version (`0`, `1` or `2`), a target, and a field on each line after it.
pub fn heads(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some((version, target)) = lines.next().and_then(|line| line.split_first()) else { return };
    let version = match version {
        b'0' => Version::HTTP_10,
        b'2' => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let Ok(target) = Uri::try_from(target) else { return };
    let mut fields = HeaderMap::new();
    for line in lines.take(200) {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            fields.append(name, value);
        }
    }
    response_fields(fields.clone());
    credential(&fields);
    request_fields(version, target, fields);
}

/// What concerns one connection only.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "transfer-encoding",
    "upgrade",
];
/// What the router itself says to a model; `connection` cannot take it away.
const ROUTER_HEADERS: [&str; 9] = [
    "host",
    "te",
    "expect",
    "cookie",
    "content-length",
    "x-request-id",
    "x-ms-client-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
];

/// The names in a `connection` field, in small letters.
fn named_by_connection(fields: &HeaderMap) -> HashSet<String> {
    let values = fields.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    values.map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase()).collect()
}

fn request_fields(version: Version, target: Uri, fields: HeaderMap) {
    let (mut head, ()) = Request::new(()).into_parts();
    (head.version, head.uri, head.headers) = (version, target, fields.clone());
    let notable = PresentHeaders::from_headers(&fields);
    if let Err(why) = headers::validate_request_head(&head, &notable) {
        return assert_one_line(why);
    }
    assert!(fields.get_all(HOST).iter().count() <= 1 && fields.get_all(CONTENT_LENGTH).iter().count() <= 1);
    let origin =
        ForwardedInfo { address: HeaderValue::from_static("192.0.2.1"), scheme: HeaderValue::from_static("http") };
    let id = HeaderValue::from_static("11111111-2222-4333-8444-555555555555");
    let client_id = headers::echoed_client_request_id(&fields);
    headers::prepare_upstream_request(&mut head, &notable, &origin, &id, client_id.as_ref());
    let sent = &head.headers;
    for name in HOP_BY_HOP.into_iter().chain(["expect"]) {
        assert!(!sent.contains_key(name), "{name} reaches the model: {sent:?}");
    }
    // It is replaced when it is known which replica gets the request.
    assert!(sent.get_all(HOST).iter().count() <= 1, "{sent:?}");
    assert!(sent.get_all(TE).iter().all(|te| te == "trailers"), "{sent:?}");
    assert!(!(fields.contains_key(TRANSFER_ENCODING) && sent.contains_key(CONTENT_LENGTH)), "two lengths: {sent:?}");
    assert!(!fields.contains_key(EXPECT) || !sent.contains_key(EXPECT));
    assert_eq!(sent.get_all("x-request-id").iter().collect::<Vec<_>>(), [&id]);
    let mut client_ids = sent.get_all("x-ms-client-request-id").iter();
    let clean = |id: &HeaderValue| {
        let text = id.as_bytes();
        (1..=40).contains(&text.len()) && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    assert!(client_ids.next().is_none_or(clean) && client_ids.next().is_none(), "{sent:?}");
    let last = |name: &str| {
        let values: Vec<&HeaderValue> = sent.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {sent:?}");
        values[0].as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii().to_vec()
    };
    assert_eq!((last("x-forwarded-for"), last("x-forwarded-proto")), (b"192.0.2.1".to_vec(), b"http".to_vec()));
    let named = named_by_connection(&fields);
    for name in fields
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| !ROUTER_HEADERS.contains(name) && *name != "x-forwarded-host")
    {
        let kept = fields.get_all(name).iter().eq(sent.get_all(name).iter());
        let gone = !sent.contains_key(name);
        let must_go = HOP_BY_HOP.contains(&name) || named.contains(name);
        assert!(if must_go { gone } else { kept }, "{name} of {fields:?} became {sent:?}");
    }
}

fn response_fields(mut fields: HeaderMap) {
    let (before, named) = (fields.clone(), named_by_connection(&fields));
    headers::prepare_client_response(&mut fields, http::StatusCode::OK);
    for name in before.keys().map(HeaderName::as_str) {
        let must_go = HOP_BY_HOP.contains(&name) || name == "te" || named.contains(name);
        let may_go = must_go || name == "content-length";
        let kept = before.get_all(name).iter().eq(fields.get_all(name).iter());
        assert!(kept || may_go, "{name} of {before:?} became {fields:?}");
        let protected = ROUTER_HEADERS.contains(&name) || name == "x-forwarded-host";
        assert!(!must_go || protected && name != "te" || !fields.contains_key(name), "{name} stays: {fields:?}");
    }
    let once = fields.clone();
    headers::prepare_client_response(&mut fields, http::StatusCode::OK);
    assert_eq!(fields, once, "done twice it is another");
}

/// Only the key opens, and only as a bearer token.
fn credential(fields: &HeaderMap) {
    const KEY: &str = "a-key-of-an-endpoint";
    let access = Access::Keys(vec![KeyDigest::digest_key(KEY)]);
    for value in fields.get_all("authorization") {
        let opens = access.authenticate(Some(value.as_bytes())).is_ok();
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        assert!(!opens || text.starts_with("bearer ") && text.trim_end().ends_with(KEY), "{value:?} opens");
    }
}

/// A settings file; what follows a line `%%` are variables of the environment.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (file, variables) = text.split_once("\n%%\n").unwrap_or((text, ""));
    let variables: Vec<(String, String)> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("\\n", "\n")))
        .collect();
    let parse = || config::parse(file, "router.yaml", Path::new("/etc/router"), variables.iter().cloned());
    match parse() {
        Ok(settings) => {
            let limits = &settings.limits;
            assert!((8_192..=1_048_576).contains(&limits.max_header_bytes), "{limits:?}");
            assert!(limits.max_payload_bytes > 0 && limits.max_headers > 0 && limits.max_connections > 0, "{limits:?}");
            for time in [limits.header_read_timeout, limits.body_idle_timeout, limits.keep_alive_timeout] {
                assert!((1..=3_600_000).contains(&time.as_millis()), "{limits:?}");
            }
            assert!(settings.scoring.port() == 0 || settings.scoring != settings.admin, "{settings:?}");
            assert!(settings.endpoint_files.iter().all(|file| file.is_absolute()), "{settings:?}");
            assert!(!settings.endpoint_files.is_empty(), "{settings:?}");
            assert!(!matches!(settings.workers, WorkerCount::Count(count) if count.get() > 1024), "{settings:?}");
            assert_eq!(parse().ok().as_ref(), Some(&settings), "read again they are others");
        }
        Err(rejected) => {
            assert!(!rejected.problems.is_empty(), "rejected without a word");
            assert_problems_located(&rejected.problems, &["router.yaml", "environment"]);
        }
    }
}

/// Endpoint documents, as a file has them.
pub fn endpoints(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = documents::parse(text, "endpoints.yaml");
    let documents = yaml::parse_documents(text);
    let count = documents.len();
    assert!(parsed.endpoints.len() <= count, "more endpoints than documents");
    assert!(parsed.endpoints.len() == count || !parsed.problems.is_empty(), "refused without a word");
    assert_problems_located(&parsed.problems, &["endpoints.yaml"]);
    assert_no_key_in_problems(text, documents.into_iter().flatten(), &parsed.problems);
    let (table, status, metrics) =
        (PublishedTable::default(), Arc::<ControlPlaneStatus>::default(), Arc::new(Metrics::new().unwrap()));
    let mut index = Index::new(table.clone(), metrics.clone(), status.clone(), Arc::default());
    let desired = parsed.endpoints.iter().map(|spec| DesiredEndpoint {
        spec: Arc::new(spec.clone()),
        access: Access::Open,
        connectors: Vec::new(),
    });
    index.replace_endpoints(desired.collect());
    let table = table.load();
    for spec in &parsed.endpoints {
        let endpoint = table.endpoint(spec.name.key()).unwrap_or_else(|| panic!("{} is not in the table", spec.name));
        let sum: u32 = spec.traffic.iter().map(|share| u32::from(*share)).sum();
        assert!(spec.traffic.len() == spec.deployments.len() && (sum == 0 || sum == 100), "{spec:?}");
        // Of two of one name in a file the last is in this table; the file's reader tells of it.
        if *endpoint.spec != *spec {
            continue;
        }
        let chosen = endpoint.split.choose(&mut SmallRng::seed_from_u64(7));
        assert_eq!(chosen.is_some(), sum == 100);
        assert!(chosen.is_none_or(|index| spec.traffic[index] > 0));
        for written in &spec.deployments {
            let ready = endpoint.deployment(&written.name.as_str().to_ascii_uppercase()).unwrap();
            assert_eq!(ready.name_header, written.name.as_str());
            assert_eq!(ready.scoring_path.as_str(), written.scoring_path, "another path would be sent");
            assert_eq!(ready.swagger_path.as_str(), written.swagger_path, "another path would be sent");
            assert_eq!(
                ready.host_header.as_ref().map(|host| host.as_bytes()),
                written.host.as_deref().map(str::as_bytes)
            );
            assert!(
                written.request_settings.timeout.as_millis() <= 300_000 && !written.request_settings.timeout.is_zero()
            );
        }
    }
    gauges::collect_gauges(&table, &status).unwrap();
    metrics.registry.gather();
}

/// Each problem says where it is and what is wrong, in a message that fits a line of a log.
fn assert_problems_located(problems: &[Problem], sources: &[&str]) {
    for problem in problems {
        assert!(sources.iter().any(|source| problem.source.starts_with(source)), "{problem:?}");
        assert!(!problem.message.is_empty(), "{problem:?}");
        assert_one_line(&problem.to_string());
    }
}

fn assert_one_line(text: &str) {
    assert!(!text.is_empty() && text.len() < 10_000, "{} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "breaks a line: {text:?}");
}

/// A key in a document is never repeated in what is said of the document.
fn assert_no_key_in_problems(text: &str, documents: impl Iterator<Item = Value>, problems: &[Problem]) {
    for document in documents {
        for which in ["/spec/keys/primary/value", "/spec/keys/secondary/value"] {
            let Some(key) = document.pointer(which).and_then(Value::as_str) else { continue };
            // A short text, or one that is elsewhere too, can be in a message by chance.
            if key.len() < 12 || text.matches(key).count() != 1 {
                continue;
            }
            let told = problems.iter().find(|problem| problem.to_string().contains(key));
            assert!(told.is_none(), "a key is told: {told:?}");
        }
    }
}

/// What a replica says: understood alike however it is cut, and nothing is made up.
pub fn responses(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let method = if choice % 8 == 0 { Method::HEAD } else { Method::POST };
    let at_once = read_response(&method, [data].into_iter());
    assert_eq!(at_once, read_response(&method, data.chunks(1)), "byte by byte");
    assert_eq!(at_once, read_response(&method, data.chunks(usize::from(*choice) + 2)), "in pieces");
    if let Ok(Some((head, body, over))) = at_once {
        assert!(body.len() <= data.len() && head.contains("HTTP/1."), "{head}");
        assert!(method != Method::HEAD || over && body.is_empty());
    }
}

/// Head with trailers, body, and whether it is complete. `None`: not even the head is.
type ParsedResponse = Option<(String, Vec<u8>, bool)>;

fn read_response<'a>(
    method: &Method,
    mut pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<ParsedResponse, InvalidResponse> {
    let mut input = BytesMut::new();
    let ResponseHead { parts, decoder: mut receiving, is_keep_alive: keeps_alive } = loop {
        match codec::read_head(&mut input, method)? {
            Some(head) => break head,
            None => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return Ok(None),
            },
        }
    };
    let (mut head, mut body) = (format!("{parts:?} {keeps_alive}"), Vec::new());
    loop {
        match receiving.next(&mut input)? {
            BodyPiece::Data(data) => body.extend_from_slice(&data),
            BodyPiece::Trailers(trailers) => head += &format!("{trailers:?}"),
            BodyPiece::End => return Ok(Some((head, body, true))),
            BodyPiece::NeedsInput => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return Ok(Some((head, body, receiving.is_over()))),
            },
        }
    }
}
