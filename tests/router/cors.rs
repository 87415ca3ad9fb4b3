//! Promises to browsers: `cors` of an endpoint.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;

use crate::harness::{Answer, KEY, Model, Router, call, document, full_body, unused_address};

const APP: &str = "https://app.example";

/// A document with `cors` given as YAML flow.
fn with_cors(cors: &str, address: std::net::SocketAddr) -> String {
    document(
        &format!("traffic: {{blue: 100}}\n  cors: {cors}"),
        &format!("- {{name: blue, instances: [\"{address}\"]}}"),
    )
}

async fn start_counting_model() -> (Model, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let model = Model::http(move |request: Request<_>| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { Response::new(full_body(request.method().to_string())) }
    })
    .await;
    (model, asked)
}

fn request(method: Method, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri("/api/v1/endpoint/my-endpoint/score");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

fn preflight(origin: &str, method: &str, headers: &str) -> Request<Full<Bytes>> {
    request(
        Method::OPTIONS,
        &[("origin", origin), ("access-control-request-method", method), ("access-control-request-headers", headers)],
    )
}

fn get(answer: &Answer, name: &str) -> Option<String> {
    let values: Vec<&str> = answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// The items of a list, in small letters.
fn items(answer: &Answer, name: &str) -> Vec<String> {
    get(answer, name).unwrap_or_default().split(',').map(|item| item.trim().to_ascii_lowercase()).collect()
}

fn bearer() -> String {
    format!("Bearer {KEY}")
}

#[tokio::test]
async fn a_preflight_is_answered_before_authentication_and_without_the_model() {
    let (model, asked) = start_counting_model().await;
    let cors = "{allowOrigins: [\"https://app.example\"], allowMethods: [POST, PUT], allowHeaders: [authorization, \
                x-extra], allowCredentials: true, maxAgeSeconds: 1234}";
    let router = Router::start(&[&with_cors(cors, model.address)]);
    let answer = call(router.scoring, preflight(APP, "PUT", "authorization, x-extra")).await;
    assert!(answer.status.is_success(), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), APP);
    assert!(items(&answer, "access-control-allow-methods").contains(&"put".to_owned()), "{answer:?}");
    let headers = items(&answer, "access-control-allow-headers");
    assert!(["authorization", "x-extra"].iter().all(|name| headers.contains(&(*name).to_owned())), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert_eq!(answer.header("access-control-max-age"), "1234");
    assert!(answer.body.is_empty(), "{answer:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 0, "the model was asked");
}

#[tokio::test]
async fn a_preflight_of_another_origin_gets_no_permission() {
    let (model, asked) = start_counting_model().await;
    let router = Router::start(&[&with_cors("{allowOrigins: [\"https://app.example\"]}", model.address)]);
    for origin in [
        "https://evil.example",
        "http://app.example",
        "https://app.example.evil.example",
        "https://app.example:8443",
        "null",
    ] {
        let answer = call(router.scoring, preflight(origin, "POST", "authorization")).await;
        assert_eq!(get(&answer, "access-control-allow-origin"), None, "{origin}: {answer:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "the model was asked");
}

#[tokio::test]
async fn a_preflight_is_not_granted_a_method_or_header_that_is_not_allowed() {
    let (model, _) = start_counting_model().await;
    let cors = "{allowOrigins: [\"https://app.example\"], allowMethods: [POST], allowHeaders: [authorization]}";
    let router = Router::start(&[&with_cors(cors, model.address)]);
    let answer = call(router.scoring, preflight(APP, "DELETE", "authorization")).await;
    assert!(!items(&answer, "access-control-allow-methods").contains(&"delete".to_owned()), "{answer:?}");
    let answer = call(router.scoring, preflight(APP, "POST", "authorization, x-secret")).await;
    assert!(!items(&answer, "access-control-allow-headers").contains(&"x-secret".to_owned()), "{answer:?}");
}

#[tokio::test]
async fn an_answer_to_an_allowed_origin_may_be_read_by_its_page() {
    let (model, _) = start_counting_model().await;
    let cors = "{allowOrigins: [\"https://app.example\"], exposeHeaders: [x-request-id, x-extra], \
                allowCredentials: true}";
    let router = Router::start(&[&with_cors(cors, model.address)]);
    let answer = call(router.scoring, request(Method::POST, &[("origin", APP), ("authorization", &bearer())])).await;
    assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "POST"));
    assert_eq!(answer.header("access-control-allow-origin"), APP);
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    let exposed = items(&answer, "access-control-expose-headers");
    assert!(["x-request-id", "x-extra"].iter().all(|name| exposed.contains(&(*name).to_owned())), "{answer:?}");
    assert!(items(&answer, "vary").contains(&"origin".to_owned()), "a cache would mix up origins: {answer:?}");
}

#[tokio::test]
async fn an_answer_to_another_origin_has_no_permission_but_is_answered() {
    let (model, _) = start_counting_model().await;
    let router = Router::start(&[&with_cors("{allowOrigins: [\"https://app.example\"]}", model.address)]);
    let fields = [("origin", "https://evil.example"), ("authorization", &*bearer())];
    let answer = call(router.scoring, request(Method::POST, &fields)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(get(&answer, "access-control-allow-origin"), None, "{answer:?}");
    // Nor has one to a client that is not a browser.
    let answer = call(router.scoring, request(Method::POST, &[("authorization", &bearer())])).await;
    assert_eq!(answer.status, 200);
    assert_ne!(get(&answer, "access-control-allow-origin").as_deref(), Some("*"), "{answer:?}");
}

#[tokio::test]
async fn an_error_of_the_router_may_be_read_by_an_allowed_page_only() {
    let router = Router::start(&[&with_cors("{allowOrigins: [\"https://app.example\"]}", unused_address())]);
    let bearer = bearer();
    for (fields, code) in [
        (vec![], "missing_credential"),
        (vec![("authorization", "Bearer wrong")], "invalid_key"),
        (vec![("authorization", &*bearer), ("azureml-model-deployment", "purple")], "deployment_not_found"),
        (vec![("authorization", &*bearer)], "replica_unreachable"),
    ] {
        let mut allowed = fields.clone();
        allowed.push(("origin", APP));
        let answer = call(router.scoring, request(Method::POST, &allowed)).await;
        assert_eq!(answer.code(), code);
        assert_eq!(get(&answer, "access-control-allow-origin").as_deref(), Some(APP), "{answer:?}");
        let mut other = fields;
        other.push(("origin", "https://evil.example"));
        let answer = call(router.scoring, request(Method::POST, &other)).await;
        assert_eq!(get(&answer, "access-control-allow-origin"), None, "{answer:?}");
    }
}

#[tokio::test]
async fn a_star_allows_every_origin_without_credentials() {
    let (model, _) = start_counting_model().await;
    let router = Router::start(&[&with_cors("{allowOrigins: [\"*\"]}", model.address)]);
    let origin = "https://anything.example";
    let answer = call(router.scoring, preflight(origin, "POST", "authorization")).await;
    assert!(matches!(answer.header("access-control-allow-origin"), "*" | "https://anything.example"), "{answer:?}");
    assert_eq!(get(&answer, "access-control-allow-credentials"), None);
    let answer = call(router.scoring, request(Method::POST, &[("origin", origin), ("authorization", &bearer())])).await;
    assert!(matches!(answer.header("access-control-allow-origin"), "*" | "https://anything.example"), "{answer:?}");
    assert_eq!(get(&answer, "access-control-allow-credentials"), None);
}

#[tokio::test]
async fn the_endpoints_rules_replace_those_of_its_model() {
    let model = Model::http(|_| async {
        Response::builder().header("access-control-allow-origin", "*").body(full_body("own")).unwrap()
    })
    .await;
    let router = Router::start(&[&with_cors("{allowOrigins: [\"https://app.example\"]}", model.address)]);
    for (origin, expected) in [(APP, Some(APP)), ("https://evil.example", None)] {
        let fields = [("origin", origin), ("authorization", &*bearer())];
        let answer = call(router.scoring, request(Method::POST, &fields)).await;
        assert_eq!(answer.text(), "own");
        assert_eq!(get(&answer, "access-control-allow-origin").as_deref(), expected, "{answer:?}");
    }
}

#[tokio::test]
async fn without_cors_a_preflight_is_a_request_like_any_other() {
    let (model, asked) = start_counting_model().await;
    let plain = document("traffic: {blue: 100}", &format!("- {{name: blue, instances: [\"{}\"]}}", model.address));
    for document in [plain, with_cors("{allowOrigins: []}", model.address)] {
        let router = Router::start(&[&document]);
        let answer = call(router.scoring, preflight(APP, "POST", "authorization")).await;
        assert_eq!(answer.code(), "missing_credential");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "the model was asked");
        let mut with_key = preflight(APP, "POST", "authorization");
        with_key.headers_mut().insert("authorization", bearer().parse().unwrap());
        let answer = call(router.scoring, with_key).await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "OPTIONS"));
        assert_eq!(get(&answer, "access-control-allow-origin"), None, "{answer:?}");
        assert_eq!(asked.swap(0, Ordering::SeqCst), 1);
    }
}
