//! Notices when files may have changed, and which ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Event, RecursiveMode, Watcher};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// Editors and mounts write in several steps, so a change is read this long after its first event.
const DEBOUNCE_DELAY: Duration = Duration::from_millis(20);
/// The interval of scans without an event, for file systems that deliver none, and for key files in other folders.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Scans may take at most one part in this many of the time. With very many files they run less often.
const MIN_INTERVAL_PER_SCAN_TIME: u32 = 50;

/// What a scan covers.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanScope {
    /// Every place.
    All,
    /// The paths that events named. With ten thousand documents this saves most of the work.
    Paths(BTreeSet<PathBuf>),
}

/// Waits until files may have changed: until an event of the system, or for a second.
pub struct FileWatcher {
    pending_changes: Arc<PendingChanges>,
    /// When the change that began with the first event is complete.
    debounce_deadline: Option<Instant>,
    next_poll: Instant,
    /// The watcher of the system, which works as long as it lives. It stays empty where the system cannot watch.
    _watcher: oneshot::Receiver<notify::RecommendedWatcher>,
}

#[derive(Default)]
struct PendingChanges {
    scope: Mutex<Option<ScanScope>>,
    notify: Notify,
}

impl FileWatcher {
    /// Watches `places` and the folders they are in, because a rename over a file or a swapped link happens there.
    pub fn new(places: &[PathBuf]) -> Self {
        let signs = Arc::new(PendingChanges::default());
        let (changes, watched) = (signs.clone(), places.to_vec());
        let (watcher_tx, watcher_rx) = oneshot::channel();
        // Starting to watch can take as long as a busy folder (`/tmp` is beside many a place) has events to deliver.
        let start = move || match start_watcher(&watched, changes.clone()) {
            Ok(watcher) => {
                changes.add_scope(ScanScope::All);
                // The receiver may be gone already.
                let _ = watcher_tx.send(watcher);
            }
            Err(error) => tracing::warn!(%error, "file notifications unavailable; polling once a second"),
        };
        if !places.is_empty()
            && let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(start)
        {
            tracing::warn!(%error, "file notifications unavailable; polling once a second");
        }
        Self {
            pending_changes: signs,
            debounce_deadline: None,
            next_poll: Instant::now() + POLL_INTERVAL,
            _watcher: watcher_rx,
        }
    }

    /// Waits until a scan is due and returns its scope. Dropping the future loses no event.
    pub async fn changed(&mut self) -> ScanScope {
        loop {
            if let Some(deadline) = self.debounce_deadline {
                sleep_until(deadline).await;
                self.debounce_deadline = None;
                // Events that came during the delay belong to the same scan.
                if let Some(scope) = self.pending_changes.take_scope() {
                    return scope;
                }
            }
            tokio::select! {
                () = self.pending_changes.notify.notified() => self.debounce_deadline = Some(Instant::now() + DEBOUNCE_DELAY),
                () = sleep_until(self.next_poll) => return ScanScope::All,
            }
        }
    }

    /// Schedules the next full scan after one that took `scan_time`.
    pub fn schedule_next_poll(&mut self, scan_time: Duration) {
        self.next_poll = Instant::now() + POLL_INTERVAL.max(scan_time * MIN_INTERVAL_PER_SCAN_TIME);
    }
}

impl PendingChanges {
    fn add_scope(&self, more: ScanScope) {
        let mut scope = self.scope.lock().unwrap_or_else(PoisonError::into_inner);
        *scope = Some(match (scope.take(), more) {
            (Some(ScanScope::Paths(mut paths)), ScanScope::Paths(more)) => {
                paths.extend(more);
                ScanScope::Paths(paths)
            }
            (None, more) => more,
            _ => ScanScope::All,
        });
        drop(scope);
        self.notify.notify_one();
    }

    fn take_scope(&self) -> Option<ScanScope> {
        self.scope.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn start_watcher(places: &[PathBuf], changes: Arc<PendingChanges>) -> notify::Result<notify::RecommendedWatcher> {
    let path_pairs = absolute_and_configured_paths(places);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if let Some(scope) = scope_from_event(event, &path_pairs) {
            changes.add_scope(scope);
        }
    })?;
    let folders = places.iter().flat_map(|place| [Some(place.as_path()), place.parent()]).flatten();
    for folder in folders.filter(|folder| folder.is_dir()).collect::<BTreeSet<_>>() {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Returns each place as the system names it in events, and as it is configured.
fn absolute_and_configured_paths(places: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    places.iter().map(|place| (std::path::absolute(place).unwrap_or_else(|_| place.clone()), place.clone())).collect()
}

/// Returns the scope that an event asks for; `None` if it asks for nothing.
fn scope_from_event(event: notify::Result<Event>, places: &[(PathBuf, PathBuf)]) -> Option<ScanScope> {
    let Ok(event) = event else { return Some(ScanScope::All) };
    if event.kind.is_access() {
        // Our own reads are events too.
        return None;
    }
    if event.need_rescan() || event.paths.iter().any(|path| needs_full_scan(path, places)) {
        return Some(ScanScope::All);
    }
    let paths: BTreeSet<PathBuf> = event.paths.iter().filter_map(|path| as_configured_path(path, places)).collect();
    (!paths.is_empty()).then_some(ScanScope::Paths(paths))
}

/// Returns whether a change of this path can change others: a folder itself, or the link that Kubernetes swaps under
/// its mounts.
fn needs_full_scan(path: &Path, places: &[(PathBuf, PathBuf)]) -> bool {
    let is_mount_link = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
    is_mount_link || places.iter().any(|(system, place)| system == path && !place.is_file())
}

/// Returns the path in the spelling of its place; `None` if it belongs to no place.
fn as_configured_path(path: &Path, places: &[(PathBuf, PathBuf)]) -> Option<PathBuf> {
    places.iter().find_map(|(system, place)| match path.strip_prefix(system) {
        Ok(rest) if rest.as_os_str().is_empty() => Some(place.clone()),
        Ok(rest) => Some(place.join(rest)),
        Err(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::EventKind;
    use notify::event::{CreateKind, Flag};

    fn create_event(paths: &[&str]) -> notify::Result<Event> {
        let event = Event::new(EventKind::Create(CreateKind::File));
        Ok(paths.iter().fold(event, |event, path| event.add_path(path.into())))
    }

    fn paths_scope(paths: &[&str]) -> Option<ScanScope> {
        Some(ScanScope::Paths(paths.iter().map(PathBuf::from).collect()))
    }

    #[test]
    fn a_sign_names_what_to_look_at_as_the_settings_spell_it() {
        let places = [("/w/endpoints".into(), "endpoints/".into()), ("/etc/one.yaml".into(), "/etc/one.yaml".into())];
        assert_eq!(
            scope_from_event(create_event(&["/w/endpoints/a.yaml"]), &places),
            paths_scope(&["endpoints/a.yaml"])
        );
        assert_eq!(
            scope_from_event(create_event(&["/w/endpoints/.new", "/w/endpoints/a.yaml"]), &places),
            paths_scope(&["endpoints/.new", "endpoints/a.yaml"])
        );
        assert_eq!(scope_from_event(create_event(&["/etc/passwd"]), &places), None, "beside a place, not in it");
    }

    #[test]
    fn what_moves_others_asks_to_look_at_everything() {
        let places = [("/w/endpoints".into(), "endpoints".into())];
        for path in ["/w/endpoints/..data", "/w/endpoints"] {
            assert_eq!(scope_from_event(create_event(&[path]), &places), Some(ScanScope::All), "{path}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(scope_from_event(Ok(overflow), &places), Some(ScanScope::All));
        assert_eq!(scope_from_event(Err(notify::Error::generic("x")), &places), Some(ScanScope::All));
    }

    #[tokio::test(start_paused = true)]
    async fn signs_are_kept_when_a_wait_is_given_up_and_come_together() {
        let mut watch = FileWatcher::new(&[]);
        watch.pending_changes.add_scope(paths_scope(&["a"]).unwrap());
        assert!(tokio::time::timeout(DEBOUNCE_DELAY / 2, watch.changed()).await.is_err());
        watch.pending_changes.add_scope(paths_scope(&["b"]).unwrap());
        assert_eq!(Some(watch.changed().await), paths_scope(&["a", "b"]));
        let began = Instant::now();
        assert_eq!(watch.changed().await, ScanScope::All);
        assert!(began.elapsed() <= POLL_INTERVAL);
        watch.schedule_next_poll(Duration::from_secs(1));
        let began = Instant::now();
        assert_eq!(watch.changed().await, ScanScope::All);
        assert_eq!(began.elapsed(), Duration::from_secs(MIN_INTERVAL_PER_SCAN_TIME.into()), "a slow look is rarer");
    }
}
