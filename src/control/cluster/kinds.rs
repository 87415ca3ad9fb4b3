//! Kinds of workloads: what the API server calls them, and how their pods are known.

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::discovery::pinned_kind;
use tokio::sync::mpsc;

use super::objects::{Key, RawWorkload};
use super::pods::WorkloadKey;
use super::store::Scope;
use super::watch::{Failures, Seen, Trouble, api, run};
use super::words;
use super::workloads::Workload;

/// A kind of workload, by whichever version: what there is is the same in each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// As `apps`; empty: the core.
    pub(super) group: String,
    /// As `Deployment`.
    pub(super) kind: String,
}

impl Kind {
    /// What is written as `apiVersion` and `kind`.
    pub(super) fn of(api_version: &str, kind: &str) -> Self {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        Self { group: group.to_owned(), kind: kind.to_owned() }
    }

    /// The one of this kind at `key`.
    pub(super) fn workload(&self, key: Key) -> WorkloadKey {
        WorkloadKey { group: self.group.clone(), kind: self.kind.clone(), key }
    }
}

/// As `Deployment.apps`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{}", self.kind, self.group)
    }
}

/// Those whose spec has the selector and the number of replicas.
const PLAIN: &str = "apps/v1";

/// How often it is asked after a kind that was of no use.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What the API server calls a kind, and whether there is something to scale in it.
///
/// # Errors
/// It does not know it, or does not answer.
pub(super) async fn resource(
    client: &Client,
    api_version: &str,
    kind: &str,
) -> Result<(ApiResource, bool), kube::Error> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let (resource, can) = pinned_kind(client, &GroupVersionKind::gvk(group, version, kind)).await?;
    let is_scalable = can
        .subresources
        .iter()
        .any(|(of, _)| of.plural == format!("{}/scale", resource.plural) || of.plural == "scale");
    Ok((resource, is_scalable))
}

/// Follows the objects of a kind for ever. Nothing is watched of one that has nothing to scale: it could be anything, all
/// Secrets for example.
pub(super) async fn follow(
    client: Client,
    kind: Arc<Kind>,
    api_version: String,
    scope: Scope,
    seen: mpsc::Sender<Seen>,
) {
    let what = kind.to_string();
    let mut failures = Failures::default();
    let resource = loop {
        let unfit = match resource(&client, &api_version, &kind.kind).await {
            Ok((resource, true)) => break resource,
            Ok((_, false)) => format!("{api_version} {} has no `scale` subresource, so no replicas", kind.kind),
            Err(error) if is_missing(&error) => format!("the cluster has no {} in {api_version}", kind.kind),
            Err(error) => {
                let is_denied = matches!(&error, kube::Error::Api(status) if status.code == 403);
                let words = format!("the kind {what} cannot be asked after: {}", words::of(&error));
                let trouble = Trouble { what: words, is_denied };
                if seen.send(Seen::Trouble((what.clone(), scope.clone()), Some(trouble))).await.is_err() {
                    return;
                }
                failures.wait().await;
                continue;
            }
        };
        if seen.send(Seen::Kind(kind.clone(), Some(unfit))).await.is_err() {
            return;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    };
    let is_over = failures.over() && seen.send(Seen::Trouble((what.clone(), scope.clone()), None)).await.is_err();
    if is_over || seen.send(Seen::Kind(kind.clone(), None)).await.is_err() {
        return;
    }
    let objects: Api<RawWorkload> = api(&client, &resource, &scope);
    let is_plain = api_version == PLAIN;
    let tell = move |scope, event| Seen::Workload(kind.clone(), scope, event);
    if is_plain {
        let trim = |raw| ready((Key::of(&raw), Workload::of(raw)));
        run(objects, "", what, scope, seen, trim, tell).await;
    } else {
        // Of other kinds only the `scale` subresource is known.
        run(objects, "", what, scope, seen, |raw| scale_of(&client, &resource, raw), tell).await;
    }
}

fn is_missing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 404,
        kube::Error::Discovery(_) => true,
        _ => false,
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
        Err(error) => Workload {
            selector: Err(format!("its scale subresource cannot be read: {}", words::of(&error))),
            replicas: None,
        },
    };
    (key, workload)
}
