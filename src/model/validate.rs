//! Validation: from a document as written to an [`Endpoint`] whose every value is valid, or to all problems of the
//! document.
//!
//! Every check reports its problem and continues, so that one pass shows everything that has to be fixed.

mod access;
mod address;
pub(super) mod cors;
pub(super) mod deployment;
mod issuers;
pub mod path;
pub(super) mod scale;
pub(super) mod traffic;
pub(super) mod unsupported;
mod upstream_tls;

use serde_json::Value;

use super::endpoint::{Auth, Deployment, Endpoint};
use super::name::Name;
use super::problem::{self, Problem, field_path, item_path, quoted};
use super::problem_collector::ProblemCollector;
use super::resource::{self, API_VERSION, KIND, RawEndpoint, RawMetadata, RawSpec};

/// The largest number of deployments of one endpoint.
pub(super) const MAX_DEPLOYMENTS: usize = 20;
/// The longest namespace, as in Kubernetes.
const MAX_NAMESPACE_CHARS: usize = 63;

/// The source of a document. It decides which fields are allowed: a user who may create endpoints in a cluster must not
/// be able to read the router's files or to start programs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentOrigin {
    /// A file of the router.
    File,
    /// An object in a Kubernetes cluster.
    Cluster,
}

/// A document that is not a valid endpoint.
#[derive(Debug)]
pub struct InvalidDocument {
    /// All problems of the document.
    pub problems: Vec<Problem>,
    /// The authentication settings, if they are valid: keys are read elsewhere, and their problems belong to the same
    /// report.
    pub auth: Option<Auth>,
}

/// Decodes and validates one parsed document.
///
/// # Errors
///
/// [`InvalidDocument`]: fields of the wrong type, unknown fields, values out of range.
pub fn decode_and_validate(document: Value, origin: DocumentOrigin) -> Result<Endpoint, InvalidDocument> {
    let kind = document.get("kind").and_then(Value::as_str);
    let version = document.get("apiVersion").and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != KIND)
        && version != Some(API_VERSION)
    {
        // In a document of another kind every field would be unknown. One problem is clearer.
        return Err(InvalidDocument { problems: vec![Problem::new("kind", wrong_kind_message(kind))], auth: None });
    }
    let (raw, form) = resource::decode_endpoint(document);
    let problems = match validate(&raw, origin) {
        Ok(endpoint) if form.is_empty() => return Ok(endpoint),
        Ok(_) => form,
        Err(rules) => problem::merge_problems(form, rules),
    };
    Err(InvalidDocument {
        problems,
        auth: raw.spec.as_ref().and_then(|spec| access::validate_auth(&mut ProblemCollector::default(), spec)),
    })
}

/// Validates a document against every rule and fills in the defaults.
///
/// # Errors
///
/// All rules that the document breaks.
pub fn validate(raw: &RawEndpoint, origin: DocumentOrigin) -> Result<Endpoint, Vec<Problem>> {
    let mut check = ProblemCollector::default();
    check_type_meta(&mut check, raw);
    let nothing = RawMetadata::default();
    let metadata = raw.metadata.as_ref().unwrap_or(&nothing);
    let name = validate_name(&mut check, "metadata.name", metadata.name.as_deref());
    let namespace = validate_namespace(&mut check, metadata);
    let Some(spec) = &raw.spec else {
        check.report("spec", "is missing; it says which deployments the endpoint has and how traffic is split");
        return Err(check.into_problems());
    };
    unsupported::report_unsupported(&mut check, spec, origin);
    let auth = access::validate_auth(&mut check, spec);
    let traffic = traffic::validate_live_traffic(&mut check, spec);
    let mirror = traffic::validate_mirror(&mut check, spec);
    let bandwidth = traffic::validate_bandwidth(&mut check, spec);
    let cors = spec.cors.as_ref().and_then(|cors| self::cors::validate_cors(&mut check, "spec.cors", cors));
    let deployments = validate_deployments(&mut check, spec);
    match (name, auth, check.problem_count()) {
        (Some(name), Some(auth), 0) => Ok(Endpoint {
            name,
            namespace,
            auth,
            traffic,
            mirror,
            bandwidth_bytes_per_second: bandwidth,
            cors,
            deployments,
        }),
        _ => Err(check.into_problems()),
    }
}

fn check_type_meta(check: &mut ProblemCollector, raw: &RawEndpoint) {
    match raw.api_version.as_deref() {
        Some(API_VERSION) => {}
        Some(other) => check.report("apiVersion", format!("is {}, but must be `{API_VERSION}`", quoted(other))),
        None => check.report("apiVersion", format!("is missing; write `apiVersion: {API_VERSION}`")),
    }
    match raw.kind.as_deref() {
        Some(KIND) => {}
        Some(other) => check.report("kind", wrong_kind_message(other)),
        None => check.report("kind", format!("is missing; write `kind: {KIND}`")),
    }
}

fn wrong_kind_message(kind: &str) -> String {
    format!("is {}, but must be `{KIND}`; other documents cannot be in this file", quoted(kind))
}

fn validate_name(check: &mut ProblemCollector, path: &str, given: Option<&str>) -> Option<Name> {
    let Some(given) = given else {
        check.report(path, "is missing; a name has 3 to 32 letters, digits and single dashes, a letter first");
        return None;
    };
    let result = Name::new(given).map_err(|error| format!("is {}, which is not a name: {error}", quoted(given)));
    check.ok_or_report(path, result)
}

/// The namespace is only displayed, but it appears in labels and logs, so it has to follow the rules of Kubernetes.
fn validate_namespace(check: &mut ProblemCollector, metadata: &RawMetadata) -> Option<String> {
    let given = metadata.namespace.as_deref()?;
    if !is_namespace_name(given) {
        let rule = "a namespace has 1 to 63 small letters, digits and inner dashes";
        check.report("metadata.namespace", format!("is {}, but {rule}", quoted(given)));
    }
    Some(given.to_owned())
}

/// Returns whether `name` can be the name of a Kubernetes object, such as a Secret or a workload.
pub(crate) fn is_object_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.bytes().all(is_inner)
        && is_end(name.bytes().next())
        && is_end(name.bytes().last())
        && name.len() <= MAX_OBJECT_NAME_BYTES
}

/// The same rule as a pattern, for the custom resource definition.
pub(crate) const OBJECT_NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
/// The longest name of a Kubernetes object.
pub(crate) const MAX_OBJECT_NAME_BYTES: usize = 253;

/// Returns whether `name` can be the name of a Kubernetes namespace.
pub fn is_namespace_name(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = name.starts_with('-') || name.ends_with('-');
    letters && !ends && (1..=MAX_NAMESPACE_CHARS).contains(&name.len())
}

/// Reports problems of the name of a Secret.
fn check_secret_name(check: &mut ProblemCollector, path: &str, name: &str) {
    if name.is_empty() {
        check.report(path, "is missing; name a Secret of the endpoint's namespace");
    } else if !is_object_name(name) {
        check
            .report(path, format!("is {}, but Secrets have names of small letters, digits, `-` and `.`", quoted(name)));
    }
}

fn validate_deployments(check: &mut ProblemCollector, spec: &RawSpec) -> Vec<Deployment> {
    const PATH: &str = "spec.deployments";
    let written = spec.deployments.as_deref().unwrap_or_default();
    match written.len() {
        0 => check.report(PATH, "is missing; an endpoint has 1 to 20 deployments, each with a name and its instances"),
        1..=MAX_DEPLOYMENTS => {}
        many => check.report(
            PATH,
            format!("has {many} deployments, but {MAX_DEPLOYMENTS} is the most; split them over several endpoints"),
        ),
    }
    let mut checked = Vec::with_capacity(written.len());
    for (index, raw) in written.iter().enumerate() {
        let path = item_path(PATH, index);
        match raw {
            Some(raw) => checked.extend(deployment::validate_deployment(check, &path, raw)),
            None => check.report(&path, "is empty; remove it, or write a deployment"),
        }
    }
    check_unique_names(check, spec);
    check_unique_targets(check, spec);
    checked
}

/// Reports deployments that share pods: together they could send a pod more than its cap.
fn check_unique_targets(check: &mut ProblemCollector, spec: &RawSpec) {
    let all = spec.deployments.iter().flatten().map(|raw| raw.as_ref().and_then(|raw| raw.target_ref.as_ref()));
    let all: Vec<_> = all.map(|target| target.map(|it| (&it.api_version, &it.kind, &it.name))).collect();
    for (index, target) in all.iter().enumerate().filter(|(_, target)| target.is_some()) {
        if let Some(first) = all[..index].iter().position(|other| other == target) {
            let taken = item_path("spec.deployments", first);
            let what = format!("is that of {taken}, and its pods could get more than they take; give each its own");
            check.report(&field_path(&item_path("spec.deployments", index), "targetRef"), what);
        }
    }
}

fn check_unique_names(check: &mut ProblemCollector, spec: &RawSpec) {
    let names = deployment_names(spec);
    for (index, name) in names.iter().enumerate() {
        let Some(name) = name else { continue };
        let same = |other: &&str| other.eq_ignore_ascii_case(name);
        if let Some(first) = names[..index].iter().position(|other| other.as_ref().is_some_and(same)) {
            let path = field_path(&item_path("spec.deployments", index), "name");
            let taken = item_path("spec.deployments", first);
            check.report(
                &path,
                format!("{} is already the name of {taken} (case does not count); give each its own", quoted(name)),
            );
        }
    }
}

/// Returns the names of the deployments as written, valid or not, in their order.
fn deployment_names(spec: &RawSpec) -> Vec<Option<&str>> {
    let deployments = spec.deployments.iter().flatten();
    deployments.map(|deployment| deployment.as_ref().and_then(|deployment| deployment.name.as_deref())).collect()
}

#[cfg(test)]
mod tests;
