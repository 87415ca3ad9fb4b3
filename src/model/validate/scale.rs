//! How many replicas a deployment has.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::check::Check;
use super::super::duration::WrittenDuration;
use super::super::endpoint::{ScaleSettings, Target, Utilization, defaults};
use super::super::problem::field;
use super::super::resource::RawScaleSettings;

pub(in crate::model) const INSTANCES: RangeInclusive<i64> = 0..=1_000;
pub(in crate::model) const MOST_INSTANCES: RangeInclusive<i64> = 1..=1_000;
pub(in crate::model) const TARGET_PERCENTAGE: RangeInclusive<i64> = 1..=100;
pub(in crate::model) const POLLING_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);
pub(in crate::model) const IDLE_BEFORE_ZERO: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
pub(in crate::model) const COLD_START_TIMEOUT_MS: RangeInclusive<i64> = 1..=600_000;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fixed,
    Utilization,
}

/// Whatever is wrong is noted.
pub(super) fn read(check: &mut Check, path: &str, raw: &RawScaleSettings, target: Option<&Target>) -> ScaleSettings {
    let at = |name| field(path, name);
    let kinds = [("default", Kind::Fixed), ("target_utilization", Kind::Utilization)];
    let kind = check.word(&at("type"), raw.kind.as_deref(), &kinds);
    let scaled = utilization(check, path, raw);
    if kind != Some(Kind::Utilization) {
        return match target {
            Some(Target::Workload(_)) => fixed_workload(check, path, raw, scaled),
            _ => fixed(check, path, raw, target),
        };
    }
    if raw.instance_count.is_some() {
        let why =
            "is only for `type: default`; with `target_utilization` there are from `minInstances` to `maxInstances`";
        check.problem(&at("instanceCount"), format!("{why}; remove it"));
    }
    if let Some(Target::Instances(_)) = target {
        let why = "is `target_utilization`, but the router cannot start or stop the fixed addresses in `instances`";
        check.problem(&at("type"), format!("{why}; use `process`, or `type: default`"));
    }
    ScaleSettings::Utilization(scaled)
}

fn fixed(check: &mut Check, path: &str, raw: &RawScaleSettings, target: Option<&Target>) -> ScaleSettings {
    let at = field(path, "instanceCount");
    let count = check.number(&at, raw.instance_count, INSTANCES, defaults::INSTANCE_COUNT, "");
    let fixed = match target {
        Some(Target::Instances(addresses)) => i64::try_from(addresses.len()).unwrap_or(i64::MAX),
        _ => count,
    };
    if raw.instance_count.is_some_and(|_| fixed != count) {
        let why = format!("is {count}, but `instances` lists {fixed}, and the router cannot start fixed addresses");
        check.problem(&at, format!("{why}; remove it, or list as many"));
    }
    ScaleSettings::Fixed { instances: u32::try_from(fixed).unwrap_or(u32::MAX) }
}

/// The replicas of a workload are its own affair, unless the document says how many there should be.
fn fixed_workload(check: &mut Check, path: &str, raw: &RawScaleSettings, scaled: Utilization) -> ScaleSettings {
    let Some(count) = raw.instance_count else { return ScaleSettings::Unmanaged };
    let at = field(path, "instanceCount");
    let count = check.number(&at, Some(count), MOST_INSTANCES, defaults::INSTANCE_COUNT, "");
    let count = u32::try_from(count).unwrap_or(1);
    ScaleSettings::Utilization(Utilization { min: count, max: count, ..scaled })
}

fn utilization(check: &mut Check, path: &str, raw: &RawScaleSettings) -> Utilization {
    let at = |name| field(path, name);
    let least = check.number(&at("minInstances"), raw.min_instances, INSTANCES, defaults::MIN_INSTANCES, "");
    let most = check.number(&at("maxInstances"), raw.max_instances, MOST_INSTANCES, defaults::MAX_INSTANCES, "");
    if least > most {
        let default = if raw.max_instances.is_none() { " (the default)" } else { "" };
        check.problem(
            &at("minInstances"),
            format!("is {least}, but must not be more than maxInstances, which is {most}{default}"),
        );
    }
    let percent = check.number(
        &at("targetUtilizationPercentage"),
        raw.target_utilization_percentage,
        TARGET_PERCENTAGE,
        defaults::TARGET_UTILIZATION_PERCENTAGE,
        " percent",
    );
    let mut time = |name, given: Option<WrittenDuration>, default, range: RangeInclusive<Duration>| {
        let time = given.map_or(default, |written| written.0);
        if !range.contains(&time) {
            let [written, least, most] = [time, *range.start(), *range.end()].map(WrittenDuration);
            check.problem(&at(name), format!("is {written}, but must be between {least} and {most}"));
        }
        time
    };
    let interval = time("pollingInterval", raw.polling_interval, defaults::POLLING_INTERVAL, POLLING_INTERVAL);
    let idle_before_zero = time("idleBeforeZero", raw.idle_before_zero, defaults::IDLE_BEFORE_ZERO, IDLE_BEFORE_ZERO);
    let cold_start = check.number(
        &at("coldStartTimeoutMs"),
        raw.cold_start_timeout_ms,
        COLD_START_TIMEOUT_MS,
        defaults::COLD_START_TIMEOUT_MS,
        " milliseconds",
    );
    for (name, given) in [
        ("idleBeforeZero", raw.idle_before_zero.is_some()),
        ("coldStartTimeoutMs", raw.cold_start_timeout_ms.is_some()),
    ] {
        if given && least > 0 {
            check.problem(&at(name), "is only for `minInstances: 0`; remove it, or let the deployment go down to 0");
        }
    }
    Utilization {
        min: u32::try_from(least).unwrap_or_default(),
        max: u32::try_from(most).unwrap_or(u32::MAX),
        target_percent: u8::try_from(percent).unwrap_or(100),
        interval,
        idle_before_zero,
        cold_start_timeout: Duration::from_millis(cold_start.unsigned_abs()),
    }
}
