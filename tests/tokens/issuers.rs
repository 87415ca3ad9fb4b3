//! Tokens of issuers, through a whole router.

use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::harness::{Model, Router, call, with_timeout};
use crate::issuer::{FakeIssuer, KeySetResponse, call_with_token};
use crate::signers::{Signer, jwk_set, unix_seconds, with_changed_claims};

fn keys(signers: &[Signer]) -> KeySetResponse {
    KeySetResponse::Keys(jwk_set(&signers.iter().map(Signer::public).collect::<Vec<_>>()))
}

#[tokio::test]
async fn tokens_of_every_kind_of_key_open_the_endpoint() {
    let signers = Signer::one_of_each_kind();
    let (model, issuer) = (Model::named("scored").await, FakeIssuer::start(keys(&signers)).await);
    let router = Router::start(&[&issuer.endpoint(&model, "")]);
    for signer in &signers {
        let token = signer.sign(&issuer.claims());
        for _ in 0..3 {
            let answer = call_with_token(&router, &token).await;
            assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "scored"), "{:?}", signer.algorithm);
        }
    }
    assert_eq!(issuer.key_fetch_count(), 1, "keys are fetched ahead, not for requests");
    let fetched = format!(r#"inference_router_key_set_fetches_total{{issuer="{}",result="ok"}}"#, issuer.url());
    assert_eq!(router.metric(&fetched).await, Some(1.0));
}

#[tokio::test]
async fn each_denial_says_what_is_wrong_and_is_counted() {
    let (model, signer, other) = (Model::named("never").await, Signer::rsa("k"), Signer::rsa("k"));
    let issuer = FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[signer.public()]))).await;
    let router = Router::start(&[&issuer.endpoint(&model, "requiredClaims: {tid: t}, scopes: [score]")]);
    let good = with_changed_claims(&issuer.claims(), json!({"tid": "t", "scp": "score"}));
    let with = |change| signer.sign(&with_changed_claims(&good, change));
    assert_eq!(call_with_token(&router, &with(json!({}))).await.status, 200);
    for (token, status, code, error) in [
        ("x".to_owned(), 401, "malformed_token", "invalid_token"),
        (other.sign(&good), 401, "invalid_token", "invalid_token"),
        (Signer::rsa("unknown").sign(&good), 401, "unknown_signing_key", "invalid_token"),
        (with(json!({"exp": unix_seconds() - 100})), 401, "expired_token", "invalid_token"),
        (with(json!({"nbf": unix_seconds() + 100})), 401, "token_not_yet_valid", "invalid_token"),
        (with(json!({"aud": "you"})), 401, "wrong_audience", "invalid_token"),
        (with(json!({"iss": "http://other"})), 401, "wrong_issuer", "invalid_token"),
        (with(json!({"tid": "u"})), 403, "missing_claim", "insufficient_scope"),
        (with(json!({"scp": "read"})), 403, "missing_claim", "insufficient_scope"),
    ] {
        let answer = call_with_token(&router, &token).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
        let challenge = answer.header("www-authenticate");
        assert!(challenge.starts_with("Bearer ") && challenge.contains(&format!("error=\"{error}\"")), "{challenge}");
        let told = answer.text();
        assert!(!told.contains("score\"") && !told.contains(&issuer.url()), "says what would be right: {told}");
        let counted = format!(r#"inference_router_auth_failures_total{{endpoint_name="my-endpoint",reason="{code}"}}"#);
        assert!(router.metric(&counted).await >= Some(1.0), "{counted}");
    }
    let answer =
        call(router.scoring, Request::post("/api/v1/endpoint/my-endpoint/score").body(Full::default()).unwrap());
    let answer = answer.await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "missing_credential"));
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"inference-router\"");
}

#[tokio::test]
async fn a_new_key_is_fetched_for_the_first_token_that_names_it_and_for_no_flood() {
    let (model, old, new) = (Model::named("scored").await, Signer::p256("old"), Signer::p256("new"));
    let issuer = FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[old.public()]))).await;
    let router = Router::start(&[&issuer.endpoint(&model, "")]);
    let before = old.sign(&issuer.claims());
    assert_eq!(call_with_token(&router, &before).await.status, 200);
    issuer.set_response(KeySetResponse::Keys(jwk_set(&[new.public()])));
    let (one, two) =
        (new.sign(&issuer.claims()), new.sign(&with_changed_claims(&issuer.claims(), json!({"sub": "other"}))));
    let (one, two) = tokio::join!(call_with_token(&router, &one), call_with_token(&router, &two));
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200));
    assert_eq!(issuer.key_fetch_count(), 2, "one flight for both");
    // The old key is gone: what it had signed is not remembered as good.
    assert_eq!(call_with_token(&router, &before).await.code(), "unknown_signing_key");
    for number in 0..20 {
        let made_up = Signer::ed25519(&format!("made-up-{number}")).sign(&issuer.claims());
        assert_eq!(call_with_token(&router, &made_up).await.code(), "unknown_signing_key");
    }
    assert_eq!(issuer.key_fetch_count(), 2, "not again so soon");
}

#[tokio::test]
async fn an_issuer_that_dies_is_not_needed_for_keys_that_are_known() {
    let (model, signer) = (Model::named("scored").await, Signer::ed25519("k"));
    let issuer = FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[signer.public()]))).await;
    let router = Router::start(&[&issuer.endpoint(&model, "")]);
    assert_eq!(call_with_token(&router, &signer.sign(&issuer.claims())).await.status, 200);
    issuer.set_response(KeySetResponse::Status(500));
    let unknown = Signer::ed25519("unknown").sign(&issuer.claims());
    assert_eq!(call_with_token(&router, &unknown).await.code(), "unknown_signing_key");
    assert_eq!(issuer.key_fetch_count(), 2);
    let another = signer.sign(&with_changed_claims(&issuer.claims(), json!({"sub": "another"})));
    assert_eq!(call_with_token(&router, &another).await.status, 200);
}

#[tokio::test]
async fn an_issuer_that_lies_at_the_start_is_asked_again_until_it_does_not() {
    let (model, signer) = (Model::named("scored").await, Signer::ed25519("k"));
    let elsewhere = FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[signer.public()]))).await;
    for lie in [
        KeySetResponse::Status(503),
        KeySetResponse::Keys("<html>".to_owned()),
        KeySetResponse::Keys(format!("{{\"keys\": [{}{}]}}", "{},".repeat(1 << 19), signer.public())),
        KeySetResponse::Redirect(format!("{}/keys", elsewhere.url())),
    ] {
        let issuer = FakeIssuer::start(lie.clone()).await;
        let router = Router::start(&[&issuer.endpoint(&model, "")]);
        issuer.wait_until_key_fetches(1).await;
        let token = signer.sign(&issuer.claims());
        let answer = call_with_token(&router, &token).await;
        let told = (answer.status.as_u16(), answer.code(), answer.header("retry-after").to_owned());
        assert_eq!(told, (503, "token_keys_unavailable".to_owned(), "5".to_owned()));
        issuer.set_response(KeySetResponse::Keys(jwk_set(&[signer.public()])));
        with_timeout("the keys", async { while call_with_token(&router, &token).await.status != 200 {} }).await;
    }
    assert_eq!(elsewhere.key_fetch_count(), 0, "a redirect is not followed");
}

#[tokio::test]
async fn a_slow_issuer_holds_up_only_whoever_needs_it() {
    let (model, signer) = (Model::named("scored").await, Signer::ed25519("k"));
    let (slow, good) = (
        FakeIssuer::start(KeySetResponse::NoResponse).await,
        FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[signer.public()]))).await,
    );
    let other = slow.endpoint(&model, "").replace("my-endpoint", "slow-one");
    let router = Router::start(&[&good.endpoint(&model, ""), &other]);
    let token = signer.sign(&slow.claims());
    let waiting = Request::post("/api/v1/endpoint/slow-one/score").header("authorization", format!("Bearer {token}"));
    let waiting = tokio::spawn(call(router.scoring, waiting.body(Full::default()).unwrap()));
    slow.wait_until_key_fetches(1).await;
    for _ in 0..10 {
        assert_eq!(call_with_token(&router, &signer.sign(&good.claims())).await.status, 200);
    }
    slow.set_response(KeySetResponse::Keys(jwk_set(&[signer.public()])));
    let answer = with_timeout("an answer", waiting).await.unwrap();
    assert_eq!(answer.status, 503, "it does not wait for ever");
}

/// The first fetch is made when the endpoint is there, whether anybody calls or not.
#[tokio::test]
async fn keys_are_fetched_ahead_of_need_and_once_for_all_endpoints() {
    let (model, signer) = (Model::named("scored").await, Signer::ed25519("k"));
    let issuer = FakeIssuer::start(KeySetResponse::Keys(jwk_set(&[signer.public()]))).await;
    let documents: Vec<String> =
        (0..20).map(|number| issuer.endpoint(&model, "").replace("my-endpoint", &format!("e-{number}"))).collect();
    let router = Router::start_with(&documents.iter().map(String::as_str).collect::<Vec<_>>(), |settings| {
        settings.workers = inference_router::config::WorkerCount::Count(4.try_into().unwrap());
    });
    issuer.wait_until_key_fetches(1).await;
    let token = signer.sign(&issuer.claims());
    for number in 0..20 {
        let request = Request::post(format!("/api/v1/endpoint/e-{number}/score"));
        let request = request.header("authorization", format!("Bearer {token}")).body(Full::default()).unwrap();
        assert_eq!(call(router.scoring, request).await.status, 200);
    }
    assert_eq!(issuer.key_fetch_count(), 1);
}
