//! Documents that the validator accepts are served exactly as written; problems of the others name the place and the
//! reason.

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use inference_router::control::document_files::DocumentFiles;
use inference_router::control::documents;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::generate::Generator;
use crate::harness::{Model, Router, full_body, with_timeout};

const DOCUMENTS: usize = 2_000;
const FILE_KEY: &str = "a-key-in-a-file-0123456789";

/// The Ed25519 key of RFC 8410 section 10.3: everybody knows it.
const SIGNING_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

/// Says what it was asked.
async fn echo() -> Model {
    Model::http(|request| async move {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let said = json!({
            "target": request.uri().to_string(),
            "host": header("host"),
            "authorization": header("authorization"),
        });
        Response::new(full_body(said.to_string()))
    })
    .await
}

/// A client of one router, on one connection.
struct Client(SendRequest<Full<Bytes>>);

struct JsonAnswer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Client {
    async fn connect(router: &Router) -> Self {
        let stream = TcpStream::connect(router.scoring).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> JsonAnswer {
        let request = Request::builder().method(method).uri(path).header("host", "router");
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        with_timeout(&format!("the answer to {method} {path} {fields:?}"), async {
            self.0.ready().await.unwrap();
            let response = self.0.send_request(request.body(Full::default()).unwrap()).await.unwrap();
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = response.into_body().collect().await.unwrap().to_bytes();
            JsonAnswer { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() }
        })
        .await
    }
}

#[tokio::test]
async fn what_is_accepted_is_served_as_written_and_what_is_not_says_where_and_why() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let model = echo().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), FILE_KEY).unwrap();
    let mut generator = Generator::new(seed, model.address.to_string(), "key".to_owned());
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for number in 0..DOCUMENTS {
        let document = generator.document();
        let problems = check(folder.path(), &document);
        if problems.is_empty() {
            accepted.push(document);
        } else {
            refused += 1;
            for problem in problems {
                let said = !problem.path.is_empty() && !problem.message.is_empty() && problem.message.len() < 2_000;
                let whole = document.get("kind").is_none_or(|kind| kind != "OnlineEndpoint") || !document.is_object();
                assert!(said || whole, "number {number}: {problem:?} of {}", shortened(&document));
            }
        }
    }
    assert!(
        accepted.len() > DOCUMENTS / 4 && refused > DOCUMENTS / 4,
        "{} accepted, {refused} refused",
        accepted.len()
    );
    let all: Vec<String> = accepted.iter().map(Value::to_string).collect();
    std::fs::write(folder.path().join("all.yaml"), all.join("\n---\n")).unwrap();
    std::fs::write(folder.path().join("signing.pem"), SIGNING_KEY).unwrap();
    let signing_key = folder.path().join("signing.pem");
    let router = Router::start_in(folder, Box::new(std::io::sink()), |settings| {
        settings.tokens.signing_key_file = Some(signing_key);
    });
    let mut client = Client::connect(&router).await;
    let names: HashSet<String> = accepted.iter().map(|d| d["metadata"]["name"].to_string().to_lowercase()).collect();
    assert_eq!(names.len(), accepted.len(), "the generator must not repeat names");
    for document in &accepted {
        served(&mut client, document, &model).await;
    }
    let shown = router.endpoints().await;
    assert_eq!(shown["endpoints"].as_array().unwrap().len(), accepted.len());
}

/// What is wrong with a document, as the router would find when it looks at a file with it.
fn check(folder: &std::path::Path, document: &Value) -> Vec<inference_router::model::problem::Problem> {
    let text = document.to_string();
    let parsed = documents::parse(&text, "test");
    if !parsed.problems.is_empty() {
        return parsed.problems;
    }
    // Keys are read with the file.
    let file = folder.join("one.yaml");
    std::fs::write(&file, text).unwrap();
    let loaded = DocumentFiles::new(vec![file.clone()], std::sync::Arc::new(|_| None))
        .load(&inference_router::control::document_files::ScanScope::All, std::time::Instant::now());
    std::fs::remove_file(file).unwrap();
    loaded.unwrap().problems
}

/// A document in a message.
fn shortened(document: &Value) -> String {
    document.to_string().chars().take(3_000).collect()
}

/// Asks for everything that `document` says, and compares with what it says.
async fn served(client: &mut Client, document: &Value, model: &Model) {
    let spec = &document["spec"];
    let name = document["metadata"]["name"].as_str().unwrap();
    let path = |rest: &str| format!("/api/v1/endpoint/{}/{rest}", name.to_ascii_uppercase());
    let keys: Vec<String> = ["primary", "secondary"].iter().filter_map(|which| key(&spec["keys"][*which])).collect();
    let tokens = spec["authMode"] == "aml_token";
    let mut bearer = keys.last().map(|key| format!("Bearer {key}"));
    if tokens {
        let asked: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let answer = client.send("POST", &path("token"), &asked).await;
        if keys.is_empty() {
            assert_eq!((answer.status, &answer.body["code"]), (403, &json!("forbidden")), "{}", shortened(document));
            return;
        }
        assert_eq!(answer.status, 200, "{}", shortened(document));
        bearer = Some(format!("Bearer {}", answer.body["accessToken"].as_str().unwrap()));
    }
    let proof: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let deployments = spec["deployments"].as_array().unwrap();
    let weight = |deployment: &Value| {
        let shares = spec["traffic"].as_object().into_iter().flatten();
        let name = deployment["name"].as_str().unwrap();
        shares
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, share)| share.as_u64().unwrap())
            .sum::<u64>()
    };

    let answer = client.send("POST", &path("score?a=b"), &proof).await;
    let live: Vec<&Value> = deployments.iter().filter(|deployment| weight(deployment) > 0).collect();
    match live.as_slice() {
        [] => {
            assert_eq!(
                (answer.status, &answer.body["code"]),
                (404, &json!("no_live_deployment")),
                "{}",
                shortened(document)
            )
        }
        live => {
            let by = answer.headers.get("azureml-model-deployment").map(|by| by.to_str().unwrap().to_owned());
            let chosen = by.or_else(|| answer.body["deployment"].as_str().map(str::to_owned));
            let chosen = live.iter().find(|d| chosen.as_deref() == d["name"].as_str());
            let chosen =
                chosen.unwrap_or_else(|| panic!("answered by nobody live: {} of {}", answer.body, shortened(document)));
            assert_answered_by(&answer, chosen, "scoringPath", "/score", "?a=b", bearer.as_deref(), model, document);
        }
    }
    for deployment in deployments {
        let named = deployment["name"].as_str().unwrap().to_ascii_uppercase();
        let fields = [&proof[..], &[("azureml-model-deployment", &*named)]].concat();
        let answer = client.send("GET", &path("swagger.json"), &fields).await;
        assert_answered_by(&answer, deployment, "swaggerPath", "/swagger.json", "", bearer.as_deref(), model, document);
    }
    if !keys.is_empty() {
        let answer = client.send("GET", &path("score"), &[]).await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (401, &json!("missing_credential")),
            "{}",
            shortened(document)
        );
        let answer = client.send("GET", &path("score"), &[("authorization", "Bearer another-key-0123")]).await;
        let code = if tokens { "malformed_token" } else { "invalid_key" };
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!(code)), "{}", shortened(document));
    }
    if let Some(cors) = spec.get("cors") {
        let origin = cors["allowOrigins"][0].as_str().unwrap();
        let origin = if origin == "*" { "https://any.example" } else { origin };
        let origin = origin.to_ascii_lowercase().trim_end_matches(":443").to_owned();
        let method = cors["allowMethods"][0].as_str().unwrap_or("POST").to_ascii_uppercase();
        let fields = [("origin", &*origin), ("access-control-request-method", &*method)];
        let answer = client.send("OPTIONS", &path("score"), &fields).await;
        assert_eq!(answer.status, 204, "{}", shortened(document));
        let allowed = answer
            .headers
            .get("access-control-allow-origin")
            .unwrap_or_else(|| panic!("refused by {}", shortened(document)));
        let any = cors["allowOrigins"][0] == "*" && allowed == "*";
        assert!(any || allowed == origin.as_str(), "{allowed:?} for {}", shortened(document));
    }
}

/// A key as a client sends it.
fn key(written: &Value) -> Option<String> {
    let value = written.get("value").map(|value| value.as_str().unwrap().to_owned());
    value.or_else(|| written.get("file").map(|_| FILE_KEY.to_owned()))
}

/// Asserts that `answer` is that of `deployment`, asked for the path in `field`.
#[expect(clippy::too_many_arguments, reason = "each is another part of what is compared")]
fn assert_answered_by(
    answer: &JsonAnswer,
    deployment: &Value,
    field: &str,
    default: &str,
    query: &str,
    bearer: Option<&str>,
    model: &Model,
    document: &Value,
) {
    if deployment.get("process").is_some() {
        // None is running: the count is 0.
        assert_eq!((answer.status, &answer.body["code"]), (503, &json!("no_ready_replica")), "{}", shortened(document));
        return;
    }
    let target = format!("{}{query}", deployment[field].as_str().unwrap_or(default));
    let host = deployment["host"].as_str().map_or_else(|| model.address.to_string(), str::to_owned);
    let forwarded = if deployment["forwardAuthorization"] == true { json!(bearer) } else { Value::Null };
    let expected = json!({"target": target, "host": host, "authorization": forwarded});
    assert_eq!((answer.status, &answer.body), (200, &expected), "{}", shortened(document));
    assert_eq!(
        answer.headers["azureml-model-deployment"].to_str().ok(),
        deployment["name"].as_str(),
        "{}",
        shortened(document)
    );
}
