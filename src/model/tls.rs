//! What is asked of TLS, on either side; the files it names are read elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a folder with a certificate holds, and then the key beside it: as a Kubernetes Secret is mounted, and as Azure
/// Machine Learning's extension is given it.
pub const NAMES_IN_FOLDERS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert.pem", "key.pem")];

/// TLS on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// At least one; the first is for clients that ask for no name, or one that no certificate has.
    pub certificates: Vec<CertificateSource>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Longest time from the accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Who may have signed the certificates of clients; `None`: clients are not asked for one.
    pub client_ca_file: Option<PathBuf>,
}

/// The defaults of what need not be said.
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

/// Versions of TLS that are spoken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Where a certificate, with the chain to its root, and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// In two files.
    Pair {
        /// PEM, the certificate itself first.
        cert: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// In a folder, under one of [`NAMES_IN_FOLDERS`].
    Folder(PathBuf),
    /// In a Secret of the router's own namespace, or of the endpoint's, as `tls.crt` and `tls.key`.
    Secret(String),
}

impl CertificateSource {
    /// What it is called in metrics and messages: as it is written in the settings.
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
    pub fn settle(&mut self, folder: &Path) {
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
    /// Who may have signed the replicas' certificates; `None`: whoever this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// The name in the replicas' certificates; `None`: the host of each replica's address.
    pub server_name: Option<String>,
    /// Whether certificates are taken unseen.
    pub skip_verify: bool,
    /// A Secret of the endpoint's namespace with `ca.crt`, `tls.crt` and `tls.key`, or some of them; instead of files.
    pub secret: Option<String>,
    /// What the router shows when a replica asks for a certificate.
    pub certificate: Option<CertificateSource>,
}
