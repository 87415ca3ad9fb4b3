//! The control plane's tasks, from their start to the end in order.

use std::future::{Future, pending};
use std::net::TcpListener;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::RunError;
use super::control::Control;
use crate::admin::Admin;
use crate::config::Settings;
use crate::control::certificates::Certificates;
use crate::control::fleet::Fleet;
use crate::control::{issuers, signing};
use crate::proxy::listen::DataPlane;
use crate::state::lifecycle::{Lifecycle, Phase};

/// How often the data plane's threads are looked after.
const WATCHDOG: Duration = Duration::from_secs(1);
/// How long it may take to leave the group of routers.
const GOOD_BYE: Duration = Duration::from_secs(3);

/// What is to be run.
pub(super) struct Tasks {
    pub(super) admin: Admin,
    pub(super) listener: TcpListener,
    pub(super) certificates: Certificates,
    pub(super) control: Control,
    pub(super) fleet: Option<Fleet>,
}

/// Runs the control plane's tasks, until `stop` has been followed in order or one of them ends by itself.
pub(super) async fn supervise(
    tasks: Tasks,
    settings: &Settings,
    data_plane: &mut DataPlane,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let Tasks { admin, listener, certificates, control, fleet } = tasks;
    let lifecycle = admin.lifecycle.clone();
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = JoinSet::new();
    let (tokens, metrics, status) = (admin.tokens.clone(), admin.metrics.clone(), admin.status.clone());
    let (signed_with, secrets) = (settings.tokens.clone(), control.secrets.clone());
    tasks.spawn(async move {
        let issuers = issuers::follow(tokens.clone(), metrics.clone());
        tokio::join!(issuers, signing::follow(signed_with, secrets, tokens, metrics, status));
        "the following of keys"
    });
    tasks.spawn(async move {
        let _ = admin.serve(listener).await;
        "the admin listener"
    });
    tasks.spawn(async move {
        certificates.run().await;
        "the watch of certificates"
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
        ended = unexpected_end(data_plane, &mut tasks) => return Err(RunError::Ended(ended)),
        _ = async {
            match &mut fleet {
                Some(fleet) => fleet.await,
                None => pending().await,
            }
        } => return Err(RunError::Ended("what speaks for the router in its group".to_owned())),
    }
    let outcome = leave(&lifecycle, settings, data_plane).await;
    lifecycle.enter(Phase::Forced);
    if let Some(fleet) = fleet {
        // Others can use what was held at once, rather than when it expires.
        let _ = leave_fleet.send(());
        let _ = tokio::time::timeout(GOOD_BYE, fleet).await;
    }
    // Models are stopped when nothing is in flight any more. The control plane is the first task to end now.
    let _ = finish.send(());
    let _ = tasks.join_next().await;
    outcome
}

/// The end, in order, each step with its time.
async fn leave(lifecycle: &Lifecycle, settings: &Settings, data_plane: &mut DataPlane) -> Result<(), RunError> {
    let shutdown = &settings.shutdown;
    tracing::info!(delay = ?shutdown.unready_delay, "stopping: not ready any more, still accepting");
    lifecycle.enter(Phase::Unready);
    tokio::time::sleep(shutdown.unready_delay).await;
    tracing::info!(timeout = ?shutdown.drain_timeout, "draining: accepting nothing new, finishing what is in flight");
    lifecycle.enter(Phase::Draining);
    match tokio::time::timeout(shutdown.drain_timeout, data_plane.ended()).await {
        Ok(()) => Ok(()),
        Err(_) => {
            tracing::warn!("the drain timeout is over: cutting what is still in flight");
            Err(RunError::Forced)
        }
    }
}

/// Returns only when something has ended that should not have, with its name.
async fn unexpected_end(data_plane: &DataPlane, tasks: &mut JoinSet<&'static str>) -> String {
    let mut looks = tokio::time::interval(WATCHDOG);
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => return ended.map_or_else(|error| error.to_string(), str::to_owned),
            _ = looks.tick() => {
                if data_plane.any_ended() {
                    return "a data-plane thread".to_owned();
                }
            }
        }
    }
}
