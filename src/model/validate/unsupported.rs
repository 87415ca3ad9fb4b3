//! Fields that a document can express but not use: features that this version does not have, and fields that are only
//! for files or only for clusters. They are refused, because ignoring them would look like success.

use super::super::problem::{field_path, item_path};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::{RawDeployment, RawIssuer, RawSpec, RawUpstreamTls};
use super::DocumentOrigin;

/// A field, whether it is given, and what to do about it.
pub(in crate::model) type RestrictedField<T> = (&'static str, fn(&T) -> bool, &'static str);

/// Unsupported features of a deployment. A change that builds one of them deletes its line.
const UNSUPPORTED_DEPLOYMENT_FIELDS: &[RestrictedField<RawDeployment>] = &[(
    "dataCollector",
    has_enabled_collection,
    "is not supported by this version; remove it, or set every `enabled` to false",
)];

/// Fields of an endpoint that need a cluster.
const NEEDS_CLUSTER: &[RestrictedField<RawSpec>] = &[(
    "keys.secretRef",
    |spec| spec.keys.as_ref().is_some_and(|keys| keys.secret_ref.is_some()),
    "needs Kubernetes, and this document is a file; mount the Secret and write `primary: {file: …}`, or use `{env: …}`",
)];

/// Fields of a deployment that need a cluster.
const DEPLOYMENT_NEEDS_CLUSTER: &[RestrictedField<RawDeployment>] = &[
    (
        "targetRef",
        |deployment| deployment.target_ref.is_some(),
        "needs Kubernetes, and this document is a file; list the addresses of the replicas in `instances`",
    ),
    (
        "upstreamTls.secretRef",
        |deployment| has_tls_field(deployment, |tls| tls.secret_ref.is_some()),
        "needs Kubernetes, and this document is a file; write `caFile`, `certFile` and `keyFile`",
    ),
];

const KEYS_IN_SECRETS: &str = "is only for endpoint files: in a cluster keys are in a Secret of the endpoint's namespace; write `secretRef: {name: …}`";
const FILE_OF_THE_ROUTER: &str =
    "would be a file of the router, which whoever may write an endpoint cannot have; remove it";
const TLS_IN_SECRETS: &str =
    "would be a file of the router, which whoever may write an endpoint cannot have; write `secretRef: {name: …}`";

/// Fields of an endpoint that only files may have.
pub(in crate::model) const NEEDS_FILE: &[RestrictedField<RawSpec>] = &[
    ("keys.primary", |spec| spec.keys.as_ref().is_some_and(|keys| keys.primary.is_some()), KEYS_IN_SECRETS),
    ("keys.secondary", |spec| spec.keys.as_ref().is_some_and(|keys| keys.secondary.is_some()), KEYS_IN_SECRETS),
];

/// Fields of a deployment that only files may have.
pub(in crate::model) const DEPLOYMENT_NEEDS_FILE: &[RestrictedField<RawDeployment>] = &[
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
    ("upstreamTls.caFile", |it| has_tls_field(it, |tls| tls.ca_file.is_some()), TLS_IN_SECRETS),
    ("upstreamTls.certFile", |it| has_tls_field(it, |tls| tls.cert_file.is_some()), TLS_IN_SECRETS),
    ("upstreamTls.keyFile", |it| has_tls_field(it, |tls| tls.key_file.is_some()), TLS_IN_SECRETS),
];

/// Fields of an issuer that only files may have.
pub(in crate::model) const ISSUER_NEEDS_FILE: &[RestrictedField<RawIssuer>] = &[
    ("caFile", |issuer| issuer.ca_file.is_some(), FILE_OF_THE_ROUTER),
    ("bearerTokenFile", |issuer| issuer.bearer_token_file.is_some(), FILE_OF_THE_ROUTER),
];

/// Reports each field of `spec` that cannot be used.
pub(super) fn report_unsupported(check: &mut ProblemCollector, spec: &RawSpec, origin: DocumentOrigin) {
    let elsewhere = match origin {
        DocumentOrigin::File => NEEDS_CLUSTER,
        DocumentOrigin::Cluster => NEEDS_FILE,
    };
    report_restricted(check, "spec", spec, &[elsewhere]);
    let elsewhere = match origin {
        DocumentOrigin::File => DEPLOYMENT_NEEDS_CLUSTER,
        DocumentOrigin::Cluster => DEPLOYMENT_NEEDS_FILE,
    };
    for (index, deployment) in spec.deployments.iter().flatten().enumerate() {
        let Some(deployment) = deployment else { continue };
        report_restricted(
            check,
            &item_path("spec.deployments", index),
            deployment,
            &[UNSUPPORTED_DEPLOYMENT_FIELDS, elsewhere],
        );
    }
    if origin == DocumentOrigin::Cluster {
        let issuers = spec.jwt.iter().flat_map(|jwt| jwt.issuers.iter().flatten()).enumerate();
        for (index, issuer) in issuers {
            let Some(issuer) = issuer else { continue };
            report_restricted(check, &item_path("spec.jwt.issuers", index), issuer, &[ISSUER_NEEDS_FILE]);
        }
    }
}

fn report_restricted<T>(check: &mut ProblemCollector, path: &str, document: &T, features: &[&[RestrictedField<T>]]) {
    for (name, asked, what) in features.iter().copied().flatten() {
        if asked(document) {
            check.report(&name.split('.').fold(path.to_owned(), |path, name| field_path(&path, name)), *what);
        }
    }
}

fn has_tls_field(deployment: &RawDeployment, is_given: fn(&RawUpstreamTls) -> bool) -> bool {
    deployment.upstream_tls.as_ref().is_some_and(is_given)
}

fn has_enabled_collection(deployment: &RawDeployment) -> bool {
    let collections = deployment.data_collector.as_ref().and_then(|collector| collector.collections.as_ref());
    collections.is_some_and(|collections| {
        [&collections.request, &collections.response].into_iter().flatten().any(|one| one.enabled == Some(true))
    })
}
