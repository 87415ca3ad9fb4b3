//! The router's own error responses. Only this module maps a [`Refusal`] to its status, code and detail.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde_json::json;

use crate::model::refusal::Refusal;
use crate::model::router_settings::StatusCodes;
use auth_failure::{INSUFFICIENT_SCOPE, auth_failure_details, www_authenticate};

mod auth_failure;
pub(super) mod catalog;

/// The media type of problem documents (RFC 9457).
pub(super) const PROBLEM_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// The base of the `type` URLs under which the codes are explained; the code follows the base.
const PROBLEM_TYPE_BASE_URL: &str = "https://inference-router.dev/problems/";

/// The request that a problem document is about. Fields are empty where they are not known.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ProblemContext<'a> {
    pub(super) request_id: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) deployment: &'a str,
}

/// Returns the stable name of a refusal: the `code` of its problem document, and the `reason` of its metrics.
pub(super) fn error_code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Denied(denied) => auth_failure_details(denied).code,
        Refusal::TokenKeysUnavailable(_) => "token_keys_unavailable",
        Refusal::EndpointNotFound => "endpoint_not_found",
        Refusal::DeploymentNotFound => "deployment_not_found",
        Refusal::NoLiveDeployment => "no_live_deployment",
        Refusal::PayloadTooLarge(_) => "payload_too_large",
        Refusal::HeadTimeout | Refusal::BodyTimeout => "client_timeout",
        Refusal::HeadTooLarge => "head_too_large",
        Refusal::BadRequest(_) | Refusal::BodyCutShort => "bad_request",
        Refusal::MethodNotAllowed | Refusal::PostOnly => "method_not_allowed",
        Refusal::QueueFull(_) | Refusal::QueueTimeout(_) => "too_many_requests",
        Refusal::NoReadyReplica(_) => "no_ready_replica",
        Refusal::TooManyConnections => "too_many_connections",
        Refusal::ModelTimeout(_) => "model_timeout",
        Refusal::ReplicaUnreachable => "replica_unreachable",
        Refusal::ReplicaClosed => "replica_closed",
    }
}

/// Returns the status code of a refusal.
pub(super) fn status_code(refusal: Refusal, codes: StatusCodes) -> StatusCode {
    let is_managed = codes == StatusCodes::Managed;
    match refusal {
        Refusal::Denied(denied) if auth_failure_details(denied).error == Some(INSUFFICIENT_SCOPE) => {
            StatusCode::FORBIDDEN
        }
        Refusal::Denied(_) => StatusCode::UNAUTHORIZED,
        Refusal::EndpointNotFound | Refusal::DeploymentNotFound | Refusal::NoLiveDeployment => StatusCode::NOT_FOUND,
        Refusal::PayloadTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::HeadTimeout | Refusal::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Refusal::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Refusal::BadRequest(_) | Refusal::BodyCutShort => StatusCode::BAD_REQUEST,
        Refusal::MethodNotAllowed | Refusal::PostOnly => StatusCode::METHOD_NOT_ALLOWED,
        Refusal::QueueFull(_) | Refusal::QueueTimeout(_) if is_managed => StatusCode::TOO_MANY_REQUESTS,
        Refusal::QueueFull(_)
        | Refusal::QueueTimeout(_)
        | Refusal::NoReadyReplica(_)
        | Refusal::TokenKeysUnavailable(_)
        | Refusal::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::ModelTimeout(_) if is_managed => StatusCode::REQUEST_TIMEOUT,
        Refusal::ModelTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
        Refusal::ReplicaUnreachable | Refusal::ReplicaClosed => StatusCode::BAD_GATEWAY,
    }
}

/// Returns the `detail` of the problem document: what happened, and what the client should do.
fn detail(refusal: Refusal) -> String {
    match refusal {
        Refusal::Denied(denied) => auth_failure_details(denied).detail.to_owned(),
        Refusal::TokenKeysUnavailable(_) => {
            "Tokens of this endpoint cannot be checked now: their issuer's keys are not \
                                             there, or too many wait. Send it again after the time in retry-after."
                .to_owned()
        }
        Refusal::PostOnly => "Tokens are asked for with POST.".to_owned(),
        Refusal::EndpointNotFound => "No endpoint has this path. Check its name; scoring paths have the form \
                                      /api/v1/endpoint/{endpoint}/score."
            .to_owned(),
        Refusal::DeploymentNotFound => "The endpoint has no deployment of the name in azureml-model-deployment. \
                                        Correct the name, or leave the header out to follow the traffic rules."
            .to_owned(),
        Refusal::NoLiveDeployment => "No deployment of the endpoint gets traffic. Give one a positive weight in \
                                      `traffic`, or name one in the header azureml-model-deployment."
            .to_owned(),
        Refusal::PayloadTooLarge(limit) => {
            format!("The body is larger than the {limit} bytes allowed. Send less, or in several requests.")
        }
        Refusal::HeadTimeout => "The request's head did not arrive in time. Send it at once.".to_owned(),
        Refusal::BodyTimeout => {
            "The request's body did not arrive in time. Send it faster, or in smaller requests.".to_owned()
        }
        Refusal::HeadTooLarge => "The request's line or headers are larger, or more, than allowed. Send fewer or \
                                  shorter ones."
            .to_owned(),
        Refusal::BadRequest(reason) => {
            format!("The request cannot be passed on: {reason}. Correct it and send it again.")
        }
        Refusal::BodyCutShort => "The request's body broke off or is malformed. Send it again, complete.".to_owned(),
        Refusal::MethodNotAllowed => "CONNECT and TRACE are not passed on. Use POST or GET.".to_owned(),
        Refusal::QueueFull(_) => {
            "All replicas are busy and the queue is full. Send it again after the time in retry-after.".to_owned()
        }
        Refusal::QueueTimeout(_) => {
            "No replica became free in time. Send it again after the time in retry-after.".to_owned()
        }
        Refusal::NoReadyReplica(_) => {
            "No replica of the deployment can take requests now. Send it again after the time in retry-after."
                .to_owned()
        }
        Refusal::TooManyConnections => {
            "The router has as many connections as it may. Send it again later, over fewer connections.".to_owned()
        }
        Refusal::ModelTimeout(limit) => format!(
            "The model did not answer within {} ms. Send less at once, or raise requestTimeoutMs of the deployment.",
            limit.as_millis()
        ),
        Refusal::ReplicaUnreachable => {
            "No replica could be reached; the model has seen nothing of the request. Send it again.".to_owned()
        }
        Refusal::ReplicaClosed => "The model closed the connection, or spoke no HTTP, before it answered. It may have \
                                   worked on the request: send it again only if that does no harm."
            .to_owned(),
    }
}

/// Returns the complete response to a refused request.
pub(super) fn problem_response(refusal: Refusal, codes: StatusCodes, context: ProblemContext<'_>) -> Response<Bytes> {
    let status = status_code(refusal, codes);
    let mut response = Response::new(problem_document(refusal, status, context));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM_CONTENT_TYPE);
    match refusal {
        Refusal::Denied(denied) => {
            headers.insert(WWW_AUTHENTICATE, www_authenticate(denied));
        }
        Refusal::PostOnly => {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        Refusal::MethodNotAllowed => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        Refusal::QueueFull(after)
        | Refusal::QueueTimeout(after)
        | Refusal::NoReadyReplica(after)
        | Refusal::TokenKeysUnavailable(after) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_seconds(after)));
        }
        _ => {}
    }
    response
}

/// Returns an HTTP/1 response for a connection on which no request could be parsed. The connection is closed after it.
pub(super) fn raw_http1_response(refusal: Refusal, request_id: &HeaderValue) -> Bytes {
    let status = status_code(refusal, StatusCodes::Kubernetes);
    let request_id = request_id.to_str().unwrap_or_default();
    let body = problem_document(refusal, status, ProblemContext { request_id, ..ProblemContext::default() });
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         x-request-id: {request_id}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat().into()
}

fn problem_document(refusal: Refusal, status: StatusCode, context: ProblemContext<'_>) -> Bytes {
    let code = error_code(refusal);
    let mut document = json!({
        "type": format!("{PROBLEM_TYPE_BASE_URL}{code}"),
        "title": status.canonical_reason().unwrap_or(code),
        "status": status.as_u16(),
        "detail": detail(refusal),
        "code": code,
    });
    for (name, value) in
        [("requestId", context.request_id), ("endpoint", context.endpoint), ("deployment", context.deployment)]
    {
        if !value.is_empty() {
            document[name] = value.into();
        }
    }
    document.to_string().into()
}

/// Returns the value of `retry-after` in whole seconds, rounded up, at least 1.
fn retry_after_seconds(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0 || after.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::AuthFailure;

    #[test]
    fn the_two_modes_differ_where_azures_platforms_do() {
        let second = Duration::from_secs(1);
        for (refusal, kubernetes, managed) in [
            (Refusal::Denied(AuthFailure::Missing), 401, 401),
            (Refusal::Denied(AuthFailure::Expired), 401, 401),
            (Refusal::Denied(AuthFailure::WrongEndpoint), 403, 403),
            (Refusal::Denied(AuthFailure::MissingClaim), 403, 403),
            (Refusal::Denied(AuthFailure::NotAllowed), 403, 403),
            (Refusal::TokenKeysUnavailable(second), 503, 503),
            (Refusal::PostOnly, 405, 405),
            (Refusal::EndpointNotFound, 404, 404),
            (Refusal::DeploymentNotFound, 404, 404),
            (Refusal::NoLiveDeployment, 404, 404),
            (Refusal::PayloadTooLarge(1), 413, 413),
            (Refusal::HeadTimeout, 408, 408),
            (Refusal::BodyTimeout, 408, 408),
            (Refusal::HeadTooLarge, 431, 431),
            (Refusal::BadRequest("x"), 400, 400),
            (Refusal::BodyCutShort, 400, 400),
            (Refusal::MethodNotAllowed, 405, 405),
            (Refusal::QueueFull(second), 503, 429),
            (Refusal::QueueTimeout(second), 503, 429),
            (Refusal::NoReadyReplica(second), 503, 503),
            (Refusal::TooManyConnections, 503, 503),
            (Refusal::ModelTimeout(second), 504, 408),
            (Refusal::ReplicaUnreachable, 502, 502),
            (Refusal::ReplicaClosed, 502, 502),
        ] {
            assert_eq!(status_code(refusal, StatusCodes::Kubernetes), kubernetes, "{refusal:?}");
            assert_eq!(status_code(refusal, StatusCodes::Managed), managed, "{refusal:?}");
        }
    }

    #[test]
    fn a_refusal_is_a_problem_document() {
        let context = ProblemContext { request_id: "id", endpoint: "my-endpoint", deployment: "blue" };
        let refusal = Refusal::QueueTimeout(Duration::from_millis(1500));
        let response = problem_response(refusal, StatusCodes::Kubernetes, context);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let document: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(document["code"], "too_many_requests");
        assert_eq!(document["status"], 503);
        assert_eq!(document["requestId"], "id");
        assert_eq!(document["endpoint"], "my-endpoint");
        assert_eq!(document["deployment"], "blue");
    }
}
