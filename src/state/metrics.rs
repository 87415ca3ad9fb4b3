//! The metric families, and handles to them that are resolved when the table is built, not per request.
//!
//! Labels take only configured names and closed sets.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Upper bounds of all duration histograms, in seconds: fine enough for 100 µs, far enough for the longest request.
const SECONDS: [f64; 21] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// Every family that is counted as things happen. What can be read off the slots is in [`super::gauges`].
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    routing_duration: HistogramVec,
    queue_wait: HistogramVec,
    model_duration: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    rejected: IntCounterVec,
    retries: IntCounterVec,
    mirrored: IntCounterVec,
    compared: IntCounterVec,
    auth_failures: IntCounterVec,
    token_key_fetches: IntCounterVec,
    token_keys_fetched: IntGaugeVec,
    autoscaler_decisions: IntCounterVec,
    /// Open connections, by listener.
    pub connections: IntGaugeVec,
    /// Accepts that failed, for want of file descriptors or otherwise.
    pub accept_errors: IntCounter,
    /// Reloads of endpoint files: `ok` or `error`.
    pub reloads: IntCounterVec,
    /// Endpoint documents that are refused now; their last good version serves, if there was one.
    pub refused_documents: IntGauge,
    /// Changes of TLS files: `ok` or `error`.
    pub tls_reloads: IntCounterVec,
    /// TLS files that are refused now; their last good version serves.
    pub tls_refused_files: IntGauge,
    /// When each certificate expires, as a Unix time.
    pub tls_certificate_expiry: IntGaugeVec,
    tls_handshakes: IntCounterVec,
    /// Access log lines lost because the log could not be written as fast.
    pub access_log_dropped: IntCounter,
}

/// Counters of one endpoint.
#[derive(Debug, Clone)]
pub struct EndpointMetrics {
    requests: IntCounterVec,
    auth_failures: IntCounterVec,
    rejected: IntCounterVec,
    endpoint: String,
}

/// TLS handshakes of one listener, by how they ended.
#[derive(Debug)]
pub struct Handshakes {
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
    ok: IntCounter,
    labels: [String; 2],
    families: Arc<Metrics>,
    /// Made when the first request comes: of ten thousand deployments most rest, and these are 7 KB each.
    series: OnceLock<Box<Series>>,
}

#[derive(Debug)]
struct Series {
    request_duration: Histogram,
    routing_duration: Histogram,
    queue_wait: Histogram,
    model_duration: Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
}

const BY_DEPLOYMENT: [&str; 2] = ["endpoint", "deployment"];

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// Only if two families had the same name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("inference_router".to_owned()), None)?;
        let counter = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let histogram = |name: &str, help: &str| -> prometheus::Result<HistogramVec> {
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), &BY_DEPLOYMENT)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let single = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let connections = IntGaugeVec::new(Opts::new("connections", "Open client connections."), &["listener"])?;
        registry.register(Box::new(connections.clone()))?;
        let fetched = IntGaugeVec::new(
            Opts::new("token_keys_fetched_timestamp_seconds", "When the public keys of an issuer were last fetched."),
            &["issuer"],
        )?;
        registry.register(Box::new(fetched.clone()))?;
        let refused =
            IntGauge::new("refused_documents", "Endpoint documents refused now; their last good version serves.")?;
        registry.register(Box::new(refused.clone()))?;
        let expiry = Opts::new("tls_certificate_expiry_seconds", "When the certificate expires, as a Unix time.");
        let expiry = IntGaugeVec::new(expiry, &["certificate"])?;
        registry.register(Box::new(expiry.clone()))?;
        let refused_files =
            IntGauge::new("tls_refused_files", "TLS files refused now; their last good version serves.")?;
        registry.register(Box::new(refused_files.clone()))?;
        let build = IntGaugeVec::new(Opts::new("build_info", "Always 1; the version is in the label."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let by_code = ["endpoint", "deployment", "code", "model_code"];
        let by_reason = ["endpoint", "deployment", "reason"];
        Ok(Self {
            requests: counter(
                "requests_total",
                "Requests by answer; code 499 is a client that left before it.",
                &by_code,
            )?,
            request_duration: histogram(
                "request_duration_seconds",
                "From the request head to the last response byte.",
            )?,
            routing_duration: histogram(
                "routing_duration_seconds",
                "Time in the router: total less queue less model.",
            )?,
            queue_wait: histogram("queue_wait_seconds", "Time in the queue, of requests that waited.")?,
            model_duration: histogram("model_duration_seconds", "From dispatch to the model's response head.")?,
            request_bytes: counter("request_bytes_total", "Request body bytes.", &BY_DEPLOYMENT)?,
            response_bytes: counter("response_bytes_total", "Response body bytes.", &BY_DEPLOYMENT)?,
            rejected: counter("rejected_total", "Requests the router refused or failed.", &by_reason)?,
            retries: counter(
                "retries_total",
                "Requests sent again, because nothing of them had been sent.",
                &by_reason,
            )?,
            mirrored: counter(
                "mirror_requests_total",
                "Copies of live requests to a shadow, by how they ended.",
                &["endpoint", "deployment", "result"],
            )?,
            compared: counter(
                "mirror_comparisons_total",
                "Answers to copied requests, live against shadow, by what the comparison came to.",
                &["endpoint", "result"],
            )?,
            auth_failures: counter("auth_failures_total", "Requests without a right.", &["endpoint", "reason"])?,
            accept_errors: single("accept_errors_total", "Connections that could not be accepted.")?,
            reloads: counter("config_reloads_total", "Reloads of endpoint documents.", &["result"])?,
            tls_reloads: counter("tls_reloads_total", "Changes of certificates and authorities.", &["result"])?,
            tls_handshakes: counter("tls_handshakes_total", "TLS handshakes of clients.", &["listener", "result"])?,
            tls_refused_files: refused_files,
            tls_certificate_expiry: expiry,
            access_log_dropped: single("access_log_dropped_total", "Access log lines lost: the log was too slow.")?,
            token_key_fetches: counter(
                "token_keys_fetches_total",
                "Fetches of the public keys of an issuer.",
                &["issuer", "result"],
            )?,
            token_keys_fetched: fetched,
            autoscaler_decisions: counter(
                "autoscaler_decisions_total",
                "Changes of the number of replicas.",
                &["endpoint", "deployment", "direction", "reason"],
            )?,
            connections,
            refused_documents: refused,
            registry,
        })
    }

    /// The handles of a listener with TLS.
    pub fn handshakes(&self, listener: &str) -> Handshakes {
        let of = |result| self.tls_handshakes.with_label_values(&[listener, result]);
        Handshakes {
            full: of("full"),
            resumed: of("resumed"),
            failed: of("failed"),
            timed_out: of("timed_out"),
            plain_http: of("plain_http"),
        }
    }

    /// The handles of one endpoint.
    pub fn endpoint(&self, endpoint: &str) -> EndpointMetrics {
        EndpointMetrics {
            requests: self.requests.clone(),
            auth_failures: self.auth_failures.clone(),
            rejected: self.rejected.clone(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// The handles of requests that name no endpoint.
    pub fn no_endpoint(&self) -> EndpointMetrics {
        self.endpoint("")
    }

    /// Counts a fetch of an issuer's keys.
    pub fn token_keys_fetched(&self, issuer: &str, ok: bool) {
        self.token_key_fetches.with_label_values(&[issuer, if ok { "ok" } else { "error" }]).inc();
        if ok {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.token_keys_fetched.with_label_values(&[issuer]).set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Counts a comparison of two answers.
    pub fn compared(&self, endpoint: &str, result: &str) {
        self.compared.with_label_values(&[endpoint, result]).inc();
    }

    /// Counts a change of a deployment's number of replicas.
    pub fn scaled(&self, endpoint: &str, deployment: &str, up: bool, reason: &str) {
        let direction = if up { "up" } else { "down" };
        self.autoscaler_decisions.with_label_values(&[endpoint, deployment, direction, reason]).inc();
    }

    /// The handles of one deployment.
    pub fn deployment(self: &Arc<Self>, endpoint: &str, deployment: &str) -> DeploymentMetrics {
        let labels = [endpoint, deployment];
        DeploymentMetrics {
            ok: self.requests.with_label_values(&[endpoint, deployment, "200", "200"]),
            labels: labels.map(str::to_owned),
            families: self.clone(),
            series: OnceLock::new(),
        }
    }
}

impl EndpointMetrics {
    /// Counts an answer that no deployment had part in.
    pub fn answered(&self, code: u16) {
        self.requests.with_label_values(&[&self.endpoint, "", &code.to_string(), ""]).inc();
    }

    /// Counts a request without a right.
    pub fn denied(&self, reason: &str) {
        self.auth_failures.with_label_values(&[&self.endpoint, reason]).inc();
    }

    /// Counts a refusal before a deployment was chosen.
    pub fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[self.endpoint.as_str(), "", reason]).inc();
    }
}

impl DeploymentMetrics {
    /// Counts an answer: the status the client got, and the model's if it gave one.
    pub fn answered(&self, code: u16, model_code: Option<u16>) {
        if (code, model_code) == (200, Some(200)) {
            return self.ok.inc();
        }
        let model_code = model_code.map(|code| code.to_string()).unwrap_or_default();
        self.families
            .requests
            .with_label_values(&[&self.labels[0], &self.labels[1], &code.to_string(), &model_code])
            .inc();
    }

    /// Counts a request that the router refused or failed.
    pub fn rejected(&self, reason: &str) {
        self.families.rejected.with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), reason]).inc();
    }

    /// Counts a request that is sent again.
    pub fn retried(&self, reason: &str) {
        self.families.retries.with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), reason]).inc();
    }

    /// Counts a copy of a live request that the deployment was to get.
    pub fn mirrored(&self, result: &str) {
        self.families.mirrored.with_label_values(&[self.labels[0].as_str(), self.labels[1].as_str(), result]).inc();
    }

    /// Observes where the time of a request went: `total` from its head to the last byte of the response, `queued` if it
    /// waited, `model` from dispatch to the response's head, `routing` in the router, without queue and model.
    pub fn observe(&self, total: Duration, queued: Option<Duration>, model: Option<Duration>, routing: Duration) {
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
    pub fn observe_model(&self, took: Duration) {
        self.series().model_duration.observe(took.as_secs_f64());
    }

    /// Counts bytes of bodies, to the model and from it.
    pub fn bytes(&self, request: u64, response: u64) {
        let series = self.series();
        series.request_bytes.inc_by(request);
        series.response_bytes.inc_by(response);
    }

    fn series(&self) -> &Series {
        self.series.get_or_init(|| {
            let (all, labels) = (&self.families, &self.labels);
            Box::new(Series {
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
