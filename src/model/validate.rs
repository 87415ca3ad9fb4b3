//! From a document as written to an [`Endpoint`] whose every value can be trusted, or all that is wrong with it.
//!
//! Every check notes its problem and goes on, so that one look shows everything there is to mend.

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

use super::check::Check;
use super::endpoint::{Auth, Deployment, Endpoint};
use super::name::Name;
use super::problem::{self, Problem, field, item, quoted};
use super::resource::{self, API_VERSION, KIND, RawEndpoint, RawMetadata, RawSpec};

/// Most deployments of one endpoint.
pub(super) const MAX_DEPLOYMENTS: usize = 20;
/// Longest namespace, as in Kubernetes.
const MAX_NAMESPACE: usize = 63;

/// Where a document is from. What it may ask for depends on it: whoever may write an endpoint into a cluster must not be
/// able to read the router's files or to start programs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file of the router.
    File,
    /// An object in a Kubernetes cluster.
    Cluster,
}

/// A document that is not an endpoint.
#[derive(Debug)]
pub struct Refused {
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
    /// Who may call, where that part is in order: keys are read elsewhere, and what is wrong with them belongs to the
    /// same report.
    pub auth: Option<Auth>,
}

/// Reads and checks one parsed document.
///
/// # Errors
/// [`Refused`]: fields of the wrong type, unknown fields, values out of range.
pub fn read(document: Value, origin: Origin) -> Result<Endpoint, Refused> {
    let kind = document.get("kind").and_then(Value::as_str);
    let version = document.get("apiVersion").and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != KIND)
        && version != Some(API_VERSION)
    {
        // Of another kind of document every field would be unknown; one problem says it better.
        return Err(Refused { problems: vec![Problem::new("kind", wrong_kind(kind))], auth: None });
    }
    let (raw, form) = resource::decode(document);
    let problems = match validate(&raw, origin) {
        Ok(endpoint) if form.is_empty() => return Ok(endpoint),
        Ok(_) => form,
        Err(rules) => problem::together(form, rules),
    };
    Err(Refused { problems, auth: raw.spec.as_ref().and_then(|spec| access::auth(&mut Check::default(), spec)) })
}

/// Checks a document against every rule, and fills in the defaults.
///
/// # Errors
/// Every rule it breaks.
pub fn validate(raw: &RawEndpoint, origin: Origin) -> Result<Endpoint, Vec<Problem>> {
    let mut check = Check::default();
    header(&mut check, raw);
    let nothing = RawMetadata::default();
    let metadata = raw.metadata.as_ref().unwrap_or(&nothing);
    let name = name(&mut check, "metadata.name", metadata.name.as_deref());
    let namespace = namespace(&mut check, metadata);
    let Some(spec) = &raw.spec else {
        check.problem("spec", "is missing; it says which deployments the endpoint has and how traffic is split");
        return Err(check.into_problems());
    };
    unsupported::refuse(&mut check, spec, origin);
    let auth = access::auth(&mut check, spec);
    let traffic = traffic::live(&mut check, spec);
    let mirror = traffic::mirrored(&mut check, spec);
    let bandwidth = traffic::bandwidth(&mut check, spec);
    let cors = spec.cors.as_ref().and_then(|cors| self::cors::cors(&mut check, "spec.cors", cors));
    let deployments = deployments(&mut check, spec);
    match (name, auth, check.count()) {
        (Some(name), Some(auth), 0) => {
            Ok(Endpoint { name, namespace, auth, traffic, mirror, bandwidth, cors, deployments })
        }
        _ => Err(check.into_problems()),
    }
}

fn header(check: &mut Check, raw: &RawEndpoint) {
    match raw.api_version.as_deref() {
        Some(API_VERSION) => {}
        Some(other) => check.problem("apiVersion", format!("is {}, but must be `{API_VERSION}`", quoted(other))),
        None => check.problem("apiVersion", format!("is missing; write `apiVersion: {API_VERSION}`")),
    }
    match raw.kind.as_deref() {
        Some(KIND) => {}
        Some(other) => check.problem("kind", wrong_kind(other)),
        None => check.problem("kind", format!("is missing; write `kind: {KIND}`")),
    }
}

fn wrong_kind(kind: &str) -> String {
    format!("is {}, but must be `{KIND}`; other documents cannot be in this file", quoted(kind))
}

fn name(check: &mut Check, path: &str, given: Option<&str>) -> Option<Name> {
    let Some(given) = given else {
        check.problem(path, "is missing; a name has 3 to 32 letters, digits and single dashes, a letter first");
        return None;
    };
    let result = Name::new(given).map_err(|error| format!("is {}, which is not a name: {error}", quoted(given)));
    check.ok(path, result)
}

/// The namespace is only shown, but it is shown in labels and logs, so it keeps to the rule of Kubernetes.
fn namespace(check: &mut Check, metadata: &RawMetadata) -> Option<String> {
    let given = metadata.namespace.as_deref()?;
    if !is_namespace(given) {
        let rule = "a namespace has 1 to 63 small letters, digits and inner dashes";
        check.problem("metadata.namespace", format!("is {}, but {rule}", quoted(given)));
    }
    Some(given.to_owned())
}

/// Whether an object of Kubernetes can be called so: a Secret, a workload.
pub(crate) fn is_object_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.bytes().all(is_inner)
        && is_end(name.bytes().next())
        && is_end(name.bytes().last())
        && name.len() <= MAX_OBJECT_NAME
}

/// The same rule as a pattern, for the definition.
pub(crate) const OBJECT_NAME: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
/// The longest name of an object.
pub(crate) const MAX_OBJECT_NAME: usize = 253;

/// Whether a namespace of Kubernetes can be called so.
pub fn is_namespace(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ends = name.starts_with('-') || name.ends_with('-');
    letters && !ends && (1..=MAX_NAMESPACE).contains(&name.len())
}

/// Notes what is wrong with the name of a Secret.
fn secret(check: &mut Check, path: &str, name: &str) {
    if name.is_empty() {
        check.problem(path, "is missing; name a Secret of the endpoint's namespace");
    } else if !is_object_name(name) {
        check.problem(
            path,
            format!("is {}, but Secrets have names of small letters, digits, `-` and `.`", quoted(name)),
        );
    }
}

fn deployments(check: &mut Check, spec: &RawSpec) -> Vec<Deployment> {
    const PATH: &str = "spec.deployments";
    let written = spec.deployments.as_deref().unwrap_or_default();
    match written.len() {
        0 => check.problem(PATH, "is missing; an endpoint has 1 to 20 deployments, each with a name and its instances"),
        1..=MAX_DEPLOYMENTS => {}
        many => check.problem(
            PATH,
            format!("has {many} deployments, but {MAX_DEPLOYMENTS} is the most; split them over several endpoints"),
        ),
    }
    let mut checked = Vec::with_capacity(written.len());
    for (index, raw) in written.iter().enumerate() {
        let path = item(PATH, index);
        match raw {
            Some(raw) => checked.extend(deployment::deployment(check, &path, raw)),
            None => check.problem(&path, "is empty; remove it, or write a deployment"),
        }
    }
    unique_names(check, spec);
    unique_targets(check, spec);
    checked
}

/// Two deployments over the same pods could together send them more than they take.
fn unique_targets(check: &mut Check, spec: &RawSpec) {
    let all = spec.deployments.iter().flatten().map(|raw| raw.as_ref().and_then(|raw| raw.target_ref.as_ref()));
    let all: Vec<_> = all.map(|target| target.map(|it| (&it.api_version, &it.kind, &it.name))).collect();
    for (index, target) in all.iter().enumerate().filter(|(_, target)| target.is_some()) {
        if let Some(first) = all[..index].iter().position(|other| other == target) {
            let taken = item("spec.deployments", first);
            let what = format!("is that of {taken}, and its pods could get more than they take; give each its own");
            check.problem(&field(&item("spec.deployments", index), "targetRef"), what);
        }
    }
}

fn unique_names(check: &mut Check, spec: &RawSpec) {
    let names = names(spec);
    for (index, name) in names.iter().enumerate() {
        let Some(name) = name else { continue };
        let same = |other: &&str| other.eq_ignore_ascii_case(name);
        if let Some(first) = names[..index].iter().position(|other| other.as_ref().is_some_and(same)) {
            let path = field(&item("spec.deployments", index), "name");
            let taken = item("spec.deployments", first);
            check.problem(
                &path,
                format!("{} is already the name of {taken} (case does not count); give each its own", quoted(name)),
            );
        }
    }
}

/// The deployments' names as written, right or wrong, in their order.
fn names(spec: &RawSpec) -> Vec<Option<&str>> {
    let deployments = spec.deployments.iter().flatten();
    deployments.map(|deployment| deployment.as_ref().and_then(|deployment| deployment.name.as_deref())).collect()
}

#[cfg(test)]
mod tests;
