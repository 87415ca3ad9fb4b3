//! Settings of the router process: a YAML file with environment variables over it, validated once, with all problems
//! reported at once.

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
use crate::model::decode::decode;
use crate::model::duration::HumanDuration;
use crate::model::fleet::FleetSettings;
use crate::model::problem::{Problem, field_path, item_path, merge_problems, quoted};
use crate::model::problem_collector::ProblemCollector;
use crate::model::resource::KIND;
use crate::model::router_settings::{KubernetesSettings, Limits, ShutdownSettings, StatusCodes, TokenSettings};
use crate::model::tls::ServerTls;
pub use listeners::{ClientListener, SCORING_LISTENER, SCORING_TLS_LISTENER, TlsListener};
pub use reference::{SettingDescription, reference_yaml, setting_keys};

use raw::{RawLimits, RawLog, RawSettings, RawShutdown, RawTokens};

/// Settings of the router process, after validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterSettings {
    /// Address of the scoring listener; with port 0 the system chooses one.
    pub scoring: SocketAddr,
    /// TLS on the scoring listener; `None`: plain HTTP.
    pub tls: Option<ServerTls>,
    /// A second scoring listener with TLS.
    pub scoring_tls: Option<TlsListener>,
    /// Address of the admin listener.
    pub admin: SocketAddr,
    /// Number of data-plane threads.
    pub workers: WorkerCount,
    /// Status codes of the router's own errors.
    pub status_codes: StatusCodes,
    /// Limits that protect the router from its clients.
    pub limits: Limits,
    /// How the router shuts down.
    pub shutdown: ShutdownSettings,
    /// Files and folders with endpoint documents; absolute paths, except in the default. Empty with `kubernetes`.
    pub endpoint_files: Vec<PathBuf>,
    /// The cluster that endpoints come from; `None`: they come from files.
    pub kubernetes: Option<KubernetesSettings>,
    /// Settings of the router's own tokens.
    pub tokens: TokenSettings,
    /// The fleet that the router is a member of; `None`: it is alone.
    pub fleet: Option<FleetSettings>,
    /// What is logged.
    pub log: LogSettings,
}

/// Number of data-plane threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerCount {
    /// One thread for each CPU that this process may use.
    Auto,
    /// A fixed number.
    Count(NonZeroUsize),
}

/// Formats the number as in the file.
impl fmt::Display for WorkerCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The lowest level that is logged.
    pub level: LogLevel,
    /// The format of a log line.
    pub format: LogFormat,
    /// Whether each request gets an access log line.
    pub access: bool,
}

/// Level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    Json,
    /// Plain text, for people.
    Text,
}

const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const LOG_FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            scoring: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            tls: None,
            scoring_tls: None,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            workers: WorkerCount::Auto,
            status_codes: StatusCodes::default(),
            limits: Limits::default(),
            shutdown: ShutdownSettings::default(),
            endpoint_files: vec![PathBuf::from("endpoints/")],
            kubernetes: None,
            tokens: TokenSettings::default(),
            fleet: None,
            log: LogSettings { level: LogLevel::Info, format: LogFormat::Json, access: true },
        }
    }
}

/// The largest number of threads.
const MAX_WORKERS: u64 = 1024;
const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
const UNREADY_DELAY_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// Lifetime of tokens. The shortest one leaves time to use a token.
const TOKEN_LIFETIME_RANGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);
const DRAIN_TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);

/// Settings that cannot be used.
#[derive(Debug)]
pub struct InvalidSettings {
    /// All problems of the file and the variables.
    pub problems: Vec<Problem>,
    /// Where endpoints would come from, as far as known, so that their problems can be reported together with these.
    pub endpoint_files: Vec<PathBuf>,
}

/// Reads the settings file at `path`, with the variables of `env` that begin with `INFERENCE_ROUTER__` over it.
///
/// # Errors
///
/// [`InvalidSettings`].
pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>) -> Result<RouterSettings, InvalidSettings> {
    let source = path.display().to_string();
    let cannot_read = |error: std::io::Error| {
        InvalidSettings::unreadable(
            Problem::new("", format!("cannot be read as a settings file: {error}")).from_source(&source),
        )
    };
    let text = std::fs::read_to_string(path).map_err(cannot_read)?;
    let absolute = std::path::absolute(path).map_err(cannot_read)?;
    parse(&text, &source, absolute.parent().unwrap_or(&absolute), env)
}

/// Parses the settings in `text`, with the variables of `env` over them. Problems name `source`. Relative paths are
/// relative to `folder`.
///
/// # Errors
///
/// [`InvalidSettings`].
pub fn parse(
    text: &str,
    source: &str,
    folder: &Path,
    env: impl Iterator<Item = (String, String)>,
) -> Result<RouterSettings, InvalidSettings> {
    let mut written =
        single_document(text).map_err(|problem| InvalidSettings::unreadable(problem.from_source(source)))?;
    let mut overrides = environment::apply_variables(&mut written, env);
    let mut problems = std::mem::take(&mut overrides.problems);
    let (settings, found) = decode_settings(written, folder);
    problems.splice(0..0, found.into_iter().map(|problem| overrides.attribute_problem(problem, source)));
    if problems.is_empty() {
        Ok(settings)
    } else {
        Err(InvalidSettings { problems, endpoint_files: settings.endpoint_files })
    }
}

impl InvalidSettings {
    fn unreadable(problem: Problem) -> Self {
        Self { problems: vec![problem], endpoint_files: Vec::new() }
    }
}

fn single_document(text: &str) -> Result<Value, Problem> {
    let mut documents = yaml::parse_documents(text).into_iter();
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

/// Returns the settings with defaults in place of invalid values, and all problems.
fn decode_settings(written: Value, folder: &Path) -> (RouterSettings, Vec<Problem>) {
    let mut check = ProblemCollector::default();
    // An empty section decodes like a missing one, which would be a router that is alone. That is not what a user means
    // who writes it.
    if written.get("fleet").is_some_and(Value::is_null) {
        let how = "write `peer` and `lease`, see config/reference.yaml, or remove it: without it the router is alone";
        check.report("fleet", format!("is empty; {how}"));
    }
    let (raw, form) = decode::<RawSettings>(written);
    let settings = check_settings(&mut check, &raw.unwrap_or_default(), folder);
    (settings, merge_problems(form, check.into_problems()))
}

fn check_settings(check: &mut ProblemCollector, raw: &RawSettings, folder: &Path) -> RouterSettings {
    let default = RouterSettings::default();
    let scoring = raw.scoring.as_ref().and_then(|scoring| scoring.address.as_deref());
    let scoring = parse_socket_address(check, "scoring.address", scoring, default.scoring);
    let tls = raw.scoring.as_ref().and_then(|scoring| scoring.tls.as_ref());
    let tls = tls.map(|raw| tls::scoring_tls(check, raw, folder));
    let scoring_tls = raw.scoring_tls.as_ref().map(|raw| tls::tls_listener(check, raw, folder));
    let admin = raw.admin.as_ref().and_then(|admin| admin.address.as_deref());
    let admin = parse_socket_address(check, "admin.address", admin, default.admin);
    listeners::check_distinct_ports(check, scoring, scoring_tls.as_ref(), admin);
    let settings = RouterSettings {
        scoring,
        tls,
        scoring_tls,
        admin,
        workers: check_workers(check, raw.workers.as_ref(), default.workers),
        status_codes: check
            .keyword("statusCodes", raw.status_codes.as_deref(), &reference::STATUS_CODE_KEYWORDS)
            .unwrap_or(default.status_codes),
        limits: limits::check_limits(check, raw.limits.as_ref().unwrap_or(&RawLimits::default()), &default.limits),
        shutdown: check_shutdown(check, raw.shutdown.as_ref().unwrap_or(&RawShutdown::default()), &default.shutdown),
        endpoint_files: endpoints::endpoint_files(check, raw, &default.endpoint_files, folder),
        kubernetes: raw
            .endpoints
            .as_ref()
            .and_then(|raw| raw.kubernetes.as_ref())
            .map(|raw| endpoints::kubernetes_settings(check, raw)),
        tokens: check_tokens(check, raw.tokens.as_ref().unwrap_or(&RawTokens::default()), &default.tokens, folder),
        fleet: raw.fleet.as_ref().map(|raw| fleet::fleet_settings(check, raw, folder)),
        log: check_log(check, raw.log.as_ref().unwrap_or(&RawLog::default()), &default.log),
    };
    endpoints::check_secrets(check, &settings);
    fleet::check_combined(check, &settings);
    settings
}

fn parse_socket_address(
    check: &mut ProblemCollector,
    path: &str,
    given: Option<&str>,
    default: SocketAddr,
) -> SocketAddr {
    let Some(given) = given else { return default };
    let what =
        |_| format!("is {}, which is not an IP address and a port, such as `{default}` or `[::]:8080`", quoted(given));
    check.ok_or_report(path, given.parse().map_err(what)).unwrap_or(default)
}

fn check_workers(check: &mut ProblemCollector, given: Option<&Value>, default: WorkerCount) -> WorkerCount {
    let Some(given) = given else { return default };
    if given == "auto" {
        return WorkerCount::Auto;
    }
    let count = given.as_u64().filter(|count| *count <= MAX_WORKERS);
    let count = count.and_then(|count| usize::try_from(count).ok()).and_then(NonZeroUsize::new);
    if count.is_none() {
        check.report(
            "workers",
            format!("is {given}, but must be `auto` or a number of threads from 1 to {MAX_WORKERS}"),
        );
    }
    count.map_or(default, WorkerCount::Count)
}

fn duration_in_range(
    check: &mut ProblemCollector,
    path: &str,
    given: Option<HumanDuration>,
    range: RangeInclusive<Duration>,
    default: Duration,
) -> Duration {
    let Some(written) = given else { return default };
    if !range.contains(&written.0) {
        let (least, most) = (HumanDuration(*range.start()), HumanDuration(*range.end()));
        check.report(path, format!("is {written}, but must be between {least} and {most}"));
    }
    written.0
}

fn check_shutdown(check: &mut ProblemCollector, raw: &RawShutdown, default: &ShutdownSettings) -> ShutdownSettings {
    let (delay, drain) = (default.unready_delay, default.drain_timeout);
    ShutdownSettings {
        unready_delay: duration_in_range(check, "shutdown.unreadyDelay", raw.unready_delay, UNREADY_DELAY_RANGE, delay),
        drain_timeout: duration_in_range(check, "shutdown.drainTimeout", raw.drain_timeout, DRAIN_TIMEOUT_RANGE, drain),
    }
}

fn check_tokens(
    check: &mut ProblemCollector,
    raw: &RawTokens,
    default: &TokenSettings,
    folder: &Path,
) -> TokenSettings {
    let issuer = raw.issuer.clone().unwrap_or_else(|| default.issuer.clone());
    if issuer.is_empty() {
        check.report("tokens.issuer", "is empty; tokens say who has issued them");
    }
    let previous = raw.previous_key_files.as_deref().unwrap_or_default();
    for (index, _) in previous.iter().enumerate().filter(|(_, file)| file.as_deref().unwrap_or_default().is_empty()) {
        check.report(&item_path("tokens.previousKeyFiles", index), "is empty; name a file");
    }
    let signing_secret = raw.signing_secret.clone().filter(|name| !name.is_empty());
    let is_file = |file: &Option<String>| file.as_deref().is_some_and(|file| !file.is_empty());
    if signing_secret.is_some() && (is_file(&raw.signing_key_file) || !previous.is_empty()) {
        let what = "is given beside `signingKeyFile` or `previousKeyFiles`; the keys are in a Secret or in files";
        check.report("tokens.signingSecret", what);
    }
    TokenSettings {
        signing_secret,
        issuer,
        // Empty is the default, so that the default can be written down.
        signing_key_file: raw.signing_key_file.as_ref().filter(|file| !file.is_empty()).map(|file| folder.join(file)),
        previous_key_files: previous.iter().flatten().map(|file| folder.join(file)).collect(),
        lifetime: duration_in_range(check, "tokens.lifetime", raw.lifetime, TOKEN_LIFETIME_RANGE, default.lifetime),
    }
}

fn check_log(check: &mut ProblemCollector, raw: &RawLog, default: &LogSettings) -> LogSettings {
    let at = |name| field_path("log", name);
    LogSettings {
        level: check.keyword(&at("level"), raw.level.as_deref(), &LOG_LEVELS).unwrap_or(default.level),
        format: check.keyword(&at("format"), raw.format.as_deref(), &LOG_FORMATS).unwrap_or(default.format),
        access: raw.access.unwrap_or(default.access),
    }
}

#[cfg(test)]
mod tests;
