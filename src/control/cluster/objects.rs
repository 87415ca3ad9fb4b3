//! What of Kubernetes objects is looked at; the rest is not even kept.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use kube::api::{ApiResource, ObjectMeta};
use kube::core::DynamicResourceScope;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::store::Scope;
use crate::model::endpoint::Endpoint;
use crate::model::problem::Problem;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::status::EndpointStatus;
use crate::model::validate::{self, Origin};

/// An object's place in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    /// Its namespace.
    pub(super) namespace: Arc<str>,
    /// Its name there.
    pub(super) name: Arc<str>,
}

impl Key {
    /// Before all others.
    pub(super) fn first() -> Self {
        Self { namespace: "".into(), name: "".into() }
    }

    /// It alone, as what is watched.
    pub(super) fn scope(&self) -> Scope {
        format!("{}/{}", self.namespace, self.name).into()
    }

    /// That of an object.
    pub(super) fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        Self { namespace: text(&meta.namespace), name: text(&meta.name) }
    }
}

/// An object of any kind, of which only `S` of the spec and `T` of the status are read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Partial<S, T> {
    /// Names and labels.
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    /// Of the spec.
    #[serde(default = "Option::default")]
    pub(super) spec: Option<S>,
    /// Of the status.
    #[serde(default = "Option::default")]
    pub(super) status: Option<T>,
}

impl<S, T> Resource for Partial<S, T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }
    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }
    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }
    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }
    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Nothing of it, whatever it is.
pub(super) type Nothing = IgnoredAny;

/// An `OnlineEndpoint` as it comes.
pub(super) type RawEndpoint = Partial<Value, Value>;
/// A pod as it comes.
pub(super) type RawPod = Partial<Nothing, PodStatus>;
/// Anything with pods, as it comes.
pub(super) type RawWorkload = Partial<WorkloadSpec, Nothing>;
/// A HorizontalPodAutoscaler as it comes.
pub(super) type RawAutoscaler = Partial<AutoscalerSpec, Nothing>;

/// Of a pod's status.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    phase: Option<String>,
    conditions: Option<Vec<PodCondition>>,
}

#[derive(Debug, Clone, Deserialize)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// Of a workload's spec, as far as it looks like that of a Deployment: other kinds may mean something else by the same words,
/// and one that cannot be read must not keep the others from being seen.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WorkloadSpec {
    /// Which pods are its own.
    pub(super) selector: Option<Value>,
    /// How many there should be.
    pub(super) replicas: Option<Value>,
}

/// Of a HorizontalPodAutoscaler's spec.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AutoscalerSpec {
    /// What it scales.
    pub(super) scale_target_ref: TargetRef,
}

/// What is scaled.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TargetRef {
    /// As `apps/v1`.
    #[serde(default)]
    pub(super) api_version: String,
    /// As `Deployment`.
    pub(super) kind: String,
    /// In the same namespace.
    pub(super) name: String,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    /// Unlike its name never given to another.
    pub(super) uid: Arc<str>,
    /// What selectors go by; ascending, since few are looked up among many.
    pub(super) labels: Box<[(Box<str>, Box<str>)]>,
    /// Where it can be reached, once it can.
    pub(super) ip: Option<IpAddr>,
    /// Whether it says that it is ready.
    pub(super) is_ready: bool,
    /// Whether it is being deleted, or has ended: it gets nothing new, ready or not.
    pub(super) is_leaving: bool,
}

impl Pod {
    /// The parts that count.
    pub(super) fn of(raw: RawPod) -> Self {
        let status = raw.status.as_ref();
        let is_true = |condition: &PodCondition| condition.kind == "Ready" && condition.status == "True";
        let labels = raw.metadata.labels.iter().flatten();
        Self {
            uid: raw.metadata.uid.as_deref().unwrap_or_default().into(),
            ip: status.and_then(|status| status.pod_ip.as_deref()).and_then(|ip| ip.parse().ok()),
            is_ready: status.is_some_and(|status| status.conditions.iter().flatten().any(is_true)),
            // Of one that has ended, evicted perhaps, nobody takes the condition back, and its address may be another's.
            is_leaving: raw.metadata.deletion_timestamp.is_some()
                || status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))),
            labels: labels.map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        }
    }

    /// Whether it can get requests.
    pub(super) fn is_available(&self) -> bool {
        self.is_ready && !self.is_leaving && self.ip.is_some()
    }
}

/// An `OnlineEndpoint`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EndpointObject {
    /// Unlike its name never given to another.
    pub(super) uid: Arc<str>,
    /// Of two with the same name the older one counts; the text of a time sorts as the time does.
    pub(super) created: Arc<str>,
    /// Counts changes of the spec.
    pub(super) generation: i64,
    /// What it says, or what is wrong with it.
    pub(super) checked: Result<Arc<Endpoint>, Arc<[Problem]>>,
    /// As the router has written it last.
    pub(super) status: Arc<EndpointStatus>,
}

impl EndpointObject {
    /// The parts that count.
    pub(super) fn of(raw: RawEndpoint) -> Self {
        let created = raw.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let metadata = serde_json::json!({"name": raw.name_any(), "namespace": raw.namespace()});
        let mut document = serde_json::json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata});
        if let Some(spec) = raw.spec {
            document["spec"] = spec;
        }
        // What somebody else has made of it is written anew.
        let status = raw.status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
        Self {
            uid: raw.metadata.uid.unwrap_or_default().into(),
            created: created.into(),
            generation: raw.metadata.generation.unwrap_or_default(),
            checked: validate::read(document, Origin::Cluster).map(Arc::new).map_err(|refused| refused.problems.into()),
            status: Arc::new(status),
        }
    }

    /// Whether only its status is another than that of `other`.
    pub(super) fn is_same_but_for_status(&self, other: &Self) -> bool {
        (&self.uid, &self.created, self.generation, &self.checked)
            == (&other.uid, &other.created, other.generation, &other.checked)
    }
}
