//! Handles one request, from its head to its response head.

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
use super::client_io::ClientConnection;
use super::cors;
use super::error_response;
use super::exchange::{AttemptError, Exchange};
use super::headers::{self, PresentHeaders};
use super::mirror::MirrorPlan;
use super::request_context::RequestContext;
use super::response_body::ResponseBody;
use super::upload::Upload;
use crate::model::refusal::Refusal;
use crate::model::router_settings::StatusCodes;
use crate::policy::admit::{AvoidedReplicas, MAX_RETRIES};
use crate::policy::identify::{ModelPath, Unidentified, lookup_key, parse_endpoint_path};
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};
use crate::state::routing_table::{DeploymentEntry, EndpointEntry};
use crate::state::slots::{AcquireError, AcquireOutcome, Slot};

/// The path at which clients ask for an endpoint's tokens, if the router issues them.
const TOKEN_PATH: &str = "/token";

/// The result of routing a request.
enum RouteOutcome {
    /// A response of the router itself: to a preflight request, or with a token.
    Local(Response<bytes::Bytes>),
    /// The response of a model.
    Proxied(response::Parts, Exchange),
}

/// Handles a request. The response body owns the context of the request and ends it.
pub(super) async fn handle(
    client: Rc<ClientConnection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (head, incoming) = request.into_parts();
    let present = PresentHeaders::from_headers(&head.headers);
    let upload = Upload::new(incoming, &client.worker.shared.limits);
    let mut context = RequestContext::begin(&client, &head, &present, upload.progress());
    let mut upload = Some(upload);
    let origin = if present.has_origin { head.headers.get(ORIGIN).cloned() } else { None };
    let answer = route(&client, &mut context, head, &present, &mut upload).await;
    // A client that sends the body only after `100 Continue` would send it too late.
    if let Some(unread) = &mut upload
        && !present.has_expect
    {
        unread.drain_if_small().await;
    }
    let codes = client.worker.shared.status_codes;
    Ok(match answer {
        Ok(RouteOutcome::Proxied(parts, exchange)) => {
            proxied_response(parts, exchange, context, codes, origin.as_ref())
        }
        Ok(RouteOutcome::Local(response)) => {
            // The response to a preflight request has its CORS headers already.
            let origin = origin.as_ref().filter(|_| response.status() != StatusCode::NO_CONTENT);
            local_response(response, context, origin, false)
        }
        Err(refusal) => {
            context.record_refusal(refusal);
            let response = error_response::problem_response(refusal, codes, context.problem_context());
            local_response(response, context, origin.as_ref(), matches!(refusal, Refusal::BadRequest(_)))
        }
    })
}

/// Routes a request: finds the endpoint, authenticates the client, chooses the deployment, acquires a slot, and
/// forwards the request to a replica.
async fn route(
    client: &Rc<ClientConnection>,
    context: &mut RequestContext,
    mut head: request::Parts,
    present: &PresentHeaders,
    upload: &mut Option<Upload>,
) -> Result<RouteOutcome, Refusal> {
    let worker = &client.worker;
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::MethodNotAllowed);
    }
    if head.version == Version::HTTP_2 && !headers::is_within_limits(&head.headers, &worker.shared.limits) {
        return Err(Refusal::HeadTooLarge);
    }
    headers::validate_request_head(&head, present).map_err(Refusal::BadRequest)?;
    let called = parse_endpoint_path(head.uri.path())?;
    let endpoint = lookup_key(called.endpoint, &mut [0; 32])
        .and_then(|key| worker.with_table(|table| table.endpoint(key).cloned()))
        .ok_or_else(|| missing_endpoint_refusal(&worker.shared.lifecycle))?;
    let endpoint = &*context.endpoint.insert(endpoint);
    if let Some(cors) = &endpoint.spec.cors
        && cors::is_preflight(&head)
    {
        let mut response = Response::new(bytes::Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = cors::preflight_headers(cors, &head.headers);
        return Ok(RouteOutcome::Local(response));
    }
    let mut authorization_values = head.headers.get_all(AUTHORIZATION).iter();
    let authorization = authorization_values.next().map(HeaderValue::as_bytes);
    if authorization_values.next().is_some() {
        // The router would check one of the credentials, and the model might believe another one.
        return Err(Refusal::BadRequest("it has more than one authorization header"));
    }
    let tokens = &worker.shared.tokens;
    if called.model_path == ModelPath::Path(TOKEN_PATH) && endpoint.access.needs_signing() {
        if head.method != Method::POST {
            return Err(Refusal::PostOnly);
        }
        // This case is rare and its future is large, so it is kept out of every request's future.
        return Box::pin(auth::issue_token(tokens, endpoint, authorization)).await.map(RouteOutcome::Local);
    }
    context.accepts_trailers = endpoint.active_bandwidth_limit().is_some() && headers::client_accepts_trailers(&head);
    context.identity = Some(auth::authenticate(tokens, endpoint, authorization).await?);
    let named_deployment = if present.has_deployment { head.headers.get(headers::MODEL_DEPLOYMENT) } else { None };
    let deployment = choose_deployment(client, endpoint, named_deployment)?.clone();
    context.deployment = Some(deployment.clone());
    let limits = &worker.shared.limits;
    if upload.as_ref().is_some_and(|upload| upload.announced_bytes() > limits.max_payload_bytes) {
        return Err(Refusal::PayloadTooLarge(limits.max_payload_bytes));
    }
    let path = model_path(&deployment, called.model_path, head.uri.query())?;
    let plan = match &endpoint.mirror {
        Some(mirror) if named_deployment.is_none() => Some(MirrorPlan {
            mirror: mirror.clone(),
            path: model_path(&mirror.shadow, called.model_path, head.uri.query())?,
            authorization: head
                .headers
                .get(AUTHORIZATION)
                .filter(|_| mirror.shadow.spec.forward_authorization)
                .cloned(),
        }),
        _ => None,
    };
    headers::prepare_upstream_request(
        &mut head,
        present,
        &client.forwarded_info,
        &context.request_id,
        context.client_request_id.as_ref(),
    );
    head.uri = Uri::from(path);
    if !deployment.spec.forward_authorization {
        head.headers.remove(AUTHORIZATION);
    }
    let Some(mut upload) = upload.take() else { return Err(Refusal::BodyCutShort) };
    if let Some(limit) = context.endpoint.as_ref().and_then(|endpoint| endpoint.active_bandwidth_limit()) {
        upload.set_bandwidth_limit(limit.clone());
    }
    if !present.has_expect {
        upload.prefetch_first_chunk().await?;
    }
    forward_request(client, context, &deployment, Box::new(Request::from_parts(head, upload)), plan).await
}

/// Returns the refusal for an unknown endpoint: that there is none, once all endpoints are known.
fn missing_endpoint_refusal(lifecycle: &Lifecycle) -> Refusal {
    match lifecycle.phase() {
        LifecyclePhase::Starting => Refusal::NoReadyReplica(Duration::from_secs(1)),
        LifecyclePhase::Serving | LifecyclePhase::Unready | LifecyclePhase::Draining | LifecyclePhase::Forced => {
            Refusal::EndpointNotFound
        }
    }
}

/// Returns the deployment that the header names, otherwise one by weight.
fn choose_deployment<'e>(
    client: &ClientConnection,
    endpoint: &'e EndpointEntry,
    named_deployment: Option<&HeaderValue>,
) -> Result<&'e Arc<DeploymentEntry>, Refusal> {
    match named_deployment {
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

fn model_path(
    deployment: &DeploymentEntry,
    asked: ModelPath<'_>,
    query: Option<&str>,
) -> Result<PathAndQuery, Refusal> {
    let path = match (asked, query) {
        (ModelPath::Score, None) => return Ok(deployment.scoring_path.clone()),
        (ModelPath::Swagger, None) => return Ok(deployment.swagger_path.clone()),
        (ModelPath::Score, _) => deployment.scoring_path.path(),
        (ModelPath::Swagger, _) => deployment.swagger_path.path(),
        (ModelPath::Path(path), _) => path,
    };
    let path_and_query = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    PathAndQuery::from_maybe_shared(path_and_query).map_err(|_| Refusal::BadRequest("its path is not valid"))
}

/// Finds a replica that accepts the request, and waits for its response head.
async fn forward_request(
    client: &Rc<ClientConnection>,
    context: &mut RequestContext,
    deployment: &DeploymentEntry,
    mut request: Box<Request<Upload>>,
    mut plan: Option<MirrorPlan>,
) -> Result<RouteOutcome, Refusal> {
    let mut avoid = AvoidedReplicas::default();
    for retry in 0.. {
        let slot = acquire_slot(context, deployment, avoid).await?;
        let dispatched_at = context.dispatched_at.unwrap_or_else(Instant::now);
        if let Some(plan) = plan.take() {
            if request.body().length().is_none() {
                context.unmeasured_mirror = Some(plan.mirror.clone());
            }
            context.mirror_handle =
                plan.start_mirroring(&client.worker, &context.request_id, &mut request, dispatched_at);
        }
        match attempt(&client.worker, deployment, slot, request, dispatched_at).await {
            // Requests to upgrade are not passed on, so no other protocol was asked for.
            Ok((head, _)) if head.status == StatusCode::SWITCHING_PROTOCOLS => return Err(Refusal::ReplicaClosed),
            Ok((head, exchange)) => {
                context.response_head_at = Some(Instant::now());
                context.last_byte_at = exchange.last_byte_at();
                if let Some(mirror_handle) = &context.mirror_handle {
                    mirror_handle.record_live_head(&head.headers, context.model_time());
                }
                return Ok(RouteOutcome::Proxied(head, exchange));
            }
            Err(AttemptError::Failed(refusal)) => return Err(refusal),
            Err(AttemptError::NotSent(slot, unsent)) => {
                if !slot.is_expired() {
                    avoid.insert(slot.replica_id());
                }
                if retry == MAX_RETRIES || !deployment.slots.has_ready_replica_except(avoid) {
                    break;
                }
                deployment.metrics.record_retry("unreachable");
                request = unsent;
            }
        }
    }
    Err(Refusal::ReplicaUnreachable)
}

/// Acquires a slot, at once or after a wait in the queue.
async fn acquire_slot(
    context: &mut RequestContext,
    deployment: &DeploymentEntry,
    avoid: AvoidedReplicas,
) -> Result<Slot, Refusal> {
    let now = Instant::now();
    let deadline = now + deployment.spec.request_settings.max_queue_wait;
    let slot = match deployment.slots.acquire(now, deadline, avoid)? {
        AcquireOutcome::Granted(slot) => {
            context.dispatched_at = Some(now);
            return Ok(slot);
        }
        // This case is rare and its future is large, so it is kept out of every request's future.
        AcquireOutcome::Queued(waiting) => Box::pin(waiting.wait_for_slot()).await,
    };
    let granted = Instant::now();
    let previous_wait = context.queue_wait.unwrap_or_default();
    context.queue_wait = Some(previous_wait + granted.duration_since(now));
    context.dispatched_at = Some(granted);
    slot.map_err(|error| {
        context.dispatched_at = None;
        error.into()
    })
}

/// Turns the response of a model into the response to the client.
fn proxied_response(
    mut parts: response::Parts,
    exchange: Exchange,
    mut context: RequestContext,
    codes: StatusCodes,
    origin: Option<&HeaderValue>,
) -> Response<ResponseBody> {
    let model_status = parts.status;
    let status = match codes {
        _ if model_status.is_success() => model_status,
        StatusCodes::Managed => StatusCode::FAILED_DEPENDENCY,
        StatusCodes::Kubernetes if model_status == StatusCode::INTERNAL_SERVER_ERROR => StatusCode::BAD_GATEWAY,
        StatusCodes::Kubernetes => model_status,
    };
    headers::prepare_client_response(&mut parts.headers, model_status);
    context.set_response_headers(&mut parts.headers);
    if !model_status.is_success() {
        parts.headers.insert(headers::MODEL_ERROR_STATUS_CODE, HeaderValue::from(model_status.as_u16()));
        parts.headers.insert(headers::MODEL_ERROR_REASON, HeaderValue::from_static("model_error"));
    }
    parts.headers.insert(headers::SERVER_TIMING, context.server_timing());
    if let Some(cors) = context.endpoint.as_ref().and_then(|endpoint| endpoint.spec.cors.as_ref()) {
        cors::add_cors_headers(cors, origin, &mut parts.headers);
    }
    if context.accepts_trailers && !exchange.is_end_stream() {
        headers::announce_trailers(&mut parts.headers, context.version);
    }
    set_connection_close(&context, &mut parts.headers, false);
    (context.status, context.model_status) = (Some(status), Some(model_status));
    (parts.status, parts.version) = (status, Version::HTTP_11);
    // A reason phrase of the model would stand beside another status.
    parts.extensions.clear();
    Response::from_parts(parts, ResponseBody::proxied(exchange, context))
}

/// Builds a response of the router itself. `last` closes the connection after it, where nobody can be sure where the
/// next request begins.
fn local_response(
    response: Response<bytes::Bytes>,
    mut context: RequestContext,
    origin: Option<&HeaderValue>,
    is_last: bool,
) -> Response<ResponseBody> {
    let fault = context.upload_progress.fault();
    // A client that left in the middle of its body does not get the response.
    context.status = (fault != Some(Refusal::BodyCutShort)).then(|| response.status());
    let (mut parts, body) = response.into_parts();
    context.set_response_headers(&mut parts.headers);
    set_connection_close(&context, &mut parts.headers, is_last);
    if let (Some(cors), Some(origin)) =
        (context.endpoint.as_ref().and_then(|endpoint| endpoint.spec.cors.as_ref()), origin)
    {
        cors::add_cors_headers(cors, Some(origin), &mut parts.headers);
    }
    Response::from_parts(parts, ResponseBody::Local(body, Box::new(context)))
}

/// Adds `connection: close` if no other request can follow: the response is the last one, or it is sent before the end
/// of the request body, whose rest may never be read.
fn set_connection_close(context: &RequestContext, answer: &mut HeaderMap, is_last: bool) {
    let is_body_unread = context.upload_progress.ended_at().is_none();
    if (is_last || is_body_unread) && context.version != Version::HTTP_2 {
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

impl From<AcquireError> for Refusal {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::QueueFull(after) => Self::QueueFull(after),
            AcquireError::TimedOut(after) => Self::QueueTimeout(after),
            AcquireError::NoReplica(after) => Self::NoReadyReplica(after),
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
