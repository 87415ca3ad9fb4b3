//! PEM files, and what is in them.

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

use crate::control::secrets::{Entries, NamedSecrets};
use crate::control::small_file;
use crate::model::tls::{CertificateSource, NAMES_IN_FOLDERS};

/// The one implementation of cryptography in the program.
pub(in crate::control) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::control) struct Bad {
    file: PathBuf,
    what: String,
}

impl Bad {
    pub(in crate::control) fn new(file: &Path, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), what: what.into() }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file.display(), self.what)
    }
}

/// Files as they were read, each with why it could not be.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::control) struct Material(Vec<(PathBuf, Result<Vec<u8>, String>)>);

impl Material {
    /// Reads them, in this order.
    pub(in crate::control) fn read(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = |file: PathBuf| {
            let read = small_file::read(&file).map_err(|error| error.to_string());
            (file, read)
        };
        Self(files.into_iter().map(read).collect())
    }

    /// These entries of a Secret, as if they were files.
    pub(in crate::control) fn of_secret(
        name: &str,
        secret: &Result<Arc<Entries>, String>,
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

    /// Where they are.
    pub(super) fn into_files(self) -> impl Iterator<Item = PathBuf> {
        self.0.into_iter().map(|(file, _)| file)
    }

    /// Adds what they hold.
    pub(super) fn digest(&self, digest: &mut Sha256) {
        for (_, read) in &self.0 {
            let text = read.as_deref().unwrap_or_default();
            digest.update(text.len().to_be_bytes());
            digest.update(text);
        }
    }

    fn file(&self, index: usize) -> Result<(&Path, &[u8]), Bad> {
        match self.0.get(index) {
            Some((file, Ok(text))) => Ok((file, text)),
            Some((file, Err(error))) => {
                Err(Bad::new(file, format!("cannot be read ({error}); create it, or correct the settings")))
            }
            None => Err(Bad::new(Path::new(""), "is not named")),
        }
    }
}

/// What is in a Secret of the type `kubernetes.io/tls`.
pub(super) const PAIR_IN_SECRETS: [&str; 2] = ["tls.crt", "tls.key"];

/// A certificate with its key.
pub(in crate::control) struct Certificate {
    /// What it is called in metrics and messages.
    pub(super) name: String,
    pub(in crate::control) key: Arc<CertifiedKey>,
    /// The DNS names it is for, in lower case; perhaps with a wildcard.
    pub(super) names: Vec<String>,
    /// Since 1970.
    pub(super) expires: Duration,
}

/// Reads a certificate and its key.
pub(in crate::control) fn read_pair(source: &CertificateSource, secrets: &NamedSecrets) -> Material {
    let (cert, key) = match source {
        CertificateSource::Secret(name) => return Material::of_secret(name, &secrets.get(name), PAIR_IN_SECRETS),
        CertificateSource::Pair { cert, key } => (cert.clone(), key.clone()),
        CertificateSource::Folder(folder) => {
            let pairs = NAMES_IN_FOLDERS.map(|(cert, key)| (folder.join(cert), folder.join(key)));
            let there = pairs.iter().position(|(cert, key)| cert.exists() || key.exists());
            let [first, second] = pairs;
            if there == Some(1) { second } else { first }
        }
    };
    Material::read([cert, key])
}

/// The certificate that [`read_pair`] has read.
pub(in crate::control) fn certificate(files: &CertificateSource, read: &Material) -> Result<Certificate, Bad> {
    let (cert_file, cert) = read.file(0)?;
    let (key_file, key) = read.file(1)?;
    let chain = certificates(cert_file, cert)?;
    let key = private_key(key_file, key)?;
    let (names, expires) = describe(&chain[0])
        .map_err(|error| Bad::new(cert_file, format!("has a certificate that cannot be read: {error}")))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Bad::new(
            key_file,
            format!(
                "is not the key of the first certificate in {}; put the two that belong together, and the certificate \
                 itself before its chain",
                cert_file.display()
            ),
        ),
        error => Bad::new(key_file, format!("has a key that cannot be used: {error}; use ECDSA P-256, RSA or Ed25519")),
    })?;
    Ok(Certificate { name: files.name().display().to_string(), key: Arc::new(key), names, expires })
}

/// Authorities, from the one file that was read, and that file.
pub(in crate::control) fn roots(read: &Material) -> Result<(PathBuf, RootCertStore), Bad> {
    let (file, text) = read.file(0)?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(file, text)? {
        roots
            .add(authority)
            .map_err(|error| Bad::new(file, format!("has a certificate that cannot be an authority: {error}")))?;
    }
    Ok((file.to_owned(), roots))
}

/// At least one.
fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Bad> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| Bad::new(file, format!("is not PEM that can be read: {error}")))?;
    if found.is_empty() {
        let what = "has no certificate; it must be PEM with a line `-----BEGIN CERTIFICATE-----`";
        return Err(Bad::new(file, what));
    }
    Ok(found)
}

fn private_key(file: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, Bad> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(text).map_err(|_| {
        if text.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
            return Bad::new(
                file,
                "has a key with a passphrase, which nobody would be there to enter; remove it with \
                                   `openssl pkey`",
            );
        }
        Bad::new(file, "has no private key; it must be PEM with a line `-----BEGIN PRIVATE KEY-----`")
    })
}

/// The names in a certificate, and when it expires.
fn describe(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, Duration), x509_cert::der::Error> {
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
