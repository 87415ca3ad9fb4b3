//! Which certificate a client gets: by the name it asks for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pem::Certificate;

/// Certificates by the names in them.
pub(super) struct Names {
    /// Exact names, and those with a wildcard as `*.example.com`; the certificate listed first comes first.
    named: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For clients that ask for no name, or an unknown one.
    default: Option<Arc<CertifiedKey>>,
}

impl Names {
    /// By the names in these; the first is the default.
    pub(super) fn new<'a>(certificates: impl IntoIterator<Item = &'a Certificate>) -> Self {
        let (mut named, mut default) = (HashMap::<String, Vec<_>>::new(), None);
        for certificate in certificates {
            default.get_or_insert_with(|| certificate.key.clone());
            for name in &certificate.names {
                named.entry(name.clone()).or_default().push(certificate.key.clone());
            }
        }
        Self { named, default }
    }

    fn all(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let name = name.to_ascii_lowercase();
        let exact = self.named.get(&name);
        // A wildcard stands for one label.
        let wildcard = || self.named.get(&format!("*.{}", name.split_once('.')?.1));
        exact.or_else(wildcard).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = hello.server_name().map_or(&[][..], |name| self.all(name));
        // Of an ECDSA and an RSA certificate for one name, the one the client can verify.
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        all.iter().find(fits).or(all.first()).or(self.default.as_ref()).cloned()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.named.keys()).finish()
    }
}
