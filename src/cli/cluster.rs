//! Commands for endpoints in a cluster, through the user's kubeconfig.

use std::future::Future;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{DONE, FAILED, Failed};
use crate::control::cluster::endpoint_client::EndpointClient;
use crate::model::name::Name;

/// An endpoint in a cluster.
#[derive(Debug, Args)]
pub(super) struct InCluster {
    /// Namespace of the endpoint; the kubeconfig selects the cluster
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Address to send requests to, instead of the one in the endpoint's status
    #[arg(long, value_name = "URI")]
    pub(super) scoring_uri: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct InvokeCommand {
    /// Name of the endpoint
    #[arg(long, value_name = "NAME", value_parser = super::keys::name)]
    endpoint: Name,
    #[command(flatten)]
    cluster: InCluster,
    /// File with the request body; `-` for standard input
    #[arg(long, value_name = "FILE")]
    request_file: PathBuf,
    /// Deployment to send the request to, whatever its weight
    #[arg(long, value_name = "NAME")]
    deployment_name: Option<String>,
}

impl InCluster {
    /// Returns a client for the endpoint.
    pub(super) async fn caller(&self, endpoint: &Name) -> Result<EndpointClient, Failed> {
        Ok(EndpointClient::new(endpoint, self.namespace.as_deref(), self.scoring_uri.as_deref()).await?)
    }
}

impl InvokeCommand {
    pub(super) fn run(self) -> ExitCode {
        match block_on(self.invoke()) {
            Ok(code) => ExitCode::from(code),
            Err(Failed(what, code)) => {
                eprintln!("{what}");
                ExitCode::from(code)
            }
        }
    }

    async fn invoke(self) -> Result<u8, Failed> {
        let path = self.request_file.display();
        let body = if self.request_file.as_os_str() == "-" {
            let mut body = Vec::new();
            std::io::stdin().read_to_end(&mut body).map(|_| body)
        } else {
            std::fs::read(&self.request_file)
        };
        let body = body.map_err(|error| format!("{path} cannot be read: {error}"))?;
        let caller = self.cluster.caller(&self.endpoint).await?;
        let (status, answer) = caller.invoke(body, self.deployment_name.as_deref()).await?;
        let is_good = (200..300).contains(&status);
        let written = if is_good {
            std::io::stdout().write_all(&answer).and_then(|()| std::io::stdout().flush())
        } else {
            eprintln!("{status}");
            std::io::stderr().write_all(&answer)
        };
        written.map_err(|error| format!("the answer cannot be written: {error}"))?;
        Ok(if is_good { DONE } else { FAILED })
    }
}

/// Runs a future to its end.
pub(super) fn block_on<T>(doing: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("nothing can be done: {error}"))?;
    runtime.block_on(doing)
}
