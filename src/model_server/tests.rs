mod input;
mod line;
mod socket;

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};

use super::answer::{Answer, Scorer, answer};
use super::{Options, Server};

const SAMPLE: &str = r#"{"data": [
    [1,2,3,4,5,6,7,8,9,10], 
    [10,9,8,7,6,5,4,3,2,1]
]}"#;
const SAMPLE_ANSWER: &str = "[11055.977245525679, 4503.079536107787]";

fn options() -> Options {
    Options {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        concurrency: 1,
        delay: Duration::ZERO,
        fail_rate: 0.0,
        shift: 0.0,
        stream: false,
        name: None,
    }
}

fn scorer(options: Options) -> Scorer {
    Scorer::build(options).unwrap()
}

fn request(method: &str, target: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(target).body(Full::from(body.to_owned())).unwrap()
}

fn sample() -> Request<Full<Bytes>> {
    request("POST", "/score", SAMPLE)
}

/// Status, a header of interest, body.
async fn read(answer: Answer) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn ask(method: &str, target: &str, body: &str) -> (u16, String) {
    read(answer(&scorer(options()), request(method, target, body)).await).await
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Starts a server that is never told to stop.
async fn start(options: Options) -> SocketAddr {
    let server = Server::bind(options).await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(pending()));
    address
}
