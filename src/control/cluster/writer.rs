//! The writer of statuses and Events under the router's field manager. It writes only what has changed, at a limited
//! rate.

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

use super::objects::{ObjectKey, RawEndpointObject};
use super::{FIELD_MANAGER, watch};
use crate::model::crd::PLURAL_NAME;
use crate::model::endpoint_status::{Condition, EndpointStatus};
use crate::model::resource::{API_VERSION, KIND};

/// The largest number of writes in any second.
const MAX_WRITES_PER_SECOND: u32 = 20;
/// The capacity of the status queue, in statuses. While it is full, no further statuses are computed.
const STATUS_QUEUE_CAPACITY: usize = 256;
/// The capacity of the Event queue, in Events. Further Events are dropped.
const EVENT_QUEUE_CAPACITY: usize = 256;
/// How long a write may take to be observed through the watch. After that, the same status is written again.
const OWN_WRITE_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest interval between writes of an object if only utilization has changed.
const UTILIZATION_WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// The content of an Event.
#[derive(Debug, Clone)]
pub(super) struct EventDraft {
    /// Whether the type is `Warning` instead of `Normal`.
    pub(super) is_warning: bool,
    /// The machine-readable reason, one word in camel case.
    pub(super) reason: String,
    /// The message for people.
    pub(super) message: String,
}

/// Queues the statuses and Events to be written, and owns the task that writes them.
pub(super) struct Writer {
    queue: Arc<WriteQueue>,
    /// The status that was last queued, and when, by object.
    last_queued: HashMap<ObjectKey, (EndpointStatus, Instant)>,
    task: JoinHandle<()>,
}

/// The queue of writes: the latest status of each object in the order in which the objects were queued, and Events.
#[derive(Default)]
struct WriteQueue {
    queued: Mutex<QueuedWrites>,
    wakeup: Notify,
}

#[derive(Default)]
struct QueuedWrites {
    status_order: VecDeque<ObjectKey>,
    statuses: HashMap<ObjectKey, EndpointStatus>,
    events: VecDeque<(ObjectKey, String, EventDraft)>,
}

impl WriteQueue {
    fn with_queued<T>(&self, with: impl FnOnce(&mut QueuedWrites) -> T) -> T {
        with(&mut self.queued.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether a status of an object is queued.
    fn has_status(&self, key: &ObjectKey) -> bool {
        self.with_queued(|queued| queued.statuses.contains_key(key))
    }

    fn push_status(&self, key: &ObjectKey, status: EndpointStatus) {
        self.with_queued(|queued| {
            if queued.statuses.insert(key.clone(), status).is_none() {
                queued.status_order.push_back(key.clone());
            }
        });
        self.wakeup.notify_one();
    }

    /// Removes the queued status of an object.
    fn remove_status(&self, key: &ObjectKey) {
        self.with_queued(|queued| queued.statuses.remove(key));
    }

    /// Waits for the next write: a status before an Event if `is_status_first`, otherwise an Event before a status.
    async fn next(&self, is_status_first: bool) -> PendingWrite {
        loop {
            let next = self.with_queued(|queued| {
                let event = |queued: &mut QueuedWrites| {
                    queued.events.pop_front().map(|(key, uid, event)| PendingWrite::Event(key, uid, event))
                };
                let first = if is_status_first { None } else { event(queued) };
                first.or_else(|| queued.pop_status()).or_else(|| event(queued))
            });
            match next {
                Some(next) => return next,
                None => self.wakeup.notified().await,
            }
        }
    }
}

impl QueuedWrites {
    fn pop_status(&mut self) -> Option<PendingWrite> {
        loop {
            let key = self.status_order.pop_front()?;
            // The order still contains the keys of removed statuses.
            if let Some(status) = self.statuses.remove(&key) {
                return Some(PendingWrite::Status(key, status));
            }
        }
    }
}

/// A write that concerns an `OnlineEndpoint` object.
enum PendingWrite {
    Status(ObjectKey, EndpointStatus),
    Event(ObjectKey, String, EventDraft),
}

impl Writer {
    /// Starts the writer task, which ends when the writer is dropped. Must be called inside a tokio runtime.
    pub(super) fn start(client: Client) -> Self {
        let queue = Arc::new(WriteQueue::default());
        let task = tokio::spawn(run(client, queue.clone()));
        Self { queue, last_queued: HashMap::new(), task }
    }

    /// Returns whether the status queue is full.
    pub(super) fn is_full(&self) -> bool {
        self.queue.with_queued(|queued| queued.statuses.len() >= STATUS_QUEUE_CAPACITY)
    }

    /// Queues the status of an object if it differs from the observed one, with Events for changed conditions.
    pub(super) fn queue_status(
        &mut self,
        key: &ObjectKey,
        uid: &str,
        observed: &EndpointStatus,
        status: EndpointStatus,
    ) {
        let now = Instant::now();
        if *observed == status {
            self.remove_status(key);
            return;
        }
        // The status that was last queued, whether it has been observed yet or not.
        let mut last_reported = observed;
        if let Some((written, at)) = self.last_queued.get(key) {
            last_reported = written;
            let age = now - *at;
            let is_in_progress = is_same_but_for_times(written, &status)
                && (self.queue.has_status(key) || age < OWN_WRITE_VISIBILITY_TIMEOUT);
            if is_in_progress || (is_same_but_for_utilization(observed, &status) && age < UTILIZATION_WRITE_INTERVAL) {
                return;
            }
        }
        for draft in condition_events(last_reported, &status) {
            self.queue_event(key, uid, draft);
        }
        self.queue.push_status(key, status.clone());
        self.last_queued.insert(key.clone(), (status, now));
    }

    /// Queues an Event; drops it if the queue is full.
    pub(super) fn queue_event(&self, key: &ObjectKey, uid: &str, draft: EventDraft) {
        self.queue.with_queued(|queued| {
            if queued.events.len() < EVENT_QUEUE_CAPACITY {
                queued.events.push_back((key.clone(), uid.to_owned(), draft));
            }
        });
        self.queue.wakeup.notify_one();
    }

    /// Removes the queued status of an object that is gone, and its entry in `last_queued`.
    pub(super) fn remove_status(&mut self, key: &ObjectKey) {
        if self.last_queued.remove(key).is_some() {
            self.queue.remove_status(key);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns whether two statuses are equal except for transition times, which are computed anew until they are written.
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

/// Returns an Event for each condition whose status or reason has changed.
fn condition_events(before: &EndpointStatus, now: &EndpointStatus) -> Vec<EventDraft> {
    let is_changed = |condition: &&Condition| {
        let before = before.conditions.iter().find(|before| before.kind == condition.kind);
        // It is normal that a new endpoint has no replica yet.
        let is_first = before.is_none() && (condition.status == "True" || condition.kind == "Ready");
        !is_first
            && before.is_none_or(|before| (&before.status, &before.reason) != (&condition.status, &condition.reason))
    };
    let draft = |condition: &Condition| EventDraft {
        is_warning: condition.status != "True",
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    };
    now.conditions.iter().filter(is_changed).map(draft).collect()
}

async fn run(client: Client, queue: Arc<WriteQueue>) {
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut recent: VecDeque<Instant> = VecDeque::new();
    for turn in 0_u64.. {
        let write = queue.next(turn % 4 != 0).await;
        if recent.len() == MAX_WRITES_PER_SECOND as usize
            && let Some(first) = recent.pop_front()
        {
            tokio::time::sleep_until(first + Duration::from_secs(1)).await;
        }
        recent.push_back(Instant::now());
        let (key, result) = match write {
            PendingWrite::Status(key, status) => {
                let result = patch_status(&client, &key, &status).await;
                (key, result)
            }
            PendingWrite::Event(key, uid, draft) => {
                let result = recorder.publish(&to_kube_event(draft), &object_reference(&key, uid)).await;
                (key, result)
            }
        };
        if let Err(error) = result {
            // A status that still differs is queued again later.
            let ObjectKey { namespace, name: endpoint } = &key;
            tracing::debug!(%namespace, %endpoint, %error, "failed to write status or event");
        }
    }
}

async fn patch_status(client: &Client, key: &ObjectKey, status: &EndpointStatus) -> Result<(), kube::Error> {
    let api: Api<RawEndpointObject> =
        watch::api_in_scope(client, &watch::api_resource(API_VERSION, KIND, PLURAL_NAME), &key.namespace);
    let patch = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": &*key.name, "namespace": &*key.namespace},
        "status": status,
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), force: true, ..PatchParams::default() };
    api.patch_status(&key.name, &params, &Patch::Apply(patch)).await.map(drop)
}

fn to_kube_event(draft: EventDraft) -> Event {
    Event {
        type_: if draft.is_warning { EventType::Warning } else { EventType::Normal },
        reason: draft.reason,
        note: Some(draft.message),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

fn object_reference(key: &ObjectKey, uid: String) -> ObjectReference {
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

    fn key(name: &str) -> ObjectKey {
        ObjectKey { namespace: "a".into(), name: name.into() }
    }

    fn status_with_reason(reason: &str, at: &str) -> EndpointStatus {
        let condition = Condition {
            kind: "Ready".into(),
            reason: reason.into(),
            last_transition_time: at.into(),
            ..Condition::default()
        };
        EndpointStatus { conditions: vec![condition], ..EndpointStatus::default() }
    }

    fn idle_writer() -> Writer {
        Writer { queue: Arc::default(), last_queued: HashMap::new(), task: tokio::spawn(async {}) }
    }

    async fn next_write(writer: &Writer) -> (String, String) {
        match writer.queue.next(true).await {
            PendingWrite::Status(key, status) => (key.name.to_string(), status.conditions[0].reason.clone()),
            PendingWrite::Event(key, _, draft) => (key.name.to_string(), draft.message),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_and_says_the_latest() {
        let (mut writer, observed) = (idle_writer(), EndpointStatus::default());
        for second in 0..30 {
            for name in ["one", "two", "three"] {
                // Only the transition time changes.
                writer.queue_status(&key(name), "uid", &observed, status_with_reason("Waiting", &second.to_string()));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        writer.queue_status(&key("two"), "uid", &observed, status_with_reason("Serving", "31"));
        writer.remove_status(&key("three"));
        assert_eq!(next_write(&writer).await, ("one".to_owned(), "Waiting".to_owned()));
        assert_eq!(next_write(&writer).await, ("two".to_owned(), "Serving".to_owned()));
        assert!(!writer.queue.has_status(&key("one")) && writer.queue.queued.lock().unwrap().statuses.is_empty());
    }
}
