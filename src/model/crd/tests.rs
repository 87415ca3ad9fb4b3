//! What the API server would make of documents, by the schema and its rules, beside what the router makes of them.

use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Program, Value as Cel};

use super::*;
use crate::model::validate::{self, DocumentOrigin};

/// A document that is in order.
fn valid_document() -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "my-endpoint", "namespace": "team-a"},
        "spec": {
            "keys": {"secretRef": {"name": "my-keys"}},
            "traffic": {"blue": 90, "Green": 10},
            "deployments": [
                {"name": "blue", "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "model-v1"}},
                {
                    "name": "green",
                    "targetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "model-v2"},
                    "port": 8000,
                    "requestSettings": {"requestTimeoutMs": 300000, "maxConcurrentRequestsPerInstance": 4},
                    "scaleSettings": {"type": "target_utilization", "minInstances": 0, "maxInstances": 9,
                        "idleBeforeZero": "5m"},
                },
            ],
        },
    })
}

/// The good document with the node at `pointer` set to `value`; null takes it out.
fn valid_document_with(pointer: &str, value: Value) -> Value {
    let mut document = valid_document();
    let steps: Vec<&str> = pointer.split('/').skip(1).collect();
    let (last, parents) = steps.split_last().unwrap();
    let parent = parents.iter().fold(&mut document, |node, step| match step.parse::<usize>() {
        Ok(index) => &mut node[index],
        Err(_) => &mut node[*step],
    });
    match (parent, last.parse::<usize>()) {
        (Value::Array(list), Ok(index)) => list[index] = value,
        (Value::Object(map), _) if value.is_null() => drop(map.remove(*last)),
        (parent, _) => parent[*last] = value,
    }
    document
}

/// What the API server would say: first it fills defaults in, then come types and bounds, then the rules.
fn schema_refusals(document: &Value) -> Vec<String> {
    let definition = definition();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut document = document.clone();
    fill_in_defaults(schema, &mut document);
    let mut refusals = Vec::new();
    check_schema(schema, &document, "", &mut refusals);
    if refusals.is_empty() {
        check_rules(schema, &document, "", &mut refusals);
    }
    refusals
}

fn fill_in_defaults(schema: &Value, value: &mut Value) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        if let Value::Object(map) = value {
            if let (None, Some(default)) = (map.get(name), inner.get("default")) {
                map.insert(name.clone(), default.clone());
            }
            map.get_mut(name).into_iter().for_each(|value| fill_in_defaults(inner, value));
        }
    }
    if let (Some(items), Value::Array(list)) = (schema.get("items"), value) {
        list.iter_mut().for_each(|item| fill_in_defaults(items, item));
    }
}

/// The parts of JSON Schema that structural schemas are made of.
fn check_schema(schema: &Value, value: &Value, path: &str, refusals: &mut Vec<String>) {
    let mut refuse = |what: &str| refusals.push(format!("{path}: {what}"));
    let is_of_type = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("{other}"),
    };
    if !is_of_type {
        return refuse("type");
    }
    let bounds = [
        ("minimum", value.as_f64(), 1.0),
        ("maximum", value.as_f64(), -1.0),
        ("minLength", value.as_str().map(|text| text.chars().count() as f64), 1.0),
        ("maxLength", value.as_str().map(|text| text.chars().count() as f64), -1.0),
        ("minItems", value.as_array().map(|list| list.len() as f64), 1.0),
        ("maxItems", value.as_array().map(|list| list.len() as f64), -1.0),
        ("maxProperties", value.as_object().map(|map| map.len() as f64), -1.0),
    ];
    for (word, size, sign) in bounds {
        if let (Some(bound), Some(size)) = (schema[word].as_f64(), size)
            && (size - bound) * sign < 0.0
        {
            refuse(word);
        }
    }
    let matches = |pattern: &str| match evaluate(&format!("self.matches(r'{pattern}')"), value) {
        Cel::Bool(matches) => matches,
        other => panic!("{other:?}"),
    };
    if schema["pattern"].as_str().is_some_and(|pattern| !matches(pattern)) {
        refuse("pattern");
    }
    if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
        refuse("enum");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            refuse(&format!("{name} is missing"));
        }
    }
    for_each_child(schema, value, path, &mut |schema, value, path| check_schema(schema, value, path, refusals));
}

fn check_rules(schema: &Value, value: &Value, path: &str, refusals: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        if evaluate(rule["rule"].as_str().unwrap(), value) != Cel::Bool(true) {
            let field = rule["fieldPath"].as_str().unwrap_or_default();
            refusals.push(format!("{path}{field}: {}", rule["message"].as_str().unwrap()));
        }
    }
    for_each_child(schema, value, path, &mut |schema, value, path| check_rules(schema, value, path, refusals));
}

fn for_each_child(schema: &Value, value: &Value, path: &str, each: &mut dyn FnMut(&Value, &Value, &str)) {
    if let (Some(items), Value::Array(list)) = (schema.get("items"), value) {
        list.iter().enumerate().for_each(|(index, item)| each(items, item, &format!("{path}[{index}]")));
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(inner) = schema["properties"].get(name).or(schema.get("additionalProperties")) {
            each(inner, value, &format!("{path}.{name}"));
        }
    }
}

/// CEL with the functions of Kubernetes that rules use.
fn evaluate(rule: &str, this: &Value) -> Cel {
    let mut context = Context::default();
    context.add_function("lowerAscii", |This(text): This<Arc<String>>| text.to_ascii_lowercase()).unwrap();
    // As milliseconds: rules only compare them.
    let milliseconds = |text: Arc<String>| text.parse::<HumanDuration>().unwrap().0.as_millis() as i64;
    context.add_function("duration", milliseconds).unwrap();
    let added = context.add_function("sum", |This(list): This<Arc<Vec<Cel>>>| {
        let number = |value: &Cel| match value {
            Cel::Int(number) => *number,
            Cel::UInt(number) => i64::try_from(*number).unwrap(),
            other => panic!("{other:?}"),
        };
        list.iter().map(number).sum::<i64>()
    });
    added.unwrap();
    context.add_variable("self", this).unwrap();
    Program::compile(rule).unwrap_or_else(|error| panic!("{rule}: {error}")).execute(&context).unwrap_or_else(|error| {
        panic!("{rule} of {this}: {error}");
    })
}

/// Changes of the good document, and whether it is in order then.
fn corpus() -> Vec<(Value, bool)> {
    let deployment = |name: &str| json!({"name": name, "targetRef": {"apiVersion": "v1", "kind": "Kind", "name": "n"}});
    let bad = [
        ("/metadata/name", json!("ab")),
        ("/metadata/name", json!("a".repeat(33))),
        ("/metadata/name", json!("a--b")),
        ("/metadata/name", json!("1abc")),
        ("/metadata/name", json!("abc.d")),
        ("/spec/authMode", json!("password")),
        ("/spec/authMode", json!("none")),
        ("/spec/authMode", json!("aad_token")),
        ("/spec/keys", Value::Null),
        ("/spec/keys", json!({})),
        ("/spec/keys", json!({"primary": {"value": "0123456789abcdef"}})),
        ("/spec/keys/secondary", json!({"file": "/etc/passwd"})),
        ("/spec/jwt", json!({"issuers": [{"issuer": "https://a.example", "audiences": ["b"]}]})),
        ("/spec/traffic", json!({"blue": 90, "green": 9})),
        ("/spec/traffic", json!({"blue": 101})),
        ("/spec/traffic", json!({"blue": -100, "green": 200})),
        ("/spec/traffic", json!({"red": 100})),
        ("/spec/traffic", json!({"blue": 50, "BLUE": 50})),
        ("/spec/traffic", json!([])),
        ("/spec/mirrorTraffic", json!({"blue": 10})),
        ("/spec/mirrorTraffic", json!({"red": 10})),
        ("/spec/mirrorTraffic", json!({"blue": 0, "green": 0})),
        ("/spec/mirrorTraffic", json!({"green": 51})),
        ("/spec/mirrorSettings", json!({"onClientAbort": "wait"})),
        ("/spec/mirrorSettings", json!({"windowBytes": 1})),
        ("/spec/bandwidthLimitBytesPerSecond", json!(65_535)),
        ("/spec/bandwidthLimitBytesPerSecond", json!("5MB")),
        ("/spec/mirrorComparison", json!({"maxBodyBytes": 0})),
        ("/spec/mirrorComparison", json!({"numericTolerance": 1.5})),
        ("/spec/mirrorComparison", json!({"numericTolerance": -1e-6})),
        ("/spec/mirrorComparison", json!({"ignorePaths": ["timestamp"]})),
        ("/spec/mirrorComparison", json!({"ignorePaths": ["$."]})),
        ("/spec/mirrorComparison", json!({"ignorePaths": ["$.a..b"]})),
        ("/spec/mirrorComparison", json!({"unorderedPaths": ["$[+1]"]})),
        ("/spec/mirrorComparison", json!({"unorderedPaths": ["$[\"a\"b\"]"]})),
        ("/spec/mirrorComparison", json!({"unorderedPaths": ["$[\"\\x\"]"]})),
        ("/spec/mirrorComparison", json!({"unorderedPaths": ["$[00]"]})),
        ("/spec/mirrorComparison", json!({"ignorePaths": ["$.a "]})),
        ("/spec/mirrorComparison", json!({"ignorePaths": [format!("$.{}", "a".repeat(255))]})),
        ("/spec/cors", json!({"maxAgeSeconds": 60})),
        ("/spec/cors", json!({"allowOrigins": ["*"], "allowCredentials": true})),
        ("/spec/cors", json!({"allowOrigins": ["*"], "maxAgeSeconds": 90000})),
        ("/spec/deployments", json!([])),
        ("/spec/deployments", Value::Null),
        ("/spec/deployments/1", deployment("Blue")),
        ("/spec/deployments/0/name", json!("x")),
        ("/spec/deployments/0/targetRef", Value::Null),
        ("/spec/deployments/0/targetRef", json!({"kind": "Deployment", "name": "model"})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": ""})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "a/b"})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "../../v1", "kind": "Deployment", "name": "model"})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "apps/v1?x=y", "kind": "Deployment", "name": "model"})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "apps/v1", "kind": "deployment", "name": "model"})),
        ("/spec/deployments/0/targetRef", json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "model-v2"})),
        ("/spec/keys/secretRef/name", json!("My Keys")),
        ("/spec/keys/secretRef/name", json!("")),
        ("/spec/deployments/0", json!({"name": "blue", "instances": ["169.254.169.254:80"]})),
        ("/spec/deployments/0", json!({"name": "blue", "process": {"command": ["sh", "{port}"]}})),
        ("/spec/deployments/0/instances", json!(["127.0.0.1:5001"])),
        ("/spec/deployments/0/upstreamTls", json!({"caFile": "/ca.pem"})),
        ("/spec/deployments/0/upstreamTls", json!({"secretRef": {}})),
        ("/spec/deployments/0/upstreamTls", json!({"secretRef": {"name": ""}})),
        ("/spec/deployments/0/port", json!(0)),
        ("/spec/deployments/0/port", json!("5001")),
        ("/spec/deployments/0/scoringPath", json!("score")),
        ("/spec/deployments/1/requestSettings/requestTimeoutMs", json!(300001)),
        ("/spec/deployments/1/requestSettings/maxConcurrentRequestsPerInstance", json!(0)),
        ("/spec/deployments/1/requestSettings/maxQueueWaitMs", json!(-1)),
        ("/spec/deployments/1/scaleSettings/type", json!("auto")),
        ("/spec/deployments/1/scaleSettings/minInstances", json!(10)),
        ("/spec/deployments/1/scaleSettings/minInstances", json!(1)),
        ("/spec/deployments/1/scaleSettings/instanceCount", json!(2)),
        ("/spec/deployments/1/scaleSettings/targetUtilizationPercentage", json!(101)),
        ("/spec/deployments/1/scaleSettings/pollingInterval", json!("10ms")),
        ("/spec/deployments/1/scaleSettings/pollingInterval", json!("1 second")),
        ("/spec/deployments/1/scaleSettings/idleBeforeZero", json!("25h")),
        ("/spec/deployments/1/scaleSettings/coldStartTimeoutMs", json!(0)),
        ("/spec/deployments/0/scaleSettings", json!({"instanceCount": 0})),
        ("/spec/deployments/0/scaleSettings", json!({"type": "target_utilization", "minInstances": 2})),
    ];
    let fine = [
        ("/spec/authMode", json!("key")),
        ("/spec/authMode", json!("aml_token")),
        ("/spec/traffic", Value::Null),
        ("/spec/traffic", json!({"blue": 0})),
        ("/spec/traffic", json!({"BLUE": 100})),
        ("/spec/mirrorSettings", json!({"onClientAbort": "drop", "windowBytes": 2_097_152})),
        ("/spec/cors", json!({"allowOrigins": ["https://app.example"], "allowCredentials": true})),
        ("/spec/bandwidthLimitBytesPerSecond", json!(5_000_000)),
        ("/spec/mirrorComparison", json!({})),
        ("/spec/mirrorComparison", json!({"compareBodies": false, "maxBodyBytes": 2048})),
        (
            "/spec/mirrorComparison",
            json!({
                "numericTolerance": 1e-6, "ignorePaths": ["$", "$.timestamp", "$.a[*].*[\"odd. name\"][3]"],
                "unorderedPaths": ["$.labels", "$[\"\"]", "$[\"a\\\"]\\u00e9\"][0][10]"],
            }),
        ),
        ("/spec/cors", json!({})),
        ("/spec/deployments/1", deployment("Green")),
        ("/spec/deployments/0/upstreamTls", json!({"serverName": "model.example"})),
        ("/spec/deployments/0/upstreamTls", json!({"secretRef": {"name": "models-tls"}, "skipVerify": true})),
        ("/spec/deployments/0/scaleSettings", json!({"instanceCount": 3})),
        ("/spec/deployments/0/scaleSettings", json!({"type": "target_utilization", "maxInstances": 2})),
        ("/spec/deployments/1/scaleSettings/pollingInterval", json!("500ms")),
    ];
    let bad = bad.into_iter().map(|(pointer, value)| (valid_document_with(pointer, value), false));
    bad.chain(fine.into_iter().map(|(pointer, value)| (valid_document_with(pointer, value), true)))
        .chain([(valid_document(), true)])
        .collect()
}

#[test]
fn the_api_server_refuses_what_the_router_refuses_and_nothing_else() {
    for (document, is_fine) in corpus() {
        let (schema, router) =
            (schema_refusals(&document), validate::decode_and_validate(document.clone(), DocumentOrigin::Cluster));
        let router: Vec<String> =
            router.err().into_iter().flat_map(|refused| refused.problems).map(|it| it.to_string()).collect();
        assert_eq!(router.is_empty(), is_fine, "the router: {router:?} of {document}");
        assert_eq!(schema.is_empty(), is_fine, "the schema: {schema:?} of {document}; the router: {router:?}");
    }
}

/// What the API server fills in is what the router takes for granted.
#[test]
fn defaults_of_the_schema_are_those_of_the_router() {
    let schema = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    for (mut document, _) in corpus().into_iter().filter(|(_, is_fine)| *is_fine) {
        let before = validate::decode_and_validate(document.clone(), DocumentOrigin::Cluster).unwrap();
        fill_in_defaults(&schema, &mut document);
        assert_eq!(validate::decode_and_validate(document, DocumentOrigin::Cluster).unwrap(), before);
    }
}

/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
#[test]
fn the_schema_is_structural_described_and_bounded() {
    fn assert_structural(schema: &Value, path: &str) {
        let node = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}"));
        let known = [
            "type",
            "format",
            "description",
            "properties",
            "items",
            "additionalProperties",
            "required",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "maxProperties",
            "default",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-validations",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
        ];
        for word in node.keys() {
            assert!(known.contains(&word.as_str()), "{path}: {word}");
        }
        let any = node.contains_key("x-kubernetes-preserve-unknown-fields");
        assert!(node.contains_key("type") != any, "{path}: {schema}");
        assert!(!(node.contains_key("properties") && node.contains_key("additionalProperties")), "{path}");
        match node.get("type").and_then(Value::as_str) {
            Some("string") => assert!(node.contains_key("maxLength") || path.starts_with(".status"), "{path}"),
            Some("array") => assert!(node.contains_key("maxItems") && node.contains_key("items"), "{path}"),
            _ => {}
        }
        for (name, inner) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.{name}");
            let is_own = !["", ".apiVersion", ".kind", ".metadata"].contains(&path.as_str());
            let described = inner["description"].as_str().is_some_and(|text| text.len() > 5 && !text.contains('\n'));
            assert!(described || !is_own, "{path} has no description: {inner}");
            assert_structural(inner, &path);
        }
        for inner in ["items", "additionalProperties"] {
            node.get(inner).into_iter().for_each(|inner| assert_structural(inner, &format!("{path}[]")));
        }
    }
    let definition = definition();
    let schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    assert_structural(&schema["properties"]["spec"], ".spec");
    assert_structural(&schema["properties"]["status"], ".status");
    for rule in definition.to_string().split("\"message\":\"").skip(1) {
        let message = rule.split("\",").next().unwrap();
        assert!(message.len() <= 2048 && !message.contains("\\n"), "{message}");
    }
}

/// `UPDATE_FILES=1 cargo test` writes the file anew.
#[test]
fn the_file_to_deploy_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crd/onlineendpoints.yaml");
    if std::env::var_os("UPDATE_FILES").is_some() {
        std::fs::write(path, to_yaml()).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap();
    assert!(file == to_yaml(), "deploy/crd/onlineendpoints.yaml is out of date; run UPDATE_FILES=1 cargo test");
}
