//! Validation of `scaleSettings`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::duration::HumanDuration;
use super::super::endpoint::{DeploymentTarget, ScaleSettings, TargetUtilization, defaults};
use super::super::problem::field_path;
use super::super::problem_collector::ProblemCollector;
use super::super::resource::RawScaleSettings;

pub(in crate::model) const INSTANCES_RANGE: RangeInclusive<i64> = 0..=1_000;
pub(in crate::model) const MAX_INSTANCES_RANGE: RangeInclusive<i64> = 1..=1_000;
pub(in crate::model) const TARGET_PERCENTAGE_RANGE: RangeInclusive<i64> = 1..=100;
pub(in crate::model) const POLLING_INTERVAL_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);
pub(in crate::model) const IDLE_BEFORE_ZERO_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
pub(in crate::model) const COLD_START_TIMEOUT_MS_RANGE: RangeInclusive<i64> = 1..=600_000;

#[derive(Clone, Copy, PartialEq)]
enum ScaleType {
    Fixed,
    Utilization,
}

/// Validates the scale settings. Problems are reported.
pub(super) fn validate_scale_settings(
    check: &mut ProblemCollector,
    path: &str,
    raw: &RawScaleSettings,
    target: Option<&DeploymentTarget>,
) -> ScaleSettings {
    let at = |name| field_path(path, name);
    let kinds = [("default", ScaleType::Fixed), ("target_utilization", ScaleType::Utilization)];
    let kind = check.keyword(&at("type"), raw.kind.as_deref(), &kinds);
    let scaled = validate_target_utilization(check, path, raw);
    if kind != Some(ScaleType::Utilization) {
        return match target {
            Some(DeploymentTarget::Workload(_)) => validate_fixed_workload(check, path, raw, scaled),
            _ => validate_fixed(check, path, raw, target),
        };
    }
    if raw.instance_count.is_some() {
        let why =
            "is only for `type: default`; with `target_utilization` there are from `minInstances` to `maxInstances`";
        check.report(&at("instanceCount"), format!("{why}; remove it"));
    }
    if let Some(DeploymentTarget::Instances(_)) = target {
        let why = "is `target_utilization`, but the router cannot start or stop the fixed addresses in `instances`";
        check.report(&at("type"), format!("{why}; use `process`, or `type: default`"));
    }
    ScaleSettings::TargetUtilization(scaled)
}

fn validate_fixed(
    check: &mut ProblemCollector,
    path: &str,
    raw: &RawScaleSettings,
    target: Option<&DeploymentTarget>,
) -> ScaleSettings {
    let at = field_path(path, "instanceCount");
    let count = check.number_in_range(&at, raw.instance_count, INSTANCES_RANGE, defaults::INSTANCE_COUNT, "");
    let fixed = match target {
        Some(DeploymentTarget::Instances(addresses)) => i64::try_from(addresses.len()).unwrap_or(i64::MAX),
        _ => count,
    };
    if raw.instance_count.is_some_and(|_| fixed != count) {
        let why = format!("is {count}, but `instances` lists {fixed}, and the router cannot start fixed addresses");
        check.report(&at, format!("{why}; remove it, or list as many"));
    }
    ScaleSettings::Fixed { instances: u32::try_from(fixed).unwrap_or(u32::MAX) }
}

/// The router leaves the replicas of a workload alone, unless the document says how many there should be.
fn validate_fixed_workload(
    check: &mut ProblemCollector,
    path: &str,
    raw: &RawScaleSettings,
    scaled: TargetUtilization,
) -> ScaleSettings {
    let Some(count) = raw.instance_count else { return ScaleSettings::Unmanaged };
    let at = field_path(path, "instanceCount");
    let count = check.number_in_range(&at, Some(count), MAX_INSTANCES_RANGE, defaults::INSTANCE_COUNT, "");
    let count = u32::try_from(count).unwrap_or(1);
    ScaleSettings::TargetUtilization(TargetUtilization { min_replicas: count, max_replicas: count, ..scaled })
}

fn validate_target_utilization(check: &mut ProblemCollector, path: &str, raw: &RawScaleSettings) -> TargetUtilization {
    let at = |name| field_path(path, name);
    let least =
        check.number_in_range(&at("minInstances"), raw.min_instances, INSTANCES_RANGE, defaults::MIN_INSTANCES, "");
    let most =
        check.number_in_range(&at("maxInstances"), raw.max_instances, MAX_INSTANCES_RANGE, defaults::MAX_INSTANCES, "");
    if least > most {
        let default = if raw.max_instances.is_none() { " (the default)" } else { "" };
        check.report(
            &at("minInstances"),
            format!("is {least}, but must not be more than maxInstances, which is {most}{default}"),
        );
    }
    let percent = check.number_in_range(
        &at("targetUtilizationPercentage"),
        raw.target_utilization_percentage,
        TARGET_PERCENTAGE_RANGE,
        defaults::TARGET_UTILIZATION_PERCENTAGE,
        " percent",
    );
    let mut time = |name, given: Option<HumanDuration>, default, range: RangeInclusive<Duration>| {
        let time = given.map_or(default, |written| written.0);
        if !range.contains(&time) {
            let [written, least, most] = [time, *range.start(), *range.end()].map(HumanDuration);
            check.report(&at(name), format!("is {written}, but must be between {least} and {most}"));
        }
        time
    };
    let interval = time("pollingInterval", raw.polling_interval, defaults::POLLING_INTERVAL, POLLING_INTERVAL_RANGE);
    let idle_before_zero =
        time("idleBeforeZero", raw.idle_before_zero, defaults::IDLE_BEFORE_ZERO, IDLE_BEFORE_ZERO_RANGE);
    let cold_start = check.number_in_range(
        &at("coldStartTimeoutMs"),
        raw.cold_start_timeout_ms,
        COLD_START_TIMEOUT_MS_RANGE,
        defaults::COLD_START_TIMEOUT_MS,
        " milliseconds",
    );
    for (name, given) in [
        ("idleBeforeZero", raw.idle_before_zero.is_some()),
        ("coldStartTimeoutMs", raw.cold_start_timeout_ms.is_some()),
    ] {
        if given && least > 0 {
            check.report(&at(name), "is only for `minInstances: 0`; remove it, or let the deployment go down to 0");
        }
    }
    TargetUtilization {
        min_replicas: u32::try_from(least).unwrap_or_default(),
        max_replicas: u32::try_from(most).unwrap_or(u32::MAX),
        target_percent: u8::try_from(percent).unwrap_or(100),
        polling_interval: interval,
        idle_before_zero,
        cold_start_timeout: Duration::from_millis(cold_start.unsigned_abs()),
    }
}
