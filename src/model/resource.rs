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
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
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

    /// What clients can call, who may, and which deployments answer.
    pub struct RawSpec {
        /// Who may call: whoever has a key (`key`), a token that the router has issued (`aml_token`), a token of an OpenID
        /// Connect issuer (`aad_token`), or anybody (`none`).
        auth_mode: String,
        /// Keys of the endpoint, for `authMode: key`, and for `aml_token` those that get tokens.
        #[serde(deserialize_with = "mapping")]
        keys: RawKeys,
        /// Whose tokens are accepted, for `authMode: aad_token`.
        #[serde(deserialize_with = "mapping")]
        jwt: RawJwt,
        /// Percent of live traffic by the name of a deployment. Sums to 100, or to 0, which closes the endpoint but for requests
        /// that name a deployment in `azureml-model-deployment`.
        traffic: BTreeMap<String, i64>,
        /// Percent of live requests that are copied to one more deployment, which must have no live traffic; its answers are
        /// discarded.
        mirror_traffic: BTreeMap<String, i64>,
        /// How requests are copied, where `mirrorTraffic` says so.
        #[serde(deserialize_with = "mapping")]
        mirror_settings: RawMirrorSettings,
        /// How the answers to copied requests are compared with the live ones; they are not unless this is given.
        #[serde(deserialize_with = "mapping")]
        mirror_comparison: RawMirrorComparison,
        /// Which pages of other origins may call; off unless given.
        #[serde(deserialize_with = "mapping")]
        cors: RawCors,
        /// Most bytes a second of requests and responses together; no limit unless given.
        bandwidth_limit_bytes_per_second: i64,
        /// Versions of the model, 1 to 20.
        #[serde(deserialize_with = "mappings")]
        deployments: Vec<Option<RawDeployment>>,
    }

    /// How requests are copied.
    pub struct RawMirrorSettings {
        /// What becomes of a copy whose client has gone, once all of its body is there: `finish` or `drop`.
        on_client_abort: String,
        /// How far the copy of a body may lag behind the live one, in bytes; a copy that lags further is given up.
        window_bytes: i64,
    }

    /// How two answers to one request are compared.
    pub struct RawMirrorComparison {
        /// Whether bodies are compared, and not only statuses, times and lengths.
        compare_bodies: bool,
        /// Bodies that are longer are not compared, in bytes.
        max_body_bytes: i64,
        /// Numbers in JSON agree that differ by no more than this, or by no more than this part of the larger one.
        numeric_tolerance: f64,
        /// Places in JSON that are not looked at, as `$.timestamp` or `$.predictions[*].id`.
        ignore_paths: Vec<Option<String>>,
        /// Lists in JSON whose order does not count, as `$.labels`.
        unordered_paths: Vec<Option<String>>,
    }

    /// Keys that callers send as `Authorization: Bearer …`.
    pub struct RawKeys {
        /// A Secret of type `inference-router.dev/endpoint-keys` with the entries `primaryKey` and, to change over to,
        /// `secondaryKey`. Needs Kubernetes.
        #[serde(deserialize_with = "mapping")]
        secret_ref: RawSecretRef,
        /// The key in use. Only in endpoint files.
        #[serde(deserialize_with = "mapping")]
        primary: RawKey,
        /// The key to change over to. Only in endpoint files.
        #[serde(deserialize_with = "mapping")]
        secondary: RawKey,
    }

    /// A Secret.
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

    /// Tokens of OpenID Connect issuers.
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
        /// Where its public keys are; unless given, the issuer's discovery document says it.
        jwks_uri: String,
        /// Claims the token must have, each with one of these values.
        required_claims: BTreeMap<String, Value>,
        /// Scopes, one of which the token must have.
        scopes: Vec<Option<String>>,
        /// Roles, one of which will do instead.
        roles: Vec<Option<String>>,
        /// Who may have signed the issuer's certificate: a PEM file of the router. Only in endpoint files.
        ca_file: String,
        /// A token to show to the issuer: a file of the router. Only in endpoint files.
        bearer_token_file: String,
        /// Whether plain HTTP will do, where nobody can be on the way.
        allow_http: bool,
    }

    /// Cross-origin rules.
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
        /// Unique within the endpoint: 3 to 32 letters, digits and single inner dashes, a letter first.
        name: String,
        /// The workload whose pods are the replicas, in the endpoint's namespace: anything that has pods and a `scale`
        /// subresource with a selector. Needs Kubernetes.
        #[serde(deserialize_with = "mapping")]
        target_ref: RawTargetRef,
        /// Fixed addresses, `host:port`. Only in endpoint files.
        instances: Vec<Option<String>>,
        /// Local processes that the router starts. Only in endpoint files.
        #[serde(deserialize_with = "mapping")]
        process: RawProcess,
        /// Where the pods of `targetRef` listen.
        port: i64,
        /// Path on the model for `…/score`.
        scoring_path: String,
        /// Path on the model for `…/swagger.json`.
        swagger_path: String,
        /// Whether the model sees the client's `authorization` header.
        forward_authorization: bool,
        /// The `host` header that the model gets; unless given, the replica's address.
        host: String,
        /// TLS towards the replicas; plain HTTP unless given.
        #[serde(deserialize_with = "mapping")]
        upstream_tls: RawUpstreamTls,
        /// Limits of one request.
        #[serde(deserialize_with = "mapping")]
        request_settings: RawRequestSettings,
        /// How many replicas.
        #[serde(deserialize_with = "mapping")]
        scale_settings: RawScaleSettings,
        /// Which payloads are collected.
        #[serde(deserialize_with = "mapping")]
        data_collector: RawDataCollector,
    }

    /// A Kubernetes workload.
    pub struct RawTargetRef {
        /// As `apps/v1`.
        api_version: String,
        /// As `Deployment`.
        kind: String,
        /// Its name, in the endpoint's namespace.
        name: String,
    }

    /// How to start a local replica.
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

    /// TLS towards replicas.
    pub struct RawUpstreamTls {
        /// A Secret with `ca.crt`, who may have signed the replicas' certificates, or with `tls.crt` and `tls.key`, the
        /// router's own certificate, or with all three. Needs Kubernetes.
        #[serde(deserialize_with = "mapping")]
        secret_ref: RawSecretRef,
        /// Who may have signed the replicas' certificates: a PEM file. Only in endpoint files.
        ca_file: String,
        /// The name in the replicas' certificates.
        server_name: String,
        /// Whether certificates are taken unseen.
        skip_verify: bool,
        /// The router's own certificate: a PEM file. Only in endpoint files.
        cert_file: String,
        /// The key of the router's own certificate: a PEM file. Only in endpoint files.
        key_file: String,
    }

    /// Limits of one request.
    pub struct RawRequestSettings {
        /// Longest wait for a model's answer to begin, in milliseconds, from when a replica gets the request.
        request_timeout_ms: i64,
        /// Longest silence inside a response body, in milliseconds.
        stream_idle_timeout_ms: i64,
        /// Requests that one replica may have in flight, from all routers together; never exceeded.
        max_concurrent_requests_per_instance: i64,
        /// Longest wait for a free replica, in milliseconds.
        max_queue_wait_ms: i64,
        /// Most requests that wait; more are turned away at once.
        max_queue_length: i64,
    }

    /// How many replicas there are.
    pub struct RawScaleSettings {
        /// `default`: as many as `instanceCount` says, or, without it, as many as the workload has. `target_utilization`: as
        /// many as requests need.
        #[serde(rename = "type")]
        kind: String,
        /// How many replicas there should be, with `type: default`.
        instance_count: i64,
        /// Least replicas, with `target_utilization`; 0: none while nobody asks.
        min_instances: i64,
        /// Most replicas, with `target_utilization`.
        max_instances: i64,
        /// Share of what replicas can take that should be in use, with `target_utilization`, in percent.
        target_utilization_percentage: i64,
        /// How often to decide, with `target_utilization`: `1s`, from 100 ms to 10 minutes.
        polling_interval: WrittenDuration,
        /// How long nobody must have asked before the last replica goes, with `minInstances: 0`: `10m` unless given.
        idle_before_zero: WrittenDuration,
        /// How long a request waits that finds no replica, with `minInstances: 0`, in milliseconds: 60000 unless given.
        cold_start_timeout_ms: i64,
    }

    /// Collection of payloads.
    pub struct RawDataCollector {
        /// Share of the requests, 0 to 1.
        sampling_rate: f64,
        /// `Minute`, `Hour` or `Day`: one file each.
        rolling_rate: String,
        /// What to collect.
        #[serde(deserialize_with = "mapping")]
        collections: RawCollections,
    }

    /// What is collected.
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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
