//! Comparison of several settings.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::model::endpoint::{Deployment, ScaleSettings, TargetUtilization, defaults};

/// The largest number of combinations.
const MOST: usize = 200;

/// One setting and the values it takes.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    setting: Setting,
    values: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    Target,
    Min,
    Max,
    Concurrent,
    QueueMs,
}

/// The settings by their keyword, with the allowed values.
const SETTINGS: [(&str, Setting, std::ops::RangeInclusive<u32>); 5] = [
    ("target", Setting::Target, 1..=100),
    ("min", Setting::Min, 0..=1_000),
    ("max", Setting::Max, 1..=1_000),
    ("concurrent", Setting::Concurrent, 1..=1_000_000),
    ("queue-ms", Setting::QueueMs, 0..=300_000),
];

/// Parses `target=50,70`.
pub(super) fn axis(text: &str) -> Result<Axis, String> {
    let known: Vec<&str> = SETTINGS.iter().map(|(word, ..)| *word).collect();
    let (name, values) = text.split_once('=').ok_or_else(|| format!("write it as `target=50,70`, not `{text}`"))?;
    let (_, setting, range) = SETTINGS
        .into_iter()
        .find(|(word, ..)| *word == name)
        .ok_or_else(|| format!("`{name}` cannot be compared; these can: {}", known.join(", ")))?;
    let value = |text: &str| {
        let value = text.trim().parse().ok().filter(|value| range.contains(value));
        value.ok_or_else(|| format!("`{text}` is not a number from {} to {}", range.start(), range.end()))
    };
    Ok(Axis { setting, values: values.split(',').map(value).collect::<Result<_, String>>()? })
}

/// A deployment in variants.
pub(super) struct Variants {
    /// The settings that are compared.
    pub(super) names: Vec<&'static str>,
    /// Their values, and the deployment with these.
    pub(super) all: Vec<(Vec<u32>, Deployment)>,
}

impl Variants {
    /// Combines each value of each axis with each value of the others.
    ///
    /// # Errors
    ///
    /// What cannot be combined.
    pub(super) fn parse_setting(deployment: &Deployment, axes: &[Axis]) -> Result<Self, String> {
        let names: Vec<&'static str> = axes.iter().map(Axis::word).collect();
        if axes.iter().enumerate().any(|(index, axis)| axes[..index].iter().any(|other| other.setting == axis.setting))
        {
            return Err("each name may be there once; write its values with commas".to_owned());
        }
        if axes.iter().map(|axis| axis.values.len()).product::<usize>() > MOST {
            return Err(format!("at most {MOST} combinations"));
        }
        let mut all = vec![(Vec::new(), deployment.clone())];
        for axis in axes {
            let with = |(values, deployment): &(Vec<u32>, Deployment)| {
                let one = |value: &u32| {
                    let mut deployment = deployment.clone();
                    axis.setting.set(&mut deployment, *value);
                    ([values.as_slice(), &[*value]].concat(), deployment)
                };
                axis.values.iter().map(one).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(with).collect();
        }
        // The router would refuse this deployment too.
        let crossed = all.iter().find_map(|(_, deployment)| match &deployment.scale_settings {
            ScaleSettings::TargetUtilization(settings) if settings.min_replicas > settings.max_replicas => {
                Some((settings.min_replicas, settings.max_replicas))
            }
            _ => None,
        });
        if let Some((min, max)) = crossed {
            return Err(format!(
                "{min} replicas at least and {max} at most do not go together; what is not compared is as in the document"
            ));
        }
        Ok(Self { names, all })
    }
}

impl Axis {
    fn word(&self) -> &'static str {
        SETTINGS.iter().find(|(_, setting, _)| *setting == self.setting).map_or("", |(word, ..)| word)
    }
}

impl Setting {
    fn set(self, deployment: &mut Deployment, value: u32) {
        match self {
            Self::Concurrent => {
                deployment.request_settings.max_concurrent_per_instance =
                    NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN)
            }
            Self::QueueMs => deployment.request_settings.max_queue_wait = Duration::from_millis(value.into()),
            Self::Target => scaled(deployment, |it| it.target_percent = u8::try_from(value).unwrap_or(100)),
            Self::Min => scaled(deployment, |it| it.min_replicas = value),
            Self::Max => scaled(deployment, |it| it.max_replicas = value),
        }
    }
}

/// Changes the autoscaling of a deployment. A fixed number of replicas becomes autoscaling from 1 to that number.
fn scaled(deployment: &mut Deployment, change: impl FnOnce(&mut TargetUtilization)) {
    let instances = match &mut deployment.scale_settings {
        ScaleSettings::TargetUtilization(settings) => return change(settings),
        ScaleSettings::Fixed { instances } => *instances,
        ScaleSettings::Unmanaged => 1,
    };
    let mut settings = TargetUtilization {
        min_replicas: 1,
        max_replicas: instances.max(1),
        target_percent: u8::try_from(defaults::TARGET_UTILIZATION_PERCENTAGE).unwrap_or(100),
        polling_interval: defaults::POLLING_INTERVAL,
        idle_before_zero: defaults::IDLE_BEFORE_ZERO,
        cold_start_timeout: Duration::from_millis(defaults::COLD_START_TIMEOUT_MS.unsigned_abs()),
    };
    change(&mut settings);
    deployment.scale_settings = ScaleSettings::TargetUtilization(settings);
}
