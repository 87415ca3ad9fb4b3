//! What a router needs to be one of several.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Store;
use crate::control::{certificates, small_file};
use crate::model::fleet::{FleetSettings, Mode};
use crate::model::problem::Problem;
use crate::policy::fleet::Settings;
use crate::policy::fleet::member::{Kind, Terms};
use crate::state::lifecycle::Lifecycle;
use crate::state::membership::Membership;
use crate::state::tls::Acceptor;

/// Of what all routers know, in characters.
const SHORTEST_SECRET: usize = 16;

/// What a router needs to be one of several.
pub struct Parts {
    /// As in the settings file.
    pub settings: FleetSettings,
    /// Where members connect if this router coordinates.
    pub socket: std::net::TcpListener,
    /// TLS there.
    pub acceptor: Option<Arc<Acceptor>>,
    /// What every router of the group knows.
    pub secret: String,
    /// Where it is written who coordinates.
    pub store: Store,
    /// What deployments go by.
    pub membership: Arc<Membership>,
    /// Of the process.
    pub lifecycle: Lifecycle,
    /// Where the group's figures are.
    pub registry: prometheus::Registry,
}

impl Parts {
    /// What is wrong with the files that the settings name.
    pub fn check(settings: &FleetSettings) -> Vec<Problem> {
        let tls = settings.tls.iter().flat_map(|tls| certificates::check("fleet.peer.tls", &tls.server()));
        let secret = settings.secret_file.as_deref().and_then(|file| secret(file).err());
        tls.chain(secret).chain(Store::check(&settings.lease).err()).collect()
    }
}

/// What deployments go by before anything is known of the group.
///
/// # Errors
/// As of [`Membership::new`].
pub fn membership(settings: &FleetSettings) -> prometheus::Result<Arc<Membership>> {
    Membership::new(Terms::new(timing(settings.term), kind(settings.mode), Instant::now()))
}

/// What every router of the group knows, from its file.
///
/// # Errors
/// It cannot be read, or is too easy to guess.
pub fn secret(file: &Path) -> Result<String, Problem> {
    const PATH: &str = "fleet.peer.secretFile";
    let read = small_file::read(file).map_err(|error| error.to_string());
    let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text".to_owned()));
    let text =
        text.map_err(|what| Problem::new(PATH, format!("names {}, which cannot be read: {what}", file.display())))?;
    if text.trim().len() < SHORTEST_SECRET {
        let what = format!("is shorter than {SHORTEST_SECRET} characters; `openssl rand -hex 32` makes one");
        return Err(Problem::new(PATH, format!("names {}, which {what}", file.display())));
    }
    Ok(text.trim().to_owned())
}

/// The times of a group whose coordinator may be silent for so long.
pub(super) fn timing(term: Duration) -> Settings {
    // Members must have slots to spend until the next coordinator has welcomed them.
    let lease = term * 2;
    let default = Settings::default();
    Settings { lease, heartbeat: default.heartbeat.min(lease / 10), vouch: default.vouch.min(term), ..default }
}

/// What a router does that is cut off.
pub(super) fn kind(mode: Mode) -> Kind {
    match mode {
        Mode::Available => Kind::Available,
        Mode::Strict => Kind::Strict,
    }
}
