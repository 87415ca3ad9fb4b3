//! What is attacked: a router with two endpoints that have a key and a model each, and a third that a good client uses
//! all the while.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use inference_router::config::RouterSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{KEY, Model, Router, with_timeout};
use crate::recorder::{RecordedRequest, RecordingModel};

/// The key of `other-endpoint`.
pub const OTHER_KEY: &str = "other-key-0123456789abcdef";
/// A patience with clients that no honest one in these tests needs, and that a test can wait for.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Target {
    pub router: Router,
    /// Behind `my-endpoint`.
    pub recorder: RecordingModel,
    /// Behind `other-endpoint`.
    pub other_recorder: RecordingModel,
    good_client: SendRequest<Full<Bytes>>,
    _good_model: Model,
}

/// What came of an attack.
#[derive(Debug)]
pub struct AttackOutcome {
    /// Status and `code` of each answer until the connection ended.
    pub answers: Vec<(u16, String)>,
    /// What `my-endpoint`'s model saw.
    pub seen: Vec<RecordedRequest>,
}

/// What an attack by HTTP/1 must come to. Behind each is sent an ordinary request ([`canary`]) in the same write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http1Expectation {
    /// A problem document with this status and code, then the end of the connection; no model sees a whole request.
    Refused(u16, &'static str),
    /// The same, but the connection is in order and the next request on it is answered.
    RefusedKeptAlive(u16, &'static str),
    /// Understood as one request with this body; the next request on the connection is answered.
    Passed(&'static str),
    /// Understood as one request with this body; nothing more is read from this connection.
    PassedAndClosed(&'static str),
}

impl Target {
    pub async fn start() -> Self {
        Self::start_with("{}", |_| ()).await
    }

    /// The same with `requestSettings` of `my-endpoint` and other settings of the router.
    pub async fn start_with(request_settings: &str, change: impl FnOnce(&mut RouterSettings)) -> Self {
        let (mine, other) = (RecordingModel::start().await, RecordingModel::start().await);
        let good_model = Model::named("good").await;
        let document = |name: &str, auth: &str, model: &Model, settings: &str| {
            format!(
                "apiVersion: inference-router.dev/v1alpha1\nkind: OnlineEndpoint\nmetadata: {{name: {name}}}\nspec:\n  \
                 {auth}\n  traffic: {{blue: 100}}\n  deployments:\n  - {{name: blue, instances: [\"{}\"], \
                 forwardAuthorization: true, requestSettings: {settings}}}\n",
                model.address
            )
        };
        let key = |key: &str| format!("keys: {{primary: {{value: {key}}}}}");
        let documents = [
            document("my-endpoint", &key(KEY), &mine.model, request_settings),
            document("other-endpoint", &key(OTHER_KEY), &other.model, "{}"),
            document("good-endpoint", "authMode: none", &good_model, "{}"),
        ];
        let router = Router::start_with(&documents.each_ref().map(String::as_str), |settings| {
            settings.limits.header_read_timeout = CLIENT_TIMEOUT;
            settings.limits.body_idle_timeout = CLIENT_TIMEOUT;
            settings.shutdown.drain_timeout = Duration::from_millis(100);
            change(settings);
        });
        let stream = TcpStream::connect(router.scoring).await.unwrap();
        let (good, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { router, recorder: mine, other_recorder: other, good_client: good, _good_model: good_model }
    }

    /// A good client's request, on the same connection each time.
    pub async fn send_good_request(&mut self) {
        let request = Request::post("/api/v1/endpoint/good-endpoint/score").header("host", "router");
        let request = request.body(Full::from("{}")).unwrap();
        let response = with_timeout("the good client's turn", async {
            self.good_client.ready().await.unwrap();
            self.good_client.send_request(request).await.unwrap()
        })
        .await;
        assert_eq!(response.status(), 200);
        let body = with_timeout("the good client's answer", response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(body, "good");
    }

    /// Serves the good client until `attack` is over, and once more.
    pub async fn serve_good_client_during<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let mut attack = std::pin::pin!(attack);
        let mut outcome = None;
        while outcome.is_none() {
            let mut good = std::pin::pin!(self.send_good_request());
            // The good client's turn is never cut short: its connection is kept.
            loop {
                tokio::select! {
                    came = &mut attack, if outcome.is_none() => outcome = Some(came),
                    () = &mut good => break,
                }
            }
        }
        self.send_good_request().await;
        outcome.unwrap()
    }

    /// Sends `bytes` on a connection of their own, and reads to its end.
    pub async fn send_attack(&mut self, bytes: &[u8]) -> AttackOutcome {
        let mut stream = TcpStream::connect(self.router.scoring).await.unwrap();
        // A router that has closed already is a fine answer.
        let _ = with_timeout("written bytes", stream.write_all(bytes)).await;
        self.send_good_request().await;
        let mut answers = Vec::new();
        let _ = with_timeout("the end of the attacker's connection", stream.read_to_end(&mut answers)).await;
        drop(stream);
        self.send_good_request().await;
        self.wait_until_idle().await;
        AttackOutcome { answers: parse(&answers), seen: self.recorder.take_requests() }
    }

    /// Strikes with `bytes` and a canary behind them, and judges.
    pub async fn assert_attack(
        &mut self,
        what: &str,
        bytes: &[u8],
        expected: Http1Expectation,
    ) -> Vec<RecordedRequest> {
        let struck = self.send_attack(&[bytes, canary().as_bytes()].concat()).await;
        let (ok, problem) = ((200, String::new()), |status: u16, code: &str| (status, code.to_owned()));
        let complete: Vec<&RecordedRequest> = struck.seen.iter().filter(|seen| seen.is_complete).collect();
        let (answers, bodies, canaries): (_, Vec<&str>, usize) = match expected {
            Http1Expectation::Refused(status, code) => (vec![problem(status, code)], vec![], 0),
            Http1Expectation::RefusedKeptAlive(status, code) => (vec![problem(status, code), ok], vec![], 1),
            Http1Expectation::Passed(body) => (vec![ok.clone(), ok], vec![body], 1),
            Http1Expectation::PassedAndClosed(body) => (vec![ok], vec![body], 0),
        };
        assert_eq!(struck.answers, answers, "{what}: {expected:?} expected, but {struck:?}");
        let (canary, attack): (Vec<&RecordedRequest>, Vec<&RecordedRequest>) =
            complete.iter().partition(|seen| seen.target() == "/canary");
        assert_eq!(canary.len(), canaries, "{what}: {struck:?}");
        assert_eq!(attack.iter().map(|seen| seen.body.as_str()).collect::<Vec<_>>(), bodies, "{what}: {struck:?}");
        assert!(self.other_recorder.take_requests().is_empty(), "{what}: reached the other endpoint");
        struck.seen
    }

    /// Waits until no slot is taken.
    pub async fn wait_until_idle(&self) {
        self.router
            .wait_until("free slots", |all| {
                let deployments = all["endpoints"].as_array().unwrap().iter().map(|e| &e["deployments"][0]);
                deployments
                    .into_iter()
                    .all(|d| d["slots"]["busy"] == 0 && d["slots"]["draining"] == 0 && d["queue"] == 0)
            })
            .await;
    }
}

/// An ordinary request after which the connection ends.
pub fn canary() -> String {
    format!(
        "GET /api/v1/endpoint/my-endpoint/canary HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n\
         connection: close\r\n\r\n"
    )
}

/// A scoring request with the right key, its `fields` (each with its line end) and its body as given.
pub fn post(fields: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/v1/endpoint/my-endpoint/score HTTP/1.1\r\nhost: router\r\nauthorization: Bearer {KEY}\r\n{fields}\r\n\
         {body}"
    )
    .into_bytes()
}

/// Status and `code` of the answers in `bytes`, which all have a length.
fn parse(mut bytes: &[u8]) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let length = head.split("content-length: ").nth(1).map_or("0", |rest| rest.lines().next().unwrap());
        let (body, rest) = bytes[end + 4..].split_at(length.parse().unwrap());
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        assert!(status == 200 || head.contains("application/problem+json"), "no problem document: {head}");
        assert!(status == 200 || head.contains("x-request-id: "), "no request id: {head}");
        answers.push((status, document["code"].as_str().unwrap_or_default().to_owned()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "more than answers: {:?}", String::from_utf8_lossy(bytes));
    answers
}
