//! The store of a fleet's leader lock ([`LeaderLockRecord`]): a file in a folder that all routers share, or a
//! Kubernetes `Lease` object. Writes are compare-and-swap operations: a write succeeds only if the record has not
//! changed since it was read.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::control::cluster::error_text;
use crate::model::fleet::LeaderLockPlace;
use crate::model::problem::Problem;
use crate::policy::fleet::leader_election::{LeaderLockProposal, LeaderLockRecord};
use crate::policy::fleet::{MemberId, Term};

/// How long a read or write may take.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
/// The annotation of a Kubernetes `Lease` object with the roster, as JSON.
const ROSTER_ANNOTATION: &str = "inference-router.dev/roster";
/// The number of older versions of a file that are kept for concurrent readers.
const KEPT_VERSIONS: u64 = 8;
/// The separator between the name and the incarnation of the holder in `holderIdentity`.
const HOLDER_SEPARATOR: char = '_';

/// The place where the leader lock is stored.
#[derive(Debug, Clone)]
pub enum LeaderLockStore {
    /// Files with this path as prefix and a version number as suffix.
    File(PathBuf),
    /// A Kubernetes `Lease` object in the router's own namespace: its API, its name, and the term duration to write.
    Kubernetes(Box<Api<Lease>>, String, Duration),
}

impl LeaderLockStore {
    /// Checks whether a place can hold a leader lock, before it is used. A place in a cluster is not checked.
    ///
    /// # Errors
    /// Fails if the path is a folder, or if its folder cannot be read.
    pub fn check(place: &LeaderLockPlace) -> Result<(), Problem> {
        let LeaderLockPlace::File(path) = place else { return Ok(()) };
        let wrong =
            |what: String| Err(Problem::new("fleet.leaderLock.file", format!("names {}, {what}", path.display())));
        if path.is_dir() {
            return wrong("which is a folder; name a file in it".to_owned());
        }
        let folder = folder_of(path);
        let how = "it has to be there, and be the same for all routers of the fleet";
        match std::fs::read_dir(folder) {
            Ok(_) => Ok(()),
            Err(error) => wrong(format!("but its folder {} cannot be read: {error}; {how}", folder.display())),
        }
    }

    /// Reads the record and its version, if there is one.
    ///
    /// # Errors
    /// Fails if the record cannot be read, or not within [`OPERATION_TIMEOUT`].
    pub(super) async fn read(&self) -> Result<Option<(LeaderLockRecord, String)>, String> {
        let found = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    run_blocking(move || read_record_file(&path)).await
                }
                Self::Kubernetes(api, name, _) => {
                    let lease = api
                        .get_opt(name)
                        .await
                        .map_err(|error| self.describe_error(error_text::describe_error(&error)))?;
                    lease
                        .map(|lease| record_from_kubernetes_lease(&lease).map_err(|what| self.describe_error(what)))
                        .transpose()
                }
            }
        };
        tokio::time::timeout(OPERATION_TIMEOUT, found)
            .await
            .unwrap_or_else(|_| Err(self.describe_error("no answer".to_owned())))
    }

    /// Writes a proposal. Returns the new version, or `None` if another router has changed the record first.
    ///
    /// # Errors
    /// After an error, it is unknown whether the proposal was written.
    pub(super) async fn write(&self, proposal: LeaderLockProposal) -> Result<Option<String>, String> {
        let written = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    run_blocking(move || write_record_file(&path, proposal)).await
                }
                Self::Kubernetes(api, name, term_duration) => {
                    let lease = kubernetes_lease_from_proposal(name, *term_duration, &proposal)
                        .map_err(|error| self.describe_error(error.to_string()))?;
                    let parameters = PostParams::default();
                    let sent = match proposal.base_version {
                        Some(_) => api.replace(name, &parameters, &lease).await,
                        None => api.create(&parameters, &lease).await,
                    };
                    match sent {
                        Ok(lease) => Ok(lease.metadata.resource_version),
                        // The object was changed, created or deleted meanwhile.
                        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                        Err(error) => Err(self.describe_error(error_text::describe_error(&error))),
                    }
                }
            }
        };
        tokio::time::timeout(OPERATION_TIMEOUT, written)
            .await
            .unwrap_or_else(|_| Err(self.describe_error("no answer".to_owned())))
    }

    fn describe_error(&self, what: String) -> String {
        match self {
            Self::File(path) => format!("{}: {what}", path.display()),
            Self::Kubernetes(_, name, _) => format!("the Kubernetes Lease object {name}: {what}"),
        }
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Returns the existing versions of a record, each of which is a file of its own beside `path`.
fn list_versions(path: &Path) -> std::io::Result<Vec<u64>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder_of(path))? {
        let entry = entry?.file_name();
        let number = entry.to_str().and_then(|entry| entry.strip_prefix(&*name)?.strip_prefix('.'));
        let version =
            number.and_then(|number| number.parse::<u64>().ok().filter(|version| version.to_string() == number));
        found.extend(version);
    }
    Ok(found)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn newest_version(path: &Path) -> Result<Option<u64>, String> {
    let found = list_versions(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(found.into_iter().max())
}

fn read_record_file(path: &Path) -> Result<Option<(LeaderLockRecord, String)>, String> {
    for _ in 0..KEPT_VERSIONS {
        let Some(version) = newest_version(path)? else { return Ok(None) };
        let file = version_path(path, &version.to_string());
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            // The version was removed, because there are many later ones by now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let how = "stop all routers of the fleet and remove it";
        let read = serde_json::from_slice(&text);
        let what = |error| format!("{}: is no record of a fleet: {error}; {how}", file.display());
        return read.map(|record| Some((record, version.to_string()))).map_err(what);
    }
    Err(format!("{}: its last version is there and cannot be opened", path.display()))
}

/// Writes the next version of a record. It needs no file lock, which a suspended process would hold against all others:
/// a version is written by the first router that gives its name to a complete file (hard link).
fn write_record_file(path: &Path, proposal: LeaderLockProposal) -> Result<Option<String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    // Only the kind of the error is used: its own text contains the random name of the temporary file, so that each
    // error would look new.
    let not_created =
        |error: std::io::Error| format!("{}: no file can be made beside it: {}", path.display(), error.kind());
    let before = newest_version(path)?;
    if before.map(|version| version.to_string()) != proposal.base_version {
        return Ok(None);
    }
    // No router writes so many versions; a file with the highest number was created by something else.
    let version = before.map_or(Some(1), |version| version.checked_add(1));
    let version = version.ok_or_else(|| format!("{}: there is a last version; remove it", path.display()))?;
    let text = serde_json::to_vec(&proposal.record).map_err(|error| error.to_string())?;
    let folder = folder_of(path);
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(not_created)?;
    new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(not_created)?;
    let named = version_path(path, &version.to_string());
    match std::fs::hard_link(new.path(), &named) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(format!("{}: {error}; its folder has to know hard links", named.display())),
    }
    if newest_version(path)? != Some(version) {
        // The process was suspended for so long that the old version was removed and its name was free again.
        let _ = std::fs::remove_file(named);
        return Ok(None);
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    for old in
        list_versions(path).map_err(failed)?.into_iter().filter(|old| *old < version.saturating_sub(KEPT_VERSIONS))
    {
        let _ = std::fs::remove_file(version_path(path, &old.to_string()));
    }
    Ok(Some(version.to_string()))
}

fn version_path(path: &Path, version: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(version);
    name.into()
}

fn record_from_kubernetes_lease(lease: &Lease) -> Result<(LeaderLockRecord, String), String> {
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let holder = holder.map(|holder| {
        let (name, incarnation) = holder.rsplit_once(HOLDER_SEPARATOR).ok_or("its holder is no router")?;
        let incarnation = incarnation.parse().map_err(|_| "its holder is no router")?;
        Ok::<_, &str>(MemberId { name: name.into(), incarnation })
    });
    let roster = lease.metadata.annotations.as_ref().and_then(|all| all.get(ROSTER_ANNOTATION));
    let roster = roster.map(|text| serde_json::from_str(text)).transpose();
    let record = LeaderLockRecord {
        holder: holder.transpose()?,
        term: Term(u64::try_from(spec.lease_transitions.unwrap_or_default()).unwrap_or_default()),
        roster: roster.map_err(|error| format!("its annotation {ROSTER_ANNOTATION}: {error}"))?.unwrap_or_default(),
    };
    Ok((record, lease.metadata.resource_version.clone().unwrap_or_default()))
}

fn kubernetes_lease_from_proposal(
    name: &str,
    term_duration: Duration,
    proposal: &LeaderLockProposal,
) -> Result<Lease, serde_json::Error> {
    let LeaderLockRecord { holder, term, roster } = &proposal.record;
    let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let holder = holder.as_ref().map(|holder| format!("{}{HOLDER_SEPARATOR}{}", holder.name, holder.incarnation));
    let roster = serde_json::to_string(roster)?;
    serde_json::from_value(json!({
        "metadata": {"name": name, "resourceVersion": proposal.base_version, "annotations": {ROSTER_ANNOTATION: roster}},
        "spec": {
            "holderIdentity": holder, "leaseTransitions": term.0, "leaseDurationSeconds": term_duration.as_secs(),
            "renewTime": now,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, term: u64) -> LeaderLockRecord {
        let holder = MemberId { name: name.into(), incarnation: u64::MAX };
        LeaderLockRecord { holder: Some(holder.clone()), term: Term(term), roster: [holder].into() }
    }

    #[tokio::test]
    async fn of_two_that_change_the_same_version_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let store = LeaderLockStore::File(folder.path().join("leader"));
        assert_eq!(store.read().await, Ok(None));
        let first = LeaderLockProposal { record: record("one", 1), base_version: None };
        assert_eq!(store.write(first.clone()).await, Ok(Some("1".to_owned())));
        assert_eq!(store.write(first).await, Ok(None), "it is there already");
        let change =
            |name| store.write(LeaderLockProposal { record: record(name, 2), base_version: Some("1".to_owned()) });
        let (one, other) = tokio::join!(change("two"), change("three"));
        assert!(matches!((&one, &other), (Ok(Some(_)), Ok(None)) | (Ok(None), Ok(Some(_)))), "{one:?} {other:?}");
        let winner = if one == Ok(None) { "three" } else { "two" };
        assert_eq!(store.read().await, Ok(Some((record(winner, 2), "2".to_owned()))));
        for nothing in ["leader.07", "leader.+9", "leader.x", "leader."] {
            std::fs::write(folder.path().join(nothing), "{").unwrap();
        }
        assert!(store.read().await.is_ok_and(|found| found.is_some()), "no router has written these");
        std::fs::write(folder.path().join("leader.3"), "{").unwrap();
        assert!(store.read().await.is_err_and(|what| what.contains("is no record")));
    }

    #[tokio::test]
    async fn who_stood_still_while_it_wrote_changes_nothing_and_keeps_nobody_from_writing() {
        let folder = tempfile::tempdir().unwrap();
        let store = LeaderLockStore::File(folder.path().join("leader"));
        let mut version = None;
        for term in 1..=30 {
            let proposal = LeaderLockProposal { record: record("one", term), base_version: version.clone() };
            version = store.write(proposal).await.unwrap();
            assert_eq!(version, Some(term.to_string()));
        }
        assert!(std::fs::read_dir(folder.path()).unwrap().count() <= KEPT_VERSIONS as usize + 1, "the old ones go");
        let late = LeaderLockProposal { record: record("two", 2), base_version: Some("1".to_owned()) };
        assert_eq!(store.write(late).await, Ok(None));
        assert_eq!(store.read().await, Ok(Some((record("one", 30), "30".to_owned()))));
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_folder_is_said_in_the_same_words_each_time() {
        // A folder in which no user can create a file.
        let store = LeaderLockStore::File("/proc/leader".into());
        let write = || store.write(LeaderLockProposal { record: record("one", 1), base_version: None });
        let (first, second) = (write().await.unwrap_err(), write().await.unwrap_err());
        assert!(first.starts_with("/proc/leader: no file can be made beside it: "), "{first}");
        assert_eq!(first, second);
    }

    #[test]
    fn a_record_needs_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| LeaderLockStore::check(&LeaderLockPlace::File(folder.path().join(name)));
        let refused =
            |name: &str, gist: &str| assert!(check(name).is_err_and(|problem| problem.message.contains(gist)));
        assert_eq!(check("leader"), Ok(()));
        refused("gone/leader", "No such file");
        refused("", "is a folder");
        std::fs::write(folder.path().join("file"), "").unwrap();
        refused("file/leader", "Not a directory");
    }

    #[test]
    fn a_lease_says_all_that_a_record_does() {
        let record = record("10.0.0.5:7070", 7);
        let term = Duration::from_secs(5);
        let lease = kubernetes_lease_from_proposal(
            "router",
            term,
            &LeaderLockProposal { record: record.clone(), base_version: Some("12".to_owned()) },
        )
        .unwrap();
        let spec = lease.spec.clone().unwrap();
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(7), Some(5)));
        assert_eq!(record_from_kubernetes_lease(&lease), Ok((record, "12".to_owned())));
        let empty = Lease { metadata: lease.metadata.clone(), spec: None };
        assert!(record_from_kubernetes_lease(&empty).is_ok_and(|(record, _)| record.holder.is_none()));
        let mut foreign = lease;
        foreign.spec.as_mut().unwrap().holder_identity = Some("somebody".to_owned());
        assert!(record_from_kubernetes_lease(&foreign).is_err());
    }
}
