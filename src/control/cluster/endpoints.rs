//! The `OnlineEndpoint` objects of a cluster: validated, with resolved credentials and connectors, and one owner per
//! name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::certificates::upstream_connector;
use super::super::index::DesiredEndpoint;
use super::super::secret_cache::SecretData;
use super::key_secrets::{self, EndpointKeyDigests};
use super::objects::{EndpointObject, ObjectKey};
use super::pods::WorkloadKey;
use super::routing::{versioned_kinds, workloads_by_deployment};
use super::targets::{TargetState, TargetWorkloads, VersionedKinds};
use super::watch_store::WatchStore;
use crate::model::endpoint::{Auth, Endpoint, KeySource};
use crate::model::name::Name;
use crate::model::problem::{Problem, field_path, item_path};
use crate::policy::access::Access;
use crate::state::tls::Connector;

/// The Secrets that endpoints and the router's settings refer to.
#[derive(Debug, Default)]
pub(super) struct SecretStores {
    /// The Secrets with endpoint keys, as digests.
    pub(super) endpoint_keys: WatchStore<EndpointKeyDigests>,
    /// The Secrets for TLS towards replicas, and those of the router's own settings.
    pub(super) referenced: WatchStore<Arc<SecretData>>,
}

/// All `OnlineEndpoint` objects, with indexes of what they refer to.
#[derive(Debug, Default)]
pub(super) struct EndpointCatalog {
    tracked: BTreeMap<ObjectKey, TrackedEndpoint>,
    /// The objects that claim a name; the first claim owns it.
    claims: HashMap<Name, BTreeSet<NameClaim>>,
    objects_by_secret: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// The objects whose validation waits for the state of a workload.
    awaiting_workload: BTreeMap<Arc<WorkloadKey>, BTreeSet<ObjectKey>>,
    revalidated: Vec<RevalidatedObject>,
}

/// An object that was validated again, and what it referred to before.
#[derive(Debug)]
pub(super) struct RevalidatedObject {
    pub(super) key: ObjectKey,
    pub(super) previous_tls_secrets: Vec<ObjectKey>,
    pub(super) previous_kinds: VersionedKinds,
}

/// The claim of an object to a name: its creation time, UID and key. Claims sort by age, so the oldest object wins.
type NameClaim = (Arc<str>, Arc<str>, ObjectKey);

/// One `OnlineEndpoint` object with the result of its validation.
#[derive(Debug)]
pub(super) struct TrackedEndpoint {
    /// The object as it was last observed.
    pub(super) object: EndpointObject,
    /// The endpoint name that the object claims, if it is valid.
    pub(super) name: Option<Name>,
    /// The problems of the current version.
    pub(super) problems: Vec<Problem>,
    /// The condition reason for the problems.
    pub(super) reason: &'static str,
    /// The last known good version, which keeps serving.
    pub(super) last_known_good: Option<DesiredEndpoint>,
    key_secret: Option<ObjectKey>,
    /// The Secrets for TLS towards replicas.
    pub(super) tls_secrets: Vec<ObjectKey>,
    /// The kinds that deployments of the current and of the last known good version refer to.
    pub(super) workload_kinds: VersionedKinds,
    /// The workloads whose state the current version waits for.
    awaited_workloads: Vec<Arc<WorkloadKey>>,
}

impl EndpointCatalog {
    /// Sets an object, or removes it (`None`). Returns the names whose endpoint may have changed.
    pub(super) fn set_object(
        &mut self,
        key: &ObjectKey,
        object: Option<EndpointObject>,
        secrets: &SecretStores,
        targets: &TargetWorkloads,
    ) -> Vec<Name> {
        let before = self.tracked.remove(key);
        let mut names: Vec<Name> = before.as_ref().and_then(|known| known.name.clone()).into_iter().collect();
        if let Some(known) = &before {
            self.remove_from_indexes(key, known);
        }
        let (previous_tls_secrets, previous_kinds) =
            before.as_ref().map(|known| (known.tls_secrets.clone(), known.workload_kinds.clone())).unwrap_or_default();
        self.revalidated.push(RevalidatedObject { key: key.clone(), previous_tls_secrets, previous_kinds });
        let Some(object) = object else { return names };
        // An object that was deleted and created again has no good version yet.
        let good = before.filter(|known| known.object.uid == object.uid).and_then(|known| known.last_known_good);
        let known = validate_object(key, object, good, secrets, targets);
        if let Some(name) = &known.name {
            let claim = (known.object.created_at.clone(), known.object.uid.clone(), key.clone());
            self.claims.entry(name.clone()).or_default().insert(claim);
            names.push(name.clone());
        }
        for secret in known.referenced_secrets() {
            self.objects_by_secret.entry(secret.clone()).or_default().insert(key.clone());
        }
        for workload in &known.awaited_workloads {
            self.awaiting_workload.entry(workload.clone()).or_default().insert(key.clone());
        }
        self.tracked.insert(key.clone(), known);
        names.dedup();
        names
    }

    /// Returns the objects that were validated again since the last call.
    pub(super) fn take_revalidated(&mut self) -> Vec<RevalidatedObject> {
        std::mem::take(&mut self.revalidated)
    }

    /// Validates the objects again that wait for a workload for which `is_affected` is true. Returns the names whose
    /// endpoint may have changed.
    pub(super) fn recheck_awaiting(
        &mut self,
        is_affected: impl Fn(&Arc<WorkloadKey>) -> bool,
        secrets: &SecretStores,
        targets: &TargetWorkloads,
    ) -> Vec<Name> {
        let waiting = self.awaiting_workload.iter().filter(|(workload, _)| is_affected(workload));
        let waiting: BTreeSet<ObjectKey> = waiting.flat_map(|(_, keys)| keys).cloned().collect();
        self.recheck_objects(waiting, secrets, targets)
    }

    fn recheck_objects(
        &mut self,
        keys: BTreeSet<ObjectKey>,
        secrets: &SecretStores,
        targets: &TargetWorkloads,
    ) -> Vec<Name> {
        let recheck = |key: ObjectKey| {
            let object = self.tracked.get(&key)?.object.clone();
            Some(self.set_object(&key, Some(object), secrets, targets))
        };
        keys.into_iter().filter_map(recheck).flatten().collect()
    }

    /// Replaces an object of which only the status has changed.
    pub(super) fn set_status(&mut self, key: &ObjectKey, object: &EndpointObject) {
        if let Some(known) = self.tracked.get_mut(key) {
            known.object = object.clone();
        }
    }

    /// Validates the objects again that refer to a Secret. Returns the names whose endpoint may have changed.
    pub(super) fn recheck_secret_users(
        &mut self,
        secret: &ObjectKey,
        secrets: &SecretStores,
        targets: &TargetWorkloads,
    ) -> Vec<Name> {
        let users = self.objects_by_secret.get(secret).cloned().unwrap_or_default();
        self.recheck_objects(users, secrets, targets)
    }

    /// Returns whether any object refers to a Secret for TLS towards replicas.
    pub(super) fn is_tls_secret(&self, secret: &ObjectKey) -> bool {
        let users = self.objects_by_secret.get(secret).into_iter().flatten();
        users.filter_map(|key| self.tracked.get(key)).any(|known| known.tls_secrets.contains(secret))
    }

    /// Returns the last known good version of the object that owns a name.
    pub(super) fn desired_endpoint(&self, name: &Name) -> Option<&DesiredEndpoint> {
        self.name_owner(name).and_then(|key| self.tracked.get(key)).and_then(|known| known.last_known_good.as_ref())
    }

    /// Returns the object that owns a name.
    pub(super) fn name_owner(&self, name: &Name) -> Option<&ObjectKey> {
        self.claims.get(name).and_then(|claims| claims.first()).map(|(.., key)| key)
    }

    /// Returns every object that claims a name, the owner first.
    pub(super) fn claimants(&self, name: &Name) -> impl Iterator<Item = &ObjectKey> {
        self.claims.get(name).into_iter().flatten().map(|(.., key)| key)
    }

    /// Returns an object with the result of its validation.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&TrackedEndpoint> {
        self.tracked.get(key)
    }

    /// Returns the keys of all objects in order, beginning with `from`.
    pub(super) fn keys_from(&self, from: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.tracked.range(from..).map(|(key, _)| key)
    }

    fn remove_from_indexes(&mut self, key: &ObjectKey, known: &TrackedEndpoint) {
        if let Some(name) = &known.name
            && let Some(claims) = self.claims.get_mut(name)
        {
            claims.retain(|(.., other)| other != key);
            if claims.is_empty() {
                self.claims.remove(name);
            }
        }
        for workload in &known.awaited_workloads {
            let Some(waiting) = self.awaiting_workload.get_mut(workload) else { continue };
            waiting.remove(key);
            if waiting.is_empty() {
                self.awaiting_workload.remove(workload);
            }
        }
        for secret in known.referenced_secrets() {
            let Some(users) = self.objects_by_secret.get_mut(secret) else { continue };
            users.remove(key);
            if users.is_empty() {
                self.objects_by_secret.remove(secret);
            }
        }
    }
}

impl TrackedEndpoint {
    fn referenced_secrets(&self) -> impl Iterator<Item = &ObjectKey> {
        self.key_secret.iter().chain(&self.tls_secrets)
    }
}

/// Validates an object. If there are problems, the last known good version stays, but with the current keys if those
/// are valid: a leaked key that was replaced must not stay usable because something else is wrong.
fn validate_object(
    key: &ObjectKey,
    object: EndpointObject,
    good: Option<DesiredEndpoint>,
    secrets: &SecretStores,
    targets: &TargetWorkloads,
) -> TrackedEndpoint {
    let name = Name::new(&key.name).ok();
    let (endpoint, mut problems) = match &object.checked {
        Ok(endpoint) => (Some(endpoint.clone()), Vec::new()),
        Err(problems) => (None, problems.to_vec()),
    };
    let secret = endpoint.as_ref().or(good.as_ref().map(|good| &good.spec)).and_then(|it| key_secret(key, &it.auth));
    let tls = endpoint.as_deref().or(good.as_ref().map(|good| &*good.spec)).map(|spec| tls_secrets(key, spec));
    let auth = endpoint.as_ref().map(|endpoint| resolve_access(key, &endpoint.auth, &secrets.endpoint_keys));
    let connectors = endpoint.as_deref().map(|endpoint| build_connectors(key, endpoint, &secrets.referenced));
    let mut reason = "Invalid";
    let changed =
        endpoint.as_ref().zip(good.as_ref()).map(|(now, before)| check_new_targets(now, &before.spec, targets));
    let TargetCheck { problems: target_problems, reason: target_reason, awaited_workloads } =
        changed.unwrap_or_default();
    let specs = [endpoint.as_deref(), good.as_ref().map(|good| &*good.spec)];
    let kinds = versioned_kinds(specs.into_iter().flatten()).into_iter();
    let kinds: VersionedKinds = kinds.map(|(kind, version)| (targets.interned_kind(kind), version.into())).collect();
    let good = match (endpoint, auth, connectors) {
        (Some(endpoint), Some(Ok(access)), Some(Ok(tls))) if awaited_workloads.is_empty() => {
            Some(DesiredEndpoint { spec: endpoint, access, connectors: tls })
        }
        (_, auth, connectors) => {
            if let Some(Err(problem)) = auth {
                reason = if problems.is_empty() { "BadSecret" } else { reason };
                problems.push(problem);
            }
            problems.extend(connectors.and_then(Result::err).into_iter().flatten());
            reason = target_reason.filter(|_| problems.is_empty()).unwrap_or(reason);
            problems.extend(target_problems);
            good.map(|good| with_current_keys(key, good, &secrets.endpoint_keys))
        }
    };
    let tls = tls.unwrap_or_default();
    TrackedEndpoint {
        object,
        name,
        problems,
        reason,
        last_known_good: good,
        key_secret: secret,
        tls_secrets: tls,
        workload_kinds: kinds,
        awaited_workloads,
    }
}

/// The result of checking the new targets of a changed object.
#[derive(Default)]
struct TargetCheck {
    problems: Vec<Problem>,
    /// The condition reason for the first problem.
    reason: Option<&'static str>,
    /// The workloads that cannot be used, or whose state is not known yet.
    awaited_workloads: Vec<Arc<WorkloadKey>>,
}

/// Checks the targets that a changed object did not refer to before: the serving version must not be replaced by one
/// whose workload does not exist or belongs to another deployment.
fn check_new_targets(now: &Endpoint, before: &Endpoint, targets: &TargetWorkloads) -> TargetCheck {
    let (now_named, before) = (workloads_by_deployment(now), workloads_by_deployment(before));
    let mut found = TargetCheck::default();
    for (index, deployment) in now.deployments.iter().enumerate() {
        let Some((workload, _)) = now_named.get(&deployment.name) else { continue };
        if before.values().any(|(other, _)| other == workload) {
            continue;
        }
        let claimant = (now.name.clone(), deployment.name.clone());
        match targets.target_state(workload, &claimant, |other| other.0 != now.name) {
            TargetState::Usable => continue,
            TargetState::Unknown => {}
            TargetState::Unusable(reason, what) => {
                found.reason.get_or_insert(reason);
                let path = field_path(&item_path("spec.deployments", index), "targetRef");
                found.problems.push(Problem::new(path, what));
            }
        }
        found.awaited_workloads.push(workload.clone());
    }
    found
}

fn with_current_keys(
    key: &ObjectKey,
    mut good: DesiredEndpoint,
    secrets: &WatchStore<EndpointKeyDigests>,
) -> DesiredEndpoint {
    if let Ok(access) = resolve_access(key, &good.spec.auth, secrets) {
        good.access = access;
    }
    good
}

fn key_secret(key: &ObjectKey, auth: &Auth) -> Option<ObjectKey> {
    let (Auth::Key(sources) | Auth::RouterToken(sources)) = auth else { return None };
    sources.iter().find_map(|source| match source {
        KeySource::Secret { name, .. } => {
            Some(ObjectKey { namespace: key.namespace.clone(), name: name.as_str().into() })
        }
        _ => None,
    })
}

/// Resolves the access rules of an endpoint, with the key digests from its Secret.
fn resolve_access(key: &ObjectKey, auth: &Auth, secrets: &WatchStore<EndpointKeyDigests>) -> Result<Access, Problem> {
    let digests = match key_secret(key, auth) {
        None => Vec::new(),
        Some(secret) => {
            let problem = |what: String| Problem::new("spec.keys.secretRef", what);
            let keys = secrets.get(&secret).ok_or_else(|| {
                let how = format!(
                    "create it in the namespace {}, with the type {}",
                    secret.namespace,
                    key_secrets::key_secret_type()
                );
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

/// Returns the Secrets for TLS towards replicas that an endpoint refers to.
fn tls_secrets(key: &ObjectKey, endpoint: &Endpoint) -> Vec<ObjectKey> {
    let names = endpoint.deployments.iter().filter_map(|it| it.upstream_tls.as_ref()?.secret_name.as_deref());
    names.map(|name| ObjectKey { namespace: key.namespace.clone(), name: name.into() }).collect()
}

fn build_connectors(
    key: &ObjectKey,
    endpoint: &Endpoint,
    secrets: &WatchStore<Arc<SecretData>>,
) -> Result<Vec<(Name, Connector)>, Vec<Problem>> {
    let (mut connectors, mut problems) = (Vec::new(), Vec::new());
    for (index, deployment) in endpoint.deployments.iter().enumerate() {
        let Some(tls) = &deployment.upstream_tls else { continue };
        let secret = |name: &str| {
            let key = ObjectKey { namespace: key.namespace.clone(), name: name.into() };
            let missing = || format!("there is no such Secret in the namespace {}; create it", key.namespace);
            secrets.get(&key).cloned().ok_or_else(missing)
        };
        match upstream_connector::build_connector(tls, secret) {
            Ok(connector) => connectors.push((deployment.name.clone(), connector)),
            Err((name, what)) => {
                let path = field_path(&field_path(&item_path("spec.deployments", index), "upstreamTls"), name);
                problems.push(Problem::new(path, what));
            }
        }
    }
    if problems.is_empty() { Ok(connectors) } else { Err(problems) }
}
