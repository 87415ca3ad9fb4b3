//! The two answers to a copied request, as they come; handed over to be compared when both have ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderValue};

use super::super::worker::Worker;
use crate::policy::compare::{Answer, End, Gap};
use crate::state::comparisons::{self, Compared};
use crate::state::mirror::Held;

/// Shared by the live request and its copy; whoever ends last hands it over.
pub(in crate::proxy) struct Pair {
    worker: Rc<Worker>,
    compared: Arc<Compared>,
    request_id: HeaderValue,
    pub(in crate::proxy) live: Side,
    pub(in crate::proxy) shadow: Side,
}

/// One of the two answers.
pub(in crate::proxy) struct Side {
    answer: RefCell<Answer>,
    held: RefCell<Held>,
    most: usize,
    has_ended: Cell<bool>,
}

impl Pair {
    /// For a request that has just been copied.
    pub(super) fn new(worker: &Rc<Worker>, compared: &Arc<Compared>, id: &HeaderValue) -> Rc<Self> {
        let rules = compared.rules();
        let side = || Side {
            answer: RefCell::new(begun(if rules.compare_bodies { Ok(Vec::new()) } else { Err(Gap::Off) })),
            held: RefCell::new(Held::new(worker.shared.mirror_budget.clone())),
            most: rules.max_body,
            has_ended: Cell::new(false),
        };
        Rc::new(Self {
            worker: worker.clone(),
            compared: compared.clone(),
            request_id: id.clone(),
            live: side(),
            shadow: side(),
        })
    }
}

impl Side {
    /// The head has come, after so long.
    pub(in crate::proxy) fn head(&self, headers: &HeaderMap, latency: Option<Duration>) {
        let mut answer = self.answer.borrow_mut();
        answer.latency = latency;
        answer.is_encoded = headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    }

    /// A piece of the body has come.
    pub(in crate::proxy) fn data(&self, data: &Bytes) {
        let mut answer = self.answer.borrow_mut();
        answer.bytes += data.len() as u64;
        let Ok(body) = &mut answer.body else { return };
        let mut held = self.held.borrow_mut();
        let gap = if body.len() + data.len() > self.most {
            Gap::TooLarge
        } else if !held.take(data.len()) {
            Gap::OverBudget
        } else {
            return body.extend_from_slice(data);
        };
        answer.body = Err(gap);
        drop(held.hand_over());
    }

    /// It has ended; the first word counts.
    pub(in crate::proxy) fn end(&self, end: End) {
        if !self.has_ended.replace(true) {
            self.answer.borrow_mut().end = end;
        }
    }

    fn take(&mut self) -> Answer {
        std::mem::replace(self.answer.get_mut(), begun(Err(Gap::Off)))
    }
}

/// An answer of which nothing has come.
fn begun(body: Result<Vec<u8>, Gap>) -> Answer {
    // Until somebody knows better, the client has left.
    Answer { end: End::Unknown(Gap::ClientLeft), latency: None, bytes: 0, body, is_encoded: false }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let pair = comparisons::Pair {
            compared: self.compared.clone(),
            request_id: self.request_id.to_str().unwrap_or_default().to_owned(),
            live: self.live.take(),
            shadow: self.shadow.take(),
            held: [&mut self.live, &mut self.shadow].map(|side| side.held.get_mut().hand_over()),
        };
        self.worker.shared.comparisons.compare(pair);
    }
}
