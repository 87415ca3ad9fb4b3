//! How requests are split: `traffic` and `mirrorTraffic`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::super::check::Check;
use super::super::problem::{field, quoted};
use super::super::resource::RawSpec;
use super::super::suggest;

pub(in crate::model) const PERCENT: RangeInclusive<i64> = 0..=100;
/// More would be as much load on the shadow as on half of the live deployments.
pub(in crate::model) const MIRRORED_PERCENT: RangeInclusive<i64> = 0..=50;

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

/// Notes what is wrong with `mirrorTraffic`.
pub(super) fn mirrored(check: &mut Check, spec: &RawSpec) {
    const PATH: &str = "spec.mirrorTraffic";
    let Some(written) = &spec.mirror_traffic else { return };
    if written.len() > 1 {
        let names = suggest::listed(written.keys().map(String::as_str));
        check
            .problem(PATH, format!("names {} deployments ({names}), but at most one can be the shadow", written.len()));
    }
    let names = super::names(spec);
    for (index, percent) in entries(check, PATH, written, &names, MIRRORED_PERCENT) {
        let name = names[index].unwrap_or_default();
        let live = spec.traffic.iter().flatten().any(|(other, live)| other.eq_ignore_ascii_case(name) && *live > 0);
        if percent > 0 && live {
            let why = "has live traffic too; a deployment gets live or mirrored traffic, not both";
            check.problem(&field(PATH, name), format!("{why}: set spec.traffic.{name} to 0, or mirror to another"));
        }
    }
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
