//! PEM files and their content.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_cert::der::{Decode, oid::AssociatedOid};
use x509_cert::ext::pkix::{SubjectAltName, name::GeneralName};

use crate::control::secret_cache::{SecretCache, SecretData};
use crate::control::small_file;
use crate::model::tls::{CERTIFICATE_FILE_NAMES, CertificateSource};

/// Returns the only cryptography provider of the program.
pub(in crate::control) fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// What is wrong with a PEM file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::control) struct PemError {
    file: PathBuf,
    what: String,
}

impl PemError {
    pub(in crate::control) fn new(file: &Path, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), what: what.into() }
    }
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file.display(), self.what)
    }
}

/// Files as they were read, each with its content or the reason why it could not be read.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::control) struct PemFiles(Vec<(PathBuf, Result<Vec<u8>, String>)>);

impl PemFiles {
    /// Reads the files in this order.
    pub(in crate::control) fn read(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = |file: PathBuf| {
            let read = small_file::read(&file).map_err(|error| error.to_string());
            (file, read)
        };
        Self(files.into_iter().map(read).collect())
    }

    /// Uses these entries of a Secret as if they were files.
    pub(in crate::control) fn from_secret(
        name: &str,
        secret: &Result<Arc<SecretData>, String>,
        entries: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let entry = |entry: &'static str| {
            let text = secret
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|secret| secret.get(entry).cloned().ok_or_else(|| "there is no such entry".to_owned()));
            (format!("Secret {name}, {entry}").into(), text)
        };
        Self(entries.into_iter().map(entry).collect())
    }

    /// Returns the paths of the files.
    pub(super) fn into_paths(self) -> impl Iterator<Item = PathBuf> {
        self.0.into_iter().map(|(file, _)| file)
    }

    /// Adds the content of the files to a digest.
    pub(super) fn update_digest(&self, digest: &mut Sha256) {
        for (_, read) in &self.0 {
            let text = read.as_deref().unwrap_or_default();
            digest.update(text.len().to_be_bytes());
            digest.update(text);
        }
    }

    fn file_content(&self, index: usize) -> Result<(&Path, &[u8]), PemError> {
        match self.0.get(index) {
            Some((file, Ok(text))) => Ok((file, text)),
            Some((file, Err(error))) => {
                Err(PemError::new(file, format!("cannot be read ({error}); create it, or correct the settings")))
            }
            None => Err(PemError::new(Path::new(""), "is not named")),
        }
    }
}

/// The entries of a Secret of type `kubernetes.io/tls`.
pub(super) const SECRET_CERTIFICATE_ENTRIES: [&str; 2] = ["tls.crt", "tls.key"];

/// A certificate with its chain and its private key.
pub(in crate::control) struct Certificate {
    /// The name of the certificate in metrics and messages.
    pub(super) name: String,
    pub(in crate::control) certified_key: Arc<CertifiedKey>,
    /// The DNS names of the certificate in lower case, possibly with a wildcard.
    pub(super) dns_names: Vec<String>,
    /// The time at which the certificate expires, as a Unix time.
    pub(super) not_after_unix: Duration,
}

/// Reads the files of a certificate and its key.
pub(in crate::control) fn read_pair(source: &CertificateSource, secrets: &SecretCache) -> PemFiles {
    let (cert, key) = match source {
        CertificateSource::Secret(name) => {
            return PemFiles::from_secret(name, &secrets.get(name), SECRET_CERTIFICATE_ENTRIES);
        }
        CertificateSource::Pair { cert, key } => (cert.clone(), key.clone()),
        CertificateSource::Folder(folder) => {
            let pairs = CERTIFICATE_FILE_NAMES.map(|(cert, key)| (folder.join(cert), folder.join(key)));
            let existing = pairs.iter().position(|(cert, key)| cert.exists() || key.exists());
            let [first, second] = pairs;
            if existing == Some(1) { second } else { first }
        }
    };
    PemFiles::read([cert, key])
}

/// Parses the certificate that [`read_pair`] has read.
pub(in crate::control) fn parse_certificate(
    source: &CertificateSource,
    read: &PemFiles,
) -> Result<Certificate, PemError> {
    let (cert_file, cert) = read.file_content(0)?;
    let (key_file, key) = read.file_content(1)?;
    let chain = parse_certificates(cert_file, cert)?;
    let key = parse_private_key(key_file, key)?;
    let (names, expires) = dns_names_and_expiry(&chain[0])
        .map_err(|error| PemError::new(cert_file, format!("has a certificate that cannot be read: {error}")))?;
    let key = CertifiedKey::from_der(chain, key, &crypto_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => PemError::new(
            key_file,
            format!(
                "is not the key of the first certificate in {}; put the two that belong together, and the certificate \
                 itself before its chain",
                cert_file.display()
            ),
        ),
        error => {
            PemError::new(key_file, format!("has a key that cannot be used: {error}; use ECDSA P-256, RSA or Ed25519"))
        }
    })?;
    Ok(Certificate {
        name: source.name().display().to_string(),
        certified_key: Arc::new(key),
        dns_names: names,
        not_after_unix: expires,
    })
}

/// Parses the certificate authorities from the one file that was read, and returns them with its path.
pub(in crate::control) fn parse_roots(read: &PemFiles) -> Result<(PathBuf, RootCertStore), PemError> {
    let (file, text) = read.file_content(0)?;
    let mut roots = RootCertStore::empty();
    for authority in parse_certificates(file, text)? {
        roots
            .add(authority)
            .map_err(|error| PemError::new(file, format!("has a certificate that cannot be an authority: {error}")))?;
    }
    Ok((file.to_owned(), roots))
}

/// Parses the certificates of a file, at least one.
fn parse_certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| PemError::new(file, format!("is not PEM that can be read: {error}")))?;
    if found.is_empty() {
        let what = "has no certificate; it must be PEM with a line `-----BEGIN CERTIFICATE-----`";
        return Err(PemError::new(file, what));
    }
    Ok(found)
}

fn parse_private_key(file: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    const ENCRYPTED_KEY_MARKER: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(text).map_err(|_| {
        if text.windows(ENCRYPTED_KEY_MARKER.len()).any(|part| part == ENCRYPTED_KEY_MARKER) {
            return PemError::new(
                file,
                "has a key with a passphrase, which nobody would be there to enter; remove it with \
                                   `openssl pkey`",
            );
        }
        PemError::new(file, "has no private key; it must be PEM with a line `-----BEGIN PRIVATE KEY-----`")
    })
}

/// Returns the DNS names of a certificate and the time at which it expires.
fn dns_names_and_expiry(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, Duration), x509_cert::der::Error> {
    let certificate = x509_cert::Certificate::from_der(certificate)?.tbs_certificate;
    let mut names = Vec::new();
    for extension in certificate.extensions.iter().flatten().filter(|e| e.extn_id == SubjectAltName::OID) {
        for name in SubjectAltName::from_der(extension.extn_value.as_bytes())?.0 {
            if let GeneralName::DnsName(name) = name {
                names.push(name.as_str().to_ascii_lowercase());
            }
        }
    }
    Ok((names, certificate.validity.not_after.to_unix_duration()))
}
