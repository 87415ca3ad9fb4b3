//! `fleet`: several routers as one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::raw::{RawCertificate, RawFleet, RawLease, RawPeer, RawPeerTls};
use super::{Settings, address, tls};
use crate::model::check::Check;
use crate::model::fleet::{FleetSettings, LeasePlace, Mode, PeerTls};
use crate::model::problem::{field, quoted};

/// As written, and what it means.
pub(super) const MODES: [(&str, Mode); 2] = [("available", Mode::Available), ("strict", Mode::Strict)];
/// Where other routers connect when that is not given.
pub(super) const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7070);
pub(super) const DEFAULT_LEASE_SECONDS: i64 = 5;
const LEASE_SECONDS: RangeInclusive<i64> = 1..=60;

const PEER: &str = "fleet.peer";

pub(super) fn fleet(check: &mut Check, raw: &RawFleet, folder: &Path) -> FleetSettings {
    let at = |name| field(PEER, name);
    let nothing = RawPeer::default();
    let peer = raw.peer.as_ref().unwrap_or(&nothing);
    let address = address(check, &at("address"), peer.address.as_deref(), DEFAULT_ADDRESS);
    let advertise = advertise(check, &at("advertise"), peer.advertise.as_deref(), address);
    let tls = peer.tls.as_ref().and_then(|raw| peer_tls(check, raw, folder));
    if peer.tls.is_none() && !address.ip().is_loopback() {
        let how = "write `peer.tls` with `certFile`, `keyFile` and `caFile`; without, only an address of this machine will \
                   do, such as 127.0.0.1:7070";
        check.problem(&at("tls"), format!("is missing, but others can reach {address}; {how}"));
    }
    let secret_file = peer.secret_file.as_ref().filter(|file| !file.is_empty()).map(|file| folder.join(file));
    if secret_file.is_none() && peer.tls.is_some() {
        let how = "name a file with a text that every router of the group, and nobody else, knows";
        check.problem(&at("secretFile"), format!("is missing; {how}"));
    }
    let term = check.number("fleet.leaseSeconds", raw.lease_seconds, LEASE_SECONDS, DEFAULT_LEASE_SECONDS, " seconds");
    FleetSettings {
        address,
        advertise,
        tls,
        secret_file,
        lease: lease(check, raw.lease.as_ref(), folder),
        term: Duration::from_secs(term.unsigned_abs()),
        mode: check.word("fleet.mode", raw.mode.as_deref(), &MODES).unwrap_or(Mode::Available),
    }
}

/// What is wrong with it beside the other settings.
pub(super) fn together(check: &mut Check, settings: &Settings) {
    let Some(fleet) = &settings.fleet else { return };
    if matches!(fleet.lease, LeasePlace::Kubernetes(_)) && settings.kubernetes.is_none() {
        let how = "write `lease.file`, or have endpoints come from a cluster with `endpoints.kubernetes`";
        check.problem("fleet.lease.kubernetes", format!("needs a cluster, but endpoints come from files; {how}"));
    }
}

/// The name of the router in its group is where the others find it.
fn advertise(check: &mut Check, path: &str, given: Option<&str>, address: SocketAddr) -> String {
    let how = "write `host:port`, a name or an address that the other routers can connect to, such as `10.0.0.5:7070`";
    let Some(given) = given else {
        if address.ip().is_unspecified() || address.port() == 0 {
            let how = format!("{how}; in a pod, INFERENCE_ROUTER__FLEET__PEER__ADVERTISE can be made of its address");
            check.problem(path, format!("is missing, and {address} is no address to connect to; {how}"));
        }
        return address.to_string();
    };
    if let Some(what) = nowhere(given) {
        check.problem(path, format!("is {}, which {what}; {how}", quoted(given)));
    }
    given.to_owned()
}

/// Why nobody can connect to what is written.
fn nowhere(given: &str) -> Option<&'static str> {
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

fn peer_tls(check: &mut Check, raw: &RawPeerTls, folder: &Path) -> Option<PeerTls> {
    let path = field(PEER, "tls");
    let own = RawCertificate {
        cert_file: raw.cert_file.clone(),
        key_file: raw.key_file.clone(),
        cert_folder: raw.cert_folder.clone(),
        cert_secret: None,
    };
    let certificate = tls::certificate(check, &path, &own, folder);
    let Some(ca_file) = raw.ca_file.as_ref().filter(|file| !file.is_empty()) else {
        let how = "name a PEM file with the authority that has signed the certificates of all routers of the group";
        check.problem(&field(&path, "caFile"), format!("is missing; {how}"));
        return None;
    };
    let server_name = raw.server_name.clone().filter(|name| !name.is_empty());
    Some(PeerTls { certificate: certificate?, ca_file: folder.join(ca_file), server_name })
}

fn lease(check: &mut Check, raw: Option<&RawLease>, folder: &Path) -> LeasePlace {
    const PATH: &str = "fleet.lease";
    let file = raw.and_then(|raw| raw.file.as_ref()).filter(|file| !file.is_empty());
    let name = raw.and_then(|raw| raw.kubernetes.as_ref());
    match (file, name) {
        (Some(file), None) => LeasePlace::File(folder.join(file)),
        (None, Some(object)) => {
            let name = object.name.clone().filter(|name| !name.is_empty());
            LeasePlace::Kubernetes(name.unwrap_or_else(|| "inference-router".to_owned()))
        }
        (Some(_), Some(_)) => {
            check.problem(PATH, "has both `file` and `kubernetes`; write one of them, the same for every router");
            LeasePlace::File(folder.into())
        }
        (None, None) => {
            let how = "write `{file: leader}`, a file in a folder that all routers of the group share, or \
                       `{kubernetes: {}}`";
            check.problem(PATH, format!("does not say where the group writes down who coordinates; {how}"));
            LeasePlace::File(folder.into())
        }
    }
}
