//! Copies of live requests to a shadow deployment: each a request of its own, on a task of its own, which gets the body as
//! the live one reads it. Nothing of the live request waits for it or depends on how it ends.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use http_body::Frame;

use super::attempt::attempt;
use super::exchange::{BrokenOff, Exchange, NoHead};
use super::headers;
use super::upload::Upload;
use super::worker::Worker;
use crate::model::endpoint::OnClientAbort;
use crate::model::refusal::Refusal;
use crate::policy::mirror::hash;
use crate::state::mirror::Mirror;
use crate::state::slots::Slot;

mod tee;
pub(super) use tee::{Cut, Tee};

/// A live request that may be copied, once it has a replica.
pub(super) struct Plan {
    pub(super) mirror: Arc<Mirror>,
    /// On the shadow.
    pub(super) path: PathAndQuery,
    /// What the client has shown, if the shadow may see it.
    pub(super) authorization: Option<HeaderValue>,
}

/// A copy, as its live request knows it.
pub(super) struct Copied {
    tee: Rc<Tee>,
    on_client_abort: OnClientAbort,
}

impl Copied {
    /// The client has gone before its answer was complete.
    pub(super) fn client_left(&self) {
        if self.on_client_abort == OnClientAbort::Drop {
            self.tee.cut(Cut::ClientLeft);
        }
    }
}

impl Plan {
    /// Copies the request, if it is its turn and the shadow has a free slot.
    pub(super) fn begin(
        self,
        worker: &Rc<Worker>,
        request_id: &HeaderValue,
        request: &mut Request<Upload>,
        now: Instant,
    ) -> Option<Copied> {
        let Self { mirror, path, authorization } = self;
        let length = request.body().length();
        if !mirror.decide(hash(request_id.as_bytes()), length.unwrap_or_default()) {
            return None;
        }
        let Some(slot) = mirror.to.slots.take(now) else {
            mirror.to.metrics.mirrored("no_slot");
            return None;
        };
        let tee = Rc::new(Tee::new(mirror.settings.window, worker.shared.mirror_budget.clone()));
        request.body_mut().copy_to(tee.clone());
        let mut copy = Box::new(Request::new(Upload::copy(tee.clone(), length, &worker.shared.limits)));
        copy.method_mut().clone_from(request.method());
        *copy.uri_mut() = Uri::from(path);
        copy.headers_mut().clone_from(request.headers());
        copy.headers_mut().remove(AUTHORIZATION);
        copy.headers_mut().extend(authorization.map(|value| (AUTHORIZATION, value)));
        copy.headers_mut().insert(headers::MIRROR, HeaderValue::from_static("1"));
        let on_client_abort = mirror.settings.on_client_abort;
        tokio::task::spawn_local(run(worker.clone(), mirror, slot, copy, tee.clone(), length));
        Some(Copied { tee, on_client_abort })
    }
}

/// Has the shadow answer, and counts how that went.
async fn run(
    worker: Rc<Worker>,
    mirror: Arc<Mirror>,
    slot: Slot,
    copy: Box<Request<Upload>>,
    tee: Rc<Tee>,
    length: Option<u64>,
) {
    let result = {
        let mut answer = pin!(answered(&worker, &mirror, slot, copy));
        poll_fn(|cx| match tee.poll_cut(cx) {
            Poll::Ready(Cut::Lagging) => Poll::Ready("lagging"),
            Poll::Ready(Cut::OverBudget) => Poll::Ready("over_budget"),
            Poll::Ready(Cut::ClientLeft) => Poll::Ready("client_left"),
            Poll::Pending => answer.as_mut().poll(cx),
        })
        .await
    };
    if length.is_none() {
        mirror.spend(tee.passed());
    }
    mirror.to.metrics.request_bytes.inc_by(tee.passed());
    mirror.to.metrics.mirrored(result);
}

async fn answered(worker: &Rc<Worker>, mirror: &Mirror, slot: Slot, copy: Box<Request<Upload>>) -> &'static str {
    let (shadow, dispatched) = (&mirror.to, Instant::now());
    let mut exchange = match attempt(worker, shadow, slot, copy, dispatched).await {
        Ok((_, exchange)) => exchange,
        Err(NoHead::NotSent(..) | NoHead::Refused(Refusal::ReplicaUnreachable)) => return "unreachable",
        Err(NoHead::Refused(Refusal::ModelTimeout(_))) => return "timeout",
        Err(NoHead::Refused(_)) => return "closed",
    };
    shadow.metrics.model_duration.observe(dispatched.elapsed().as_secs_f64());
    let mut bytes = 0;
    let result = loop {
        match next(&mut exchange).await {
            Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(BrokenOff)) => break "broke_off",
            None => break "answered",
        }
    };
    shadow.metrics.response_bytes.inc_by(bytes);
    result
}

async fn next(exchange: &mut Exchange) -> Option<Result<Frame<Bytes>, BrokenOff>> {
    poll_fn(|cx| exchange.poll_frame(cx)).await
}
