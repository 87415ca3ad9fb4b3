//! How requests are split: `traffic` and `mirrorTraffic`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::super::check::Check;
use super::super::endpoint::{Comparison, Mirror, OnClientAbort, defaults};
use super::super::place::Place;
use super::super::problem::{field, item, quoted};
use super::super::resource::{RawMirrorComparison, RawMirrorSettings, RawSpec};
use super::super::suggest;

pub(in crate::model) const PERCENT: RangeInclusive<i64> = 0..=100;
/// More would be as much load on the shadow as on half of the live deployments.
pub(in crate::model) const MIRRORED_PERCENT: RangeInclusive<i64> = 0..=50;

/// As written, and what it means; the first is the default.
pub(in crate::model) const ON_CLIENT_ABORT: [(&str, OnClientAbort); 2] =
    [("finish", OnClientAbort::Finish), ("drop", OnClientAbort::Drop)];
/// Less would give up copies of what one read of a body brings.
pub(in crate::model) const WINDOW_BYTES: RangeInclusive<i64> = 262_144..=67_108_864;

/// How long a body can be that is compared.
pub(in crate::model) const COMPARED_BYTES: RangeInclusive<i64> = 1_024..=16_777_216;
/// More places would each be looked for at every value.
pub(in crate::model) const MAX_PLACES: usize = 100;

/// Less would make one read of a body wait for longer than anybody waits.
pub(in crate::model) const BANDWIDTH: RangeInclusive<i64> = 65_536..=1_000_000_000_000;

/// Percent of live traffic per deployment, in the order of the deployments. Absent: closed, as in Azure.
pub(super) fn live(check: &mut Check, spec: &RawSpec) -> Vec<u8> {
    const PATH: &str = "spec.traffic";
    let names = super::names(spec);
    let mut shares = vec![0; names.len()];
    let Some(written) = &spec.traffic else { return shares };
    let in_range = written.values().all(|percent| PERCENT.contains(percent));
    for (index, percent) in entries(check, PATH, written, &names, PERCENT) {
        shares[index] = u8::try_from(percent).unwrap_or_default();
    }
    let sum = written.values().fold(0_i64, |sum, percent| sum.saturating_add(*percent));
    if in_range && sum != 0 && sum != 100 {
        check.problem(PATH, format!("sums to {sum}, but must sum to 100, or to 0 to close the endpoint"));
    }
    shares
}

/// Most bytes a second, if there is a limit.
pub(super) fn bandwidth(check: &mut Check, spec: &RawSpec) -> Option<u64> {
    let given = spec.bandwidth_limit_bytes_per_second?;
    let path = "spec.bandwidthLimitBytesPerSecond";
    let limit = check.number(path, Some(given), BANDWIDTH, *BANDWIDTH.end(), " bytes a second");
    u64::try_from(limit).ok()
}

/// Which share is copied, and where to; `None`: nothing is.
pub(super) fn mirrored(check: &mut Check, spec: &RawSpec) -> Option<Mirror> {
    const PATH: &str = "spec.mirrorTraffic";
    let (on_client_abort, window) = settings(check, spec);
    let comparison = spec.mirror_comparison.as_ref().map(|raw| comparison(check, raw));
    let written = spec.mirror_traffic.as_ref()?;
    if written.len() > 1 {
        let names = suggest::listed(written.keys().map(String::as_str));
        check
            .problem(PATH, format!("names {} deployments ({names}), but at most one can be the shadow", written.len()));
    }
    let names = super::names(spec);
    let entries = entries(check, PATH, written, &names, MIRRORED_PERCENT);
    for (index, percent) in entries.iter().copied() {
        let name = names[index].unwrap_or_default();
        let live = spec.traffic.iter().flatten().any(|(other, live)| other.eq_ignore_ascii_case(name) && *live > 0);
        if percent > 0 && live {
            let why = "has live traffic too; a deployment gets live or mirrored traffic, not both";
            check.problem(&field(PATH, name), format!("{why}: set spec.traffic.{name} to 0, or mirror to another"));
        }
    }
    let (to, percent) = entries.into_iter().find(|(_, percent)| *percent > 0)?;
    Some(Mirror { to, percent: u8::try_from(percent).unwrap_or_default(), on_client_abort, window, comparison })
}

fn settings(check: &mut Check, spec: &RawSpec) -> (OnClientAbort, usize) {
    let nothing = RawMirrorSettings::default();
    let raw = spec.mirror_settings.as_ref().unwrap_or(&nothing);
    let at = |name| field("spec.mirrorSettings", name);
    let on_client_abort = check.word(&at("onClientAbort"), raw.on_client_abort.as_deref(), &ON_CLIENT_ABORT);
    let default = defaults::MIRROR_WINDOW_BYTES;
    let window = check.number(&at("windowBytes"), raw.window_bytes, WINDOW_BYTES, default, " bytes");
    (on_client_abort.unwrap_or(OnClientAbort::Finish), usize::try_from(window).unwrap_or_default())
}

fn comparison(check: &mut Check, raw: &RawMirrorComparison) -> Comparison {
    let at = |name| field("spec.mirrorComparison", name);
    let default = defaults::COMPARED_BYTES;
    let max_body = check.number(&at("maxBodyBytes"), raw.max_body_bytes, COMPARED_BYTES, default, " bytes");
    let numeric_tolerance = raw.numeric_tolerance.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&numeric_tolerance) {
        check.problem(&at("numericTolerance"), format!("is {numeric_tolerance}, but must be between 0 and 1"));
    }
    Comparison {
        compare_bodies: raw.compare_bodies.unwrap_or(true),
        max_body: usize::try_from(max_body).unwrap_or_default(),
        numeric_tolerance,
        ignore: places(check, &at("ignorePaths"), raw.ignore_paths.as_deref()),
        unordered: places(check, &at("unorderedPaths"), raw.unordered_paths.as_deref()),
    }
}

fn places(check: &mut Check, path: &str, written: Option<&[Option<String>]>) -> Vec<Place> {
    let written = written.unwrap_or_default();
    if written.len() > MAX_PLACES {
        check.problem(path, format!("has {} places, but {MAX_PLACES} is the most", written.len()));
    }
    let read = written.iter().enumerate().filter_map(|(index, text)| {
        let path = item(path, index);
        let text = text.as_deref().unwrap_or_default();
        check.ok(&path, Place::parse(text).map_err(|wrong| format!("is {}, which {wrong}", quoted(text))))
    });
    read.collect()
}

/// The entries that name a deployment and are in range, by the deployment's index; notes the others.
fn entries(
    check: &mut Check,
    path: &str,
    written: &BTreeMap<String, i64>,
    names: &[Option<&str>],
    range: RangeInclusive<i64>,
) -> Vec<(usize, i64)> {
    let mut entries: Vec<(usize, i64)> = Vec::new();
    for (name, percent) in written {
        let path = field(path, name);
        let percent = check.number(&path, Some(*percent), range.clone(), 0, " percent");
        let known = names.iter().position(|known| known.is_some_and(|known| known.eq_ignore_ascii_case(name)));
        match known {
            Some(index) if entries.iter().any(|(other, _)| *other == index) => {
                check.problem(&path, "names a deployment a second time (case does not count); write it once");
            }
            Some(index) => entries.push((index, percent)),
            // While a deployment lacks its name, it may be the one that is meant.
            None if names.is_empty() || names.contains(&None) => {}
            None => check.problem(&path, no_deployment(name, names)),
        }
    }
    entries
}

fn no_deployment(name: &str, names: &[Option<&str>]) -> String {
    let known = names.iter().flatten().copied();
    format!("there is no deployment {}; {}", quoted(name), suggest::instead(name, known))
}
