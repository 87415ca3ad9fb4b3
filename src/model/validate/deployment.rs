//! Validation of one deployment: its target, its request settings and its scale settings.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::super::endpoint::{Deployment, DeploymentTarget, Process, RequestSettings, WorkloadRef, defaults};
use super::super::problem::{field_path, item_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::{
    RawDataCollector, RawDeployment, RawProcess, RawRequestSettings, RawScaleSettings, RawTargetRef,
};
use super::{address, is_object_name, path::validate_uri_path as valid_path, scale, upstream_tls};

pub(in crate::model) const PORT_RANGE: RangeInclusive<i64> = 1..=65_535;
pub(in crate::model) const REQUEST_TIMEOUT_MS_RANGE: RangeInclusive<i64> = 1..=300_000;
pub(in crate::model) const STREAM_IDLE_TIMEOUT_MS_RANGE: RangeInclusive<i64> = 1..=86_400_000;
pub(in crate::model) const MAX_CONCURRENT_RANGE: RangeInclusive<i64> = 1..=1_000_000;
pub(in crate::model) const MAX_QUEUE_WAIT_MS_RANGE: RangeInclusive<i64> = 0..=300_000;
pub(in crate::model) const MAX_QUEUE_LENGTH_RANGE: RangeInclusive<i64> = 0..=1_000_000;

/// The placeholder for the port of a replica in commands and variables.
const PORT_PLACEHOLDER: &str = "{port}";

/// Returns `None` if an essential field is invalid. Problems are reported.
pub(super) fn validate_deployment(check: &mut ProblemCollector, path: &str, raw: &RawDeployment) -> Option<Deployment> {
    let at = |name| field_path(path, name);
    let name = super::validate_name(check, &at("name"), raw.name.as_deref());
    let target = validate_target(check, path, raw);
    let scoring_path =
        validated_uri_path(check, &at("scoringPath"), raw.scoring_path.as_deref(), defaults::SCORING_PATH);
    let swagger_path =
        validated_uri_path(check, &at("swaggerPath"), raw.swagger_path.as_deref(), defaults::SWAGGER_PATH);
    if let Some(host) = &raw.host {
        let what = |error: address::AddressError| format!("is {}, which {error}", quoted(host));
        check.ok_or_report(&at("host"), address::validate_host_header(host).map_err(what));
    }
    let upstream_tls =
        raw.upstream_tls.as_ref().map(|raw| upstream_tls::validate_upstream_tls(check, &at("upstreamTls"), raw));
    if raw.process.is_some() && upstream_tls.is_some() {
        let what = "is only for `instances`: the router speaks to the processes it starts without TLS; remove it";
        check.report(&at("upstreamTls"), what);
    }
    let nothing = RawRequestSettings::default();
    let requests =
        validate_request_settings(check, &at("requestSettings"), raw.request_settings.as_ref().unwrap_or(&nothing));
    let nothing = RawScaleSettings::default();
    let scale = scale::validate_scale_settings(
        check,
        &at("scaleSettings"),
        raw.scale_settings.as_ref().unwrap_or(&nothing),
        target.as_ref(),
    );
    if let Some(collector) = &raw.data_collector {
        check_data_collector(check, &at("dataCollector"), collector);
    }
    Some(Deployment {
        name: name?,
        target: target?,
        scoring_path,
        swagger_path,
        forward_authorization: raw.forward_authorization.unwrap_or(false),
        host: raw.host.clone(),
        upstream_tls,
        request_settings: requests,
        scale_settings: scale,
    })
}

fn validated_uri_path(check: &mut ProblemCollector, path: &str, given: Option<&str>, default: &str) -> String {
    let written = given.unwrap_or(default);
    check.ok_or_report(path, valid_path(written).map_err(|error| format!("is {}: it {error}", quoted(written))));
    written.to_owned()
}

fn validate_target(check: &mut ProblemCollector, path: &str, raw: &RawDeployment) -> Option<DeploymentTarget> {
    let given: Vec<&str> = [
        raw.target_ref.as_ref().map(|_| "targetRef"),
        raw.instances.as_ref().map(|_| "instances"),
        raw.process.as_ref().map(|_| "process"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match given.as_slice() {
        [_] => {}
        [] => {
            let how = "write one of `targetRef` (a Kubernetes workload), `instances` (fixed addresses) and `process`";
            check.report(path, format!("does not say where its replicas are; {how}"));
        }
        [first, others @ ..] => {
            for other in others {
                check.report(
                    &field_path(path, other),
                    format!("is given beside `{first}`, but a deployment has one kind of replicas; remove one"),
                );
            }
        }
    }
    let port = validate_port(check, &field_path(path, "port"), raw);
    let workload =
        raw.target_ref.as_ref().map(|raw| validate_workload_ref(check, &field_path(path, "targetRef"), raw, port));
    let process = raw.process.as_ref().and_then(|raw| validate_process(check, &field_path(path, "process"), raw));
    let instances = raw.instances.as_deref().map(|raw| validate_instances(check, &field_path(path, "instances"), raw));
    let local = process.map(DeploymentTarget::Process).or(instances.map(DeploymentTarget::Instances));
    workload.map(DeploymentTarget::Workload).or(local)
}

/// Validates the names in a workload reference. Whether the workload exists is decided in the cluster. Each name
/// becomes a part of a URL that is requested with the router's own rights.
fn validate_workload_ref(check: &mut ProblemCollector, path: &str, raw: &RawTargetRef, port: u16) -> WorkloadRef {
    let mut text = |name, given: &Option<String>, example, is_right: fn(&str) -> bool| {
        let given = given.as_deref().unwrap_or_default();
        if given.is_empty() {
            check.report(&field_path(path, name), format!("is missing; write for example `{name}: {example}`"));
        } else if !is_right(given) {
            let what = format!("is {}, but must be as in `{name}: {example}`", quoted(given));
            check.report(&field_path(path, name), what);
        }
        given.to_owned()
    };
    WorkloadRef {
        api_version: text("apiVersion", &raw.api_version, "apps/v1", is_api_version),
        kind: text("kind", &raw.kind, "Deployment", is_kind),
        name: text("name", &raw.name, "my-model", is_object_name),
        port,
    }
}

/// Returns whether `text` is an API version: a version, with its group before it except for the core group.
fn is_api_version(text: &str) -> bool {
    let (group, version) = text.rsplit_once('/').map_or((None, text), |(group, version)| (Some(group), version));
    let rest = version.strip_prefix('v').unwrap_or_default();
    let is_version = rest.starts_with(|first: char| first.is_ascii_digit())
        && rest.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    is_version && group.is_none_or(is_object_name)
}

/// Returns whether `text` is a kind.
fn is_kind(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_uppercase()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The same rules as patterns, for the custom resource definition.
pub(in crate::model) const API_VERSION_PATTERN: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9][a-z0-9]*$";
pub(in crate::model) const KIND_PATTERN: &str = "^[A-Z][a-zA-Z0-9]*$";

fn validate_port(check: &mut ProblemCollector, path: &str, raw: &RawDeployment) -> u16 {
    let port = check.number_in_range(path, raw.port, PORT_RANGE, defaults::PORT, "");
    let port = u16::try_from(port).unwrap_or_default();
    if raw.port.is_none() || raw.target_ref.is_some() {
        return port;
    }
    if raw.instances.is_some() {
        check.report(path, "is only for `targetRef`: each address in `instances` has its own port; remove it");
    } else if raw.process.is_some() {
        check.report(path, "is only for `targetRef`: the router gives each process a port as `{port}`; remove it");
    }
    port
}

fn validate_instances(check: &mut ProblemCollector, path: &str, raw: &[Option<String>]) -> Vec<String> {
    if raw.is_empty() {
        check.report(path, "is empty; write at least one address, such as `[\"127.0.0.1:5001\"]`");
    }
    let mut addresses: Vec<String> = Vec::with_capacity(raw.len());
    let mut first_at = HashMap::new();
    for (index, address) in raw.iter().enumerate() {
        let path = item_path(path, index);
        let address = address.as_deref().unwrap_or_default();
        if let Err(error) = address::validate_host_and_port(address) {
            check.report(&path, format!("is {}, which {error}", quoted(address)));
            continue;
        }
        let first = *first_at.entry(address.to_ascii_lowercase()).or_insert(index);
        if first != index {
            check.report(&path, format!("is {}, the same as item {first}; write each address once", quoted(address)));
        }
        addresses.push(address.to_owned());
    }
    addresses
}

fn validate_process(check: &mut ProblemCollector, path: &str, raw: &RawProcess) -> Option<Process> {
    let command: Vec<String> = raw.command.iter().flatten().map(|part| part.clone().unwrap_or_default()).collect();
    let env: Vec<(String, String)> = raw.env.clone().unwrap_or_default().into_iter().collect();
    let at_command = field_path(path, "command");
    match command.first() {
        None => check
            .report(&at_command, "is missing; write program and arguments, as `[\"serve\", \"--port\", \"{port}\"]`"),
        Some(program) if program.trim().is_empty() => {
            check.report(&item_path(&at_command, 0), "is empty; it must be the program to start");
        }
        Some(_)
            if !command
                .iter()
                .chain(env.iter().map(|(_, value)| value))
                .any(|text| text.contains(PORT_PLACEHOLDER)) =>
        {
            let why = "does not say `{port}`, and no variable in `env` does: the router gives each replica its own port there";
            check.report(&at_command, format!("{why}, as in `[\"serve\", \"--port\", \"{PORT_PLACEHOLDER}\"]`"));
        }
        Some(_) => {}
    }
    for (index, _) in command.iter().enumerate().filter(|(_, part)| part.contains('\0')) {
        check.report(&item_path(&at_command, index), "has a NUL character, which no argument can have");
    }
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            check.report(
                &field_path(&field_path(path, "env"), name),
                "cannot be an environment variable: its name is empty, or has a `=` or NUL",
            );
        }
    }
    if raw.working_dir.as_deref().is_some_and(|folder| folder.is_empty() || folder.contains('\0')) {
        check.report(&field_path(path, "workingDir"), "is empty; name a folder, or leave it out for the router's own");
    }
    let readiness = raw.readiness_path.as_deref();
    let readiness_path =
        validated_uri_path(check, &field_path(path, "readinessPath"), readiness, defaults::READINESS_PATH);
    let working_dir = raw.working_dir.as_ref().map(PathBuf::from);
    Some(Process { command, readiness_path, env, working_dir })
}

fn validate_request_settings(check: &mut ProblemCollector, path: &str, raw: &RawRequestSettings) -> RequestSettings {
    let mut number = |name, given, range, default, unit| {
        check.number_in_range(&field_path(path, name), given, range, default, unit).unsigned_abs()
    };
    let timeout = number(
        "requestTimeoutMs",
        raw.request_timeout_ms,
        REQUEST_TIMEOUT_MS_RANGE,
        defaults::REQUEST_TIMEOUT_MS,
        MILLISECONDS_SUFFIX,
    );
    let stream_idle = number(
        "streamIdleTimeoutMs",
        raw.stream_idle_timeout_ms,
        STREAM_IDLE_TIMEOUT_MS_RANGE,
        defaults::STREAM_IDLE_TIMEOUT_MS,
        MILLISECONDS_SUFFIX,
    );
    let concurrent = number(
        "maxConcurrentRequestsPerInstance",
        raw.max_concurrent_requests_per_instance,
        MAX_CONCURRENT_RANGE,
        defaults::MAX_CONCURRENT_PER_INSTANCE,
        "",
    );
    let wait = number(
        "maxQueueWaitMs",
        raw.max_queue_wait_ms,
        MAX_QUEUE_WAIT_MS_RANGE,
        defaults::MAX_QUEUE_WAIT_MS,
        MILLISECONDS_SUFFIX,
    );
    let length = number("maxQueueLength", raw.max_queue_length, MAX_QUEUE_LENGTH_RANGE, defaults::MAX_QUEUE_LENGTH, "");
    RequestSettings {
        timeout: Duration::from_millis(timeout),
        stream_idle_timeout: Duration::from_millis(stream_idle),
        max_concurrent_per_instance: u32::try_from(concurrent)
            .ok()
            .and_then(NonZeroU32::new)
            .unwrap_or(NonZeroU32::MIN),
        max_queue_wait: Duration::from_millis(wait),
        max_queue_length: usize::try_from(length).unwrap_or_default(),
    }
}

const MILLISECONDS_SUFFIX: &str = " milliseconds";

fn check_data_collector(check: &mut ProblemCollector, path: &str, raw: &RawDataCollector) {
    if let Some(rate) = raw.sampling_rate.filter(|rate| !(0.0..=1.0).contains(rate)) {
        check.report(&field_path(path, "samplingRate"), format!("is {rate}, but must be between 0 and 1"));
    }
    let rates = [("Minute", ()), ("Hour", ()), ("Day", ())];
    check.keyword(&field_path(path, "rollingRate"), raw.rolling_rate.as_deref(), &rates);
}
