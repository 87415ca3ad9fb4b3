//! Endpoint documents in files: read, checked, watched.
//!
//! Every look at the files starts from their stamps, so that only what has changed is read. A document that is broken
//! leaves the last good version of its endpoint in place; only deleting it, or its file, takes an endpoint away.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::documents::{self, Parsed};
use super::index::Desired;
use crate::model::endpoint::{Auth, Endpoint, KeySource, Target};
use crate::model::name::Name;
use crate::model::problem::Problem;

mod credentials;
mod tls;
mod watch;
pub use watch::{Scope, Watch};

/// A file that is gone this long is deleted.
const MISSED_AFTER: Duration = Duration::from_millis(500);

/// Where environment variables come from.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Files and folders with endpoint documents.
pub struct Files {
    places: Vec<PathBuf>,
    environment: Environment,
    /// By path; as text, because paths compare part by part, and ten thousand of them take their time.
    read: BTreeMap<OsString, Document>,
    owners: BTreeMap<Name, OsString>,
    /// Files that were not there at the last look, and since when.
    missing: BTreeMap<OsString, Instant>,
    unreadable: Vec<Problem>,
}

/// What one file has said.
#[derive(Default)]
struct Document {
    /// Of the file itself and of the key files it names.
    stamps: Vec<(PathBuf, Stamp)>,
    /// The file, or a key file, could not be had, perhaps only for want of a file descriptor: what no stamp shows is
    /// tried again at every look.
    again: bool,
    endpoints: Vec<Desired>,
    problems: Vec<Problem>,
}

/// Changes when a file does: when last modified, its length, which file it is. `None`: there is none.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What all files together say.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every endpoint, in its last good version.
    pub endpoints: Vec<Desired>,
    /// Everything wrong with the documents as they are now.
    pub problems: Vec<Problem>,
}

impl Files {
    /// Nothing is read yet. Relative places are relative to the working folder.
    pub fn new(places: Vec<PathBuf>, environment: Environment) -> Self {
        Self {
            places,
            environment,
            read: BTreeMap::new(),
            owners: BTreeMap::new(),
            missing: BTreeMap::new(),
            unreadable: Vec::new(),
        }
    }

    /// Reads what has changed within `scope`. `None`: nothing has.
    pub fn load(&mut self, scope: &Scope, now: Instant) -> Option<Loaded> {
        let changed = match scope {
            Scope::Everything => self.look_at_all(now),
            Scope::Paths(paths) => paths.iter().fold(false, |changed, path| self.look_at(path, now) | changed),
        };
        changed.then(|| self.merge())
    }

    fn look_at_all(&mut self, now: Instant) -> bool {
        let (files, unreadable) = self.list(now);
        let mut changed = unreadable != self.unreadable || self.read.keys().ne(files.iter());
        self.unreadable = unreadable;
        self.read.retain(|path, _| files.contains(path));
        for path in files {
            changed |= self.look_at_file(path);
        }
        changed
    }

    /// Looks at a path that gave a sign: a document, or a key file that documents name.
    fn look_at(&mut self, path: &Path, now: Instant) -> bool {
        let key = path.as_os_str().to_owned();
        if is_document(path) {
            self.missing.remove(&key);
            return self.look_at_file(key);
        }
        if self.read.contains_key(&key) {
            // Whether it is gone for good, later looks find out.
            self.missing.entry(key).or_insert(now);
            return false;
        }
        let names_it = |document: &Document| document.stamps.iter().any(|(of, _)| of == path);
        let naming: Vec<OsString> =
            self.read.iter().filter(|(_, document)| names_it(document)).map(|(path, _)| path.clone()).collect();
        naming.into_iter().fold(false, |changed, path| self.look_at_file(path) | changed)
    }

    /// Reads a file if it has changed.
    fn look_at_file(&mut self, path: OsString) -> bool {
        if self.missing.contains_key(&path) {
            return false;
        }
        let document = self.read.entry(path.clone()).or_default();
        let same = !document.stamps.is_empty() && document.stamps.iter().all(|(path, at)| stamp(path) == *at);
        if same && !document.again {
            return false;
        }
        let before = std::mem::take(document);
        let now = self.read_file(Path::new(&path), before);
        let changed = !same || !now.again;
        self.read.insert(path, now);
        changed
    }

    /// Every file of every place, and the places that cannot be read: a mount that fails takes no endpoint away.
    fn list(&mut self, now: Instant) -> (BTreeSet<OsString>, Vec<Problem>) {
        let (mut files, mut problems) = (BTreeSet::new(), Vec::new());
        for place in &self.places {
            if place.is_file() {
                files.insert(place.clone().into_os_string());
                continue;
            }
            match std::fs::read_dir(place) {
                Ok(entries) => files.extend(entries.flatten().filter_map(|entry| document(&entry))),
                Err(error) => {
                    let what = format!("cannot be read ({error}); create it, or correct endpoints.files");
                    problems.push(Problem::new("", what).from_source(&place.display().to_string()));
                    files.extend(self.read.keys().filter(|path| Path::new(path).starts_with(place)).cloned());
                }
            }
        }
        // Some editors move a file away before they write the new one: it is missed only after a while.
        self.missing.retain(|path, _| !files.contains(path));
        for path in self.read.keys().filter(|path| !files.contains(*path)).cloned().collect::<Vec<_>>() {
            let since = *self.missing.entry(path.clone()).or_insert(now);
            if now.duration_since(since) < MISSED_AFTER {
                files.insert(path);
            }
        }
        self.missing.retain(|path, _| files.contains(path));
        (files, problems)
    }

    /// Reads one file; where it is broken, what it said before stays.
    fn read_file(&self, path: &Path, before: Document) -> Document {
        let source = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new("."));
        // Stamped before it is read: a change in between is seen at the next look.
        let mut now = Document { stamps: vec![(path.to_owned(), stamp(path))], ..Document::default() };
        let parsed = match std::fs::read_to_string(path) {
            Ok(text) => {
                let Parsed { endpoints, problems, refused } = documents::parse(&text, &source);
                now.problems = problems;
                for (source, mut auth) in refused {
                    settle_keys(&mut auth, folder);
                    // What is wrong with its keys too is said in the same breath.
                    let wrong = self.access(&auth, &mut now).err().into_iter().flatten();
                    now.problems.extend(wrong.map(|problem| problem.from_source(&source)));
                }
                if endpoints.is_empty() && now.problems.is_empty() {
                    let what =
                        "has no document; write an OnlineEndpoint, or delete the file to take its endpoints away";
                    now.problems.push(Problem::new("", what).from_source(&source));
                }
                endpoints
            }
            Err(error) => {
                now.again = true;
                now.problems.push(Problem::new("", format!("cannot be read: {error}")).from_source(&source));
                Vec::new()
            }
        };
        for mut endpoint in parsed {
            settle_paths(&mut endpoint, folder);
            match both(self.access(&endpoint.auth, &mut now), tls::connectors(&endpoint, &mut now)) {
                Ok((access, tls)) => now.endpoints.push(Desired { spec: Arc::new(endpoint), access, tls }),
                Err(problems) => now.problems.extend(problems.into_iter().map(|problem| problem.from_source(&source))),
            }
        }
        if !now.problems.is_empty() {
            let kept = before.endpoints.into_iter();
            let is_new = |old: &Desired| now.endpoints.iter().any(|new| new.spec.name == old.spec.name);
            let kept: Vec<Desired> = kept.filter(|old| !is_new(old)).collect();
            for kept in kept {
                let kept = self.with_keys_of_now(kept, &mut now);
                now.endpoints.push(kept);
            }
        }
        now
    }

    /// One endpoint a name: who has it keeps it, else the first file in order gets it.
    fn merge(&mut self) -> Loaded {
        let mut problems = self.unreadable.clone();
        let mut endpoints: BTreeMap<&Name, (&OsString, &Desired)> = BTreeMap::new();
        for (path, document) in &self.read {
            problems.extend(document.problems.iter().cloned());
            for desired in &document.endpoints {
                let name = &desired.spec.name;
                let Some(held) = endpoints.get_mut(name) else {
                    endpoints.insert(name, (path, desired));
                    continue;
                };
                let (winner, loser) = if self.owners.get(name) == Some(path) && held.0 != path {
                    (path, std::mem::replace(held, (path, desired)).0)
                } else {
                    (held.0, path)
                };
                let what = format!(
                    "the endpoint {name} exists already, in {}; give one of them another name, or delete one",
                    winner.display()
                );
                problems.push(Problem::new("metadata.name", what).from_source(&loser.display().to_string()));
            }
        }
        self.owners = endpoints.iter().map(|(name, (path, _))| ((*name).clone(), (*path).clone())).collect();
        Loaded { endpoints: endpoints.into_values().map(|(_, desired)| desired.clone()).collect(), problems }
    }
}

/// Paths in a document are relative to its folder.
fn settle_paths(endpoint: &mut Endpoint, folder: &Path) {
    settle_keys(&mut endpoint.auth, folder);
    for deployment in &mut endpoint.deployments {
        if let Some(tls) = &mut deployment.upstream_tls {
            tls.settle(folder);
        }
        if let Target::Process(process) = &mut deployment.target
            && let Some(working) = &mut process.working_dir
        {
            *working = folder.join(&*working);
        }
    }
}

fn settle_keys(auth: &mut Auth, folder: &Path) {
    let files: Vec<&mut PathBuf> = match auth {
        Auth::None => Vec::new(),
        Auth::Key(sources) | Auth::RouterToken(sources) => {
            let files =
                sources.iter_mut().map(|source| if let KeySource::File(path) = source { Some(path) } else { None });
            files.flatten().collect()
        }
        Auth::IssuerToken(issuers) => {
            let files = issuers.iter_mut().map(|issuer| &mut issuer.keys);
            files.flat_map(|keys| keys.ca_file.iter_mut().chain(&mut keys.bearer_token_file)).collect()
        }
    };
    for path in files {
        *path = folder.join(&*path);
    }
}

/// Both, or what is wrong with either.
fn both<A, B>(a: Result<A, Vec<Problem>>, b: Result<B, Vec<Problem>>) -> Result<(A, B), Vec<Problem>> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err([a, b].concat()),
        (Err(wrong), _) | (_, Err(wrong)) => Err(wrong),
    }
}

/// The path of an entry that [`is_document`]; what kind of entry it is, the folder mostly knows.
fn document(entry: &DirEntry) -> Option<OsString> {
    let path = entry.path();
    let plain = entry.file_type().is_ok_and(|kind| kind.is_file());
    (is_named_as_document(&path) && (plain || path.is_file())).then(|| path.into_os_string())
}

fn is_document(path: &Path) -> bool {
    is_named_as_document(path) && path.is_file()
}

/// Folders hold documents in `*.yaml` and `*.yml`; hidden files are editors' and mounts' own.
fn is_named_as_document(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), data.ino()))
}

#[cfg(test)]
mod tests;
