//! Statuses and Events, written by the one field manager of the router: only what has changed, and not too often.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::objects::{Key, RawEndpoint};
use super::{MANAGER, watch};
use crate::model::crd::PLURAL;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::status::{Condition, EndpointStatus};

/// Writes a second, over a time.
const PER_SECOND: u32 = 20;
/// Statuses that may wait to be written; of others it is not even thought about what they are.
const STATUSES: usize = 256;
/// Events that may wait to be written; more are left out.
const EVENTS: usize = 256;
/// How long an own write may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// Utilization alone is no reason to write more often.
const UTILIZATION_EVERY: Duration = Duration::from_secs(60);

/// What an Event says.
#[derive(Debug, Clone)]
pub(super) struct Note {
    /// Whether somebody should do something about it.
    pub(super) is_warning: bool,
    /// In one word.
    pub(super) reason: String,
    /// In a sentence.
    pub(super) note: String,
}

/// Decides what is to be written, and has it written.
pub(super) struct Writer {
    queue: Arc<Queue>,
    /// What was handed in last, and when.
    written: HashMap<Key, (EndpointStatus, Instant)>,
    task: JoinHandle<()>,
}

/// What is to be written: of each object its latest status, in the order in which the objects came.
#[derive(Default)]
struct Queue {
    inner: Mutex<Waiting>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    turns: VecDeque<Key>,
    statuses: HashMap<Key, EndpointStatus>,
    events: VecDeque<(Key, String, Note)>,
}

impl Queue {
    fn with<T>(&self, with: impl FnOnce(&mut Waiting) -> T) -> T {
        with(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a status waits to be written.
    fn has(&self, key: &Key) -> bool {
        self.with(|waiting| waiting.statuses.contains_key(key))
    }

    fn push(&self, key: &Key, status: EndpointStatus) {
        self.with(|waiting| {
            if waiting.statuses.insert(key.clone(), status).is_none() {
                waiting.turns.push_back(key.clone());
            }
        });
        self.came.notify_one();
    }

    /// Nothing is to be said of an object any more.
    fn remove(&self, key: &Key) {
        self.with(|waiting| waiting.statuses.remove(key));
    }

    /// The next status, or else Event; or the other way round.
    async fn next(&self, is_status_first: bool) -> Write {
        loop {
            let next = self.with(|waiting| {
                let event = |waiting: &mut Waiting| {
                    waiting.events.pop_front().map(|(key, uid, note)| Write::Event(key, uid, note))
                };
                let early = if is_status_first { None } else { event(waiting) };
                early.or_else(|| waiting.status()).or_else(|| event(waiting))
            });
            match next {
                Some(next) => return next,
                None => self.came.notified().await,
            }
        }
    }
}

impl Waiting {
    fn status(&mut self) -> Option<Write> {
        loop {
            let key = self.turns.pop_front()?;
            // Of those that are gone the turn is left.
            if let Some(status) = self.statuses.remove(&key) {
                return Some(Write::Status(key, status));
            }
        }
    }
}

/// Something to write about an `OnlineEndpoint`.
enum Write {
    Status(Key, EndpointStatus),
    Event(Key, String, Note),
}

impl Writer {
    /// To be called inside a tokio runtime. Ends when dropped.
    pub(super) fn start(client: Client) -> Self {
        let queue = Arc::new(Queue::default());
        let task = tokio::spawn(run(client, queue.clone()));
        Self { queue, written: HashMap::new(), task }
    }

    /// Whether as many statuses wait as may.
    pub(super) fn is_full(&self) -> bool {
        self.queue.with(|waiting| waiting.statuses.len() >= STATUSES)
    }

    /// Has a status be written, if it is another than the one that is there.
    pub(super) fn status(&mut self, key: &Key, uid: &str, there: &EndpointStatus, status: EndpointStatus) {
        let now = Instant::now();
        if *there == status {
            self.forget(key);
            return;
        }
        // What was said last, whether it has been seen by now or not.
        let mut said = there;
        if let Some((written, at)) = self.written.get(key) {
            said = written;
            let age = now - *at;
            let is_on_its_way = is_same_but_for_times(written, &status) && (self.queue.has(key) || age < SEEN_WITHIN);
            if is_on_its_way || (is_same_but_for_utilization(there, &status) && age < UTILIZATION_EVERY) {
                return;
            }
        }
        for note in notes(said, &status) {
            self.event(key, uid, note);
        }
        self.queue.push(key, status.clone());
        self.written.insert(key.clone(), (status, now));
    }

    /// Has an Event be written; not if there are too many.
    pub(super) fn event(&self, key: &Key, uid: &str, note: Note) {
        self.queue.with(|waiting| {
            if waiting.events.len() < EVENTS {
                waiting.events.push_back((key.clone(), uid.to_owned(), note));
            }
        });
        self.queue.came.notify_one();
    }

    /// Nothing is to be said of an object any more.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.written.remove(key).is_some() {
            self.queue.remove(key);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Since when something is so is said anew as long as it has not been written.
fn is_same_but_for_times(one: &EndpointStatus, other: &EndpointStatus) -> bool {
    let without = |status: &EndpointStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().for_each(|condition| condition.last_transition_time.clear());
        status
    };
    without(one) == without(other)
}

fn is_same_but_for_utilization(one: &EndpointStatus, other: &EndpointStatus) -> bool {
    let without = |status: &EndpointStatus| {
        let mut status = status.clone();
        status.deployments.iter_mut().for_each(|deployment| deployment.utilization = None);
        status
    };
    without(one) == without(other)
}

/// Statements that are no longer true, or for another reason.
fn notes(before: &EndpointStatus, now: &EndpointStatus) -> Vec<Note> {
    let is_news = |condition: &&Condition| {
        let before = before.conditions.iter().find(|before| before.kind == condition.kind);
        // That a new endpoint has no replica yet is nothing to report.
        let is_first = before.is_none() && (condition.status == "True" || condition.kind == "Ready");
        !is_first
            && before.is_none_or(|before| (&before.status, &before.reason) != (&condition.status, &condition.reason))
    };
    let note = |condition: &Condition| Note {
        is_warning: condition.status != "True",
        reason: condition.reason.clone(),
        note: condition.message.clone(),
    };
    now.conditions.iter().filter(is_news).map(note).collect()
}

async fn run(client: Client, queue: Arc<Queue>) {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut recent: VecDeque<Instant> = VecDeque::new();
    for turn in 0_u64.. {
        let write = queue.next(turn % 4 != 0).await;
        if recent.len() == PER_SECOND as usize
            && let Some(first) = recent.pop_front()
        {
            tokio::time::sleep_until(first + Duration::from_secs(1)).await;
        }
        recent.push_back(Instant::now());
        let (key, result) = match write {
            Write::Status(key, status) => {
                let result = write_status(&client, &key, &status).await;
                (key, result)
            }
            Write::Event(key, uid, note) => {
                let result = recorder.publish(&event(note), &reference(&key, uid)).await;
                (key, result)
            }
        };
        if let Err(error) = result {
            // What is still so is written again.
            tracing::debug!(namespace = %key.namespace, endpoint = %key.name, %error, "a status or an Event cannot be written");
        }
    }
}

async fn write_status(client: &Client, key: &Key, status: &EndpointStatus) -> Result<(), kube::Error> {
    let api: Api<RawEndpoint> = watch::api(client, &watch::resource(API_VERSION, KIND, PLURAL), &key.namespace);
    let patch = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": &*key.name, "namespace": &*key.namespace},
        "status": status,
    });
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), force: true, ..PatchParams::default() };
    api.patch_status(&key.name, &params, &Patch::Apply(patch)).await.map(drop)
}

fn event(note: Note) -> Event {
    Event {
        type_: if note.is_warning { EventType::Warning } else { EventType::Normal },
        reason: note.reason,
        note: Some(note.note),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

fn reference(key: &Key, uid: String) -> ObjectReference {
    ObjectReference {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(KIND.to_owned()),
        name: Some(key.name.to_string()),
        namespace: Some(key.namespace.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "a".into(), name: name.into() }
    }

    fn said(reason: &str, at: &str) -> EndpointStatus {
        let condition = Condition {
            kind: "Ready".into(),
            reason: reason.into(),
            last_transition_time: at.into(),
            ..Condition::default()
        };
        EndpointStatus { conditions: vec![condition], ..EndpointStatus::default() }
    }

    fn idle() -> Writer {
        Writer { queue: Arc::default(), written: HashMap::new(), task: tokio::spawn(async {}) }
    }

    async fn next(writer: &Writer) -> (String, String) {
        match writer.queue.next(true).await {
            Write::Status(key, status) => (key.name.to_string(), status.conditions[0].reason.clone()),
            Write::Event(key, _, note) => (key.name.to_string(), note.note),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_and_says_the_latest() {
        let (mut writer, there) = (idle(), EndpointStatus::default());
        for second in 0..30 {
            for name in ["one", "two", "three"] {
                // Nothing has changed but since when it is so.
                writer.status(&key(name), "uid", &there, said("Waiting", &second.to_string()));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        writer.status(&key("two"), "uid", &there, said("Serving", "31"));
        writer.forget(&key("three"));
        assert_eq!(next(&writer).await, ("one".to_owned(), "Waiting".to_owned()));
        assert_eq!(next(&writer).await, ("two".to_owned(), "Serving".to_owned()));
        assert!(!writer.queue.has(&key("one")) && writer.queue.inner.lock().unwrap().statuses.is_empty());
    }
}
