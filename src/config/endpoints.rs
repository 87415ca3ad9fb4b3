//! Validation of `endpoints`: where endpoints come from.

use std::path::{Path, PathBuf};

use super::RouterSettings;
use super::raw::{RawKubernetes, RawSettings};
use crate::model::problem::{item_path, quoted};
use crate::model::problem_collector::ProblemCollector;
use crate::model::router_settings::KubernetesSettings;
use crate::model::validate;

/// The rule for names of Kubernetes objects, as messages show it.
const OBJECT_NAME_RULE: &str =
    "which is no name of an object in the router's own namespace: small letters, digits, `-` and `.`";

/// Returns the paths of endpoint files. They are relative to the settings file's folder, so that the router can be
/// started from anywhere.
pub(super) fn endpoint_files(
    check: &mut ProblemCollector,
    raw: &RawSettings,
    default: &[PathBuf],
    folder: &Path,
) -> Vec<PathBuf> {
    const PATH: &str = "endpoints.files";
    let endpoints = raw.endpoints.as_ref();
    let written = endpoints.and_then(|endpoints| endpoints.files.as_deref());
    if endpoints.is_some_and(|endpoints| endpoints.kubernetes.is_some()) {
        if written.is_some() {
            check.report(
                PATH,
                "is given beside `endpoints.kubernetes`, but endpoints come from one of them; remove one",
            );
        }
        return Vec::new();
    }
    let Some(written) = written else { return default.iter().map(|file| folder.join(file)).collect() };
    if written.is_empty() {
        check.report(PATH, "is empty; name at least one file or folder with endpoints");
    }
    for (index, _) in written.iter().enumerate().filter(|(_, file)| file.as_deref().unwrap_or_default().is_empty()) {
        check.report(&item_path(PATH, index), "is empty; name a file or a folder");
    }
    written.iter().flatten().map(|file| folder.join(file)).collect()
}

/// Returns which endpoints of a cluster the router serves.
pub(super) fn kubernetes_settings(check: &mut ProblemCollector, raw: &RawKubernetes) -> KubernetesSettings {
    const NAMESPACES: &str = "endpoints.kubernetes.namespaces";
    let written = raw.namespaces.as_deref().unwrap_or_default();
    let mut namespaces: Vec<String> = Vec::new();
    for (index, name) in written.iter().enumerate() {
        let name = name.as_deref().unwrap_or_default();
        if !validate::is_namespace_name(name) {
            let what = "which is not a namespace: 1 to 63 small letters, digits and inner dashes";
            check.report(&item_path(NAMESPACES, index), format!("is {}, {what}", quoted(name)));
        } else if namespaces.iter().any(|other| other == name) {
            check.report(&item_path(NAMESPACES, index), format!("is {name} a second time; write each once"));
        }
        namespaces.push(name.to_owned());
    }
    // Empty is the default, so that the default can be written down.
    let scoring_url = raw.scoring_url.as_deref().filter(|url| !url.is_empty());
    if let Some(url) = scoring_url
        && url.strip_prefix("https://").or(url.strip_prefix("http://")).is_none_or(str::is_empty)
    {
        let what = "but it must be where clients reach the router, such as `https://models.example`";
        check.report("endpoints.kubernetes.scoringUrl", format!("is {}, {what}", quoted(url)));
    }
    let service = raw.service.clone().filter(|name| !name.is_empty());
    if let Some(name) = service.as_deref().filter(|name| !validate::is_object_name(name)) {
        check.report("endpoints.kubernetes.service", format!("is {}, {OBJECT_NAME_RULE}", quoted(name)));
    }
    if service.is_some() && scoring_url.is_some() {
        check.report("endpoints.kubernetes.service", "is given beside `scoringUrl`; write one or the other");
    }
    let scoring_url = scoring_url.map(|url| url.trim_end_matches('/').to_owned());
    KubernetesSettings { namespaces, scoring_url, service }
}

/// Reports Secrets that cannot be read without a cluster.
pub(super) fn check_secrets(check: &mut ProblemCollector, settings: &RouterSettings) {
    for (path, name) in settings.secret_references() {
        if settings.kubernetes.is_none() {
            let what = "but endpoints come from files, not from a cluster; name files, or set `endpoints.kubernetes`";
            check.report(&path, format!("is the Secret {name}, {what}"));
        } else if !validate::is_object_name(name) {
            check.report(&path, format!("is {}, {OBJECT_NAME_RULE}", quoted(name)));
        }
    }
}
