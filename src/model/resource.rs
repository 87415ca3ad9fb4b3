//! The `OnlineEndpoint` document as it is written. Only the types of its fields are checked.
//!
//! Every field is optional, so that validation can report everything that is missing at once. The doc comments of the
//! fields are the descriptions in the custom resource definition and in `docs/reference/endpoint.md`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decode::{mapping, mappings};
use super::duration::HumanDuration;
use super::problem::Problem;

/// The `apiVersion` of the documents.
pub const API_VERSION: &str = "inference-router.dev/v1alpha1";
/// The `kind` of the documents.
pub const KIND: &str = "OnlineEndpoint";

/// Declares a struct as it is written in a document: camelCase, every field optional, unknown fields refused.
macro_rules! config_struct {
    ($($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[$field_about:meta])* $field:ident: $of:ty,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
        $vis struct $name {
            $($(#[$field_about])* #[serde(skip_serializing_if = "Option::is_none")] $vis $field: Option<$of>,)*
        }
    )*};
}
pub(crate) use config_struct;

config_struct! {
    /// A whole document.
    pub struct RawEndpoint {
        /// Always [`API_VERSION`].
        api_version: String,
        /// Always [`KIND`].
        kind: String,
        /// Name and namespace of the endpoint.
        #[serde(deserialize_with = "mapping")]
        metadata: RawMetadata,
        /// The desired state of the endpoint.
        #[serde(deserialize_with = "mapping")]
        spec: RawSpec,
        /// Written by the router in Kubernetes; ignored in documents.
        status: Value,
    }

    /// The `metadata` of a document. Only name and namespace are used; the other fields are those that `kubectl get -o
    /// yaml` adds.
    pub struct RawMetadata {
        /// The name of the endpoint.
        name: String,
        /// The namespace of the endpoint; in files only displayed.
        namespace: String,
        /// Ignored by the router.
        labels: Value,
        /// Ignored by the router.
        annotations: Value,
        /// Ignored by the router.
        creation_timestamp: Value,
        /// Ignored by the router.
        deletion_grace_period_seconds: Value,
        /// Ignored by the router.
        deletion_timestamp: Value,
        /// Ignored by the router.
        finalizers: Value,
        /// Ignored by the router.
        generate_name: Value,
        /// Ignored by the router.
        generation: Value,
        /// Ignored by the router.
        managed_fields: Value,
        /// Ignored by the router.
        owner_references: Value,
        /// Ignored by the router.
        resource_version: Value,
        /// Ignored by the router.
        self_link: Value,
        /// Ignored by the router.
        uid: Value,
    }

    /// What clients can call, which credentials they need, and which deployments answer.
    pub struct RawSpec {
        /// The credential that clients need: a key (`key`), a token issued by the router (`aml_token`), a token of an
        /// OpenID Connect issuer (`aad_token`), or none (`none`).
        auth_mode: String,
        /// Keys of the endpoint, for `authMode: key`. For `aml_token`, clients exchange one of these keys for a token.
        #[serde(deserialize_with = "mapping")]
        keys: RawKeys,
        /// Issuers whose tokens are accepted, for `authMode: aad_token`.
        #[serde(deserialize_with = "mapping")]
        jwt: RawJwt,
        /// Weights: percent of live traffic by the name of a deployment. They sum to 100, or to 0, which closes the
        /// endpoint for requests that do not name a deployment in `azureml-model-deployment`. Default: closed.
        traffic: BTreeMap<String, i64>,
        /// Percent of live requests that are copied to one more deployment, which must not have live traffic. Its
        /// answers are discarded.
        mirror_traffic: BTreeMap<String, i64>,
        /// How requests are mirrored, if `mirrorTraffic` is given.
        #[serde(deserialize_with = "mapping")]
        mirror_settings: RawMirrorSettings,
        /// How the answers to mirrored requests are compared with the live ones. They are compared only if this is
        /// given; `{}` is enough.
        #[serde(deserialize_with = "mapping")]
        mirror_comparison: RawMirrorComparison,
        /// Cross-origin rules for browsers. Default: off.
        #[serde(deserialize_with = "mapping")]
        cors: RawCors,
        /// Bandwidth limit in bytes per second, for requests and responses together. Default: no limit.
        bandwidth_limit_bytes_per_second: i64,
        /// Versions of the model, 1 to 20.
        #[serde(deserialize_with = "mappings")]
        deployments: Vec<Option<RawDeployment>>,
    }

    /// How requests are mirrored.
    pub struct RawMirrorSettings {
        /// What happens to a copy whose client leaves after the whole body arrived: `finish` or `drop`. Default:
        /// `finish`.
        on_client_abort: String,
        /// How many bytes the body of a copy may lag behind the live one. A copy that lags further is canceled.
        /// Default: 1048576.
        window_bytes: i64,
    }

    /// How the two answers to one request are compared.
    pub struct RawMirrorComparison {
        /// Whether bodies are compared, besides status codes, times and lengths. Default: true.
        compare_bodies: bool,
        /// Size in bytes of the largest body that is compared. Default: 1048576.
        max_body_bytes: i64,
        /// Tolerance for numbers in JSON: they agree if they differ by no more than this, or by no more than this
        /// fraction of the larger one. Default: 0.
        numeric_tolerance: f64,
        /// Places in JSON that are ignored, such as `$.timestamp` or `$.predictions[*].id`.
        ignore_paths: Vec<Option<String>>,
        /// Lists in JSON whose order is ignored, such as `$.labels`.
        unordered_paths: Vec<Option<String>>,
    }

    /// Keys that clients send as `Authorization: Bearer …`.
    pub struct RawKeys {
        /// A Secret of type `inference-router.dev/endpoint-keys` with the entry `primaryKey` and, for rotation,
        /// `secondaryKey`. Only in a cluster.
        #[serde(deserialize_with = "mapping")]
        secret_ref: RawSecretRef,
        /// The key in use. Only in files.
        #[serde(deserialize_with = "mapping")]
        primary: RawKey,
        /// The key to rotate to. Only in files.
        #[serde(deserialize_with = "mapping")]
        secondary: RawKey,
    }

    /// A reference to a Secret.
    pub struct RawSecretRef {
        /// The name of a Secret in the endpoint's namespace.
        name: String,
    }

    /// Where a key is read from: exactly one of the three fields.
    pub struct RawKey {
        /// The key itself.
        value: SecretString,
        /// The name of an environment variable of the router.
        env: String,
        /// The path of a file, relative to the document's folder.
        file: String,
    }

    /// Tokens of OpenID Connect issuers.
    pub struct RawJwt {
        /// The trusted issuers.
        #[serde(deserialize_with = "mappings")]
        issuers: Vec<Option<RawIssuer>>,
    }

    /// A trusted issuer of tokens.
    pub struct RawIssuer {
        /// The issuer as in the token's `iss`, compared letter by letter.
        issuer: String,
        /// Accepted audiences, as in the token's `aud`.
        audiences: Vec<Option<String>>,
        /// The address of the issuer's key set. Default: the address in the issuer's discovery document.
        jwks_uri: String,
        /// Claims that a token must have, each with one of these values.
        required_claims: BTreeMap<String, Value>,
        /// Scopes, of which the token must have one.
        scopes: Vec<Option<String>>,
        /// Roles, of which the token must have one instead of a scope.
        roles: Vec<Option<String>>,
        /// A PEM file with certificate authorities that are trusted for the issuer's certificate. Only in files.
        ca_file: String,
        /// A file with a bearer token that is sent to the issuer. Only in files.
        bearer_token_file: String,
        /// Whether plain HTTP is allowed, for issuers on a trusted network. Default: false.
        allow_http: bool,
    }

    /// Cross-origin rules.
    pub struct RawCors {
        /// Allowed origins, such as `https://app.example`, or `*` for all.
        allow_origins: Vec<Option<String>>,
        /// Methods that a page may use. Default: `GET`, `POST`.
        allow_methods: Vec<Option<String>>,
        /// Request headers that a page may set, or `*`. Default: `authorization`, `content-type`,
        /// `azureml-model-deployment`, `x-ms-client-request-id`.
        allow_headers: Vec<Option<String>>,
        /// Response headers that a page may read. Default: `x-request-id`, `azureml-model-deployment`.
        expose_headers: Vec<Option<String>>,
        /// Whether requests with cookies or client certificates are allowed. Default: false.
        allow_credentials: bool,
        /// How long a browser may cache the answer to a preflight request, in seconds. Default: 600.
        max_age_seconds: i64,
    }

    /// One of `spec.deployments`.
    pub struct RawDeployment {
        /// The name, unique within the endpoint: 3 to 32 letters, digits and single inner dashes, a letter first.
        name: String,
        /// The workload whose pods are the replicas, in the endpoint's namespace: anything that has pods and a `scale`
        /// subresource with a selector. Only in a cluster.
        #[serde(deserialize_with = "mapping")]
        target_ref: RawTargetRef,
        /// Fixed addresses of the replicas, `host:port`. Only in files.
        instances: Vec<Option<String>>,
        /// Local processes that the router starts as replicas. Only in files.
        #[serde(deserialize_with = "mapping")]
        process: RawProcess,
        /// The port on which the pods of `targetRef` listen.
        port: i64,
        /// The path on the model for `…/score`.
        scoring_path: String,
        /// The path on the model for `…/swagger.json`.
        swagger_path: String,
        /// Whether the model gets the client's `authorization` header.
        forward_authorization: bool,
        /// The `host` header that the model gets. Default: the address of the replica.
        host: String,
        /// TLS towards the replicas. Default: plain HTTP; `{}` verifies with the certificate authorities of the system.
        #[serde(deserialize_with = "mapping")]
        upstream_tls: RawUpstreamTls,
        /// Limits of one request.
        #[serde(deserialize_with = "mapping")]
        request_settings: RawRequestSettings,
        /// How the number of replicas is decided.
        #[serde(deserialize_with = "mapping")]
        scale_settings: RawScaleSettings,
        /// Which payloads are collected.
        #[serde(deserialize_with = "mapping")]
        data_collector: RawDataCollector,
    }

    /// A reference to a Kubernetes workload.
    pub struct RawTargetRef {
        /// The API version, such as `apps/v1`.
        api_version: String,
        /// The kind, such as `Deployment`.
        kind: String,
        /// The name of the object, in the endpoint's namespace.
        name: String,
    }

    /// How to start a local replica.
    pub struct RawProcess {
        /// Program and arguments. `{port}` is replaced by the port of the replica; `inference-router` as program is the
        /// router's own.
        command: Vec<Option<String>>,
        /// A path that answers GET with 2xx when the replica is ready. Default: `/`.
        readiness_path: String,
        /// Environment variables added to those of the router.
        env: BTreeMap<String, String>,
        /// The working folder, relative to the document. Default: that of the router.
        working_dir: String,
    }

    /// TLS towards replicas.
    pub struct RawUpstreamTls {
        /// A Secret with `ca.crt` (certificate authorities of the replicas), with `tls.crt` and `tls.key` (the router's
        /// own certificate), or with all three. Only in a cluster.
        #[serde(deserialize_with = "mapping")]
        secret_ref: RawSecretRef,
        /// A PEM file with the certificate authorities of the replicas. Only in files.
        ca_file: String,
        /// The name expected in the certificates of the replicas. Default: the host of each address.
        server_name: String,
        /// Whether certificates are accepted without verification. For tests only. Default: false.
        skip_verify: bool,
        /// The router's own certificate, a PEM file. Only in files.
        cert_file: String,
        /// The key of the router's own certificate, a PEM file. Only in files.
        key_file: String,
    }

    /// Limits of one request.
    pub struct RawRequestSettings {
        /// Longest time in milliseconds from the dispatch to the response head of the model.
        request_timeout_ms: i64,
        /// Longest silence inside a response body, in milliseconds.
        stream_idle_timeout_ms: i64,
        /// The cap: requests that one replica may have in flight, from all routers together.
        max_concurrent_requests_per_instance: i64,
        /// Longest wait for a slot, in milliseconds.
        max_queue_wait_ms: i64,
        /// Largest number of queued requests. More are rejected at once.
        max_queue_length: i64,
    }

    /// How the number of replicas is decided.
    pub struct RawScaleSettings {
        /// `default`: `instanceCount` replicas, or, without it, as many as the workload has. `target_utilization`: as
        /// many as the load needs.
        #[serde(rename = "type")]
        kind: String,
        /// The number of replicas, with `type: default`. Default for processes: 1.
        instance_count: i64,
        /// The smallest number of replicas, with `target_utilization`; 0 allows scaling to zero.
        min_instances: i64,
        /// The largest number of replicas, with `target_utilization`.
        max_instances: i64,
        /// The target utilization in percent, with `target_utilization`.
        target_utilization_percentage: i64,
        /// The interval between decisions, with `target_utilization`: 100 ms to 10 minutes. Default: `1s`.
        polling_interval: HumanDuration,
        /// How long no request must have come before the last replica is removed, with `minInstances: 0`. Default:
        /// `10m`.
        idle_before_zero: HumanDuration,
        /// How long a request waits that finds no replica, in milliseconds, with `minInstances: 0`. Default: 60000.
        cold_start_timeout_ms: i64,
    }

    /// Collection of payloads.
    pub struct RawDataCollector {
        /// The collected share of requests, 0 to 1.
        sampling_rate: f64,
        /// The time span of one file: `Minute`, `Hour` or `Day`.
        rolling_rate: String,
        /// The collections.
        #[serde(deserialize_with = "mapping")]
        collections: RawCollections,
    }

    /// The collections.
    pub struct RawCollections {
        /// Collection of request bodies.
        #[serde(deserialize_with = "mapping")]
        request: RawCollection,
        /// Collection of response bodies.
        #[serde(deserialize_with = "mapping")]
        response: RawCollection,
    }

    /// One collection.
    pub struct RawCollection {
        /// Whether the collection is on. Default: false.
        enabled: bool,
    }
}

/// A text that debug output never shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct SecretString(pub String);

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Decodes a document. Fields of the wrong type or with an unknown name are reported and left out.
pub fn decode_endpoint(value: Value) -> (RawEndpoint, Vec<Problem>) {
    let (raw, problems) = super::decode::decode::<RawEndpoint>(value);
    (raw.unwrap_or_default(), problems)
}
