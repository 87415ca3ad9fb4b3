//! Selection of a listener's certificate by the server name that a client sends (SNI).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pem::Certificate;

/// Selects certificates by the names in them.
pub(super) struct SniResolver {
    /// Exact names, and wildcards such as `*.example.com`. The certificate that is listed first comes first.
    keys_by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For clients that send no server name, or an unknown one.
    default_key: Option<Arc<CertifiedKey>>,
}

impl SniResolver {
    /// Creates a resolver for these certificates; the first one is the default.
    pub(super) fn new<'a>(certificates: impl IntoIterator<Item = &'a Certificate>) -> Self {
        let (mut named, mut default) = (HashMap::<String, Vec<_>>::new(), None);
        for certificate in certificates {
            default.get_or_insert_with(|| certificate.certified_key.clone());
            for name in &certificate.dns_names {
                named.entry(name.clone()).or_default().push(certificate.certified_key.clone());
            }
        }
        Self { keys_by_name: named, default_key: default }
    }

    fn keys_for_name(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let name = name.to_ascii_lowercase();
        let exact = self.keys_by_name.get(&name);
        // A wildcard stands for one label.
        let wildcard = || self.keys_by_name.get(&format!("*.{}", name.split_once('.')?.1));
        exact.or_else(wildcard).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = hello.server_name().map_or(&[][..], |name| self.keys_for_name(name));
        // If an ECDSA and an RSA certificate have the same name, the client gets the one that it can verify.
        let is_verifiable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(is_verifiable).or(candidates.first()).or(self.default_key.as_ref()).cloned()
    }
}

impl fmt::Debug for SniResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys_by_name.keys()).finish()
    }
}
