//! An endpoint after validation: every value is in range and every reference resolves.
//!
//! Only [`crate::model::validate`] creates these types. The rest of the router sees them, whatever the source of the
//! document.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::json_path::JsonPath;
use super::name::Name;
use super::tls::UpstreamTls;

/// Default values of fields that a document leaves out. They are defined only here.
pub mod defaults {
    /// Default of `scoringPath`.
    pub const SCORING_PATH: &str = "/score";
    /// Default of `swaggerPath`.
    pub const SWAGGER_PATH: &str = "/swagger.json";
    /// Default of `process.readinessPath`.
    pub const READINESS_PATH: &str = "/";
    /// Default of `requestSettings.requestTimeoutMs`, in milliseconds.
    pub const REQUEST_TIMEOUT_MS: i64 = 5_000;
    /// Default of `requestSettings.streamIdleTimeoutMs`, in milliseconds.
    pub const STREAM_IDLE_TIMEOUT_MS: i64 = 60_000;
    /// Default of `requestSettings.maxConcurrentRequestsPerInstance`.
    pub const MAX_CONCURRENT_PER_INSTANCE: i64 = 1;
    /// Default of `requestSettings.maxQueueWaitMs`, in milliseconds.
    pub const MAX_QUEUE_WAIT_MS: i64 = 500;
    /// Default of `requestSettings.maxQueueLength`, in requests.
    pub const MAX_QUEUE_LENGTH: i64 = 10_000;
    /// Default of `port`, which is the port of Azure's inference server.
    pub const PORT: i64 = 5_001;
    /// Default of `scaleSettings.instanceCount`.
    pub const INSTANCE_COUNT: i64 = 1;
    /// Default of `scaleSettings.minInstances`.
    pub const MIN_INSTANCES: i64 = 1;
    /// Default of `scaleSettings.maxInstances`.
    pub const MAX_INSTANCES: i64 = 1;
    /// Default of `scaleSettings.targetUtilizationPercentage`.
    pub const TARGET_UTILIZATION_PERCENTAGE: i64 = 70;
    /// Default of `scaleSettings.pollingInterval`.
    pub const POLLING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
    /// Default of `scaleSettings.idleBeforeZero`.
    pub const IDLE_BEFORE_ZERO: std::time::Duration = std::time::Duration::from_secs(600);
    /// Default of `scaleSettings.coldStartTimeoutMs`, in milliseconds.
    pub const COLD_START_TIMEOUT_MS: i64 = 60_000;
    /// Default of `mirrorSettings.windowBytes`.
    pub const MIRROR_WINDOW_BYTES: i64 = 1024 * 1024;
    /// Default of `mirrorComparison.maxBodyBytes`.
    pub const COMPARED_BYTES: i64 = 1024 * 1024;
    /// Default of `cors.allowMethods`.
    pub const CORS_METHODS: &[&str] = &["GET", "POST"];
    /// Default of `cors.allowHeaders`: the headers that a browser needs to call a scoring path.
    pub const CORS_HEADERS: &[&str] =
        &["authorization", "content-type", "azureml-model-deployment", "x-ms-client-request-id"];
    /// Default of `cors.exposeHeaders`: the headers that help to report a problem.
    pub const CORS_EXPOSED: &[&str] = &["x-request-id", "azureml-model-deployment"];
    /// Default of `cors.maxAgeSeconds`.
    pub const CORS_MAX_AGE_SECONDS: i64 = 600;
}

/// An endpoint: a stable name that clients call, with its rules and its deployments.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The name, which is unique over the whole router.
    pub name: Name,
    /// The `metadata.namespace` of the document, for display only.
    pub namespace: Option<String>,
    /// The credentials that the endpoint accepts.
    pub auth: Auth,
    /// Weights in percent, in the order of `deployments`. They sum to 0 (closed) or 100.
    pub traffic: Vec<u8>,
    /// The share of live traffic that is mirrored, and to which deployment.
    pub mirror: Option<Mirror>,
    /// The bandwidth limit in bytes per second, for requests and responses together.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Cross-origin rules; `None`: the router adds no CORS headers.
    pub cors: Option<Cors>,
    /// The deployments, 1 to 20.
    pub deployments: Vec<Deployment>,
}

/// Mirroring of live requests to a shadow deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Index of the shadow deployment, which has no live traffic.
    pub shadow_index: usize,
    /// The mirrored share in percent, 1 to 50.
    pub percent: u8,
    /// What happens to a copy whose client has left.
    pub on_client_abort: OnClientAbort,
    /// How many bytes the body of a copy may lag behind the live one.
    pub window_bytes: usize,
    /// How the two answers to a mirrored request are compared; `None`: they are not.
    pub comparison: Option<ComparisonSettings>,
}

/// How the answers of a shadow are compared with live ones.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparisonSettings {
    /// Whether bodies are compared, besides status codes, times and lengths.
    pub compare_bodies: bool,
    /// The size of the largest body that is compared, 1 KiB to 16 MiB.
    pub max_body_bytes: usize,
    /// The tolerance for numbers, 0 to 1. Two numbers agree if they differ by no more than this, or by no more than
    /// this fraction of the larger one.
    pub numeric_tolerance: f64,
    /// Places in JSON that are ignored.
    pub ignored_paths: Vec<JsonPath>,
    /// Lists in JSON whose order is ignored.
    pub unordered_paths: Vec<JsonPath>,
}

/// What happens to a copy whose client has left after the whole body arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum OnClientAbort {
    Finish,
    Drop,
}

/// The credentials that an endpoint accepts.
#[derive(Debug, Clone, PartialEq)]
pub enum Auth {
    /// No credential is needed.
    None,
    /// One of these keys, sent as a bearer token. There are 1 or 2: the primary key, then the secondary key.
    Key(Vec<KeySource>),
    /// A token that the router has issued for the endpoint. Clients get one with one of these 0 to 2 keys.
    RouterToken(Vec<KeySource>),
    /// A token of one of these issuers. There is at least one, and no two have the same name.
    IssuerToken(Vec<Issuer>),
}

impl Auth {
    /// Returns the name of the mode, as in `authMode`.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key(_) => "key",
            Self::RouterToken(_) => "aml_token",
            Self::IssuerToken(_) => "aad_token",
        }
    }
}

/// An issuer whose tokens are accepted, and the claims that they must have.
#[derive(Debug, Clone, PartialEq)]
pub struct Issuer {
    /// The issuer, and where its key set is.
    pub key_set: KeySetSource,
    /// Accepted audiences (`aud`); never empty.
    pub audiences: Vec<String>,
    /// Claims that a token must have, each with one of these values. If the claim is an array, it must contain one of
    /// them.
    pub required_claims: Vec<(String, Vec<serde_json::Value>)>,
    /// Scopes, of which a token must have one (`scp`, `scope`) unless it has one of the `roles`. If both lists are
    /// empty, neither is required.
    pub scopes: Vec<String>,
    /// Roles, of which a token must have one unless it has one of the `scopes`.
    pub roles: Vec<String>,
}

/// Where the key set of an issuer (JWKS, RFC 7517) is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySetSource {
    /// The issuer as in the token's `iss`, compared letter by letter.
    pub issuer: String,
    /// The address of the key set; `None`: the discovery document of the issuer
    /// (`{issuer}/.well-known/openid-configuration`) has it.
    pub jwks_uri: Option<String>,
    /// A PEM file of certificate authorities that are trusted for the issuer's own certificate, besides those of the
    /// system.
    pub ca_file: Option<PathBuf>,
    /// A file with a bearer token that is sent to the issuer, such as a service account's token for a Kubernetes
    /// cluster.
    pub bearer_token_file: Option<PathBuf>,
    /// Whether plain HTTP is allowed.
    pub allow_http: bool,
}

/// Where a key is read from.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The document itself.
    Value(String),
    /// This environment variable of the router.
    Env(String),
    /// This file, relative to the document's folder. White space at both ends is ignored.
    File(PathBuf),
    /// A Kubernetes Secret in the endpoint's namespace.
    Secret {
        /// The name of the Secret.
        name: String,
        /// The entry of its data, one of [`SECRET_KEYS`]. The second one may be missing.
        key: &'static str,
    },
}

/// The entries of a Secret that hold the primary and the secondary key.
pub const SECRET_KEYS: [&str; 2] = ["primaryKey", "secondaryKey"];

/// A key must never appear in a log, not even in debug output.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Secret { name, key } => f.debug_tuple("Secret").field(name).field(key).finish(),
        }
    }
}

/// Cross-origin rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Exact origins (`https://app.example`), or `*` for any; never empty.
    pub allow_origins: Vec<String>,
    /// Methods that a preflight request may ask for, in upper case.
    pub allow_methods: Vec<String>,
    /// Request headers that a preflight request may ask for, in lower case, or `*` for any.
    pub allow_headers: Vec<String>,
    /// Response headers that the browser may show to the page.
    pub expose_headers: Vec<String>,
    /// Whether requests with credentials are allowed; never together with `*` among the origins.
    pub allow_credentials: bool,
    /// How long a browser may cache the answer to a preflight request.
    pub max_age: Duration,
}

/// One version of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// The name, which is unique within the endpoint.
    pub name: Name,
    /// Where the replicas come from.
    pub target: DeploymentTarget,
    /// The path on the model for `…/score`. It starts with `/`.
    pub scoring_path: String,
    /// The path on the model for `…/swagger.json`. It starts with `/`.
    pub swagger_path: String,
    /// Whether the model sees the client's `authorization` header.
    pub forward_authorization: bool,
    /// The `host` header sent to the model, instead of the address of the replica.
    pub host: Option<String>,
    /// TLS towards the replicas; `None`: plain HTTP.
    pub upstream_tls: Option<UpstreamTls>,
    /// Limits of one request.
    pub request_settings: RequestSettings,
    /// How the number of replicas is decided.
    pub scale_settings: ScaleSettings,
}

/// Where the replicas of a deployment come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeploymentTarget {
    /// Fixed addresses, `host:port`: at least one, without duplicates.
    Instances(Vec<String>),
    /// Local processes that the router starts and scales.
    Process(Process),
    /// The pods of a Kubernetes workload.
    Workload(WorkloadRef),
}

/// A Kubernetes workload in the endpoint's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadRef {
    /// The API version, such as `apps/v1`.
    pub api_version: String,
    /// The kind, such as `Deployment`.
    pub kind: String,
    /// The name of the object.
    pub name: String,
    /// The port on which its pods listen.
    pub port: u16,
}

/// How to start one local replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; never empty. `{port}` in an argument is replaced by the port of the replica.
    pub command: Vec<String>,
    /// A path that answers GET with 2xx when the replica can take requests. It starts with `/`.
    pub readiness_path: String,
    /// Environment variables added to those of the router. `{port}` in a value is replaced by the port of the replica.
    pub env: Vec<(String, String)>,
    /// The working folder; `None`: that of the router.
    pub working_dir: Option<PathBuf>,
}

/// Limits of one request to a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestSettings {
    /// The time from the dispatch to the response head, 1 ms to 300 s.
    pub timeout: Duration,
    /// The longest silence inside a response body.
    pub stream_idle_timeout: Duration,
    /// The cap: requests that one replica may have in flight.
    pub max_concurrent_per_instance: NonZeroU32,
    /// The longest wait for a slot.
    pub max_queue_wait: Duration,
    /// The largest number of queued requests.
    pub max_queue_length: usize,
}

/// How the number of replicas of a deployment is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleSettings {
    /// A fixed number.
    Fixed {
        /// Replicas of a `process` target or workload. For fixed addresses it is the number of addresses.
        instances: u32,
    },
    /// As many as the load needs.
    TargetUtilization(TargetUtilization),
    /// The router does not change the number of replicas. Only for workloads.
    Unmanaged,
}

/// Settings of autoscaling by target utilization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetUtilization {
    /// The smallest number of replicas; 0 allows scaling to zero.
    pub min_replicas: u32,
    /// The largest number of replicas; at least 1 and at least `min_replicas`.
    pub max_replicas: u32,
    /// The target utilization in percent, 1 to 100.
    pub target_percent: u8,
    /// The interval between decisions, 100 ms to 10 min.
    pub polling_interval: Duration,
    /// How long no request must have come before the last replica is removed.
    pub idle_before_zero: Duration,
    /// The longest wait of a request that finds no replica.
    pub cold_start_timeout: Duration,
}
