//! Tokens that the router issues itself.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use inference_router::policy::token::CLOCK_LEEWAY_SECONDS;
use serde_json::json;

use crate::harness::{Answer, KEY, Model, Router, call, document, with_timeout};
use crate::issuer::call_with_token;
use crate::signers::{Signer, unix_seconds};

fn endpoint(model: &Model) -> String {
    let deployment = format!("- {{name: blue, instances: [\"{}\"]}}", model.address);
    document("authMode: aml_token\n  traffic: {blue: 100}", &deployment)
}

struct RouterWithSigningKey {
    router: Router,
    keys: tempfile::TempDir,
    _model: Model,
}

impl RouterWithSigningKey {
    async fn start(signer: &Signer) -> Self {
        let (model, keys) = (Model::named("scored").await, tempfile::tempdir().unwrap());
        std::fs::write(keys.path().join("now.pem"), &signer.pem).unwrap();
        std::fs::write(keys.path().join("before.pem"), &signer.pem).unwrap();
        let other = endpoint(&model).replace("my-endpoint", "other-one");
        let router = Router::start_with(&[&endpoint(&model), &other], |settings| {
            settings.tokens.signing_key_file = Some(keys.path().join("now.pem"));
            settings.tokens.previous_key_files = vec![keys.path().join("before.pem")];
        });
        Self { router, keys, _model: model }
    }

    async fn request_token(&self, endpoint: &str, key: &str) -> Answer {
        let request = Request::post(format!("/api/v1/endpoint/{endpoint}/token"));
        let request = request.header("authorization", format!("Bearer {key}"));
        call(self.router.scoring, request.body(Full::<Bytes>::default()).unwrap()).await
    }
}

fn token(answer: &Answer) -> String {
    answer.json()["accessToken"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_key_gets_a_token_and_the_token_opens_its_endpoint_only() {
    for signer in [Signer::ed25519("ed"), Signer::p256("ec")] {
        let setup = RouterWithSigningKey::start(&signer).await;
        let answer = setup.request_token("My-Endpoint", KEY).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!((answer.header("content-type"), answer.header("cache-control")), ("application/json", "no-store"));
        let told = answer.json();
        assert_eq!(told["tokenType"], "Bearer");
        let (expiry, refresh) =
            (told["expiryTimeUtc"].as_u64().unwrap(), told["refreshAfterTimeUtc"].as_u64().unwrap());
        assert!(
            (3590..=3600).contains(&(expiry - unix_seconds())) && refresh < expiry && refresh > unix_seconds(),
            "{told}"
        );
        let mine = token(&answer);
        assert_eq!(call_with_token(&setup.router, &mine).await.text(), "scored");
        let theirs = token(&setup.request_token("other-one", KEY).await);
        let answer = call_with_token(&setup.router, &theirs).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "wrong_endpoint"));
        // A key is to get a token with, not to score with; a token is not to get others with.
        assert_eq!(call_with_token(&setup.router, KEY).await.code(), "malformed_token");
        assert_eq!(setup.request_token("my-endpoint", &mine).await.code(), "invalid_key");
        assert_eq!(setup.request_token("my-endpoint", "wrong").await.code(), "invalid_key");
        let get = Request::get("/api/v1/endpoint/my-endpoint/token").header("authorization", format!("Bearer {KEY}"));
        let answer = call(setup.router.scoring, get.body(Full::default()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "POST"));
        let public = setup.router.admin("/.well-known/jwks.json").await.json();
        assert_eq!(public["keys"].as_array().unwrap().len(), 1);
        assert_eq!(public["keys"][0]["use"], "sig");
        assert!(public["keys"][0]["d"].is_null() && !public["keys"][0]["x"].is_null(), "{public}");
        // Issuer and audience are those of the router: nobody else's token will do.
        let forged = Signer::ed25519("x")
            .sign(&json!({"iss": "inference-router", "aud": "my-endpoint", "exp": unix_seconds() + 60}));
        assert_eq!(call_with_token(&setup.router, &forged).await.code(), "unknown_signing_key");
        let foreign = signer.sign(&json!({"iss": "other", "aud": "my-endpoint", "exp": unix_seconds() + 60}));
        assert_eq!(call_with_token(&setup.router, &foreign).await.code(), "wrong_issuer");
    }
}

#[tokio::test]
async fn signing_keys_rotate_without_breaking_anybody() {
    let (old, new) = (Signer::ed25519("old"), Signer::p256("new"));
    let setup = RouterWithSigningKey::start(&old).await;
    let before = token(&setup.request_token("my-endpoint", KEY).await);
    std::fs::write(setup.keys.path().join("now.pem"), &new.pem).unwrap();
    with_timeout("two keys", async {
        loop {
            assert_eq!(call_with_token(&setup.router, &before).await.status, 200);
            let public = setup.router.admin("/.well-known/jwks.json").await.json();
            if public["keys"].as_array().unwrap().len() == 2 {
                return;
            }
        }
    })
    .await;
    let after = token(&setup.request_token("my-endpoint", KEY).await);
    assert_eq!(call_with_token(&setup.router, &after).await.status, 200);
    // A key that is none changes nothing.
    std::fs::write(setup.keys.path().join("now.pem"), "nonsense").unwrap();
    std::fs::write(setup.keys.path().join("before.pem"), &new.pem).unwrap();
    let refused = r#"inference_router_config_reloads_total{result="error"}"#;
    with_timeout("a refusal of the files", async { while setup.router.metric(refused).await.is_none() {} }).await;
    let problems = setup.router.admin("/readyz").await.json()["problems"].to_string();
    assert!(problems.contains("tokens.signingKeyFile") && problems.contains("now.pem"), "{problems}");
    assert_eq!(call_with_token(&setup.router, &before).await.status, 200);
    // The old key is taken away: its tokens end at once, also those that were known to be good.
    std::fs::write(setup.keys.path().join("now.pem"), &new.pem).unwrap();
    with_timeout("the end of old tokens", async {
        while call_with_token(&setup.router, &before).await.status == 200 {
            assert_eq!(call_with_token(&setup.router, &after).await.status, 200);
        }
        assert_eq!(call_with_token(&setup.router, &before).await.code(), "unknown_signing_key");
    })
    .await;
}

#[tokio::test]
async fn a_token_ends_with_its_time_also_when_it_was_known_to_be_good() {
    let signer = Signer::ed25519("k");
    let setup = RouterWithSigningKey::start(&signer).await;
    let claims = json!({"iss": "inference-router", "aud": "my-endpoint", "sub": "me", "exp": unix_seconds() + 2 - CLOCK_LEEWAY_SECONDS});
    let short = signer.sign_as(&jsonwebtoken::Header::new(signer.algorithm), &claims);
    assert_eq!(call_with_token(&setup.router, &short).await.status, 200);
    with_timeout("its end", async {
        loop {
            let answer = call_with_token(&setup.router, &short).await;
            if answer.status == 401 {
                return assert_eq!(answer.code(), "expired_token");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_without_keys_hands_out_no_tokens() {
    let signer = Signer::ed25519("k");
    let (model, keys) = (Model::named("scored").await, tempfile::tempdir().unwrap());
    std::fs::write(keys.path().join("now.pem"), &signer.pem).unwrap();
    let without = endpoint(&model).replace(&format!("  keys: {{primary: {{value: {KEY}}}}}\n"), "");
    let router = Router::start_with(&[&without], |settings| {
        settings.tokens.signing_key_file = Some(keys.path().join("now.pem"));
    });
    let setup = RouterWithSigningKey { router, keys, _model: model };
    let answer = setup.request_token("my-endpoint", KEY).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "forbidden"));
}
