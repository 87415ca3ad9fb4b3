//! TLS towards replicas, as documents ask for it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::pem::{self, Bad, Material, PAIR_IN_SECRETS, provider};
use crate::control::secrets::{Entries, NamedSecrets};
use crate::model::tls::{CertificateSource, UpstreamTls};
use crate::state::tls::Connector;

/// The entry of a Secret with who may have signed the replicas' certificates.
const CA_IN_SECRETS: &str = "ca.crt";
const SECRET: &str = "secretRef";
/// The only protocol spoken with replicas.
const ALPN: &[u8] = b"http/1.1";

/// The files that `tls` names.
pub(in crate::control) fn files(tls: &UpstreamTls) -> Vec<PathBuf> {
    let pair = tls.certificate.iter().flat_map(|files| pem::read_pair(files, &NamedSecrets::default()).into_files());
    tls.ca_file.iter().cloned().chain(pair).collect()
}

/// What `tls` names: authorities, and a certificate of the router's own.
struct Named {
    ca: Option<Material>,
    own: Option<(CertificateSource, Material)>,
}

impl Named {
    fn in_files(tls: &UpstreamTls) -> Self {
        let own = tls.certificate.clone();
        Self {
            ca: tls.ca_file.clone().map(|file| Material::read([file])),
            own: own.map(|source| (source.clone(), pem::read_pair(&source, &NamedSecrets::default()))),
        }
    }

    fn in_secret(name: &str, secret: Result<Arc<Entries>, String>) -> Result<Self, String> {
        let has = |entry: &str| secret.as_ref().is_ok_and(|entries| entries.contains_key(entry));
        let (has_ca, has_own) = (has(CA_IN_SECRETS), PAIR_IN_SECRETS.into_iter().any(has));
        if let Err(what) = &secret {
            return Err(format!("names the Secret {name}: {what}"));
        }
        if !has_ca && !has_own {
            let pair = PAIR_IN_SECRETS.join(" and ");
            return Err(format!("names the Secret {name}, which has neither {CA_IN_SECRETS} nor {pair}"));
        }
        let own = CertificateSource::Secret(name.to_owned());
        Ok(Self {
            ca: has_ca.then(|| Material::of_secret(name, &secret, [CA_IN_SECRETS])),
            own: has_own.then(|| (own, Material::of_secret(name, &secret, PAIR_IN_SECRETS))),
        })
    }
}

/// TLS as `tls` asks for it; what a Secret holds, `secret` knows.
///
/// # Errors
/// The field of `upstreamTls` that is wrong, and how.
pub(in crate::control) fn connector(
    tls: &UpstreamTls,
    secret: impl FnOnce(&str) -> Result<Arc<Entries>, String>,
) -> Result<Connector, (&'static str, String)> {
    let is_secret = tls.secret.is_some();
    let of = |field| move |bad: Bad| (if is_secret { SECRET } else { field }, bad.to_string());
    let Named { ca, own } = match &tls.secret {
        Some(name) => Named::in_secret(name, secret(name)).map_err(|what| (SECRET, what))?,
        None => Named::in_files(tls),
    };
    let mut digest = Sha256::new();
    // Derived text tells fields apart; what files hold comes with its length.
    digest.update(format!("{tls:?}"));
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ("", error.to_string()))?;
    let builder = match &ca {
        _ if tls.skip_verify => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)),
        Some(read) => {
            read.digest(&mut digest);
            builder.with_root_certificates(pem::roots(read).map_err(of("caFile"))?.1)
        }
        None => builder.with_root_certificates(system_roots().map_err(|what| ("caFile", what))?),
    };
    let mut config = match &own {
        Some((source, read)) => {
            read.digest(&mut digest);
            let own = pem::certificate(source, read).map_err(of("certFile"))?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = tls.server_name.clone().map(ServerName::try_from).transpose();
    let server_name = name.map_err(|_| ("serverName", "is no name that can be in a certificate".to_owned()))?;
    Ok(Connector::new(config, server_name, digest.finalize().into()))
}

/// Whoever this machine trusts, read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let loaded = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(loaded.certs);
        for error in loaded.errors {
            tracing::warn!(%error, "a certificate that this machine trusts cannot be read");
        }
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("is not given, and this machine trusts nobody; install its ca-certificates, or name the file of \
                    whoever signed the replicas' certificates"
            .to_owned());
    }
    Ok(roots.clone())
}

/// Takes any certificate: `skipVerify`.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
