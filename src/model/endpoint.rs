//! An endpoint as checked: every value is in range, every reference resolves.
//!
//! Built only by [`crate::model::validate`]. Whatever the source, this is what the rest of the router sees.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::name::Name;
use super::place::Place;
use super::tls::UpstreamTls;

/// What a field is worth when its document does not say; the only place these are written down.
pub mod defaults {
    /// `scoringPath`.
    pub const SCORING_PATH: &str = "/score";
    /// `swaggerPath`.
    pub const SWAGGER_PATH: &str = "/swagger.json";
    /// `process.readinessPath`.
    pub const READINESS_PATH: &str = "/";
    /// `requestSettings.requestTimeoutMs`.
    pub const REQUEST_TIMEOUT_MS: i64 = 5_000;
    /// `requestSettings.streamIdleTimeoutMs`.
    pub const STREAM_IDLE_TIMEOUT_MS: i64 = 60_000;
    /// `requestSettings.maxConcurrentRequestsPerInstance`.
    pub const MAX_CONCURRENT_PER_INSTANCE: i64 = 1;
    /// `requestSettings.maxQueueWaitMs`.
    pub const MAX_QUEUE_WAIT_MS: i64 = 500;
    /// `requestSettings.maxQueueLength`.
    pub const MAX_QUEUE_LENGTH: i64 = 10_000;
    /// `port`: that of Azure's inference server.
    pub const PORT: i64 = 5_001;
    /// `scaleSettings.instanceCount`.
    pub const INSTANCE_COUNT: i64 = 1;
    /// `scaleSettings.minInstances`.
    pub const MIN_INSTANCES: i64 = 1;
    /// `scaleSettings.maxInstances`.
    pub const MAX_INSTANCES: i64 = 1;
    /// `scaleSettings.targetUtilizationPercentage`.
    pub const TARGET_UTILIZATION_PERCENTAGE: i64 = 70;
    /// `scaleSettings.pollingInterval`.
    pub const POLLING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
    /// `scaleSettings.idleBeforeZero`.
    pub const IDLE_BEFORE_ZERO: std::time::Duration = std::time::Duration::from_secs(600);
    /// `scaleSettings.coldStartTimeoutMs`.
    pub const COLD_START_TIMEOUT_MS: i64 = 60_000;
    /// `mirrorSettings.windowBytes`.
    pub const MIRROR_WINDOW_BYTES: i64 = 1024 * 1024;
    /// `mirrorComparison.maxBodyBytes`.
    pub const COMPARED_BYTES: i64 = 1024 * 1024;
    /// `cors.allowMethods`.
    pub const CORS_METHODS: &[&str] = &["GET", "POST"];
    /// `cors.allowHeaders`: what a browser needs to call a score path.
    pub const CORS_HEADERS: &[&str] =
        &["authorization", "content-type", "azureml-model-deployment", "x-ms-client-request-id"];
    /// `cors.exposeHeaders`: what helps to report a problem.
    pub const CORS_EXPOSED: &[&str] = &["x-request-id", "azureml-model-deployment"];
    /// `cors.maxAgeSeconds`.
    pub const CORS_MAX_AGE_SECONDS: i64 = 600;
}

/// A stable name that clients call, with its rules and its deployments.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Unique over the whole router.
    pub name: Name,
    /// As in `metadata.namespace`; only for display.
    pub namespace: Option<String>,
    /// Who may call.
    pub auth: Auth,
    /// Percent of live traffic per deployment, in the order of `deployments`; sums to 0 (closed) or 100.
    pub traffic: Vec<u8>,
    /// Which share of live traffic is copied, and where to.
    pub mirror: Option<Mirror>,
    /// Most bytes a second of requests and answers together.
    pub bandwidth: Option<u64>,
    /// Answers for browsers of other origins; `None`: the router says nothing about origins.
    pub cors: Option<Cors>,
    /// 1 to 20.
    pub deployments: Vec<Deployment>,
}

/// Copies of live requests, whose answers nobody gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Index of the deployment that gets them; it has no live traffic.
    pub to: usize,
    /// 1 to 50.
    pub percent: u8,
    /// What becomes of a copy whose client has gone.
    pub on_client_abort: OnClientAbort,
    /// How far, in bytes, the copy of a body may lag behind the live one.
    pub window: usize,
    /// How the two answers to a copied request are compared; `None`: they are not.
    pub comparison: Option<Comparison>,
}

/// How a shadow's answers are compared with live ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Whether bodies are compared, and not only statuses, times and lengths.
    pub compare_bodies: bool,
    /// Longer bodies are not compared; 1 KiB to 16 MiB.
    pub max_body: usize,
    /// Numbers agree that differ by no more than this, or by no more than this part of the larger one; 0 to 1.
    pub numeric_tolerance: f64,
    /// What is not looked at.
    pub ignore: Vec<Place>,
    /// Lists whose order does not count.
    pub unordered: Vec<Place>,
}

/// What becomes of a copy whose client has gone, once all of the body is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum OnClientAbort {
    Finish,
    Drop,
}

/// Who may call an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Auth {
    /// Anybody.
    None,
    /// Whoever sends one of these keys as a bearer token. 1 or 2: primary, then secondary.
    Key(Vec<KeySource>),
    /// Whoever sends a token that the router has issued for the endpoint. 0 to 2 keys, for which it issues them.
    RouterToken(Vec<KeySource>),
    /// Whoever sends a token of one of these issuers. At least one; no two of the same name.
    IssuerToken(Vec<Issuer>),
}

impl Auth {
    /// As in `authMode`.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key(_) => "key",
            Self::RouterToken(_) => "aml_token",
            Self::IssuerToken(_) => "aad_token",
        }
    }
}

/// Somebody whose tokens are accepted, and which of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Issuer {
    /// Who it is, and where its public keys are.
    pub keys: KeySetSource,
    /// A token must be for one of these (`aud`); never empty.
    pub audiences: Vec<String>,
    /// Claims that a token must have, each with one of these values; an array must contain one.
    pub required_claims: Vec<(String, Vec<serde_json::Value>)>,
    /// A token must have one of these scopes (`scp`, `scope`), or one of the roles; both empty: neither is asked for.
    pub scopes: Vec<String>,
    /// See `scopes`; the claim is `roles`.
    pub roles: Vec<String>,
}

/// Where an issuer's public keys (a JWK set, RFC 7517) are to be had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySetSource {
    /// As in the token's `iss`, letter by letter.
    pub issuer: String,
    /// `None`: the issuer's discovery document (`{issuer}/.well-known/openid-configuration`) says it.
    pub jwks_uri: Option<String>,
    /// Certificates, in PEM, of who may have signed the issuer's own, besides those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// A token to show to the issuer: a service account's, for the issuer in a Kubernetes cluster.
    pub bearer_token_file: Option<PathBuf>,
    /// Whether plain HTTP will do.
    pub allow_http: bool,
}

/// Where a key is to be read.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In the document itself.
    Value(String),
    /// In this environment variable of the router.
    Env(String),
    /// In this file, relative to the document's folder; white space at both ends does not count.
    File(PathBuf),
    /// In a Kubernetes Secret of the endpoint's namespace.
    Secret {
        /// The Secret.
        name: String,
        /// The entry of its data; of [`SECRET_KEYS`] the second may be missing.
        key: &'static str,
    },
}

/// The entries of a Secret that keys are in: the primary one and the secondary one.
pub const SECRET_KEYS: [&str; 2] = ["primaryKey", "secondaryKey"];

/// A key never shows up in a log, not even in a debug line.
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

/// Cross-origin rules; `*` among the origins means any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Exact origins (`https://app.example`) or `*`; never empty.
    pub allow_origins: Vec<String>,
    /// Methods a preflight may ask for, upper case.
    pub allow_methods: Vec<String>,
    /// Request headers a preflight may ask for, lower case; `*` means any.
    pub allow_headers: Vec<String>,
    /// Response headers the browser may show to the page.
    pub expose_headers: Vec<String>,
    /// Whether credentialed requests are allowed; never together with `*` among the origins.
    pub allow_credentials: bool,
    /// How long a preflight may be remembered.
    pub max_age: Duration,
}

/// One version of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Unique within the endpoint.
    pub name: Name,
    /// Where its replicas come from.
    pub target: Target,
    /// Path on the model for `…/score`; starts with `/`.
    pub scoring_path: String,
    /// Path on the model for `…/swagger.json`; starts with `/`.
    pub swagger_path: String,
    /// Whether the model sees the client's `authorization` header.
    pub forward_authorization: bool,
    /// `host` sent to the model instead of the instance's address.
    pub host: Option<String>,
    /// TLS towards the replicas; `None`: plain HTTP.
    pub upstream_tls: Option<UpstreamTls>,
    /// Limits of one request.
    pub requests: RequestSettings,
    /// How many replicas.
    pub scale: ScaleSettings,
}

/// Where the replicas of a deployment come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Fixed addresses, `host:port`; at least one, no duplicates.
    Instances(Vec<String>),
    /// Local processes that the router starts and scales.
    Process(Process),
    /// The pods of a Kubernetes workload.
    Workload(Workload),
}

/// Something in Kubernetes that has pods, in the endpoint's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// As `apps/v1`.
    pub api_version: String,
    /// As `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Where its pods listen.
    pub port: u16,
}

/// How to start one local replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; `{port}` in an argument becomes the replica's port. Never empty.
    pub command: Vec<String>,
    /// Answers 2xx to GET when the replica can take requests; starts with `/`.
    pub readiness_path: String,
    /// Added to the router's own environment; `{port}` in a value becomes the replica's port.
    pub env: Vec<(String, String)>,
    /// Working folder; `None`: the router's own.
    pub working_dir: Option<PathBuf>,
}

/// Limits of one request to a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestSettings {
    /// From dispatch to the response head; 1 ms to 300 s.
    pub timeout: Duration,
    /// Longest silence inside a response body.
    pub stream_idle_timeout: Duration,
    /// Requests one replica may have in flight.
    pub max_concurrent_per_instance: NonZeroU32,
    /// Longest wait for a slot.
    pub max_queue_wait: Duration,
    /// Most requests waiting at once.
    pub max_queue_length: usize,
}

/// How many replicas a deployment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleSettings {
    /// Always this many.
    Fixed {
        /// Replicas of a `process` target; fixed addresses count themselves.
        instances: u32,
    },
    /// As many as requests need.
    Utilization(Utilization),
    /// As many as there are: somebody else decides. Only of a workload.
    Unmanaged,
}

/// How many replicas requests need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utilization {
    /// Least replicas; 0: none while nobody asks.
    pub min: u32,
    /// Most replicas; at least 1, at least `min`.
    pub max: u32,
    /// Percent of what replicas can take that should be in use; 1 to 100.
    pub target_percent: u8,
    /// How often to decide; 100 ms to 10 min.
    pub interval: Duration,
    /// How long nobody must have asked before the last replica goes.
    pub idle_before_zero: Duration,
    /// Longest wait of a request that finds no replica.
    pub cold_start_timeout: Duration,
}
