//! Public keys of issuers: fetched by the control plane, read by all workers, asked for when a token names an unknown one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::model::endpoint::KeySetSource;
use crate::policy::token::KeySet;

/// A set is not fetched more often than this for the sake of an unknown key: anybody can make one up.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// The sets of every issuer that an endpoint trusts, one for each place they come from.
#[derive(Debug, Default)]
pub struct KeySets {
    sets: Mutex<HashMap<KeySetSource, Weak<KeySetOf>>>,
    /// Sets that nobody fetches yet.
    new: Mutex<Vec<Arc<KeySetOf>>>,
    added: Notify,
}

/// One issuer's keys; whoever fetches them ends when nobody else has it.
#[derive(Debug)]
pub struct KeySetOf {
    /// Where they come from.
    pub source: KeySetSource,
    keys: ArcSwapOption<KeySet>,
    flight: Mutex<Flight>,
    /// Somebody waits for a fetch.
    wanted: Notify,
    /// Counts the fetches that have ended.
    landed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Flight {
    /// A fetch is under way, or about to be.
    under: bool,
    /// When one was made for the sake of an unknown key.
    asked: Option<Instant>,
}

impl KeySets {
    /// The keys from `source`, shared with whoever has them already.
    pub fn of(&self, source: &KeySetSource) -> Arc<KeySetOf> {
        let mut sets = lock(&self.sets);
        if let Some(set) = sets.get(source).and_then(Weak::upgrade) {
            return set;
        }
        sets.retain(|_, set| set.strong_count() > 0);
        let set = Arc::new(KeySetOf {
            source: source.clone(),
            keys: ArcSwapOption::empty(),
            flight: Mutex::new(Flight { under: true, asked: None }),
            wanted: Notify::new(),
            landed: watch::Sender::new(0),
        });
        sets.insert(source.clone(), Arc::downgrade(&set));
        lock(&self.new).push(set.clone());
        self.added.notify_one();
        set
    }

    /// Waits for sets that nobody fetches yet, and hands them over.
    pub async fn added(&self) -> Vec<Arc<KeySetOf>> {
        loop {
            let added = self.added.notified();
            let new = std::mem::take(&mut *lock(&self.new));
            if !new.is_empty() {
                return new;
            }
            added.await;
        }
    }

    /// Whether nobody but the caller has `set` any more; then nobody gets it either.
    pub fn retire(&self, set: &Arc<KeySetOf>) -> bool {
        let mut sets = lock(&self.sets);
        let retired = Arc::strong_count(set) == 1;
        if retired {
            sets.remove(&set.source);
        }
        retired
    }
}

impl KeySetOf {
    /// The keys of now; `None` when there never were any, or for too long.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Sees to it that the keys are fetched again, unless they just have been for the same reason, and waits for that,
    /// at most `patience`. Returns whether anything was fetched.
    pub async fn refreshed(&self, patience: Duration) -> bool {
        let mut landed = {
            let mut flight = lock(&self.flight);
            if !flight.under {
                if flight.asked.is_some_and(|at| at.elapsed() < COOL_DOWN) {
                    return false;
                }
                *flight = Flight { under: true, asked: Some(Instant::now()) };
                self.wanted.notify_one();
            }
            // Subscribed while the flight cannot end: its end is not missed.
            self.landed.subscribe()
        };
        matches!(tokio::time::timeout(patience, landed.changed()).await, Ok(Ok(())))
    }

    /// Waits until somebody wants the keys fetched.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// A fetch begins.
    pub fn take_off(&self) {
        lock(&self.flight).under = true;
    }

    /// A fetch has ended: with these keys, or with none that are better than those of before. Returns whether the keys
    /// are others than before.
    pub fn land(&self, keys: Option<KeySet>) -> bool {
        let changed = keys.is_some_and(|keys| {
            let others = self.keys().is_none_or(|before| *before != keys);
            if others {
                self.keys.store(Some(Arc::new(keys)));
            }
            others
        });
        let mut flight = lock(&self.flight);
        flight.under = false;
        self.landed.send_modify(|landed| *landed += 1);
        changed
    }

    /// The keys are too old to be trusted.
    pub fn expire(&self) {
        self.keys.store(None);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
