//! Endpoints of a cluster: checked, their keys found, one for each name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::certificates::upstream;
use super::super::index::Desired;
use super::super::secrets::Entries;
use super::objects::{EndpointObject, Key};
use super::secrets::{self, Keys};
use super::store::Store;
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
}

/// The older object wins.
type Claim = (String, String, Key);

/// One object.
#[derive(Debug)]
pub(super) struct Known {
    /// As it is.
    pub(super) object: EndpointObject,
    /// The name it asks for, if that is one.
    pub(super) name: Option<Name>,
    /// What is wrong with it now.
    pub(super) problems: Vec<Problem>,
    /// Whether what is wrong is its Secret alone.
    pub(super) is_secret_missing: bool,
    /// Its last good version.
    pub(super) good: Option<Desired>,
    secret: Option<Key>,
    /// Secrets for TLS towards replicas.
    pub(super) tls: Vec<Key>,
}

impl Endpoints {
    /// An object is like this now, or gone. Returns the names whose endpoint may be another now.
    pub(super) fn set(&mut self, key: &Key, object: Option<EndpointObject>, secrets: &Secrets) -> Vec<Name> {
        let before = self.known.remove(key);
        let mut names: Vec<Name> = before.as_ref().and_then(|known| known.name.clone()).into_iter().collect();
        if let Some(known) = &before {
            self.forget(key, known);
        }
        let Some(object) = object else { return names };
        // One that was deleted and made anew has no good version yet.
        let good = before.filter(|known| known.object.uid == object.uid).and_then(|known| known.good);
        let known = read(key, object, good, secrets);
        if let Some(name) = &known.name {
            let claim = (known.object.created.clone(), known.object.uid.clone(), key.clone());
            self.claims.entry(name.clone()).or_default().insert(claim);
            names.push(name.clone());
        }
        for secret in known.secrets() {
            self.by_secret.entry(secret.clone()).or_default().insert(key.clone());
        }
        self.known.insert(key.clone(), known);
        names.dedup();
        names
    }

    /// Only the status of an object is another one now.
    pub(super) fn set_status(&mut self, key: &Key, object: &EndpointObject) {
        if let Some(known) = self.known.get_mut(key) {
            known.object = object.clone();
        }
    }

    /// A Secret is another one now. Returns the names whose endpoint may be another now.
    pub(super) fn secret_changed(&mut self, secret: &Key, secrets: &Secrets) -> Vec<Name> {
        let users: Vec<Key> = self.by_secret.get(secret).into_iter().flatten().cloned().collect();
        let again = |key: Key| {
            let object = self.known.get(&key)?.object.clone();
            Some(self.set(&key, Some(object), secrets))
        };
        users.into_iter().filter_map(again).flatten().collect()
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
fn read(key: &Key, object: EndpointObject, good: Option<Desired>, secrets: &Secrets) -> Known {
    let name = Name::new(&key.name).ok();
    let (endpoint, mut problems) = match &object.checked {
        Ok(endpoint) => (Some(endpoint.clone()), Vec::new()),
        Err(problems) => (None, problems.to_vec()),
    };
    let secret = endpoint.as_ref().or(good.as_ref().map(|good| &good.spec)).and_then(|it| secret_of(key, &it.auth));
    let tls = endpoint.as_deref().or(good.as_ref().map(|good| &*good.spec)).map(|spec| tls_secrets(key, spec));
    let auth = endpoint.as_ref().map(|endpoint| access(key, &endpoint.auth, &secrets.keys));
    let connectors = endpoint.as_deref().map(|endpoint| connectors(key, endpoint, &secrets.named));
    let mut is_secret_missing = false;
    let good = match (endpoint, auth, connectors) {
        (Some(endpoint), Some(Ok(access)), Some(Ok(tls))) => Some(Desired { spec: endpoint, access, tls }),
        (_, auth, connectors) => {
            if let Some(Err(problem)) = auth {
                is_secret_missing = problems.is_empty();
                problems.push(problem);
            }
            problems.extend(connectors.and_then(Result::err).into_iter().flatten());
            good.map(|good| with_keys_of_now(key, good, &secrets.keys))
        }
    };
    Known { object, name, problems, is_secret_missing, good, secret, tls: tls.unwrap_or_default() }
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
