//! Secrets that the router's settings name: what files are to a router without a cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a Secret holds, by name of entry.
pub type Entries = BTreeMap<String, Vec<u8>>;

/// Secrets by name, in the router's own namespace. Whoever watches the cluster writes them down here; whoever uses them
/// looks again and again, as at files. Shared.
#[derive(Clone, Default)]
pub struct NamedSecrets(Arc<Mutex<BTreeMap<String, Known>>>);

/// A Secret, or why it is not known.
type Known = Result<Arc<Entries>, String>;

impl NamedSecrets {
    /// These, of which nothing is known yet.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let unknown = |name: &str| (name.to_owned(), Err("the cluster has not said yet what is in it".to_owned()));
        Self(Arc::new(Mutex::new(names.into_iter().map(unknown).collect())))
    }

    /// Which there are to be.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// What a Secret holds.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn get(&self, name: &str) -> Known {
        self.lock().get(name).cloned().unwrap_or_else(|| Err("nobody watches it".to_owned()))
    }

    /// What a Secret holds now.
    pub fn set(&self, name: &str, known: Known) {
        self.lock().insert(name.to_owned(), known);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
