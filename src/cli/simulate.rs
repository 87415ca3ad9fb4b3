//! `simulate`: tries the scale settings of a deployment in virtual time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, ValueEnum};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{BAD_CONFIGURATION, FAILED, Failed};
use crate::control::documents;
use crate::model::endpoint::{Deployment, Endpoint};
use crate::policy::split::Split;
use crate::simulate::Scenario;
use crate::simulate::load::{ArrivalRate, OfferedLoad, Pattern, Service, Shape};
use crate::simulate::outcome::SimulationOutcome;
use crate::simulate::trace::{self, Traced};

mod compare;
mod plot;
mod print;

use compare::Variants;

#[derive(Debug, Args)]
#[command(next_line_help = true, group = ArgGroup::new("load").required(true))]
pub(super) struct SimulateOptions {
    /// The endpoint document
    #[arg(long, value_name = "FILE")]
    endpoint: PathBuf,
    /// Recorded requests: an access log of the router, or a table that begins with `at_ms,service_ms`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rps", "service_ms", "shape", "even"], group = "load")]
    trace: Option<PathBuf>,
    /// Requests per second: one number, or two, as `5..50`, for shapes that change between them
    #[arg(long, value_name = "N|N..M", value_parser = rate, group = "load")]
    rps: Option<(f64, f64)>,
    /// How the rate changes over time; `ramp` if `--rps` has two numbers
    #[arg(long, value_enum)]
    shape: Option<Form>,
    /// Evenly spaced requests, instead of random ones
    #[arg(long)]
    even: bool,
    /// How long a replica works on a request: `250`, `100..400`, `exponential:250` or `long-tail:250` (the mean)
    #[arg(long, value_name = "MS", default_value = "100", value_parser = service)]
    service_ms: Service,
    /// Seconds from asking for a replica until it takes requests
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    start_seconds: f64,
    /// Simulated minutes; default: 60, or the length of the trace
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    minutes: Option<f64>,
    /// Seed of the random requests
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Settings to compare: `target=50,70,90`, `min=`, `max=`, `concurrent=`, `queue-ms=`; each value with each
    #[arg(long, value_name = "NAME=VALUE,…", num_args = 1.., conflicts_with = "plot", value_parser = compare::axis)]
    compare: Vec<compare::Axis>,
    /// Write an SVG drawing of replicas, demand and rejections over time
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Steady,
    Step,
    Ramp,
    Spike,
    Sine,
    OnOff,
}

/// One deployment, and the requests that it gets.
struct Part<'e> {
    deployment: &'e Deployment,
    index: usize,
    percent: u8,
}

impl SimulateOptions {
    pub(super) fn run(self) -> ExitCode {
        match self.simulate() {
            Ok(text) => super::print(&text),
            Err(Failed(what, code)) => {
                eprintln!("{what}");
                ExitCode::from(code)
            }
        }
    }

    fn simulate(&self) -> Result<String, Failed> {
        let endpoint = read(&self.endpoint)?;
        let traced = match &self.trace {
            None => Vec::new(),
            Some(path) => traced(path, &endpoint)?,
        };
        let weights = endpoint.deployments.iter().zip(&endpoint.traffic).enumerate();
        let parts: Vec<Part<'_>> = weights
            .map(|(index, (deployment, percent))| Part { deployment, index, percent: *percent })
            .filter(|part| part.percent > 0 || traced.iter().any(|traced| part.is_named(traced)))
            .collect();
        if parts.is_empty() {
            let what = format!("no deployment of {} has traffic; give one a weight in `traffic`", endpoint.name);
            return Err(Failed(what, BAD_CONFIGURATION));
        }
        let time = self.time(&traced);
        let split = Split::new(&endpoint.traffic);
        let mut text = String::new();
        let mut runs = Vec::new();
        for part in &parts {
            let run = |deployment: &Deployment| self.run_part(deployment, part, &split, &traced, time);
            if self.compare.is_empty() {
                let outcome = run(part.deployment);
                text += &print::outcome(part.deployment, part.percent, &outcome, self.start_seconds);
                runs.push((part.deployment, outcome));
            } else {
                let variants = Variants::parse_setting(part.deployment, &self.compare)
                    .map_err(|what| Failed(format!("--compare: {what}"), super::WRONG_USAGE))?;
                text += &print::comparison(part.deployment, part.percent, &variants, run);
            }
        }
        if let Some(path) = &self.plot {
            let drawn = plot::draw(&runs).map_err(|error| Failed(format!("nothing can be drawn: {error}"), FAILED))?;
            std::fs::write(path, drawn)
                .map_err(|error| Failed(format!("{} cannot be written: {error}", path.display()), FAILED))?;
        }
        Ok(text)
    }

    fn time(&self, traced: &[Traced]) -> Duration {
        let whole = match traced.last() {
            // The last request has to be finished too.
            Some(last) => last.arrival.at + last.arrival.service + Duration::from_secs(1),
            None => Duration::from_secs(3600),
        };
        self.minutes.map_or(whole, |minutes| Duration::from_secs_f64(minutes * 60.0))
    }

    fn run_part(
        &self,
        deployment: &Deployment,
        part: &Part<'_>,
        split: &Split,
        traced: &[Traced],
        time: Duration,
    ) -> SimulationOutcome {
        let scenario = Scenario {
            requests: deployment.request_settings.clone(),
            scale: deployment.scale_settings.clone(),
            start: Duration::from_secs_f64(self.start_seconds),
            time,
            epoch: Instant::now(),
        };
        // Each deployment draws the same random numbers for all requests, and takes its own requests.
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_add(1));
        let mut is_its = || split.choose(&mut rng) == Some(part.index);
        match self.rps {
            Some((low, high)) => {
                let shape = self.shape.map(Shape::from);
                let shape = shape.unwrap_or(if low == high { Shape::Steady } else { Shape::Ramp });
                let pattern = if self.even { Pattern::Even } else { Pattern::Random };
                let load =
                    OfferedLoad::new(ArrivalRate { low, high, shape }, pattern, self.service_ms, time, self.seed);
                scenario.run(load.filter(|_| is_its()))
            }
            None => {
                let its =
                    |traced: &&Traced| if traced.deployment.is_empty() { is_its() } else { part.is_named(traced) };
                scenario.run(traced.iter().filter(its).map(|traced| traced.arrival))
            }
        }
    }
}

impl Part<'_> {
    fn is_named(&self, traced: &Traced) -> bool {
        self.deployment.name.matches(&traced.deployment)
    }
}

impl From<Form> for Shape {
    fn from(form: Form) -> Self {
        match form {
            Form::Steady => Self::Steady,
            Form::Step => Self::Step,
            Form::Ramp => Self::Ramp,
            Form::Spike => Self::Spike,
            Form::Sine => Self::Sine,
            Form::OnOff => Self::OnOff,
        }
    }
}

/// Returns the only endpoint of a document.
fn read(path: &Path) -> Result<Endpoint, Failed> {
    let source = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failed(format!("{source} cannot be read: {error}"), BAD_CONFIGURATION))?;
    let documents::ParsedDocuments { mut endpoints, problems, .. } = documents::parse(&text, &source);
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(Failed(lines.join("\n"), BAD_CONFIGURATION));
    }
    match (endpoints.pop(), endpoints.is_empty()) {
        (Some(endpoint), true) => Ok(endpoint),
        _ => Err(Failed(format!("{source} must have one endpoint"), BAD_CONFIGURATION)),
    }
}

fn traced(path: &Path, endpoint: &Endpoint) -> Result<Vec<Traced>, Failed> {
    let source = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| Failed(format!("{source} cannot be read: {error}"), FAILED))?;
    trace::parse(&text, endpoint.name.as_str()).map_err(|what| Failed(format!("{source}: {what}"), FAILED))
}

/// Parses a positive number.
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("`{text}` is not a number from 0 on"))
}

fn rate(text: &str) -> Result<(f64, f64), String> {
    const MOST: f64 = 1e6;
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    let (low, high) = (number(low)?, number(high)?);
    if low > high || high > MOST {
        return Err("write the lower number first, and not more than a million a second".to_owned());
    }
    Ok((low, high))
}

fn service(text: &str) -> Result<Service, String> {
    let millis = |text: &str| {
        let millis = number(text)?;
        Duration::try_from_secs_f64(millis / 1000.0).map_err(|error| error.to_string())
    };
    if let Some(mean) = text.strip_prefix("exponential:") {
        return millis(mean).map(Service::Exponential);
    }
    if let Some(mean) = text.strip_prefix("long-tail:") {
        return millis(mean).map(Service::LongTail);
    }
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (millis(least)?, millis(most)?);
    if least > most { Err("write the shorter time first".to_owned()) } else { Ok(Service::Uniform(least, most)) }
}

fn seconds(text: &str) -> Result<f64, String> {
    const MOST: f64 = 86_400.0;
    number(text).and_then(|seconds| if seconds <= MOST { Ok(seconds) } else { Err("a day is the most".to_owned()) })
}

fn minutes(text: &str) -> Result<f64, String> {
    const MOST: f64 = trace::LONGEST.as_secs() as f64 / 60.0;
    let fits = |minutes: &f64| *minutes > 0.0 && *minutes <= MOST;
    number(text).ok().filter(fits).ok_or_else(|| "it must be more than 0 and at most a week (10080)".to_owned())
}
