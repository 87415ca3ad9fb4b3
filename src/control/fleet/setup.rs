//! The parts from which the fleet task is built, and the checks of the files that the fleet settings name.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LeaderLockStore;
use crate::control::{certificates, small_file};
use crate::model::fleet::{FleetSettings, PartitionMode};
use crate::model::problem::Problem;
use crate::policy::fleet::FleetTiming;
use crate::policy::fleet::member::{MembershipMode, MembershipState};
use crate::state::lifecycle::Lifecycle;
use crate::state::membership::Membership;
use crate::state::tls::Acceptor;

/// The shortest accepted fleet secret, in bytes.
const MIN_SECRET_CHARS: usize = 16;

/// The parts from which the fleet task is built.
pub struct FleetParts {
    /// The fleet settings.
    pub settings: FleetSettings,
    /// The listening socket to which members connect while this router is the coordinator.
    pub socket: std::net::TcpListener,
    /// The TLS acceptor of that socket, if TLS is configured.
    pub acceptor: Option<Arc<Acceptor>>,
    /// The secret that all routers of the fleet share; empty if none is configured.
    pub secret: String,
    /// The store of the leader lock.
    pub leader_lock_store: LeaderLockStore,
    /// The membership, which is shared with the slots of all deployments.
    pub membership: Arc<Membership>,
    /// The lifecycle of the process.
    pub lifecycle: Lifecycle,
    /// The registry for the metrics of the fleet.
    pub metrics_registry: prometheus::Registry,
}

impl FleetParts {
    /// Returns the problems of the files that the settings name.
    pub fn check_files(settings: &FleetSettings) -> Vec<Problem> {
        let tls = settings.tls.iter().flat_map(|tls| certificates::check_tls_files("fleet.peer.tls", &tls.server()));
        let secret = settings.secret_file.as_deref().and_then(|file| read_secret(file).err());
        tls.chain(secret).chain(LeaderLockStore::check(&settings.leader_lock).err()).collect()
    }
}

/// Creates the membership of a router that has not joined its fleet yet.
///
/// # Errors
/// Fails as [`Membership::new`] does.
pub fn new_membership(settings: &FleetSettings) -> prometheus::Result<Arc<Membership>> {
    Membership::new(MembershipState::new(
        fleet_timing(settings.term_duration),
        membership_mode(settings.mode),
        Instant::now(),
    ))
}

/// Reads the secret that all routers of the fleet share.
///
/// # Errors
/// Fails if the file cannot be read, or if the secret is too short.
pub fn read_secret(file: &Path) -> Result<String, Problem> {
    const PATH: &str = "fleet.peer.secretFile";
    let read = small_file::read(file).map_err(|error| error.to_string());
    let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text".to_owned()));
    let text =
        text.map_err(|what| Problem::new(PATH, format!("names {}, which cannot be read: {what}", file.display())))?;
    if text.trim().len() < MIN_SECRET_CHARS {
        let what = format!("is shorter than {MIN_SECRET_CHARS} characters; `openssl rand -hex 32` makes one");
        return Err(Problem::new(PATH, format!("names {}, which {what}", file.display())));
    }
    Ok(text.trim().to_owned())
}

/// Returns the timing of a fleet whose terms last for `term_duration`.
pub(super) fn fleet_timing(term_duration: Duration) -> FleetTiming {
    // Members need valid leases until the next coordinator has accepted them.
    let lease_duration = term_duration * 2;
    let default = FleetTiming::default();
    FleetTiming {
        lease_duration,
        heartbeat_interval: default.heartbeat_interval.min(lease_duration / 10),
        confirmation_validity: default.confirmation_validity.min(term_duration),
        ..default
    }
}

/// Returns the behavior of a member that is cut off from its coordinator.
pub(super) fn membership_mode(mode: PartitionMode) -> MembershipMode {
    match mode {
        PartitionMode::Available => MembershipMode::Available,
        PartitionMode::Strict => MembershipMode::Strict,
    }
}
