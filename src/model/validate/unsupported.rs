//! What documents can say already and this version does not do yet: refused, because silence would look like success.

use super::super::check::Check;
use super::super::problem::{field, item};
use super::super::resource::{RawDeployment, RawSpec};

/// A field, when it asks for the missing feature, and what to do meanwhile.
type Feature<T> = (&'static str, fn(&T) -> bool, &'static str);

/// Features of an endpoint. Whoever builds one deletes its line.
const OF_ENDPOINTS: &[Feature<RawSpec>] = &[
    (
        "keys.secretRef",
        |spec| spec.keys.as_ref().is_some_and(|keys| keys.secret_ref.is_some()),
        "is not supported by this version; mount the Secret and write `primary: {file: …}`, or use `{env: …}`",
    ),
    (
        "mirrorTraffic",
        |spec| spec.mirror_traffic.as_ref().is_some_and(|mirrored| !mirrored.is_empty()),
        "is not supported by this version; remove it",
    ),
    (
        "bandwidthLimitBytesPerSecond",
        |spec| spec.bandwidth_limit_bytes_per_second.is_some(),
        "is not supported by this version; remove it",
    ),
];

/// Features of a deployment. Whoever builds one deletes its line.
const OF_DEPLOYMENTS: &[Feature<RawDeployment>] = &[
    (
        "targetRef",
        |deployment| deployment.target_ref.is_some(),
        "is not supported by this version; list the addresses of the replicas in `instances`",
    ),
    ("dataCollector", collects, "is not supported by this version; remove it, or set every `enabled` to false"),
];

/// Notes each feature that `spec` asks for in vain.
pub(super) fn refuse(check: &mut Check, spec: &RawSpec) {
    for (name, asked, what) in OF_ENDPOINTS {
        if asked(spec) {
            check.problem(&format!("spec.{name}"), *what);
        }
    }
    let deployments = spec.deployments.iter().flatten().enumerate();
    for (index, deployment) in deployments {
        let Some(deployment) = deployment else { continue };
        for (name, asked, what) in OF_DEPLOYMENTS {
            if asked(deployment) {
                check.problem(&format!("{}.{name}", item(&field("spec", "deployments"), index)), *what);
            }
        }
    }
}

fn collects(deployment: &RawDeployment) -> bool {
    let collections = deployment.data_collector.as_ref().and_then(|collector| collector.collections.as_ref());
    collections.is_some_and(|collections| {
        [&collections.request, &collections.response].into_iter().flatten().any(|one| one.enabled == Some(true))
    })
}
