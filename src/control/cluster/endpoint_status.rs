//! The `status` of an `OnlineEndpoint` object: its conditions, its URIs and the replica counts of its deployments.

use std::time::SystemTime;

use kube::runtime::watcher::Event;

use super::super::index::DeploymentCounts;
use super::Cluster;
use super::endpoints::TrackedEndpoint;
use super::objects::ObjectKey;
use super::targets::TargetState;
use super::watch::WatchError;
use super::watch_store::WatchScope;
use crate::model::endpoint::{DeploymentTarget, ScaleSettings};
use crate::model::endpoint_status::{Condition, DeploymentStatus, EndpointStatus};
use crate::model::name::Name;

/// The value of a condition: whether it is true, its reason and its message.
type ConditionValue = (bool, &'static str, String);

impl Cluster {
    /// Applies an event of the watch of the router's own Service.
    pub(super) fn apply_service_event(&mut self, scope: &WatchScope, event: Event<(ObjectKey, Option<String>)>) {
        let watched = ("the router's Service".to_owned(), scope.clone());
        match event {
            Event::Apply((_, url)) | Event::InitApply((_, url)) => self.scoring_url = url,
            // The last known URL is kept: clients may find the router there again.
            Event::Delete(_) | Event::Init | Event::InitDone => {}
        }
        if self.scoring_url.is_some() {
            self.watch_errors.remove(&watched);
        } else {
            let what = format!("{scope}, which endpoints.kubernetes.service names, is not there or has no port");
            let what = format!("{what}: scoring URIs are not known");
            self.watch_errors.insert(watched, WatchError { message: what, is_denied: false });
        }
    }

    /// Returns the status that an object should have now. `counts` returns the counts of a deployment of an endpoint.
    pub(super) fn endpoint_status(
        &self,
        key: &ObjectKey,
        known: &TrackedEndpoint,
        counts: impl Fn(&Name, &Name) -> Option<DeploymentCounts>,
        now: SystemTime,
    ) -> EndpointStatus {
        let before = &known.object.status;
        let owner = known.name.as_ref().and_then(|name| self.endpoints.name_owner(name));
        let good = known.last_known_good.as_ref().filter(|_| owner == Some(key)).map(|good| &good.spec);
        let mut deployments = Vec::new();
        for deployment in good.iter().flat_map(|spec| &spec.deployments) {
            let name = known.name.as_ref();
            let counts = name.and_then(|name| counts(name, &deployment.name)).unwrap_or_default();
            deployments.push(DeploymentStatus {
                name: deployment.name.to_string(),
                ready_replicas: counts.ready.into(),
                desired_replicas: counts.desired.unwrap_or(counts.ready).into(),
                utilization: counts.utilization.map(|ratio| (ratio * 10.0).round() as i64 * 10),
            });
        }
        let values = [
            Some(("Accepted", self.accepted_condition(known, owner, key))),
            Some(("Ready", self.ready_condition(known, owner == Some(key), &deployments))),
            self.scaled_condition(known).filter(|_| good.is_some()).map(|value| ("Scaled", value)),
        ];
        let conditions = values.into_iter().flatten().map(|(kind, (is_true, reason, message))| {
            let status = if is_true { "True" } else { "False" };
            let same = before.conditions.iter().find(|other| other.kind == kind && other.status == status);
            Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: known.object.generation,
                last_transition_time: same.map_or_else(
                    || humantime::format_rfc3339_seconds(now).to_string(),
                    |same| same.last_transition_time.clone(),
                ),
            }
        });
        let path = |what: &str| match (&self.scoring_url, &known.name) {
            (Some(url), Some(name)) if good.is_some() => format!("{url}/api/v1/endpoint/{name}/{what}"),
            // While the router's Service is not known, the last URIs are kept: they may still work.
            (None, Some(_)) if good.is_some() && self.has_service => match what {
                "score" => before.scoring_uri.clone(),
                _ => before.swagger_uri.clone(),
            },
            _ => String::new(),
        };
        EndpointStatus {
            scoring_uri: path("score"),
            swagger_uri: path("swagger.json"),
            observed_generation: known.object.generation,
            conditions: conditions.collect(),
            deployments,
        }
    }

    fn accepted_condition(
        &self,
        known: &TrackedEndpoint,
        owner: Option<&ObjectKey>,
        key: &ObjectKey,
    ) -> ConditionValue {
        if let Some(owner) = owner.filter(|owner| *owner != key) {
            let what = format!(
                "the endpoint {} exists already, in the namespace {}, and is older; give one of them another name",
                owner.name, owner.namespace
            );
            return (false, "NameConflict", what);
        }
        if !known.problems.is_empty() {
            let problems: Vec<String> = known.problems.iter().map(ToString::to_string).collect();
            let kept = if known.last_known_good.is_some() { "; the last good version serves" } else { "" };
            return (false, known.reason, format!("{}{kept}", problems.join("; ")));
        }
        let Some(good) = &known.last_known_good else { return (false, "Invalid", String::new()) };
        for (deployment, (workload, _)) in super::routing::workloads_by_deployment(&good.spec) {
            let claimant = (good.spec.name.clone(), deployment);
            if let TargetState::Unusable(reason, what) =
                self.targets.target_state(&workload, &claimant, |other| *other != claimant)
            {
                return (false, reason, what);
            }
        }
        (true, "Accepted", "the spec is valid, and every object that it names exists and may be used".to_owned())
    }

    fn ready_condition(
        &self,
        known: &TrackedEndpoint,
        is_owner: bool,
        deployments: &[DeploymentStatus],
    ) -> ConditionValue {
        let Some(good) = known.last_known_good.as_ref().filter(|_| is_owner) else {
            return (false, "NotAccepted", "nothing is served; see the condition Accepted".to_owned());
        };
        if good.access.needs_signing() && self.tokens.signing.load().is_none() {
            let what =
                "nobody can get a token: set tokens.signingSecret or tokens.signingKeyFile in the router's settings";
            return (false, "NoSigningKey", what.to_owned());
        }
        let with_traffic = good.spec.deployments.iter().zip(&good.spec.traffic).zip(deployments);
        let with_traffic: Vec<_> = with_traffic.filter(|((_, percent), _)| **percent > 0).collect();
        if with_traffic.is_empty() {
            return (false, "Closed", "no deployment has traffic; requests must name one".to_owned());
        }
        let is_zero =
            |scale: &ScaleSettings| matches!(scale, ScaleSettings::TargetUtilization(it) if it.min_replicas == 0);
        for ((deployment, _), status) in with_traffic {
            if status.ready_replicas == 0 && !is_zero(&deployment.scale_settings) {
                let what = match &deployment.target {
                    DeploymentTarget::Workload(target) => format!("no pod of {} {} is ready", target.kind, target.name),
                    DeploymentTarget::Instances(_) | DeploymentTarget::Process(_) => "no replica is ready".to_owned(),
                };
                return (false, "NoReadyReplica", format!("deployment {}: {what}", deployment.name));
            }
        }
        (true, "Serving", "every deployment with traffic can take requests".to_owned())
    }

    /// Returns the value of the condition `Scaled`; `None` if the router scales no deployment of the endpoint.
    fn scaled_condition(&self, known: &TrackedEndpoint) -> Option<ConditionValue> {
        let good = known.last_known_good.as_ref()?;
        let is_scaled = |name: &Name| {
            let deployment = good.spec.deployments.iter().find(|deployment| deployment.name == *name);
            deployment
                .is_some_and(|deployment| matches!(deployment.scale_settings, ScaleSettings::TargetUtilization(_)))
        };
        let scaled =
            super::routing::workloads_by_deployment(&good.spec).into_iter().filter(|(name, _)| is_scaled(name));
        let mut is_any = false;
        for (deployment, (workload, _)) in scaled {
            is_any = true;
            if let Some(autoscaler) = self.find_hpa(&workload) {
                let what = format!(
                    "the HorizontalPodAutoscaler {} scales {} {} too, so the replicas of {deployment} are left to it; \
                     delete it, or write `type: default`",
                    autoscaler.name, workload.kind, workload.key.name
                );
                return Some((false, "HorizontalPodAutoscaler", what));
            }
        }
        let is_fixed = good.spec.deployments.iter().all(|one| match &one.scale_settings {
            ScaleSettings::TargetUtilization(settings) => settings.min_replicas == settings.max_replicas,
            ScaleSettings::Fixed { .. } | ScaleSettings::Unmanaged => true,
        });
        let what =
            if is_fixed { "the number of replicas is fixed by instanceCount" } else { "replicas follow the load" };
        is_any.then(|| (true, "Scaling", what.to_owned()))
    }
}
