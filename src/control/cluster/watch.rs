//! One watch for each kind of object and each namespace: lists, follows, lists again where it has lost the thread, for
//! as long as the router runs. While the API server is away, what is known stays.

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

use super::kinds::{self, Kind};
use super::objects::{EndpointObject, Key, Pod, RawAutoscaler, RawEndpoint, RawPod, TargetRef};
use super::secrets::{self, Keys};
use super::service::{self, RawService};
use super::store::Scope;
use super::words;
use super::workloads::Workload;
use crate::control::secrets::Entries;
use crate::model::crd::{GROUP, PLURAL};
use crate::model::resource::{API_VERSION, KIND};

/// What has been seen of the cluster.
#[derive(Debug)]
pub(super) enum Seen {
    /// An `OnlineEndpoint`.
    Endpoint(Scope, Event<(Key, EndpointObject)>),
    /// A pod.
    Pod(Scope, Event<(Key, Pod)>),
    /// A Secret with keys.
    Secret(Scope, Event<(Key, Keys)>),
    /// A Secret that is named by somebody.
    Named(Scope, Event<(Key, Arc<Entries>)>),
    /// The router's own Service, as where clients reach it.
    Service(Scope, Event<(Key, Option<String>)>),
    /// Something of a kind that has pods.
    Workload(Arc<Kind>, Scope, Event<(Key, Workload)>),
    /// A HorizontalPodAutoscaler.
    Autoscaler(Scope, Event<(Key, Option<TargetRef>)>),
    /// A kind is of no use, for this reason; `None`: it is.
    Kind(Arc<Kind>, Option<String>),
    /// A watch does not work; `None`: it does again.
    Trouble(Watched, Option<Trouble>),
}

/// Why a watch does not work.
#[derive(Debug)]
pub(super) struct Trouble {
    /// In words.
    pub(super) what: String,
    /// Whether the router has no right to it, so that there is no use in waiting.
    pub(super) is_denied: bool,
}

/// Which watch.
pub(super) type Watched = (String, Scope);

/// How long a watch lasts before it is made anew: a connection that has died without a word is noticed then.
pub(super) const LONGEST_WATCH: u32 = 60;
/// What HorizontalPodAutoscalers are called in URLs.
pub(super) const AUTOSCALERS: &str = "horizontalpodautoscalers";
/// First and longest wait after a watch has failed.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Starts watches, and says what they see.
pub(super) struct Watches {
    client: Client,
    /// At least one; one empty: all namespaces.
    scopes: Vec<Scope>,
    seen: mpsc::Sender<Seen>,
    tasks: JoinSet<()>,
}

impl Watches {
    /// None yet.
    pub(super) fn new(client: Client, scopes: Vec<Scope>, seen: mpsc::Sender<Seen>) -> Self {
        Self { client, scopes, seen, tasks: JoinSet::new() }
    }

    /// Watches what there always is.
    pub(super) fn start(&mut self) {
        let endpoints = resource(API_VERSION, KIND, PLURAL);
        self.follow(endpoints, |raw: RawEndpoint| EndpointObject::of(raw), Seen::Endpoint);
        self.follow(resource("v1", "Pod", "pods"), |raw: RawPod| Pod::of(raw), Seen::Pod);
        let autoscalers = resource("autoscaling/v1", "HorizontalPodAutoscaler", AUTOSCALERS);
        self.follow(autoscalers, |raw: RawAutoscaler| raw.spec.map(|spec| spec.scale_target_ref), Seen::Autoscaler);
        let of_keys = format!("type={}", secrets::kind());
        for scope in self.scopes.clone() {
            let api: Api<Secret> = match &*scope {
                "" => Api::all(self.client.clone()),
                namespace => Api::namespaced(self.client.clone(), namespace),
            };
            let trim = |raw: Secret| ready((Key::of(&raw), Keys::of(&raw)));
            let (seen, what) = (self.seen.clone(), "secrets".to_owned());
            let of_keys = of_keys.clone();
            self.tasks.spawn(async move { run(api, &of_keys, what, scope, seen, trim, Seen::Secret).await });
        }
    }

    /// Watches one Secret until what is returned is told to stop.
    pub(super) fn start_secret(&mut self, key: &Key) -> AbortHandle {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let trim = |raw: Secret| {
            let entries = raw.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone()));
            ready((Key::of(&raw), Arc::new(entries.collect())))
        };
        self.follow_one(api, "Secret", key, trim, Seen::Named)
    }

    /// Watches the router's own Service.
    pub(super) fn start_service(&mut self, key: &Key) {
        let api = api(&self.client, &resource("v1", "Service", "services"), &key.namespace);
        let trim = |raw: RawService| ready((Key::of(&raw), service::url(&raw)));
        self.follow_one(api, "Service", key, trim, Seen::Service);
    }

    /// Where the router itself is, as far as its settings name something there.
    pub(super) fn own_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    fn follow_one<K, T, F>(
        &mut self,
        api: Api<K>,
        kind: &str,
        key: &Key,
        trim: impl Fn(K) -> F + Send + 'static,
        tell: fn(Scope, Event<(Key, T)>) -> Seen,
    ) -> AbortHandle
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: Future<Output = (Key, T)> + Send,
        T: Send + 'static,
    {
        let (what, fields) = (format!("the {kind} {}", key.name), format!("metadata.name={}", key.name));
        let (scope, seen) = (key.scope(), self.seen.clone());
        self.tasks.spawn(async move { run(api, &fields, what, scope, seen, trim, tell).await })
    }

    /// Watches a kind of workload, until what is returned is told to stop.
    pub(super) fn start_kind(&mut self, kind: &Arc<Kind>, api_version: &str) -> Vec<AbortHandle> {
        let (client, seen) = (self.client.clone(), self.seen.clone());
        let follow = |scope| kinds::follow(client.clone(), kind.clone(), api_version.to_owned(), scope, seen.clone());
        self.scopes.clone().into_iter().map(|scope| self.tasks.spawn(follow(scope))).collect()
    }

    /// Runs something else, as long as the watches.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// How many watches there are of each kind.
    pub(super) fn scopes(&self) -> usize {
        self.scopes.len()
    }

    fn follow<K, T>(&mut self, of: ApiResource, trim: fn(K) -> T, tell: fn(Scope, Event<(Key, T)>) -> Seen)
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
        K: Clone + DeserializeOwned + Debug + Send + 'static,
        T: Send + 'static,
    {
        for scope in self.scopes.clone() {
            let api = api(&self.client, &of, &scope);
            let (what, seen) = (of.plural.clone(), self.seen.clone());
            let trim = move |raw: K| ready((Key::of(&raw), trim(raw)));
            self.tasks.spawn(run(api, "", what, scope, seen, trim, tell));
        }
    }
}

/// The objects of a kind in a scope.
pub(super) fn api<K>(client: &Client, of: &ApiResource, scope: &str) -> Api<K>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    if scope.is_empty() { Api::all_with(client.clone(), of) } else { Api::namespaced_with(client.clone(), scope, of) }
}

/// A kind of object, as its URL says it.
pub(super) fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Follows for ever those objects whose `fields` are such. `trim` keeps of an object what counts.
pub(super) async fn run<K, T, F>(
    api: Api<K>,
    fields: &str,
    what: String,
    scope: Scope,
    seen: mpsc::Sender<Seen>,
    trim: impl Fn(K) -> F,
    tell: impl Fn(Scope, Event<(Key, T)>) -> Seen,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Future<Output = (Key, T)>,
{
    let mut config = watcher::Config::default().timeout(LONGEST_WATCH);
    if !fields.is_empty() {
        config = config.fields(fields);
    }
    let mut stream = pin!(watcher(api, config));
    let mut failures = Failures::default();
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                let trouble = describe(&what, &scope, &error);
                if seen.send(Seen::Trouble((what.clone(), scope.clone()), Some(trouble))).await.is_err() {
                    return;
                }
                failures.wait().await;
                continue;
            }
        };
        // That a list begins says nothing yet of whether it comes.
        let works = !matches!(event, Event::Init);
        if works && failures.over() && seen.send(Seen::Trouble((what.clone(), scope.clone()), None)).await.is_err() {
            return;
        }
        let event = match event {
            Event::Apply(raw) => Event::Apply(trim(raw).await),
            Event::Delete(raw) => Event::Delete(trim(raw).await),
            Event::InitApply(raw) => Event::InitApply(trim(raw).await),
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
        };
        if seen.send(tell(scope.clone(), event)).await.is_err() {
            return;
        }
    }
}

/// Failures in a row, and how long to wait after each.
#[derive(Debug, Default)]
pub(super) struct Failures(u32);

impl Failures {
    /// Waits: longer after each, and never as long as somebody else.
    pub(super) async fn wait(&mut self) {
        let (first, longest) = BACK_OFF;
        let longest = first.saturating_mul(1 << self.0.min(10)).min(longest);
        self.0 = self.0.saturating_add(1);
        let share = rand::rng().random_range(0.5..=1.0);
        tokio::time::sleep(longest.mul_f64(share)).await;
    }

    /// Something works. Returns whether nothing had before.
    pub(super) fn over(&mut self) -> bool {
        std::mem::take(&mut self.0) > 0
    }
}

fn describe(what: &str, scope: &str, error: &watcher::Error) -> Trouble {
    let namespace = scope.split_once('/').map_or(scope, |(namespace, _)| namespace);
    let place = if scope.is_empty() { String::new() } else { format!(" in the namespace {namespace}") };
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => 0,
    };
    let hint = if code == 404 && what == PLURAL {
        format!(
            "; is the definition there? `inference-router crd | kubectl apply --server-side -f -` ({PLURAL}.{GROUP})"
        )
    } else if code == 403 {
        "; give the router's service account get, list and watch of them".to_owned()
    } else {
        "; what is known stays, trying again".to_owned()
    };
    let what = format!("{what}{place} cannot be watched: {}{hint}", words::of_watch(error));
    Trouble { what, is_denied: code == 403 }
}
