//! Where a group's [`Record`] is: a file in a folder that all share, or a `Lease` of a cluster. A change counts only if
//! nobody was faster.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::control::cluster::words;
use crate::model::fleet::LeasePlace;
use crate::model::problem::Problem;
use crate::policy::fleet::election::{Proposal, Record};
use crate::policy::fleet::{Epoch, MemberId};

/// How long reading or writing may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The annotation of a `Lease` with the roster, as JSON.
const ROSTER: &str = "inference-router.dev/roster";
/// Versions of a file that stay, for who is just reading one.
const KEPT: u64 = 8;
/// Between the name and the number of a process in `holderIdentity`.
const MARK: char = '_';

/// A place for a record.
#[derive(Debug, Clone)]
pub enum Store {
    /// Files of this name, each with the number of its version.
    File(PathBuf),
    /// An object in the router's own namespace, and for how long it says that a term lasts.
    Lease(Box<Api<Lease>>, String, Duration),
}

impl Store {
    /// Looks at a place before anything is there.
    ///
    /// # Errors
    /// It is no place for a record. What is in a cluster, only the cluster knows.
    pub fn check(place: &LeasePlace) -> Result<(), Problem> {
        let LeasePlace::File(path) = place else { return Ok(()) };
        let wrong = |what: String| Err(Problem::new("fleet.lease.file", format!("names {}, {what}", path.display())));
        if path.is_dir() {
            return wrong("which is a folder; name a file in it".to_owned());
        }
        let folder = folder_of(path);
        let how = "it has to be there, and be the same for all routers of the group";
        match std::fs::read_dir(folder) {
            Ok(_) => Ok(()),
            Err(error) => wrong(format!("but its folder {} cannot be read: {error}; {how}", folder.display())),
        }
    }

    /// The record and its version, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) async fn read(&self) -> Result<Option<(Record, String)>, String> {
        let found = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    blocking(move || read_file(&path)).await
                }
                Self::Lease(api, name, _) => {
                    let lease = api.get_opt(name).await.map_err(|error| self.failed(words::of(&error)))?;
                    lease.map(|lease| of_lease(&lease).map_err(|what| self.failed(what))).transpose()
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| Err(self.failed("no answer".to_owned())))
    }

    /// Makes a proposal the record. Returns its version, or `None` where somebody else was faster.
    ///
    /// # Errors
    /// Whether it is the record now is not known.
    pub(super) async fn write(&self, proposal: Proposal) -> Result<Option<String>, String> {
        let written = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    blocking(move || write_file(&path, proposal)).await
                }
                Self::Lease(api, name, term) => {
                    let lease = to_lease(name, *term, &proposal).map_err(|error| self.failed(error.to_string()))?;
                    let parameters = PostParams::default();
                    let sent = match proposal.onto {
                        Some(_) => api.replace(name, &parameters, &lease).await,
                        None => api.create(&parameters, &lease).await,
                    };
                    match sent {
                        Ok(lease) => Ok(lease.metadata.resource_version),
                        // Changed, there already, or gone.
                        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                        Err(error) => Err(self.failed(words::of(&error))),
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap_or_else(|_| Err(self.failed("no answer".to_owned())))
    }

    fn failed(&self, what: String) -> String {
        match self {
            Self::File(path) => format!("{}: {what}", path.display()),
            Self::Lease(_, name, _) => format!("the Lease {name}: {what}"),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The versions there are of a record, each a file of its own beside `path`.
fn versions(path: &Path) -> std::io::Result<Vec<u64>> {
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

fn newest(path: &Path) -> Result<Option<u64>, String> {
    let found = versions(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(found.into_iter().max())
}

fn read_file(path: &Path) -> Result<Option<(Record, String)>, String> {
    for _ in 0..KEPT {
        let Some(version) = newest(path)? else { return Ok(None) };
        let file = beside(path, &version.to_string());
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            // There are so many later ones by now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let how = "stop all routers of the group and remove it";
        let read = serde_json::from_slice(&text);
        let what = |error| format!("{}: is no record of a group of routers: {error}; {how}", file.display());
        return read.map(|record| Some((record, version.to_string()))).map_err(what);
    }
    Err(format!("{}: its last version is there and cannot be opened", path.display()))
}

/// Without a lock, which a process that is stopped would keep from all others: a version is written by whoever is the first
/// to give its name to a file that is complete.
fn write_file(path: &Path, proposal: Proposal) -> Result<Option<String>, String> {
    let failed = |what: std::io::Error| format!("{}: {what}", path.display());
    // What it says itself has the name in it that was made up, and is new each time.
    let not_made = |what: std::io::Error| format!("{}: no file can be made beside it: {}", path.display(), what.kind());
    let before = newest(path)?;
    if before.map(|version| version.to_string()) != proposal.onto {
        return Ok(None);
    }
    // A file of such a name is nothing that a router has written.
    let version = before.map_or(Some(1), |version| version.checked_add(1));
    let version = version.ok_or_else(|| format!("{}: there is a last version; remove it", path.display()))?;
    let text = serde_json::to_vec(&proposal.record).map_err(|error| error.to_string())?;
    let folder = folder_of(path);
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(not_made)?;
    new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(not_made)?;
    let named = beside(path, &version.to_string());
    match std::fs::hard_link(new.path(), &named) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(format!("{}: {error}; its folder has to know hard links", named.display())),
    }
    if newest(path)? != Some(version) {
        // It stood still for so long that the name was free again.
        let _ = std::fs::remove_file(named);
        return Ok(None);
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    for old in versions(path).map_err(failed)?.into_iter().filter(|old| *old < version.saturating_sub(KEPT)) {
        let _ = std::fs::remove_file(beside(path, &old.to_string()));
    }
    Ok(Some(version.to_string()))
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

fn of_lease(lease: &Lease) -> Result<(Record, String), String> {
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let holder = holder.map(|holder| {
        let (name, incarnation) = holder.rsplit_once(MARK).ok_or("its holder is no router")?;
        let incarnation = incarnation.parse().map_err(|_| "its holder is no router")?;
        Ok::<_, &str>(MemberId { name: name.into(), incarnation })
    });
    let roster = lease.metadata.annotations.as_ref().and_then(|all| all.get(ROSTER));
    let roster = roster.map(|text| serde_json::from_str(text)).transpose();
    let record = Record {
        holder: holder.transpose()?,
        epoch: Epoch(u64::try_from(spec.lease_transitions.unwrap_or_default()).unwrap_or_default()),
        roster: roster.map_err(|error| format!("its annotation {ROSTER}: {error}"))?.unwrap_or_default(),
    };
    Ok((record, lease.metadata.resource_version.clone().unwrap_or_default()))
}

fn to_lease(name: &str, term: Duration, proposal: &Proposal) -> Result<Lease, serde_json::Error> {
    let Record { holder, epoch, roster } = &proposal.record;
    let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let holder = holder.as_ref().map(|holder| format!("{}{MARK}{}", holder.name, holder.incarnation));
    let roster = serde_json::to_string(roster)?;
    serde_json::from_value(json!({
        "metadata": {"name": name, "resourceVersion": proposal.onto, "annotations": {ROSTER: roster}},
        "spec": {
            "holderIdentity": holder, "leaseTransitions": epoch.0, "leaseDurationSeconds": term.as_secs(),
            "renewTime": now,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, epoch: u64) -> Record {
        let holder = MemberId { name: name.into(), incarnation: u64::MAX };
        Record { holder: Some(holder.clone()), epoch: Epoch(epoch), roster: [holder].into() }
    }

    #[tokio::test]
    async fn of_two_that_change_the_same_version_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::File(folder.path().join("leader"));
        assert_eq!(store.read().await, Ok(None));
        let first = Proposal { record: record("one", 1), onto: None };
        assert_eq!(store.write(first.clone()).await, Ok(Some("1".to_owned())));
        assert_eq!(store.write(first).await, Ok(None), "it is there already");
        let change = |name| store.write(Proposal { record: record(name, 2), onto: Some("1".to_owned()) });
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
        let store = Store::File(folder.path().join("leader"));
        let mut version = None;
        for epoch in 1..=30 {
            let proposal = Proposal { record: record("one", epoch), onto: version.clone() };
            version = store.write(proposal).await.unwrap();
            assert_eq!(version, Some(epoch.to_string()));
        }
        assert!(std::fs::read_dir(folder.path()).unwrap().count() <= KEPT as usize + 1, "the old ones go");
        let late = Proposal { record: record("two", 2), onto: Some("1".to_owned()) };
        assert_eq!(store.write(late).await, Ok(None));
        assert_eq!(store.read().await, Ok(Some((record("one", 30), "30".to_owned()))));
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_folder_is_said_in_the_same_words_each_time() {
        // Where nobody can make a file, whoever runs this.
        let store = Store::File("/proc/leader".into());
        let write = || store.write(Proposal { record: record("one", 1), onto: None });
        let (first, second) = (write().await.unwrap_err(), write().await.unwrap_err());
        assert!(first.starts_with("/proc/leader: no file can be made beside it: "), "{first}");
        assert_eq!(first, second);
    }

    #[test]
    fn a_record_needs_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str| Store::check(&LeasePlace::File(folder.path().join(name)));
        let refused = |name: &str, gist: &str| assert!(check(name).is_err_and(|problem| problem.what.contains(gist)));
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
        let lease =
            to_lease("router", term, &Proposal { record: record.clone(), onto: Some("12".to_owned()) }).unwrap();
        let spec = lease.spec.clone().unwrap();
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(7), Some(5)));
        assert_eq!(of_lease(&lease), Ok((record, "12".to_owned())));
        let empty = Lease { metadata: lease.metadata.clone(), spec: None };
        assert!(of_lease(&empty).is_ok_and(|(record, _)| record.holder.is_none()));
        let mut foreign = lease;
        foreign.spec.as_mut().unwrap().holder_identity = Some("somebody".to_owned());
        assert!(of_lease(&foreign).is_err());
    }
}
