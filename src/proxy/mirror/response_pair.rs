//! Captures the two answers to a mirrored request and submits them for comparison when both have ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue};

use super::super::worker::Worker;
use crate::policy::compare::{AnswerEnd, CapturedAnswer, NotComparedReason};
use crate::state::comparison_queue::{self, ComparisonResults};
use crate::state::mirror::MemoryReservation;

/// Shared by the live request and its copy. The one that ends last submits it.
pub(in crate::proxy) struct ResponsePair {
    worker: Rc<Worker>,
    results: Arc<ComparisonResults>,
    request_id: HeaderValue,
    pub(in crate::proxy) live: ResponseCapture,
    pub(in crate::proxy) shadow: ResponseCapture,
}

/// One of the two answers.
pub(in crate::proxy) struct ResponseCapture {
    answer: RefCell<CapturedAnswer>,
    reservation: RefCell<MemoryReservation>,
    max_body_bytes: usize,
    has_ended: Cell<bool>,
}

impl ResponsePair {
    /// Creates the pair for a request that has just been mirrored.
    pub(super) fn new(worker: &Rc<Worker>, compared: &Arc<ComparisonResults>, id: &HeaderValue) -> Rc<Self> {
        let rules = compared.settings();
        let side = || ResponseCapture {
            answer: RefCell::new(empty_answer(if rules.compare_bodies {
                Ok(Vec::new())
            } else {
                Err(NotComparedReason::Off)
            })),
            reservation: RefCell::new(MemoryReservation::new(worker.shared.mirror_budget.clone())),
            max_body_bytes: rules.max_body_bytes,
            has_ended: Cell::new(false),
        };
        Rc::new(Self {
            worker: worker.clone(),
            results: compared.clone(),
            request_id: id.clone(),
            live: side(),
            shadow: side(),
        })
    }
}

impl ResponseCapture {
    /// Records the head of the response and how long it took.
    pub(in crate::proxy) fn record_head(&self, headers: &HeaderMap, latency: Option<Duration>) {
        let mut answer = self.answer.borrow_mut();
        answer.latency = latency;
        answer.is_encoded = headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    }

    /// Records a chunk of the body.
    pub(in crate::proxy) fn record_data(&self, data: &Bytes) {
        let mut answer = self.answer.borrow_mut();
        answer.bytes += data.len() as u64;
        let Ok(body) = &mut answer.body else { return };
        let mut held = self.reservation.borrow_mut();
        let gap = if body.len() + data.len() > self.max_body_bytes {
            NotComparedReason::TooLarge
        } else if !held.try_grow(data.len()) {
            NotComparedReason::OverBudget
        } else {
            return body.extend_from_slice(data);
        };
        answer.body = Err(gap);
        drop(held.take_all());
    }

    /// Records the end of the response. Only the first call counts.
    pub(in crate::proxy) fn record_end(&self, end: AnswerEnd) {
        if !self.has_ended.replace(true) {
            self.answer.borrow_mut().end = end;
        }
    }

    fn take_answer(&mut self) -> CapturedAnswer {
        std::mem::replace(self.answer.get_mut(), empty_answer(Err(NotComparedReason::Off)))
    }
}

/// Returns an answer of which nothing has arrived.
fn empty_answer(body: Result<Vec<u8>, NotComparedReason>) -> CapturedAnswer {
    // The client counts as gone until the answer ends in another way.
    CapturedAnswer {
        end: AnswerEnd::Unknown(NotComparedReason::ClientLeft),
        latency: None,
        bytes: 0,
        body,
        is_encoded: false,
    }
}

impl Drop for ResponsePair {
    fn drop(&mut self) {
        let job = comparison_queue::ComparisonJob {
            results: self.results.clone(),
            request_id: self.request_id.to_str().unwrap_or_default().to_owned(),
            live: self.live.take_answer(),
            shadow: self.shadow.take_answer(),
            memory: [&mut self.live, &mut self.shadow].map(|side| side.reservation.get_mut().take_all()),
        };
        self.worker.shared.comparisons.submit(job);
    }
}
