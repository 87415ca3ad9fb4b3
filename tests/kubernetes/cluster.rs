//! A cluster, and what is made in it.

use std::path::PathBuf;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::support::apiserver::ApiServer;

/// A cluster with two namespaces for one test.
pub struct Cluster {
    pub client: Client,
    pub namespace: String,
    /// Another one.
    pub other_namespace: String,
    pub kubeconfig: PathBuf,
    /// Where faults are asked for; `None`: it is a real one.
    pub api_server: Option<ApiServer>,
    _folder: tempfile::TempDir,
}

pub const KEY: &str = "a-key-of-the-endpoint-of-the-test";

impl Cluster {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, kubeconfig) = match std::env::var_os("KUBECONFIG") {
            Some(path) => (None, PathBuf::from(path)),
            None => {
                let server = ApiServer::start().await;
                let kubeconfig = server.kubeconfig(folder.path());
                (Some(server), kubeconfig)
            }
        };
        let mut read = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let namespace = format!("test-{:016x}", rand::random::<u64>());
        // The router's own namespace is the test's.
        for context in read.contexts.iter_mut().filter_map(|named| named.context.as_mut()) {
            context.namespace = Some(namespace.clone());
        }
        let kubeconfig = folder.path().join("kubeconfig-of-the-test");
        std::fs::write(&kubeconfig, serde_json::to_string(&read).unwrap()).unwrap();
        let config = Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let neighbour = format!("{namespace}-too");
        let cluster =
            Self { client, namespace, other_namespace: neighbour, kubeconfig, api_server: server, _folder: folder };
        cluster.install_endpoint_crd().await;
        let namespaces = cluster.cluster_api("v1", "Namespace", "namespaces");
        for name in [&cluster.namespace, &cluster.other_namespace] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            namespaces.create(&PostParams::default(), &object(namespace)).await.unwrap();
        }
        cluster
    }

    /// Defines `OnlineEndpoint`; without its rules in CEL where the cluster is too old to know of any.
    async fn install_endpoint_crd(&self) {
        let mut crd: Value = inference_router::model::crd::definition();
        let definitions =
            self.cluster_api("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions");
        let apply = PatchParams::apply("test").force();
        let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
        match definitions.patch(&name, &apply, &Patch::Apply(&crd)).await {
            Err(error) if error.to_string().contains("x-kubernetes-validations: field not declared") => {
                remove(&mut crd, "x-kubernetes-validations");
                definitions.patch(&name, &apply, &Patch::Apply(&crd)).await.unwrap();
            }
            applied => drop(applied.unwrap()),
        }
    }

    /// Defines a kind of workload of somebody else's: `servers.models.example`.
    pub async fn install_server_crd(&self) {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let scale = json!({
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        });
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "servers.models.example"},
            "spec": {
                "group": "models.example", "scope": "Namespaced",
                "names": {"kind": "Server", "plural": "servers", "singular": "server"},
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": {"status": {}, "scale": scale},
                    "schema": {"openAPIV3Schema": any},
                }],
            },
        });
        let definitions =
            self.cluster_api("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions");
        let apply = PatchParams::apply("test").force();
        definitions.patch("servers.models.example", &apply, &Patch::Apply(&definition)).await.unwrap();
    }

    /// Objects that are in no namespace.
    fn cluster_api(&self, api_version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(api_version, kind, plural))
    }

    /// Objects in the namespace of the test.
    pub fn namespaced_api(&self, api_version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(api_version, kind, plural))
    }

    pub fn endpoints(&self) -> Api<DynamicObject> {
        self.endpoints_in(&self.namespace)
    }

    pub fn endpoints_in(&self, namespace: &str) -> Api<DynamicObject> {
        let of = resource("inference-router.dev/v1alpha1", "OnlineEndpoint", "onlineendpoints");
        Api::namespaced_with(self.client.clone(), namespace, &of)
    }

    pub fn pods(&self) -> Api<DynamicObject> {
        self.namespaced_api("v1", "Pod", "pods")
    }

    pub fn deployments(&self) -> Api<DynamicObject> {
        self.namespaced_api("apps/v1", "Deployment", "deployments")
    }

    pub fn secrets(&self) -> Api<DynamicObject> {
        self.namespaced_api("v1", "Secret", "secrets")
    }

    /// An endpoint with the deployment `blue`, whose pods are those of the Deployment `model`.
    pub async fn create_endpoint(&self, name: &str, port: u16, more: Value) {
        self.create_endpoint_in(&self.namespace, name, port, more).await;
    }

    pub async fn create_endpoint_in(&self, namespace: &str, name: &str, port: u16, more: Value) {
        let mut blue = json!({
            "name": "blue", "port": port,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "model"},
            "requestSettings": {"maxQueueWaitMs": 0},
        });
        merge(&mut blue, &more);
        let spec = json!({
            "keys": {"secretRef": {"name": "keys"}}, "traffic": {"blue": 100}, "deployments": [blue],
        });
        let endpoint = json!({
            "apiVersion": "inference-router.dev/v1alpha1", "kind": "OnlineEndpoint",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        self.endpoints_in(namespace).create(&PostParams::default(), &object(endpoint)).await.unwrap();
    }

    pub async fn create_key_secret(&self, name: &str, key: &str) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.namespace},
            "type": "inference-router.dev/endpoint-keys", "data": {"primaryKey": base64(key)},
        });
        self.secrets().create(&PostParams::default(), &object(secret)).await.unwrap();
    }

    /// A Secret with these entries, or with these instead of those it has.
    pub async fn replace_secret(&self, name: &str, kind: &str, entries: &[(&str, &str)]) {
        let data: Value = entries.iter().map(|(name, text)| ((*name).to_owned(), json!(base64(text)))).collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.namespace},
            "type": kind, "data": data,
        });
        if self.secrets().get_opt(name).await.unwrap().is_some() {
            self.secrets().delete(name, &DeleteParams::default()).await.unwrap();
        }
        self.secrets().create(&PostParams::default(), &object(secret)).await.unwrap();
    }

    /// A Deployment whose pods have the label `app`; nobody makes them.
    pub async fn create_workload(&self, name: &str, replicas: u32) {
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels}, "paused": true,
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "model", "image": "model"}]},
                },
            },
        });
        self.deployments().create(&PostParams::default(), &object(deployment)).await.unwrap();
    }

    /// A pod as a ReplicaSet would make it, which no scheduler takes.
    pub async fn create_pod(&self, name: &str, app: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": app}},
            "spec": {"schedulerName": "none", "containers": [{"name": "model", "image": "model"}]},
        });
        self.pods().create(&PostParams::default(), &object(pod)).await.unwrap();
    }

    /// What a kubelet would say of it.
    pub async fn set_pod_status(&self, name: &str, ip: &str, is_ready: bool) {
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        self.pods().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    pub async fn delete_pod(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    /// Changes an endpoint as `kubectl edit` would.
    pub async fn patch_endpoint(&self, name: &str, change: Value) {
        self.endpoints().patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// A condition of an endpoint, as status and reason.
    pub async fn condition(&self, name: &str, kind: &str) -> Option<(String, String)> {
        self.condition_in(&self.namespace, name, kind).await
    }

    pub async fn condition_in(&self, namespace: &str, name: &str, kind: &str) -> Option<(String, String)> {
        let endpoint = self.endpoints_in(namespace).get(name).await.ok()?;
        let conditions = endpoint.data["status"]["conditions"].as_array().cloned()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found = conditions.iter().find(|condition| condition["type"] == kind)?;
        Some((text(&found["status"]), text(&found["reason"])))
    }

    /// Ends what is not in memory.
    pub async fn delete_namespaces(self) {
        if self.api_server.is_none() {
            let namespaces = self.cluster_api("v1", "Namespace", "namespaces");
            for name in [&self.namespace, &self.other_namespace] {
                namespaces.delete(name, &DeleteParams::default()).await.unwrap();
            }
        }
    }
}

pub fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn merge(into: &mut Value, more: &Value) {
    for (name, value) in more.as_object().into_iter().flatten() {
        into[name] = value.clone();
    }
}

pub fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Everywhere in `value`.
fn remove(value: &mut Value, field: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(field);
            fields.values_mut().for_each(|value| remove(value, field));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| remove(value, field)),
        _ => {}
    }
}
