//! The demo with several routers as one, all in this process. The models are not the routers' own, which would each have
//! theirs: so nothing scales.

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
use crate::model::endpoint::{Endpoint, ScaleSettings, Target};
use crate::model::fleet::{FleetSettings, LeasePlace, Mode};
use crate::model_server::Server;

/// How long a coordinator may be silent.
const TERM: Duration = Duration::from_secs(5);

/// Model servers, until they are dropped.
pub(super) struct Models {
    _stop: watch::Sender<()>,
}

/// Starts the models that `endpoint` has as local processes, as many as it may have, and has it name them.
///
/// # Errors
/// When there is no address or thread to be had.
pub(super) fn models(endpoint: &mut Endpoint) -> io::Result<Models> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = watch::channel(());
    let mut servers = Vec::new();
    for deployment in &mut endpoint.deployments {
        let Target::Process(process) = &deployment.target else { continue };
        let count = match &deployment.scale {
            ScaleSettings::Fixed { instances } => *instances,
            ScaleSettings::Utilization(settings) => settings.max,
            ScaleSettings::Unmanaged => 1,
        };
        let words = process.command.iter().map(|word| word.replace("{port}", "0"));
        let Ok(Cli { command: Command::ModelServer(model) }) = Cli::try_parse_from(words) else { continue };
        let mut addresses = Vec::new();
        for _ in 0..count {
            let server = runtime.block_on(Server::bind(model.options()))?;
            addresses.push(server.local_addr().to_string());
            servers.push(server);
        }
        (deployment.target, deployment.scale) =
            (Target::Instances(addresses), ScaleSettings::Fixed { instances: count });
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

/// One of a group on this machine, which writes down in `folder` who coordinates.
///
/// # Errors
/// When there is no address to be had.
pub(super) fn member(folder: &Path) -> io::Result<FleetSettings> {
    // Its name has to be known before it listens. Whoever takes the port in between makes the start fail, and says so.
    let address: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let lease = LeasePlace::File(folder.join("leader"));
    let advertise = address.to_string();
    Ok(FleetSettings { address, advertise, tls: None, secret_file: None, lease, term: TERM, mode: Mode::Available })
}

/// Runs all of them until the process is told to stop; the first is the one that is asked how it went.
pub(super) fn run(first: App, others: Vec<App>) -> ExitCode {
    let (stop, stopped) = watch::channel(());
    let run = |app: App| {
        let mut stopped = stopped.clone();
        std::thread::spawn(move || app.run(async move { drop(stopped.changed().await) }))
    };
    let others: Vec<JoinHandle<_>> = others.into_iter().map(run).collect();
    let code = run_until(first, async {
        terminated().await;
        // Whoever watches sees it, or that there is nobody any more to say it.
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
