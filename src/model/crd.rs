//! The custom resource definition of `OnlineEndpoint`. It is the document as written ([`super::resource`]) as a
//! structural schema, with the bounds, defaults and rules of [`super::validate`], so that the API server refuses what
//! the router would refuse.
//!
//! Rules are written in the Common Expression Language (CEL). Where a rule depends on the presence of a field, the
//! schema has no default for it, because the API server fills in defaults before it evaluates rules.

use std::ops::RangeInclusive;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::duration::HumanDuration;
use super::endpoint::defaults;
use super::endpoint_status::EndpointStatus;
use super::json_path;
use super::name;
use super::resource::{API_VERSION, KIND, RawSpec};
use super::validate::{self, MAX_DEPLOYMENTS, cors, deployment, scale, traffic};

mod rules;
use rules::{CelRule, rules};

/// The API group of the resource and of its subresources.
pub const API_GROUP: &str = "inference-router.dev";
/// The plural name of the resource, as in URLs.
pub const PLURAL_NAME: &str = "onlineendpoints";
/// The length limit of texts that have no other one. Rules over a text need a bounded cost.
const MAX_TEXT_CHARS: u64 = 2_048;
/// The length limit of lists that have no other one, for the same reason.
const MAX_LIST_ITEMS: u64 = 64;

const DEPLOYMENT_PATH: &str = "deployments[]";
const ISSUER_PATH: &str = "jwt.issuers[]";

/// Returns the whole definition as YAML.
pub fn to_yaml() -> String {
    // The definition contains only values that YAML can express.
    serde_saphyr::to_string(&definition()).unwrap_or_default()
}

/// Returns the whole definition, as for `kubectl apply`.
pub fn definition() -> Value {
    let version = API_VERSION.rsplit('/').next().unwrap_or_default();
    let column = |name, kind, path, description| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL_NAME}.{API_GROUP}")},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": format!("{KIND}List"),
                "plural": PLURAL_NAME,
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
                "schema": {"openAPIV3Schema": root_schema()},
            }],
        },
    })
}

fn root_schema() -> Value {
    let name_rule = format!(
        "size(self.metadata.name) >= {} && size(self.metadata.name) <= {} && self.metadata.name.matches('{}')",
        name::NAME_LENGTH.start(),
        name::NAME_LENGTH.end(),
        NAME_PATTERN
    );
    json!({
        "type": "object",
        "description": "A stable name that clients call, with its rules and the versions of a model behind it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": schema_of::<EndpointStatus>("How things are, as the router sees it."),
        },
        "x-kubernetes-validations": [{
            "rule": name_rule,
            "message": "metadata.name: a name has 3 to 32 letters, digits and single inner dashes, a letter first",
        }],
    })
}

/// A letter, then letters, digits and single dashes, without a dash at the end.
const NAME_PATTERN: &str = "^[a-zA-Z]([a-zA-Z0-9]|-[a-zA-Z0-9])*$";

fn spec_schema() -> Value {
    let mut spec = schema_of::<RawSpec>("");
    for (path, more) in refinements() {
        let node = schema_at(&mut spec, path);
        if let (Value::Object(node), Value::Object(more)) = (node, more) {
            node.extend(more);
        }
    }
    for CelRule { schema_path: at, blamed_field: field, expression: rule, message } in rules() {
        let node = schema_at(&mut spec, at);
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

/// Bounds and defaults by their path in the schema.
fn refinements() -> Vec<(&'static str, Value)> {
    let number = |range: &RangeInclusive<i64>| json!({"minimum": range.start(), "maximum": range.end()});
    let and_default = |range: &RangeInclusive<i64>, default: i64| json!({"minimum": range.start(), "maximum": range.end(), "default": default});
    let name =
        json!({"minLength": name::NAME_LENGTH.start(), "maxLength": name::NAME_LENGTH.end(), "pattern": NAME_PATTERN});
    let path = |default: &str| json!({"pattern": "^/", "default": default});
    let object_name = json!({"maxLength": validate::MAX_OBJECT_NAME_BYTES, "pattern": validate::OBJECT_NAME_PATTERN});
    let (places, place) = (
        json!({"maxItems": traffic::MAX_JSON_PATHS}),
        json!({"pattern": json_path::JSON_PATH_PATTERN, "maxLength": json_path::MAX_JSON_PATH_CHARS}),
    );
    let interval = HumanDuration(defaults::POLLING_INTERVAL).to_string();
    vec![
        ("", json!({"required": ["deployments"]})),
        ("authMode", json!({"enum": ["key", "aml_token", "aad_token", "none"], "default": "key"})),
        ("keys.secretRef", json!({"required": ["name"]})),
        ("keys.secretRef.name", object_name.clone()),
        ("jwt", json!({"required": ["issuers"]})),
        ("jwt.issuers", json!({"minItems": 1, "maxItems": MAX_LIST_ITEMS})),
        (ISSUER_PATH, json!({"required": ["issuer", "audiences"]})),
        ("jwt.issuers[].audiences", json!({"minItems": 1})),
        ("traffic", json!({"maxProperties": MAX_DEPLOYMENTS})),
        ("traffic[]", number(&traffic::PERCENT_RANGE)),
        ("bandwidthLimitBytesPerSecond", number(&traffic::BANDWIDTH_BYTES_PER_SECOND_RANGE)),
        ("mirrorTraffic", json!({"maxProperties": 1})),
        ("mirrorTraffic[]", number(&traffic::MIRRORED_PERCENT_RANGE)),
        ("mirrorSettings.onClientAbort", json!({"enum": ["finish", "drop"], "default": "finish"})),
        ("mirrorSettings.windowBytes", and_default(&traffic::WINDOW_BYTES_RANGE, defaults::MIRROR_WINDOW_BYTES)),
        ("mirrorComparison.compareBodies", json!({"default": true})),
        ("mirrorComparison.maxBodyBytes", and_default(&traffic::COMPARED_BYTES_RANGE, defaults::COMPARED_BYTES)),
        ("mirrorComparison.numericTolerance", json!({"minimum": 0, "maximum": 1, "default": 0})),
        ("mirrorComparison.ignorePaths", places.clone()),
        ("mirrorComparison.ignorePaths[]", place.clone()),
        ("mirrorComparison.unorderedPaths", places),
        ("mirrorComparison.unorderedPaths[]", place),
        ("cors.maxAgeSeconds", number(&cors::MAX_AGE_SECONDS_RANGE)),
        (
            "deployments",
            json!({
                "minItems": 1, "maxItems": MAX_DEPLOYMENTS,
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            }),
        ),
        (DEPLOYMENT_PATH, json!({"required": ["name"]})),
        ("deployments[].name", name),
        ("deployments[].targetRef", json!({"required": ["apiVersion", "kind", "name"]})),
        ("deployments[].targetRef.apiVersion", json!({"pattern": deployment::API_VERSION_PATTERN})),
        ("deployments[].targetRef.kind", json!({"pattern": deployment::KIND_PATTERN})),
        ("deployments[].targetRef.name", object_name.clone()),
        ("deployments[].upstreamTls.secretRef", json!({"required": ["name"]})),
        ("deployments[].upstreamTls.secretRef.name", object_name),
        ("deployments[].port", and_default(&deployment::PORT_RANGE, defaults::PORT)),
        ("deployments[].scoringPath", path(defaults::SCORING_PATH)),
        ("deployments[].swaggerPath", path(defaults::SWAGGER_PATH)),
        ("deployments[].forwardAuthorization", json!({"default": false})),
        (
            "deployments[].requestSettings.requestTimeoutMs",
            and_default(&deployment::REQUEST_TIMEOUT_MS_RANGE, defaults::REQUEST_TIMEOUT_MS),
        ),
        (
            "deployments[].requestSettings.streamIdleTimeoutMs",
            and_default(&deployment::STREAM_IDLE_TIMEOUT_MS_RANGE, defaults::STREAM_IDLE_TIMEOUT_MS),
        ),
        (
            "deployments[].requestSettings.maxConcurrentRequestsPerInstance",
            and_default(&deployment::MAX_CONCURRENT_RANGE, defaults::MAX_CONCURRENT_PER_INSTANCE),
        ),
        (
            "deployments[].requestSettings.maxQueueWaitMs",
            and_default(&deployment::MAX_QUEUE_WAIT_MS_RANGE, defaults::MAX_QUEUE_WAIT_MS),
        ),
        (
            "deployments[].requestSettings.maxQueueLength",
            and_default(&deployment::MAX_QUEUE_LENGTH_RANGE, defaults::MAX_QUEUE_LENGTH),
        ),
        ("deployments[].scaleSettings.type", json!({"enum": ["default", "target_utilization"], "default": "default"})),
        ("deployments[].scaleSettings.instanceCount", number(&scale::MAX_INSTANCES_RANGE)),
        ("deployments[].scaleSettings.minInstances", and_default(&scale::INSTANCES_RANGE, defaults::MIN_INSTANCES)),
        ("deployments[].scaleSettings.maxInstances", and_default(&scale::MAX_INSTANCES_RANGE, defaults::MAX_INSTANCES)),
        (
            "deployments[].scaleSettings.targetUtilizationPercentage",
            and_default(&scale::TARGET_PERCENTAGE_RANGE, defaults::TARGET_UTILIZATION_PERCENTAGE),
        ),
        ("deployments[].scaleSettings.pollingInterval", json!({"maxLength": 20, "default": interval})),
        ("deployments[].scaleSettings.idleBeforeZero", json!({"maxLength": 20})),
        ("deployments[].scaleSettings.coldStartTimeoutMs", number(&scale::COLD_START_TIMEOUT_MS_RANGE)),
        ("deployments[].dataCollector.samplingRate", json!({"minimum": 0, "maximum": 1})),
        ("deployments[].dataCollector.rollingRate", json!({"enum": ["Minute", "Hour", "Day"]})),
    ]
}

/// Returns the structural schema of a type, with this description unless it is empty.
fn schema_of<T: schemars::JsonSchema>(description: &str) -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    make_structural(&mut schema);
    if !description.is_empty() {
        schema["description"] = json!(description);
    }
    schema
}

/// Removes what a structural schema must not have, and bounds texts and lists without bounds.
fn make_structural(schema: &mut Value) {
    let Value::Object(node) = schema else {
        // `true` stands for any value.
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
        properties.values_mut().for_each(make_structural);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = node.get_mut(inner) {
            make_structural(inner);
        }
    }
    add_bounds(node);
}

fn add_bounds(node: &mut Map<String, Value>) {
    let (word, most) = match node.get("type").and_then(Value::as_str) {
        Some("string") => ("maxLength", MAX_TEXT_CHARS),
        Some("array") => ("maxItems", MAX_LIST_ITEMS),
        Some("object") if node.contains_key("additionalProperties") => ("maxProperties", MAX_LIST_ITEMS),
        None if node.is_empty() || node.keys().all(|key| key == "description") => {
            node.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
            return;
        }
        _ => return,
    };
    node.entry(word).or_insert(json!(most));
}

/// Returns the part of a schema at `path`, which has names of fields, and `[]` for the items of a list or the values of
/// a map.
fn schema_at<'s>(schema: &'s mut Value, path: &str) -> &'s mut Value {
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
