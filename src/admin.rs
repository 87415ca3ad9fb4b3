//! Floor 3: the admin listener, for operators and Prometheus: health, metrics, what is routed where.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::{StreamExt, stream};
use prometheus::{Encoder, TextEncoder};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::model::endpoint::{ScaleSettings, Target};
use crate::policy::compare::EndpointReport;
use crate::state::gauges;
use crate::state::lifecycle::{Lifecycle, Phase};
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::scaling::{Decision, Scaling};
use crate::state::status::Status;
use crate::state::table::{Deployment, Endpoint, Published};
use crate::state::tokens::Tokens;

/// Requests served at once; more wait. Looking at ten thousand endpoints costs, and must not cost more than that.
const AT_ONCE: usize = 4;
/// Endpoints that are described before others get their turn.
const AT_A_TIME: usize = 16;

/// What the admin listener shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The routing table of now.
    pub table: Published,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The life of the process.
    pub lifecycle: Lifecycle,
    /// What the control plane has to say.
    pub status: Arc<Status>,
    /// What the router's own tokens are signed with.
    pub tokens: Arc<Tokens>,
    /// How it stands with its group, where it is one of several.
    pub membership: Option<Arc<Membership>>,
}

impl Admin {
    /// Serves until the process drains to its end.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let layers = ServiceBuilder::new().layer(GlobalConcurrencyLimitLayer::new(AT_ONCE));
        let routes = Router::new()
            .route("/healthz", get(|| async { Json(json!({"status": "alive"})) }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/api/endpoints", get(endpoints))
            .route("/api/endpoints/{name}/comparison", get(comparison))
            .route("/.well-known/jwks.json", get(jwks))
            .layer(layers)
            .with_state(self);
        axum::serve(listener, routes).await
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let membership = admin.membership.as_ref();
    let (status, word) = match (admin.lifecycle.phase(), membership.and_then(|group| group.why_not_ready())) {
        (Phase::Serving, Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, why),
        (Phase::Starting, _) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        (Phase::Serving, None) => (StatusCode::OK, "ready"),
        (Phase::Unready | Phase::Draining | Phase::Forced, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let mut problems: Vec<String> = admin.status.problems().iter().map(ToString::to_string).collect();
    problems.extend(membership.and_then(|group| group.group().problem.clone()));
    (status, Json(json!({"status": word, "problems": problems}))).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut families = admin.metrics.registry.gather();
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    let encoded = gauges::collect(&admin.table.load(), &admin.status).and_then(|gauges| {
        families.extend(gauges);
        families.retain(|family| !family.get_metric().is_empty());
        encoder.encode(&families, &mut text)
    });
    match encoded {
        Ok(()) => ([(CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Public keys of the router's own tokens, for others who want to check them.
async fn jwks(State(admin): State<Admin>) -> Json<Value> {
    let signing = admin.tokens.signing.load();
    Json(signing.as_ref().map_or_else(|| json!({"keys": []}), |signing| signing.jwks()))
}

/// One after the other: of ten thousand the whole would be a hundred MiB, and would keep the control plane, whose thread
/// this is, from everything else.
async fn endpoints(State(admin): State<Admin>) -> Response {
    let mut endpoints: Vec<Arc<Endpoint>> = admin.table.load().endpoints().cloned().collect();
    endpoints.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let each = stream::iter(endpoints.into_iter().enumerate()).then(move |(index, endpoint)| {
        let comma = if index == 0 { "" } else { "," };
        let text = format!("{comma}{}", describe(&endpoint, &admin.status));
        async move {
            if index % AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
            text
        }
    });
    let part = |text: &str| stream::once(std::future::ready(text.to_owned()));
    let group = admin.membership.as_ref().map(|membership| json!(*membership.group()));
    let end = group.map_or_else(|| "]}".to_owned(), |group| format!("],\"fleet\":{group}}}"));
    let whole = part("{\"endpoints\":[").chain(each).chain(part(&end)).map(Ok::<_, Infallible>);
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(whole)).into_response()
}

/// Live against shadow, by the answers to copied requests.
async fn comparison(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let missing = |detail: String| (StatusCode::NOT_FOUND, Json(json!({"detail": detail}))).into_response();
    let key = name.to_ascii_lowercase();
    let Some(endpoint) = admin.table.load().endpoint(&key).cloned() else {
        return missing(format!("there is no endpoint {name}; /api/endpoints lists those there are"));
    };
    let Some(mirror) = &endpoint.mirror else {
        return missing(format!("nothing of {name} is copied; set spec.mirrorTraffic"));
    };
    let Some(compared) = &mirror.compared else {
        return missing(format!("answers of {name} are not compared; set spec.mirrorComparison, `{{}}` will do"));
    };
    let live = endpoint.deployments.iter().zip(&endpoint.spec.traffic).filter(|(_, percent)| **percent > 0);
    let about = EndpointReport {
        endpoint: endpoint.spec.name.to_string(),
        live: live.map(|(deployment, percent)| (deployment.spec.name.to_string(), *percent)).collect(),
        shadow: mirror.to.spec.name.to_string(),
        mirrored_percent: mirror.settings.percent,
        report: compared.report(),
    };
    Json(about).into_response()
}

fn describe(endpoint: &Endpoint, status: &Status) -> Value {
    let name = endpoint.spec.name.as_str();
    let deployments = endpoint.deployments.iter().zip(&endpoint.spec.traffic);
    let deployments: Vec<Value> =
        deployments.map(|(deployment, traffic)| describe_deployment(name, deployment, *traffic, status)).collect();
    json!({
        "name": name,
        "namespace": endpoint.spec.namespace,
        "authMode": endpoint.spec.auth.mode(),
        "scoringPath": format!("/api/v1/endpoint/{name}/score"),
        "swaggerPath": format!("/api/v1/endpoint/{name}/swagger.json"),
        "cors": endpoint.spec.cors.is_some(),
        "mirror": endpoint.mirror.as_ref().map(|mirror| {
            json!({"to": mirror.to.spec.name.as_str(), "percent": mirror.settings.percent})
        }),
        "deployments": deployments,
    })
}

fn describe_deployment(endpoint: &str, deployment: &Deployment, traffic: u8, status: &Status) -> Value {
    let (name, requests) = (deployment.spec.name.as_str(), &deployment.spec.requests);
    let now = deployment.slots.occupancy();
    let slots = now.busy + now.free;
    let replicas = deployment.slots.replicas();
    let replicas = replicas
        .iter()
        .map(|replica| json!({"address": replica.address, "state": replica.state, "inFlight": replica.busy}));
    let source = match &deployment.spec.target {
        Target::Instances(_) => "instances",
        Target::Process(_) => "process",
        Target::Workload(_) => "targetRef",
    };
    let desired = match (&deployment.scaling, &deployment.spec.scale) {
        (Some(scaling), _) => Some(scaling.desired()),
        (None, ScaleSettings::Fixed { instances }) => Some(*instances),
        (None, ScaleSettings::Utilization(_) | ScaleSettings::Unmanaged) => None,
    };
    let pending = status.pending(endpoint, name);
    json!({
        "name": name,
        "traffic": traffic,
        "source": source,
        "desiredReplicas": desired,
        "readyReplicas": now.ready,
        "pendingReplicas": pending.count,
        "problem": pending.problem,
        "replicas": replicas.collect::<Vec<Value>>(),
        "slots": {"busy": now.busy, "free": now.free, "draining": now.busy_draining},
        "queue": now.waiting,
        // Requests sent or waiting, over what ready replicas can take: what autoscaling goes by.
        "utilization": if slots == 0 { Value::Null } else { json!((now.busy + now.waiting) as f64 / slots as f64) },
        "requestSettings": {
            "requestTimeoutMs": millis(requests.timeout),
            "streamIdleTimeoutMs": millis(requests.stream_idle_timeout),
            "maxConcurrentRequestsPerInstance": requests.max_concurrent_per_instance,
            "maxQueueWaitMs": millis(requests.max_queue_wait),
            "maxQueueLength": requests.max_queue_length,
        },
        "autoscaling": deployment.scaling.as_ref().map(|scaling| describe_scaling(scaling)),
    })
}

/// How the number of replicas is decided, the last decision, and the last that changed something.
fn describe_scaling(scaling: &Scaling) -> Value {
    let (settings, view) = (scaling.rules().settings, scaling.view());
    json!({
        "minInstances": settings.min,
        "maxInstances": settings.max,
        "targetUtilizationPercentage": settings.target_percent,
        "pollingIntervalMs": millis(settings.interval),
        "latest": view.latest.as_ref().map(describe_decision),
        "changes": view.changes.iter().map(describe_decision).collect::<Vec<_>>(),
        "problem": view.problem,
    })
}

fn describe_decision(decision: &Decision) -> Value {
    let Decision { at, before, wanted, reason, signals, demand, ready, starting, utilization } = decision;
    json!({
        "time": humantime::format_rfc3339_millis(*at).to_string(),
        "from": before,
        "to": wanted,
        "reason": reason.word(),
        "inFlight": signals.busy,
        "waiting": signals.queued,
        "arrivedPerSecond": signals.arrived_per_second,
        "rejectedPerSecond": signals.rejected_per_second,
        "serviceSeconds": signals.service_seconds,
        "demand": demand,
        "utilization": utilization,
        "readyReplicas": ready,
        "startingReplicas": starting,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
