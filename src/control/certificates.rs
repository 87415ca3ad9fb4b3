//! Certificates of listeners: read, checked, watched.
//!
//! Those in Secrets come when the cluster is known, and are then looked at like files. Files are compared by what they hold: they are few, and a mount may give a new file the stamp of the old one. What is
//! broken leaves the last good version of it in place, be it one certificate of several or the authorities of clients.

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

use super::files::Watch;
use super::secrets::NamedSecrets;
use crate::model::problem::Problem;
use crate::model::tls::{CertificateSource, ServerTls, TlsVersion};
use crate::state::metrics::Metrics;
use crate::state::status::{self, Status};
use crate::state::tls::Acceptor;

mod names;
mod pem;
pub(super) mod upstream;

use names::Names;
use pem::{Bad, Certificate, Material, provider};

/// A certificate is warned of this long before it expires.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often it is warned of.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// Sessions that clients without tickets may resume.
const SESSIONS: usize = 4096;
/// A file may be replaced while the one beside it is read: what does not fit is read again so often.
const READS: usize = 3;
/// What clients are offered, the better first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificates of every listener that speaks TLS.
pub struct Certificates {
    listeners: Vec<Listener>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    secrets: NamedSecrets,
}

/// TLS of one listener.
struct Listener {
    /// Where it is in the settings.
    path: &'static str,
    settings: ServerTls,
    certificates: Vec<Part<Certificate>>,
    client_ca: Option<Part<Arc<dyn ClientCertVerifier>>>,
    sessions: Sessions,
    acceptor: Option<Arc<Acceptor>>,
}

/// Something made from files, or from a Secret.
struct Part<T> {
    /// The files as they were last seen, good or not.
    seen: Material,
    /// The last good version; of files there is always one.
    good: Option<T>,
    /// What is wrong with the files as they are now.
    problem: Option<String>,
}

/// What lets clients resume: kept over a change of certificates, but not of those that clients must show, because a
/// session resumed is a client not asked again.
#[derive(Clone)]
struct Sessions {
    tickets: Arc<dyn ProducesTickets>,
    stored: Arc<dyn StoresServerSessions>,
}

impl Sessions {
    fn new() -> Result<Self, rustls::Error> {
        Ok(Self { tickets: Ticketer::new()?, stored: ServerSessionMemoryCache::new(SESSIONS) })
    }
}

/// What is wrong with the files that the TLS settings at `path` name.
pub fn check(path: &'static str, settings: &ServerTls) -> Vec<Problem> {
    Listener::load(path, settings.clone(), &NamedSecrets::default()).err().unwrap_or_default()
}

impl Certificates {
    /// No listener speaks TLS yet.
    pub fn new(metrics: Arc<Metrics>, status: Arc<Status>, secrets: NamedSecrets) -> Self {
        Self { listeners: Vec::new(), metrics, status, secrets }
    }

    /// Reads what the TLS `settings` at `path` name, for the listener called `name` in metrics.
    ///
    /// # Errors
    /// Everything that is wrong with the files.
    pub fn add(
        &mut self,
        path: &'static str,
        name: &'static str,
        settings: ServerTls,
    ) -> Result<Arc<Acceptor>, Vec<Problem>> {
        let mut listener = Listener::load(path, settings, &self.secrets)?;
        let config = listener.config().map_err(|error| vec![Problem::new(path, error.to_string())])?;
        let acceptor =
            Arc::new(Acceptor::new(name, Arc::new(config), listener.settings.handshake_timeout, &self.metrics));
        listener.acceptor = Some(acceptor.clone());
        listener.tell_expiry(&self.metrics);
        listener.warn_of_expiry();
        self.listeners.push(listener);
        self.tell_problems();
        Ok(acceptor)
    }

    /// Follows the files for good.
    pub async fn run(mut self) {
        if self.listeners.is_empty() {
            return pending().await;
        }
        let mut watch = Watch::new(&self.places());
        let mut reminded = Instant::now();
        loop {
            // Whatever gave the sign, all are looked at: they are few.
            let _ = watch.changed().await;
            self.look();
            watch.looked(Duration::ZERO);
            if reminded.elapsed() >= REMIND {
                reminded = Instant::now();
                self.listeners.iter().for_each(Listener::warn_of_expiry);
            }
        }
    }

    fn places(&self) -> Vec<PathBuf> {
        self.listeners.iter().flat_map(|listener| places(&listener.settings)).collect()
    }

    /// Reads what has changed.
    fn look(&mut self) {
        for listener in &mut self.listeners {
            listener.look(&self.metrics, &self.secrets);
        }
        self.tell_problems();
    }

    fn tell_problems(&self) {
        let problems: Vec<Problem> = self.listeners.iter().flat_map(Listener::problems).collect();
        self.metrics.tls_refused_files.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        self.status.set_problems(status::Part::Certificates, problems);
    }
}

impl Listener {
    fn load(path: &'static str, settings: ServerTls, secrets: &NamedSecrets) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut note = |bad: Bad| problems.push(Problem::new(path, bad.to_string()));
        let load = |source: &CertificateSource| {
            let part = Part::load(|| pem::read_pair(source, secrets), |read| pem::certificate(source, read));
            match (part, source) {
                // It comes when the cluster is known; until then there are no handshakes.
                (Err((seen, bad)), CertificateSource::Secret(_)) => {
                    Ok(Part { seen, good: None, problem: Some(bad.to_string()) })
                }
                (part, _) => part.map_err(|(_, bad)| bad),
            }
        };
        let certificates: Vec<_> =
            settings.certificates.iter().filter_map(|source| load(source).map_err(&mut note).ok()).collect();
        let client_ca = settings.client_ca_file.as_ref().and_then(|file| {
            Part::load(|| Material::read([file.clone()]), verifier).map_err(|(_, bad)| note(bad)).ok()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let sessions = Sessions::new().map_err(|error| vec![Problem::new(path, error.to_string())])?;
        Ok(Self { path, settings, certificates, client_ca, sessions, acceptor: None })
    }

    /// What new connections get, of the last good versions.
    fn config(&self) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&versions(self.settings.min_version))?;
        let builder = match self.client_ca.as_ref().and_then(|part| part.good.clone()) {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let names = Names::new(self.good());
        let mut config = builder.with_cert_resolver(Arc::new(names));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        config.ticketer = self.sessions.tickets.clone();
        config.session_storage = self.sessions.stored.clone();
        Ok(config)
    }

    /// The last good versions of its certificates.
    fn good(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.iter().filter_map(|part| part.good.as_ref())
    }

    fn look(&mut self, metrics: &Metrics, secrets: &NamedSecrets) {
        let mut outcomes = Vec::new();
        for (part, source) in self.certificates.iter_mut().zip(&self.settings.certificates) {
            outcomes.extend(part.look(|| pem::read_pair(source, secrets), |read| pem::certificate(source, read)));
        }
        if let (Some(part), Some(file)) = (&mut self.client_ca, &self.settings.client_ca_file) {
            let outcome = part.look(|| Material::read([file.clone()]), verifier);
            if let Some(Ok(())) = outcome {
                match Sessions::new() {
                    Ok(sessions) => self.sessions = sessions,
                    Err(error) => tracing::error!(%error, "no new keys for session tickets; the old ones stay"),
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
                    tracing::warn!(listener = self.path, problem = %bad, "TLS files have a problem; the last good ones serve");
                }
            }
        }
        if changed {
            self.publish(metrics);
        }
    }

    fn publish(&self, metrics: &Metrics) {
        match (self.config(), &self.acceptor) {
            (Ok(config), Some(acceptor)) => {
                acceptor.replace(Arc::new(config));
                self.tell_expiry(metrics);
                tracing::info!(listener = self.path, "TLS files reloaded");
                self.warn_of_expiry();
            }
            (Err(error), _) => {
                tracing::error!(listener = self.path, %error, "TLS cannot be set up; the last one serves")
            }
            (Ok(_), None) => {}
        }
    }

    /// What is wrong with its files as they are now.
    fn problems(&self) -> impl Iterator<Item = Problem> {
        let certificates = self.certificates.iter().filter_map(|part| part.problem.clone());
        let client_ca = self.client_ca.iter().filter_map(|part| part.problem.clone());
        certificates.chain(client_ca).map(|what| Problem::new(self.path, what))
    }

    fn tell_expiry(&self, metrics: &Metrics) {
        for certificate in self.good() {
            let seconds = i64::try_from(certificate.expires.as_secs()).unwrap_or(i64::MAX);
            metrics.tls_certificate_expiry.with_label_values(&[&certificate.name]).set(seconds);
        }
    }

    fn warn_of_expiry(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for certificate in self.good() {
            let Certificate { name, expires, .. } = certificate;
            match expires.checked_sub(now) {
                None => tracing::warn!(certificate = name, "the certificate has expired; replace it"),
                Some(left) if left < EXPIRES_SOON => {
                    let days = left.as_secs() / (24 * 3600);
                    tracing::warn!(certificate = name, days, "the certificate expires soon; replace it");
                }
                Some(_) => {}
            }
        }
    }
}

impl<T> Part<T> {
    fn load(read: impl Fn() -> Material, make: impl Fn(&Material) -> Result<T, Bad>) -> Result<Self, (Material, Bad)> {
        match settled(read(), read, make) {
            (seen, Ok(good)) => Ok(Self { seen, good: Some(good), problem: None }),
            (seen, Err(bad)) => Err((seen, bad)),
        }
    }

    /// Makes it anew if its files have changed; `None`: they have not.
    fn look(
        &mut self,
        read: impl Fn() -> Material,
        make: impl Fn(&Material) -> Result<T, Bad>,
    ) -> Option<Result<(), Bad>> {
        let now = read();
        if now == self.seen {
            return None;
        }
        let (seen, made) = settled(now, read, make);
        self.seen = seen;
        self.problem = made.as_ref().err().map(ToString::to_string);
        Some(made.map(|good| self.good = Some(good)))
    }
}

/// Makes something of files, which are read again while they change.
fn settled<T>(
    mut seen: Material,
    read: impl Fn() -> Material,
    make: impl Fn(&Material) -> Result<T, Bad>,
) -> (Material, Result<T, Bad>) {
    let mut made = make(&seen);
    for _ in 1..READS {
        if made.is_ok() {
            break;
        }
        let again = read();
        if again == seen {
            break;
        }
        made = make(&again);
        seen = again;
    }
    (seen, made)
}

fn verifier(read: &Material) -> Result<Arc<dyn ClientCertVerifier>, Bad> {
    let (file, roots) = pem::roots(read)?;
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| Bad::new(&file, error.to_string()))
}

fn versions(least: TlsVersion) -> Vec<&'static SupportedProtocolVersion> {
    match least {
        TlsVersion::V1_2 => vec![&TLS13, &TLS12],
        TlsVersion::V1_3 => vec![&TLS13],
    }
}

/// What to watch.
fn places(settings: &ServerTls) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = settings.client_ca_file.iter().cloned().collect();
    for files in &settings.certificates {
        match files {
            CertificateSource::Pair { cert, key } => places.extend([cert.clone(), key.clone()]),
            CertificateSource::Folder(folder) => places.push(folder.clone()),
            // Looked at as often, without a sign.
            CertificateSource::Secret(_) => {}
        }
    }
    places
}
