//! Kinds of workloads: what the API server calls them, and how their pods are known.

use std::fmt;
use std::future::ready;
use std::sync::Arc;

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::discovery::pinned_kind;
use tokio::sync::mpsc;

use super::objects::{Key, RawWorkload};
use super::store::Scope;
use super::watch::{Failures, Seen, api, run};
use super::workloads::Workload;

/// A kind of workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// As `apps/v1`.
    pub(super) api_version: String,
    /// As `Deployment`.
    pub(super) kind: String,
}

/// As `apps/v1 Deployment`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.api_version, self.kind)
    }
}

/// Those whose spec has the selector and the number of replicas.
const PLAIN: &str = "apps/v1";

/// What the API server calls a kind.
///
/// # Errors
/// It does not know it, or does not answer.
pub(super) async fn resource(client: &Client, kind: &Kind) -> Result<ApiResource, kube::Error> {
    let (group, version) = kind.api_version.rsplit_once('/').unwrap_or(("", &kind.api_version));
    let (resource, _) = pinned_kind(client, &GroupVersionKind::gvk(group, version, &kind.kind)).await?;
    Ok(resource)
}

/// Follows the objects of a kind for ever.
pub(super) async fn follow(client: Client, kind: Arc<Kind>, scope: Scope, seen: mpsc::Sender<Seen>) {
    let what = kind.to_string();
    let mut failures = Failures::default();
    let resource = loop {
        match resource(&client, &kind).await {
            Ok(resource) => break resource,
            Err(error) => {
                let trouble = format!("the kind {what} is not known: {error}");
                if seen.send(Seen::Trouble((what.clone(), scope.clone()), Some(trouble))).await.is_err() {
                    return;
                }
                failures.wait().await;
            }
        }
    };
    if failures.over() && seen.send(Seen::Trouble((what.clone(), scope.clone()), None)).await.is_err() {
        return;
    }
    let objects: Api<RawWorkload> = api(&client, &resource, &scope);
    let is_plain = kind.api_version == PLAIN;
    let tell = move |scope, event| Seen::Workload(kind.clone(), scope, event);
    if is_plain {
        let trim = |raw| ready((Key::of(&raw), Workload::of(raw)));
        run(objects, "", what, scope, seen, trim, tell).await;
    } else {
        // Of other kinds only the `scale` subresource is known.
        run(objects, "", what, scope, seen, |raw| scale_of(&client, &resource, raw), tell).await;
    }
}

async fn scale_of(client: &Client, resource: &ApiResource, raw: RawWorkload) -> (Key, Workload) {
    let key = Key::of(&raw);
    let api: Api<RawWorkload> = api(client, resource, &key.namespace);
    let workload = match api.get_scale(&key.name).await {
        Ok(Scale { spec, status, .. }) => Workload::scaled(
            status.as_ref().and_then(|status| status.selector.as_deref()),
            spec.and_then(|spec| spec.replicas),
        ),
        Err(error) => {
            Workload { selector: Err(format!("its scale subresource cannot be read: {error}")), replicas: None }
        }
    };
    (key, workload)
}
