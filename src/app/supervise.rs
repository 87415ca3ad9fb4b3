//! Runs the tasks of the control plane and shuts the router down in order.

use std::future::{Future, pending};
use std::net::TcpListener;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::AppRunError;
use super::control_plane::ControlPlane;
use crate::admin::AdminServer;
use crate::config::RouterSettings;
use crate::control::certificates::ListenerCertificates;
use crate::control::fleet::FleetTask;
use crate::control::{key_set_fetcher, signing_keys};
use crate::proxy::listen::DataPlane;
use crate::state::lifecycle::{Lifecycle, LifecyclePhase};

/// The interval in which the threads of the data plane are checked.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);
/// How long leaving the fleet may take.
const FLEET_LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The tasks to run.
pub(super) struct ControlPlaneTasks {
    pub(super) admin: AdminServer,
    pub(super) listener: TcpListener,
    pub(super) certificates: ListenerCertificates,
    pub(super) control: ControlPlane,
    pub(super) fleet: Option<FleetTask>,
}

/// Runs the control plane's tasks until `stop` completes and the shutdown is done, or until one of them ends by itself.
pub(super) async fn supervise(
    tasks: ControlPlaneTasks,
    settings: &RouterSettings,
    data_plane: &mut DataPlane,
    stop: impl Future<Output = ()>,
) -> Result<(), AppRunError> {
    let ControlPlaneTasks { admin, listener, certificates, control, fleet } = tasks;
    let lifecycle = admin.lifecycle.clone();
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = JoinSet::new();
    let (tokens, metrics, status) = (admin.tokens.clone(), admin.metrics.clone(), admin.status.clone());
    let (signed_with, secrets) = (settings.tokens.clone(), control.secrets.clone());
    tasks.spawn(async move {
        let issuers = key_set_fetcher::run(tokens.clone(), metrics.clone());
        tokio::join!(issuers, signing_keys::watch_signing_keys(signed_with, secrets, tokens, metrics, status));
        "the key set and signing key tasks"
    });
    tasks.spawn(async move {
        let _ = admin.serve(listener).await;
        "the admin listener"
    });
    tasks.spawn(async move {
        certificates.run().await;
        "the certificate watcher"
    });
    let (leave_fleet, left) = oneshot::channel();
    let mut fleet = fleet.map(|fleet| tokio::spawn(fleet.run(left)));
    let (finish, finished) = oneshot::channel();
    tasks.spawn(async move {
        control.run(finished).await;
        "the control plane"
    });
    tokio::select! {
        () = stop => {}
        ended = unexpected_end(data_plane, &mut tasks) => return Err(AppRunError::TaskEnded(ended)),
        _ = async {
            match &mut fleet {
                Some(fleet) => fleet.await,
                None => pending().await,
            }
        } => return Err(AppRunError::TaskEnded("the fleet task".to_owned())),
    }
    let outcome = shut_down(&lifecycle, settings, data_plane).await;
    lifecycle.enter(LifecyclePhase::Forced);
    if let Some(fleet) = fleet {
        // Other routers get the slots of this one at once, instead of when its leases expire.
        let _ = leave_fleet.send(());
        let _ = tokio::time::timeout(FLEET_LEAVE_TIMEOUT, fleet).await;
    }
    // Models are stopped when nothing is in flight any more. The control plane is the first task to end.
    let _ = finish.send(());
    let _ = tasks.join_next().await;
    outcome
}

/// Shuts down in order, each step with its time limit.
async fn shut_down(
    lifecycle: &Lifecycle,
    settings: &RouterSettings,
    data_plane: &mut DataPlane,
) -> Result<(), AppRunError> {
    let shutdown = &settings.shutdown;
    tracing::info!(delay = ?shutdown.unready_delay, "shutting down: not ready, still accepting");
    lifecycle.enter(LifecyclePhase::Unready);
    tokio::time::sleep(shutdown.unready_delay).await;
    tracing::info!(timeout = ?shutdown.drain_timeout, "draining: not accepting, waiting for requests in flight");
    lifecycle.enter(LifecyclePhase::Draining);
    match tokio::time::timeout(shutdown.drain_timeout, data_plane.wait_until_ended()).await {
        Ok(()) => Ok(()),
        Err(_) => {
            tracing::warn!("drain timeout exceeded: cutting requests in flight");
            Err(AppRunError::DrainTimedOut)
        }
    }
}

/// Returns the name of a task or thread that ended although it must not. Otherwise it never returns.
async fn unexpected_end(data_plane: &DataPlane, tasks: &mut JoinSet<&'static str>) -> String {
    let mut looks = tokio::time::interval(WATCHDOG_INTERVAL);
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => return ended.map_or_else(|error| error.to_string(), str::to_owned),
            _ = looks.tick() => {
                if data_plane.has_ended_thread() {
                    return "a data-plane thread".to_owned();
                }
            }
        }
    }
}
