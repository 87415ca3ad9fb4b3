//! What a document can say and cannot have: what this version does not do yet, and what there is only in files or only in
//! a cluster. Refused, because silence would look like success.

use super::super::check::Check;
use super::super::problem::{field, item};
use super::super::resource::{RawDeployment, RawIssuer, RawSpec, RawUpstreamTls};
use super::Origin;

/// A field, whether it is given, and what to do about it.
pub(in crate::model) type Feature<T> = (&'static str, fn(&T) -> bool, &'static str);

/// Features of a deployment. Whoever builds one deletes its line.
const OF_DEPLOYMENTS: &[Feature<RawDeployment>] =
    &[("dataCollector", collects, "is not supported by this version; remove it, or set every `enabled` to false")];

/// What of an endpoint needs a cluster.
const NEEDS_CLUSTER: &[Feature<RawSpec>] = &[(
    "keys.secretRef",
    |spec| spec.keys.as_ref().is_some_and(|keys| keys.secret_ref.is_some()),
    "needs Kubernetes, and this document is a file; mount the Secret and write `primary: {file: …}`, or use `{env: …}`",
)];

/// What of a deployment needs a cluster.
const DEPLOYMENT_NEEDS_CLUSTER: &[Feature<RawDeployment>] = &[
    (
        "targetRef",
        |deployment| deployment.target_ref.is_some(),
        "needs Kubernetes, and this document is a file; list the addresses of the replicas in `instances`",
    ),
    (
        "upstreamTls.secretRef",
        |deployment| tls(deployment, |tls| tls.secret_ref.is_some()),
        "needs Kubernetes, and this document is a file; write `caFile`, `certFile` and `keyFile`",
    ),
];

const KEYS_IN_SECRETS: &str = "is only for endpoint files: in a cluster keys are in a Secret of the endpoint's namespace; write `secretRef: {name: …}`";
const FILE_OF_THE_ROUTER: &str =
    "would be a file of the router, which whoever may write an endpoint cannot have; remove it";
const TLS_IN_SECRETS: &str =
    "would be a file of the router, which whoever may write an endpoint cannot have; write `secretRef: {name: …}`";

/// What of an endpoint only a file can have.
pub(in crate::model) const NEEDS_FILE: &[Feature<RawSpec>] = &[
    ("keys.primary", |spec| spec.keys.as_ref().is_some_and(|keys| keys.primary.is_some()), KEYS_IN_SECRETS),
    ("keys.secondary", |spec| spec.keys.as_ref().is_some_and(|keys| keys.secondary.is_some()), KEYS_IN_SECRETS),
];

/// What of a deployment only a file can have.
pub(in crate::model) const DEPLOYMENT_NEEDS_FILE: &[Feature<RawDeployment>] = &[
    (
        "instances",
        |deployment| deployment.instances.is_some(),
        "is only for endpoint files: whoever may write an endpoint could reach any address that the router can; write \
         `targetRef`",
    ),
    (
        "process",
        |deployment| deployment.process.is_some(),
        "is only for endpoint files: the router starts no programs in a cluster; write `targetRef`",
    ),
    ("upstreamTls.caFile", |it| tls(it, |tls| tls.ca_file.is_some()), TLS_IN_SECRETS),
    ("upstreamTls.certFile", |it| tls(it, |tls| tls.cert_file.is_some()), TLS_IN_SECRETS),
    ("upstreamTls.keyFile", |it| tls(it, |tls| tls.key_file.is_some()), TLS_IN_SECRETS),
];

/// What of an issuer only a file can have.
pub(in crate::model) const ISSUER_NEEDS_FILE: &[Feature<RawIssuer>] = &[
    ("caFile", |issuer| issuer.ca_file.is_some(), FILE_OF_THE_ROUTER),
    ("bearerTokenFile", |issuer| issuer.bearer_token_file.is_some(), FILE_OF_THE_ROUTER),
];

/// Notes each feature that `spec` asks for in vain.
pub(super) fn refuse(check: &mut Check, spec: &RawSpec, origin: Origin) {
    let elsewhere = match origin {
        Origin::File => NEEDS_CLUSTER,
        Origin::Cluster => NEEDS_FILE,
    };
    note(check, "spec", spec, &[elsewhere]);
    let elsewhere = match origin {
        Origin::File => DEPLOYMENT_NEEDS_CLUSTER,
        Origin::Cluster => DEPLOYMENT_NEEDS_FILE,
    };
    for (index, deployment) in spec.deployments.iter().flatten().enumerate() {
        let Some(deployment) = deployment else { continue };
        note(check, &item("spec.deployments", index), deployment, &[OF_DEPLOYMENTS, elsewhere]);
    }
    if origin == Origin::Cluster {
        let issuers = spec.jwt.iter().flat_map(|jwt| jwt.issuers.iter().flatten()).enumerate();
        for (index, issuer) in issuers {
            let Some(issuer) = issuer else { continue };
            note(check, &item("spec.jwt.issuers", index), issuer, &[ISSUER_NEEDS_FILE]);
        }
    }
}

fn note<T>(check: &mut Check, path: &str, of: &T, features: &[&[Feature<T>]]) {
    for (name, asked, what) in features.iter().copied().flatten() {
        if asked(of) {
            check.problem(&name.split('.').fold(path.to_owned(), |path, name| field(&path, name)), *what);
        }
    }
}

fn tls(deployment: &RawDeployment, is_given: fn(&RawUpstreamTls) -> bool) -> bool {
    deployment.upstream_tls.as_ref().is_some_and(is_given)
}

fn collects(deployment: &RawDeployment) -> bool {
    let collections = deployment.data_collector.as_ref().and_then(|collector| collector.collections.as_ref());
    collections.is_some_and(|collections| {
        [&collections.request, &collections.response].into_iter().flatten().any(|one| one.enabled == Some(true))
    })
}
