//! What is remembered of a request, and counted and logged when it has ended, however it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, StatusCode, Version, request};

use super::client_io::Client;
use super::headers::{self, Notable};
use super::mirror::Copied;
use super::request_id;
use super::respond::{self, Context};
use super::upload::Progress;
use crate::model::refusal::Refusal;
use crate::policy::access::Proof;
use crate::state::access_log::Line;
use crate::state::mirror::Mirror;
use crate::state::table::{Deployment, Endpoint};

/// The status that is logged when the client left before there was one; nginx's convention.
const CLIENT_LEFT: u16 = 499;
/// Longest user agent in the log, as in Azure's.
const USER_AGENT_LENGTH: usize = 70;

/// One request. Counted and logged when dropped.
pub(super) struct Record {
    pub(super) client: Rc<Client>,
    pub(super) request_id: HeaderValue,
    pub(super) client_request_id: Option<HeaderValue>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) deployment: Option<Arc<Deployment>>,
    /// How far its body has come.
    pub(super) upload: Rc<Progress>,
    /// Its copy, if it has one.
    pub(super) copied: Option<Copied>,
    /// Who is to know how long its body was, since nobody did before.
    pub(super) unmeasured: Option<Arc<Mirror>>,
    pub(super) proof: Option<Proof>,
    /// Whether the client is told in trailers for how long it was held back.
    pub(super) takes_trailers: bool,
    /// For how long the answer has been held back, for the sake of bandwidth.
    pub(super) answer_delayed: Duration,
    /// Time in the queue, of a request that waited.
    pub(super) queued: Option<Duration>,
    /// When a replica got it.
    pub(super) dispatched: Option<Instant>,
    /// When the model's response head came.
    pub(super) head: Option<Instant>,
    /// When the model's last byte came.
    pub(super) ended: Option<Instant>,
    pub(super) model_status: Option<StatusCode>,
    /// The status sent to the client.
    pub(super) status: Option<StatusCode>,
    /// Body bytes sent to the client.
    pub(super) sent: u64,
    pub(super) version: Version,
    start: Instant,
    /// What only the access log wants to know.
    log: Option<Box<Logged>>,
}

struct Logged {
    method: Method,
    path: String,
    user_agent: String,
}

impl Record {
    /// Begins with a request's head.
    pub(super) fn begin(client: &Rc<Client>, head: &request::Parts, notable: &Notable, upload: Rc<Progress>) -> Self {
        let log = client.worker.shared.access_log.is_some().then(|| {
            Box::new(Logged {
                method: head.method.clone(),
                path: head.uri.path().to_owned(),
                user_agent: user_agent(&head.headers),
            })
        });
        Self {
            start: client.pace.begin(&upload),
            client: client.clone(),
            request_id: client.worker.with_rng(request_id::fresh),
            client_request_id: if notable.client_request_id { headers::client_request_id(&head.headers) } else { None },
            endpoint: None,
            deployment: None,
            upload,
            copied: None,
            unmeasured: None,
            proof: None,
            takes_trailers: false,
            answer_delayed: Duration::ZERO,
            queued: None,
            dispatched: None,
            head: None,
            ended: None,
            model_status: None,
            status: None,
            sent: 0,
            version: head.version,
            log,
        }
    }

    /// Counts a refusal under its reason.
    pub(super) fn refused(&self, refusal: Refusal) {
        if refusal == Refusal::BodyCutShort {
            // Nobody was refused: the client left.
            return;
        }
        let reason = respond::code(refusal);
        match (&self.deployment, &self.endpoint) {
            (Some(deployment), _) => deployment.metrics.rejected(reason),
            (None, Some(endpoint)) => endpoint.metrics.rejected(reason),
            (None, None) => self.client.worker.nowhere.rejected(reason),
        }
        if let (Refusal::Denied(_), Some(endpoint)) = (refusal, &self.endpoint) {
            endpoint.metrics.denied(reason);
        }
    }

    /// Counts a response that broke off after its head.
    pub(super) fn broke_off(&self) {
        if let Some(deployment) = &self.deployment {
            deployment.metrics.rejected("response_broke_off");
        }
        if let (Some(copied), Some(status)) = (&self.copied, self.model_status) {
            copied.broke_off(status);
        }
    }

    /// What a problem document says of where it arose.
    pub(super) fn context(&self) -> Context<'_> {
        Context {
            request_id: self.request_id.to_str().unwrap_or_default(),
            endpoint: self.endpoint.as_ref().map_or("", |endpoint| endpoint.spec.name.as_str()),
            deployment: self.deployment.as_ref().map_or("", |deployment| deployment.spec.name.as_str()),
        }
    }

    /// From dispatch to the model's response head.
    pub(super) fn model_time(&self) -> Option<Duration> {
        Some(self.head?.duration_since(self.dispatched?))
    }

    /// Adds what every response of the router carries.
    pub(super) fn describe(&self, answer: &mut HeaderMap) {
        answer.insert(headers::REQUEST_ID, self.request_id.clone());
        if let Some(id) = &self.client_request_id {
            answer.insert(headers::CLIENT_REQUEST_ID, id.clone());
        }
        if let (Some(deployment), Some(_)) = (&self.deployment, self.head) {
            answer.insert(headers::MODEL_DEPLOYMENT, deployment.header.clone());
        }
        if let Some(time) = self.model_time() {
            answer.insert(headers::MODEL_TIME, HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    /// For how long the request and its answer were held back, for the sake of bandwidth.
    pub(super) fn trail(&self, trailers: &mut HeaderMap) {
        for (name, delay) in
            [(headers::REQUEST_DELAY, self.upload.delayed()), (headers::RESPONSE_DELAY, self.answer_delayed)]
        {
            trailers.insert(name, HeaderValue::from(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    /// Where the time of a request went, up to the model's response head.
    pub(super) fn timing(&self) -> HeaderValue {
        let mut text = BytesMut::with_capacity(48);
        text.extend_from_slice(b"queue;dur=");
        headers::milliseconds(&mut text, self.queued.unwrap_or_default());
        text.extend_from_slice(b", model;dur=");
        headers::milliseconds(&mut text, self.model_time().unwrap_or_default());
        HeaderValue::from_maybe_shared(text.freeze()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    fn count(&self, code: u16, now: Instant) {
        let Some(deployment) = &self.deployment else {
            return match &self.endpoint {
                Some(endpoint) => endpoint.metrics.answered(code),
                None => self.client.worker.nowhere.answered(code),
            };
        };
        let metrics = &deployment.metrics;
        metrics.answered(code, self.model_status.map(|status| status.as_u16()));
        metrics.bytes(self.upload.received(), self.sent);
        let total = now.duration_since(self.start);
        let with_model = self.dispatched.map(|at| self.ended.unwrap_or(now).duration_since(at)).unwrap_or_default();
        let routing = total.saturating_sub(self.queued.unwrap_or_default()).saturating_sub(with_model);
        metrics.observe(total, self.queued, self.model_time(), routing);
    }

    fn write(&self, code: u16, now: Instant) {
        let (Some(log), Some(logged)) = (&self.client.worker.shared.access_log, &self.log) else { return };
        let since_start = |at: Instant| milliseconds(at.saturating_duration_since(self.start));
        let Context { request_id, endpoint, deployment } = self.context();
        log.write(&Line {
            time_generated: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            operation_name: "Score",
            method: logged.method.as_str(),
            path: &logged.path,
            endpoint_name: endpoint,
            deployment_name: deployment,
            protocol: protocol(self.version),
            response_code: code,
            response_code_reason: self.status.map_or("Client Closed Request", reason),
            model_status_code: self.model_status.map(|status| status.as_u16()),
            model_status_reason: self.model_status.map(reason),
            request_payload_size: self.upload.received(),
            response_payload_size: self.sent,
            user_agent: &logged.user_agent,
            x_request_id: request_id,
            x_ms_client_request_id: self.client_request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            auth_type: match &self.proof {
                Some(Proof::Key) => "Key",
                Some(Proof::RouterToken(_)) => "AMLToken",
                Some(Proof::IssuerToken(_)) => "AADToken",
                Some(Proof::Open) => "None",
                None => "",
            },
            identity_data: match &self.proof {
                Some(Proof::RouterToken(subject) | Proof::IssuerToken(subject)) => subject,
                _ => "",
            },
            total_duration_ms: milliseconds(now.duration_since(self.start)),
            queue_duration_ms: milliseconds(self.queued.unwrap_or_default()),
            request_duration_ms: self.upload.ended().map(since_start),
            response_duration_ms: self.head.map(since_start),
            request_throttling_delay_ms: milliseconds(self.upload.delayed()),
            response_throttling_delay_ms: milliseconds(self.answer_delayed),
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = Instant::now();
        self.client.pace.end(now, self.upload.ended().is_none());
        if let Some(mirror) = &self.unmeasured {
            mirror.earn(self.upload.received());
        }
        // Of a model's answer the client may have had but a part.
        if let Some(copied) = &self.copied {
            match (self.status, self.model_status) {
                (Some(_), Some(status)) if self.ended.is_some() => copied.complete(status),
                (Some(status), None) => copied.complete(status),
                _ => copied.client_left(),
            }
        }
        let code = self.status.map_or(CLIENT_LEFT, |status| status.as_u16());
        self.count(code, now);
        self.write(code, now);
    }
}

fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    agent.chars().take(USER_AGENT_LENGTH).collect()
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as the log needs.
    duration.as_micros() as f64 / 1000.0
}
