//! Certificates of listeners: reads, checks and watches them.
//!
//! Certificates in Secrets arrive when the cluster is known, and are then treated like files. Files are compared by
//! content: they are few, and kubelet's atomic swap of a mounted volume may keep the modification time. An invalid file
//! leaves the last known good version in place, whether it holds one certificate of several or the certificate
//! authorities of clients.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::time::Instant;

use super::document_files::FileWatcher;
use super::secret_cache::SecretCache;
use crate::model::problem::Problem;
use crate::model::tls::{CertificateSource, ServerTls, TlsVersion};
use crate::state::control_plane_status::{self, ControlPlaneStatus};
use crate::state::metrics::Metrics;
use crate::state::tls::Acceptor;

mod pem;
mod sni_resolver;
pub(super) mod upstream_connector;

use pem::{Certificate, PemError, PemFiles, crypto_provider};
use sni_resolver::SniResolver;

/// The log warns this long before a certificate expires.
const EXPIRY_WARNING_PERIOD: Duration = Duration::from_secs(14 * 24 * 3600);
/// The interval between two warnings about one certificate.
const EXPIRY_WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Number of sessions kept for clients that resume without tickets.
const SESSION_CACHE_CAPACITY: usize = 4096;
/// A file may be replaced while the file beside it is read, so a mismatch is read again up to this often.
const MAX_READ_ATTEMPTS: usize = 3;
/// Protocols offered to clients, in order of preference.
const ALPN_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificates of every listener that speaks TLS.
pub struct ListenerCertificates {
    listeners: Vec<ListenerTlsState>,
    metrics: Arc<Metrics>,
    status: Arc<ControlPlaneStatus>,
    secrets: SecretCache,
}

/// The TLS state of one listener.
struct ListenerTlsState {
    /// The path of the TLS settings, such as `scoringTls`.
    settings_path: &'static str,
    settings: ServerTls,
    certificates: Vec<Reloadable<Certificate>>,
    client_verifier: Option<Reloadable<Arc<dyn ClientCertVerifier>>>,
    session_resumption: SessionResumption,
    acceptor: Option<Arc<Acceptor>>,
}

/// A value that is made from files or from a Secret, and made again when they change.
struct Reloadable<T> {
    /// The files as they were last read, valid or not.
    last_read: PemFiles,
    /// The last known good value. For files there is always one.
    last_good: Option<T>,
    /// What is wrong with the files at present.
    problem: Option<String>,
}

/// What lets clients resume sessions. It is kept when certificates change, but not when the client certificate
/// authorities change, because a resumed session does not ask for a certificate again.
#[derive(Clone)]
struct SessionResumption {
    ticketer: Arc<dyn ProducesTickets>,
    session_cache: Arc<dyn StoresServerSessions>,
}

impl SessionResumption {
    fn new() -> Result<Self, rustls::Error> {
        Ok(Self { ticketer: Ticketer::new()?, session_cache: ServerSessionMemoryCache::new(SESSION_CACHE_CAPACITY) })
    }
}

/// Returns the problems of the files that the TLS settings at `path` name.
pub fn check_tls_files(path: &'static str, settings: &ServerTls) -> Vec<Problem> {
    ListenerTlsState::load(path, settings.clone(), &SecretCache::default()).err().unwrap_or_default()
}

impl ListenerCertificates {
    /// Creates the state without any listener.
    pub fn new(metrics: Arc<Metrics>, status: Arc<ControlPlaneStatus>, secrets: SecretCache) -> Self {
        Self { listeners: Vec::new(), metrics, status, secrets }
    }

    /// Reads the files that the TLS `settings` at `path` name, for the listener called `name` in metrics.
    ///
    /// # Errors
    ///
    /// All problems of the files.
    pub fn add_listener(
        &mut self,
        path: &'static str,
        name: &'static str,
        settings: ServerTls,
    ) -> Result<Arc<Acceptor>, Vec<Problem>> {
        let mut listener = ListenerTlsState::load(path, settings, &self.secrets)?;
        let config = listener.server_config().map_err(|error| vec![Problem::new(path, error.to_string())])?;
        let acceptor =
            Arc::new(Acceptor::new(name, Arc::new(config), listener.settings.handshake_timeout, &self.metrics));
        listener.acceptor = Some(acceptor.clone());
        listener.record_expiry(&self.metrics);
        listener.warn_of_expiry();
        self.listeners.push(listener);
        self.publish_problems();
        Ok(acceptor)
    }

    /// Watches the files. This never returns.
    pub async fn run(mut self) {
        if self.listeners.is_empty() {
            return pending().await;
        }
        let mut watch = FileWatcher::new(&self.watched_paths());
        let mut last_warning = Instant::now();
        loop {
            // Whichever file changed, all of them are read: they are few.
            let _ = watch.changed().await;
            self.reload_all();
            watch.schedule_next_poll(Duration::ZERO);
            if last_warning.elapsed() >= EXPIRY_WARNING_INTERVAL {
                last_warning = Instant::now();
                self.listeners.iter().for_each(ListenerTlsState::warn_of_expiry);
            }
        }
    }

    fn watched_paths(&self) -> Vec<PathBuf> {
        self.listeners.iter().flat_map(|listener| paths_to_watch(&listener.settings)).collect()
    }

    /// Reads every file that has changed.
    fn reload_all(&mut self) {
        for listener in &mut self.listeners {
            listener.reload(&self.metrics, &self.secrets);
        }
        self.publish_problems();
    }

    fn publish_problems(&self) {
        let problems: Vec<Problem> = self.listeners.iter().flat_map(ListenerTlsState::problems).collect();
        self.metrics.tls_invalid_files.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        self.status.set_problems(control_plane_status::Subsystem::Certificates, problems);
    }
}

impl ListenerTlsState {
    fn load(path: &'static str, settings: ServerTls, secrets: &SecretCache) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut add_problem = |bad: PemError| problems.push(Problem::new(path, bad.to_string()));
        let load = |source: &CertificateSource| {
            let part =
                Reloadable::load(|| pem::read_pair(source, secrets), |read| pem::parse_certificate(source, read));
            match (part, source) {
                // The Secret arrives when the cluster is known. Until then there are no handshakes.
                (Err((seen, bad)), CertificateSource::Secret(_)) => {
                    Ok(Reloadable { last_read: seen, last_good: None, problem: Some(bad.to_string()) })
                }
                (part, _) => part.map_err(|(_, bad)| bad),
            }
        };
        let certificates: Vec<_> =
            settings.certificates.iter().filter_map(|source| load(source).map_err(&mut add_problem).ok()).collect();
        let client_ca = settings.client_ca_file.as_ref().and_then(|file| {
            Reloadable::load(|| PemFiles::read([file.clone()]), build_client_verifier)
                .map_err(|(_, bad)| add_problem(bad))
                .ok()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let sessions = SessionResumption::new().map_err(|error| vec![Problem::new(path, error.to_string())])?;
        Ok(Self {
            settings_path: path,
            settings,
            certificates,
            client_verifier: client_ca,
            session_resumption: sessions,
            acceptor: None,
        })
    }

    /// Returns the configuration for new connections, made from the last known good versions.
    fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(crypto_provider());
        let builder = builder.with_protocol_versions(&protocol_versions(self.settings.min_version))?;
        let builder = match self.client_verifier.as_ref().and_then(|part| part.last_good.clone()) {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let resolver = SniResolver::new(self.last_good_certificates());
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = ALPN_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        config.ticketer = self.session_resumption.ticketer.clone();
        config.session_storage = self.session_resumption.session_cache.clone();
        Ok(config)
    }

    /// Returns the last known good certificates of the listener.
    fn last_good_certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.iter().filter_map(|part| part.last_good.as_ref())
    }

    fn reload(&mut self, metrics: &Metrics, secrets: &SecretCache) {
        let mut outcomes = Vec::new();
        for (part, source) in self.certificates.iter_mut().zip(&self.settings.certificates) {
            outcomes.extend(
                part.reload_if_changed(|| pem::read_pair(source, secrets), |read| pem::parse_certificate(source, read)),
            );
        }
        if let (Some(part), Some(file)) = (&mut self.client_verifier, &self.settings.client_ca_file) {
            let outcome = part.reload_if_changed(|| PemFiles::read([file.clone()]), build_client_verifier);
            if let Some(Ok(())) = outcome {
                match SessionResumption::new() {
                    Ok(sessions) => self.session_resumption = sessions,
                    Err(error) => tracing::error!(%error, "session ticket keys not renewed; keeping the previous ones"),
                }
            }
            outcomes.extend(outcome);
        }
        let mut changed = false;
        for outcome in outcomes {
            metrics.tls_reloads.with_label_values(&[if outcome.is_ok() { "ok" } else { "error" }]).inc();
            match outcome {
                Ok(()) => changed = true,
                Err(bad) => {
                    tracing::warn!(listener = self.settings_path, problem = %bad, "invalid TLS files; keeping the last known good ones");
                }
            }
        }
        if changed {
            self.publish_config(metrics);
        }
    }

    fn publish_config(&self, metrics: &Metrics) {
        match (self.server_config(), &self.acceptor) {
            (Ok(config), Some(acceptor)) => {
                acceptor.set_config(Arc::new(config));
                self.record_expiry(metrics);
                tracing::info!(listener = self.settings_path, "reloaded TLS files");
                self.warn_of_expiry();
            }
            (Err(error), _) => {
                tracing::error!(listener = self.settings_path, %error, "TLS configuration failed; keeping the previous one")
            }
            (Ok(_), None) => {}
        }
    }

    /// Returns the problems of the listener's files at present.
    fn problems(&self) -> impl Iterator<Item = Problem> {
        let certificates = self.certificates.iter().filter_map(|part| part.problem.clone());
        let client_ca = self.client_verifier.iter().filter_map(|part| part.problem.clone());
        certificates.chain(client_ca).map(|what| Problem::new(self.settings_path, what))
    }

    fn record_expiry(&self, metrics: &Metrics) {
        for certificate in self.last_good_certificates() {
            let seconds = i64::try_from(certificate.not_after_unix.as_secs()).unwrap_or(i64::MAX);
            metrics.tls_certificate_not_after.with_label_values(&[&certificate.name]).set(seconds);
        }
    }

    fn warn_of_expiry(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for certificate in self.last_good_certificates() {
            let Certificate { name, not_after_unix: expires, .. } = certificate;
            match expires.checked_sub(now) {
                None => tracing::warn!(certificate = name, "certificate expired; replace it"),
                Some(left) if left < EXPIRY_WARNING_PERIOD => {
                    let days = left.as_secs() / (24 * 3600);
                    tracing::warn!(certificate = name, days, "certificate expires soon; replace it");
                }
                Some(_) => {}
            }
        }
    }
}

impl<T> Reloadable<T> {
    fn load(
        read: impl Fn() -> PemFiles,
        make: impl Fn(&PemFiles) -> Result<T, PemError>,
    ) -> Result<Self, (PemFiles, PemError)> {
        match build_with_retries(read(), read, make) {
            (seen, Ok(good)) => Ok(Self { last_read: seen, last_good: Some(good), problem: None }),
            (seen, Err(bad)) => Err((seen, bad)),
        }
    }

    /// Makes the value again if its files have changed. Returns `None` if they have not.
    fn reload_if_changed(
        &mut self,
        read: impl Fn() -> PemFiles,
        make: impl Fn(&PemFiles) -> Result<T, PemError>,
    ) -> Option<Result<(), PemError>> {
        let current = read();
        if current == self.last_read {
            return None;
        }
        let (seen, result) = build_with_retries(current, read, make);
        self.last_read = seen;
        self.problem = result.as_ref().err().map(ToString::to_string);
        Some(result.map(|good| self.last_good = Some(good)))
    }
}

/// Makes a value from files, which are read again while they change.
fn build_with_retries<T>(
    mut seen: PemFiles,
    read: impl Fn() -> PemFiles,
    make: impl Fn(&PemFiles) -> Result<T, PemError>,
) -> (PemFiles, Result<T, PemError>) {
    let mut result = make(&seen);
    for _ in 1..MAX_READ_ATTEMPTS {
        if result.is_ok() {
            break;
        }
        let again = read();
        if again == seen {
            break;
        }
        result = make(&again);
        seen = again;
    }
    (seen, result)
}

fn build_client_verifier(read: &PemFiles) -> Result<Arc<dyn ClientCertVerifier>, PemError> {
    let (file, roots) = pem::parse_roots(read)?;
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider()).build();
    built
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|error| PemError::new(&file, error.to_string()))
}

fn protocol_versions(min_version: TlsVersion) -> Vec<&'static SupportedProtocolVersion> {
    match min_version {
        TlsVersion::V1_2 => vec![&TLS13, &TLS12],
        TlsVersion::V1_3 => vec![&TLS13],
    }
}

/// Returns the paths to watch.
fn paths_to_watch(settings: &ServerTls) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = settings.client_ca_file.iter().cloned().collect();
    for files in &settings.certificates {
        match files {
            CertificateSource::Pair { cert, key } => places.extend([cert.clone(), key.clone()]),
            CertificateSource::Folder(folder) => places.push(folder.clone()),
            // Secrets are looked at in the same interval, without a notification.
            CertificateSource::Secret(_) => {}
        }
    }
    places
}
