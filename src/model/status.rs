//! What the router says of an endpoint in Kubernetes: its `status`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How things are with an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where clients POST to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scoring_uri: String,
    /// Where the model's description is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub swagger_uri: String,
    /// The `metadata.generation` that all this is about.
    pub observed_generation: i64,
    /// `Accepted`: the spec is in order and what it names is there. `Ready`: requests can be served.
    pub conditions: Vec<Condition>,
    /// Its deployments, in the order of the spec.
    pub deployments: Vec<DeploymentStatus>,
}

/// One statement about an endpoint, as in `metav1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, and what to do about it.
    pub message: String,
    /// The `metadata.generation` that it is about.
    pub observed_generation: i64,
    /// When `status` last changed, as `2026-01-31T12:00:00Z`.
    pub last_transition_time: String,
}

/// How things are with a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStatus {
    /// Its name.
    pub name: String,
    /// Replicas that take requests.
    pub ready_replicas: i64,
    /// Replicas there should be.
    pub desired_replicas: i64,
    /// Requests in flight and waiting, of what ready replicas can take, in percent, to the nearest ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<i64>,
}
