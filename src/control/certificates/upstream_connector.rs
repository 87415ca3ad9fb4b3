//! TLS towards replicas, as endpoint documents configure it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::pem::{self, PemError, PemFiles, SECRET_CERTIFICATE_ENTRIES, crypto_provider};
use crate::control::secret_cache::{SecretCache, SecretData};
use crate::model::tls::{CertificateSource, UpstreamTls};
use crate::state::tls::Connector;

/// The entry of a Secret that holds the certificate authorities of the replicas.
const SECRET_CA_ENTRY: &str = "ca.crt";
const SECRET_REF_FIELD: &str = "secretRef";
/// The only protocol spoken with replicas.
const UPSTREAM_ALPN_PROTOCOL: &[u8] = b"http/1.1";

/// Returns the files that `tls` names.
pub(in crate::control) fn watched_files(tls: &UpstreamTls) -> Vec<PathBuf> {
    let pair = tls.certificate.iter().flat_map(|files| pem::read_pair(files, &SecretCache::default()).into_paths());
    tls.ca_file.iter().cloned().chain(pair).collect()
}

/// The content of what `tls` names: certificate authorities, and the router's own certificate.
struct UpstreamTlsFiles {
    ca: Option<PemFiles>,
    client_certificate: Option<(CertificateSource, PemFiles)>,
}

impl UpstreamTlsFiles {
    fn from_files(tls: &UpstreamTls) -> Self {
        let own = tls.certificate.clone();
        Self {
            ca: tls.ca_file.clone().map(|file| PemFiles::read([file])),
            client_certificate: own.map(|source| (source.clone(), pem::read_pair(&source, &SecretCache::default()))),
        }
    }

    fn from_secret(name: &str, secret: Result<Arc<SecretData>, String>) -> Result<Self, String> {
        let has = |entry: &str| secret.as_ref().is_ok_and(|entries| entries.contains_key(entry));
        let (has_ca, has_client_certificate) = (has(SECRET_CA_ENTRY), SECRET_CERTIFICATE_ENTRIES.into_iter().any(has));
        if let Err(what) = &secret {
            return Err(format!("names the Secret {name}: {what}"));
        }
        if !has_ca && !has_client_certificate {
            let pair = SECRET_CERTIFICATE_ENTRIES.join(" and ");
            return Err(format!("names the Secret {name}, which has neither {SECRET_CA_ENTRY} nor {pair}"));
        }
        let own = CertificateSource::Secret(name.to_owned());
        Ok(Self {
            ca: has_ca.then(|| PemFiles::from_secret(name, &secret, [SECRET_CA_ENTRY])),
            client_certificate: has_client_certificate
                .then(|| (own, PemFiles::from_secret(name, &secret, SECRET_CERTIFICATE_ENTRIES))),
        })
    }
}

/// Builds the TLS configuration for `tls`, with the content of Secrets from `secret`.
///
/// # Errors
///
/// The field of `upstreamTls` that is wrong, and what is wrong with it.
pub(in crate::control) fn build_connector(
    tls: &UpstreamTls,
    secret: impl FnOnce(&str) -> Result<Arc<SecretData>, String>,
) -> Result<Connector, (&'static str, String)> {
    let is_secret = tls.secret_name.is_some();
    let field_error = |field| move |bad: PemError| (if is_secret { SECRET_REF_FIELD } else { field }, bad.to_string());
    let UpstreamTlsFiles { ca, client_certificate: own } = match &tls.secret_name {
        Some(name) => UpstreamTlsFiles::from_secret(name, secret(name)).map_err(|what| (SECRET_REF_FIELD, what))?,
        None => UpstreamTlsFiles::from_files(tls),
    };
    let mut digest = Sha256::new();
    // The derived text separates the fields; the content of files is added with its length.
    digest.update(format!("{tls:?}"));
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ("", error.to_string()))?;
    let builder = match &ca {
        _ if tls.skip_verify => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(NoCertificateVerification))
        }
        Some(read) => {
            read.update_digest(&mut digest);
            builder.with_root_certificates(pem::parse_roots(read).map_err(field_error("caFile"))?.1)
        }
        None => builder.with_root_certificates(system_roots().map_err(|what| ("caFile", what))?),
    };
    let mut config = match &own {
        Some((source, read)) => {
            read.update_digest(&mut digest);
            let own = pem::parse_certificate(source, read).map_err(field_error("certFile"))?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.certified_key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![UPSTREAM_ALPN_PROTOCOL.to_vec()];
    let name = tls.server_name.clone().map(ServerName::try_from).transpose();
    let server_name = name.map_err(|_| ("serverName", "is no name that can be in a certificate".to_owned()))?;
    Ok(Connector::new(config, server_name, digest.finalize().into()))
}

/// Returns the certificate authorities of the system, which are read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let loaded = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(loaded.certs);
        for error in loaded.errors {
            tracing::warn!(%error, "unreadable certificate in the system trust store");
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

/// A verifier that accepts any certificate, for `skipVerify`.
#[derive(Debug)]
struct NoCertificateVerification;

impl ServerCertVerifier for NoCertificateVerification {
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
        verify_tls12_signature(message, cert, signed, &crypto_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &crypto_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}
