//! The metric families, and handles to them that are resolved when the table is built, not per request.
//!
//! Labels take only configured names and closed sets.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Upper bounds of all duration histograms, in seconds: fine enough for 100 µs, far enough for the longest request.
const DURATION_BUCKETS_SECONDS: [f64; 21] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// Every family that is counted as things happen. What can be read off the slots is in [`super::gauges`].
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// What the families in `registry` are, for the reference documentation.
    pub descriptions: Vec<FamilyDescription>,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    routing_duration: HistogramVec,
    queue_wait: HistogramVec,
    model_duration: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    requests_rejected: IntCounterVec,
    retries: IntCounterVec,
    mirror_requests: IntCounterVec,
    mirror_comparisons: IntCounterVec,
    auth_failures: IntCounterVec,
    key_set_fetches: IntCounterVec,
    key_set_last_success: IntGaugeVec,
    autoscaler_decisions: IntCounterVec,
    /// Open connections, by listener.
    pub connections: IntGaugeVec,
    /// Accepts that failed, for want of file descriptors or otherwise.
    pub accept_errors: IntCounter,
    /// Reloads of endpoint files: `ok` or `error`.
    pub config_reloads: IntCounterVec,
    /// Endpoint documents that are refused now; their last good version serves, if there was one.
    pub config_invalid_documents: IntGauge,
    /// Changes of TLS files: `ok` or `error`.
    pub tls_reloads: IntCounterVec,
    /// TLS files that are refused now; their last good version serves.
    pub tls_invalid_files: IntGauge,
    /// When each certificate expires, as a Unix time.
    pub tls_certificate_not_after: IntGaugeVec,
    tls_handshakes: IntCounterVec,
    /// Access log lines lost because the log could not be written as fast.
    pub access_log_dropped: IntCounter,
}

/// Counters of one endpoint.
#[derive(Debug, Clone)]
pub struct EndpointMetrics {
    requests: IntCounterVec,
    auth_failures: IntCounterVec,
    requests_rejected: IntCounterVec,
    endpoint_name: String,
}

/// TLS handshakes of one listener, by how they ended.
#[derive(Debug)]
pub struct HandshakeMetrics {
    /// With everything.
    pub full: IntCounter,
    /// By going on with an earlier session.
    pub resumed: IntCounter,
    /// The client went, or spoke no TLS that is spoken here.
    pub failed: IntCounter,
    /// Not in time.
    pub timed_out: IntCounter,
    /// It was plain HTTP.
    pub plain_http: IntCounter,
}

/// Counters of one deployment.
#[derive(Debug)]
pub struct DeploymentMetrics {
    /// The common case, resolved: 200 from the model and to the client.
    ok_requests: IntCounter,
    labels: [String; 2],
    metrics: Arc<Metrics>,
    /// Made when the first request comes: of ten thousand deployments most rest, and these are 7 KB each.
    series: OnceLock<Box<DeploymentSeries>>,
}

#[derive(Debug)]
struct DeploymentSeries {
    request_duration: Histogram,
    routing_duration: Histogram,
    queue_wait: Histogram,
    model_duration: Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
}

/// Labels that name a deployment. A label `endpoint` would be overwritten by the one that the Prometheus operator sets.
pub(crate) const DEPLOYMENT_LABELS: [&str; 2] = ["endpoint_name", "deployment_name"];

/// The prefix of all metric names.
const PREFIX: &str = "inference_router";

/// What the reference documentation says about a metric family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyDescription {
    /// The full name, with its prefix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// The text of its `# HELP` line.
    pub help: String,
}

/// Creates metric families, registers them, and remembers their descriptions.
#[derive(Debug)]
pub struct FamilyRegistrar {
    /// The registry that families are added to.
    pub registry: Registry,
    /// One description for each family, in the order of their creation.
    pub descriptions: Vec<FamilyDescription>,
}

impl FamilyRegistrar {
    /// Creates a registrar over an empty registry.
    ///
    /// # Errors
    /// Only if the prefix were not a valid metric name.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self::with_registry(Registry::new_custom(Some(PREFIX.to_owned()), None)?))
    }

    /// Creates a registrar that adds families to `registry`, whose prefix must be that of the router.
    pub fn with_registry(registry: Registry) -> Self {
        Self { registry, descriptions: Vec::new() }
    }

    /// Registers a family.
    ///
    /// # Errors
    /// If the name is not a valid metric name, or another family has it.
    pub fn register<F: Collector + Clone + 'static>(
        &mut self,
        kind: &'static str,
        family: prometheus::Result<F>,
    ) -> prometheus::Result<F> {
        let family = family?;
        self.registry.register(Box::new(family.clone()))?;
        self.descriptions.extend(family.desc().into_iter().map(|desc| FamilyDescription {
            name: format!("{PREFIX}_{}", desc.fq_name),
            kind,
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
        Ok(family)
    }

    /// Registers a counter with labels.
    ///
    /// # Errors
    /// As [`FamilyRegistrar::register`].
    pub fn counter_vec(&mut self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Registers a counter without labels.
    ///
    /// # Errors
    /// As [`FamilyRegistrar::register`].
    pub fn counter(&mut self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register("counter", IntCounter::new(name, help))
    }

    /// Registers a gauge with labels.
    ///
    /// # Errors
    /// As [`FamilyRegistrar::register`].
    pub fn gauge_vec(&mut self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// Registers a gauge without labels.
    ///
    /// # Errors
    /// As [`FamilyRegistrar::register`].
    pub fn gauge(&mut self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register("gauge", IntGauge::new(name, help))
    }

    /// Registers a histogram of durations in seconds, by deployment.
    ///
    /// # Errors
    /// As [`FamilyRegistrar::register`].
    fn duration_histogram(&mut self, name: &str, help: &str) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS_SECONDS.to_vec());
        self.register("histogram", HistogramVec::new(opts, &DEPLOYMENT_LABELS))
    }
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// Only if two families had the same name.
    pub fn new() -> prometheus::Result<Self> {
        let mut families = FamilyRegistrar::new()?;
        let [endpoint, deployment] = DEPLOYMENT_LABELS;
        let by_reason = [endpoint, deployment, "reason"];
        let build_info = families.gauge_vec(
            "build_info",
            "Constant 1; the label carries the version of the running program.",
            &["version"],
        )?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            requests: families.counter_vec(
                "requests_total",
                "Requests by the status that the client got and the status of the model. Code 499 is a client that left.",
                &[endpoint, deployment, "code", "model_code"],
            )?,
            request_duration: families.duration_histogram(
                "request_duration_seconds",
                "Time from the request head to the last byte of the response.",
            )?,
            routing_duration: families.duration_histogram(
                "routing_duration_seconds",
                "Time spent in the router itself: the duration of the request without queue wait and model.",
            )?,
            queue_wait: families.duration_histogram(
                "queue_wait_seconds",
                "Time in the queue, of requests that were queued.",
            )?,
            model_duration: families.duration_histogram(
                "model_duration_seconds",
                "Time from the dispatch to the response head of the model.",
            )?,
            request_bytes: families.counter_vec(
                "request_bytes_total",
                "Bytes of request bodies.",
                &DEPLOYMENT_LABELS,
            )?,
            response_bytes: families.counter_vec(
                "response_bytes_total",
                "Bytes of response bodies.",
                &DEPLOYMENT_LABELS,
            )?,
            requests_rejected: families.counter_vec(
                "requests_rejected_total",
                "Requests that the router answered with an error of its own, by error code.",
                &by_reason,
            )?,
            retries: families.counter_vec(
                "retries_total",
                "Requests sent to another replica because nothing of them had reached a model.",
                &by_reason,
            )?,
            mirror_requests: families.counter_vec(
                "mirror_requests_total",
                "Mirrored requests, by how they ended.",
                &[endpoint, deployment, "result"],
            )?,
            mirror_comparisons: families.counter_vec(
                "mirror_comparisons_total",
                "Comparisons of a shadow's answer with the live one, by result.",
                &[endpoint, "result"],
            )?,
            auth_failures: families.counter_vec(
                "auth_failures_total",
                "Requests rejected by authentication or authorization, by error code.",
                &[endpoint, "reason"],
            )?,
            key_set_fetches: families.counter_vec(
                "key_set_fetches_total",
                "Fetches of the key set (JWKS) of a token issuer.",
                &["issuer", "result"],
            )?,
            key_set_last_success: families.gauge_vec(
                "key_set_last_success_timestamp_seconds",
                "Unix time of the last successful fetch of the key set of a token issuer.",
                &["issuer"],
            )?,
            autoscaler_decisions: families.counter_vec(
                "autoscaler_decisions_total",
                "Changes of the desired number of replicas.",
                &[endpoint, deployment, "direction", "reason"],
            )?,
            connections: families.gauge_vec("connections", "Open client connections.", &["listener"])?,
            accept_errors: families.counter(
                "accept_errors_total",
                "Client connections that could not be accepted.",
            )?,
            config_reloads: families.counter_vec(
                "config_reloads_total",
                "Reloads of endpoint documents, by result.",
                &["result"],
            )?,
            config_invalid_documents: families.gauge(
                "config_invalid_documents",
                "Endpoint documents that are invalid now; their last known good version keeps serving.",
            )?,
            tls_reloads: families.counter_vec(
                "tls_reloads_total",
                "Reloads of certificates and certificate authorities, by result.",
                &["result"],
            )?,
            tls_invalid_files: families.gauge(
                "tls_invalid_files",
                "TLS files that are invalid now; their last known good version stays in use.",
            )?,
            tls_certificate_not_after: families.gauge_vec(
                "tls_certificate_not_after_timestamp_seconds",
                "Unix time at which the certificate expires.",
                &["certificate"],
            )?,
            tls_handshakes: families.counter_vec(
                "tls_handshakes_total",
                "TLS handshakes of clients, by result.",
                &["listener", "result"],
            )?,
            access_log_dropped: families.counter(
                "access_log_dropped_total",
                "Access log lines dropped because the log could not be written as fast.",
            )?,
            registry: families.registry,
            descriptions: families.descriptions,
        })
    }

    /// The handles of a listener with TLS.
    pub fn handshake_metrics(&self, listener: &str) -> HandshakeMetrics {
        let of = |result| self.tls_handshakes.with_label_values(&[listener, result]);
        HandshakeMetrics {
            full: of("full"),
            resumed: of("resumed"),
            failed: of("failed"),
            timed_out: of("timed_out"),
            plain_http: of("plain_http"),
        }
    }

    /// The handles of one endpoint.
    pub fn endpoint_metrics(&self, endpoint: &str) -> EndpointMetrics {
        EndpointMetrics {
            requests: self.requests.clone(),
            auth_failures: self.auth_failures.clone(),
            requests_rejected: self.requests_rejected.clone(),
            endpoint_name: endpoint.to_owned(),
        }
    }

    /// The handles of requests that name no endpoint.
    pub fn unrouted_metrics(&self) -> EndpointMetrics {
        self.endpoint_metrics("")
    }

    /// Counts a fetch of an issuer's keys.
    pub fn record_key_set_fetch(&self, issuer: &str, ok: bool) {
        self.key_set_fetches.with_label_values(&[issuer, if ok { "ok" } else { "error" }]).inc();
        if ok {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.key_set_last_success
                .with_label_values(&[issuer])
                .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Counts a comparison of two answers.
    pub fn record_comparison(&self, endpoint: &str, result: &str) {
        self.mirror_comparisons.with_label_values(&[endpoint, result]).inc();
    }

    /// Counts a change of a deployment's number of replicas.
    pub fn record_scaling(&self, endpoint: &str, deployment: &str, up: bool, reason: &str) {
        let direction = if up { "up" } else { "down" };
        self.autoscaler_decisions.with_label_values(&[endpoint, deployment, direction, reason]).inc();
    }

    /// The handles of one deployment.
    pub fn deployment_metrics(self: &Arc<Self>, endpoint: &str, deployment: &str) -> DeploymentMetrics {
        let labels = [endpoint, deployment];
        DeploymentMetrics {
            ok_requests: self.requests.with_label_values(&[endpoint, deployment, "200", "200"]),
            labels: labels.map(str::to_owned),
            metrics: self.clone(),
            series: OnceLock::new(),
        }
    }
}

impl EndpointMetrics {
    /// Counts an answer that no deployment had part in.
    pub fn record_response(&self, code: u16) {
        self.requests.with_label_values(&[&self.endpoint_name, "", &code.to_string(), ""]).inc();
    }

    /// Counts a request without a right.
    pub fn record_auth_failure(&self, reason: &str) {
        self.auth_failures.with_label_values(&[&self.endpoint_name, reason]).inc();
    }

    /// Counts a refusal before a deployment was chosen.
    pub fn record_rejection(&self, reason: &str) {
        self.requests_rejected.with_label_values(&[self.endpoint_name.as_str(), "", reason]).inc();
    }
}

impl DeploymentMetrics {
    /// Counts an answer: the status the client got, and the model's if it gave one.
    pub fn record_response(&self, code: u16, model_code: Option<u16>) {
        if (code, model_code) == (200, Some(200)) {
            return self.ok_requests.inc();
        }
        let model_code = model_code.map(|code| code.to_string()).unwrap_or_default();
        self.metrics
            .requests
            .with_label_values(&[&self.labels[0], &self.labels[1], &code.to_string(), &model_code])
            .inc();
    }

    /// Counts a request that the router refused or failed.
    pub fn record_rejection(&self, reason: &str) {
        self.metrics
            .requests_rejected
            .with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), reason])
            .inc();
    }

    /// Counts a request that is sent again.
    pub fn record_retry(&self, reason: &str) {
        self.metrics.retries.with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), reason]).inc();
    }

    /// Counts a copy of a live request that the deployment was to get.
    pub fn record_mirror_request(&self, result: &str) {
        self.metrics
            .mirror_requests
            .with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), result])
            .inc();
    }

    /// Observes where the time of a request went: `total` from its head to the last byte of the response, `queued` if it
    /// waited, `model` from dispatch to the response's head, `routing` in the router, without queue and model.
    pub fn observe_durations(
        &self,
        total: Duration,
        queued: Option<Duration>,
        model: Option<Duration>,
        routing: Duration,
    ) {
        let series = self.series();
        series.request_duration.observe(total.as_secs_f64());
        series.routing_duration.observe(routing.as_secs_f64());
        if let Some(queued) = queued {
            series.queue_wait.observe(queued.as_secs_f64());
        }
        if let Some(model) = model {
            series.model_duration.observe(model.as_secs_f64());
        }
    }

    /// Observes how long the model took to answer a request that is nobody's: a copy.
    pub fn observe_model_duration(&self, took: Duration) {
        self.series().model_duration.observe(took.as_secs_f64());
    }

    /// Counts bytes of bodies, to the model and from it.
    pub fn add_bytes(&self, request: u64, response: u64) {
        let series = self.series();
        series.request_bytes.inc_by(request);
        series.response_bytes.inc_by(response);
    }

    fn series(&self) -> &DeploymentSeries {
        self.series.get_or_init(|| {
            let (all, labels) = (&self.metrics, &self.labels);
            Box::new(DeploymentSeries {
                request_duration: all.request_duration.with_label_values(labels),
                routing_duration: all.routing_duration.with_label_values(labels),
                queue_wait: all.queue_wait.with_label_values(labels),
                model_duration: all.model_duration.with_label_values(labels),
                request_bytes: all.request_bytes.with_label_values(labels),
                response_bytes: all.response_bytes.with_label_values(labels),
            })
        })
    }
}
