//! Objects of all kinds, with the history of their changes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Changes that are remembered.
const MAX_HISTORY_EVENTS: usize = 10_000;

/// A kind of resource: `""`, `v1`, `pods`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
}

/// Group, version, plural, kind, whether it is in a namespace, subresources.
type KindEntry = (&'static str, &'static str, &'static str, &'static str, bool, &'static [&'static str]);

/// What is served.
pub const KINDS: [KindEntry; 14] = [
    ("", "v1", "namespaces", "Namespace", false, &[]),
    ("", "v1", "pods", "Pod", true, &["status"]),
    ("", "v1", "secrets", "Secret", true, &[]),
    ("", "v1", "services", "Service", true, &["status"]),
    ("", "v1", "serviceaccounts", "ServiceAccount", true, &[]),
    ("apps", "v1", "deployments", "Deployment", true, &["status", "scale"]),
    ("apps", "v1", "statefulsets", "StatefulSet", true, &["status", "scale"]),
    ("apps", "v1", "replicasets", "ReplicaSet", true, &["status", "scale"]),
    ("autoscaling", "v1", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true, &["status"]),
    ("events.k8s.io", "v1", "events", "Event", true, &[]),
    ("coordination.k8s.io", "v1", "leases", "Lease", true, &[]),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false, &["status"]),
    ("inference-router.dev", "v1alpha1", "onlineendpoints", "OnlineEndpoint", true, &["status"]),
    // What somebody else's definition would add.
    ("models.example", "v1", "servers", "Server", true, &["status", "scale"]),
];

/// What happened to an object.
#[derive(Debug, Clone)]
pub struct ObjectChange {
    pub version: u64,
    pub resource: Resource,
    /// Before; `None`: it was made.
    pub before: Option<Arc<Value>>,
    /// After; `None`: it is gone.
    pub after: Option<Arc<Value>>,
}

/// An error as the API server says it.
#[derive(Debug)]
pub struct ApiFailure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

/// The next requests whose method and path contain these are answered with `code`.
#[derive(Debug, Clone)]
pub struct InjectedFault {
    pub method: &'static str,
    pub path: &'static str,
    pub code: u16,
    pub times: usize,
}

pub struct Store {
    inner: Mutex<StoreState>,
    version_tx: watch::Sender<u64>,
}

struct StoreState {
    objects: HashMap<Resource, BTreeMap<(String, String), Arc<Value>>>,
    version: u64,
    history: VecDeque<ObjectChange>,
    /// What is older is forgotten.
    oldest_version: u64,
    faults: Vec<InjectedFault>,
    latency: Duration,
    /// Where Services lead to: `host:port`.
    service_authority: Option<String>,
    requests: Vec<String>,
    uids: u64,
    /// Users by their tokens.
    users: HashMap<String, String>,
    /// Who may get tokens of which endpoints.
    token_grants: Vec<(String, String, String)>,
}

pub fn resource(group: &str, version: &str, plural: &str) -> Resource {
    Resource { group: group.to_owned(), version: version.to_owned(), plural: plural.to_owned() }
}

impl Store {
    pub fn new() -> Self {
        let inner = StoreState {
            objects: HashMap::new(),
            version: 1,
            history: VecDeque::new(),
            oldest_version: 0,
            faults: Vec::new(),
            latency: Duration::ZERO,
            service_authority: None,
            requests: Vec::new(),
            uids: 0,
            users: HashMap::new(),
            token_grants: Vec::new(),
        };
        let store = Self { inner: Mutex::new(inner), version_tx: watch::Sender::new(1) };
        for name in ["default", "kube-system"] {
            let namespaces = resource("", "v1", "namespaces");
            store.create(&namespaces, "", json!({"metadata": {"name": name}})).unwrap();
        }
        store
    }

    /// Whoever shows `token` is `user`.
    pub fn add_user(&self, token: &str, user: &str) {
        self.inner.lock().unwrap().users.insert(token.to_owned(), user.to_owned());
    }

    /// A user may `create` `onlineendpoints/token` of this one.
    pub fn allow_tokens(&self, user: &str, namespace: &str, endpoint: &str) {
        let right = (user.to_owned(), namespace.to_owned(), endpoint.to_owned());
        self.inner.lock().unwrap().token_grants.push(right);
    }

    /// Answers a TokenReview.
    pub fn user_of_token(&self, token: &str) -> Option<String> {
        self.inner.lock().unwrap().users.get(token).cloned()
    }

    /// Answers a SubjectAccessReview.
    pub fn is_allowed(&self, spec: &Value) -> bool {
        let asked = &spec["resourceAttributes"];
        let is_token = asked["verb"] == "create"
            && asked["group"] == "inference-router.dev"
            && asked["resource"] == "onlineendpoints"
            && asked["subresource"] == "token";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let right = (text(&spec["user"]), text(&asked["namespace"]), text(&asked["name"]));
        is_token && self.inner.lock().unwrap().token_grants.contains(&right)
    }

    /// Told of every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version_tx.subscribe()
    }

    pub fn version(&self) -> u64 {
        self.inner.lock().unwrap().version
    }

    /// Watches that begin before now are refused with 410.
    pub fn compact_history(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        inner.history.clear();
        inner.oldest_version = inner.version;
    }

    pub fn inject_fault(&self, fault: InjectedFault) {
        self.inner.lock().unwrap().faults.push(fault);
    }

    /// Every answer takes this much longer.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.lock().unwrap().latency = latency;
    }

    /// All Services lead there, as `host:port`.
    pub fn set_service_authority(&self, authority: &str) {
        self.inner.lock().unwrap().service_authority = Some(authority.to_owned());
    }

    pub fn service_authority(&self) -> Option<String> {
        self.inner.lock().unwrap().service_authority.clone()
    }

    pub fn latency(&self) -> Duration {
        self.inner.lock().unwrap().latency
    }

    /// Requests so far, as `GET /api/v1/pods?watch=true`.
    pub fn requests(&self) -> Vec<String> {
        self.inner.lock().unwrap().requests.clone()
    }

    /// Takes note of a request; the code it is to fail with, if it is.
    pub fn record_request(&self, method: &str, path: &str) -> Option<u16> {
        let mut inner = self.inner.lock().unwrap();
        inner.requests.push(format!("{method} {path}"));
        let is_meant =
            |fault: &&mut InjectedFault| fault.times > 0 && method == fault.method && path.contains(fault.path);
        let fault = inner.faults.iter_mut().find(is_meant)?;
        fault.times -= 1;
        Some(fault.code)
    }

    pub fn get(&self, of: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>, ApiFailure> {
        let inner = self.inner.lock().unwrap();
        let objects = inner.objects.get(of);
        objects.and_then(|objects| objects.get(&key(namespace, name)).cloned()).ok_or_else(|| not_found(of, name))
    }

    /// All in a namespace, or in all where it is empty, with the version they are of.
    pub fn list(&self, of: &Resource, namespace: &str) -> (Vec<Arc<Value>>, u64) {
        let inner = self.inner.lock().unwrap();
        let objects = inner.objects.get(of).into_iter().flatten();
        let within = objects.filter(|((of, _), _)| namespace.is_empty() || of == namespace);
        (within.map(|(_, object)| object.clone()).collect(), inner.version)
    }

    /// What has happened to objects of a kind since a version.
    pub fn since(&self, of: &Resource, version: u64) -> Result<Vec<ObjectChange>, ApiFailure> {
        let inner = self.inner.lock().unwrap();
        if version < inner.oldest_version {
            let message = format!("too old resource version: {version} ({})", inner.oldest_version);
            return Err(ApiFailure { code: 410, reason: "Expired", message });
        }
        let news = inner.history.iter().rev().take_while(|it| it.version > version).filter(|it| it.resource == *of);
        let mut news: Vec<ObjectChange> = news.cloned().collect();
        news.reverse();
        Ok(news)
    }

    pub fn create(&self, of: &Resource, namespace: &str, mut object: Value) -> Result<Arc<Value>, ApiFailure> {
        let mut inner = self.inner.lock().unwrap();
        inner.uids += 1;
        let (uid, kind) = (format!("uid-{}", inner.uids), kind_of(of));
        if let Some(prefix) = object["metadata"]["generateName"].as_str().map(str::to_owned)
            && object["metadata"]["name"].is_null()
        {
            object["metadata"]["name"] = json!(format!("{prefix}{uid}"));
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let exists = inner.objects.get(of).is_some_and(|objects| objects.contains_key(&key(namespace, &name)));
        if exists {
            let message = format!("{} \"{name}\" already exists", of.plural);
            return Err(ApiFailure { code: 409, reason: "AlreadyExists", message });
        }
        let namespaces = resource("", "v1", "namespaces");
        let is_there =
            |namespace: &str| inner.objects.get(&namespaces).is_some_and(|all| all.contains_key(&key("", namespace)));
        if !namespace.is_empty() && !is_there(namespace) {
            return Err(not_found(&namespaces, namespace));
        }
        object["apiVersion"] = json!(api_version(of));
        object["kind"] = json!(kind);
        let created = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("uid".to_owned(), json!(uid));
        metadata.entry("creationTimestamp").or_insert(json!(created));
        metadata.insert("generation".to_owned(), json!(1));
        if !namespace.is_empty() {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        if has_status(of) {
            object.as_object_mut().unwrap().remove("status");
        }
        Ok(inner.put(of, namespace, &name, object, &self.version_tx))
    }

    /// Replaces what `change` makes of an object. `subresource`: `status`, or empty: all but that.
    pub fn update(
        &self,
        of: &Resource,
        (namespace, name, subresource): (&str, &str, &str),
        change: impl FnOnce(&mut Value) -> Result<(), ApiFailure>,
    ) -> Result<Arc<Value>, ApiFailure> {
        let mut inner = self.inner.lock().unwrap();
        let found = inner.objects.get(of).and_then(|objects| objects.get(&key(namespace, name)));
        let before = found.cloned().ok_or_else(|| not_found(of, name))?;
        let mut object = (*before).clone();
        change(&mut object)?;
        if let Some(wanted) = object["metadata"]["resourceVersion"].as_str()
            && before["metadata"]["resourceVersion"] != wanted
        {
            let message = format!("the object has been modified: {name}");
            return Err(ApiFailure { code: 409, reason: "Conflict", message });
        }
        let keep = |object: &mut Value, field: &str| match before.get(field) {
            Some(value) => object[field] = value.clone(),
            None => drop(object.as_object_mut().unwrap().remove(field)),
        };
        if subresource == "status" {
            let status = object["status"].take();
            object = (*before).clone();
            object["status"] = status;
        } else if has_status(of) {
            keep(&mut object, "status");
        }
        for field in ["uid", "creationTimestamp", "generation"] {
            object["metadata"][field] = before["metadata"][field].clone();
        }
        if object == *before {
            return Ok(before);
        }
        if !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&object) {
            return Ok(inner.remove(of, namespace, name, before, &self.version_tx));
        }
        if object["spec"] != before["spec"] {
            object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        Ok(inner.put(of, namespace, name, object, &self.version_tx))
    }

    pub fn delete(&self, of: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>, ApiFailure> {
        let mut inner = self.inner.lock().unwrap();
        let found = inner.objects.get(of).and_then(|objects| objects.get(&key(namespace, name)));
        let before = found.cloned().ok_or_else(|| not_found(of, name))?;
        if has_finalizers(&before) {
            let mut object = (*before).clone();
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            object["metadata"]["deletionTimestamp"] = json!(now);
            return Ok(inner.put(of, namespace, name, object, &self.version_tx));
        }
        Ok(inner.remove(of, namespace, name, before, &self.version_tx))
    }
}

impl StoreState {
    fn put(
        &mut self,
        of: &Resource,
        namespace: &str,
        name: &str,
        mut object: Value,
        changed: &watch::Sender<u64>,
    ) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let before = self.objects.entry(of.clone()).or_default().insert(key(namespace, name), object.clone());
        self.record_change(of, before, Some(object.clone()), changed);
        object
    }

    fn remove(
        &mut self,
        of: &Resource,
        namespace: &str,
        name: &str,
        before: Arc<Value>,
        changed: &watch::Sender<u64>,
    ) -> Arc<Value> {
        self.objects.entry(of.clone()).or_default().remove(&key(namespace, name));
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        self.record_change(of, Some(last.clone()), None, changed);
        last
    }

    fn record_change(
        &mut self,
        of: &Resource,
        before: Option<Arc<Value>>,
        after: Option<Arc<Value>>,
        changed: &watch::Sender<u64>,
    ) {
        let version = self.version;
        self.history.push_back(ObjectChange { version, resource: of.clone(), before, after });
        if self.history.len() > MAX_HISTORY_EVENTS
            && let Some(gone) = self.history.pop_front()
        {
            self.oldest_version = gone.version;
        }
        changed.send_replace(version);
    }
}

/// Whether it has finalizers: it is not gone before somebody has taken them out.
fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

pub fn not_found(of: &Resource, name: &str) -> ApiFailure {
    ApiFailure { code: 404, reason: "NotFound", message: format!("{} \"{name}\" not found", of.plural) }
}

pub fn api_version(of: &Resource) -> String {
    if of.group.is_empty() { of.version.clone() } else { format!("{}/{}", of.group, of.version) }
}

pub fn kind_of(of: &Resource) -> &'static str {
    let known = KINDS.iter().find(|known| (known.0, known.2) == (of.group.as_str(), of.plural.as_str()));
    known.map_or("", |known| known.3)
}

fn has_status(of: &Resource) -> bool {
    let known = KINDS.iter().find(|known| (known.0, known.2) == (of.group.as_str(), of.plural.as_str()));
    known.is_some_and(|known| known.5.contains(&"status"))
}

/// RFC 7396.
pub fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Value::Object(map) = into else { return };
    for (name, value) in patch {
        if value.is_null() {
            map.remove(name);
        } else {
            merge(map.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
