//! Statuses and Events, written by the one field manager of the router: only what has changed, and not too often.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::objects::{Key, RawEndpoint};
use super::{MANAGER, watch};
use crate::model::crd::PLURAL;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::status::{Condition, EndpointStatus};

/// Writes a second, over a time.
const PER_SECOND: u32 = 20;
/// What waits to be written.
const WAITING: usize = 256;
/// How long an own write may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// Utilization alone is no reason to write more often.
const UTILIZATION_EVERY: Duration = Duration::from_secs(60);

/// Something to write about an `OnlineEndpoint`.
#[derive(Debug)]
enum Write {
    Status(Key, Box<EndpointStatus>),
    Event(Key, String, Note),
}

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
    writes: mpsc::Sender<Write>,
    /// What was handed in last, and when.
    written: HashMap<Key, (EndpointStatus, Instant)>,
    task: JoinHandle<()>,
}

impl Writer {
    /// To be called inside a tokio runtime. Ends when dropped.
    pub(super) fn start(client: Client) -> Self {
        let (writes, waiting) = mpsc::channel(WAITING);
        Self { writes, written: HashMap::new(), task: tokio::spawn(run(client, waiting)) }
    }

    /// Has a status be written, if it is another than the one that is there.
    pub(super) fn status(&mut self, key: &Key, uid: &str, there: &EndpointStatus, status: EndpointStatus) {
        let now = Instant::now();
        if *there == status {
            self.written.remove(key);
            return;
        }
        // What was said last, whether it has been seen by now or not.
        let mut said = there;
        if let Some((written, at)) = self.written.get(key) {
            said = written;
            let age = now - *at;
            let is_on_its_way = *written == status && age < SEEN_WITHIN;
            if is_on_its_way || (is_same_but_for_utilization(there, &status) && age < UTILIZATION_EVERY) {
                return;
            }
        }
        let news = notes(said, &status);
        // What finds no room is still another the next time.
        if self.writes.try_send(Write::Status(key.clone(), Box::new(status.clone()))).is_ok() {
            news.into_iter().for_each(|note| self.event(key, uid, note));
            self.written.insert(key.clone(), (status, now));
        }
    }

    /// Has an Event be written; not if there are too many.
    pub(super) fn event(&self, key: &Key, uid: &str, note: Note) {
        let _ = self.writes.try_send(Write::Event(key.clone(), uid.to_owned(), note));
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        self.written.remove(key);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
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

async fn run(client: Client, mut waiting: mpsc::Receiver<Write>) {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut recent: VecDeque<Instant> = VecDeque::new();
    while let Some(write) = waiting.recv().await {
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
