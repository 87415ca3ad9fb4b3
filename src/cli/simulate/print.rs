//! Outcomes as text.

use std::fmt::Write;
use std::time::Duration;

use super::compare::Variants;
use crate::model::endpoint::{Deployment, ScaleSettings};
use crate::simulate::outcome::{Interval, SimulationOutcome};

/// The number of rows of the table over time.
const ROWS: usize = 24;

/// Formats the outcome of one run.
pub(super) fn outcome(deployment: &Deployment, percent: u8, outcome: &SimulationOutcome, start_seconds: f64) -> String {
    let mut text = format!("{}\n\n", settings(deployment, percent, start_seconds));
    text += "  minute  replicas  asked for  demand  requests  rejected\n";
    for row in rows(&outcome.intervals) {
        let Interval { at, desired, ready, demand, requests, rejected } = row;
        let minute = at.as_secs_f64() / 60.0;
        // Writing to a string does not fail.
        let _ = writeln!(text, "{minute:8.1}{ready:10}{desired:11}{demand:8.1}{requests:10}{rejected:10}");
    }
    let SimulationOutcome { requests, served, rejected, timed_out, unfinished, .. } = outcome;
    let SimulationOutcome { utilization, replica_hours, most, changes, .. } = outcome;
    let _ = write!(
        text,
        "\nrequests {requests}, served {served}, rejected with 503 {rejected} ({:.3} %), timed out with 504 {timed_out}, \
         unfinished at the end {unfinished}\n\
         queue wait p50 {} ms, p95 {} ms, p99 {} ms, longest {} ms\n\
         utilization {:.1} %, most replicas {most}, changes {changes}, replica-hours {replica_hours:.2}\n\n",
        outcome.rejected_share() * 100.0,
        millis(outcome.wait(50)),
        millis(outcome.wait(95)),
        millis(outcome.wait(99)),
        millis(outcome.longest_wait()),
        utilization * 100.0,
    );
    text
}

/// Formats a table with a row for each variant.
pub(super) fn comparison(
    deployment: &Deployment,
    percent: u8,
    variants: &Variants,
    run: impl Fn(&Deployment) -> SimulationOutcome,
) -> String {
    let head =
        ["rejected %", "timed out", "wait p50 ms", "wait p99 ms", "utilization %", "replica-hours", "most", "changes"];
    let columns: Vec<&str> = variants.names.iter().copied().chain(head).collect();
    let mut text = format!(
        "deployment {}, {percent} % of the traffic\n\n| {} |\n|{}\n",
        deployment.name,
        columns.join(" | "),
        "---:|".repeat(columns.len())
    );
    for (values, deployment) in &variants.all {
        let outcome = run(deployment);
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "| {} | {:.3} | {} | {} | {} | {:.1} | {:.2} | {} | {} |",
            values.join(" | "),
            outcome.rejected_share() * 100.0,
            outcome.timed_out,
            millis(outcome.wait(50)),
            millis(outcome.wait(99)),
            outcome.utilization * 100.0,
            outcome.replica_hours,
            outcome.most,
            outcome.changes,
        );
    }
    text.push('\n');
    text
}

fn settings(deployment: &Deployment, percent: u8, start_seconds: f64) -> String {
    let scale = match &deployment.scale_settings {
        ScaleSettings::Fixed { instances } => format!("always {instances} replicas"),
        ScaleSettings::Unmanaged => "1 replica, as nothing says how many".to_owned(),
        ScaleSettings::TargetUtilization(settings) => format!(
            "{} to {} replicas for {} % utilization, which start in {start_seconds} s",
            settings.min_replicas, settings.max_replicas, settings.target_percent
        ),
    };
    let (name, each) = (&deployment.name, deployment.request_settings.max_concurrent_per_instance);
    format!("deployment {name}: {percent} % of the traffic, {scale}; each takes {each} at a time")
}

/// Reduces the intervals to few enough rows: replicas as at the end of each group, demand as its mean.
fn rows(intervals: &[Interval]) -> impl Iterator<Item = Interval> {
    let together = intervals.len().div_ceil(ROWS).max(1);
    intervals.chunks(together).map(|chunk| {
        let last = chunk.last().copied().unwrap_or_default();
        Interval {
            demand: chunk.iter().map(|interval| interval.demand).sum::<f64>() / chunk.len() as f64,
            requests: chunk.iter().map(|interval| interval.requests).sum(),
            rejected: chunk.iter().map(|interval| interval.rejected).sum(),
            ..last
        }
    })
}

fn millis(duration: Duration) -> u128 {
    duration.as_millis()
}
