//! Kinds of workloads: their discovery, and the watch of the objects of a kind with their selectors and replicas.

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::discovery::pinned_kind;
use tokio::sync::mpsc;

use super::error_text;
use super::objects::{ObjectKey, RawWorkload};
use super::pods::WorkloadKey;
use super::watch::{ClusterEvent, WatchBackoff, WatchError, api_in_scope, run_watch};
use super::watch_store::WatchScope;
use super::workloads::ObservedWorkload;

/// A kind of workload without its version: the API server has the same objects in each version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct GroupKind {
    /// The API group, such as `apps`; empty for the core group.
    pub(super) group: String,
    /// The kind, such as `Deployment`.
    pub(super) kind: String,
}

impl GroupKind {
    /// Creates the value from the fields `apiVersion` and `kind` of an object or a reference.
    pub(super) fn from_api_version(api_version: &str, kind: &str) -> Self {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        Self { group: group.to_owned(), kind: kind.to_owned() }
    }

    /// Returns the identity of the workload of this kind at `key`.
    pub(super) fn workload_key(&self, key: ObjectKey) -> WorkloadKey {
        WorkloadKey { group: self.group.clone(), kind: self.kind.clone(), key }
    }
}

/// Writes kind and group, such as `Deployment.apps`.
impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{}", self.kind, self.group)
    }
}

/// The API version of workloads whose spec has the selector and the number of replicas.
const APPS_API_VERSION: &str = "apps/v1";

/// The interval between discoveries of a kind that does not exist or cannot be scaled.
const KIND_DISCOVERY_INTERVAL: Duration = Duration::from_secs(10);

/// Discovers the resource of a kind. Returns it with whether it has a `scale` subresource.
///
/// # Errors
/// Fails if the API server does not have the kind, or does not respond.
pub(super) async fn discover_resource(
    client: &Client,
    api_version: &str,
    kind: &str,
) -> Result<(ApiResource, bool), kube::Error> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let (resource, capabilities) = pinned_kind(client, &GroupVersionKind::gvk(group, version, kind)).await?;
    let is_scalable = capabilities
        .subresources
        .iter()
        .any(|(sub, _)| sub.plural == format!("{}/scale", resource.plural) || sub.plural == "scale");
    Ok((resource, is_scalable))
}

/// Watches the objects of a kind until the channel is closed. A kind without a `scale` subresource is not watched: it
/// could be anything, for example all Secrets.
pub(super) async fn watch_kind(
    client: Client,
    kind: Arc<GroupKind>,
    api_version: String,
    scope: WatchScope,
    events: mpsc::Sender<ClusterEvent>,
) {
    let what = kind.to_string();
    let mut failures = WatchBackoff::default();
    let resource = loop {
        let unusable_reason = match discover_resource(&client, &api_version, &kind.kind).await {
            Ok((resource, true)) => break resource,
            Ok((_, false)) => format!("{api_version} {} has no `scale` subresource, so no replicas", kind.kind),
            Err(error) if is_not_found(&error) => format!("the cluster has no {} in {api_version}", kind.kind),
            Err(error) => {
                let is_denied = matches!(&error, kube::Error::Api(status) if status.code == 403);
                let message = format!("the kind {what} cannot be asked after: {}", error_text::describe_error(&error));
                let error = WatchError { message, is_denied };
                if events.send(ClusterEvent::WatchState((what.clone(), scope.clone()), Some(error))).await.is_err() {
                    return;
                }
                failures.wait_after_failure().await;
                continue;
            }
        };
        if events.send(ClusterEvent::KindState(kind.clone(), Some(unusable_reason))).await.is_err() {
            return;
        }
        tokio::time::sleep(KIND_DISCOVERY_INTERVAL).await;
    };
    let is_channel_closed =
        failures.reset() && events.send(ClusterEvent::WatchState((what.clone(), scope.clone()), None)).await.is_err();
    if is_channel_closed || events.send(ClusterEvent::KindState(kind.clone(), None)).await.is_err() {
        return;
    }
    let objects: Api<RawWorkload> = api_in_scope(&client, &resource, &scope);
    let is_plain = api_version == APPS_API_VERSION;
    let to_event = move |scope, event| ClusterEvent::Workload(kind.clone(), scope, event);
    if is_plain {
        let trim = |raw| ready((ObjectKey::from_object(&raw), ObservedWorkload::from_raw(raw)));
        run_watch(objects, "", what, scope, events, trim, to_event).await;
    } else {
        // Other kinds may have any spec, so selector and replicas come from their `scale` subresource.
        run_watch(objects, "", what, scope, events, |raw| workload_from_scale(&client, &resource, raw), to_event).await;
    }
}

fn is_not_found(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 404,
        kube::Error::Discovery(_) => true,
        _ => false,
    }
}

async fn workload_from_scale(
    client: &Client,
    resource: &ApiResource,
    raw: RawWorkload,
) -> (ObjectKey, ObservedWorkload) {
    let key = ObjectKey::from_object(&raw);
    let api: Api<RawWorkload> = api_in_scope(client, resource, &key.namespace);
    let workload = match api.get_scale(&key.name).await {
        Ok(Scale { spec, status, .. }) => ObservedWorkload::from_scale(
            status.as_ref().and_then(|status| status.selector.as_deref()),
            spec.and_then(|spec| spec.replicas),
        ),
        Err(error) => ObservedWorkload {
            selector: Err(format!("its scale subresource cannot be read: {}", error_text::describe_error(&error))),
            replicas: None,
        },
    };
    (key, workload)
}
