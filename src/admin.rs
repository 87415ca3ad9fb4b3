//! Layer 3: the admin listener for operators and Prometheus, with health, metrics and the state of endpoints.

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

use crate::model::endpoint::{DeploymentTarget, ScaleSettings};
use crate::policy::compare::EndpointReport;
use crate::state::control_plane_status::ControlPlaneStatus;
use crate::state::gauges;
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};
use crate::state::membership::Membership;
use crate::state::metrics::Metrics;
use crate::state::routing_table::{DeploymentEntry, EndpointEntry, PublishedTable};
use crate::state::scaling::{Scaling, ScalingDecision};
use crate::state::tokens::TokenState;

/// The largest number of requests that are served at once; further ones wait. Describing ten thousand endpoints is
/// expensive, so the cost is limited.
const MAX_CONCURRENT_REQUESTS: usize = 4;
/// The number of endpoints that are described before other tasks get their turn.
const ENDPOINTS_PER_YIELD: usize = 16;

/// The server of the admin listener, with the shared state that its handlers show.
#[derive(Debug, Clone)]
pub struct AdminServer {
    /// The current routing table.
    pub table: PublishedTable,
    /// The metrics that `/metrics` encodes.
    pub metrics: Arc<Metrics>,
    /// The lifecycle of the process.
    pub lifecycle: Lifecycle,
    /// The status of the control plane.
    pub status: Arc<ControlPlaneStatus>,
    /// The state of token authentication, with the signing keys.
    pub tokens: Arc<TokenState>,
    /// The state of the router in its fleet, if it is a member of one.
    pub membership: Option<Arc<Membership>>,
}

impl AdminServer {
    /// Serves until the process has drained.
    ///
    /// # Errors
    ///
    /// Returns the I/O error of the listener if it fails.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let layers = ServiceBuilder::new().layer(GlobalConcurrencyLimitLayer::new(MAX_CONCURRENT_REQUESTS));
        let routes = Router::new()
            .route("/healthz", get(|| async { Json(json!({"status": "alive"})) }))
            .route("/readyz", get(get_readyz))
            .route("/metrics", get(get_metrics))
            .route("/api/endpoints", get(get_endpoints))
            .route("/api/endpoints/{name}/comparison", get(get_comparison))
            .route("/.well-known/jwks.json", get(get_jwks))
            .layer(layers)
            .with_state(self);
        axum::serve(listener, routes).await
    }
}

async fn get_readyz(State(admin): State<AdminServer>) -> Response {
    let membership = admin.membership.as_ref();
    let (status, state) =
        match (admin.lifecycle.phase(), membership.and_then(|membership| membership.not_ready_reason())) {
            (LifecyclePhase::Serving, Some(reason)) => (StatusCode::SERVICE_UNAVAILABLE, reason),
            (LifecyclePhase::Starting, _) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            (LifecyclePhase::Serving, None) => (StatusCode::OK, "ready"),
            (LifecyclePhase::Unready | LifecyclePhase::Draining | LifecyclePhase::Forced, _) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopping")
            }
        };
    let mut problems: Vec<String> = admin.status.problems().iter().map(ToString::to_string).collect();
    problems.extend(membership.and_then(|membership| membership.fleet_status().problem.clone()));
    (status, Json(json!({"status": state, "problems": problems}))).into_response()
}

async fn get_metrics(State(admin): State<AdminServer>) -> Response {
    let mut families = admin.metrics.registry.gather();
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    let encoded = gauges::collect_gauges(&admin.table.load(), &admin.status).and_then(|gauges| {
        families.extend(gauges);
        families.retain(|family| !family.get_metric().is_empty());
        encoder.encode(&families, &mut text)
    });
    match encoded {
        Ok(()) => ([(CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Returns the public keys of the router's own tokens, for others that verify them.
async fn get_jwks(State(admin): State<AdminServer>) -> Json<Value> {
    let signing = admin.tokens.signing.load();
    Json(signing.as_ref().map_or_else(|| json!({"keys": []}), |signing| signing.jwks()))
}

/// Writes one endpoint after the other. The description of ten thousand at once would need a hundred MiB, and would
/// block the other tasks of the control plane, which run on the same thread.
async fn get_endpoints(State(admin): State<AdminServer>) -> Response {
    let mut endpoints: Vec<Arc<EndpointEntry>> = admin.table.load().endpoints().cloned().collect();
    endpoints.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let descriptions = stream::iter(endpoints.into_iter().enumerate()).then(move |(index, endpoint)| {
        let comma = if index == 0 { "" } else { "," };
        let text = format!("{comma}{}", describe_endpoint(&endpoint, &admin.status));
        async move {
            if index % ENDPOINTS_PER_YIELD == 0 {
                tokio::task::yield_now().await;
            }
            text
        }
    });
    let part = |text: &str| stream::once(std::future::ready(text.to_owned()));
    let fleet_status = admin.membership.as_ref().map(|membership| json!(*membership.fleet_status()));
    let end = fleet_status.map_or_else(|| "]}".to_owned(), |fleet_status| format!("],\"fleet\":{fleet_status}}}"));
    let body = part("{\"endpoints\":[").chain(descriptions).chain(part(&end)).map(Ok::<_, Infallible>);
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

/// Returns the comparison of an endpoint's live answers with those of its shadow.
async fn get_comparison(State(admin): State<AdminServer>, Path(name): Path<String>) -> Response {
    let not_found = |detail: String| (StatusCode::NOT_FOUND, Json(json!({"detail": detail}))).into_response();
    let key = name.to_ascii_lowercase();
    let Some(endpoint) = admin.table.load().endpoint(&key).cloned() else {
        return not_found(format!("there is no endpoint {name}; /api/endpoints lists those there are"));
    };
    let Some(mirror) = &endpoint.mirror else {
        return not_found(format!("nothing of {name} is copied; set spec.mirrorTraffic"));
    };
    let Some(results) = &mirror.comparison_results else {
        return not_found(format!("answers of {name} are not compared; set spec.mirrorComparison, `{{}}` will do"));
    };
    let live = endpoint.deployments.iter().zip(&endpoint.spec.traffic).filter(|(_, percent)| **percent > 0);
    let report = EndpointReport {
        endpoint: endpoint.spec.name.to_string(),
        live: live.map(|(deployment, percent)| (deployment.spec.name.to_string(), *percent)).collect(),
        shadow: mirror.shadow.spec.name.to_string(),
        mirrored_percent: mirror.settings.percent,
        report: results.report(),
    };
    Json(report).into_response()
}

fn describe_endpoint(endpoint: &EndpointEntry, status: &ControlPlaneStatus) -> Value {
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
            json!({"to": mirror.shadow.spec.name.as_str(), "percent": mirror.settings.percent})
        }),
        "deployments": deployments,
    })
}

fn describe_deployment(
    endpoint: &str,
    deployment: &DeploymentEntry,
    traffic: u8,
    status: &ControlPlaneStatus,
) -> Value {
    let (name, requests) = (deployment.spec.name.as_str(), &deployment.spec.request_settings);
    let occupancy = deployment.slots.occupancy();
    let slots = occupancy.busy + occupancy.free;
    let outstanding = occupancy.busy + occupancy.waiting;
    let replicas = deployment.slots.replicas();
    let replicas = replicas
        .iter()
        .map(|replica| json!({"address": replica.address, "state": replica.state, "inFlight": replica.busy}));
    let source = match &deployment.spec.target {
        DeploymentTarget::Instances(_) => "instances",
        DeploymentTarget::Process(_) => "process",
        DeploymentTarget::Workload(_) => "targetRef",
    };
    let desired = match (&deployment.scaling, &deployment.spec.scale_settings) {
        (Some(scaling), _) => Some(scaling.desired()),
        (None, ScaleSettings::Fixed { instances }) => Some(*instances),
        (None, ScaleSettings::TargetUtilization(_) | ScaleSettings::Unmanaged) => None,
    };
    let pending = status.pending_replicas(endpoint, name);
    json!({
        "name": name,
        "traffic": traffic,
        "source": source,
        "desiredReplicas": desired,
        "readyReplicas": occupancy.ready,
        "pendingReplicas": pending.count,
        "problem": pending.problem,
        "replicas": replicas.collect::<Vec<Value>>(),
        "slots": {"busy": occupancy.busy, "free": occupancy.free, "draining": occupancy.busy_draining},
        "queue": occupancy.waiting,
        // Outstanding requests divided by what ready replicas can take, as for autoscaling.
        "utilization": if slots == 0 { Value::Null } else { json!(outstanding as f64 / slots as f64) },
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

/// Describes the autoscaling of a deployment: its rules, the latest decision, and the latest decisions that changed the
/// number of replicas.
fn describe_scaling(scaling: &Scaling) -> Value {
    let (settings, view) = (scaling.rules().settings, scaling.snapshot());
    json!({
        "minInstances": settings.min_replicas,
        "maxInstances": settings.max_replicas,
        "targetUtilizationPercentage": settings.target_percent,
        "pollingIntervalMs": millis(settings.polling_interval),
        "latest": view.latest_decision.as_ref().map(describe_decision),
        "changes": view.changes.iter().map(describe_decision).collect::<Vec<_>>(),
        "problem": view.problem,
    })
}

fn describe_decision(decision: &ScalingDecision) -> Value {
    let ScalingDecision {
        decided_at,
        previous_replicas,
        desired_replicas,
        reason,
        signals,
        demand,
        ready,
        starting,
        utilization,
    } = decision;
    json!({
        "time": humantime::format_rfc3339_millis(*decided_at).to_string(),
        "from": previous_replicas,
        "to": desired_replicas,
        "reason": reason.as_str(),
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
