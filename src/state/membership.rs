//! What the deployments of a router share when it is one of several.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use super::slots::Slots;
use crate::policy::fleet::Deployment;
use crate::policy::fleet::member::{Standing, Terms};
use crate::policy::scale::Signals;

/// Questions that may wait.
const QUESTIONS: usize = 1024;

/// How the router stands with its group, and which deployments have something to say about it.
#[derive(Debug)]
pub struct Membership {
    terms: ArcSwap<Terms>,
    news: Mutex<Vec<Arc<Slots>>>,
    told: Notify,
    /// Whether this router does what one of the group does for all.
    is_in_charge: AtomicBool,
    /// Whether it has ever had slots to use.
    has_joined: AtomicBool,
    /// Whether it may use none now.
    has_nothing: AtomicBool,
    group: ArcSwap<Group>,
    questions: mpsc::Sender<Question>,
    asked: Mutex<Option<mpsc::Receiver<Question>>>,
    /// Requests started without a lease.
    pub borrowed: IntCounter,
}

/// What has gone on in a deployment at all routers since this was last asked?
#[derive(Debug)]
pub struct Question {
    /// Which.
    pub deployment: Deployment,
    /// Dropped by a router that does not coordinate.
    pub answer: oneshot::Sender<Signals>,
}

/// The group, as this router sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// This router, as the others call it.
    pub router: String,
    /// Who coordinates, as far as is known.
    pub coordinator: Option<String>,
    /// Of the coordinator's term.
    pub epoch: u64,
    /// What this router goes by: `leased`, `fallback` (its fair share, cut off) or `nothing`.
    pub standing: &'static str,
    /// What keeps it from the others, if anything does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Those that may hold slots.
    pub members: Vec<GroupMember>,
    /// Requests in flight and waiting at all routers: of every deployment where this one coordinates, else of those where
    /// any wait.
    #[serde(skip)]
    pub present: HashMap<Deployment, (u32, u32)>,
}

/// What the coordinator has the others know of the group, once a second.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Overview {
    /// Those that may hold slots.
    pub members: Vec<GroupMember>,
    /// Requests in flight and waiting at all routers.
    pub present: HashMap<Deployment, (u32, u32)>,
}

/// One of the group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GroupMember {
    /// As the others call it.
    pub name: String,
    /// Slots that it holds, if the coordinator has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Requests that wait there, if the coordinator has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
}

impl Membership {
    /// On these terms.
    ///
    /// # Errors
    /// Never: the name of the counter is a good one.
    pub fn new(terms: Terms) -> prometheus::Result<Arc<Self>> {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let help = "Requests started without a lease by a router cut off from its coordinator: a replica may have had more \
                    than it should.";
        Ok(Arc::new(Self {
            terms: ArcSwap::from_pointee(terms),
            news: Mutex::default(),
            told: Notify::new(),
            is_in_charge: AtomicBool::new(false),
            has_joined: AtomicBool::new(false),
            has_nothing: AtomicBool::new(true),
            group: ArcSwap::default(),
            questions,
            asked: Mutex::new(Some(asked)),
            borrowed: IntCounter::new("fleet_fallback_total", help)?,
        }))
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

    /// What this router goes by now, and whether it does what one of the group does for all.
    pub fn stands(&self, standing: Standing, is_in_charge: bool) {
        self.is_in_charge.store(is_in_charge, Ordering::Relaxed);
        self.has_nothing.store(standing == Standing::Nothing, Ordering::Relaxed);
        if standing != Standing::Nothing {
            self.has_joined.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it scales, and says how things are, for all.
    pub fn is_in_charge(&self) -> bool {
        self.is_in_charge.load(Ordering::Relaxed)
    }

    /// Why it cannot serve, as far as its group is concerned.
    pub fn why_not_ready(&self) -> Option<&'static str> {
        if !self.has_joined.load(Ordering::Relaxed) {
            return Some("joining its group");
        }
        self.has_nothing.load(Ordering::Relaxed).then_some("cut off from its group")
    }

    /// The group as it was seen last.
    pub fn group(&self) -> Arc<Group> {
        self.group.load_full()
    }

    /// What the group is seen to be.
    pub fn set_group(&self, group: Group) {
        self.group.store(Arc::new(group));
    }

    /// What has gone on in a deployment at all routers since this was last asked; `None`: another router knows.
    pub async fn signals(&self, deployment: &Deployment) -> Option<Signals> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(Question { deployment: deployment.clone(), answer }).ok()?;
        answered.await.ok()
    }

    /// Who takes this answers; `None`: somebody does already.
    pub fn questions(&self) -> Option<mpsc::Receiver<Question>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
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
