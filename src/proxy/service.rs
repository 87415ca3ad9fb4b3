//! One request, from its head to its response head.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONNECTION, HeaderMap, ORIGIN};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, response};
use hyper::body::Incoming;

use super::attempt::attempt;
use super::auth;
use super::body::Body;
use super::client_io::Client;
use super::cors;
use super::exchange::{Exchange, NoHead};
use super::headers::{self, Notable};
use super::mirror::Plan;
use super::record::Record;
use super::respond;
use super::upload::Upload;
use crate::model::limits::StatusCodes;
use crate::model::refusal::Refusal;
use crate::policy::admit::{Avoid, RETRIES};
use crate::policy::identify::{Asked, Unidentified, identify, lookup_key};
use crate::state::lifecycle::{Lifecycle, Phase};
use crate::state::slots::{Acquired, NoSlot, Slot};
use crate::state::table::{Deployment, Endpoint};

/// Where an endpoint's tokens are asked for, if the router issues them.
const TOKEN_PATH: &str = "/token";

/// What a request comes to.
enum Answer {
    /// The router's own: to a preflight, or with a token.
    Own(Response<bytes::Bytes>),
    /// A model's response.
    Model(response::Parts, Exchange),
}

/// Answers a request. The response's body ends the request's record.
pub(super) async fn handle(client: Rc<Client>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, incoming) = request.into_parts();
    let notable = Notable::of(&head.headers);
    let upload = Upload::new(incoming, &client.worker.shared.limits);
    let mut record = Record::begin(&client, &head, &notable, upload.progress());
    let mut upload = Some(upload);
    let origin = if notable.origin { head.headers.get(ORIGIN).cloned() } else { None };
    let answer = score(&client, &mut record, head, &notable, &mut upload).await;
    // What comes only when it is asked for would come late.
    if let Some(unread) = &mut upload
        && !notable.expect
    {
        unread.skim().await;
    }
    let codes = client.worker.shared.status_codes;
    Ok(match answer {
        Ok(Answer::Model(parts, exchange)) => passed_on(parts, exchange, record, codes, origin.as_ref()),
        Ok(Answer::Own(response)) => {
            // A preflight has its headers for browsers already.
            let origin = origin.as_ref().filter(|_| response.status() != StatusCode::NO_CONTENT);
            own(response, record, origin, false)
        }
        Err(refusal) => {
            record.refused(refusal);
            let response = respond::refuse(refusal, codes, record.context());
            own(response, record, origin.as_ref(), matches!(refusal, Refusal::BadRequest(_)))
        }
    })
}

/// The whole way of a request: which endpoint, may the caller, which deployment, a slot, a replica.
async fn score(
    client: &Rc<Client>,
    record: &mut Record,
    mut head: request::Parts,
    notable: &Notable,
    upload: &mut Option<Upload>,
) -> Result<Answer, Refusal> {
    let worker = &client.worker;
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::MethodNotAllowed);
    }
    if head.version == Version::HTTP_2 && !headers::fit(&head.headers, &worker.shared.limits) {
        return Err(Refusal::HeadTooLarge);
    }
    headers::check(&head, notable).map_err(Refusal::BadRequest)?;
    let called = identify(head.uri.path())?;
    let endpoint = lookup_key(called.endpoint, &mut [0; 32])
        .and_then(|key| worker.with_table(|table| table.endpoint(key).cloned()))
        .ok_or_else(|| unknown(&worker.shared.lifecycle))?;
    let endpoint = &*record.endpoint.insert(endpoint);
    if let Some(cors) = &endpoint.spec.cors
        && cors::is_preflight(&head)
    {
        let mut response = Response::new(bytes::Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = cors::preflight(cors, &head.headers);
        return Ok(Answer::Own(response));
    }
    let mut given = head.headers.get_all(AUTHORIZATION).iter();
    let authorization = given.next().map(HeaderValue::as_bytes);
    if given.next().is_some() {
        // One of them would be checked, and perhaps another one believed by the model.
        return Err(Refusal::BadRequest("it has more than one authorization header"));
    }
    let tokens = &worker.shared.tokens;
    if called.asked == Asked::Path(TOKEN_PATH) && endpoint.access.needs_signing() {
        if head.method != Method::POST {
            return Err(Refusal::PostOnly);
        }
        // Rare beside the other case: kept out of every request's future.
        return Box::pin(auth::issue(tokens, endpoint, authorization)).await.map(Answer::Own);
    }
    record.takes_trailers = endpoint.limit().is_some() && headers::takes_trailers(&head);
    record.proof = Some(auth::prove(tokens, endpoint, authorization).await?);
    let named = if notable.deployment { head.headers.get(headers::MODEL_DEPLOYMENT) } else { None };
    let deployment = choose(client, endpoint, named)?.clone();
    record.deployment = Some(deployment.clone());
    let limits = &worker.shared.limits;
    if upload.as_ref().is_some_and(|upload| upload.announced() > limits.max_payload_bytes) {
        return Err(Refusal::PayloadTooLarge(limits.max_payload_bytes));
    }
    let path = model_path(&deployment, called.asked, head.uri.query())?;
    let plan = match &endpoint.mirror {
        Some(mirror) if named.is_none() => Some(Plan {
            mirror: mirror.clone(),
            path: model_path(&mirror.to, called.asked, head.uri.query())?,
            authorization: head.headers.get(AUTHORIZATION).filter(|_| mirror.to.spec.forward_authorization).cloned(),
        }),
        _ => None,
    };
    headers::to_model(&mut head, notable, &client.origin, &record.request_id, record.client_request_id.as_ref());
    head.uri = Uri::from(path);
    if !deployment.spec.forward_authorization {
        head.headers.remove(AUTHORIZATION);
    }
    let Some(mut upload) = upload.take() else { return Err(Refusal::BodyCutShort) };
    if let Some(limit) = record.endpoint.as_ref().and_then(|endpoint| endpoint.limit()) {
        upload.keep_to(limit.clone());
    }
    if !notable.expect {
        upload.first_part().await?;
    }
    forward(client, record, &deployment, Box::new(Request::from_parts(head, upload)), plan).await
}

/// What to say where no endpoint has the name: that there is none, once they are known.
fn unknown(lifecycle: &Lifecycle) -> Refusal {
    match lifecycle.phase() {
        Phase::Starting => Refusal::NoReadyReplica(Duration::from_secs(1)),
        Phase::Serving | Phase::Unready | Phase::Draining | Phase::Forced => Refusal::EndpointNotFound,
    }
}

/// The deployment that the header names, else one by weight.
fn choose<'e>(
    client: &Client,
    endpoint: &'e Endpoint,
    named: Option<&HeaderValue>,
) -> Result<&'e Arc<Deployment>, Refusal> {
    match named {
        Some(name) => {
            let name = name.to_str().map_err(|_| Refusal::DeploymentNotFound)?;
            endpoint.deployment(name.trim()).ok_or(Refusal::DeploymentNotFound)
        }
        None => client
            .worker
            .with_rng(|rng| endpoint.split.choose(rng))
            .and_then(|index| endpoint.deployments.get(index))
            .ok_or(Refusal::NoLiveDeployment),
    }
}

fn model_path(deployment: &Deployment, asked: Asked<'_>, query: Option<&str>) -> Result<PathAndQuery, Refusal> {
    let path = match (asked, query) {
        (Asked::Score, None) => return Ok(deployment.scoring_path.clone()),
        (Asked::Swagger, None) => return Ok(deployment.swagger_path.clone()),
        (Asked::Score, _) => deployment.scoring_path.path(),
        (Asked::Swagger, _) => deployment.swagger_path.path(),
        (Asked::Path(path), _) => path,
    };
    let whole = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    PathAndQuery::from_maybe_shared(whole).map_err(|_| Refusal::BadRequest("its path is not valid"))
}

/// Finds a replica that takes the request, and waits for its response head.
async fn forward(
    client: &Rc<Client>,
    record: &mut Record,
    deployment: &Deployment,
    mut request: Box<Request<Upload>>,
    mut plan: Option<Plan>,
) -> Result<Answer, Refusal> {
    let mut avoid = Avoid::default();
    for retry in 0.. {
        let slot = acquire(record, deployment, avoid).await?;
        let dispatched = record.dispatched.unwrap_or_else(Instant::now);
        if let Some(plan) = plan.take() {
            if request.body().length().is_none() {
                record.unmeasured = Some(plan.mirror.clone());
            }
            record.copied = plan.begin(&client.worker, &record.request_id, &mut request, dispatched);
        }
        match attempt(&client.worker, deployment, slot, request, dispatched).await {
            // Nobody asked for another protocol: the request to upgrade is not passed on.
            Ok((head, _)) if head.status == StatusCode::SWITCHING_PROTOCOLS => return Err(Refusal::ReplicaClosed),
            Ok((head, exchange)) => {
                record.head = Some(Instant::now());
                record.ended = exchange.ended();
                if let Some(copied) = &record.copied {
                    copied.head(&head.headers, record.model_time());
                }
                return Ok(Answer::Model(head, exchange));
            }
            Err(NoHead::Refused(refusal)) => return Err(refusal),
            Err(NoHead::NotSent(slot, unsent)) => {
                if !slot.is_expired() {
                    avoid.add(slot.id());
                }
                if retry == RETRIES || !deployment.slots.any_ready_but(avoid) {
                    break;
                }
                deployment.metrics.retried("unreachable");
                request = unsent;
            }
        }
    }
    Err(Refusal::ReplicaUnreachable)
}

/// A slot, at once or after a wait.
async fn acquire(record: &mut Record, deployment: &Deployment, avoid: Avoid) -> Result<Slot, Refusal> {
    let now = Instant::now();
    let deadline = now + deployment.spec.requests.max_queue_wait;
    let slot = match deployment.slots.acquire(now, deadline, avoid)? {
        Acquired::Slot(slot) => {
            record.dispatched = Some(now);
            return Ok(slot);
        }
        // Rare beside the other case: kept out of every request's future.
        Acquired::Waiting(waiting) => Box::pin(waiting.slot()).await,
    };
    let granted = Instant::now();
    let before = record.queued.unwrap_or_default();
    record.queued = Some(before + granted.duration_since(now));
    record.dispatched = Some(granted);
    slot.map_err(|no_slot| {
        record.dispatched = None;
        no_slot.into()
    })
}

/// A model's response, made one for the client.
fn passed_on(
    mut parts: response::Parts,
    exchange: Exchange,
    mut record: Record,
    codes: StatusCodes,
    origin: Option<&HeaderValue>,
) -> Response<Body> {
    let model = parts.status;
    let status = match codes {
        _ if model.is_success() => model,
        StatusCodes::Managed => StatusCode::FAILED_DEPENDENCY,
        StatusCodes::Kubernetes if model == StatusCode::INTERNAL_SERVER_ERROR => StatusCode::BAD_GATEWAY,
        StatusCodes::Kubernetes => model,
    };
    headers::from_model(&mut parts.headers, model);
    record.describe(&mut parts.headers);
    if !model.is_success() {
        parts.headers.insert(headers::MODEL_STATUS, HeaderValue::from(model.as_u16()));
        parts.headers.insert(headers::MODEL_REASON, HeaderValue::from_static("model_error"));
    }
    parts.headers.insert(headers::SERVER_TIMING, record.timing());
    if let Some(cors) = record.endpoint.as_ref().and_then(|endpoint| endpoint.spec.cors.as_ref()) {
        cors::decorate(cors, origin, &mut parts.headers);
    }
    if record.takes_trailers && !exchange.is_end_stream() {
        headers::announce_trailers(&mut parts.headers, record.version);
    }
    announce_end(&record, &mut parts.headers, false);
    (record.status, record.model_status) = (Some(status), Some(model));
    (parts.status, parts.version) = (status, Version::HTTP_11);
    // A reason phrase of the model's own would stand beside another status.
    parts.extensions.clear();
    Response::from_parts(parts, Body::model(exchange, record))
}

/// The router's own response; `last` on its connection when nobody can be sure where the next request begins.
fn own(
    response: Response<bytes::Bytes>,
    mut record: Record,
    origin: Option<&HeaderValue>,
    last: bool,
) -> Response<Body> {
    let fault = record.upload.fault();
    // A client that left in the middle of its body does not get the answer.
    record.status = (fault != Some(Refusal::BodyCutShort)).then(|| response.status());
    let (mut parts, body) = response.into_parts();
    record.describe(&mut parts.headers);
    announce_end(&record, &mut parts.headers, last);
    if let (Some(cors), Some(origin)) =
        (record.endpoint.as_ref().and_then(|endpoint| endpoint.spec.cors.as_ref()), origin)
    {
        cors::decorate(cors, Some(origin), &mut parts.headers);
    }
    Response::from_parts(parts, Body::Own(body, Box::new(record)))
}

/// Says that no other request can follow: it is the `last`, or an answer before the end of the request's body, whose
/// rest may never be read.
fn announce_end(record: &Record, answer: &mut HeaderMap, last: bool) {
    let unread = record.upload.ended().is_none();
    if (last || unread) && record.version != Version::HTTP_2 {
        answer.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

impl From<Unidentified> for Refusal {
    fn from(error: Unidentified) -> Self {
        match error {
            Unidentified::NotFound => Self::EndpointNotFound,
            Unidentified::Encoding => Self::BadRequest("its path has a `%` without two hexadecimal digits"),
            Unidentified::DotSegment => Self::BadRequest("its path has a `.` or `..` segment"),
        }
    }
}

impl From<NoSlot> for Refusal {
    fn from(error: NoSlot) -> Self {
        match error {
            NoSlot::QueueFull(after) => Self::QueueFull(after),
            NoSlot::TimedOut(after) => Self::QueueTimeout(after),
            NoSlot::NoReplica(after) => Self::NoReadyReplica(after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// The future of a request is moved when it starts, so its size is a cost of every request.
    #[test]
    fn a_requests_future_stays_small() {
        let size = future_size(handle);
        assert!(size <= 3 * 1024, "{size} bytes");
    }
}
