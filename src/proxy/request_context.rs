//! Facts about one request, which are counted and logged when it has ended, however it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, StatusCode, Version, request};

use super::client_io::ClientConnection;
use super::error_response::{self, ProblemContext};
use super::headers::{self, PresentHeaders};
use super::mirror::MirrorHandle;
use super::request_id;
use super::upload::UploadProgress;
use crate::model::refusal::Refusal;
use crate::policy::access::Identity;
use crate::state::access_log::AccessLogRecord;
use crate::state::mirror::MirrorEntry;
use crate::state::routing_table::{DeploymentEntry, EndpointEntry};

/// The status that is logged when the client left before there was one. nginx introduced this convention.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// The longest user agent in the log, as in Azure's.
const MAX_USER_AGENT_CHARS: usize = 70;

/// The context of one request. It is counted and logged on drop.
pub(super) struct RequestContext {
    pub(super) client: Rc<ClientConnection>,
    pub(super) request_id: HeaderValue,
    pub(super) client_request_id: Option<HeaderValue>,
    pub(super) endpoint: Option<Arc<EndpointEntry>>,
    pub(super) deployment: Option<Arc<DeploymentEntry>>,
    /// The progress of the request body.
    pub(super) upload_progress: Rc<UploadProgress>,
    /// The mirrored copy of the request, if there is one.
    pub(super) mirror_handle: Option<MirrorHandle>,
    /// The mirror entry to which the length of the body is added, where it was not known before.
    pub(super) unmeasured_mirror: Option<Arc<MirrorEntry>>,
    pub(super) identity: Option<Identity>,
    /// Whether the client gets trailers with the throttling delays.
    pub(super) accepts_trailers: bool,
    /// The time by which the bandwidth limit has delayed the response.
    pub(super) response_delay: Duration,
    /// The queue wait, if the request was queued.
    pub(super) queue_wait: Option<Duration>,
    /// When the request was dispatched to a replica.
    pub(super) dispatched_at: Option<Instant>,
    /// When the response head of the model arrived.
    pub(super) response_head_at: Option<Instant>,
    /// When the last byte of the model's response arrived.
    pub(super) last_byte_at: Option<Instant>,
    pub(super) model_status: Option<StatusCode>,
    /// The status sent to the client.
    pub(super) status: Option<StatusCode>,
    /// Bytes of the response body sent to the client.
    pub(super) sent_bytes: u64,
    pub(super) version: Version,
    started_at: Instant,
    /// Fields that only the access log needs.
    log_fields: Option<Box<AccessLogFields>>,
}

struct AccessLogFields {
    method: Method,
    path: String,
    user_agent: String,
}

impl RequestContext {
    /// Creates the context from the request head.
    pub(super) fn begin(
        client: &Rc<ClientConnection>,
        head: &request::Parts,
        present: &PresentHeaders,
        upload_progress: Rc<UploadProgress>,
    ) -> Self {
        let log_fields = client.worker.shared.access_log.is_some().then(|| {
            Box::new(AccessLogFields {
                method: head.method.clone(),
                path: head.uri.path().to_owned(),
                user_agent: truncated_user_agent(&head.headers),
            })
        });
        Self {
            started_at: client.activity.begin_request(&upload_progress),
            client: client.clone(),
            request_id: client.worker.with_rng(request_id::generate),
            client_request_id: if present.has_client_request_id {
                headers::echoed_client_request_id(&head.headers)
            } else {
                None
            },
            endpoint: None,
            deployment: None,
            upload_progress,
            mirror_handle: None,
            unmeasured_mirror: None,
            identity: None,
            accepts_trailers: false,
            response_delay: Duration::ZERO,
            queue_wait: None,
            dispatched_at: None,
            response_head_at: None,
            last_byte_at: None,
            model_status: None,
            status: None,
            sent_bytes: 0,
            version: head.version,
            log_fields,
        }
    }

    /// Counts a refusal under its reason.
    pub(super) fn record_refusal(&self, refusal: Refusal) {
        if refusal == Refusal::BodyCutShort {
            // The client left, so nothing was refused.
            return;
        }
        let reason = error_response::error_code(refusal);
        match (&self.deployment, &self.endpoint) {
            (Some(deployment), _) => deployment.metrics.record_rejection(reason),
            (None, Some(endpoint)) => endpoint.metrics.record_rejection(reason),
            (None, None) => self.client.worker.unrouted_metrics.record_rejection(reason),
        }
        if let (Refusal::Denied(_), Some(endpoint)) = (refusal, &self.endpoint) {
            endpoint.metrics.record_auth_failure(reason);
        }
    }

    /// Counts a response that was truncated after its head.
    pub(super) fn record_truncated_response(&self) {
        if let Some(deployment) = &self.deployment {
            deployment.metrics.record_rejection("response_broke_off");
        }
        if let (Some(copied), Some(status)) = (&self.mirror_handle, self.model_status) {
            copied.record_live_truncated(status);
        }
    }

    /// Returns what a problem document says about the request.
    pub(super) fn problem_context(&self) -> ProblemContext<'_> {
        ProblemContext {
            request_id: self.request_id.to_str().unwrap_or_default(),
            endpoint: self.endpoint.as_ref().map_or("", |endpoint| endpoint.spec.name.as_str()),
            deployment: self.deployment.as_ref().map_or("", |deployment| deployment.spec.name.as_str()),
        }
    }

    /// Returns the time from the dispatch to the response head of the model.
    pub(super) fn model_time(&self) -> Option<Duration> {
        Some(self.response_head_at?.duration_since(self.dispatched_at?))
    }

    /// Adds the headers that every response of the router has.
    pub(super) fn set_response_headers(&self, answer: &mut HeaderMap) {
        answer.insert(headers::REQUEST_ID, self.request_id.clone());
        if let Some(id) = &self.client_request_id {
            answer.insert(headers::CLIENT_REQUEST_ID, id.clone());
        }
        if let (Some(deployment), Some(_)) = (&self.deployment, self.response_head_at) {
            answer.insert(headers::MODEL_DEPLOYMENT, deployment.name_header.clone());
        }
        if let Some(time) = self.model_time() {
            answer.insert(headers::MODEL_TIME, HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    /// Writes the delays of request and response by the bandwidth limit.
    pub(super) fn write_delay_trailers(&self, trailers: &mut HeaderMap) {
        for (name, delay) in [
            (headers::REQUEST_DELAY, self.upload_progress.total_delay()),
            (headers::RESPONSE_DELAY, self.response_delay),
        ] {
            trailers.insert(name, HeaderValue::from(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    /// Returns the `server-timing` header: where the time went up to the response head of the model.
    pub(super) fn server_timing(&self) -> HeaderValue {
        let mut text = BytesMut::with_capacity(48);
        text.extend_from_slice(b"queue;dur=");
        headers::write_milliseconds(&mut text, self.queue_wait.unwrap_or_default());
        text.extend_from_slice(b", model;dur=");
        headers::write_milliseconds(&mut text, self.model_time().unwrap_or_default());
        HeaderValue::from_maybe_shared(text.freeze()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    fn record_metrics(&self, code: u16, now: Instant) {
        let Some(deployment) = &self.deployment else {
            return match &self.endpoint {
                Some(endpoint) => endpoint.metrics.record_response(code),
                None => self.client.worker.unrouted_metrics.record_response(code),
            };
        };
        let metrics = &deployment.metrics;
        metrics.record_response(code, self.model_status.map(|status| status.as_u16()));
        metrics.add_bytes(self.upload_progress.received_bytes(), self.sent_bytes);
        let total = now.duration_since(self.started_at);
        let upstream_time =
            self.dispatched_at.map(|at| self.last_byte_at.unwrap_or(now).duration_since(at)).unwrap_or_default();
        let routing = total.saturating_sub(self.queue_wait.unwrap_or_default()).saturating_sub(upstream_time);
        metrics.observe_durations(total, self.queue_wait, self.model_time(), routing);
    }

    fn write_access_log(&self, code: u16, now: Instant) {
        let (Some(log), Some(log_fields)) = (&self.client.worker.shared.access_log, &self.log_fields) else { return };
        let since_start = |at: Instant| as_milliseconds(at.saturating_duration_since(self.started_at));
        let ProblemContext { request_id, endpoint, deployment } = self.problem_context();
        log.write(&AccessLogRecord {
            time_generated: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            operation_name: "Score",
            method: log_fields.method.as_str(),
            path: &log_fields.path,
            endpoint_name: endpoint,
            deployment_name: deployment,
            protocol: protocol_name(self.version),
            response_code: code,
            response_code_reason: self.status.map_or("Client Closed Request", reason_phrase),
            model_status_code: self.model_status.map(|status| status.as_u16()),
            model_status_reason: self.model_status.map(reason_phrase),
            request_payload_size: self.upload_progress.received_bytes(),
            response_payload_size: self.sent_bytes,
            user_agent: &log_fields.user_agent,
            x_request_id: request_id,
            x_ms_client_request_id: self.client_request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            auth_type: match &self.identity {
                Some(Identity::Key) => "Key",
                Some(Identity::RouterToken(_)) => "AMLToken",
                Some(Identity::IssuerToken(_)) => "AADToken",
                Some(Identity::Open) => "None",
                None => "",
            },
            identity_data: match &self.identity {
                Some(Identity::RouterToken(subject) | Identity::IssuerToken(subject)) => subject,
                _ => "",
            },
            total_duration_ms: as_milliseconds(now.duration_since(self.started_at)),
            queue_duration_ms: as_milliseconds(self.queue_wait.unwrap_or_default()),
            request_duration_ms: self.upload_progress.ended_at().map(since_start),
            response_duration_ms: self.response_head_at.map(since_start),
            request_throttling_delay_ms: as_milliseconds(self.upload_progress.total_delay()),
            response_throttling_delay_ms: as_milliseconds(self.response_delay),
        });
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        let now = Instant::now();
        self.client.activity.end_request(now, self.upload_progress.ended_at().is_none());
        if let Some(mirror) = &self.unmeasured_mirror {
            mirror.earn_bytes(self.upload_progress.received_bytes());
        }
        // The client may have received only a part of the model's response.
        if let Some(copied) = &self.mirror_handle {
            match (self.status, self.model_status) {
                (Some(_), Some(status)) if self.last_byte_at.is_some() => copied.record_live_complete(status),
                (Some(status), None) => copied.record_live_complete(status),
                _ => copied.record_client_left(),
            }
        }
        let code = self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16());
        self.record_metrics(code, now);
        self.write_access_log(code, now);
    }
}

fn truncated_user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    agent.chars().take(MAX_USER_AGENT_CHARS).collect()
}

fn reason_phrase(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn as_milliseconds(duration: Duration) -> f64 {
    // The log does not need more than microseconds.
    duration.as_micros() as f64 / 1000.0
}
