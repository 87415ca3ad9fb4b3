//! Where a group's [`Record`] is: a file in a folder that all share, or a `Lease` of a cluster. A change counts only if
//! nobody was faster.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control::cluster::words;
use crate::policy::fleet::election::{Proposal, Record};
use crate::policy::fleet::{Epoch, MemberId};

/// How long reading or writing may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The annotation of a `Lease` with the roster, as JSON.
const ROSTER: &str = "inference-router.dev/roster";
/// Between the name and the number of a process in `holderIdentity`.
const MARK: char = '_';

/// A place for a record.
#[derive(Debug, Clone)]
pub enum Store {
    /// A file. Beside it is another, which is locked while the record is changed.
    File(PathBuf),
    /// An object in the router's own namespace, and for how long it says that a term lasts.
    Lease(Box<Api<Lease>>, String, Duration),
}

impl Store {
    /// The record and its version, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) async fn read(&self) -> Result<Option<(Record, String)>, String> {
        let found = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    blocking(move || Ok(read_file(&path)?.map(|file| (file.record, file.version.to_string())))).await
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

/// What is in a file.
#[derive(Debug, Serialize, Deserialize)]
struct InFile {
    version: u64,
    record: Record,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn read_file(path: &Path) -> Result<Option<InFile>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let how = "stop all routers of the group and remove it";
    let read = serde_json::from_slice(&text);
    read.map(Some).map_err(|error| format!("{}: is no record of a group of routers: {error}; {how}", path.display()))
}

/// Under a lock, so that of two who change the same version one sees the other's; and in one step for who only reads.
fn write_file(path: &Path, proposal: Proposal) -> Result<Option<String>, String> {
    let failed = |what: std::io::Error| format!("{}: {what}", path.display());
    let lock = File::options().create(true).truncate(false).write(true).open(beside(path, "lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let before = read_file(path)?.map(|file| file.version);
    if before.map(|version| version.to_string()) != proposal.onto {
        return Ok(None);
    }
    let version = before.map_or(1, |version| version + 1);
    let text = serde_json::to_vec(&InFile { version, record: proposal.record }).map_err(|error| error.to_string())?;
    let new = beside(path, "new");
    let mut file = File::create(&new).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
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
        std::fs::write(folder.path().join("leader"), "{").unwrap();
        assert!(store.read().await.is_err_and(|what| what.contains("is no record")));
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
