//! A token issuer, valid or faulty, and an endpoint that trusts it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::{Answer, Model, Router, call, full_body, with_timeout};
use crate::signers::unix_seconds;

/// What an issuer answers when it is asked for its keys.
#[derive(Debug, Clone)]
pub enum KeySetResponse {
    Keys(String),
    Status(u16),
    Redirect(String),
    /// Never.
    NoResponse,
}

/// An issuer over plain HTTP.
pub struct FakeIssuer {
    pub address: SocketAddr,
    response: Arc<Mutex<KeySetResponse>>,
    key_fetches: Arc<AtomicUsize>,
    _server: Model,
}

impl FakeIssuer {
    pub async fn start(says: KeySetResponse) -> Self {
        let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(AtomicUsize::new(0)));
        let (now, count) = (says.clone(), asked.clone());
        let server = Model::http(move |request| {
            let (says, host) = (now.lock().unwrap().clone(), request.headers()["host"].to_str().unwrap().to_owned());
            if request.uri().path() == "/keys" {
                count.fetch_add(1, Ordering::SeqCst);
            }
            async move {
                if request.uri().path() == "/.well-known/openid-configuration" {
                    let url = format!("http://{host}");
                    return Response::new(full_body(
                        json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string(),
                    ));
                }
                match says {
                    KeySetResponse::Keys(keys) => Response::new(full_body(keys)),
                    KeySetResponse::Status(status) => Response::builder().status(status).body(full_body("")).unwrap(),
                    KeySetResponse::Redirect(to) => {
                        Response::builder().status(302).header("location", to).body(full_body("")).unwrap()
                    }
                    KeySetResponse::NoResponse => std::future::pending().await,
                }
            }
        })
        .await;
        Self { address: server.address, response: says, key_fetches: asked, _server: server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_response(&self, says: KeySetResponse) {
        *self.response.lock().unwrap() = says;
    }

    /// How often it was asked for its keys.
    pub fn key_fetch_count(&self) -> usize {
        self.key_fetches.load(Ordering::SeqCst)
    }

    /// Waits until it has been asked so often.
    pub async fn wait_until_key_fetches(&self, times: usize) {
        with_timeout("the keys to be fetched", async {
            while self.key_fetch_count() < times {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// What a good token of it says.
    pub fn claims(&self) -> Value {
        json!({"iss": self.url(), "aud": "me", "sub": "somebody", "exp": unix_seconds() + 600})
    }

    /// The endpoint `my-endpoint` that trusts it; `rules` as in `jwt.issuers`.
    pub fn endpoint(&self, model: &Model, rules: &str) -> String {
        format!(
            "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: my-endpoint}}\nspec:\n  \
             authMode: aad_token\n  jwt: {{issuers: [{{issuer: \"{}\", audiences: [me], allowHttp: true, {rules}}}]}}\n  \
             traffic: {{blue: 100}}\n  deployments:\n  - {{name: blue, instances: [\"{}\"]}}\n",
            self.url(),
            model.address
        )
    }
}

/// Calls `my-endpoint` with a token.
pub async fn call_with_token(router: &Router, token: &str) -> Answer {
    let request =
        Request::post("/api/v1/endpoint/my-endpoint/score").header("authorization", format!("Bearer {token}"));
    call(router.scoring, request.body(Full::<Bytes>::from("{}")).unwrap()).await
}
