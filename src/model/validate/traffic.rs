//! Validation of `traffic`, `mirrorTraffic` and what belongs to them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::super::endpoint::{ComparisonSettings, Mirror, OnClientAbort, defaults};
use super::super::json_path::JsonPath;
use super::super::problem::{field_path, item_path, quoted};
use super::super::problem_collector::ProblemCollector;
use super::super::resource::{RawMirrorComparison, RawMirrorSettings, RawSpec};
use super::super::suggest;

pub(in crate::model) const PERCENT_RANGE: RangeInclusive<i64> = 0..=100;
/// A larger share would put as much load on the shadow as on half of the live deployments.
pub(in crate::model) const MIRRORED_PERCENT_RANGE: RangeInclusive<i64> = 0..=50;

/// Keywords of `onClientAbort`; the first is the default.
pub(in crate::model) const ON_CLIENT_ABORT_KEYWORDS: [(&str, OnClientAbort); 2] =
    [("finish", OnClientAbort::Finish), ("drop", OnClientAbort::Drop)];
/// A smaller window would cancel copies after a single read of a body.
pub(in crate::model) const WINDOW_BYTES_RANGE: RangeInclusive<i64> = 262_144..=67_108_864;

/// The allowed sizes of bodies that are compared.
pub(in crate::model) const COMPARED_BYTES_RANGE: RangeInclusive<i64> = 1_024..=16_777_216;
/// Every path is matched against every value, so their number is limited.
pub(in crate::model) const MAX_JSON_PATHS: usize = 100;

/// A lower limit would delay a single read of a body for longer than any client waits.
pub(in crate::model) const BANDWIDTH_BYTES_PER_SECOND_RANGE: RangeInclusive<i64> = 65_536..=1_000_000_000_000;

/// Returns the weights in the order of the deployments. Without `traffic` the endpoint is closed, as in Azure.
pub(super) fn validate_live_traffic(check: &mut ProblemCollector, spec: &RawSpec) -> Vec<u8> {
    const PATH: &str = "spec.traffic";
    let names = super::deployment_names(spec);
    let mut shares = vec![0; names.len()];
    let Some(written) = &spec.traffic else { return shares };
    let in_range = written.values().all(|percent| PERCENT_RANGE.contains(percent));
    for (index, percent) in validate_traffic_entries(check, PATH, written, &names, PERCENT_RANGE) {
        shares[index] = u8::try_from(percent).unwrap_or_default();
    }
    let sum = written.values().fold(0_i64, |sum, percent| sum.saturating_add(*percent));
    if in_range && sum != 0 && sum != 100 {
        check.report(PATH, format!("sums to {sum}, but must sum to 100, or to 0 to close the endpoint"));
    }
    shares
}

/// Returns the bandwidth limit in bytes per second, if there is one.
pub(super) fn validate_bandwidth(check: &mut ProblemCollector, spec: &RawSpec) -> Option<u64> {
    let given = spec.bandwidth_limit_bytes_per_second?;
    let path = "spec.bandwidthLimitBytesPerSecond";
    let limit = check.number_in_range(
        path,
        Some(given),
        BANDWIDTH_BYTES_PER_SECOND_RANGE,
        *BANDWIDTH_BYTES_PER_SECOND_RANGE.end(),
        " bytes a second",
    );
    u64::try_from(limit).ok()
}

/// Returns the mirror settings; `None` if nothing is mirrored.
pub(super) fn validate_mirror(check: &mut ProblemCollector, spec: &RawSpec) -> Option<Mirror> {
    const PATH: &str = "spec.mirrorTraffic";
    let (on_client_abort, window) = validate_mirror_settings(check, spec);
    let comparison = spec.mirror_comparison.as_ref().map(|raw| validate_comparison(check, raw));
    let written = spec.mirror_traffic.as_ref()?;
    if written.len() > 1 {
        let names = suggest::quoted_list(written.keys().map(String::as_str));
        check.report(PATH, format!("names {} deployments ({names}), but at most one can be the shadow", written.len()));
    }
    let names = super::deployment_names(spec);
    let entries = validate_traffic_entries(check, PATH, written, &names, MIRRORED_PERCENT_RANGE);
    for (index, percent) in entries.iter().copied() {
        let name = names[index].unwrap_or_default();
        let live = spec.traffic.iter().flatten().any(|(other, live)| other.eq_ignore_ascii_case(name) && *live > 0);
        if percent > 0 && live {
            let why = "has live traffic too; a deployment gets live or mirrored traffic, not both";
            check.report(&field_path(PATH, name), format!("{why}: set spec.traffic.{name} to 0, or mirror to another"));
        }
    }
    let (to, percent) = entries.into_iter().find(|(_, percent)| *percent > 0)?;
    Some(Mirror {
        shadow_index: to,
        percent: u8::try_from(percent).unwrap_or_default(),
        on_client_abort,
        window_bytes: window,
        comparison,
    })
}

fn validate_mirror_settings(check: &mut ProblemCollector, spec: &RawSpec) -> (OnClientAbort, usize) {
    let nothing = RawMirrorSettings::default();
    let raw = spec.mirror_settings.as_ref().unwrap_or(&nothing);
    let at = |name| field_path("spec.mirrorSettings", name);
    let on_client_abort =
        check.keyword(&at("onClientAbort"), raw.on_client_abort.as_deref(), &ON_CLIENT_ABORT_KEYWORDS);
    let default = defaults::MIRROR_WINDOW_BYTES;
    let window = check.number_in_range(&at("windowBytes"), raw.window_bytes, WINDOW_BYTES_RANGE, default, " bytes");
    (on_client_abort.unwrap_or(OnClientAbort::Finish), usize::try_from(window).unwrap_or_default())
}

fn validate_comparison(check: &mut ProblemCollector, raw: &RawMirrorComparison) -> ComparisonSettings {
    let at = |name| field_path("spec.mirrorComparison", name);
    let default = defaults::COMPARED_BYTES;
    let max_body =
        check.number_in_range(&at("maxBodyBytes"), raw.max_body_bytes, COMPARED_BYTES_RANGE, default, " bytes");
    let numeric_tolerance = raw.numeric_tolerance.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&numeric_tolerance) {
        check.report(&at("numericTolerance"), format!("is {numeric_tolerance}, but must be between 0 and 1"));
    }
    ComparisonSettings {
        compare_bodies: raw.compare_bodies.unwrap_or(true),
        max_body_bytes: usize::try_from(max_body).unwrap_or_default(),
        numeric_tolerance,
        ignored_paths: validate_json_paths(check, &at("ignorePaths"), raw.ignore_paths.as_deref()),
        unordered_paths: validate_json_paths(check, &at("unorderedPaths"), raw.unordered_paths.as_deref()),
    }
}

fn validate_json_paths(check: &mut ProblemCollector, path: &str, written: Option<&[Option<String>]>) -> Vec<JsonPath> {
    let written = written.unwrap_or_default();
    if written.len() > MAX_JSON_PATHS {
        check.report(path, format!("has {} places, but {MAX_JSON_PATHS} is the most", written.len()));
    }
    let read = written.iter().enumerate().filter_map(|(index, text)| {
        let path = item_path(path, index);
        let text = text.as_deref().unwrap_or_default();
        check.ok_or_report(&path, JsonPath::parse(text).map_err(|wrong| format!("is {}, which {wrong}", quoted(text))))
    });
    read.collect()
}

/// Returns the entries that name a deployment and are in range, by the deployment's index. Others are reported.
fn validate_traffic_entries(
    check: &mut ProblemCollector,
    path: &str,
    written: &BTreeMap<String, i64>,
    names: &[Option<&str>],
    range: RangeInclusive<i64>,
) -> Vec<(usize, i64)> {
    let mut entries: Vec<(usize, i64)> = Vec::new();
    for (name, percent) in written {
        let path = field_path(path, name);
        let percent = check.number_in_range(&path, Some(*percent), range.clone(), 0, " percent");
        let known = names.iter().position(|known| known.is_some_and(|known| known.eq_ignore_ascii_case(name)));
        match known {
            Some(index) if entries.iter().any(|(other, _)| *other == index) => {
                check.report(&path, "names a deployment a second time (case does not count); write it once");
            }
            Some(index) => entries.push((index, percent)),
            // While a deployment lacks its name, the entry may refer to it.
            None if names.is_empty() || names.contains(&None) => {}
            None => check.report(&path, unknown_deployment_message(name, names)),
        }
    }
    entries
}

fn unknown_deployment_message(name: &str, names: &[Option<&str>]) -> String {
    let known = names.iter().flatten().copied();
    format!("there is no deployment {}; {}", quoted(name), suggest::did_you_mean(name, known))
}
