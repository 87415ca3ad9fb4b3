mod queueing;
mod requests;
mod socket;

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};

use super::handler::{ModelResponse, ScoringService, handle_request};
use super::{ModelServerOptions, SampleModelServer};

const SAMPLE_REQUEST_BODY: &str = r#"{"data": [
    [1,2,3,4,5,6,7,8,9,10], 
    [10,9,8,7,6,5,4,3,2,1]
]}"#;
const SAMPLE_RESPONSE_BODY: &str = "[11055.977245525679, 4503.079536107787]";

fn default_options() -> ModelServerOptions {
    ModelServerOptions {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        concurrency: 1,
        delay: Duration::ZERO,
        fail_rate: 0.0,
        shift: 0.0,
        is_streaming: false,
        model_name: None,
    }
}

fn scoring_service(options: ModelServerOptions) -> ScoringService {
    ScoringService::build(options).unwrap()
}

fn request(method: &str, target: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(target).body(Full::from(body.to_owned())).unwrap()
}

fn sample_request() -> Request<Full<Bytes>> {
    request("POST", "/score", SAMPLE_REQUEST_BODY)
}

/// Status, a header of interest, body.
async fn read_response(answer: ModelResponse) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn call_service(method: &str, target: &str, body: &str) -> (u16, String) {
    read_response(handle_request(&scoring_service(default_options()), request(method, target, body)).await).await
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Starts a server that is never told to stop.
async fn start_server(options: ModelServerOptions) -> SocketAddr {
    let server = SampleModelServer::bind(options).await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(pending()));
    address
}
