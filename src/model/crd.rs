//! The custom resource definition of `OnlineEndpoint`: the document as written ([`super::resource`]) as a structural
//! schema, with the bounds, defaults and rules that [`super::validate`] keeps to, so that the API server refuses what the
//! router would.
//!
//! Rules are written in the Common Expression Language (CEL). Where presence matters to a rule there is no default in the
//! schema: the API server fills defaults in before it asks.

use std::ops::RangeInclusive;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::duration::WrittenDuration;
use super::endpoint::defaults;
use super::name;
use super::place;
use super::resource::{API_VERSION, KIND, RawSpec};
use super::status::EndpointStatus;
use super::validate::{self, MAX_DEPLOYMENTS, cors, deployment, scale, traffic};

mod rules;
use rules::{Rule, rules};

/// The group of the resource, and of what belongs to it.
pub const GROUP: &str = "inference-router.dev";
/// Its name in URLs.
pub const PLURAL: &str = "onlineendpoints";
/// Longest text where nothing else says how long: rules over it must have a bounded cost.
const LONGEST_TEXT: u64 = 2_048;
/// Most items of a list, for the same reason.
const MOST_ITEMS: u64 = 64;

const DEPLOYMENT: &str = "deployments[]";
const ISSUER: &str = "jwt.issuers[]";

/// The whole definition as YAML.
pub fn text() -> String {
    // What this serializes has nothing that YAML cannot say.
    serde_saphyr::to_string(&definition()).unwrap_or_default()
}

/// The whole definition, as for `kubectl apply`.
pub fn definition() -> Value {
    let version = API_VERSION.rsplit('/').next().unwrap_or_default();
    let column = |name, kind, path, description| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": format!("{KIND}List"),
                "plural": PLURAL,
                "singular": "onlineendpoint",
                "shortNames": ["oe"],
                "categories": ["all"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Auth", "string", ".spec.authMode", "Who may call"),
                    column("Traffic", "string", ".spec.traffic", "Percent of live traffic by deployment"),
                    column("Mirror", "string", ".spec.mirrorTraffic", "Percent of copied traffic"),
                    column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status", "Whether it can serve"),
                    column("Scoring URI", "string", ".status.scoringUri", "Where clients POST to"),
                    column("Age", "date", ".metadata.creationTimestamp", "Since when it is there"),
                ],
                "schema": {"openAPIV3Schema": root()},
            }],
        },
    })
}

fn root() -> Value {
    let name_rule = format!(
        "size(self.metadata.name) >= {} && size(self.metadata.name) <= {} && self.metadata.name.matches('{}')",
        name::LENGTH.start(),
        name::LENGTH.end(),
        NAME
    );
    json!({
        "type": "object",
        "description": "A stable name that clients call, with its rules and the versions of a model behind it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec(),
            "status": of::<EndpointStatus>("How things are, as the router sees it."),
        },
        "x-kubernetes-validations": [{
            "rule": name_rule,
            "message": "metadata.name: a name has 3 to 32 letters, digits and single inner dashes, a letter first",
        }],
    })
}

/// A letter first, then letters, digits and single dashes, the last not at the end.
const NAME: &str = "^[a-zA-Z]([a-zA-Z0-9]|-[a-zA-Z0-9])*$";

fn spec() -> Value {
    let mut spec = of::<RawSpec>("");
    for (path, more) in refinements() {
        let node = find(&mut spec, path);
        if let (Value::Object(node), Value::Object(more)) = (node, more) {
            node.extend(more);
        }
    }
    for Rule { at, field, rule, message } in rules() {
        let node = find(&mut spec, at);
        let mut entry = json!({"rule": rule, "message": message});
        if !field.is_empty() {
            entry["fieldPath"] = json!(format!(".{field}"));
        }
        if let Some(rules) = node["x-kubernetes-validations"].as_array_mut() {
            rules.push(entry);
        } else {
            node["x-kubernetes-validations"] = json!([entry]);
        }
    }
    spec
}

/// Bounds and defaults, by place.
fn refinements() -> Vec<(&'static str, Value)> {
    let number = |range: &RangeInclusive<i64>| json!({"minimum": range.start(), "maximum": range.end()});
    let and_default = |range: &RangeInclusive<i64>, default: i64| json!({"minimum": range.start(), "maximum": range.end(), "default": default});
    let name = json!({"minLength": name::LENGTH.start(), "maxLength": name::LENGTH.end(), "pattern": NAME});
    let path = |default: &str| json!({"pattern": "^/", "default": default});
    let object_name = json!({"maxLength": validate::MAX_OBJECT_NAME, "pattern": validate::OBJECT_NAME});
    let (places, place) =
        (json!({"maxItems": traffic::MAX_PLACES}), json!({"pattern": place::PATTERN, "maxLength": place::LONGEST}));
    let interval = WrittenDuration(defaults::POLLING_INTERVAL).to_string();
    vec![
        ("", json!({"required": ["deployments"]})),
        ("authMode", json!({"enum": ["key", "aml_token", "aad_token", "none"], "default": "key"})),
        ("keys.secretRef", json!({"required": ["name"]})),
        ("keys.secretRef.name", object_name.clone()),
        ("jwt", json!({"required": ["issuers"]})),
        ("jwt.issuers", json!({"minItems": 1, "maxItems": MOST_ITEMS})),
        (ISSUER, json!({"required": ["issuer", "audiences"]})),
        ("jwt.issuers[].audiences", json!({"minItems": 1})),
        ("traffic", json!({"maxProperties": MAX_DEPLOYMENTS})),
        ("traffic[]", number(&traffic::PERCENT)),
        ("bandwidthLimitBytesPerSecond", number(&traffic::BANDWIDTH)),
        ("mirrorTraffic", json!({"maxProperties": 1})),
        ("mirrorTraffic[]", number(&traffic::MIRRORED_PERCENT)),
        ("mirrorSettings.onClientAbort", json!({"enum": ["finish", "drop"], "default": "finish"})),
        ("mirrorSettings.windowBytes", and_default(&traffic::WINDOW_BYTES, defaults::MIRROR_WINDOW_BYTES)),
        ("mirrorComparison.compareBodies", json!({"default": true})),
        ("mirrorComparison.maxBodyBytes", and_default(&traffic::COMPARED_BYTES, defaults::COMPARED_BYTES)),
        ("mirrorComparison.numericTolerance", json!({"minimum": 0, "maximum": 1, "default": 0})),
        ("mirrorComparison.ignorePaths", places.clone()),
        ("mirrorComparison.ignorePaths[]", place.clone()),
        ("mirrorComparison.unorderedPaths", places),
        ("mirrorComparison.unorderedPaths[]", place),
        ("cors.maxAgeSeconds", number(&cors::MAX_AGE_SECONDS)),
        (
            "deployments",
            json!({
                "minItems": 1, "maxItems": MAX_DEPLOYMENTS,
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            }),
        ),
        (DEPLOYMENT, json!({"required": ["name"]})),
        ("deployments[].name", name),
        ("deployments[].targetRef", json!({"required": ["apiVersion", "kind", "name"]})),
        ("deployments[].targetRef.apiVersion", json!({"pattern": deployment::API_VERSION})),
        ("deployments[].targetRef.kind", json!({"pattern": deployment::KIND})),
        ("deployments[].targetRef.name", object_name.clone()),
        ("deployments[].upstreamTls.secretRef", json!({"required": ["name"]})),
        ("deployments[].upstreamTls.secretRef.name", object_name),
        ("deployments[].port", and_default(&deployment::PORT, defaults::PORT)),
        ("deployments[].scoringPath", path(defaults::SCORING_PATH)),
        ("deployments[].swaggerPath", path(defaults::SWAGGER_PATH)),
        ("deployments[].forwardAuthorization", json!({"default": false})),
        (
            "deployments[].requestSettings.requestTimeoutMs",
            and_default(&deployment::REQUEST_TIMEOUT_MS, defaults::REQUEST_TIMEOUT_MS),
        ),
        (
            "deployments[].requestSettings.streamIdleTimeoutMs",
            and_default(&deployment::STREAM_IDLE_TIMEOUT_MS, defaults::STREAM_IDLE_TIMEOUT_MS),
        ),
        (
            "deployments[].requestSettings.maxConcurrentRequestsPerInstance",
            and_default(&deployment::MAX_CONCURRENT, defaults::MAX_CONCURRENT_PER_INSTANCE),
        ),
        (
            "deployments[].requestSettings.maxQueueWaitMs",
            and_default(&deployment::MAX_QUEUE_WAIT_MS, defaults::MAX_QUEUE_WAIT_MS),
        ),
        (
            "deployments[].requestSettings.maxQueueLength",
            and_default(&deployment::MAX_QUEUE_LENGTH, defaults::MAX_QUEUE_LENGTH),
        ),
        ("deployments[].scaleSettings.type", json!({"enum": ["default", "target_utilization"], "default": "default"})),
        ("deployments[].scaleSettings.instanceCount", number(&scale::MOST_INSTANCES)),
        ("deployments[].scaleSettings.minInstances", and_default(&scale::INSTANCES, defaults::MIN_INSTANCES)),
        ("deployments[].scaleSettings.maxInstances", and_default(&scale::MOST_INSTANCES, defaults::MAX_INSTANCES)),
        (
            "deployments[].scaleSettings.targetUtilizationPercentage",
            and_default(&scale::TARGET_PERCENTAGE, defaults::TARGET_UTILIZATION_PERCENTAGE),
        ),
        ("deployments[].scaleSettings.pollingInterval", json!({"maxLength": 20, "default": interval})),
        ("deployments[].scaleSettings.idleBeforeZero", json!({"maxLength": 20})),
        ("deployments[].scaleSettings.coldStartTimeoutMs", number(&scale::COLD_START_TIMEOUT_MS)),
        ("deployments[].dataCollector.samplingRate", json!({"minimum": 0, "maximum": 1})),
        ("deployments[].dataCollector.rollingRate", json!({"enum": ["Minute", "Hour", "Day"]})),
    ]
}

/// The schema of a type, structural, with this description unless it is empty.
fn of<T: schemars::JsonSchema>(description: &str) -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    if !description.is_empty() {
        schema["description"] = json!(description);
    }
    schema
}

/// Takes out what a structural schema cannot have, and bounds what has no bounds.
fn structural(schema: &mut Value) {
    let Value::Object(node) = schema else {
        // `true`: any value.
        *schema = json!({"x-kubernetes-preserve-unknown-fields": true});
        return;
    };
    for word in ["$schema", "title", "nullable", "default"] {
        node.remove(word);
    }
    if node.get("additionalProperties").is_some_and(Value::is_boolean) {
        node.remove("additionalProperties");
    }
    if let Some(Value::String(text)) = node.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = node.get_mut(inner) {
            structural(inner);
        }
    }
    bound(node);
}

fn bound(node: &mut Map<String, Value>) {
    let (word, most) = match node.get("type").and_then(Value::as_str) {
        Some("string") => ("maxLength", LONGEST_TEXT),
        Some("array") => ("maxItems", MOST_ITEMS),
        Some("object") if node.contains_key("additionalProperties") => ("maxProperties", MOST_ITEMS),
        None if node.is_empty() || node.keys().all(|key| key == "description") => {
            node.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
            return;
        }
        _ => return,
    };
    node.entry(word).or_insert(json!(most));
}

/// The part of a schema at `path`: names of fields, `[]` for what is in a list or a map.
fn find<'s>(schema: &'s mut Value, path: &str) -> &'s mut Value {
    path.split('.').filter(|step| !step.is_empty()).fold(schema, |node, step| {
        let (name, inner) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        let node = &mut node["properties"][name];
        match (inner, node.get("items").is_some()) {
            (false, _) => node,
            (true, true) => &mut node["items"],
            (true, false) => &mut node["additionalProperties"],
        }
    })
}

#[cfg(test)]
mod tests;
