//! Request handling of the sample model: routes, ids, headers, errors.

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

use super::linear_model::{ScoreInput, render_predictions};
use super::score_executor::{FinishedRun, ModelRunError, RunOutput, ScoreExecutor};
use super::swagger;

/// The largest request body in bytes: 100 MB, as Azure's.
pub(super) const MAX_BODY_BYTES: usize = 100 * 1024 * 1024;

/// The longest request id that a client may send, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 100;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MS_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const MS_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const RUN_FAILED: HeaderName = HeaderName::from_static("x-ms-run-function-failed");
const RUN_TIME: HeaderName = HeaderName::from_static("x-ms-run-fn-exec-ms");
const SERVER_VERSION: HeaderName = HeaderName::from_static("x-ms-server-version");
const MODEL_NAME: HeaderName = HeaderName::from_static("x-model-name");
const SERVER_VERSION_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("inference-router-model-server/", env!("CARGO_PKG_VERSION")));

/// The body of every response.
pub(super) type ModelResponse = Response<BoxBody<Bytes, Infallible>>;

/// State that all connections of a server share.
#[derive(Debug)]
pub(super) struct ScoringService {
    pub(super) executor: Arc<ScoreExecutor>,
    pub(super) is_streaming: bool,
    pub(super) model_name: Option<HeaderValue>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("nothing here; this server answers /, /score and /swagger.json")]
    NoSuchPath,
    #[error("there is no version {0:?} of the document; ask for 2, 3 or 3.1")]
    NoSuchVersion(String),
    #[error("method not allowed here; allowed: {0}")]
    MethodNotAllowed(&'static str),
    #[error("the body is larger than {MAX_BODY_BYTES} bytes")]
    BodyTooLarge,
    #[error("the body broke off: {0}")]
    IncompleteBody(String),
    #[error("{0} must not exceed {MAX_REQUEST_ID_BYTES} characters")]
    RequestIdTooLong(HeaderName),
    #[error(transparent)]
    Run(#[from] ModelRunError),
}

/// Answers one request. It never fails: an error is an answer too.
pub(super) async fn handle_request<B>(scorer: &ScoringService, request: Request<B>) -> ModelResponse
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let mut answer = match RequestIds::from_headers(request.headers()) {
        Ok(ids) => {
            let mut answer = route(scorer, request).await.unwrap_or_else(|fault| fault.to_response());
            ids.write_to_headers(answer.headers_mut());
            answer
        }
        Err(fault) => fault.to_response(),
    };
    answer.headers_mut().insert(SERVER_VERSION, SERVER_VERSION_VALUE);
    if let Some(name) = &scorer.model_name {
        answer.headers_mut().insert(MODEL_NAME, name.clone());
    }
    answer
}

async fn route<B>(scorer: &ScoringService, request: Request<B>) -> Result<ModelResponse, RequestError>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    match (request.uri().path(), request.method()) {
        ("/", &Method::GET | &Method::HEAD) => {
            Ok(full_response(StatusCode::OK, "text/plain; charset=utf-8", "Healthy"))
        }
        ("/", _) => Err(RequestError::MethodNotAllowed("GET, HEAD")),
        ("/swagger.json", &Method::GET | &Method::HEAD) => swagger_response(scorer, request.uri().query()),
        ("/swagger.json", _) => Err(RequestError::MethodNotAllowed("GET, HEAD")),
        ("/score", &Method::GET) => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            Ok(score_response(scorer, Ok(ScoreInput::Query(query)), false).await)
        }
        ("/score", &Method::POST) => {
            let input = read_body(request.into_body(), MAX_BODY_BYTES).await.map(ScoreInput::Body);
            Ok(score_response(scorer, input, scorer.is_streaming).await)
        }
        ("/score", _) => Err(RequestError::MethodNotAllowed("GET, POST")),
        _ => Err(RequestError::NoSuchPath),
    }
}

fn swagger_response(scorer: &ScoringService, query: Option<&str>) -> Result<ModelResponse, RequestError> {
    let version = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("version=")).unwrap_or("2");
    let title = scorer.model_name.as_ref().and_then(|name| name.to_str().ok()).unwrap_or("diabetes-regression");
    let document = swagger::swagger_document(version, title, scorer.is_streaming)
        .ok_or_else(|| RequestError::NoSuchVersion(version.chars().take(20).collect()))?;
    Ok(full_response(StatusCode::OK, "application/json", document.to_string()))
}

async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, RequestError>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    // A body that is announced as too large is refused before it is sent.
    if body.size_hint().lower() > limit as u64 {
        return Err(RequestError::BodyTooLarge);
    }
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(RequestError::BodyTooLarge),
        Err(error) => Err(RequestError::IncompleteBody(error.to_string())),
    }
}

/// Runs the model, and reports the run in headers that an answer without a run has too.
async fn score_response(
    scorer: &ScoringService,
    input: Result<ScoreInput, RequestError>,
    stream: bool,
) -> ModelResponse {
    let (mut answer, has_failed) = match input {
        Err(fault) => (fault.to_response(), false),
        Ok(input) => {
            let FinishedRun { duration: took, result } = scorer.executor.run(input, stream).await;
            let failed = matches!(result, Err(ModelRunError::InjectedFailure | ModelRunError::Aborted));
            let mut answer = result.map_or_else(|error| RequestError::from(error).to_response(), predictions_response);
            answer.headers_mut().insert(RUN_TIME, milliseconds_header(took));
            (answer, failed)
        }
    };
    answer.headers_mut().insert(RUN_FAILED, HeaderValue::from_static(if has_failed { "True" } else { "False" }));
    answer
}

fn predictions_response(output: RunOutput) -> ModelResponse {
    match output {
        RunOutput::Predictions(predictions) => {
            full_response(StatusCode::OK, "application/json", render_predictions(&predictions))
        }
        RunOutput::Events(events) => {
            let mut answer = Response::new(BoxBody::new(EventStreamBody(events)));
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            answer
        }
    }
}

fn full_response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> ModelResponse {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Formats milliseconds with three decimals and without an exponent.
fn milliseconds_header(time: Duration) -> HeaderValue {
    let text = format!("{:.3}", time.as_secs_f64() * 1e3);
    // Digits and a dot are always a valid header value.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0.000"))
}

impl RequestError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath | Self::NoSuchVersion(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestIdTooLong(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::IncompleteBody(_) | Self::Run(ModelRunError::InvalidInput(_)) => StatusCode::BAD_REQUEST,
            Self::Run(ModelRunError::InjectedFailure | ModelRunError::Aborted) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn to_response(&self) -> ModelResponse {
        let message = serde_json::json!({"message": self.to_string()}).to_string();
        let mut answer = full_response(self.status(), "application/json", message);
        if let Self::MethodNotAllowed(allowed) = self {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        answer
    }
}

/// The ids of a request, which are echoed in its response.
struct RequestIds {
    request_id: HeaderValue,
    client_request_id: Option<HeaderValue>,
}

impl RequestIds {
    /// Reads the ids from the headers. `x-ms-request-id` is the old name of `x-request-id`; a request with neither gets
    /// a new id.
    fn from_headers(headers: &HeaderMap) -> Result<Self, RequestError> {
        let read = |name: HeaderName| match headers.get(&name) {
            Some(id) if id.len() > MAX_REQUEST_ID_BYTES => Err(RequestError::RequestIdTooLong(name)),
            id => Ok(id.filter(|id| !id.is_empty()).cloned()),
        };
        let (new, old, client) = (read(REQUEST_ID)?, read(MS_REQUEST_ID)?, read(MS_CLIENT_REQUEST_ID)?);
        Ok(Self { request_id: new.or(old).unwrap_or_else(random_request_id), client_request_id: client })
    }

    fn write_to_headers(self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.request_id.clone());
        headers.insert(MS_REQUEST_ID, self.request_id);
        if let Some(client) = self.client_request_id {
            headers.insert(MS_CLIENT_REQUEST_ID, client);
        }
    }
}

/// Returns a version 4 UUID (RFC 9562), which is random except for the 4 bits of its version and the 2 of its variant.
fn random_request_id() -> HeaderValue {
    let bits = rand::random::<u128>() & !(0xf << 76 | 0b11 << 62) | (4 << 76 | 0b10 << 62);
    let hex = format!("{bits:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    // Hexadecimal digits and dashes are always a valid header value.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("00000000-0000-4000-8000-000000000000"))
}

/// A body of server-sent events, passed on as they are created.
struct EventStreamBody(mpsc::Receiver<Bytes>);

impl Body for EventStreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
