//! Secrets that the router's settings name. They replace files for a router in a cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The content of a Secret by entry.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// Secrets of the router's own namespace by name. The task that watches the cluster writes them; users read them again
/// and again, as they do with files. Clones share the content.
#[derive(Clone, Default)]
pub struct SecretCache(Arc<Mutex<BTreeMap<String, CachedSecret>>>);

/// The content of a Secret, or why it is not known.
type CachedSecret = Result<Arc<SecretData>, String>;

impl SecretCache {
    /// Creates a cache for these Secrets, none of which is known yet.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let unknown = |name: &str| (name.to_owned(), Err("the cluster has not said yet what is in it".to_owned()));
        Self(Arc::new(Mutex::new(names.into_iter().map(unknown).collect())))
    }

    /// Returns the names of the Secrets.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Returns the content of a Secret.
    ///
    /// # Errors
    ///
    /// Why the content is not known.
    pub fn get(&self, name: &str) -> CachedSecret {
        self.lock().get(name).cloned().unwrap_or_else(|| Err("nobody watches it".to_owned()))
    }

    /// Sets the content of a Secret.
    pub fn set(&self, name: &str, secret: CachedSecret) {
        self.lock().insert(name.to_owned(), secret);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, CachedSecret>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
