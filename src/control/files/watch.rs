//! When files may have changed, and which.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Event, RecursiveMode, Watcher};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// Editors and mounts write in several steps; a change is read this long after its first sign.
const SETTLE: Duration = Duration::from_millis(20);
/// How often files are looked at without a sign: for file systems that give none, and for key files elsewhere.
const LOOK: Duration = Duration::from_secs(1);
/// Looking at everything may take this share of the time: with very many files it is done less often.
const LOOKING: u32 = 50;

/// What to look at.
#[derive(Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every place.
    Everything,
    /// What gave a sign: with ten thousand documents it makes a difference.
    Paths(BTreeSet<PathBuf>),
}

/// Says when the files may have changed: at a sign from the system, and once a second without one.
pub struct Watch {
    signs: Arc<Signs>,
    /// When what gave the first sign has settled.
    settled: Option<Instant>,
    next_look: Instant,
    /// Watches while it lives; stays empty where the system cannot.
    _watcher: oneshot::Receiver<notify::RecommendedWatcher>,
}

#[derive(Default)]
struct Signs {
    scope: Mutex<Option<Scope>>,
    given: Notify,
}

impl Watch {
    /// Watches `places`, and the folders they are in: a rename over a file, or a swapped link, happens there.
    pub fn new(places: &[PathBuf]) -> Self {
        let signs = Arc::new(Signs::default());
        let (to, watched) = (signs.clone(), places.to_vec());
        let (made, watcher) = oneshot::channel();
        // To begin can take as long as a busy folder (`/tmp` is next to many a place) has something new to say.
        let begin = move || match watcher_of(&watched, to.clone()) {
            Ok(watcher) => {
                to.add(Scope::Everything);
                // Nobody may be waiting for it any more.
                let _ = made.send(watcher);
            }
            Err(error) => tracing::warn!(%error, "files cannot be watched; they are looked at once a second"),
        };
        if !places.is_empty()
            && let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(begin)
        {
            tracing::warn!(%error, "files cannot be watched; they are looked at once a second");
        }
        Self { signs, settled: None, next_look: Instant::now() + LOOK, _watcher: watcher }
    }

    /// Waits until it is time for a look, and says at what. Nothing is lost when the wait is given up.
    pub async fn changed(&mut self) -> Scope {
        loop {
            if let Some(settled) = self.settled {
                sleep_until(settled).await;
                self.settled = None;
                // What came while it settled is in the same look.
                if let Some(scope) = self.signs.take() {
                    return scope;
                }
            }
            tokio::select! {
                () = self.signs.given.notified() => self.settled = Some(Instant::now() + SETTLE),
                () = sleep_until(self.next_look) => return Scope::Everything,
            }
        }
    }

    /// A look at everything took this long.
    pub fn looked(&mut self, took: Duration) {
        self.next_look = Instant::now() + LOOK.max(took * LOOKING);
    }
}

impl Signs {
    fn add(&self, more: Scope) {
        let mut scope = self.scope.lock().unwrap_or_else(PoisonError::into_inner);
        *scope = Some(match (scope.take(), more) {
            (Some(Scope::Paths(mut paths)), Scope::Paths(more)) => {
                paths.extend(more);
                Scope::Paths(paths)
            }
            (None, more) => more,
            _ => Scope::Everything,
        });
        drop(scope);
        self.given.notify_one();
    }

    fn take(&self) -> Option<Scope> {
        self.scope.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn watcher_of(places: &[PathBuf], to: Arc<Signs>) -> notify::Result<notify::RecommendedWatcher> {
    let spelled = spellings(places);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if let Some(scope) = scope(event, &spelled) {
            to.add(scope);
        }
    })?;
    let folders = places.iter().flat_map(|place| [Some(place.as_path()), place.parent()]).flatten();
    for folder in folders.filter(|folder| folder.is_dir()).collect::<BTreeSet<_>>() {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Each place as the system names it in its signs, and as its owner does.
fn spellings(places: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    places.iter().map(|place| (std::path::absolute(place).unwrap_or_else(|_| place.clone()), place.clone())).collect()
}

/// What an event asks to look at; `None`: nothing.
fn scope(event: notify::Result<Event>, places: &[(PathBuf, PathBuf)]) -> Option<Scope> {
    let Ok(event) = event else { return Some(Scope::Everything) };
    if event.kind.is_access() {
        // Our own reading is an event too.
        return None;
    }
    if event.need_rescan() || event.paths.iter().any(|path| moves_others(path, places)) {
        return Some(Scope::Everything);
    }
    let paths: BTreeSet<PathBuf> = event.paths.iter().filter_map(|path| spelled(path, places)).collect();
    (!paths.is_empty()).then_some(Scope::Paths(paths))
}

/// Whether a change of this path changes others: a folder itself, or the link that Kubernetes swaps under its mounts.
fn moves_others(path: &Path, places: &[(PathBuf, PathBuf)]) -> bool {
    let linked = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
    linked || places.iter().any(|(system, place)| system == path && !place.is_file())
}

/// The path as the owner of its place spells it; `None` for a path of no place.
fn spelled(path: &Path, places: &[(PathBuf, PathBuf)]) -> Option<PathBuf> {
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

    fn event(paths: &[&str]) -> notify::Result<Event> {
        let event = Event::new(EventKind::Create(CreateKind::File));
        Ok(paths.iter().fold(event, |event, path| event.add_path(path.into())))
    }

    fn paths(paths: &[&str]) -> Option<Scope> {
        Some(Scope::Paths(paths.iter().map(PathBuf::from).collect()))
    }

    #[test]
    fn a_sign_names_what_to_look_at_as_the_settings_spell_it() {
        let places = [("/w/endpoints".into(), "endpoints/".into()), ("/etc/one.yaml".into(), "/etc/one.yaml".into())];
        assert_eq!(scope(event(&["/w/endpoints/a.yaml"]), &places), paths(&["endpoints/a.yaml"]));
        assert_eq!(
            scope(event(&["/w/endpoints/.new", "/w/endpoints/a.yaml"]), &places),
            paths(&["endpoints/.new", "endpoints/a.yaml"])
        );
        assert_eq!(scope(event(&["/etc/passwd"]), &places), None, "beside a place, not in it");
    }

    #[test]
    fn what_moves_others_asks_to_look_at_everything() {
        let places = [("/w/endpoints".into(), "endpoints".into())];
        for path in ["/w/endpoints/..data", "/w/endpoints"] {
            assert_eq!(scope(event(&[path]), &places), Some(Scope::Everything), "{path}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(scope(Ok(overflow), &places), Some(Scope::Everything));
        assert_eq!(scope(Err(notify::Error::generic("x")), &places), Some(Scope::Everything));
    }

    #[tokio::test(start_paused = true)]
    async fn signs_are_kept_when_a_wait_is_given_up_and_come_together() {
        let mut watch = Watch::new(&[]);
        watch.signs.add(paths(&["a"]).unwrap());
        assert!(tokio::time::timeout(SETTLE / 2, watch.changed()).await.is_err());
        watch.signs.add(paths(&["b"]).unwrap());
        assert_eq!(Some(watch.changed().await), paths(&["a", "b"]));
        let began = Instant::now();
        assert_eq!(watch.changed().await, Scope::Everything);
        assert!(began.elapsed() <= LOOK);
        watch.looked(Duration::from_secs(1));
        let began = Instant::now();
        assert_eq!(watch.changed().await, Scope::Everything);
        assert_eq!(began.elapsed(), Duration::from_secs(LOOKING.into()), "a slow look is rarer");
    }
}
