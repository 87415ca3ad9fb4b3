//! The `status` that the router writes to an endpoint's object in Kubernetes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Status of an endpoint, as the router observes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The address that clients POST to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scoring_uri: String,
    /// The address of the model's OpenAPI description.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub swagger_uri: String,
    /// The `metadata.generation` that this status is about.
    pub observed_generation: i64,
    /// Conditions: `Accepted` (the spec is valid and what it names exists), `Ready` (requests can be served), `Scaled`.
    pub conditions: Vec<Condition>,
    /// Status of each deployment, in the order of the spec.
    pub deployments: Vec<DeploymentStatus>,
}

/// One condition of an endpoint, as in `metav1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    /// The type of the condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status: `True`, `False` or `Unknown`.
    pub status: String,
    /// The reason, one word in CamelCase.
    pub reason: String,
    /// The reason in a sentence, with what to do about it.
    pub message: String,
    /// The `metadata.generation` that the condition is about.
    pub observed_generation: i64,
    /// When `status` last changed, as `2026-01-31T12:00:00Z`.
    pub last_transition_time: String,
}

/// Status of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStatus {
    /// The name of the deployment.
    pub name: String,
    /// The number of replicas that take requests.
    pub ready_replicas: i64,
    /// The desired number of replicas.
    pub desired_replicas: i64,
    /// Outstanding requests in percent of what ready replicas can take, rounded to the nearest ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<i64>,
}
