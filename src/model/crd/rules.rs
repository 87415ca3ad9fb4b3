//! CEL rules of the definition, each with the message for a user who breaks it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::duration::HumanDuration;
use super::super::validate::scale;
use super::super::validate::unsupported::{DEPLOYMENT_NEEDS_FILE, ISSUER_NEEDS_FILE, NEEDS_FILE, RestrictedField};
use super::{DEPLOYMENT_PATH, ISSUER_PATH};

const SCALE_SETTINGS_PATH: &str = "deployments[].scaleSettings";

/// A CEL rule at a place in the schema.
pub(super) struct CelRule {
    /// Where the rule is: names of fields, and `[]` for the items of a list.
    pub(super) schema_path: &'static str,
    /// The field below that place that the message is about; empty for all of it.
    pub(super) blamed_field: &'static str,
    /// The expression that must be true.
    pub(super) expression: String,
    /// The message when the expression is false.
    pub(super) message: String,
}

/// Returns all rules.
pub(super) fn rules() -> Vec<CelRule> {
    let rule = |at, field, rule: &str, message: &str| CelRule {
        schema_path: at,
        blamed_field: field,
        expression: rule.to_owned(),
        message: message.to_owned(),
    };
    let between = |field: &'static str, range: &RangeInclusive<Duration>| {
        let [least, most] = [range.start(), range.end()].map(|time| format!("{}ms", time.as_millis()));
        let words = [range.start(), range.end()].map(|time| HumanDuration(*time).to_string());
        CelRule {
            schema_path: SCALE_SETTINGS_PATH,
            blamed_field: field,
            expression: format!(
                "!has(self.{field}) || \
                 (duration(self.{field}) >= duration('{least}') && duration(self.{field}) <= duration('{most}'))"
            ),
            message: format!("must be between {} and {}", words[0], words[1]),
        }
    };
    let mut rules = vec![
        rule(
            "",
            "keys",
            "!(self.authMode in ['key']) || has(self.keys)",
            "is missing; write `secretRef: {name: …}`, or `authMode: none` to let anybody in",
        ),
        rule(
            "",
            "keys",
            "!(self.authMode in ['none', 'aad_token']) || !has(self.keys)",
            "is given, but nobody would be asked for a key with this authMode; remove the keys, or write `authMode: key`",
        ),
        rule(
            "",
            "jwt",
            "self.authMode in ['aad_token'] || !has(self.jwt)",
            "is given, but tokens of issuers are not looked at with this authMode; remove it, or write `authMode: aad_token`",
        ),
        rule(
            "",
            "jwt",
            "!(self.authMode in ['aad_token']) || has(self.jwt)",
            "is missing; `authMode: aad_token` needs to know whose tokens to accept",
        ),
        rule("keys", "secretRef", "has(self.secretRef)", "is missing; write `secretRef: {name: …}`"),
        rule(
            "",
            "traffic",
            "!has(self.traffic) || self.traffic.map(name, self.traffic[name]).sum() in [0, 100]",
            "must sum to 100, or to 0 to close the endpoint",
        ),
        rule(
            "",
            "traffic",
            "!has(self.traffic) || self.traffic.all(name, self.deployments.exists(one, one.name.lowerAscii() == name.lowerAscii()))",
            "names a deployment that is not there",
        ),
        rule(
            "",
            "traffic",
            "!has(self.traffic) || self.traffic.all(name, self.traffic.exists_one(other, other.lowerAscii() == name.lowerAscii()))",
            "names a deployment a second time (case does not count); write it once",
        ),
        rule(
            "",
            "mirrorTraffic",
            "!has(self.mirrorTraffic) || self.mirrorTraffic.all(name, self.deployments.exists(one, one.name.lowerAscii() == name.lowerAscii()))",
            "names a deployment that is not there",
        ),
        rule(
            "",
            "mirrorTraffic",
            "!has(self.mirrorTraffic) || !has(self.traffic) || self.mirrorTraffic.all(name, self.mirrorTraffic[name] == 0 || \
             !self.traffic.exists(other, other.lowerAscii() == name.lowerAscii() && self.traffic[other] > 0))",
            "names a deployment that has live traffic too; a deployment gets live or mirrored traffic, not both",
        ),
        rule(
            "",
            "deployments",
            "self.deployments.all(one, self.deployments.exists_one(other, other.name.lowerAscii() == one.name.lowerAscii()))",
            "have a name twice (case does not count); give each its own",
        ),
        rule(
            "",
            "deployments",
            "self.deployments.all(one, !has(one.targetRef) || self.deployments.exists_one(other, has(other.targetRef) && \
             other.targetRef.apiVersion == one.targetRef.apiVersion && other.targetRef.kind == one.targetRef.kind && \
             other.targetRef.name == one.targetRef.name))",
            "have a targetRef twice: its pods could get more than they take; give each a workload of its own",
        ),
        rule(
            "jwt",
            "issuers",
            "self.issuers.all(one, self.issuers.exists_one(other, other.issuer == one.issuer))",
            "have an issuer twice; write all its audiences in one place",
        ),
        rule(
            "cors",
            "allowCredentials",
            "!has(self.allowCredentials) || !self.allowCredentials || !has(self.allowOrigins) || \
             !self.allowOrigins.exists(one, one == '*')",
            "cannot be true while `*` is among allowOrigins: any site could then act for a signed-in user",
        ),
        rule(
            "cors",
            "allowOrigins",
            "has(self.allowOrigins) || !(has(self.allowMethods) || has(self.allowHeaders) || has(self.exposeHeaders) || \
             has(self.allowCredentials) || has(self.maxAgeSeconds))",
            "is missing; list the sites whose pages may call, as `https://app.example`, or `*` for all",
        ),
        rule(
            DEPLOYMENT_PATH,
            "targetRef",
            "has(self.targetRef) || has(self.instances) || has(self.process)",
            "is missing; write `targetRef: {apiVersion: apps/v1, kind: Deployment, name: …}`",
        ),
        rule(
            SCALE_SETTINGS_PATH,
            "minInstances",
            "!has(self.minInstances) || !has(self.maxInstances) || self.minInstances <= self.maxInstances",
            "must not be more than maxInstances",
        ),
        rule(
            SCALE_SETTINGS_PATH,
            "instanceCount",
            "!(self.type in ['target_utilization']) || !has(self.instanceCount)",
            "is only for `type: default`; with `target_utilization` there are from minInstances to maxInstances; remove it",
        ),
        between("pollingInterval", &scale::POLLING_INTERVAL_RANGE),
        between("idleBeforeZero", &scale::IDLE_BEFORE_ZERO_RANGE),
    ];
    for field in ["idleBeforeZero", "coldStartTimeoutMs"] {
        let only = format!("!has(self.{field}) || (has(self.minInstances) && self.minInstances == 0)");
        rules.push(rule(
            SCALE_SETTINGS_PATH,
            field,
            &only,
            "is only for `minInstances: 0`; remove it, or let the deployment go down to 0",
        ));
    }
    rules.extend(file_only_rules("", NEEDS_FILE));
    rules.extend(file_only_rules(DEPLOYMENT_PATH, DEPLOYMENT_NEEDS_FILE));
    rules.extend(file_only_rules(ISSUER_PATH, ISSUER_NEEDS_FILE));
    rules
}

/// Returns rules that refuse what only documents in files may have.
fn file_only_rules<T>(at: &'static str, features: &'static [RestrictedField<T>]) -> impl Iterator<Item = CelRule> {
    features.iter().map(move |(path, _, message)| {
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        let at = match (at, parent) {
            (at, "") => at,
            ("", "keys") => "keys",
            (DEPLOYMENT_PATH, "upstreamTls") => "deployments[].upstreamTls",
            (at, _) => at,
        };
        CelRule {
            schema_path: at,
            blamed_field: field,
            expression: format!("!has(self.{field})"),
            message: (*message).to_owned(),
        }
    })
}
