//! The parts of Kubernetes objects that the router uses. The rest is not even kept in memory.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use kube::api::{ApiResource, ObjectMeta};
use kube::core::DynamicResourceScope;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::watch_store::WatchScope;
use crate::model::endpoint::Endpoint;
use crate::model::endpoint_status::EndpointStatus;
use crate::model::problem::Problem;
use crate::model::resource::{API_VERSION, KIND};
use crate::model::validate::{self, DocumentOrigin};

/// The namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    /// The namespace of the object.
    pub(super) namespace: Arc<str>,
    /// The name of the object in its namespace.
    pub(super) name: Arc<str>,
}

impl ObjectKey {
    /// Returns the key that sorts before all others.
    pub(super) fn lowest() -> Self {
        Self { namespace: "".into(), name: "".into() }
    }

    /// Returns the scope of a watch of this object only.
    pub(super) fn watch_scope(&self) -> WatchScope {
        format!("{}/{}", self.namespace, self.name).into()
    }

    /// Returns the key of an object.
    pub(super) fn from_object(object: &impl Resource) -> Self {
        let meta = object.meta();
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        Self { namespace: text(&meta.namespace), name: text(&meta.name) }
    }
}

/// An object of any kind, of which only `S` of the spec and `T` of the status are read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PartialObject<S, T> {
    /// The standard metadata.
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    /// The parts of the spec that are read.
    #[serde(default = "Option::default")]
    pub(super) spec: Option<S>,
    /// The parts of the status that are read.
    #[serde(default = "Option::default")]
    pub(super) status: Option<T>,
}

impl<S, T> Resource for PartialObject<S, T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }
    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }
    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }
    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }
    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A part of an object that is not read, whatever it contains.
pub(super) type IgnoredPart = IgnoredAny;

/// An `OnlineEndpoint` as received from the API server.
pub(super) type RawEndpointObject = PartialObject<Value, Value>;
/// A pod as received from the API server.
pub(super) type RawPod = PartialObject<IgnoredPart, PodStatus>;
/// A workload of any kind as received from the API server.
pub(super) type RawWorkload = PartialObject<WorkloadSpec, IgnoredPart>;
/// A HorizontalPodAutoscaler as received from the API server.
pub(super) type RawHpa = PartialObject<HpaSpec, IgnoredPart>;

/// The parts of a pod's status that are read.
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

/// The parts of a workload's spec that are read, as in a Deployment. They are untyped, because other kinds may use the
/// same field names for something else, and one object that cannot be parsed must not break the watch of all others.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WorkloadSpec {
    /// The selector of the workload's pods.
    pub(super) selector: Option<Value>,
    /// The desired number of replicas.
    pub(super) replicas: Option<Value>,
}

/// The parts of a HorizontalPodAutoscaler's spec that are read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HpaSpec {
    /// The workload that the autoscaler scales.
    pub(super) scale_target_ref: ScaleTargetRef,
}

/// A reference from a HorizontalPodAutoscaler to the workload that it scales.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScaleTargetRef {
    /// The API version, such as `apps/v1`.
    #[serde(default)]
    pub(super) api_version: String,
    /// The kind, such as `Deployment`.
    pub(super) kind: String,
    /// The name of the workload in the namespace of the autoscaler.
    pub(super) name: String,
}

/// The parts of a pod that the router uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    /// The UID of the pod, which unlike its name is never reused.
    pub(super) uid: Arc<str>,
    /// The labels, against which selectors are matched, in ascending order of names; boxed, because there are many
    /// pods.
    pub(super) labels: Box<[(Box<str>, Box<str>)]>,
    /// The IP address of the pod, once it has one.
    pub(super) ip: Option<IpAddr>,
    /// Whether the condition `Ready` of the pod is true.
    pub(super) is_ready: bool,
    /// Whether the pod is being deleted or has ended. Such a pod gets no new requests, even if it is ready.
    pub(super) is_terminating: bool,
}

impl Pod {
    /// Extracts the parts of a pod that the router uses.
    pub(super) fn from_raw(raw: RawPod) -> Self {
        let status = raw.status.as_ref();
        let is_true = |condition: &PodCondition| condition.kind == "Ready" && condition.status == "True";
        let labels = raw.metadata.labels.iter().flatten();
        Self {
            uid: raw.metadata.uid.as_deref().unwrap_or_default().into(),
            ip: status.and_then(|status| status.pod_ip.as_deref()).and_then(|ip| ip.parse().ok()),
            is_ready: status.is_some_and(|status| status.conditions.iter().flatten().any(is_true)),
            // When a pod has ended, for example by eviction, its condition `Ready` may stay true although its address
            // may already belong to another pod.
            is_terminating: raw.metadata.deletion_timestamp.is_some()
                || status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))),
            labels: labels.map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        }
    }

    /// Returns whether the pod can take requests.
    pub(super) fn is_available(&self) -> bool {
        self.is_ready && !self.is_terminating && self.ip.is_some()
    }
}

/// The parts of an `OnlineEndpoint` object that the router uses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EndpointObject {
    /// The UID of the object, which unlike its name is never reused.
    pub(super) uid: Arc<str>,
    /// The creation time. Of two objects with the same name the older one serves; the text sorts as the time does.
    pub(super) created_at: Arc<str>,
    /// The generation, which counts changes of the spec.
    pub(super) generation: i64,
    /// The validated endpoint, or the problems of the document.
    pub(super) checked: Result<Arc<Endpoint>, Arc<[Problem]>>,
    /// The status as it is in the cluster.
    pub(super) status: Arc<EndpointStatus>,
}

impl EndpointObject {
    /// Extracts the parts of an `OnlineEndpoint` that the router uses, and validates its document.
    pub(super) fn from_raw(raw: RawEndpointObject) -> Self {
        let created = raw.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let metadata = serde_json::json!({"name": raw.name_any(), "namespace": raw.namespace()});
        let mut document = serde_json::json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata});
        if let Some(spec) = raw.spec {
            document["spec"] = spec;
        }
        // A status that cannot be parsed, because another client has written it, counts as empty and is overwritten.
        let status = raw.status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
        Self {
            uid: raw.metadata.uid.unwrap_or_default().into(),
            created_at: created.into(),
            generation: raw.metadata.generation.unwrap_or_default(),
            checked: validate::decode_and_validate(document, DocumentOrigin::Cluster)
                .map(Arc::new)
                .map_err(|refused| refused.problems.into()),
            status: Arc::new(status),
        }
    }

    /// Returns whether the objects are equal except for their status.
    pub(super) fn is_same_but_for_status(&self, other: &Self) -> bool {
        (&self.uid, &self.created_at, self.generation, &self.checked)
            == (&other.uid, &other.created_at, other.generation, &other.checked)
    }
}
