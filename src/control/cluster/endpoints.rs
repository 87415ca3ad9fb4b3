//! Endpoints of a cluster: checked, their keys found, one for each name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::certificates::upstream;
use super::super::index::Desired;
use super::super::secrets::Entries;
use super::objects::{EndpointObject, Key};
use super::pods::WorkloadKey;
use super::routing::{kinds_of, named};
use super::secrets::{self, Keys};
use super::store::Store;
use super::targets::{Kinds, Standing, Targets};
use crate::model::endpoint::{Auth, Endpoint, KeySource};
use crate::model::name::Name;
use crate::model::problem::{Problem, field, item};
use crate::policy::access::Access;
use crate::state::tls::Connector;

/// Secrets that endpoints name.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// With keys.
    pub(super) keys: Store<Keys>,
    /// With what TLS towards replicas needs, and those of the router's own settings.
    pub(super) named: Store<Arc<Entries>>,
}

/// What there is of endpoints.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    known: BTreeMap<Key, Known>,
    /// Who would like to have a name; the first has it.
    claims: HashMap<Name, BTreeSet<Claim>>,
    by_secret: HashMap<Key, BTreeSet<Key>>,
    /// Who waits for what is to become of a workload.
    unsettled: BTreeMap<Arc<WorkloadKey>, BTreeSet<Key>>,
    renamed: Vec<Renamed>,
}

/// An object that was read again, and what it named before.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) object: Key,
    pub(super) tls: Vec<Key>,
    pub(super) kinds: Kinds,
}

/// The older object wins.
type Claim = (Arc<str>, Arc<str>, Key);

/// One object.
#[derive(Debug)]
pub(super) struct Known {
    /// As it is.
    pub(super) object: EndpointObject,
    /// The name it asks for, if that is one.
    pub(super) name: Option<Name>,
    /// What is wrong with it now.
    pub(super) problems: Vec<Problem>,
    /// What is wrong, in one word.
    pub(super) reason: &'static str,
    /// Its last good version.
    pub(super) good: Option<Desired>,
    secret: Option<Key>,
    /// Secrets for TLS towards replicas.
    pub(super) tls: Vec<Key>,
    /// Kinds that its deployments name, in what it says and in what is served.
    pub(super) kinds: Kinds,
    /// Workloads that a change waits for.
    waits: Vec<Arc<WorkloadKey>>,
}

impl Endpoints {
    /// An object is like this now, or gone. Returns the names whose endpoint may be another now.
    pub(super) fn set(
        &mut self,
        key: &Key,
        object: Option<EndpointObject>,
        secrets: &Secrets,
        targets: &Targets,
    ) -> Vec<Name> {
        let before = self.known.remove(key);
        let mut names: Vec<Name> = before.as_ref().and_then(|known| known.name.clone()).into_iter().collect();
        if let Some(known) = &before {
            self.forget(key, known);
        }
        let named = before.as_ref().map(|known| (known.tls.clone(), known.kinds.clone())).unwrap_or_default();
        self.renamed.push(Renamed { object: key.clone(), tls: named.0, kinds: named.1 });
        let Some(object) = object else { return names };
        // One that was deleted and made anew has no good version yet.
        let good = before.filter(|known| known.object.uid == object.uid).and_then(|known| known.good);
        let known = read(key, object, good, secrets, targets);
        if let Some(name) = &known.name {
            let claim = (known.object.created.clone(), known.object.uid.clone(), key.clone());
            self.claims.entry(name.clone()).or_default().insert(claim);
            names.push(name.clone());
        }
        for secret in known.secrets() {
            self.by_secret.entry(secret.clone()).or_default().insert(key.clone());
        }
        for workload in &known.waits {
            self.unsettled.entry(workload.clone()).or_default().insert(key.clone());
        }
        self.known.insert(key.clone(), known);
        names.dedup();
        names
    }

    /// What was read again since this was last called.
    pub(super) fn take_renamed(&mut self) -> Vec<Renamed> {
        std::mem::take(&mut self.renamed)
    }

    /// Reads those again that wait for a workload among `which`. Returns the names whose endpoint may be another now.
    pub(super) fn settle(
        &mut self,
        which: impl Fn(&Arc<WorkloadKey>) -> bool,
        secrets: &Secrets,
        targets: &Targets,
    ) -> Vec<Name> {
        let waiting = self.unsettled.iter().filter(|(workload, _)| which(workload));
        let waiting: BTreeSet<Key> = waiting.flat_map(|(_, keys)| keys).cloned().collect();
        self.again(waiting, secrets, targets)
    }

    fn again(&mut self, keys: BTreeSet<Key>, secrets: &Secrets, targets: &Targets) -> Vec<Name> {
        let again = |key: Key| {
            let object = self.known.get(&key)?.object.clone();
            Some(self.set(&key, Some(object), secrets, targets))
        };
        keys.into_iter().filter_map(again).flatten().collect()
    }

    /// Only the status of an object is another one now.
    pub(super) fn set_status(&mut self, key: &Key, object: &EndpointObject) {
        if let Some(known) = self.known.get_mut(key) {
            known.object = object.clone();
        }
    }

    /// A Secret is another one now. Returns the names whose endpoint may be another now.
    pub(super) fn secret_changed(&mut self, secret: &Key, secrets: &Secrets, targets: &Targets) -> Vec<Name> {
        let users = self.by_secret.get(secret).cloned().unwrap_or_default();
        self.again(users, secrets, targets)
    }

    /// Whether any endpoint names a Secret for TLS.
    pub(super) fn is_for_tls(&self, secret: &Key) -> bool {
        let users = self.by_secret.get(secret).into_iter().flatten();
        users.filter_map(|key| self.known.get(key)).any(|known| known.tls.contains(secret))
    }

    /// What a name means: its object's last good version.
    pub(super) fn of(&self, name: &Name) -> Option<&Desired> {
        self.holder(name).and_then(|key| self.known.get(key)).and_then(|known| known.good.as_ref())
    }

    /// The object that has a name.
    pub(super) fn holder(&self, name: &Name) -> Option<&Key> {
        self.claims.get(name).and_then(|claims| claims.first()).map(|(.., key)| key)
    }

    /// Every object that would like to have a name.
    pub(super) fn claimants(&self, name: &Name) -> impl Iterator<Item = &Key> {
        self.claims.get(name).into_iter().flatten().map(|(.., key)| key)
    }

    /// All that is known of an object.
    pub(super) fn get(&self, key: &Key) -> Option<&Known> {
        self.known.get(key)
    }

    /// Every object from this one on.
    pub(super) fn keys_from(&self, from: &Key) -> impl Iterator<Item = &Key> {
        self.known.range(from..).map(|(key, _)| key)
    }

    fn forget(&mut self, key: &Key, known: &Known) {
        if let Some(name) = &known.name
            && let Some(claims) = self.claims.get_mut(name)
        {
            claims.retain(|(.., other)| other != key);
            if claims.is_empty() {
                self.claims.remove(name);
            }
        }
        for workload in &known.waits {
            let Some(waiting) = self.unsettled.get_mut(workload) else { continue };
            waiting.remove(key);
            if waiting.is_empty() {
                self.unsettled.remove(workload);
            }
        }
        for secret in known.secrets() {
            let Some(users) = self.by_secret.get_mut(secret) else { continue };
            users.remove(key);
            if users.is_empty() {
                self.by_secret.remove(secret);
            }
        }
    }
}

impl Known {
    fn secrets(&self) -> impl Iterator<Item = &Key> {
        self.secret.iter().chain(&self.tls)
    }
}

/// Checks an object. Where something is wrong, the good version of before stays, but with the keys of now where those are
/// in order: a key that was given away must not stay good because something else is wrong.
fn read(key: &Key, object: EndpointObject, good: Option<Desired>, secrets: &Secrets, targets: &Targets) -> Known {
    let name = Name::new(&key.name).ok();
    let (endpoint, mut problems) = match &object.checked {
        Ok(endpoint) => (Some(endpoint.clone()), Vec::new()),
        Err(problems) => (None, problems.to_vec()),
    };
    let secret = endpoint.as_ref().or(good.as_ref().map(|good| &good.spec)).and_then(|it| secret_of(key, &it.auth));
    let tls = endpoint.as_deref().or(good.as_ref().map(|good| &*good.spec)).map(|spec| tls_secrets(key, spec));
    let auth = endpoint.as_ref().map(|endpoint| access(key, &endpoint.auth, &secrets.keys));
    let connectors = endpoint.as_deref().map(|endpoint| connectors(key, endpoint, &secrets.named));
    let mut reason = "Invalid";
    let changed = endpoint.as_ref().zip(good.as_ref()).map(|(now, before)| retargeted(now, &before.spec, targets));
    let Retargeted { problems: of_targets, reason: of_target, waits } = changed.unwrap_or_default();
    let specs = [endpoint.as_deref(), good.as_ref().map(|good| &*good.spec)];
    let kinds = kinds_of(specs.into_iter().flatten()).into_iter();
    let kinds: Kinds = kinds.map(|(kind, version)| (targets.shared(kind), version.into())).collect();
    let good = match (endpoint, auth, connectors) {
        (Some(endpoint), Some(Ok(access)), Some(Ok(tls))) if waits.is_empty() => {
            Some(Desired { spec: endpoint, access, tls })
        }
        (_, auth, connectors) => {
            if let Some(Err(problem)) = auth {
                reason = if problems.is_empty() { "BadSecret" } else { reason };
                problems.push(problem);
            }
            problems.extend(connectors.and_then(Result::err).into_iter().flatten());
            reason = of_target.filter(|_| problems.is_empty()).unwrap_or(reason);
            problems.extend(of_targets);
            good.map(|good| with_keys_of_now(key, good, &secrets.keys))
        }
    };
    let tls = tls.unwrap_or_default();
    Known { object, name, problems, reason, good, secret, tls, kinds, waits }
}

/// What is to be said of targets that a change brings.
#[derive(Default)]
struct Retargeted {
    problems: Vec<Problem>,
    /// Of the first, in a word.
    reason: Option<&'static str>,
    /// Those that cannot be used, or not yet.
    waits: Vec<Arc<WorkloadKey>>,
}

/// Looks at what a change names that was not named before: what serves must not end because of a workload that is not
/// there, or that somebody else has.
fn retargeted(now: &Endpoint, before: &Endpoint, targets: &Targets) -> Retargeted {
    let (now_named, before) = (named(now), named(before));
    let mut found = Retargeted::default();
    for (index, deployment) in now.deployments.iter().enumerate() {
        let Some((workload, _)) = now_named.get(&deployment.name) else { continue };
        if before.values().any(|(other, _)| other == workload) {
            continue;
        }
        let user = (now.name.clone(), deployment.name.clone());
        match targets.standing(workload, &user, |other| other.0 != now.name) {
            Standing::Fit => continue,
            Standing::Unknown => {}
            Standing::Unfit(reason, what) => {
                found.reason.get_or_insert(reason);
                let path = field(&item("spec.deployments", index), "targetRef");
                found.problems.push(Problem::new(path, what));
            }
        }
        found.waits.push(workload.clone());
    }
    found
}

fn with_keys_of_now(key: &Key, mut good: Desired, secrets: &Store<Keys>) -> Desired {
    if let Ok(access) = access(key, &good.spec.auth, secrets) {
        good.access = access;
    }
    good
}

fn secret_of(key: &Key, auth: &Auth) -> Option<Key> {
    let (Auth::Key(sources) | Auth::RouterToken(sources)) = auth else { return None };
    sources.iter().find_map(|source| match source {
        KeySource::Secret { name, .. } => Some(Key { namespace: key.namespace.clone(), name: name.as_str().into() }),
        _ => None,
    })
}

/// Who may call.
fn access(key: &Key, auth: &Auth, secrets: &Store<Keys>) -> Result<Access, Problem> {
    let digests = match secret_of(key, auth) {
        None => Vec::new(),
        Some(secret) => {
            let problem = |what: String| Problem::new("spec.keys.secretRef", what);
            let keys = secrets.get(&secret).ok_or_else(|| {
                let how = format!("create it in the namespace {}, with the type {}", secret.namespace, secrets::kind());
                problem(format!("there is no Secret {} with keys; {how}", secret.name))
            })?;
            let digests = keys.digests().map_err(|what| problem(format!("the Secret {} {what}", secret.name)))?;
            digests.to_vec()
        }
    };
    Ok(match auth {
        Auth::None => Access::Open,
        Auth::IssuerToken(issuers) => Access::IssuerTokens(issuers.clone()),
        Auth::Key(_) => Access::Keys(digests),
        Auth::RouterToken(_) => Access::RouterTokens(digests),
    })
}

/// Secrets for TLS towards replicas.
fn tls_secrets(key: &Key, endpoint: &Endpoint) -> Vec<Key> {
    let names = endpoint.deployments.iter().filter_map(|it| it.upstream_tls.as_ref()?.secret.as_deref());
    names.map(|name| Key { namespace: key.namespace.clone(), name: name.into() }).collect()
}

fn connectors(
    key: &Key,
    endpoint: &Endpoint,
    secrets: &Store<Arc<Entries>>,
) -> Result<Vec<(Name, Connector)>, Vec<Problem>> {
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    for (index, deployment) in endpoint.deployments.iter().enumerate() {
        let Some(tls) = &deployment.upstream_tls else { continue };
        let secret = |name: &str| {
            let key = Key { namespace: key.namespace.clone(), name: name.into() };
            let missing = || format!("there is no such Secret in the namespace {}; create it", key.namespace);
            secrets.get(&key).cloned().ok_or_else(missing)
        };
        match upstream::connector(tls, secret) {
            Ok(connector) => made.push((deployment.name.clone(), connector)),
            Err((name, what)) => {
                let path = field(&field(&item("spec.deployments", index), "upstreamTls"), name);
                problems.push(Problem::new(path, what));
            }
        }
    }
    if problems.is_empty() { Ok(made) } else { Err(problems) }
}
