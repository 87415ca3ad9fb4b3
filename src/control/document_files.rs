//! Endpoint documents in files: reads, validates and watches them.
//!
//! Every scan compares file stamps first, so that only changed files are read. An invalid document leaves the last
//! known good version of its endpoint in place; only deleting the document or its file removes the endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::documents::{self, ParsedDocuments};
use super::index::DesiredEndpoint;
use crate::model::endpoint::{Auth, DeploymentTarget, Endpoint, KeySource};
use crate::model::name::Name;
use crate::model::problem::Problem;

mod credentials;
mod file_watcher;
mod upstream_tls;
pub use file_watcher::{FileWatcher, ScanScope};

/// A file that is missing for this long counts as deleted.
const MISSING_FILE_GRACE: Duration = Duration::from_millis(500);

/// Looks up environment variables.
pub type EnvLookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Files and folders with endpoint documents.
pub struct DocumentFiles {
    paths: Vec<PathBuf>,
    env_lookup: EnvLookup,
    /// Files by path, as text. `Path` compares component by component, which is slow for ten thousand files.
    documents: BTreeMap<OsString, DocumentFile>,
    owners: BTreeMap<Name, OsString>,
    /// Files that were missing in the last scan, and since when.
    missing_since: BTreeMap<OsString, Instant>,
    unreadable_path_problems: Vec<Problem>,
}

/// The content of one file.
#[derive(Default)]
struct DocumentFile {
    /// Stamps of the file itself and of the key files that its documents name.
    stamps: Vec<(PathBuf, FileStamp)>,
    /// The file or a key file could not be read, for instance for want of a file descriptor. No stamp shows when that
    /// ends, so the file is read again in every scan.
    needs_retry: bool,
    endpoints: Vec<DesiredEndpoint>,
    problems: Vec<Problem>,
}

/// Changes when a file changes: modification time, length and inode. `None` if the file does not exist.
type FileStamp = Option<(SystemTime, u64, u64)>;

/// The content of all files together.
#[derive(Debug, Default)]
pub struct DocumentSnapshot {
    /// Every endpoint, in its last known good version.
    pub endpoints: Vec<DesiredEndpoint>,
    /// All problems of the documents at present.
    pub problems: Vec<Problem>,
}

impl DocumentFiles {
    /// Creates the state before the first scan. Relative paths are relative to the working folder.
    pub fn new(places: Vec<PathBuf>, environment: EnvLookup) -> Self {
        Self {
            paths: places,
            env_lookup: environment,
            documents: BTreeMap::new(),
            owners: BTreeMap::new(),
            missing_since: BTreeMap::new(),
            unreadable_path_problems: Vec::new(),
        }
    }

    /// Reads what has changed within `scope`. Returns `None` if nothing has.
    pub fn load(&mut self, scope: &ScanScope, now: Instant) -> Option<DocumentSnapshot> {
        let changed = match scope {
            ScanScope::All => self.reload_all(now),
            ScanScope::Paths(paths) => paths.iter().fold(false, |changed, path| self.reload_path(path, now) | changed),
        };
        changed.then(|| self.merge_documents())
    }

    fn reload_all(&mut self, now: Instant) -> bool {
        let (files, unreadable) = self.list_files(now);
        let mut changed = unreadable != self.unreadable_path_problems || self.documents.keys().ne(files.iter());
        self.unreadable_path_problems = unreadable;
        self.documents.retain(|path, _| files.contains(path));
        for path in files {
            changed |= self.reload_file(path);
        }
        changed
    }

    /// Reads a path that was reported as changed: a file of documents, or a key file that documents name.
    fn reload_path(&mut self, path: &Path, now: Instant) -> bool {
        let key = path.as_os_str().to_owned();
        if is_document(path) {
            self.missing_since.remove(&key);
            return self.reload_file(key);
        }
        if self.documents.contains_key(&key) {
            // Later scans find out whether the file is gone for good.
            self.missing_since.entry(key).or_insert(now);
            return false;
        }
        let names_it = |document: &DocumentFile| document.stamps.iter().any(|(of, _)| of == path);
        let naming: Vec<OsString> =
            self.documents.iter().filter(|(_, document)| names_it(document)).map(|(path, _)| path.clone()).collect();
        naming.into_iter().fold(false, |changed, path| self.reload_file(path) | changed)
    }

    /// Reads a file if its stamp has changed.
    fn reload_file(&mut self, path: OsString) -> bool {
        if self.missing_since.contains_key(&path) {
            return false;
        }
        let document = self.documents.entry(path.clone()).or_default();
        let is_unchanged =
            !document.stamps.is_empty() && document.stamps.iter().all(|(path, at)| file_stamp(path) == *at);
        if is_unchanged && !document.needs_retry {
            return false;
        }
        let previous = std::mem::take(document);
        let current = self.read_file(Path::new(&path), previous);
        let changed = !is_unchanged || !current.needs_retry;
        self.documents.insert(path, current);
        changed
    }

    /// Lists every file of every place, with problems of places that cannot be read. A failing mount removes no
    /// endpoint.
    fn list_files(&mut self, now: Instant) -> (BTreeSet<OsString>, Vec<Problem>) {
        let (mut files, mut problems) = (BTreeSet::new(), Vec::new());
        for place in &self.paths {
            if place.is_file() {
                files.insert(place.clone().into_os_string());
                continue;
            }
            match std::fs::read_dir(place) {
                Ok(entries) => files.extend(entries.flatten().filter_map(|entry| document_path(&entry))),
                Err(error) => {
                    let what = format!("cannot be read ({error}); create it, or correct endpoints.files");
                    problems.push(Problem::new("", what).from_source(&place.display().to_string()));
                    files.extend(self.documents.keys().filter(|path| Path::new(path).starts_with(place)).cloned());
                }
            }
        }
        // Some editors move a file away before they write the new one, so a file counts as missing only after a while.
        self.missing_since.retain(|path, _| !files.contains(path));
        for path in self.documents.keys().filter(|path| !files.contains(*path)).cloned().collect::<Vec<_>>() {
            let since = *self.missing_since.entry(path.clone()).or_insert(now);
            if now.duration_since(since) < MISSING_FILE_GRACE {
                files.insert(path);
            }
        }
        self.missing_since.retain(|path, _| files.contains(path));
        (files, problems)
    }

    /// Reads one file. Documents in it that are invalid keep their previous version.
    fn read_file(&self, path: &Path, previous: DocumentFile) -> DocumentFile {
        let source = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new("."));
        // The stamp is taken before the file is read, so that a change in between is seen in the next scan.
        let mut current = DocumentFile { stamps: vec![(path.to_owned(), file_stamp(path))], ..DocumentFile::default() };
        let parsed = match std::fs::read_to_string(path) {
            Ok(text) => {
                let ParsedDocuments { endpoints, problems, invalid_auth: refused } = documents::parse(&text, &source);
                current.problems = problems;
                for (source, mut auth) in refused {
                    resolve_auth_paths(&mut auth, folder);
                    // Problems of its keys are reported together with those of the document.
                    let wrong = self.resolve_access(&auth, &mut current).err().into_iter().flatten();
                    current.problems.extend(wrong.map(|problem| problem.from_source(&source)));
                }
                if endpoints.is_empty() && current.problems.is_empty() {
                    let what =
                        "has no document; write an OnlineEndpoint, or delete the file to take its endpoints away";
                    current.problems.push(Problem::new("", what).from_source(&source));
                }
                endpoints
            }
            Err(error) => {
                current.needs_retry = true;
                current.problems.push(Problem::new("", format!("cannot be read: {error}")).from_source(&source));
                Vec::new()
            }
        };
        for mut endpoint in parsed {
            resolve_paths(&mut endpoint, folder);
            match combine_results(
                self.resolve_access(&endpoint.auth, &mut current),
                upstream_tls::build_connectors(&endpoint, &mut current),
            ) {
                Ok((access, tls)) => {
                    current.endpoints.push(DesiredEndpoint { spec: Arc::new(endpoint), access, connectors: tls })
                }
                Err(problems) => {
                    current.problems.extend(problems.into_iter().map(|problem| problem.from_source(&source)))
                }
            }
        }
        if !current.problems.is_empty() {
            let previous_endpoints = previous.endpoints.into_iter();
            let is_new = |old: &DesiredEndpoint| current.endpoints.iter().any(|new| new.spec.name == old.spec.name);
            let kept: Vec<DesiredEndpoint> = previous_endpoints.filter(|old| !is_new(old)).collect();
            for kept in kept {
                let kept = self.with_current_keys(kept, &mut current);
                current.endpoints.push(kept);
            }
        }
        current
    }

    /// Merges all documents. An endpoint name belongs to the file that has it already, otherwise to the first file in
    /// order.
    fn merge_documents(&mut self) -> DocumentSnapshot {
        let mut problems = self.unreadable_path_problems.clone();
        let mut endpoints: BTreeMap<&Name, (&OsString, &DesiredEndpoint)> = BTreeMap::new();
        for (path, document) in &self.documents {
            problems.extend(document.problems.iter().cloned());
            for desired in &document.endpoints {
                let name = &desired.spec.name;
                let Some(existing) = endpoints.get_mut(name) else {
                    endpoints.insert(name, (path, desired));
                    continue;
                };
                let (winner, loser) = if self.owners.get(name) == Some(path) && existing.0 != path {
                    (path, std::mem::replace(existing, (path, desired)).0)
                } else {
                    (existing.0, path)
                };
                let what = format!(
                    "the endpoint {name} exists already, in {}; give one of them another name, or delete one",
                    winner.display()
                );
                problems.push(Problem::new("metadata.name", what).from_source(&loser.display().to_string()));
            }
        }
        self.owners = endpoints.iter().map(|(name, (path, _))| ((*name).clone(), (*path).clone())).collect();
        DocumentSnapshot { endpoints: endpoints.into_values().map(|(_, desired)| desired.clone()).collect(), problems }
    }
}

/// Makes the paths in a document relative to its folder.
fn resolve_paths(endpoint: &mut Endpoint, folder: &Path) {
    resolve_auth_paths(&mut endpoint.auth, folder);
    for deployment in &mut endpoint.deployments {
        if let Some(tls) = &mut deployment.upstream_tls {
            tls.resolve_paths(folder);
        }
        if let DeploymentTarget::Process(process) = &mut deployment.target
            && let Some(working) = &mut process.working_dir
        {
            *working = folder.join(&*working);
        }
    }
}

fn resolve_auth_paths(auth: &mut Auth, folder: &Path) {
    let files: Vec<&mut PathBuf> = match auth {
        Auth::None => Vec::new(),
        Auth::Key(sources) | Auth::RouterToken(sources) => {
            let files =
                sources.iter_mut().map(|source| if let KeySource::File(path) = source { Some(path) } else { None });
            files.flatten().collect()
        }
        Auth::IssuerToken(issuers) => {
            let files = issuers.iter_mut().map(|issuer| &mut issuer.key_set);
            files.flat_map(|keys| keys.ca_file.iter_mut().chain(&mut keys.bearer_token_file)).collect()
        }
    };
    for path in files {
        *path = folder.join(&*path);
    }
}

/// Returns both values, or the errors of both.
fn combine_results<A, B>(a: Result<A, Vec<Problem>>, b: Result<B, Vec<Problem>>) -> Result<(A, B), Vec<Problem>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err([a, b].concat()),
        (Err(wrong), _) | (_, Err(wrong)) => Err(wrong),
    }
}

/// Returns the path of an entry if it is a file of documents. The directory entry mostly knows the file type.
fn document_path(entry: &DirEntry) -> Option<OsString> {
    let path = entry.path();
    let is_regular_file = entry.file_type().is_ok_and(|kind| kind.is_file());
    (is_named_as_document(&path) && (is_regular_file || path.is_file())).then(|| path.into_os_string())
}

fn is_document(path: &Path) -> bool {
    is_named_as_document(path) && path.is_file()
}

/// Returns whether a file name is that of documents: `*.yaml` or `*.yml`. Hidden files belong to editors and mounts.
fn is_named_as_document(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn file_stamp(path: &Path) -> FileStamp {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), data.ino()))
}

#[cfg(test)]
mod tests;
