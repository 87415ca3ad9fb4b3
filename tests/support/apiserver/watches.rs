//! Watches: the changes from a version on, one line each.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::handlers::{Body, ObjectSelector, ResourcePath, status};
use super::store::{ApiFailure, ObjectChange, Store, api_version, kind_of};
use crate::support::shared::SyncStream;

/// How often a quiet watch says up to where it has seen.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(1);

pub fn watch_response(
    store: &Arc<Store>,
    place: ResourcePath,
    query: &HashMap<String, String>,
) -> Result<Response<Body>, ApiFailure> {
    let since = query.get("resourceVersion").and_then(|since| since.parse().ok());
    let since = since.unwrap_or_else(|| store.version());
    let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(300);
    let watch = Watch {
        changes: store.subscribe(),
        store: store.clone(),
        place,
        selection: ObjectSelector::from_query(query),
        since,
        end: Instant::now() + Duration::from_secs(seconds),
        is_over: false,
    };
    let lines = futures_util::stream::unfold(watch, |mut watch| async move {
        let lines = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(lines))), watch))
    });
    let body = BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(lines))));
    Ok(Response::builder().header("content-type", "application/json").body(body).unwrap())
}

struct Watch {
    store: Arc<Store>,
    changes: tokio::sync::watch::Receiver<u64>,
    place: ResourcePath,
    selection: ObjectSelector,
    since: u64,
    end: Instant,
    is_over: bool,
}

impl Watch {
    /// The next lines; `None`: its time is over.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.is_over {
                return None;
            }
            self.changes.borrow_and_update();
            let upto = self.store.version();
            let news = match self.store.since(&self.place.resource, self.since) {
                Ok(news) => news,
                Err(failure) => {
                    self.is_over = true;
                    return Some(line("ERROR", &status(&failure)));
                }
            };
            self.since = upto.max(self.since);
            let lines: String = news.iter().filter_map(|happened| self.line(happened)).collect();
            if !lines.is_empty() {
                return Some(lines);
            }
            let until = self.end.min(Instant::now() + BOOKMARK_INTERVAL);
            if timeout_at(until, self.changes.changed()).await.is_err() {
                self.is_over = Instant::now() >= self.end;
                return Some(line("BOOKMARK", &self.bookmark()));
            }
        }
    }

    /// Of what somebody sees who looks only at those that are selected.
    fn line(&self, happened: &ObjectChange) -> Option<String> {
        let is_its = |object: &Value| {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            (self.place.namespace.is_empty() || self.place.namespace == namespace) && self.selection.matches(object)
        };
        let before = happened.before.as_deref().filter(|object| is_its(object));
        let after = happened.after.as_deref().filter(|object| is_its(object));
        match (before, after) {
            (None, Some(after)) => Some(line("ADDED", after)),
            (Some(_), Some(after)) => Some(line("MODIFIED", after)),
            (Some(before), None) => Some(line("DELETED", happened.after.as_deref().unwrap_or(before))),
            (None, None) => None,
        }
    }

    fn bookmark(&self) -> Value {
        let of = &self.place.resource;
        let metadata = json!({"resourceVersion": self.since.to_string(), "creationTimestamp": null});
        json!({"kind": kind_of(of), "apiVersion": api_version(of), "metadata": metadata})
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}
