//! Recorded requests, from an access log of the router or from a table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::load::SimulatedArrival;

/// The first line of a table.
const HEADER: &str = "at_ms,service_ms";
/// The longest simulated time: a week.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A recorded request.
#[derive(Debug, Clone, PartialEq)]
pub struct Traced {
    /// When the request arrived, and how long a replica worked on it.
    pub arrival: SimulatedArrival,
    /// The deployment that served the request; empty where that is unknown.
    pub deployment: String,
}

/// The fields of an access log line that are used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TraceLine {
    time_generated: String,
    #[serde(default)]
    endpoint_name: String,
    #[serde(default)]
    deployment_name: String,
    model_status_code: Option<u16>,
    total_duration_ms: f64,
    #[serde(default)]
    queue_duration_ms: f64,
}

/// Returns the requests of a text in the order of their arrival, the first one at 0. The text has lines of the access
/// log, of which those of `endpoint` are used, or is a table `at_ms,service_ms` with a line for each request, whose
/// times may begin anywhere. Requests that no replica answered get the mean service time of the others.
///
/// # Errors
///
/// What cannot be read, and how it should look; or that the trace is longer than [`LONGEST`].
pub fn parse(text: &str, endpoint: &str) -> Result<Vec<Traced>, String> {
    // Spreadsheets begin their output with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let columns = first.replace([' ', '\t', '\r'], "");
    let mut traced = match columns.strip_prefix(HEADER) {
        Some("") => table(text)?,
        Some(_) => return Err(format!("its first line must be `{HEADER}` and no more, not `{}`", first.trim())),
        None => log(text, endpoint)?,
    };
    traced.sort_by_key(|traced| traced.arrival.at);
    let begin = traced.first().map(|first| first.arrival.at).unwrap_or_default();
    traced.iter_mut().for_each(|traced| traced.arrival.at -= begin);
    let last = traced.iter().map(|traced| traced.arrival.at.max(traced.arrival.service)).max().unwrap_or_default();
    if last > LONGEST {
        return Err(
            "spans more than a week, or a request takes that long: leave out what is too early, too late or too \
                    long; times are milliseconds"
                .to_owned(),
        );
    }
    Ok(traced)
}

fn table(text: &str) -> Result<Vec<Traced>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).skip(1);
    let row = |(index, line): (usize, &str)| {
        let wrong = || format!("line {}: `{line}` is not two numbers of milliseconds, as `{HEADER}` says", index + 1);
        let (at, service) = line.split_once(',').ok_or_else(wrong)?;
        let millis = |text: &str| {
            let value: f64 = text.trim().parse().ok()?;
            Duration::try_from_secs_f64(value / 1000.0).ok()
        };
        let (at, service) = millis(at).zip(millis(service)).ok_or_else(wrong)?;
        Ok(Traced { arrival: SimulatedArrival { at, service }, deployment: String::new() })
    };
    let rows: Vec<Traced> = lines.map(row).collect::<Result<_, String>>()?;
    if rows.is_empty() { Err("has no request below its first line".to_owned()) } else { Ok(rows) }
}

fn log(text: &str, endpoint: &str) -> Result<Vec<Traced>, String> {
    // The access log shares its stream with the router's own log.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<TraceLine>(line).ok());
    let lines: Vec<(SystemTime, TraceLine)> = lines
        .filter(|line| line.endpoint_name.eq_ignore_ascii_case(endpoint))
        .filter_map(|line| {
            let total = Duration::try_from_secs_f64(line.total_duration_ms / 1000.0).ok()?;
            // A line is written when its request has ended.
            Some((humantime::parse_rfc3339(&line.time_generated).ok()?.checked_sub(total)?, line))
        })
        .collect();
    if lines.is_empty() {
        return Err(format!(
            "has no request of the endpoint {endpoint}; it must be the router's access log, or begin with `{HEADER}`"
        ));
    }
    let held = |line: &TraceLine| (line.total_duration_ms - line.queue_duration_ms).max(0.0) / 1000.0;
    let answered: Vec<f64> =
        lines.iter().filter(|(_, line)| line.model_status_code.is_some()).map(|(_, line)| held(line)).collect();
    let mean = answered.iter().sum::<f64>() / answered.len().max(1) as f64;
    let traced = lines.into_iter().map(|(at, line)| {
        let seconds = if line.model_status_code.is_some() { held(&line) } else { mean };
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Traced {
            arrival: SimulatedArrival { at, service: Duration::from_secs_f64(seconds) },
            deployment: line.deployment_name,
        }
    });
    Ok(traced.collect())
}

#[cfg(test)]
mod tests;
