//! Validation of `fleet`: several routers that act as one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::raw::{RawCertificate, RawFleet, RawLeaderLock, RawPeer, RawPeerTls};
use super::{RouterSettings, parse_socket_address, tls};
use crate::model::fleet::{FleetSettings, LeaderLockPlace, PartitionMode, PeerTls};
use crate::model::problem::{field_path, quoted};
use crate::model::problem_collector::ProblemCollector;

/// Keywords of `mode` and their values.
pub(super) const PARTITION_MODES: [(&str, PartitionMode); 2] =
    [("available", PartitionMode::Available), ("strict", PartitionMode::Strict)];
/// The address of the peer listener if none is given.
pub(super) const DEFAULT_PEER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7070);
pub(super) const DEFAULT_TERM_SECONDS: i64 = 5;
const TERM_SECONDS_RANGE: RangeInclusive<i64> = 1..=60;

const PEER_PATH: &str = "fleet.peer";

pub(super) fn fleet_settings(check: &mut ProblemCollector, raw: &RawFleet, folder: &Path) -> FleetSettings {
    let at = |name| field_path(PEER_PATH, name);
    let no_peer = RawPeer::default();
    let peer = raw.peer.as_ref().unwrap_or(&no_peer);
    let address = parse_socket_address(check, &at("address"), peer.address.as_deref(), DEFAULT_PEER_ADDRESS);
    let advertise = peer_name(check, &at("advertise"), peer.advertise.as_deref(), address);
    let tls = peer.tls.as_ref().and_then(|raw| peer_tls(check, raw, folder));
    if peer.tls.is_none() && !address.ip().is_loopback() {
        let how = "write `peer.tls` with `certFile`, `keyFile` and `caFile`; without, only an address of this machine will \
                   do, such as 127.0.0.1:7070";
        check.report(&at("tls"), format!("is missing, but others can reach {address}; {how}"));
    }
    let secret_file = peer.secret_file.as_ref().filter(|file| !file.is_empty()).map(|file| folder.join(file));
    if secret_file.is_none() && peer.tls.is_some() {
        let how = "name a file with a text that every router of the fleet, and nobody else, knows";
        check.report(&at("secretFile"), format!("is missing; {how}"));
    }
    let term = check.number_in_range(
        "fleet.termSeconds",
        raw.term_seconds,
        TERM_SECONDS_RANGE,
        DEFAULT_TERM_SECONDS,
        " seconds",
    );
    FleetSettings {
        address,
        advertise,
        tls,
        secret_file,
        leader_lock: leader_lock_place(check, raw.leader_lock.as_ref(), folder),
        term_duration: Duration::from_secs(term.unsigned_abs()),
        mode: check.keyword("fleet.mode", raw.mode.as_deref(), &PARTITION_MODES).unwrap_or(PartitionMode::Available),
    }
}

/// Reports settings of the fleet that do not fit the other settings.
pub(super) fn check_combined(check: &mut ProblemCollector, settings: &RouterSettings) {
    let Some(fleet) = &settings.fleet else { return };
    if matches!(fleet.leader_lock, LeaderLockPlace::Kubernetes(_)) && settings.kubernetes.is_none() {
        let how = "write `leaderLock.file`, or have endpoints come from a cluster with `endpoints.kubernetes`";
        check.report("fleet.leaderLock.kubernetes", format!("needs a cluster, but endpoints come from files; {how}"));
    }
}

/// Returns the name of the router in its fleet, which is the address at which others reach it.
fn peer_name(check: &mut ProblemCollector, path: &str, given: Option<&str>, address: SocketAddr) -> String {
    let how = "write `host:port`, a name or an address that the other routers can connect to, such as `10.0.0.5:7070`";
    let Some(given) = given else {
        if address.ip().is_unspecified() || address.port() == 0 {
            let how = format!("{how}; in a pod, INFERENCE_ROUTER__FLEET__PEER__ADVERTISE can be made of its address");
            check.report(path, format!("is missing, and {address} is no address to connect to; {how}"));
        }
        return address.to_string();
    };
    if let Some(what) = unreachable_reason(given) {
        check.report(path, format!("is {}, which {what}; {how}", quoted(given)));
    }
    given.to_owned()
}

/// Returns why nobody can connect to this address; `None` if it is possible.
fn unreachable_reason(given: &str) -> Option<&'static str> {
    if given.contains("://") {
        return Some("begins with a scheme");
    }
    let Some((host, port)) = given.rsplit_once(':') else { return Some("is no host with a port") };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'));
    match (bare.parse::<IpAddr>(), port.parse::<u16>()) {
        (Ok(ip), _) if ip.is_unspecified() => Some("is where to listen, not an address to connect to"),
        (_, Ok(0)) => Some("has port 0, at which nobody listens"),
        (Ok(_), Ok(_)) => None,
        (Err(_), Ok(_)) if is_name => None,
        _ => Some("is no host with a port"),
    }
}

fn peer_tls(check: &mut ProblemCollector, raw: &RawPeerTls, folder: &Path) -> Option<PeerTls> {
    let path = field_path(PEER_PATH, "tls");
    let own = RawCertificate {
        cert_file: raw.cert_file.clone(),
        key_file: raw.key_file.clone(),
        cert_folder: raw.cert_folder.clone(),
        cert_secret: None,
    };
    let certificate = tls::certificate_source(check, &path, &own, folder);
    let Some(ca_file) = raw.ca_file.as_ref().filter(|file| !file.is_empty()) else {
        let how = "name a PEM file with the authority that has signed the certificates of all routers of the fleet";
        check.report(&field_path(&path, "caFile"), format!("is missing; {how}"));
        return None;
    };
    let server_name = raw.server_name.clone().filter(|name| !name.is_empty());
    Some(PeerTls { certificate: certificate?, ca_file: folder.join(ca_file), server_name })
}

fn leader_lock_place(check: &mut ProblemCollector, raw: Option<&RawLeaderLock>, folder: &Path) -> LeaderLockPlace {
    const PATH: &str = "fleet.leaderLock";
    let file = raw.and_then(|raw| raw.file.as_ref()).filter(|file| !file.is_empty());
    let name = raw.and_then(|raw| raw.kubernetes.as_ref());
    match (file, name) {
        (Some(file), None) => LeaderLockPlace::File(folder.join(file)),
        (None, Some(object)) => {
            let name = object.name.clone().filter(|name| !name.is_empty());
            LeaderLockPlace::Kubernetes(name.unwrap_or_else(|| "inference-router".to_owned()))
        }
        (Some(_), Some(_)) => {
            check.report(PATH, "has both `file` and `kubernetes`; write one of them, the same for every router");
            LeaderLockPlace::File(folder.into())
        }
        (None, None) => {
            let how = "write `{file: leader}`, a file in a folder that all routers of the fleet share, or \
                       `{kubernetes: {}}`";
            check.report(PATH, format!("does not say where the leader lock is; {how}"));
            LeaderLockPlace::File(folder.into())
        }
    }
}
