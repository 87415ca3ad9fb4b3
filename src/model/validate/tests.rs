use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::endpoint::{
    Auth, DeploymentTarget, KeySource, Mirror, OnClientAbort, Process, ScaleSettings, TargetUtilization,
};
use super::*;

/// Of a file.
fn read_from_file(document: Value) -> Result<Endpoint, InvalidDocument> {
    super::decode_and_validate(document, DocumentOrigin::File)
}

/// A document that is in order.
fn valid_document() -> Value {
    json!({
        "apiVersion": "inference-router.dev/v1alpha1",
        "kind": "OnlineEndpoint",
        "metadata": {"name": "My-Endpoint", "namespace": "team-a"},
        "spec": {
            "keys": {"primary": {"value": "0123456789abcdef"}},
            "traffic": {"blue": 90, "GREEN": 10},
            "deployments": [
                {"name": "blue", "instances": ["127.0.0.1:5001", "[::1]:5002"]},
                {"name": "green", "process": {"command": ["serve", "{port}"]}},
            ],
        },
    })
}

/// The good document with the node at `pointer` (`/spec/traffic`) set to `value`; null takes it out.
fn valid_document_with(pointer: &str, value: Value) -> Value {
    let mut document = valid_document();
    set_at_pointer(&mut document, pointer, value);
    document
}

fn set_at_pointer(document: &mut Value, pointer: &str, value: Value) {
    let mut node = document;
    for step in pointer.split('/').skip(1) {
        node = match step.parse::<usize>() {
            Ok(index) => &mut node[index],
            Err(_) => &mut node[step],
        };
    }
    *node = value;
}

fn problems_of(document: Value) -> Vec<String> {
    read_from_file(document).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

/// The document has exactly one problem, at `path`, and its message has every one of `gist`.
#[track_caller]
fn assert_refused(document: Value, path: &str, gist: &[&str]) {
    let problems = match read_from_file(document.clone()) {
        Ok(_) => panic!("accepted: {document}"),
        Err(refused) => refused.problems,
    };
    assert_eq!(problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), [path], "{problems:?}");
    for part in gist {
        assert!(problems[0].message.contains(part), "{:?} does not say {part:?}", problems[0].message);
    }
}

#[test]
fn a_small_document_gets_the_defaults() {
    let endpoint = read_from_file(valid_document()).unwrap();
    assert_eq!(endpoint.name.as_str(), "My-Endpoint");
    assert_eq!(endpoint.namespace.as_deref(), Some("team-a"));
    assert_eq!(endpoint.auth, Auth::Key(vec![KeySource::Value("0123456789abcdef".to_owned())]));
    assert_eq!((endpoint.traffic, endpoint.cors), (vec![90, 10], None));
    let [blue, green] = <[Deployment; 2]>::try_from(endpoint.deployments).unwrap();
    assert_eq!(blue.target, DeploymentTarget::Instances(vec!["127.0.0.1:5001".to_owned(), "[::1]:5002".to_owned()]));
    assert_eq!((blue.scoring_path.as_str(), blue.swagger_path.as_str()), ("/score", "/swagger.json"));
    assert_eq!((blue.forward_authorization, blue.host), (false, None));
    assert_eq!(blue.request_settings.timeout, Duration::from_secs(5));
    assert_eq!(blue.request_settings.stream_idle_timeout, Duration::from_secs(60));
    assert_eq!(blue.request_settings.max_concurrent_per_instance, NonZeroU32::MIN);
    assert_eq!(blue.request_settings.max_queue_wait, Duration::from_millis(500));
    assert_eq!(blue.request_settings.max_queue_length, 10_000);
    assert_eq!(blue.scale_settings, ScaleSettings::Fixed { instances: 2 });
    assert_eq!(green.scale_settings, ScaleSettings::Fixed { instances: 1 });
    let process = Process {
        command: vec!["serve".to_owned(), "{port}".to_owned()],
        readiness_path: "/".to_owned(),
        env: Vec::new(),
        working_dir: None,
    };
    assert_eq!(green.target, DeploymentTarget::Process(process));
}

#[test]
fn every_value_given_is_kept() {
    let mut document = valid_document_with(
        "/spec/deployments/1",
        json!({
            "name": "green", "scoringPath": "/v1/m:predict", "swaggerPath": "/s", "forwardAuthorization": true,
            "host": "model.example",
            "process": {"command": ["a"], "readinessPath": "/ready", "env": {"PORT": "{port}"}, "workingDir": "models"},
            "requestSettings": {"requestTimeoutMs": 300_000, "streamIdleTimeoutMs": 1,
                "maxConcurrentRequestsPerInstance": 7, "maxQueueWaitMs": 0, "maxQueueLength": 0},
            "scaleSettings": {"type": "default", "instanceCount": 3, "minInstances": 2, "maxInstances": 2,
                "targetUtilizationPercentage": 100, "pollingInterval": "2s"},
            "dataCollector": {"samplingRate": 0.5, "rollingRate": "Day",
                "collections": {"request": {"enabled": false}, "response": {}}},
        }),
    );
    set_at_pointer(
        &mut document,
        "/spec/keys",
        json!({"primary": {"env": "KEY"}, "secondary": {"file": "keys/second"}}),
    );
    set_at_pointer(&mut document, "/metadata/labels", json!({"a.b/c": "d"}));
    set_at_pointer(&mut document, "/status", json!({"conditions": []}));
    let endpoint = read_from_file(document).unwrap();
    let file = KeySource::File(PathBuf::from("keys/second"));
    assert_eq!(endpoint.auth, Auth::Key(vec![KeySource::Env("KEY".to_owned()), file]));
    let green = &endpoint.deployments[1];
    assert_eq!((green.scoring_path.as_str(), green.swagger_path.as_str()), ("/v1/m:predict", "/s"));
    assert_eq!((green.forward_authorization, green.host.as_deref()), (true, Some("model.example")));
    assert_eq!(green.request_settings.timeout, Duration::from_secs(300));
    assert_eq!(green.request_settings.stream_idle_timeout, Duration::from_millis(1));
    assert_eq!(green.request_settings.max_concurrent_per_instance.get(), 7);
    assert_eq!((green.request_settings.max_queue_wait, green.request_settings.max_queue_length), (Duration::ZERO, 0));
    assert_eq!(green.scale_settings, ScaleSettings::Fixed { instances: 3 });
    let DeploymentTarget::Process(process) = &green.target else { panic!("{:?}", green.target) };
    assert_eq!(process.readiness_path, "/ready");
    assert_eq!(process.env, [("PORT".to_owned(), "{port}".to_owned())]);
    assert_eq!(process.working_dir, Some(PathBuf::from("models")));
}

#[test]
fn all_problems_are_reported_at_once() {
    let document = json!({
        "apiVersion": "v1",
        "metadata": {"name": "x"},
        "spec": {
            "authMode": "keys",
            "trafic": {"blue": 100},
            "traffic": {"blu": 90},
            "deployments": [
                {"name": "blue", "requestSettings": {"requestTimeoutMs": 0, "maxQueueLength": "many"}},
                {"name": "Blue", "instances": ["nowhere"], "process": {"command": []}},
            ],
        },
    });
    let found = read_from_file(document).unwrap_err().problems;
    let mut paths: Vec<&str> = found.iter().map(|problem| problem.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "apiVersion",
            "kind",
            "metadata.name",
            "spec.authMode",
            "spec.deployments[0].requestSettings.maxQueueLength",
            "spec.deployments[0].requestSettings.requestTimeoutMs",
            "spec.deployments[1].instances[0]",
            "spec.deployments[1].name",
            "spec.deployments[1].process",
            "spec.deployments[1].process.command",
            "spec.traffic",
            "spec.traffic.blu",
            "spec.trafic",
        ]
        .into_iter()
        .collect::<Vec<_>>(),
        "{found:#?}"
    );
}

#[test]
fn what_was_left_out_for_its_type_is_not_also_missing() {
    assert_refused(valid_document_with("/metadata/name", json!(123)), "metadata.name", &["the number 123", "quotes"]);
    assert_refused(valid_document_with("/spec/traffic/blue", json!("90%")), "spec.traffic.blue", &["\"90%\""]);
    assert_refused(
        valid_document_with("/spec/deployments/0", json!({"name": "blue", "instnces": []})),
        "spec.deployments[0].instnces",
        &["did you mean `instances`?"],
    );
    assert_refused(
        valid_document_with("/spec/deployments", json!("blue")),
        "spec.deployments",
        &["a list is expected"],
    );
    assert_refused(json!([1]), "", &["a mapping"]);
}

#[test]
fn header_and_names_keep_to_the_rules() {
    assert_refused(
        valid_document_with("/apiVersion", json!("v1")),
        "apiVersion",
        &["\"v1\"", "inference-router.dev/v1alpha1"],
    );
    assert_refused(valid_document_with("/apiVersion", Value::Null), "apiVersion", &["missing"]);
    assert_refused(valid_document_with("/kind", Value::Null), "kind", &["missing", "OnlineEndpoint"]);
    assert_refused(json!({"kind": "Secret", "data": {"a": "b"}}), "kind", &["\"Secret\"", "OnlineEndpoint"]);
    assert_refused(valid_document_with("/metadata", Value::Null), "metadata.name", &["missing"]);
    assert_refused(valid_document_with("/metadata/name", json!("ab")), "metadata.name", &["\"ab\"", "3 to 32"]);
    assert_refused(valid_document_with("/metadata/name", json!("a_b")), "metadata.name", &["\"a_b\"", "letter"]);
    assert_refused(
        valid_document_with("/metadata/namespace", json!("Team A")),
        "metadata.namespace",
        &["\"Team A\"", "1 to 63"],
    );
    assert_refused(valid_document_with("/spec", Value::Null), "spec", &["missing"]);
    assert_refused(
        valid_document_with("/spec/deployments/1/name", Value::Null),
        "spec.deployments[1].name",
        &["missing"],
    );
}

#[test]
fn deployments_are_one_to_twenty_with_their_own_names() {
    let mut none = valid_document_with("/spec/deployments", json!([]));
    set_at_pointer(&mut none, "/spec/traffic", json!({}));
    assert_refused(none, "spec.deployments", &["missing", "1 to 20"]);
    let many: Vec<Value> = (0..21).map(|n| json!({"name": format!("blue{n}"), "instances": ["a:1"]})).collect();
    let mut document = valid_document_with("/spec/deployments", json!(many));
    set_at_pointer(&mut document, "/spec/traffic", json!({"blue20": 100}));
    assert_refused(document, "spec.deployments", &["has 21", "20 is the most"]);
    let mut document = valid_document_with("/spec/deployments/1/name", json!("Blue"));
    set_at_pointer(&mut document, "/spec/traffic", json!({"blue": 100}));
    assert_refused(document, "spec.deployments[1].name", &["\"Blue\" is already the name of spec.deployments[0]"]);
    let mut document = valid_document_with("/spec/deployments/1", Value::Null);
    set_at_pointer(&mut document, "/spec/traffic", json!({"blue": 100}));
    assert_refused(document, "spec.deployments[1]", &["empty"]);
}

#[test]
fn traffic_sums_to_a_hundred_or_nothing() {
    assert_eq!(read_from_file(valid_document_with("/spec/traffic", Value::Null)).unwrap().traffic, [0, 0]);
    assert_eq!(read_from_file(valid_document_with("/spec/traffic", json!({"blue": 0}))).unwrap().traffic, [0, 0]);
    assert_eq!(read_from_file(valid_document_with("/spec/traffic", json!({"Green": 100}))).unwrap().traffic, [0, 100]);
    assert_refused(
        valid_document_with("/spec/traffic/blue", json!(95)),
        "spec.traffic",
        &["sums to 105", "100, or to 0"],
    );
    assert_refused(
        valid_document_with("/spec/traffic/blue", json!(-1)),
        "spec.traffic.blue",
        &["is -1", "between 0 and 100"],
    );
    assert_refused(
        valid_document_with("/spec/traffic/blue", json!(i64::MAX)),
        "spec.traffic.blue",
        &["between 0 and 100"],
    );
    assert_refused(
        valid_document_with("/spec/traffic/blue", json!(90.5)),
        "spec.traffic.blue",
        &["90.5", "whole number"],
    );
    assert_refused(
        valid_document_with("/spec/traffic", json!({"blue": 90, "gren": 10})),
        "spec.traffic.gren",
        &["no deployment \"gren\"", "did you mean `green`?"],
    );
    assert_refused(
        valid_document_with("/spec/traffic", json!({"blue": 90, "x y": 10})),
        "spec.traffic[\"x y\"]",
        &["`blue`, `green`"],
    );
    assert_refused(
        valid_document_with("/spec/traffic", json!({"blue": 90, "BLUE": 10})),
        "spec.traffic.blue",
        &["second time"],
    );
}

#[test]
fn mirrored_traffic_keeps_to_its_rules() {
    let both = |mirror: Value, rule_path: &str, gist: &str| {
        let mut document = valid_document_with("/spec/mirrorTraffic", mirror);
        set_at_pointer(&mut document, "/spec/traffic", json!({"blue": 100}));
        let found = read_from_file(document).unwrap_err().problems;
        assert!(found.iter().any(|p| p.path == rule_path && p.message.contains(gist)), "{found:?}");
    };
    both(json!({"blue": 10}), "spec.mirrorTraffic.blue", "live or mirrored traffic, not both");
    both(json!({"green": 51}), "spec.mirrorTraffic.green", "between 0 and 50");
    both(json!({"grene": 5}), "spec.mirrorTraffic.grene", "did you mean `green`?");
    both(json!({"green": 5, "blue": 0}), "spec.mirrorTraffic", "at most one");
    let mirror = |mirror: Value, settings: Value| {
        let mut document = valid_document_with("/spec/mirrorTraffic", mirror);
        set_at_pointer(&mut document, "/spec/traffic", json!({"blue": 100}));
        set_at_pointer(&mut document, "/spec/mirrorSettings", settings);
        read_from_file(document)
    };
    let plain = mirror(json!({"GREEN": 50}), json!({})).unwrap().mirror.unwrap();
    let on_client_abort = OnClientAbort::Finish;
    assert_eq!(
        plain,
        Mirror { shadow_index: 1, percent: 50, on_client_abort, window_bytes: 1_048_576, comparison: None }
    );
    let told = mirror(json!({"green": 1}), json!({"onClientAbort": "drop", "windowBytes": 262_144})).unwrap();
    let told = told.mirror.unwrap();
    assert_eq!((told.on_client_abort, told.window_bytes), (OnClientAbort::Drop, 262_144));
    for off in [json!({}), json!({"green": 0}), json!({"blue": 0})] {
        assert_eq!(mirror(off, json!({})).unwrap().mirror, None);
    }
    let problems = mirror(json!({}), json!({"onClientAbort": "wait", "windowBytes": 1})).unwrap_err().problems;
    let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["spec.mirrorSettings.onClientAbort", "spec.mirrorSettings.windowBytes"], "{problems:?}");
}

#[test]
fn how_answers_are_compared_is_checked() {
    let compared = |comparison: Value| {
        let mut document = valid_document_with("/spec/mirrorTraffic", json!({"green": 10}));
        set_at_pointer(&mut document, "/spec/traffic", json!({"blue": 100}));
        set_at_pointer(&mut document, "/spec/mirrorComparison", comparison);
        read_from_file(document)
    };
    let comparison = |written: Value| compared(written).unwrap().mirror.unwrap().comparison.unwrap();
    let plain = comparison(json!({}));
    assert_eq!((plain.compare_bodies, plain.max_body_bytes, plain.numeric_tolerance), (true, 1_048_576, 0.0));
    let told = comparison(json!({"compareBodies": false, "numericTolerance": 0.5, "ignorePaths": ["$.a", "$[*]"]}));
    assert!(!told.compare_bodies && told.numeric_tolerance == 0.5 && told.ignored_paths.len() == 2);
    let wrong =
        json!({"numericTolerance": 2, "maxBodyBytes": 1, "ignorePaths": ["$.a", "a.b"], "unorderedPaths": [""]});
    let problems = compared(wrong).unwrap_err().problems;
    let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    let of = "spec.mirrorComparison";
    let expected = ["maxBodyBytes", "numericTolerance", "ignorePaths[1]", "unorderedPaths[0]"];
    assert_eq!(paths, expected.map(|field| format!("{of}.{field}")), "{problems:?}");
    assert!(
        problems[2].message.contains("is \"a.b\", which is not a place in JSON such as"),
        "{}",
        problems[2].message
    );
}

#[test]
fn a_deployment_has_one_kind_of_replicas() {
    let path = "spec.deployments[0]";
    assert_refused(
        valid_document_with("/spec/deployments/0", json!({"name": "blue"})),
        path,
        &["`targetRef`", "`instances`", "`process`"],
    );
    let process = json!({"command": ["a", "{port}"]});
    assert_refused(
        valid_document_with("/spec/deployments/0/process", process),
        "spec.deployments[0].process",
        &["beside `instances`"],
    );
    assert_refused(
        valid_document_with("/spec/deployments/0/port", json!(5001)),
        "spec.deployments[0].port",
        &["only for `targetRef`"],
    );
    assert_refused(
        valid_document_with("/spec/deployments/1/port", json!(5001)),
        "spec.deployments[1].port",
        &["`{port}`"],
    );
}

#[test]
fn instances_are_addresses() {
    let one = |address: &str| valid_document_with("/spec/deployments/0/instances", json!([address]));
    let path = "spec.deployments[0].instances[0]";
    assert_refused(one("http://a:1"), path, &["\"http://a:1\"", "scheme"]);
    assert_refused(one("a:1/score"), path, &["scoringPath"]);
    assert_refused(one("a"), path, &["no port"]);
    assert_refused(one("::1:80"), path, &["brackets"]);
    assert_refused(one("a:70000"), path, &["1 to 65535"]);
    assert_refused(one(""), path, &["no host"]);
    assert_refused(
        valid_document_with("/spec/deployments/0/instances", json!([])),
        "spec.deployments[0].instances",
        &["empty"],
    );
    let twice = json!(["a:1", "b:1", "A:1"]);
    assert_refused(
        valid_document_with("/spec/deployments/0/instances", twice),
        "spec.deployments[0].instances[2]",
        &["same as item 0"],
    );
    let mixed = json!([5001, "a:1"]);
    assert_refused(
        valid_document_with("/spec/deployments/0/instances", mixed),
        "spec.deployments[0].instances[0]",
        &["number 5001"],
    );
}

#[test]
fn a_process_can_be_started() {
    let process = |process: Value| valid_document_with("/spec/deployments/1/process", process);
    let path = "spec.deployments[1].process";
    let command = &format!("{path}.command");
    assert_refused(process(json!({})), command, &["missing"]);
    assert_refused(process(json!({"command": []})), command, &["missing"]);
    assert_refused(process(json!({"command": ["serve"]})), command, &["does not say `{port}`"]);
    assert_refused(process(json!({"command": ["", "{port}"]})), &format!("{command}[0]"), &["program to start"]);
    assert_refused(process(json!({"command": ["a", "{port}\0"]})), &format!("{command}[1]"), &["NUL"]);
    assert_refused(
        process(json!({"command": ["a", "{port}"], "env": {"A=B": "x"}})),
        &format!("{path}.env[\"A=B\"]"),
        &["`=`"],
    );
    assert_refused(
        process(json!({"command": ["a", "{port}"], "env": {"A": 1}})),
        &format!("{path}.env.A"),
        &["quotes"],
    );
    assert_refused(
        process(json!({"command": ["a", "{port}"], "workingDir": ""})),
        &format!("{path}.workingDir"),
        &["empty"],
    );
    let document = process(json!({"command": ["a", "{port}"], "readinessPath": "ready"}));
    assert_refused(document, &format!("{path}.readinessPath"), &["\"ready\"", "start with `/`"]);
}

#[test]
fn paths_and_host_are_legal() {
    let at = |name: &str, value: &str| valid_document_with(&format!("/spec/deployments/0/{name}"), json!(value));
    assert_refused(at("scoringPath", "score"), "spec.deployments[0].scoringPath", &["start with `/`"]);
    assert_refused(at("scoringPath", "/s?a=b"), "spec.deployments[0].scoringPath", &["query"]);
    assert_refused(at("swaggerPath", "/a b"), "spec.deployments[0].swaggerPath", &["`%20`"]);
    assert_refused(at("host", "http://a"), "spec.deployments[0].host", &["scheme"]);
    assert_refused(at("host", "a b"), "spec.deployments[0].host", &["\"a b\""]);
}

#[test]
fn tls_towards_replicas_that_cannot_be_meant_is_refused() {
    let at = |rules: Value| valid_document_with("/spec/deployments/0/upstreamTls", rules);
    for (rules, name, gist) in [
        (json!({"serverName": "a:1"}), "serverName", "host name"),
        (json!({"serverName": "https://a"}), "serverName", "host name"),
        (json!({"skipVerify": true, "caFile": "a"}), "skipVerify", "beside `caFile`"),
        (json!({"certFile": "a"}), "certFile", "without `keyFile`"),
        (json!({"keyFile": "a"}), "keyFile", "without `certFile`"),
        (json!({"caFile": ""}), "caFile", "is empty"),
        (json!({"cafile": "a"}), "cafile", "did you mean `caFile`?"),
    ] {
        assert_refused(at(rules), &format!("spec.deployments[0].upstreamTls.{name}"), &[gist]);
    }
    for rules in [json!({}), json!({"serverName": "::1"}), json!({"serverName": "a.example", "skipVerify": true})] {
        assert!(read_from_file(at(rules)).is_ok());
    }
}

#[test]
fn request_settings_are_in_range() {
    for (name, wrong, gist) in [
        ("requestTimeoutMs", 0, "between 1 and 300000 milliseconds"),
        ("requestTimeoutMs", 300_001, "is 300001"),
        ("streamIdleTimeoutMs", 0, "between 1 and"),
        ("maxConcurrentRequestsPerInstance", 0, "between 1 and"),
        ("maxQueueWaitMs", -1, "between 0 and 300000"),
        ("maxQueueWaitMs", 300_001, "is 300001"),
        ("maxQueueLength", -1, "between 0 and 1000000"),
        ("maxQueueLength", 1_000_001, "is 1000001"),
    ] {
        let document = valid_document_with("/spec/deployments/0/requestSettings", json!({name: wrong}));
        assert_refused(document, &format!("spec.deployments[0].requestSettings.{name}"), &[gist]);
    }
}

#[test]
fn scale_settings_are_in_range() {
    let scale = |settings: Value| valid_document_with("/spec/deployments/1/scaleSettings", settings);
    let path = |name: &str| format!("spec.deployments[1].scaleSettings.{name}");
    assert_refused(
        scale(json!({"minInstances": 3, "maxInstances": 2})),
        &path("minInstances"),
        &["is 3", "which is 2"],
    );
    assert_refused(scale(json!({"minInstances": 3})), &path("minInstances"), &["which is 1 (the default)"]);
    assert_refused(scale(json!({"minInstances": -1})), &path("minInstances"), &["between 0 and"]);
    assert_refused(scale(json!({"maxInstances": 1001})), &path("maxInstances"), &["1000"]);
    assert_refused(scale(json!({"instanceCount": -1})), &path("instanceCount"), &["between 0 and"]);
    for percent in [0, 101] {
        let document = scale(json!({"targetUtilizationPercentage": percent}));
        assert_refused(document, &path("targetUtilizationPercentage"), &["between 1 and 100"]);
    }
    assert_refused(scale(json!({"pollingInterval": "1ms"})), &path("pollingInterval"), &["is 1ms", "100ms and 10m"]);
    assert_refused(scale(json!({"pollingInterval": 1})), &path("pollingInterval"), &["no unit", "`1s`"]);
    assert_refused(scale(json!({"type": "Default"})), &path("type"), &["did you mean `default`?"]);
    let document = valid_document_with("/spec/deployments/0/scaleSettings", json!({"instanceCount": 3}));
    assert_refused(document, "spec.deployments[0].scaleSettings.instanceCount", &["is 3", "lists 2"]);
    assert!(
        read_from_file(valid_document_with("/spec/deployments/0/scaleSettings", json!({"instanceCount": 2}))).is_ok()
    );
}

#[test]
fn replicas_follow_utilization_where_that_is_asked() {
    let scale = |settings: Value| valid_document_with("/spec/deployments/1/scaleSettings", settings);
    let path = |name: &str| format!("spec.deployments[1].scaleSettings.{name}");
    let read_one = |settings| read_from_file(scale(settings)).unwrap().deployments[1].scale_settings.clone();
    let defaults = TargetUtilization {
        min_replicas: 1,
        max_replicas: 4,
        target_percent: 70,
        polling_interval: Duration::from_secs(1),
        idle_before_zero: Duration::from_secs(600),
        cold_start_timeout: Duration::from_secs(60),
    };
    let wanted = ScaleSettings::TargetUtilization(defaults.clone());
    assert_eq!(read_one(json!({"type": "target_utilization", "maxInstances": 4})), wanted);
    let all = json!({"type": "target_utilization", "minInstances": 0, "maxInstances": 4, "targetUtilizationPercentage": 50,
                     "pollingInterval": "250ms", "idleBeforeZero": "5m", "coldStartTimeoutMs": 2000});
    let wanted = TargetUtilization {
        min_replicas: 0,
        target_percent: 50,
        polling_interval: Duration::from_millis(250),
        idle_before_zero: Duration::from_secs(300),
        cold_start_timeout: Duration::from_secs(2),
        ..defaults
    };
    assert_eq!(read_one(all), ScaleSettings::TargetUtilization(wanted));
    let kind = "target_utilization";
    assert_refused(
        scale(json!({"type": kind, "instanceCount": 2})),
        &path("instanceCount"),
        &["only for `type: default`"],
    );
    assert_refused(
        scale(json!({"type": kind, "idleBeforeZero": "5m"})),
        &path("idleBeforeZero"),
        &["`minInstances: 0`"],
    );
    let zero = |name: &str, value: Value| scale(json!({"type": kind, "minInstances": 0, name: value}));
    assert_refused(zero("idleBeforeZero", json!("1ms")), &path("idleBeforeZero"), &["is 1ms", "1s and 24h"]);
    assert_refused(zero("coldStartTimeoutMs", json!(0)), &path("coldStartTimeoutMs"), &["between 1 and 600000"]);
    let document = valid_document_with("/spec/deployments/0/scaleSettings", json!({"type": kind}));
    assert_refused(document, "spec.deployments[0].scaleSettings.type", &["fixed addresses", "`process`"]);
}

#[test]
fn cors_is_off_until_an_origin_is_allowed() {
    for off in [json!({}), json!({"allowOrigins": []})] {
        assert_eq!(read_from_file(valid_document_with("/spec/cors", off)).unwrap().cors, None);
    }
    let cors = read_from_file(valid_document_with(
        "/spec/cors",
        json!({"allowOrigins": ["https://App.example:443", "http://a:8080"]}),
    ));
    let cors = cors.unwrap().cors.unwrap();
    assert_eq!(cors.allow_origins, ["https://app.example", "http://a:8080"]);
    assert_eq!(cors.allow_methods, ["GET", "POST"]);
    assert!(cors.allow_headers.contains(&"authorization".to_owned()));
    assert_eq!((cors.allow_credentials, cors.max_age), (false, Duration::from_secs(600)));
    let all = json!({"allowOrigins": ["*"], "allowMethods": ["put"], "allowHeaders": ["*"], "exposeHeaders": ["X-A"],
        "maxAgeSeconds": 0});
    let cors = read_from_file(valid_document_with("/spec/cors", all)).unwrap().cors.unwrap();
    assert_eq!((cors.allow_methods[0].as_str(), cors.expose_headers[0].as_str()), ("PUT", "x-a"));
}

#[test]
fn cors_keeps_to_the_rules() {
    let cors = |cors: Value| valid_document_with("/spec/cors", cors);
    let origin = |origin: &str| cors(json!({"allowOrigins": [origin]}));
    let path = "spec.cors.allowOrigins[0]";
    assert_refused(origin("app.example"), path, &["\"app.example\"", "scheme://host[:port]"]);
    assert_refused(origin("https://app.example/"), path, &["without a path"]);
    assert_refused(origin("https://*.example"), path, &["`*` cannot be part"]);
    assert_refused(origin("https://"), path, &["no host"]);
    assert_refused(origin("://a"), path, &["no scheme"]);
    assert_refused(origin("null"), path, &["an origin is"]);
    let both = json!({"allowOrigins": ["*"], "allowCredentials": true});
    assert_refused(cors(both), "spec.cors.allowCredentials", &["`*`", "list the origins"]);
    assert_refused(cors(json!({"allowMethods": ["GET"]})), "spec.cors.allowOrigins", &["missing"]);
    let with_origin = |name: &str, value: Value| cors(json!({"allowOrigins": ["*"], name: value}));
    assert_refused(with_origin("allowMethods", json!(["GET POST"])), "spec.cors.allowMethods[0]", &["not a method"]);
    assert_refused(with_origin("allowMethods", json!(["trace"])), "spec.cors.allowMethods[0]", &["never forwards"]);
    assert_refused(
        with_origin("allowHeaders", json!(["x y"])),
        "spec.cors.allowHeaders[0]",
        &["not the name of a header"],
    );
    assert_refused(
        with_origin("exposeHeaders", json!([""])),
        "spec.cors.exposeHeaders[0]",
        &["not the name of a header"],
    );
    assert_refused(with_origin("maxAgeSeconds", json!(-1)), "spec.cors.maxAgeSeconds", &["between 0 and 86400"]);
}

#[test]
fn keys_are_there_and_hard_to_guess() {
    let keys = |keys: Value| valid_document_with("/spec/keys", keys);
    let primary = "spec.keys.primary";
    assert_refused(keys(Value::Null), primary, &["missing", "authMode: none"]);
    assert_refused(keys(json!({"secondary": {"env": "K"}})), primary, &["missing"]);
    assert_refused(keys(json!({"primary": {}})), primary, &["exactly one of"]);
    assert_refused(keys(json!({"primary": {"env": "K", "file": "f"}})), primary, &["more than one", "exactly one of"]);
    assert_refused(keys(json!({"primary": {"env": "A=B"}})), "spec.keys.primary.env", &["\"A=B\""]);
    assert_refused(keys(json!({"primary": {"file": ""}})), "spec.keys.primary.file", &["empty"]);
    assert_refused(
        keys(json!({"primary": {"env": "K"}, "secondary": {"env": "K"}})),
        "spec.keys.secondary",
        &["the same as"],
    );
    for (key, gist) in [("hunter2", "too short to resist guessing"), ("hunter2 hunter2 hunter2", "blanks")] {
        assert_refused(keys(json!({"primary": {"value": key}})), "spec.keys.primary.value", &[gist]);
        assert!(!problems_of(keys(json!({"primary": {"value": key}}))).concat().contains("hunter2"));
    }
    assert_refused(
        valid_document_with("/spec/authMode", json!("none")),
        "spec.keys",
        &["authMode: none", "remove the keys"],
    );
    let mut open = valid_document_with("/spec/authMode", json!("none"));
    set_at_pointer(&mut open, "/spec/keys", Value::Null);
    assert_eq!(read_from_file(open).unwrap().auth, Auth::None);
    assert_refused(
        valid_document_with("/spec/authMode", json!("Key")),
        "spec.authMode",
        &["\"Key\"", "did you mean `key`?"],
    );
    let (raw, _) = resource::decode_endpoint(keys(json!({"primary": {"value": "hunter2-hunter2-hunter2"}})));
    assert!(!format!("{raw:?}").contains("hunter2"));
}

#[test]
fn issuers_are_known_by_name_and_reached_safely() {
    let issuers = |issuers: Value| {
        let mut document = valid_document_with("/spec/authMode", json!("aad_token"));
        set_at_pointer(&mut document, "/spec/keys", Value::Null);
        set_at_pointer(&mut document, "/spec/jwt", json!({ "issuers": issuers }));
        document
    };
    let one =
        json!({"issuer": "https://a.example", "audiences": ["x"], "requiredClaims": {"tid": "1", "n": [1, true]}});
    let Auth::IssuerToken(read) = read_from_file(issuers(json!([one]))).unwrap().auth else { panic!("another mode") };
    assert_eq!(read[0].key_set.issuer, "https://a.example");
    assert_eq!(read[0].required_claims[0], ("n".to_owned(), vec![json!(1), json!(true)]));
    let wrong = |mut change: Value, path: &str, gist: &str| {
        let mut issuer = one.clone();
        issuer.as_object_mut().unwrap().append(change.as_object_mut().unwrap());
        assert_refused(issuers(json!([issuer])), &format!("spec.jwt.issuers[0].{path}"), &[gist]);
    };
    assert_refused(issuers(json!([])), "spec.jwt.issuers", &["whose tokens"]);
    assert_refused(issuers(json!([one, one])), "spec.jwt.issuers[1].issuer", &["issuers[0]"]);
    wrong(json!({"issuer": ""}), "issuer", "`iss`");
    wrong(json!({"issuer": "http://a.example"}), "issuer", "allowHttp");
    wrong(json!({"issuer": "a.example"}), "issuer", "https://");
    wrong(json!({"jwksUri": "https://user@a.example/keys"}), "jwksUri", "user name");
    wrong(json!({"audiences": []}), "audiences", "any other service");
    wrong(json!({"requiredClaims": {"x": {}}}), "requiredClaims.x", "list of some");
    wrong(json!({"caFile": ""}), "caFile", "name a file");
    assert!(
        self::read_from_file(issuers(json!([{"issuer": "http://a", "audiences": ["x"], "allowHttp": true}]))).is_ok()
    );
    // Any name will do where its keys are named.
    let named = json!([{"issuer": "corp", "audiences": ["x"], "jwksUri": "https://a.example/keys"}]);
    assert!(self::read_from_file(issuers(named)).is_ok());
    assert_refused(valid_document_with("/spec/jwt", json!({"issuers": [one]})), "spec.jwt", &["authMode: aad_token"]);
    let mut both = issuers(json!([one]));
    set_at_pointer(&mut both, "/spec/keys", json!({"primary": {"env": "K"}}));
    assert_refused(both, "spec.keys", &["authMode: key"]);
}

#[test]
fn router_tokens_need_no_keys_but_take_them() {
    let mut document = valid_document_with("/spec/authMode", json!("aml_token"));
    assert!(matches!(read_from_file(document.clone()).unwrap().auth, Auth::RouterToken(keys) if keys.len() == 1));
    set_at_pointer(&mut document, "/spec/keys", Value::Null);
    assert_eq!(read_from_file(document).unwrap().auth, Auth::RouterToken(Vec::new()));
}

#[test]
fn what_is_of_a_cluster_is_not_for_files_and_the_other_way_round() {
    assert_refused(
        valid_document_with("/spec/keys", json!({"secretRef": {"name": "s"}})),
        "spec.keys.secretRef",
        &["needs Kubernetes"],
    );
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "model"});
    let target = json!({"name": "blue", "targetRef": target, "port": 1});
    let document = valid_document_with("/spec/deployments/0", target);
    assert_refused(document.clone(), "spec.deployments[0].targetRef", &["needs Kubernetes", "`instances`"]);
    let problems = super::decode_and_validate(document, DocumentOrigin::Cluster).unwrap_err().problems;
    let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["spec.keys.primary", "spec.deployments[1].process"], "{problems:?}");
}

#[test]
fn what_this_version_cannot_do_is_refused() {
    let says = |document: Value, path: &str, gist: &str| {
        assert_refused(document, path, &["not supported by this version", gist]);
    };
    let collector = json!({"collections": {"response": {"enabled": true}}});
    says(
        valid_document_with("/spec/deployments/1/dataCollector", collector),
        "spec.deployments[1].dataCollector",
        "false",
    );
}

#[test]
fn a_limit_of_bandwidth_is_one_that_can_be_kept() {
    let path = "spec.bandwidthLimitBytesPerSecond";
    assert_refused(
        valid_document_with("/spec/bandwidthLimitBytesPerSecond", json!(5)),
        path,
        &["between 65536 and", "bytes a second"],
    );
    let limited = read_from_file(valid_document_with("/spec/bandwidthLimitBytesPerSecond", json!(5_000_000))).unwrap();
    assert_eq!(limited.bandwidth_bytes_per_second, Some(5_000_000));
}

#[test]
fn the_collector_is_checked_though_it_is_off() {
    let collector = |settings: Value| valid_document_with("/spec/deployments/1/dataCollector", settings);
    assert_refused(
        collector(json!({"samplingRate": 1.5})),
        "spec.deployments[1].dataCollector.samplingRate",
        &["0 and 1"],
    );
    assert_refused(
        collector(json!({"rollingRate": "hour"})),
        "spec.deployments[1].dataCollector.rollingRate",
        &["`Hour`"],
    );
}

#[test]
fn a_document_survives_writing_and_reading() {
    let (raw, problems) = resource::decode_endpoint(valid_document());
    assert!(problems.is_empty());
    assert_eq!(serde_json::to_value(&raw).unwrap(), valid_document());
}
