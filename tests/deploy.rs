//! The manifests under `deploy/`, as `kubectl kustomize` makes them.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is to be seen at once")]

use std::path::Path;
use std::process::Command;

use inference_router::config;
use inference_router::control::yaml;
use inference_router::model::fleet::LeaderLockPlace;
use inference_router::model::tls::CertificateSource;
use inference_router::model::validate::{self, DocumentOrigin};
use serde_json::{Value, json};

/// The objects of a folder under `deploy/`, with these components; `None`: there is no kubectl that can tell.
fn build_kustomization(folder: &str, components: &[&str]) -> Option<Vec<Value>> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    // A folder beside them, since components are named relative to who takes them.
    let own = tempfile::tempdir_in(&deploy).unwrap();
    let components: Vec<String> = components.iter().map(|name| format!("../components/{name}")).collect();
    let taken = json!({"resources": [format!("../{folder}")], "components": components});
    std::fs::write(own.path().join("kustomization.yaml"), taken.to_string()).unwrap();
    let Ok(output) = Command::new("kubectl").arg("kustomize").arg(own.path()).output() else {
        eprintln!("nothing is tested here without kubectl 1.21 or newer; see https://kubernetes.io/docs/tasks/tools/");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    let documents = yaml::parse_documents(&text).into_iter();
    Some(documents.map(|document| document.unwrap_or_else(|problem| panic!("{folder}: {problem}"))).collect())
}

fn objects_of_kind<'o>(objects: &'o [Value], kind: &str) -> Vec<&'o Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

const OVERLAYS: [&str; 3] = ["overlays/dev", "overlays/ha", "overlays/namespaced"];

#[test]
fn every_overlay_is_one_whole_router() {
    for overlay in OVERLAYS {
        let Some(objects) = build_kustomization(overlay, &[]) else { return };
        let [router] = objects_of_kind(&objects, "Deployment")[..] else { panic!("{overlay}") };
        let spec = &router["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let pod = &spec["securityContext"];
        assert_eq!((&pod["runAsNonRoot"], &pod["runAsUser"]), (&json!(true), &json!(65532)), "{overlay}");
        assert_eq!(pod["seccompProfile"]["type"], "RuntimeDefault", "{overlay}");
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{overlay}");
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["capabilities"]["drop"]),
            (&json!(true), &json!(["ALL"]))
        );
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
        assert!(container["resources"]["requests"]["memory"].is_string(), "{overlay}");
        let [settings] = objects_of_kind(&objects, "ConfigMap")[..] else { panic!("{overlay}") };
        let text = settings["data"]["router.yaml"].as_str().unwrap();
        let settings = config::parse(text, overlay, Path::new("/"), std::iter::empty()).unwrap();
        let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        let shutdown = settings.shutdown.unready_delay + settings.shutdown.drain_timeout;
        assert!(grace > shutdown.as_secs(), "{overlay}: {grace} s");
        assert!(settings.kubernetes.is_some() && settings.admin.ip().is_unspecified(), "{overlay}");
        for service in objects_of_kind(&objects, "Service") {
            let port = &service["spec"]["ports"][0]["targetPort"];
            let ports = container["ports"].as_array().unwrap();
            let number = ports.iter().find(|known| known["name"] == *port).map(|known| &known["containerPort"]);
            let listens = [settings.scoring, settings.admin].map(|address| json!(address.port()));
            assert!(number.is_some_and(|number| listens.contains(number)), "{overlay}: {port}");
        }
        assert_eq!(objects_of_kind(&objects, "NetworkPolicy").len(), 1, "{overlay}");
        let [namespace] = objects_of_kind(&objects, "Namespace")[..] else { panic!("{overlay}") };
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        for object in &objects {
            let is_of_cluster =
                ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&object["kind"].as_str().unwrap());
            let namespace = object["metadata"]["namespace"].as_str();
            assert_eq!(namespace.is_none(), is_of_cluster, "{overlay}: {object}");
        }
    }
}

#[test]
fn rights_are_no_more_than_what_is_asked_for() {
    for overlay in OVERLAYS {
        let Some(objects) = build_kustomization(overlay, &[]) else { return };
        let roles = objects_of_kind(&objects, "ClusterRole").into_iter().chain(objects_of_kind(&objects, "Role"));
        for role in roles {
            let is_of_people = role["metadata"]["name"].as_str().unwrap().starts_with("inference-router-endpoint-");
            for rule in role["rules"].as_array().unwrap() {
                assert!(!rule.to_string().contains('*'), "{overlay}: {rule}");
                let verbs: Vec<&str> =
                    rule["verbs"].as_array().unwrap().iter().map(|verb| verb.as_str().unwrap()).collect();
                let writes = verbs.iter().any(|verb| !["get", "list", "watch"].contains(verb));
                let resources = rule["resources"].to_string();
                let may_write =
                    ["onlineendpoints/status", "/scale", "\"pods\"", "\"events\"", "reviews\"", "\"leases\""];
                assert!(
                    !writes || is_of_people || may_write.iter().any(|of| resources.contains(of)),
                    "{overlay}: {rule}"
                );
                assert!(!(writes && resources.contains("secrets")), "{overlay}: {rule}");
            }
        }
    }
    let Some(objects) = build_kustomization("overlays/namespaced", &[]) else { return };
    for role in objects_of_kind(&objects, "ClusterRole") {
        assert!(role["metadata"]["name"].as_str().unwrap().starts_with("inference-router-endpoint-"), "{role}");
    }
    assert!(objects_of_kind(&objects, "ClusterRoleBinding").is_empty());
}

#[test]
fn three_routers_are_on_three_nodes_and_do_not_leave_together() {
    let Some(objects) = build_kustomization("overlays/ha", &[]) else { return };
    let router = objects_of_kind(&objects, "Deployment")[0];
    assert_eq!(router["spec"]["replicas"], 3);
    let affinity = &router["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"];
    assert!(affinity.to_string().contains("kubernetes.io/hostname"), "{affinity}");
    assert_eq!(objects_of_kind(&objects, "PodDisruptionBudget").len(), 1);
}

#[test]
fn three_routers_are_one_fleet_that_may_use_its_kubernetes_lease_and_its_port() {
    let Some(objects) = build_kustomization("overlays/ha", &[]) else { return };
    let pod = &objects_of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let variables = container["env"].as_array().unwrap().iter().filter_map(|it| {
        let value = it["value"].as_str()?.replace("$(POD_IP)", "10.0.0.5");
        Some((it["name"].as_str().unwrap().to_owned(), value))
    });
    let text = objects_of_kind(&objects, "ConfigMap")[0]["data"]["router.yaml"].as_str().unwrap();
    let settings = config::parse(text, "settings", Path::new("/"), variables).unwrap();
    let fleet = settings.fleet.expect("it is one of several");
    assert_eq!(fleet.advertise, "10.0.0.5:7070");
    let LeaderLockPlace::Kubernetes(lease) = &fleet.leader_lock else { panic!("{fleet:?}") };
    let roles = objects_of_kind(&objects, "Role");
    let role = roles.iter().find(|role| role["metadata"]["name"] == "inference-router-coordination").unwrap();
    assert_eq!(role["rules"][0]["resourceNames"], json!([lease]));
    let port = json!(fleet.address.port());
    assert!(container["ports"].as_array().unwrap().iter().any(|known| known["containerPort"] == port));
    let policy = objects_of_kind(&objects, "NetworkPolicy")[0]["spec"]["ingress"].as_array().unwrap().clone();
    assert!(policy.iter().any(|rule| rule["ports"][0]["port"] == port && rule["from"][0]["podSelector"].is_object()));
    // All of what it reads is mounted from the one Secret.
    let named = |list: &Value| list.as_array().unwrap().iter().find(|it| it["name"] == "peer").unwrap().clone();
    let mount = named(&container["volumeMounts"]);
    let folder = Path::new(mount["mountPath"].as_str().unwrap());
    let tls = fleet.tls.expect("others can reach it");
    let CertificateSource::Pair { cert, key } = tls.certificate else { panic!("a certificate and its key") };
    let files = [cert, key, tls.ca_file, fleet.secret_file.unwrap()];
    assert!(files.iter().all(|file| file.parent() == Some(folder)), "{files:?}");
    assert_eq!(named(&pod["volumes"])["secret"]["secretName"], "inference-router-peer");
}

#[test]
fn clients_come_in_as_the_component_says() {
    for (component, kind) in [("loadbalancer", "LoadBalancer"), ("internal", "LoadBalancer"), ("nodeport", "NodePort")]
    {
        let Some(objects) = build_kustomization("overlays/dev", &[component]) else { return };
        let kind_of = |name: &str| {
            let services = objects_of_kind(&objects, "Service");
            services.iter().find(|service| service["metadata"]["name"] == name).unwrap()["spec"]["type"].clone()
        };
        assert_eq!(kind_of("inference-router"), kind, "{component}");
        assert_eq!(kind_of("inference-router-admin"), "ClusterIP", "nobody is asked for a key there");
    }
    let Some(objects) = build_kustomization("overlays/dev", &["podmonitor"]) else { return };
    assert_eq!(objects_of_kind(&objects, "PodMonitor").len(), 1);
}

#[test]
fn secrets_that_components_name_are_those_the_router_may_look_at() {
    let Some(objects) = build_kustomization("overlays/dev", &["tls", "tokens"]) else { return };
    let router = objects_of_kind(&objects, "Deployment")[0];
    let container = &router["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().unwrap().iter();
    let variables =
        variables.map(|it| (it["name"].as_str().unwrap().to_owned(), it["value"].as_str().unwrap().to_owned()));
    let text = objects_of_kind(&objects, "ConfigMap")[0]["data"]["router.yaml"].as_str().unwrap();
    let settings = config::parse(text, "settings", Path::new("/"), variables).unwrap();
    let secrets: Vec<String> = settings.secret_references().map(|(_, name)| name.to_owned()).collect();
    assert_eq!(secrets, ["inference-router-tls", "inference-router-signing"]);
    let service = settings.kubernetes.unwrap().service.unwrap();
    let role = objects_of_kind(&objects, "Role")[0];
    let may = |resource: &str, name: &str| {
        let rules = role["rules"].as_array().unwrap().iter();
        let mut its = rules.filter(|rule| rule["resources"] == json!([resource]));
        its.any(|rule| rule["resourceNames"].as_array().unwrap().contains(&json!(name)))
    };
    assert!(may("services", &service) && secrets.iter().all(|secret| may("secrets", secret)), "{role}");
    let services = objects_of_kind(&objects, "Service");
    let named = services.iter().find(|of| of["metadata"]["name"] == *service).unwrap();
    let https = named["spec"]["ports"].as_array().unwrap().iter().find(|port| port["name"] == "https").unwrap();
    let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == https["targetPort"]).unwrap();
    assert_eq!(port["containerPort"], settings.scoring_tls.unwrap().address.port());
    let policy = objects_of_kind(&objects, "NetworkPolicy")[0]["spec"]["ingress"].to_string();
    assert!(policy.contains(&port["containerPort"].to_string()), "{policy}");
}

#[test]
fn the_example_is_in_order() {
    let Some(objects) = build_kustomization("example", &[]) else { return };
    let endpoint = objects_of_kind(&objects, "OnlineEndpoint")[0];
    let endpoint = validate::decode_and_validate(endpoint.clone(), DocumentOrigin::Cluster)
        .unwrap_or_else(|refused| panic!("{refused:?}"));
    assert_eq!(endpoint.deployments.len(), objects_of_kind(&objects, "Deployment").len());
    assert_eq!(objects_of_kind(&objects, "Secret")[0]["type"], "inference-router.dev/endpoint-keys");
    let Some(objects) = build_kustomization("crd", &[]) else { return };
    assert_eq!(objects_of_kind(&objects, "CustomResourceDefinition").len(), 1);
}
