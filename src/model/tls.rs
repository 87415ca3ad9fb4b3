//! TLS settings of listeners and upstream connections. The files that they name are read elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names of the certificate and key files in a folder: those of a mounted Kubernetes Secret, and those of Azure Machine
/// Learning's extension.
pub const CERTIFICATE_FILE_NAMES: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert.pem", "key.pem")];

/// TLS on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificates, at least one. The first is for clients that send no server name, or one that no certificate has.
    pub certificates: Vec<CertificateSource>,
    /// The oldest accepted version.
    pub min_version: TlsVersion,
    /// The longest time from accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Certificate authorities of client certificates; `None`: no client certificate is requested.
    pub client_ca_file: Option<PathBuf>,
}

/// The defaults of optional fields.
impl Default for ServerTls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            min_version: TlsVersion::V1_2,
            handshake_timeout: Duration::from_secs(10),
            client_ca_file: None,
        }
    }
}

/// Supported versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Where a certificate with its chain and its key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// Two files.
    Pair {
        /// A PEM file with the certificate, then its chain.
        cert: PathBuf,
        /// A PEM file with the private key.
        key: PathBuf,
    },
    /// A folder with a pair of [`CERTIFICATE_FILE_NAMES`].
    Folder(PathBuf),
    /// A Secret with `tls.crt` and `tls.key`, of the router's own namespace or of the endpoint's.
    Secret(String),
}

impl CertificateSource {
    /// Returns the name of the certificate in metrics and messages, which is the path as written in the settings.
    pub fn name(&self) -> &Path {
        match self {
            Self::Pair { cert, .. } => cert,
            Self::Folder(folder) => folder,
            Self::Secret(name) => Path::new(name),
        }
    }
}

impl UpstreamTls {
    /// Makes relative paths relative to `folder`.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let mut paths: Vec<&mut PathBuf> = self.ca_file.iter_mut().collect();
        match &mut self.certificate {
            Some(CertificateSource::Pair { cert, key }) => paths.extend([cert, key]),
            Some(CertificateSource::Folder(path)) => paths.push(path),
            Some(CertificateSource::Secret(_)) | None => {}
        }
        for path in paths {
            *path = folder.join(&*path);
        }
    }
}

/// TLS towards the replicas of a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Certificate authorities of the replicas; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The name expected in the certificates of the replicas; `None`: the host of each replica's address.
    pub server_name: Option<String>,
    /// Whether certificates are accepted without verification.
    pub skip_verify: bool,
    /// A Secret of the endpoint's namespace with `ca.crt`, `tls.crt` and `tls.key`, or some of them, instead of files.
    pub secret_name: Option<String>,
    /// The certificate that the router presents when a replica asks for one.
    pub certificate: Option<CertificateSource>,
}
