//! The `OnlineEndpoint` document exactly as written; nothing is checked but the types.
//!
//! Every field may be missing, so that validation can report all that is missing at once.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decode::{mapping, mappings};
use super::duration::WrittenDuration;
use super::problem::Problem;

/// `apiVersion` of the documents.
pub const API_VERSION: &str = "inference-router.dev/v1alpha1";
/// `kind` of the documents.
pub const KIND: &str = "OnlineEndpoint";

/// Declares a struct as it is written in a document: camelCase, every field optional, no field unknown.
macro_rules! written {
    ($($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[$field_about:meta])* $field:ident: $of:ty,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
        $vis struct $name {
            $($(#[$field_about])* #[serde(skip_serializing_if = "Option::is_none")] $vis $field: Option<$of>,)*
        }
    )*};
}
pub(crate) use written;

written! {
    /// A whole document.
    pub struct RawEndpoint {
        /// Always [`API_VERSION`].
        api_version: String,
        /// Always [`KIND`].
        kind: String,
        /// Name and namespace.
        #[serde(deserialize_with = "mapping")]
        metadata: RawMetadata,
        /// What is wanted.
        #[serde(deserialize_with = "mapping")]
        spec: RawSpec,
        /// Written by the router into Kubernetes; ignored when read.
        status: Value,
    }

    /// `metadata`: name and namespace count, the rest is what `kubectl get -o yaml` adds.
    pub struct RawMetadata {
        /// The endpoint's name.
        name: String,
        /// Only for display.
        namespace: String,
        /// Not used.
        labels: Value,
        /// Not used.
        annotations: Value,
        /// Not used.
        creation_timestamp: Value,
        /// Not used.
        deletion_grace_period_seconds: Value,
        /// Not used.
        deletion_timestamp: Value,
        /// Not used.
        finalizers: Value,
        /// Not used.
        generate_name: Value,
        /// Not used.
        generation: Value,
        /// Not used.
        managed_fields: Value,
        /// Not used.
        owner_references: Value,
        /// Not used.
        resource_version: Value,
        /// Not used.
        self_link: Value,
        /// Not used.
        uid: Value,
    }

    /// `spec`.
    pub struct RawSpec {
        /// `key`, `aml_token`, `aad_token` or `none`.
        auth_mode: String,
        /// For `authMode: key`.
        #[serde(deserialize_with = "mapping")]
        keys: RawKeys,
        /// For `authMode: aad_token`.
        #[serde(deserialize_with = "mapping")]
        jwt: RawJwt,
        /// Percent of live traffic by deployment.
        traffic: BTreeMap<String, i64>,
        /// Percent of copied traffic by deployment.
        mirror_traffic: BTreeMap<String, i64>,
        /// Cross-origin rules.
        #[serde(deserialize_with = "mapping")]
        cors: RawCors,
        /// Bytes per second and endpoint.
        bandwidth_limit_bytes_per_second: i64,
        /// Versions of the model.
        #[serde(deserialize_with = "mappings")]
        deployments: Vec<Option<RawDeployment>>,
    }

    /// `spec.keys`.
    pub struct RawKeys {
        /// A Kubernetes Secret with `primaryKey` and `secondaryKey`.
        #[serde(deserialize_with = "mapping")]
        secret_ref: RawSecretRef,
        /// The key in use.
        #[serde(deserialize_with = "mapping")]
        primary: RawKey,
        /// The key to change over to.
        #[serde(deserialize_with = "mapping")]
        secondary: RawKey,
    }

    /// `spec.keys.secretRef`.
    pub struct RawSecretRef {
        /// Name of a Secret in the endpoint's namespace.
        name: String,
    }

    /// Where a key is: exactly one of the three.
    pub struct RawKey {
        /// The key itself.
        value: Secret,
        /// An environment variable of the router.
        env: String,
        /// A file, relative to the document's folder.
        file: String,
    }

    /// `spec.jwt`.
    pub struct RawJwt {
        /// Who may have signed a token.
        #[serde(deserialize_with = "mappings")]
        issuers: Vec<Option<RawIssuer>>,
    }

    /// One issuer of tokens.
    pub struct RawIssuer {
        /// As in the token's `iss`.
        issuer: String,
        /// As in the token's `aud`.
        audiences: Vec<Option<String>>,
        /// Where its public keys are; without it, the issuer's discovery document says it.
        jwks_uri: String,
        /// Claims the token must have.
        required_claims: BTreeMap<String, Value>,
        /// Scopes, one of which the token must have.
        scopes: Vec<Option<String>>,
        /// Roles, one of which will do instead.
        roles: Vec<Option<String>>,
        /// Who may have signed the issuer's certificate.
        ca_file: String,
        /// A token to show to the issuer.
        bearer_token_file: String,
        /// Whether plain HTTP will do.
        allow_http: bool,
    }

    /// `spec.cors`.
    pub struct RawCors {
        /// `https://app.example`, or `*`.
        allow_origins: Vec<Option<String>>,
        /// Methods a page may use.
        allow_methods: Vec<Option<String>>,
        /// Request headers a page may set.
        allow_headers: Vec<Option<String>>,
        /// Response headers a page may read.
        expose_headers: Vec<Option<String>>,
        /// Whether requests with cookies or client certificates are allowed.
        allow_credentials: bool,
        /// How long a browser may remember the answer.
        max_age_seconds: i64,
    }

    /// One of `spec.deployments`.
    pub struct RawDeployment {
        /// Unique within the endpoint.
        name: String,
        /// A Kubernetes workload.
        #[serde(deserialize_with = "mapping")]
        target_ref: RawTargetRef,
        /// Fixed addresses.
        instances: Vec<Option<String>>,
        /// Local processes.
        #[serde(deserialize_with = "mapping")]
        process: RawProcess,
        /// Container port, with `targetRef`.
        port: i64,
        /// Path on the model for `…/score`.
        scoring_path: String,
        /// Path on the model for `…/swagger.json`.
        swagger_path: String,
        /// Whether the model sees the client's credential.
        forward_authorization: bool,
        /// `host` header sent to the model.
        host: String,
        /// TLS towards the replicas.
        #[serde(deserialize_with = "mapping")]
        upstream_tls: RawUpstreamTls,
        /// Limits of one request.
        #[serde(deserialize_with = "mapping")]
        request_settings: RawRequestSettings,
        /// How many replicas.
        #[serde(deserialize_with = "mapping")]
        scale_settings: RawScaleSettings,
        /// Collection of payloads.
        #[serde(deserialize_with = "mapping")]
        data_collector: RawDataCollector,
    }

    /// `targetRef`.
    pub struct RawTargetRef {
        /// As `apps/v1`.
        api_version: String,
        /// As `Deployment`.
        kind: String,
        /// In the endpoint's namespace.
        name: String,
    }

    /// `process`.
    pub struct RawProcess {
        /// Program and arguments.
        command: Vec<Option<String>>,
        /// Answers 2xx when the replica is ready.
        readiness_path: String,
        /// Added to the environment.
        env: BTreeMap<String, String>,
        /// Folder to start in.
        working_dir: String,
    }

    /// `upstreamTls`.
    pub struct RawUpstreamTls {
        /// Who may have signed the replicas' certificates.
        ca_file: String,
        /// The name in the replicas' certificates.
        server_name: String,
        /// Whether certificates are taken unseen.
        skip_verify: bool,
        /// The router's own certificate.
        cert_file: String,
        /// The key of the router's own certificate.
        key_file: String,
    }

    /// `requestSettings`.
    pub struct RawRequestSettings {
        /// From dispatch to the response head.
        request_timeout_ms: i64,
        /// Longest silence inside a response body.
        stream_idle_timeout_ms: i64,
        /// Requests one replica may have in flight.
        max_concurrent_requests_per_instance: i64,
        /// Longest wait for a replica.
        max_queue_wait_ms: i64,
        /// Most requests that wait.
        max_queue_length: i64,
    }

    /// `scaleSettings`.
    pub struct RawScaleSettings {
        /// `default` or `target_utilization`.
        #[serde(rename = "type")]
        kind: String,
        /// With `default`.
        instance_count: i64,
        /// With `target_utilization`.
        min_instances: i64,
        /// With `target_utilization`.
        max_instances: i64,
        /// With `target_utilization`.
        target_utilization_percentage: i64,
        /// With `target_utilization`.
        polling_interval: WrittenDuration,
        /// With `minInstances: 0`.
        idle_before_zero: WrittenDuration,
        /// With `minInstances: 0`.
        cold_start_timeout_ms: i64,
    }

    /// `dataCollector`.
    pub struct RawDataCollector {
        /// Share of the requests, 0 to 1.
        sampling_rate: f64,
        /// `Minute`, `Hour` or `Day`: one file each.
        rolling_rate: String,
        /// What to collect.
        #[serde(deserialize_with = "mapping")]
        collections: RawCollections,
    }

    /// `dataCollector.collections`.
    pub struct RawCollections {
        /// Request bodies.
        #[serde(deserialize_with = "mapping")]
        request: RawCollection,
        /// Response bodies.
        #[serde(deserialize_with = "mapping")]
        response: RawCollection,
    }

    /// One thing to collect, or not.
    pub struct RawCollection {
        /// Off unless said.
        enabled: bool,
    }
}

/// A text that debug output never shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Reads a document; whatever has the wrong type or an unknown name is reported and left out.
pub fn decode(value: Value) -> (RawEndpoint, Vec<Problem>) {
    let (raw, problems) = super::decode::decode::<RawEndpoint>(value);
    (raw.unwrap_or_default(), problems)
}
