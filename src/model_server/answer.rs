//! From request to response: routes, ids, headers, errors.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::sync::mpsc;

use super::runs::{Finished, Output, RunError, Runs};
use super::score::{Input, render};
use super::swagger;

/// Largest request body, in bytes: 100 MB, as Azure's.
pub(super) const MAX_BODY: usize = 100 * 1024 * 1024;

/// Longest request id a client may send, in bytes.
const MAX_ID: usize = 100;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MS_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const MS_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const RUN_FAILED: HeaderName = HeaderName::from_static("x-ms-run-function-failed");
const RUN_TIME: HeaderName = HeaderName::from_static("x-ms-run-fn-exec-ms");
const SERVER_VERSION: HeaderName = HeaderName::from_static("x-ms-server-version");
const MODEL_NAME: HeaderName = HeaderName::from_static("x-model-name");
const VERSION: HeaderValue =
    HeaderValue::from_static(concat!("inference-router-model-server/", env!("CARGO_PKG_VERSION")));

/// Body of every response.
pub(super) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What all connections of a server share.
#[derive(Debug)]
pub(super) struct Scorer {
    pub(super) runs: Arc<Runs>,
    pub(super) stream: bool,
    pub(super) name: Option<HeaderValue>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("nothing here; this server answers /, /score and /swagger.json")]
    NoSuchPath,
    #[error("there is no version {0:?} of the document; ask for 2, 3 or 3.1")]
    NoSuchVersion(String),
    #[error("method not allowed here; allowed: {0}")]
    Method(&'static str),
    #[error("the body is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the body broke off: {0}")]
    BrokenBody(String),
    #[error("{0} must not exceed {MAX_ID} characters")]
    LongId(HeaderName),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Answers one request; never fails, an error is an answer too.
pub(super) async fn answer<B>(scorer: &Scorer, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let mut answer = match Ids::read(request.headers()) {
        Ok(ids) => {
            let mut answer = route(scorer, request).await.unwrap_or_else(|fault| fault.answer());
            ids.write(answer.headers_mut());
            answer
        }
        Err(fault) => fault.answer(),
    };
    answer.headers_mut().insert(SERVER_VERSION, VERSION);
    if let Some(name) = &scorer.name {
        answer.headers_mut().insert(MODEL_NAME, name.clone());
    }
    answer
}

async fn route<B>(scorer: &Scorer, request: Request<B>) -> Result<Answer, Fault>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    match (request.uri().path(), request.method()) {
        ("/", &Method::GET | &Method::HEAD) => Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", "Healthy")),
        ("/", _) => Err(Fault::Method("GET, HEAD")),
        ("/swagger.json", &Method::GET | &Method::HEAD) => describe(scorer, request.uri().query()),
        ("/swagger.json", _) => Err(Fault::Method("GET, HEAD")),
        ("/score", &Method::GET) => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            Ok(score(scorer, Ok(Input::Query(query)), false).await)
        }
        ("/score", &Method::POST) => {
            let input = read_body(request.into_body(), MAX_BODY).await.map(Input::Body);
            Ok(score(scorer, input, scorer.stream).await)
        }
        ("/score", _) => Err(Fault::Method("GET, POST")),
        _ => Err(Fault::NoSuchPath),
    }
}

fn describe(scorer: &Scorer, query: Option<&str>) -> Result<Answer, Fault> {
    let version = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("version=")).unwrap_or("2");
    let title = scorer.name.as_ref().and_then(|name| name.to_str().ok()).unwrap_or("diabetes-regression");
    let document = swagger::document(version, title, scorer.stream)
        .ok_or_else(|| Fault::NoSuchVersion(version.chars().take(20).collect()))?;
    Ok(whole(StatusCode::OK, "application/json", document.to_string()))
}

async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, Fault>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    // What is announced as too large is refused before it is sent.
    if body.size_hint().lower() > limit as u64 {
        return Err(Fault::TooLarge);
    }
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge),
        Err(error) => Err(Fault::BrokenBody(error.to_string())),
    }
}

/// Runs the model and says how the run went, in headers that even an answer without a run carries.
async fn score(scorer: &Scorer, input: Result<Input, Fault>, stream: bool) -> Answer {
    let (mut answer, failed) = match input {
        Err(fault) => (fault.answer(), false),
        Ok(input) => {
            let Finished { took, result } = scorer.runs.run(input, stream).await;
            let failed = matches!(result, Err(RunError::OnPurpose | RunError::CutOff));
            let mut answer = result.map_or_else(|error| Fault::from(error).answer(), predictions);
            answer.headers_mut().insert(RUN_TIME, milliseconds(took));
            (answer, failed)
        }
    };
    answer.headers_mut().insert(RUN_FAILED, HeaderValue::from_static(if failed { "True" } else { "False" }));
    answer
}

fn predictions(output: Output) -> Answer {
    match output {
        Output::Whole(predictions) => whole(StatusCode::OK, "application/json", render(&predictions)),
        Output::Events(events) => {
            let mut answer = Response::new(BoxBody::new(Events(events)));
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            answer
        }
    }
}

fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Three decimals, never an exponent.
fn milliseconds(time: Duration) -> HeaderValue {
    let text = format!("{:.3}", time.as_secs_f64() * 1e3);
    // Digits and a dot are always a header value.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0.000"))
}

impl Fault {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::NoSuchVersion(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LongId(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BrokenBody(_) | Self::Run(RunError::BadInput(_)) => StatusCode::BAD_REQUEST,
            Self::Run(RunError::OnPurpose | RunError::CutOff) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn answer(&self) -> Answer {
        let message = serde_json::json!({"message": self.to_string()}).to_string();
        let mut answer = whole(self.status(), "application/json", message);
        if let Self::Method(allowed) = self {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        answer
    }
}

/// The ids a request goes by, echoed in its response.
struct Ids {
    request: HeaderValue,
    client: Option<HeaderValue>,
}

impl Ids {
    /// `x-ms-request-id` is the old name of `x-request-id`; a request with neither gets a new id.
    fn read(headers: &HeaderMap) -> Result<Self, Fault> {
        let read = |name: HeaderName| match headers.get(&name) {
            Some(id) if id.len() > MAX_ID => Err(Fault::LongId(name)),
            id => Ok(id.filter(|id| !id.is_empty()).cloned()),
        };
        let (new, old, client) = (read(REQUEST_ID)?, read(MS_REQUEST_ID)?, read(MS_CLIENT_REQUEST_ID)?);
        Ok(Self { request: new.or(old).unwrap_or_else(random_id), client })
    }

    fn write(self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.request.clone());
        headers.insert(MS_REQUEST_ID, self.request);
        if let Some(client) = self.client {
            headers.insert(MS_CLIENT_REQUEST_ID, client);
        }
    }
}

/// A version 4 UUID (RFC 9562): random but for the 4 bits of its version and the 2 of its variant.
fn random_id() -> HeaderValue {
    let bits = rand::random::<u128>() & !(0xf << 76 | 0b11 << 62) | (4 << 76 | 0b10 << 62);
    let hex = format!("{bits:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    // Hexadecimal digits and dashes are always a header value.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
}

/// A body of server-sent events, as they come.
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
