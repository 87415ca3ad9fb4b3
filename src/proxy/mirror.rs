//! Mirroring of live requests to a shadow deployment. Each copy is a request of its own, on a task of its own, and gets
//! the body as the live request reads it. Nothing of the live request waits for the copy or depends on how it ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body::Frame;

use super::attempt::attempt;
use super::error_response;
use super::exchange::{AttemptError, Exchange, TruncatedResponse};
use super::headers;
use super::upload::Upload;
use super::worker::Worker;
use crate::model::endpoint::OnClientAbort;
use crate::model::refusal::Refusal;
use crate::policy::compare::{AnswerEnd, NotComparedReason};
use crate::policy::mirror::hash_request_id;
use crate::state::mirror::MirrorEntry;
use crate::state::slots::AcquireOutcome;

mod response_pair;
mod tee;
use response_pair::ResponsePair;
pub(super) use tee::{MirrorAbort, Tee};

/// The plan to mirror a live request, once it has a replica.
pub(super) struct MirrorPlan {
    pub(super) mirror: Arc<MirrorEntry>,
    /// The path on the shadow.
    pub(super) path: PathAndQuery,
    /// The client's credential, if the shadow may see it.
    pub(super) authorization: Option<HeaderValue>,
}

/// A copy, as its live request sees it.
pub(super) struct MirrorHandle {
    tee: Rc<Tee>,
    on_client_abort: OnClientAbort,
    /// Both answers, if they are compared.
    response_pair: Option<Rc<ResponsePair>>,
}

impl MirrorHandle {
    /// Records the head of the live response and how long it took.
    pub(super) fn record_live_head(&self, headers: &HeaderMap, latency: Option<Duration>) {
        self.response_pair.iter().for_each(|pair| pair.live.record_head(headers, latency));
    }

    /// Records a chunk of the live response.
    pub(super) fn record_live_data(&self, data: &Bytes) {
        self.response_pair.iter().for_each(|pair| pair.live.record_data(data));
    }

    /// Records that the live response was truncated.
    pub(super) fn record_live_truncated(&self, status: StatusCode) {
        self.response_pair.iter().for_each(|pair| pair.live.record_end(AnswerEnd::BrokeOff(status.as_u16())));
    }

    /// Records that the live response was complete: the model's, or one of the router itself.
    pub(super) fn record_live_complete(&self, status: StatusCode) {
        self.response_pair.iter().for_each(|pair| pair.live.record_end(AnswerEnd::Complete(status.as_u16())));
    }

    /// Records that the client left before its response was complete.
    pub(super) fn record_client_left(&self) {
        self.response_pair
            .iter()
            .for_each(|pair| pair.live.record_end(AnswerEnd::Unknown(NotComparedReason::ClientLeft)));
        if self.on_client_abort == OnClientAbort::Drop {
            self.tee.abort(MirrorAbort::ClientLeft);
        }
    }
}

impl MirrorPlan {
    /// Starts a copy of the request, if it is due and the shadow has a free slot.
    pub(super) fn start_mirroring(
        self,
        worker: &Rc<Worker>,
        request_id: &HeaderValue,
        request: &mut Request<Upload>,
        now: Instant,
    ) -> Option<MirrorHandle> {
        let Self { mirror, path, authorization } = self;
        let length = request.body().length();
        if !mirror.should_mirror(hash_request_id(request_id.as_bytes()), length.unwrap_or_default()) {
            return None;
        }
        if mirror.bandwidth_limit.as_ref().is_some_and(|limit| !limit.has_room_for_mirroring()) {
            mirror.shadow.metrics.record_mirror_request("over_bandwidth");
            return None;
        }
        let Some(acquire_outcome) = mirror.shadow.slots.try_acquire(now) else {
            mirror.shadow.metrics.record_mirror_request("no_slot");
            return None;
        };
        let tee = Rc::new(Tee::new(mirror.settings.window_bytes, worker.shared.mirror_budget.clone()));
        request.body_mut().attach_tee(tee.clone());
        let mut copy = Box::new(Request::new(Upload::from_tee(tee.clone(), length, &worker.shared.limits)));
        copy.method_mut().clone_from(request.method());
        *copy.uri_mut() = Uri::from(path);
        copy.headers_mut().clone_from(request.headers());
        copy.headers_mut().remove(AUTHORIZATION);
        copy.headers_mut().extend(authorization.map(|value| (AUTHORIZATION, value)));
        copy.headers_mut().insert(headers::MIRROR, HeaderValue::from_static("1"));
        let on_client_abort = mirror.settings.on_client_abort;
        let response_pair =
            mirror.comparison_results.as_ref().map(|compared| ResponsePair::new(worker, compared, request_id));
        let shadow = MirrorTask { mirror, tee: tee.clone(), response_pair: response_pair.clone(), body_length: length };
        tokio::task::spawn_local(shadow.run(worker.clone(), acquire_outcome, copy));
        Some(MirrorHandle { tee, on_client_abort, response_pair })
    }
}

/// A copy, as its own task sees it.
struct MirrorTask {
    mirror: Arc<MirrorEntry>,
    tee: Rc<Tee>,
    response_pair: Option<Rc<ResponsePair>>,
    /// The length of the body, if it was known.
    body_length: Option<u64>,
}

impl MirrorTask {
    /// Sends the copy to the shadow and counts how it ended.
    async fn run(self, worker: Rc<Worker>, acquire_outcome: AcquireOutcome, copy: Box<Request<Upload>>) {
        let (result, end) = {
            let mut answer = pin!(self.exchange_with_shadow(&worker, acquire_outcome, copy));
            poll_fn(|cx| match self.tee.poll_abort(cx) {
                Poll::Ready(MirrorAbort::Lagging) => {
                    Poll::Ready(("lagging", AnswerEnd::Unknown(NotComparedReason::Lagging)))
                }
                Poll::Ready(MirrorAbort::OverBudget) => {
                    Poll::Ready(("over_budget", AnswerEnd::Unknown(NotComparedReason::OverBudget)))
                }
                Poll::Ready(MirrorAbort::ClientLeft) => {
                    Poll::Ready(("client_left", AnswerEnd::Unknown(NotComparedReason::ClientLeft)))
                }
                Poll::Pending => answer.as_mut().poll(cx),
            })
            .await
        };
        self.response_pair.iter().for_each(|pair| pair.shadow.record_end(end));
        if result != "no_slot" {
            if self.body_length.is_none() {
                self.mirror.spend_bytes(self.tee.passed_bytes());
            }
            self.mirror.shadow.metrics.add_bytes(self.tee.passed_bytes(), 0);
            self.mirror.bandwidth_limit.iter().for_each(|limit| limit.add_mirrored_bytes(self.tee.passed_bytes()));
        }
        self.mirror.shadow.metrics.record_mirror_request(result);
    }

    /// Returns the result to count, and how the shadow's response ended. If there is none, it ends with the status that
    /// a client would have got.
    async fn exchange_with_shadow(
        &self,
        worker: &Rc<Worker>,
        acquire_outcome: AcquireOutcome,
        copy: Box<Request<Upload>>,
    ) -> (&'static str, AnswerEnd) {
        let slot = match acquire_outcome {
            AcquireOutcome::Granted(slot) => slot,
            AcquireOutcome::Queued(waiting) => match waiting.wait_for_slot().await {
                Ok(slot) => slot,
                Err(_) => return ("no_slot", AnswerEnd::Unknown(NotComparedReason::NoSlot)),
            },
        };
        let (shadow, dispatched) = (&self.mirror.shadow, Instant::now());
        let (head, mut exchange) = match attempt(worker, shadow, slot, copy, dispatched).await {
            Ok(answer) => answer,
            Err(error) => {
                let (result, refusal) = match error {
                    AttemptError::NotSent(..) | AttemptError::Failed(Refusal::ReplicaUnreachable) => {
                        ("unreachable", Refusal::ReplicaUnreachable)
                    }
                    AttemptError::Failed(refusal @ Refusal::ModelTimeout(_)) => ("timeout", refusal),
                    AttemptError::Failed(refusal) => ("closed", refusal),
                };
                return (
                    result,
                    AnswerEnd::Complete(error_response::status_code(refusal, worker.shared.status_codes).as_u16()),
                );
            }
        };
        let latency = dispatched.elapsed();
        shadow.metrics.observe_model_duration(latency);
        self.response_pair.iter().for_each(|pair| pair.shadow.record_head(&head.headers, Some(latency)));
        let (mut bytes, status) = (0, head.status.as_u16());
        let ended = loop {
            match next_frame(&mut exchange).await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        bytes += data.len() as u64;
                        self.response_pair.iter().for_each(|pair| pair.shadow.record_data(data));
                    }
                }
                Some(Err(TruncatedResponse)) => break ("broke_off", AnswerEnd::BrokeOff(status)),
                None => break ("answered", AnswerEnd::Complete(status)),
            }
        };
        shadow.metrics.add_bytes(0, bytes);
        self.mirror.bandwidth_limit.iter().for_each(|limit| limit.add_mirrored_bytes(bytes));
        ended
    }
}

async fn next_frame(exchange: &mut Exchange) -> Option<Result<Frame<Bytes>, TruncatedResponse>> {
    poll_fn(|cx| exchange.poll_frame(cx)).await
}
