//! TLS towards replicas in endpoint documents. Its files are watched like the documents themselves.

use super::super::certificates::upstream_connector;
use super::{DocumentFile, file_stamp};
use crate::model::endpoint::Endpoint;
use crate::model::name::Name;
use crate::model::problem::{Problem, field_path, item_path};
use crate::state::tls::Connector;

/// Builds the TLS configuration of each deployment that asks for it, and records the stamps of its files.
pub(super) fn build_connectors(
    endpoint: &Endpoint,
    document: &mut DocumentFile,
) -> Result<Vec<(Name, Connector)>, Vec<Problem>> {
    let (mut connectors, mut problems) = (Vec::new(), Vec::new());
    for (index, deployment) in endpoint.deployments.iter().enumerate() {
        let Some(tls) = &deployment.upstream_tls else { continue };
        document
            .stamps
            .extend(upstream_connector::watched_files(tls).into_iter().map(|file| (file.clone(), file_stamp(&file))));
        if tls.skip_verify {
            let (endpoint, deployment) = (endpoint.name.as_str(), deployment.name.as_str());
            tracing::warn!(
                endpoint,
                deployment,
                "upstreamTls.skipVerify is on: whoever can stand between the router and a replica can read and change \
                 everything"
            );
        }
        let no_secret = |_: &str| Err("there are no Secrets in files".to_owned());
        match upstream_connector::build_connector(tls, no_secret) {
            Ok(connector) => connectors.push((deployment.name.clone(), connector)),
            Err((name, what)) => {
                // A file that was replaced while it was read may be valid the next time.
                document.needs_retry = true;
                let path = format!("{}.upstreamTls", item_path(&field_path("spec", "deployments"), index));
                problems.push(Problem::new(if name.is_empty() { path } else { field_path(&path, name) }, what));
            }
        }
    }
    if problems.is_empty() { Ok(connectors) } else { Err(problems) }
}
