//! The demo with a fleet of routers, all in this process. The models are shared; as local processes each router would
//! have its own. So nothing scales.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::{Cli, Command, fail, run_until, terminated};
use crate::app::App;
use crate::model::endpoint::{DeploymentTarget, Endpoint, ScaleSettings};
use crate::model::fleet::{FleetSettings, LeaderLockPlace, PartitionMode};
use crate::model_server::SampleModelServer;

/// How long a coordinator may be silent.
const TERM: Duration = Duration::from_secs(5);

/// Model servers, which run until this is dropped.
pub(super) struct Models {
    _stop: watch::Sender<()>,
}

/// Starts the models that `endpoint` has as local processes, as many as it may have, and replaces the processes by
/// their addresses.
///
/// # Errors
///
/// When there is no free address or no thread.
pub(super) fn models(endpoint: &mut Endpoint) -> io::Result<Models> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = watch::channel(());
    let mut servers = Vec::new();
    for deployment in &mut endpoint.deployments {
        let DeploymentTarget::Process(process) = &deployment.target else { continue };
        let count = match &deployment.scale_settings {
            ScaleSettings::Fixed { instances } => *instances,
            ScaleSettings::TargetUtilization(settings) => settings.max_replicas,
            ScaleSettings::Unmanaged => 1,
        };
        let words = process.command.iter().map(|word| word.replace("{port}", "0"));
        let Ok(Cli { command: Command::ModelServer(model) }) = Cli::try_parse_from(words) else { continue };
        let mut addresses = Vec::new();
        for _ in 0..count {
            let server = runtime.block_on(SampleModelServer::bind(model.options()))?;
            addresses.push(server.local_addr().to_string());
            servers.push(server);
        }
        (deployment.target, deployment.scale_settings) =
            (DeploymentTarget::Instances(addresses), ScaleSettings::Fixed { instances: count });
    }
    std::thread::Builder::new().name("models".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let mut tasks = JoinSet::new();
            for server in servers {
                let mut stopped = stopped.clone();
                tasks.spawn(server.run(async move { drop(stopped.changed().await) }));
            }
            tasks.join_all().await;
        });
    })?;
    Ok(Models { _stop: stop })
}

/// Returns the settings of a member of a fleet on this machine, whose leader lock is in `folder`.
///
/// # Errors
///
/// When there is no free address.
pub(super) fn member(folder: &Path) -> io::Result<FleetSettings> {
    // The name of the router must be known before it listens. If another program takes the port meanwhile, the start
    // fails with a message.
    let address: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let lease = LeaderLockPlace::File(folder.join("leader"));
    let advertise = address.to_string();
    Ok(FleetSettings {
        address,
        advertise,
        tls: None,
        secret_file: None,
        leader_lock: lease,
        term_duration: TERM,
        mode: PartitionMode::Available,
    })
}

/// Runs all routers until the process is told to stop, and returns the exit code of the first one.
pub(super) fn run(first: App, others: Vec<App>) -> ExitCode {
    let (stop, stopped) = watch::channel(());
    let run = |app: App| {
        let mut stopped = stopped.clone();
        std::thread::spawn(move || app.run(async move { drop(stopped.changed().await) }))
    };
    let others: Vec<JoinHandle<_>> = others.into_iter().map(run).collect();
    let code = run_until(first, async {
        terminated().await;
        // The receiver may have ended already.
        let _ = stop.send(());
    });
    drop(stop);
    for other in others {
        if let Ok(Err(error)) = other.join() {
            return fail(&error);
        }
    }
    code
}
