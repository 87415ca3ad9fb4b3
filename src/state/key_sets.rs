//! Key sets (JWKS) of token issuers. The control plane fetches them, all workers read them, and a token with an unknown
//! key requests a refresh.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::model::endpoint::KeySetSource;
use crate::policy::token::KeySet;

/// The shortest time between two refreshes that tokens with unknown keys cause. Anybody can make up such a token.
pub const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// The key sets of all issuers that endpoints trust, one per source.
#[derive(Debug, Default)]
pub struct KeySetRegistry {
    sets: Mutex<HashMap<KeySetSource, Weak<RemoteKeySet>>>,
    /// Key sets that no task of the control plane fetches yet.
    unclaimed: Mutex<Vec<Arc<RemoteKeySet>>>,
    set_added: Notify,
}

/// The key set of one issuer. The task that fetches it ends when nothing else holds a reference to the set.
#[derive(Debug)]
pub struct RemoteKeySet {
    /// Where the key set is fetched from.
    pub source: KeySetSource,
    keys: ArcSwapOption<KeySet>,
    refresh: Mutex<RefreshState>,
    /// Wakes the fetching task when a request waits for a refresh.
    refresh_requested: Notify,
    /// Counts finished refreshes.
    refreshes_finished: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct RefreshState {
    /// Whether a refresh is running or about to run.
    is_running: bool,
    /// When a refresh was last requested because of an unknown key.
    last_requested_at: Option<Instant>,
}

impl KeySetRegistry {
    /// Returns the key set of `source`, shared between all endpoints that trust it.
    pub fn get_or_create(&self, source: &KeySetSource) -> Arc<RemoteKeySet> {
        let mut sets = lock_ignoring_poison(&self.sets);
        if let Some(set) = sets.get(source).and_then(Weak::upgrade) {
            return set;
        }
        sets.retain(|_, set| set.strong_count() > 0);
        let set = Arc::new(RemoteKeySet {
            source: source.clone(),
            keys: ArcSwapOption::empty(),
            refresh: Mutex::new(RefreshState { is_running: true, last_requested_at: None }),
            refresh_requested: Notify::new(),
            refreshes_finished: watch::Sender::new(0),
        });
        sets.insert(source.clone(), Arc::downgrade(&set));
        lock_ignoring_poison(&self.unclaimed).push(set.clone());
        self.set_added.notify_one();
        set
    }

    /// Waits for key sets that no task fetches yet and returns them.
    pub async fn next_unclaimed(&self) -> Vec<Arc<RemoteKeySet>> {
        loop {
            let added = self.set_added.notified();
            let new = std::mem::take(&mut *lock_ignoring_poison(&self.unclaimed));
            if !new.is_empty() {
                return new;
            }
            added.await;
        }
    }

    /// Removes `set` if only the caller holds a reference to it, so that nobody can get it from here any more. Returns
    /// whether it was removed.
    pub fn remove_if_unused(&self, set: &Arc<RemoteKeySet>) -> bool {
        let mut sets = lock_ignoring_poison(&self.sets);
        let retired = Arc::strong_count(set) == 1;
        if retired {
            sets.remove(&set.source);
        }
        retired
    }
}

impl RemoteKeySet {
    /// Returns the current keys; `None` if they were never fetched or are too old to be trusted.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Requests a refresh of the keys, unless one was requested for the same reason a moment ago, and waits for it for
    /// at most `timeout`. Returns whether a refresh finished.
    pub async fn request_refresh(&self, timeout: Duration) -> bool {
        let mut landed = {
            let mut flight = lock_ignoring_poison(&self.refresh);
            if !flight.is_running {
                if flight.last_requested_at.is_some_and(|at| at.elapsed() < MIN_REFRESH_INTERVAL) {
                    return false;
                }
                *flight = RefreshState { is_running: true, last_requested_at: Some(Instant::now()) };
                self.refresh_requested.notify_one();
            }
            // The subscription is made while the refresh cannot finish, so that its end is not missed.
            self.refreshes_finished.subscribe()
        };
        matches!(tokio::time::timeout(timeout, landed.changed()).await, Ok(Ok(())))
    }

    /// Waits until a refresh is requested.
    pub async fn wait_for_refresh_request(&self) {
        self.refresh_requested.notified().await;
    }

    /// Marks the beginning of a refresh.
    pub fn begin_refresh(&self) {
        lock_ignoring_poison(&self.refresh).is_running = true;
    }

    /// Marks the end of a refresh, with the new keys or with `None` if the fetch failed. Returns whether the keys
    /// differ from the keys before.
    pub fn finish_refresh(&self, keys: Option<KeySet>) -> bool {
        let changed = keys.is_some_and(|keys| {
            let others = self.keys().is_none_or(|before| *before != keys);
            if others {
                self.keys.store(Some(Arc::new(keys)));
            }
            others
        });
        let mut flight = lock_ignoring_poison(&self.refresh);
        flight.is_running = false;
        self.refreshes_finished.send_modify(|landed| *landed += 1);
        changed
    }

    /// Removes keys that are too old to be trusted.
    pub fn remove_expired_keys(&self) {
        self.keys.store(None);
    }
}

fn lock_ignoring_poison<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
