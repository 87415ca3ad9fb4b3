//! The scoring and admin listeners.

use std::net::SocketAddr;

use super::RouterSettings;
use crate::model::problem::field_path;
use crate::model::problem_collector::ProblemCollector;
use crate::model::tls::{CertificateSource, ServerTls};

/// The name of the listener at `scoring.address` in metrics.
pub const SCORING_LISTENER: &str = "scoring";
/// The name of the listener at `scoringTls.address` in metrics.
pub const SCORING_TLS_LISTENER: &str = "scoring_tls";

/// A scoring listener with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsListener {
    /// The address of the listener; with port 0 the system chooses one.
    pub address: SocketAddr,
    /// Certificates and TLS rules of the listener.
    pub tls: ServerTls,
}

/// A scoring listener.
#[derive(Debug, Clone, Copy)]
pub struct ClientListener<'a> {
    /// The name of the listener in metrics.
    pub name: &'static str,
    /// The path of its TLS settings.
    pub tls_path: &'static str,
    /// The address of the listener.
    pub address: SocketAddr,
    /// Certificates and TLS rules of the listener; `None`: plain HTTP.
    pub tls: Option<&'a ServerTls>,
}

impl RouterSettings {
    /// Returns the scoring listeners: one, or two.
    pub fn client_listeners(&self) -> impl Iterator<Item = ClientListener<'_>> {
        let scoring = ClientListener {
            name: SCORING_LISTENER,
            tls_path: "scoring.tls",
            address: self.scoring,
            tls: self.tls.as_ref(),
        };
        let beside = self.scoring_tls.as_ref().map(|TlsListener { address, tls }| ClientListener {
            name: SCORING_TLS_LISTENER,
            tls_path: "scoringTls",
            address: *address,
            tls: Some(tls),
        });
        [scoring].into_iter().chain(beside)
    }

    /// Returns the Secrets of the router's own namespace that the settings name, each with the path of the key that
    /// names it.
    pub fn secret_references(&self) -> impl Iterator<Item = (String, &str)> {
        let of_listener = |ClientListener { tls_path: path, tls, .. }| {
            let sources = tls.into_iter().flat_map(|tls: &ServerTls| &tls.certificates);
            sources.filter_map(move |source| match source {
                CertificateSource::Secret(name) => Some((field_path(path, "certSecret"), name.as_str())),
                CertificateSource::Pair { .. } | CertificateSource::Folder(_) => None,
            })
        };
        let signing = self.tokens.signing_secret.as_deref();
        let signing = signing.map(|name| ("tokens.signingSecret".to_owned(), name));
        self.client_listeners().flat_map(of_listener).chain(signing)
    }
}

/// Reports listeners that want the same port.
pub(super) fn check_distinct_ports(
    check: &mut ProblemCollector,
    scoring: SocketAddr,
    beside: Option<&TlsListener>,
    admin: SocketAddr,
) {
    let beside = beside.map(|listener| listener.address);
    let all = [("scoring.address", Some(scoring)), ("scoringTls.address", beside), ("admin.address", Some(admin))];
    let all: Vec<_> = all.into_iter().filter_map(|(path, address)| Some((path, address?))).collect();
    for (at, (path, address)) in all.iter().enumerate() {
        if let Some((by, taken)) = all[..at].iter().find(|(_, taken)| has_port_conflict(*address, *taken)) {
            check.report(path, format!("is {address}, which is taken by {by} ({taken}); choose another port"));
        }
    }
}

/// Returns whether a socket at one address keeps the other from being bound.
fn has_port_conflict(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}
