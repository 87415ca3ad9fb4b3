//! One watch per kind of object and namespace: it lists, watches, and lists again after an interruption, for as long as
//! the router runs. While the API server is unavailable, the last known state stays.

use std::fmt::Debug;
use std::future::{Future, ready};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource};
use kube::core::DynamicResourceScope;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::error_text;
use super::group_kinds::{self, GroupKind};
use super::key_secrets::{self, EndpointKeyDigests};
use super::objects::{EndpointObject, ObjectKey, Pod, RawEndpointObject, RawHpa, RawPod, ScaleTargetRef};
use super::router_service::{self, RawService};
use super::watch_store::WatchScope;
use super::workloads::ObservedWorkload;
use crate::control::secret_cache::SecretData;
use crate::model::crd::{API_GROUP, PLURAL_NAME};
use crate::model::resource::{API_VERSION, KIND};

/// An event of a watch.
#[derive(Debug)]
pub(super) enum ClusterEvent {
    /// An `OnlineEndpoint` object has changed.
    Endpoint(WatchScope, Event<(ObjectKey, EndpointObject)>),
    /// A pod has changed.
    Pod(WatchScope, Event<(ObjectKey, Pod)>),
    /// A Secret with endpoint keys has changed.
    KeySecret(WatchScope, Event<(ObjectKey, EndpointKeyDigests)>),
    /// A Secret that endpoints or the router's settings refer to has changed.
    ReferencedSecret(WatchScope, Event<(ObjectKey, Arc<SecretData>)>),
    /// The router's own Service has changed; the value is the base URL of scoring URIs, if it has a port.
    Service(WatchScope, Event<(ObjectKey, Option<String>)>),
    /// A workload of a watched kind has changed.
    Workload(Arc<GroupKind>, WatchScope, Event<(ObjectKey, ObservedWorkload)>),
    /// A HorizontalPodAutoscaler has changed; the value is its target.
    Hpa(WatchScope, Event<(ObjectKey, Option<ScaleTargetRef>)>),
    /// A kind cannot be used, for this reason; `None` if it can.
    KindState(Arc<GroupKind>, Option<String>),
    /// A watch has failed; `None` if it works again.
    WatchState(WatchKey, Option<WatchError>),
}

/// The failure of a watch.
#[derive(Debug)]
pub(super) struct WatchError {
    /// The message for users.
    pub(super) message: String,
    /// Whether the router lacks the right to watch, so that it is no use to wait.
    pub(super) is_denied: bool,
}

/// Identifies a watch by a description of its objects and its scope.
pub(super) type WatchKey = (String, WatchScope);

/// The duration of a watch request, in seconds. Then it is renewed, so that a silently dead connection is noticed.
pub(super) const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// The plural name of HorizontalPodAutoscalers in URLs.
pub(super) const HPA_PLURAL: &str = "horizontalpodautoscalers";
/// The first and the longest delay after failures of a watch.
const WATCH_BACKOFF_RANGE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The watches, which send their events to one channel. They end when this value is dropped.
pub(super) struct ClusterWatches {
    client: Client,
    /// The watched namespaces, at least one. A single empty one means all namespaces.
    scopes: Vec<WatchScope>,
    events: mpsc::Sender<ClusterEvent>,
    tasks: JoinSet<()>,
}

impl ClusterWatches {
    /// Creates the value without any watches.
    pub(super) fn new(client: Client, scopes: Vec<WatchScope>, events: mpsc::Sender<ClusterEvent>) -> Self {
        Self { client, scopes, events, tasks: JoinSet::new() }
    }

    /// Starts the watches of endpoints, pods, HorizontalPodAutoscalers and Secrets with endpoint keys.
    pub(super) fn start_default_watches(&mut self) {
        let endpoints = api_resource(API_VERSION, KIND, PLURAL_NAME);
        self.watch_resource(endpoints, |raw: RawEndpointObject| EndpointObject::from_raw(raw), ClusterEvent::Endpoint);
        self.watch_resource(api_resource("v1", "Pod", "pods"), |raw: RawPod| Pod::from_raw(raw), ClusterEvent::Pod);
        let autoscalers = api_resource("autoscaling/v1", "HorizontalPodAutoscaler", HPA_PLURAL);
        self.watch_resource(autoscalers, |raw: RawHpa| raw.spec.map(|spec| spec.scale_target_ref), ClusterEvent::Hpa);
        let field_selector = format!("type={}", key_secrets::key_secret_type());
        for scope in self.scopes.clone() {
            let api: Api<Secret> = match &*scope {
                "" => Api::all(self.client.clone()),
                namespace => Api::namespaced(self.client.clone(), namespace),
            };
            let trim = |raw: Secret| ready((ObjectKey::from_object(&raw), EndpointKeyDigests::from_secret(&raw)));
            let (events, what) = (self.events.clone(), "secrets".to_owned());
            let field_selector = field_selector.clone();
            self.tasks.spawn(async move {
                run_watch(api, &field_selector, what, scope, events, trim, ClusterEvent::KeySecret).await
            });
        }
    }

    /// Watches one Secret until the returned handle is aborted.
    pub(super) fn watch_secret(&mut self, key: &ObjectKey) -> AbortHandle {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let trim = |raw: Secret| {
            let entries = raw.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone()));
            ready((ObjectKey::from_object(&raw), Arc::new(entries.collect())))
        };
        self.watch_object(api, "Secret", key, trim, ClusterEvent::ReferencedSecret)
    }

    /// Watches the router's own Service.
    pub(super) fn watch_service(&mut self, key: &ObjectKey) {
        let api = api_in_scope(&self.client, &api_resource("v1", "Service", "services"), &key.namespace);
        let trim = |raw: RawService| ready((ObjectKey::from_object(&raw), router_service::scoring_base_url(&raw)));
        self.watch_object(api, "Service", key, trim, ClusterEvent::Service);
    }

    /// Returns the router's own namespace, to which names in its settings refer.
    pub(super) fn router_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    fn watch_object<K, T, F>(
        &mut self,
        api: Api<K>,
        kind: &str,
        key: &ObjectKey,
        trim: impl Fn(K) -> F + Send + 'static,
        to_event: fn(WatchScope, Event<(ObjectKey, T)>) -> ClusterEvent,
    ) -> AbortHandle
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: Future<Output = (ObjectKey, T)> + Send,
        T: Send + 'static,
    {
        let (what, fields) = (format!("the {kind} {}", key.name), format!("metadata.name={}", key.name));
        let (scope, events) = (key.watch_scope(), self.events.clone());
        self.tasks.spawn(async move { run_watch(api, &fields, what, scope, events, trim, to_event).await })
    }

    /// Watches a kind of workload in all scopes until the returned handles are aborted.
    pub(super) fn watch_kind(&mut self, kind: &Arc<GroupKind>, api_version: &str) -> Vec<AbortHandle> {
        let (client, events) = (self.client.clone(), self.events.clone());
        let watch_scope = |scope| {
            group_kinds::watch_kind(client.clone(), kind.clone(), api_version.to_owned(), scope, events.clone())
        };
        self.scopes.clone().into_iter().map(|scope| self.tasks.spawn(watch_scope(scope))).collect()
    }

    /// Runs another task, which ends with the watches.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Returns the number of watches of each kind.
    pub(super) fn scope_count(&self) -> usize {
        self.scopes.len()
    }

    fn watch_resource<K, T>(
        &mut self,
        resource: ApiResource,
        trim: fn(K) -> T,
        to_event: fn(WatchScope, Event<(ObjectKey, T)>) -> ClusterEvent,
    ) where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + 'static,
        T: Send + 'static,
    {
        for scope in self.scopes.clone() {
            let api = api_in_scope(&self.client, &resource, &scope);
            let (what, events) = (resource.plural.clone(), self.events.clone());
            let trim = move |raw: K| ready((ObjectKey::from_object(&raw), trim(raw)));
            self.tasks.spawn(run_watch(api, "", what, scope, events, trim, to_event));
        }
    }
}

/// Returns the API of a resource in one namespace, or in all if `scope` is empty.
pub(super) fn api_in_scope<K>(client: &Client, resource: &ApiResource, scope: &str) -> Api<K>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    if scope.is_empty() {
        Api::all_with(client.clone(), resource)
    } else {
        Api::namespaced_with(client.clone(), scope, resource)
    }
}

/// Returns a resource by its API version, kind and plural name.
pub(super) fn api_resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Watches the objects that match the field selector `fields` until the channel is closed. `trim` extracts the parts of
/// an object that are used; `what` describes the objects in messages.
pub(super) async fn run_watch<K, T, F>(
    api: Api<K>,
    fields: &str,
    what: String,
    scope: WatchScope,
    events: mpsc::Sender<ClusterEvent>,
    trim: impl Fn(K) -> F,
    to_event: impl Fn(WatchScope, Event<(ObjectKey, T)>) -> ClusterEvent,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Future<Output = (ObjectKey, T)>,
{
    let mut config = watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS);
    if !fields.is_empty() {
        config = config.fields(fields);
    }
    let mut stream = pin!(watcher(api, config));
    let mut failures = WatchBackoff::default();
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                let error = watch_error(&what, &scope, &error);
                if events.send(ClusterEvent::WatchState((what.clone(), scope.clone()), Some(error))).await.is_err() {
                    return;
                }
                failures.wait_after_failure().await;
                continue;
            }
        };
        // The beginning of a list does not prove that the list will be received.
        let is_working = !matches!(event, Event::Init);
        if is_working
            && failures.reset()
            && events.send(ClusterEvent::WatchState((what.clone(), scope.clone()), None)).await.is_err()
        {
            return;
        }
        let event = match event {
            Event::Apply(raw) => Event::Apply(trim(raw).await),
            Event::Delete(raw) => Event::Delete(trim(raw).await),
            Event::InitApply(raw) => Event::InitApply(trim(raw).await),
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
        };
        if events.send(to_event(scope.clone(), event)).await.is_err() {
            return;
        }
    }
}

/// The number of consecutive failures, which determines the delay before the next attempt.
#[derive(Debug, Default)]
pub(super) struct WatchBackoff(u32);

impl WatchBackoff {
    /// Waits after a failure. The delay grows exponentially and has jitter.
    pub(super) async fn wait_after_failure(&mut self) {
        let (first, longest) = WATCH_BACKOFF_RANGE;
        let delay = first.saturating_mul(1 << self.0.min(10)).min(longest);
        self.0 = self.0.saturating_add(1);
        let jitter = rand::rng().random_range(0.5..=1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
    }

    /// Records a success. Returns whether there was a failure before.
    pub(super) fn reset(&mut self) -> bool {
        std::mem::take(&mut self.0) > 0
    }
}

fn watch_error(what: &str, scope: &str, error: &watcher::Error) -> WatchError {
    let namespace = scope.split_once('/').map_or(scope, |(namespace, _)| namespace);
    let place = if scope.is_empty() { String::new() } else { format!(" in the namespace {namespace}") };
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => 0,
    };
    let hint = if code == 404 && what == PLURAL_NAME {
        format!(
            "; is the definition there? `inference-router crd | kubectl apply --server-side -f -` ({PLURAL_NAME}.{API_GROUP})"
        )
    } else if code == 403 {
        "; give the router's service account get, list and watch of them".to_owned()
    } else {
        "; serving last known state and retrying".to_owned()
    };
    let what = format!("{what}{place} cannot be watched: {}{hint}", error_text::describe_watch_error(error));
    WatchError { message: what, is_denied: code == 403 }
}
