//! `compare`: how the answers of a shadow compare with the live ones, as a table of the router's figures.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;

use super::admin::{self, fetch, visible};
use super::cluster::block_on;
use super::{Failed, print};
use crate::control::cluster::endpoint_client::EndpointClient;
use crate::model::name::Name;
use crate::policy::compare::{EndpointReport, ShareEstimate, SideReport};

#[derive(Debug, Args)]
pub(super) struct CompareCommand {
    /// Name of the endpoint
    #[arg(long, value_name = "NAME", value_parser = super::keys::name)]
    endpoint: Name,
    /// Address of the router's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", value_parser = admin::url)]
    admin: String,
    /// Namespace of the endpoint, in the cluster of the kubeconfig; the router there is asked through the API server
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "admin")]
    namespace: Option<String>,
    /// Namespace of the router in the cluster
    #[arg(long, value_name = "NAMESPACE", default_value = "inference-router", requires = "namespace")]
    router_namespace: String,
    /// Print everything that the router reports, as JSON
    #[arg(long)]
    json: bool,
}

impl CompareCommand {
    pub(super) fn run(self) -> ExitCode {
        match block_on(self.text()) {
            Ok(text) => print(&text),
            Err(Failed(what, code)) => {
                eprintln!("{what}");
                ExitCode::from(code)
            }
        }
    }

    async fn text(self) -> Result<String, Failed> {
        let path = format!("/api/endpoints/{}/comparison", self.endpoint);
        let (place, (status, text)) = match &self.namespace {
            Some(namespace) => {
                let caller = EndpointClient::new(&self.endpoint, Some(namespace), None).await?;
                let place = format!("the router in the namespace {}", self.router_namespace);
                (place, caller.get_from_admin(&self.router_namespace, &path).await?)
            }
            None => {
                let url = format!("{}{path}", self.admin.trim_end_matches('/'));
                let answer = fetch(&url).await.map_err(|what| format!("{what}; `-n` asks the one in a cluster"))?;
                (url, answer)
            }
        };
        if !(200..300).contains(&status) {
            let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let said = said["detail"].as_str().or(said["message"].as_str()).map(str::to_owned);
            let said = said.unwrap_or_else(|| format!("{place} answers {status}; is that a router's admin listener?"));
            return Err(visible(&said).into());
        }
        let about = serde_json::from_str(&text).map_err(|error| {
            format!("{place} answers something else than a comparison: {error}; is the router of another version?")
        })?;
        Ok(if self.json { text + "\n" } else { visible(&table(&about)) })
    }
}

/// Formats what a person needs to decide.
fn table(about: &EndpointReport) -> String {
    let report = &about.report;
    let live: Vec<String> = about.live.iter().map(|(name, percent)| format!("{name} {percent} %")).collect();
    let mut out = format!(
        "endpoint {}: live ({}) against shadow {}, which gets {} % of the requests\n",
        about.endpoint,
        live.join(", "),
        about.shadow,
        about.mirrored_percent
    );
    if report.pairs == 0 {
        out.push_str("nothing to compare yet: no copied request of the last hour has ended\n");
        return out;
    }
    let span = humantime::format_duration(std::time::Duration::from_secs(report.span_seconds));
    let _ = writeln!(out, "{} copied requests of the last {span}\n", report.pairs);
    let _ = writeln!(out, "{:<22}{:>12}{:>12}", "", "live", "shadow");
    let mut row = |what: &str, of: &dyn Fn(&SideReport) -> String| {
        let _ = writeln!(out, "{what:<22}{:>12}{:>12}", of(&report.live), of(&report.shadow));
    };
    let classes = report.live.statuses.keys().chain(report.shadow.statuses.keys());
    let mut classes: Vec<&String> = classes.collect();
    classes.sort();
    classes.dedup();
    for class in classes {
        row(&format!("status {class}"), &|side| side.statuses.get(class).copied().unwrap_or_default().to_string());
    }
    for quantile in ["p50", "p90", "p99"] {
        row(&format!("model {quantile}, ms"), &|side| {
            side.latency_ms.get(quantile).map_or_else(|| "-".to_owned(), |time| format!("{time:.1}"))
        });
    }
    row("answers, bytes", &|side| side.bytes.to_string());
    out.push('\n');
    for (what, rate) in
        [("live 5xx", report.live.errors), ("shadow 5xx", report.shadow.errors), ("answers agree", report.agreement)]
    {
        let _ = writeln!(out, "{what:<16}{}", rate.map_or_else(|| "nothing to go by".to_owned(), percent));
    }
    let results: Vec<String> = report.results.iter().map(|(result, count)| format!("{result} {count}")).collect();
    let _ = writeln!(out, "{:<16}{}", "", results.join(", "));
    if !report.not_compared.is_empty() {
        let reasons: Vec<String> =
            report.not_compared.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let _ = writeln!(out, "{:<16}not compared: {}", "", reasons.join(", "));
    }
    if !report.places.is_empty() {
        out.push_str("\nwhere answers differ, by how many do\n");
        for place in &report.places {
            let _ = writeln!(out, "{:>10}  {}", place.pairs, place.place);
        }
    }
    if let Some(last) = report.samples.last() {
        let end = |status: Option<u16>, broke_off: bool| {
            let status = status.map_or_else(|| "no status".to_owned(), |status| status.to_string());
            if broke_off { status + ", broken off" } else { status }
        };
        let _ = writeln!(out, "\nthe last that differs: {} ({})", last.request_id, last.time);
        let (live, shadow) =
            (end(last.live_status, last.live_broke_off), end(last.shadow_status, last.shadow_broke_off));
        let _ = writeln!(out, "{:>10}  live {live}; shadow {shadow}", "");
        for difference in &last.differences {
            let _ = writeln!(out, "{:>10}  {}: {}", "", difference.place, difference.what);
        }
    }
    out
}

fn percent(rate: ShareEstimate) -> String {
    let ShareEstimate { share, low, high, of } = rate;
    format!("{:.2} % of {of} ({:.2} to {:.2} % with 95 % confidence)", share * 100.0, low * 100.0, high * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compare::ComparisonReport;

    fn about(report: ComparisonReport) -> EndpointReport {
        let live = [("blue".to_owned(), 100)].into();
        EndpointReport { endpoint: "one".to_owned(), live, shadow: "green".to_owned(), mirrored_percent: 10, report }
    }

    #[test]
    fn a_table_says_what_there_is_and_that_there_is_nothing() {
        assert!(table(&about(ComparisonReport::default())).contains("nothing to compare yet"));
        let side = |latency: f64| SideReport {
            statuses: [("2xx".to_owned(), 98), ("5xx".to_owned(), 2)].into(),
            errors: ShareEstimate::new(2, 100),
            latency_ms: [("p50".to_owned(), latency)].into(),
            bytes: 1_000,
        };
        let results = [("equal".to_owned(), 97), ("different".to_owned(), 3)].into();
        let agreement = ShareEstimate::new(97, 100);
        let report = ComparisonReport {
            pairs: 100,
            results,
            agreement,
            live: side(5.0),
            shadow: side(7.25),
            ..ComparisonReport::default()
        };
        let text = table(&about(report));
        for line in [
            "status 5xx                       2           2",
            "model p50, ms                  5.0         7.2",
            "answers agree   97.00 % of 100 (91.55 to 98.97 % with 95 % confidence)",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
