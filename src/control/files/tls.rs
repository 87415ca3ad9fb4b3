//! TLS towards replicas, of documents: its files are looked at like the documents themselves.

use super::super::certificates::upstream;
use super::{Document, stamp};
use crate::model::endpoint::Endpoint;
use crate::model::name::Name;
use crate::model::problem::{Problem, field, item};
use crate::state::tls::Connector;

/// What each deployment that asks for TLS gets; notes the files it comes from.
pub(super) fn connectors(endpoint: &Endpoint, document: &mut Document) -> Result<Vec<(Name, Connector)>, Vec<Problem>> {
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    for (index, deployment) in endpoint.deployments.iter().enumerate() {
        let Some(tls) = &deployment.upstream_tls else { continue };
        document.stamps.extend(upstream::files(tls).into_iter().map(|file| (file.clone(), stamp(&file))));
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
        match upstream::connector(tls, no_secret) {
            Ok(connector) => made.push((deployment.name.clone(), connector)),
            Err((name, what)) => {
                // A file that was replaced while it was read may be right the next time.
                document.again = true;
                let path = format!("{}.upstreamTls", item(&field("spec", "deployments"), index));
                problems.push(Problem::new(if name.is_empty() { path } else { field(&path, name) }, what));
            }
        }
    }
    if problems.is_empty() { Ok(made) } else { Err(problems) }
}
