//! Where clients and operators connect.

use std::net::SocketAddr;

use super::Settings;
use crate::model::check::Check;
use crate::model::problem::field;
use crate::model::tls::{CertificateSource, ServerTls};

/// What the listener at `scoring.address` is called in metrics.
pub const SCORING: &str = "scoring";
/// What the one at `scoringTls.address` is called.
pub const SCORING_TLS: &str = "scoring_tls";

/// A listener that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsListener {
    /// Where clients connect; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Its certificates and rules.
    pub tls: ServerTls,
}

/// One of the listeners for clients.
#[derive(Debug, Clone, Copy)]
pub struct ClientListener<'a> {
    /// What it is called in metrics.
    pub name: &'static str,
    /// Where its TLS is in the settings.
    pub path: &'static str,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Its certificates and rules; `None`: plain HTTP.
    pub tls: Option<&'a ServerTls>,
}

impl Settings {
    /// Where clients connect: one listener, or two.
    pub fn listeners(&self) -> impl Iterator<Item = ClientListener<'_>> {
        let scoring =
            ClientListener { name: SCORING, path: "scoring.tls", address: self.scoring, tls: self.tls.as_ref() };
        let beside = self.scoring_tls.as_ref().map(|TlsListener { address, tls }| ClientListener {
            name: SCORING_TLS,
            path: "scoringTls",
            address: *address,
            tls: Some(tls),
        });
        [scoring].into_iter().chain(beside)
    }

    /// Secrets of the router's own namespace, each with the key that names it.
    pub fn secrets(&self) -> impl Iterator<Item = (String, &str)> {
        let of_listener = |ClientListener { path, tls, .. }| {
            let sources = tls.into_iter().flat_map(|tls: &ServerTls| &tls.certificates);
            sources.filter_map(move |source| match source {
                CertificateSource::Secret(name) => Some((field(path, "certSecret"), name.as_str())),
                CertificateSource::Pair { .. } | CertificateSource::Folder(_) => None,
            })
        };
        let signing = self.tokens.signing_secret.as_deref();
        let signing = signing.map(|name| ("tokens.signingSecret".to_owned(), name));
        self.listeners().flat_map(of_listener).chain(signing)
    }
}

/// Notes listeners that want the same port.
pub(super) fn apart(check: &mut Check, scoring: SocketAddr, beside: Option<&TlsListener>, admin: SocketAddr) {
    let beside = beside.map(|listener| listener.address);
    let all = [("scoring.address", Some(scoring)), ("scoringTls.address", beside), ("admin.address", Some(admin))];
    let all: Vec<_> = all.into_iter().filter_map(|(path, address)| Some((path, address?))).collect();
    for (at, (path, address)) in all.iter().enumerate() {
        if let Some((by, taken)) = all[..at].iter().find(|(_, taken)| same_port(*address, *taken)) {
            check.problem(path, format!("is {address}, which is taken by {by} ({taken}); choose another port"));
        }
    }
}

/// Whether a socket at one address stands in the way of one at the other.
fn same_port(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}
