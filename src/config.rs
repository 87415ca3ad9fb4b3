//! Settings of the router process: a YAML file, variables over it, checked once, all problems at once.

mod endpoints;
mod environment;
mod fleet;
mod limits;
mod listeners;
mod raw;
mod reference;
mod tls;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::control::yaml;
use crate::model::check::Check;
use crate::model::decode::decode;
use crate::model::duration::WrittenDuration;
use crate::model::fleet::FleetSettings;
use crate::model::limits::{KubernetesSettings, Limits, Shutdown, StatusCodes, TokenSettings};
use crate::model::problem::{Problem, field, item, quoted, together};
use crate::model::resource::KIND;
use crate::model::tls::ServerTls;
pub use listeners::{ClientListener, SCORING, SCORING_TLS, TlsListener};
pub use reference::reference;

use raw::{RawLimits, RawLog, RawSettings, RawShutdown, RawTokens};

/// Settings of the router process, as checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where clients connect; port 0 lets the system choose.
    pub scoring: SocketAddr,
    /// TLS there; `None`: plain HTTP.
    pub tls: Option<ServerTls>,
    /// Where else clients connect, with TLS.
    pub scoring_tls: Option<TlsListener>,
    /// Where operators and Prometheus connect.
    pub admin: SocketAddr,
    /// Threads of the data plane.
    pub workers: Workers,
    /// Status codes of the router's own errors.
    pub status_codes: StatusCodes,
    /// What protects the router from its clients.
    pub limits: Limits,
    /// How it leaves.
    pub shutdown: Shutdown,
    /// Files and folders with endpoints; absolute, except in the default. Empty with `kubernetes`.
    pub endpoint_files: Vec<PathBuf>,
    /// The cluster that endpoints come from; `None`: they come from files.
    pub kubernetes: Option<KubernetesSettings>,
    /// The router's own tokens.
    pub tokens: TokenSettings,
    /// The group of routers that this is one of; `None`: it is alone.
    pub fleet: Option<FleetSettings>,
    /// What is logged.
    pub log: Log,
}

/// Threads of the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// As many as the CPUs that this process may use.
    Auto,
    /// This many.
    Count(NonZeroUsize),
}

/// As in the file.
impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least important that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether each request gets a line.
    pub access: bool,
}

/// How important a line must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object, for machines.
    Json,
    /// For people.
    Text,
}

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

impl Default for Settings {
    fn default() -> Self {
        Self {
            scoring: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            tls: None,
            scoring_tls: None,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            workers: Workers::Auto,
            status_codes: StatusCodes::default(),
            limits: Limits::default(),
            shutdown: Shutdown::default(),
            endpoint_files: vec![PathBuf::from("endpoints/")],
            kubernetes: None,
            tokens: TokenSettings::default(),
            fleet: None,
            log: Log { level: LogLevel::Info, format: LogFormat::Json, access: true },
        }
    }
}

/// Most threads anybody can want.
const MAX_WORKERS: u64 = 1024;
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
const UNREADY_DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// Of tokens; the least leaves time to use one.
const LIFETIME: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);

/// Settings that cannot be used.
#[derive(Debug)]
pub struct Rejected {
    /// Everything that is wrong with the file and the variables.
    pub problems: Vec<Problem>,
    /// Where endpoints would come from, as far as that is known: what is wrong there can be told together with this.
    pub endpoint_files: Vec<PathBuf>,
}

/// Reads the settings file at `path`, with the variables of `env` that start with `INFERENCE_ROUTER__` over it.
///
/// # Errors
/// [`Rejected`].
pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Settings, Rejected> {
    let source = path.display().to_string();
    let cannot_read = |error: std::io::Error| {
        Rejected::unread(Problem::new("", format!("cannot be read as a settings file: {error}")).from_source(&source))
    };
    let text = std::fs::read_to_string(path).map_err(cannot_read)?;
    let absolute = std::path::absolute(path).map_err(cannot_read)?;
    parse(&text, &source, absolute.parent().unwrap_or(&absolute), env)
}

/// The settings in `text`, which problems say is from `source`, with the variables of `env` over them. Relative paths
/// are relative to `folder`.
///
/// # Errors
/// [`Rejected`].
pub fn parse(
    text: &str,
    source: &str,
    folder: &Path,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Settings, Rejected> {
    let mut written = document(text).map_err(|problem| Rejected::unread(problem.from_source(source)))?;
    let mut overrides = environment::apply(&mut written, env);
    let mut problems = std::mem::take(&mut overrides.problems);
    let (settings, found) = read(written, folder);
    problems.splice(0..0, found.into_iter().map(|problem| overrides.attribute(problem, source)));
    if problems.is_empty() { Ok(settings) } else { Err(Rejected { problems, endpoint_files: settings.endpoint_files }) }
}

impl Rejected {
    fn unread(problem: Problem) -> Self {
        Self { problems: vec![problem], endpoint_files: Vec::new() }
    }
}

fn document(text: &str) -> Result<Value, Problem> {
    let mut documents = yaml::documents(text).into_iter();
    let value = documents.next().unwrap_or_else(|| Ok(Value::Object(serde_json::Map::new())))?;
    if value.get("kind").is_some_and(|kind| kind == KIND) {
        let how = "list this file under `endpoints.files` of a settings file";
        return Err(Problem::new("", format!("is an {KIND}, not settings of the router; {how}")));
    }
    match documents.len() {
        0 => Ok(value),
        more => Err(Problem::new("", format!("has {} documents; settings are one, so remove the `---`", more + 1))),
    }
}

/// Settings with defaults in the place of what is wrong, and what is.
fn read(written: Value, folder: &Path) -> (Settings, Vec<Problem>) {
    let mut check = Check::default();
    // Decoded it is the same as nothing: a router alone, which is not what somebody means who writes it.
    if written.get("fleet").is_some_and(Value::is_null) {
        let how = "write `peer` and `lease`, see config/reference.yaml, or remove it: without it the router is alone";
        check.problem("fleet", format!("is empty; {how}"));
    }
    let (raw, form) = decode::<RawSettings>(written);
    let settings = settings(&mut check, &raw.unwrap_or_default(), folder);
    (settings, together(form, check.into_problems()))
}

fn settings(check: &mut Check, raw: &RawSettings, folder: &Path) -> Settings {
    let default = Settings::default();
    let scoring = raw.scoring.as_ref().and_then(|scoring| scoring.address.as_deref());
    let scoring = address(check, "scoring.address", scoring, default.scoring);
    let tls = raw.scoring.as_ref().and_then(|scoring| scoring.tls.as_ref());
    let tls = tls.map(|raw| tls::of_scoring(check, raw, folder));
    let scoring_tls = raw.scoring_tls.as_ref().map(|raw| tls::listener(check, raw, folder));
    let admin = raw.admin.as_ref().and_then(|admin| admin.address.as_deref());
    let admin = address(check, "admin.address", admin, default.admin);
    listeners::apart(check, scoring, scoring_tls.as_ref(), admin);
    let settings = Settings {
        scoring,
        tls,
        scoring_tls,
        admin,
        workers: workers(check, raw.workers.as_ref(), default.workers),
        status_codes: check
            .word("statusCodes", raw.status_codes.as_deref(), &reference::STATUS_CODES)
            .unwrap_or(default.status_codes),
        limits: limits::limits(check, raw.limits.as_ref().unwrap_or(&RawLimits::default()), &default.limits),
        shutdown: shutdown(check, raw.shutdown.as_ref().unwrap_or(&RawShutdown::default()), &default.shutdown),
        endpoint_files: endpoints::files(check, raw, &default.endpoint_files, folder),
        kubernetes: raw
            .endpoints
            .as_ref()
            .and_then(|raw| raw.kubernetes.as_ref())
            .map(|raw| endpoints::kubernetes(check, raw)),
        tokens: tokens(check, raw.tokens.as_ref().unwrap_or(&RawTokens::default()), &default.tokens, folder),
        fleet: raw.fleet.as_ref().map(|raw| fleet::fleet(check, raw, folder)),
        log: log(check, raw.log.as_ref().unwrap_or(&RawLog::default()), &default.log),
    };
    endpoints::secrets(check, &settings);
    fleet::together(check, &settings);
    settings
}

fn address(check: &mut Check, path: &str, given: Option<&str>, default: SocketAddr) -> SocketAddr {
    let Some(given) = given else { return default };
    let what =
        |_| format!("is {}, which is not an IP address and a port, such as `{default}` or `[::]:8080`", quoted(given));
    check.ok(path, given.parse().map_err(what)).unwrap_or(default)
}

fn workers(check: &mut Check, given: Option<&Value>, default: Workers) -> Workers {
    let Some(given) = given else { return default };
    if given == "auto" {
        return Workers::Auto;
    }
    let count = given.as_u64().filter(|count| *count <= MAX_WORKERS);
    let count = count.and_then(|count| usize::try_from(count).ok()).and_then(NonZeroUsize::new);
    if count.is_none() {
        check.problem(
            "workers",
            format!("is {given}, but must be `auto` or a number of threads from 1 to {MAX_WORKERS}"),
        );
    }
    count.map_or(default, Workers::Count)
}

fn time(
    check: &mut Check,
    path: &str,
    given: Option<WrittenDuration>,
    range: RangeInclusive<Duration>,
    default: Duration,
) -> Duration {
    let Some(written) = given else { return default };
    if !range.contains(&written.0) {
        let (least, most) = (WrittenDuration(*range.start()), WrittenDuration(*range.end()));
        check.problem(path, format!("is {written}, but must be between {least} and {most}"));
    }
    written.0
}

fn shutdown(check: &mut Check, raw: &RawShutdown, default: &Shutdown) -> Shutdown {
    let (delay, drain) = (default.unready_delay, default.drain_timeout);
    Shutdown {
        unready_delay: time(check, "shutdown.unreadyDelay", raw.unready_delay, UNREADY_DELAY, delay),
        drain_timeout: time(check, "shutdown.drainTimeout", raw.drain_timeout, DRAIN_TIMEOUT, drain),
    }
}

fn tokens(check: &mut Check, raw: &RawTokens, default: &TokenSettings, folder: &Path) -> TokenSettings {
    let issuer = raw.issuer.clone().unwrap_or_else(|| default.issuer.clone());
    if issuer.is_empty() {
        check.problem("tokens.issuer", "is empty; tokens say who has issued them");
    }
    let previous = raw.previous_key_files.as_deref().unwrap_or_default();
    for (index, _) in previous.iter().enumerate().filter(|(_, file)| file.as_deref().unwrap_or_default().is_empty()) {
        check.problem(&item("tokens.previousKeyFiles", index), "is empty; name a file");
    }
    let signing_secret = raw.signing_secret.clone().filter(|name| !name.is_empty());
    let is_file = |file: &Option<String>| file.as_deref().is_some_and(|file| !file.is_empty());
    if signing_secret.is_some() && (is_file(&raw.signing_key_file) || !previous.is_empty()) {
        let what = "is given beside `signingKeyFile` or `previousKeyFiles`; the keys are in a Secret or in files";
        check.problem("tokens.signingSecret", what);
    }
    TokenSettings {
        signing_secret,
        issuer,
        // Empty is the default, so that it can be written down.
        signing_key_file: raw.signing_key_file.as_ref().filter(|file| !file.is_empty()).map(|file| folder.join(file)),
        previous_key_files: previous.iter().flatten().map(|file| folder.join(file)).collect(),
        lifetime: time(check, "tokens.lifetime", raw.lifetime, LIFETIME, default.lifetime),
    }
}

fn log(check: &mut Check, raw: &RawLog, default: &Log) -> Log {
    let at = |name| field("log", name);
    Log {
        level: check.word(&at("level"), raw.level.as_deref(), &LEVELS).unwrap_or(default.level),
        format: check.word(&at("format"), raw.format.as_deref(), &FORMATS).unwrap_or(default.format),
        access: raw.access.unwrap_or(default.access),
    }
}

#[cfg(test)]
mod tests;
