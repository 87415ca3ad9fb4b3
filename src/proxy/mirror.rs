//! Copies of live requests to a shadow deployment: each a request of its own, on a task of its own, which gets the body as
//! the live one reads it. Nothing of the live request waits for it or depends on how it ends.

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
use super::exchange::{BrokenOff, Exchange, NoHead};
use super::headers;
use super::respond;
use super::upload::Upload;
use super::worker::Worker;
use crate::model::endpoint::OnClientAbort;
use crate::model::refusal::Refusal;
use crate::policy::compare::{End, Gap};
use crate::policy::mirror::hash;
use crate::state::mirror::Mirror;
use crate::state::slots::Acquired;

mod pair;
mod tee;
use pair::Pair;
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
    /// Both answers, if they are to be compared.
    pair: Option<Rc<Pair>>,
}

impl Copied {
    /// The head of the live answer has come, after so long.
    pub(super) fn head(&self, headers: &HeaderMap, latency: Option<Duration>) {
        self.pair.iter().for_each(|pair| pair.live.head(headers, latency));
    }

    /// A piece of the live answer has come.
    pub(super) fn data(&self, data: &Bytes) {
        self.pair.iter().for_each(|pair| pair.live.data(data));
    }

    /// The live answer has broken off.
    pub(super) fn broke_off(&self, status: StatusCode) {
        self.pair.iter().for_each(|pair| pair.live.end(End::BrokeOff(status.as_u16())));
    }

    /// The live answer was complete: the model's, or the router's own.
    pub(super) fn complete(&self, status: StatusCode) {
        self.pair.iter().for_each(|pair| pair.live.end(End::Complete(status.as_u16())));
    }

    /// The client has gone before its answer was complete.
    pub(super) fn client_left(&self) {
        self.pair.iter().for_each(|pair| pair.live.end(End::Unknown(Gap::ClientLeft)));
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
        if mirror.limit.as_ref().is_some_and(|limit| !limit.has_room()) {
            mirror.to.metrics.mirrored("over_bandwidth");
            return None;
        }
        let Some(acquired) = mirror.to.slots.take(now) else {
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
        let pair = mirror.compared.as_ref().map(|compared| Pair::new(worker, compared, request_id));
        let shadow = Shadow { mirror, tee: tee.clone(), pair: pair.clone(), length };
        tokio::task::spawn_local(shadow.run(worker.clone(), acquired, copy));
        Some(Copied { tee, on_client_abort, pair })
    }
}

/// A copy, as its own task knows it.
struct Shadow {
    mirror: Arc<Mirror>,
    tee: Rc<Tee>,
    pair: Option<Rc<Pair>>,
    /// Of the body, if it was known.
    length: Option<u64>,
}

impl Shadow {
    /// Has the shadow answer, and counts how that went.
    async fn run(self, worker: Rc<Worker>, acquired: Acquired, copy: Box<Request<Upload>>) {
        let (result, end) = {
            let mut answer = pin!(self.answered(&worker, acquired, copy));
            poll_fn(|cx| match self.tee.poll_cut(cx) {
                Poll::Ready(Cut::Lagging) => Poll::Ready(("lagging", End::Unknown(Gap::Lagging))),
                Poll::Ready(Cut::OverBudget) => Poll::Ready(("over_budget", End::Unknown(Gap::OverBudget))),
                Poll::Ready(Cut::ClientLeft) => Poll::Ready(("client_left", End::Unknown(Gap::ClientLeft))),
                Poll::Pending => answer.as_mut().poll(cx),
            })
            .await
        };
        self.pair.iter().for_each(|pair| pair.shadow.end(end));
        if result != "no_slot" {
            if self.length.is_none() {
                self.mirror.spend(self.tee.passed());
            }
            self.mirror.to.metrics.bytes(self.tee.passed(), 0);
            self.mirror.limit.iter().for_each(|limit| limit.copied(self.tee.passed()));
        }
        self.mirror.to.metrics.mirrored(result);
    }

    /// What to count it as, and how the answer ended: where there is none, with the status that a client would have got.
    async fn answered(
        &self,
        worker: &Rc<Worker>,
        acquired: Acquired,
        copy: Box<Request<Upload>>,
    ) -> (&'static str, End) {
        let slot = match acquired {
            Acquired::Slot(slot) => slot,
            Acquired::Waiting(waiting) => match waiting.slot().await {
                Ok(slot) => slot,
                Err(_) => return ("no_slot", End::Unknown(Gap::NoSlot)),
            },
        };
        let (shadow, dispatched) = (&self.mirror.to, Instant::now());
        let (head, mut exchange) = match attempt(worker, shadow, slot, copy, dispatched).await {
            Ok(answer) => answer,
            Err(no_head) => {
                let (result, refusal) = match no_head {
                    NoHead::NotSent(..) | NoHead::Refused(Refusal::ReplicaUnreachable) => {
                        ("unreachable", Refusal::ReplicaUnreachable)
                    }
                    NoHead::Refused(refusal @ Refusal::ModelTimeout(_)) => ("timeout", refusal),
                    NoHead::Refused(refusal) => ("closed", refusal),
                };
                return (result, End::Complete(respond::status(refusal, worker.shared.status_codes).as_u16()));
            }
        };
        let latency = dispatched.elapsed();
        shadow.metrics.observe_model(latency);
        self.pair.iter().for_each(|pair| pair.shadow.head(&head.headers, Some(latency)));
        let (mut bytes, status) = (0, head.status.as_u16());
        let ended = loop {
            match next(&mut exchange).await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        bytes += data.len() as u64;
                        self.pair.iter().for_each(|pair| pair.shadow.data(data));
                    }
                }
                Some(Err(BrokenOff)) => break ("broke_off", End::BrokeOff(status)),
                None => break ("answered", End::Complete(status)),
            }
        };
        shadow.metrics.bytes(0, bytes);
        self.mirror.limit.iter().for_each(|limit| limit.copied(bytes));
        ended
    }
}

async fn next(exchange: &mut Exchange) -> Option<Result<Frame<Bytes>, BrokenOff>> {
    poll_fn(|cx| exchange.poll_frame(cx)).await
}
