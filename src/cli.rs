//! Layer 5: the commands. Logs go to stderr, results to stdout.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{App, AppEnvironment, BuildError, EndpointSource};
use crate::config::{self, ClientListener, LogFormat, LogLevel, LogSettings, RouterSettings};
use crate::control::document_files::{DocumentFiles, DocumentSnapshot, EnvLookup, ScanScope};
use crate::control::fleet::FleetParts;
use crate::control::{certificates, signing_keys};
use crate::model::crd;
use crate::model::problem::Problem;
use crate::{guard, model_server};

mod admin;
mod cluster;
mod compare;
mod demo;
mod keys;
mod ready;
mod simulate;

/// The command succeeded.
const DONE: u8 = 0;
/// The command failed while running, or `check` found problems.
const FAILED: u8 = 1;
/// The command line is wrong; clap uses the same code.
const WRONG_USAGE: u8 = 2;
/// The configuration is invalid; `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// Routes inference requests: authenticates clients, splits traffic between deployments, never exceeds the concurrency
/// of a replica, and queues briefly.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = "Start with: inference-router demo")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run three deployments of a sample model behind the router on this machine; no file is needed
    #[command(after_help = "Example: inference-router demo --port 8080")]
    Demo(demo::DemoOptions),
    /// Run the router
    #[command(after_help = "Example: inference-router serve --config config/quickstart.yaml\n\n\
        Each key can be overridden by a variable: INFERENCE_ROUTER__SCORING__ADDRESS=127.0.0.1:8081\n\
        SIGTERM or Ctrl-C stops it in order; a second one at once.\n\
        Exit codes: 0 done, 1 failed while running, 2 wrong usage, 78 bad configuration.")]
    Serve {
        /// The settings file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check settings files and endpoint documents, and list every problem
    #[command(after_help = "Example: inference-router check config/quickstart.yaml config/quickstart/\n\n\
        A settings file's endpoints are checked with it. Exit codes: 0 no problems, 1 problems, 2 wrong usage.")]
    Check {
        /// Settings files, endpoint files, or folders of endpoint files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Make and replace keys of endpoints, and the key that the router signs its tokens with
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Make a token for an endpoint with `authMode: aml_token`
    #[command(after_help = "Example: inference-router token --config router.yaml --endpoint my-endpoint --ttl 30m\n\
        In a cluster: inference-router token --endpoint my-endpoint -n team-a\n\n\
        Callers who have one of the endpoint's keys get one from the router: POST /api/v1/endpoint/my-endpoint/token")]
    Token(keys::TokenCommand),
    /// Send a request to an endpoint in a cluster, with the credential that your kubeconfig gives you
    #[command(after_help = "Examples:\n\
        inference-router invoke --endpoint my-endpoint -n team-a --request-file request.json\n\
        inference-router invoke --endpoint my-endpoint -n team-a --request-file - --deployment-name green\n\n\
        The answer is on standard output; exit code 1 where it is not one of 2xx.")]
    Invoke(cluster::InvokeCommand),
    /// Print how a shadow's answers compare with the live ones: statuses, times, and whether they agree
    #[command(after_help = "Examples:\n\
        inference-router compare --endpoint my-endpoint\n\
        inference-router compare --endpoint my-endpoint --admin http://127.0.0.1:9090 --json\n\
        inference-router compare --endpoint my-endpoint -n team-a\n\n\
        The endpoint needs `mirrorTraffic` and `mirrorComparison`.")]
    Compare(compare::CompareCommand),
    /// Ask a router whether it is ready; exit code 0 if it is, otherwise 1
    #[command(after_help = "Example: inference-router ready --admin http://127.0.0.1:9090")]
    Ready(ready::ReadyCommand),
    /// Try scale settings in virtual time: replicas, queue waits, and the share of rejected requests
    #[command(after_help = "Examples:\n\
        inference-router simulate --endpoint my-endpoint.yaml --rps 20 --service-ms 100..400\n\
        inference-router simulate --endpoint my-endpoint.yaml --rps 5..50 --shape sine --plot out.svg\n\
        inference-router simulate --endpoint my-endpoint.yaml --trace access.log --compare target=50,70,90 max=4,8\n\n\
        Requests go through the same code that admits, picks and scales in the router.")]
    Simulate(simulate::SimulateOptions),
    /// Print the custom resource definition of `OnlineEndpoint`
    #[command(after_help = "Example: inference-router crd | kubectl apply --server-side -f -")]
    Crd,
    /// Run the sample model server: a linear regression that behaves like Azure's azmlinfsrv
    #[command(after_help = "Example: inference-router model-server --port 5001 --concurrency 2 --delay-ms 100\n\
        Then:    curl -d '{\"data\": [[1,2,3,4,5,6,7,8,9,10]]}' http://127.0.0.1:5001/score")]
    ModelServer(ModelServer),
    /// Stop a command when this process's standard input is closed. The router starts local models with it.
    #[command(hide = true)]
    Guard {
        #[arg(long)]
        grace_ms: u64,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct ModelServer {
    /// Port to listen on; 0 takes a free one, which is printed
    #[arg(long)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Scores that run at once; more are queued, as in gunicorn
    #[arg(long, default_value = "1")]
    concurrency: NonZeroUsize,
    /// How long a score takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Share of scores that fail with 500, 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    fail_rate: f64,
    /// Added to each prediction, to simulate another version of the model
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    shift: f64,
    /// Answer with server-sent events, one per row
    #[arg(long)]
    stream: bool,
    /// Name of the deployment, sent as x-model-name
    #[arg(long)]
    name: Option<String>,
}

/// A message for the user, and the exit code.
struct Failed(String, u8);

impl From<String> for Failed {
    fn from(what: String) -> Self {
        Self(what, FAILED)
    }
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Demo(options) => options.run(),
            Command::Serve { config } => serve(&config),
            Command::Check { files } => check(&files),
            Command::Keys(keys) => keys.run(),
            Command::Token(token) => token.run(),
            Command::Invoke(options) => options.run(),
            Command::Compare(options) => options.run(),
            Command::Ready(options) => options.run(),
            Command::Simulate(options) => options.run(),
            Command::Crd => print(&crd::to_yaml()),
            Command::ModelServer(options) => options.run(),
            Command::Guard { grace_ms, command } => guard::run(Duration::from_millis(grace_ms), command),
        }
    }
}

fn serve(config: &Path) -> ExitCode {
    let settings = match config::load(config, std::env::vars()) {
        Ok(settings) => settings,
        Err(rejected) => {
            let found = load(rejected.endpoint_files, environment()).problems;
            return report(&[rejected.problems, found].concat(), BAD_CONFIGURATION);
        }
    };
    start_log(&settings.log);
    let source = match &settings.kubernetes {
        Some(cluster) => EndpointSource::Cluster(cluster.clone()),
        None => EndpointSource::Files(settings.endpoint_files.clone()),
    };
    match build(settings, source) {
        Ok(app) => run(app),
        Err(code) => code,
    }
}

/// Builds an app with the environment of this process. Problems are reported here.
fn build(settings: RouterSettings, source: EndpointSource) -> Result<App, ExitCode> {
    let surroundings = AppEnvironment {
        endpoint_source: source,
        environment: environment(),
        executable: executable().map_err(|error| fail(&error))?,
        access_log: Box::new(std::io::stderr()),
    };
    App::build(settings, surroundings).map_err(|error| match error {
        BuildError::Configuration(problems) => report(&problems, BAD_CONFIGURATION),
        error => fail(&error),
    })
}

/// Runs an app until SIGTERM or SIGINT. A second signal ends the process at once.
fn run(app: App) -> ExitCode {
    run_until(app, terminated())
}

/// Completes on SIGTERM or SIGINT. From then on, a second signal ends the process at once.
async fn terminated() {
    if let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::warn!("received a second signal; exiting at once");
            std::process::exit(FAILED.into());
        });
    }
}

/// Runs an app until `stop` completes.
fn run_until(app: App, stop: impl Future<Output = ()>) -> ExitCode {
    let listeners = [
        ("scoring", app.scoring_address()),
        ("scoring (TLS)", app.scoring_tls_address()),
        ("admin", app.admin_address()),
    ];
    for (what, address) in listeners {
        if let Ok(address) = address {
            tracing::info!(%address, "{what} listener");
        }
    }
    match app.run(stop) {
        Ok(()) => ExitCode::from(DONE),
        Err(error) => fail(&error),
    }
}

fn check(files: &[PathBuf]) -> ExitCode {
    let mut problems = Vec::new();
    let mut places = Vec::new();
    for file in files {
        if is_settings(file) {
            match config::load(file, std::iter::empty()) {
                Ok(settings) => {
                    let source = file.display().to_string();
                    let signing = signing_keys::check_key_files(&settings.tokens);
                    let endpoints = load(settings.endpoint_files.clone(), environment()).endpoints;
                    let missing = signing_keys::missing_key_problems(&settings.tokens, &endpoints);
                    let fleet = settings.fleet.iter().flat_map(FleetParts::check_files);
                    let found = certificates_of(&settings).chain(signing).chain(missing).chain(fleet);
                    problems.extend(found.map(|problem| problem.from_source(&source)));
                    places.extend(settings.endpoint_files.iter().cloned());
                }
                Err(rejected) => {
                    problems.extend(rejected.problems);
                    places.extend(rejected.endpoint_files);
                }
            }
        } else {
            places.push(file.clone());
        }
    }
    // A file that is named twice, by itself and by a settings file, is one file.
    let mut places: Vec<PathBuf> = places.into_iter().map(|place| place.canonicalize().unwrap_or(place)).collect();
    places.sort();
    places.dedup();
    let loaded = load(places, environment());
    let count = loaded.endpoints.len();
    problems.extend(loaded.problems);
    let (lines, code) = if problems.is_empty() {
        (vec![format!("no problems; endpoints: {count}")], DONE)
    } else {
        (problems.iter().map(ToString::to_string).collect(), FAILED)
    };
    // A reader that closes the pipe early is no failure.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
    ExitCode::from(code)
}

/// Returns problems of the files that the TLS settings of listeners name.
fn certificates_of(settings: &RouterSettings) -> impl Iterator<Item = Problem> {
    let check = |ClientListener { tls_path: path, tls, .. }: ClientListener<'_>| {
        tls.map(|tls| certificates::check_tls_files(path, tls))
    };
    settings.client_listeners().filter_map(check).flatten()
}

/// Returns the environment variables of this process.
fn environment() -> EnvLookup {
    Arc::new(|name| std::env::var(name).ok())
}

/// Reads the endpoints in `places`, with their problems.
fn load(places: Vec<PathBuf>, environment: EnvLookup) -> DocumentSnapshot {
    let mut files = DocumentFiles::new(places, environment);
    files.load(&ScanScope::All, Instant::now()).unwrap_or_default()
}

/// Endpoint documents name their kind. A file without a kind is a settings file.
fn is_settings(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    file.is_file() && !text.lines().any(|line| line.starts_with("kind:") || line.starts_with("apiVersion:"))
}

impl ModelServer {
    fn options(&self) -> model_server::ModelServerOptions {
        model_server::ModelServerOptions {
            address: SocketAddr::from((self.host, self.port)),
            concurrency: self.concurrency.get(),
            delay: Duration::from_millis(self.delay_ms),
            fail_rate: self.fail_rate,
            shift: self.shift,
            is_streaming: self.stream,
            model_name: self.name.clone(),
        }
    }

    fn run(self) -> ExitCode {
        start_log(&LogSettings { level: LogLevel::Info, format: LogFormat::Text, access: false });
        let options = self.options();
        let served = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            runtime.block_on(async {
                let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
                let server = model_server::SampleModelServer::bind(options).await?;
                println!("model server on http://{}", server.local_addr());
                let stop = async move {
                    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                };
                server.run(stop).await
            })
        });
        match served {
            Ok(()) => ExitCode::from(DONE),
            Err(error) => {
                let address = SocketAddr::from((self.host, self.port));
                fail(&std::io::Error::new(error.kind(), format!("the model server cannot run on {address}: {error}")))
            }
        }
    }
}

/// Parses a share from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "not a number from 0 to 1".to_owned())
}

/// Returns the path of the router's own program. The link stays valid when the file is replaced while the router runs.
fn executable() -> std::io::Result<PathBuf> {
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { Ok(link) } else { std::env::current_exe() }
}

fn start_log(log: &LogSettings) {
    let level = match log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    // A line that cannot be written is lost. An error message on standard error would end the router where that is
    // closed.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_max_level(level).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}

/// Writes a result to standard output.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that closes the pipe early is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            fail(&std::io::Error::new(error.kind(), format!("standard output cannot be written: {error}")))
        }
        _ => ExitCode::from(DONE),
    }
}

fn report(problems: &[Problem], code: u8) -> ExitCode {
    // `eprintln!` panics when standard error is closed, so it is not used here.
    problems.iter().for_each(|problem| drop(writeln!(std::io::stderr(), "{problem}")));
    ExitCode::from(code)
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "inference-router: {error}");
    ExitCode::from(FAILED)
}
