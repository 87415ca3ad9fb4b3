//! What is said of an endpoint in its `status`.

use std::time::SystemTime;

use kube::runtime::watcher::Event;

use super::super::index::Counts;
use super::Cluster;
use super::endpoints::Known;
use super::objects::Key;
use super::store::Scope;
use super::targets::Standing;
use super::watch::Trouble;
use crate::model::endpoint::{ScaleSettings, Target};
use crate::model::name::Name;
use crate::model::status::{Condition, DeploymentStatus, EndpointStatus};

/// A statement, and why.
type Statement = (bool, &'static str, String);

impl Cluster {
    /// The watch of the router's own Service tells of it.
    pub(super) fn service(&mut self, scope: &Scope, event: Event<(Key, Option<String>)>) {
        let watched = ("the router's Service".to_owned(), scope.clone());
        match event {
            Event::Apply((_, url)) | Event::InitApply((_, url)) => self.scoring_url = url,
            // Where clients have found the router so far they may find it again.
            Event::Delete(_) | Event::Init | Event::InitDone => {}
        }
        if self.scoring_url.is_some() {
            self.trouble.remove(&watched);
        } else {
            let what = format!("{scope}, which endpoints.kubernetes.service names, is not there or has no port");
            let what = format!("{what}: scoring URIs are not known");
            self.trouble.insert(watched, Trouble { what, is_denied: false });
        }
    }

    /// What is to be said of an object now. `counts` says how things are with a deployment of an endpoint.
    pub(super) fn report(
        &self,
        key: &Key,
        known: &Known,
        counts: impl Fn(&Name, &Name) -> Option<Counts>,
        now: SystemTime,
    ) -> EndpointStatus {
        let before = &known.object.status;
        let holder = known.name.as_ref().and_then(|name| self.endpoints.holder(name));
        let good = known.good.as_ref().filter(|_| holder == Some(key)).map(|good| &good.spec);
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
        let statements = [
            Some(("Accepted", self.accepted(known, holder, key))),
            Some(("Ready", self.ready(known, holder == Some(key), &deployments))),
            self.scalable(known).filter(|_| good.is_some()).map(|statement| ("Scaled", statement)),
        ];
        let conditions = statements.into_iter().flatten().map(|(kind, (is_true, reason, message))| {
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
            // Where the router's Service is not known, clients may still find it where they have so far.
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

    fn accepted(&self, known: &Known, holder: Option<&Key>, key: &Key) -> Statement {
        if let Some(holder) = holder.filter(|holder| *holder != key) {
            let what = format!(
                "the endpoint {} exists already, in the namespace {}, and is older; give one of them another name",
                holder.name, holder.namespace
            );
            return (false, "NameConflict", what);
        }
        if !known.problems.is_empty() {
            let words: Vec<String> = known.problems.iter().map(ToString::to_string).collect();
            let kept = if known.good.is_some() { "; the last good version serves" } else { "" };
            return (false, known.reason, format!("{}{kept}", words.join("; ")));
        }
        let Some(good) = &known.good else { return (false, "Invalid", String::new()) };
        for (deployment, (workload, _)) in super::routing::named(&good.spec) {
            let user = (good.spec.name.clone(), deployment);
            if let Standing::Unfit(reason, what) = self.targets.standing(&workload, &user, |other| *other != user) {
                return (false, reason, what);
            }
        }
        (true, "Accepted", "the spec is in order, and what it names is there".to_owned())
    }

    fn ready(&self, known: &Known, is_holder: bool, deployments: &[DeploymentStatus]) -> Statement {
        let Some(good) = known.good.as_ref().filter(|_| is_holder) else {
            return (false, "NotAccepted", "nothing is served; see the condition Accepted".to_owned());
        };
        if good.access.needs_signing() && self.tokens.signing.load().is_none() {
            let what =
                "nobody can get a token: set tokens.signingSecret or tokens.signingKeyFile in the router's settings";
            return (false, "NoSigningKey", what.to_owned());
        }
        let live = good.spec.deployments.iter().zip(&good.spec.traffic).zip(deployments);
        let live: Vec<_> = live.filter(|((_, percent), _)| **percent > 0).collect();
        if live.is_empty() {
            return (false, "Closed", "no deployment has traffic; requests must name one".to_owned());
        }
        let is_zero = |scale: &ScaleSettings| matches!(scale, ScaleSettings::Utilization(it) if it.min == 0);
        for ((deployment, _), status) in live {
            if status.ready_replicas == 0 && !is_zero(&deployment.scale) {
                let what = match &deployment.target {
                    Target::Workload(target) => format!("no pod of {} {} is ready", target.kind, target.name),
                    Target::Instances(_) | Target::Process(_) => "no replica is ready".to_owned(),
                };
                return (false, "NoReadyReplica", format!("deployment {}: {what}", deployment.name));
            }
        }
        (true, "Serving", "every deployment with traffic can take requests".to_owned())
    }

    /// `None` where the router scales nothing.
    fn scalable(&self, known: &Known) -> Option<Statement> {
        let good = known.good.as_ref()?;
        let is_scaled = |name: &Name| {
            let deployment = good.spec.deployments.iter().find(|deployment| deployment.name == *name);
            deployment.is_some_and(|deployment| matches!(deployment.scale, ScaleSettings::Utilization(_)))
        };
        let scaled = super::routing::named(&good.spec).into_iter().filter(|(name, _)| is_scaled(name));
        let mut is_any = false;
        for (deployment, (workload, _)) in scaled {
            is_any = true;
            if let Some(autoscaler) = self.autoscaler(&workload) {
                let what = format!(
                    "the HorizontalPodAutoscaler {} scales {} {} too, so the replicas of {deployment} are left to it; \
                     delete it, or write `type: default`",
                    autoscaler.name, workload.kind, workload.key.name
                );
                return Some((false, "HorizontalPodAutoscaler", what));
            }
        }
        let is_fixed = good.spec.deployments.iter().all(|one| match &one.scale {
            ScaleSettings::Utilization(settings) => settings.min == settings.max,
            ScaleSettings::Fixed { .. } | ScaleSettings::Unmanaged => true,
        });
        let what =
            if is_fixed { "there are as many replicas as instanceCount says" } else { "replicas follow the load" };
        is_any.then(|| (true, "Scaling", what.to_owned()))
    }
}
