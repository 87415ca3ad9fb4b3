//! What the deployments of a router share when it is one of several.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::slots::Slots;
use crate::policy::fleet::member::Terms;

/// How the router stands with its group, and which deployments have something to say about it.
#[derive(Debug)]
pub struct Membership {
    terms: ArcSwap<Terms>,
    news: Mutex<Vec<Arc<Slots>>>,
    told: Notify,
}

impl Membership {
    /// On these terms.
    pub fn new(terms: Terms) -> Arc<Self> {
        let terms = ArcSwap::from_pointee(terms);
        Arc::new(Self { terms, news: Mutex::default(), told: Notify::new() })
    }

    /// Those of now.
    pub fn terms(&self) -> Terms {
        **self.terms.load()
    }

    /// Other terms, from now on.
    pub fn set_terms(&self, terms: Terms) {
        if self.terms() != terms {
            self.terms.store(Arc::new(terms));
        }
    }

    /// A deployment has something to say: its replicas, its queue or what it holds have changed.
    pub(super) fn tell(&self, slots: &Arc<Slots>) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(slots.clone());
        self.told.notify_one();
    }

    /// Waits for deployments that have something to say, each once until it is looked at ([`Slots::look`]). For one caller
    /// only.
    pub async fn news(&self) -> Vec<Arc<Slots>> {
        loop {
            let news = std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
            if !news.is_empty() {
                return news;
            }
            self.told.notified().await;
        }
    }
}
