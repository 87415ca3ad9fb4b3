//! The routing table: every endpoint by name, ready to be used by a request.
//!
//! Immutable once published; a change publishes a new one that shares what has not changed. Slots and counters outlive
//! their table.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::PathAndQuery;

use super::bandwidth::Limit;
use super::key_sets::KeySetOf;
use super::metrics::{DeploymentMetrics, EndpointMetrics};
use super::mirror::Mirror;
use super::scaling::Scaling;
use super::slots::Slots;
use super::tls::Connector;
use crate::model::endpoint;
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::split::Split;

/// Every endpoint, by name in lower case: in parts, each sorted, so that a change of one among ten thousand is a copy of a few
/// dozen, and a look-up without a hash of everybody else's.
#[derive(Debug)]
pub struct Table {
    parts: Vec<Part>,
}

type Part = Arc<Vec<Arc<Endpoint>>>;

/// Parts of a table; a power of two.
const PARTS: usize = 256;

/// The table of now; workers read it with `arc_swap::Cache`, the control plane replaces it.
pub type Published = Arc<ArcSwap<Table>>;

/// An endpoint, ready for requests.
#[derive(Debug)]
pub struct Endpoint {
    /// As in its document.
    pub spec: Arc<endpoint::Endpoint>,
    /// Who may call.
    pub access: Access,
    /// Public keys of those whose tokens are accepted, in the order of `access`.
    pub key_sets: Vec<Arc<KeySetOf>>,
    /// Another one whenever the endpoint's document changes: what was found by other rules does not count.
    pub generation: u64,
    /// How live traffic is split, by index into `deployments`.
    pub split: Split,
    /// In the order of the document.
    pub deployments: Vec<Arc<Deployment>>,
    /// Where copies of live requests go.
    pub mirror: Option<Arc<Mirror>>,
    /// How many bytes a second; once it has had a limit. Of what comes now, see [`Endpoint::limit`].
    pub limit: Option<Arc<Limit>>,
    /// Counters of what fails before a deployment is chosen.
    pub metrics: EndpointMetrics,
}

/// A deployment, ready for requests.
#[derive(Debug)]
pub struct Deployment {
    /// As in its document.
    pub spec: endpoint::Deployment,
    /// Its slots and queue.
    pub slots: Arc<Slots>,
    /// How its number of replicas is decided; `None` where it is fixed.
    pub scaling: Option<Arc<Scaling>>,
    /// Its counters.
    pub metrics: Arc<DeploymentMetrics>,
    /// The name, as sent in `azureml-model-deployment`.
    pub header: HeaderValue,
    /// TLS towards its replicas, where that is configured.
    pub tls: Option<Connector>,
    /// `host` sent to the model, where one is configured.
    pub host: Option<HeaderValue>,
    /// `scoringPath`, ready to be sent.
    pub scoring_path: PathAndQuery,
    /// `swaggerPath`, ready to be sent.
    pub swagger_path: PathAndQuery,
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: vec![Part::default(); PARTS] }
    }
}

impl Table {
    /// A table of these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Arc<Endpoint>>) -> Self {
        Self::default().with(endpoints.into_iter().map(|endpoint| (endpoint.spec.name.clone(), Some(endpoint))))
    }

    /// The same table, but for these names: `None` takes one away.
    #[must_use]
    pub fn with(&self, changes: impl IntoIterator<Item = (Name, Option<Arc<Endpoint>>)>) -> Self {
        let mut parts = self.parts.clone();
        for (name, endpoint) in changes {
            // Copied once, however many of its names change.
            let part = Arc::make_mut(&mut parts[part_of(name.key())]);
            match (place(part, name.key()), endpoint) {
                (Ok(place), Some(endpoint)) => part[place] = endpoint,
                (Ok(place), None) => drop(part.remove(place)),
                (Err(place), Some(endpoint)) => part.insert(place, endpoint),
                (Err(_), None) => {}
            }
        }
        Self { parts }
    }

    /// The endpoint of that name, given in lower case.
    pub fn endpoint(&self, key: &str) -> Option<&Arc<Endpoint>> {
        let part = &self.parts[part_of(key)];
        place(part, key).ok().map(|place| &part[place])
    }

    /// Every endpoint, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.parts.iter().flat_map(|part| part.iter())
    }
}

/// Where a name is in its part, or would be.
fn place(part: &[Arc<Endpoint>], key: &str) -> Result<usize, usize> {
    part.binary_search_by(|endpoint| endpoint.spec.name.key().cmp(key))
}

/// By the FNV-1a hash: names are chosen by who runs the router, so nobody fills one part on purpose.
fn part_of(key: &str) -> usize {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = key.bytes().fold(0x811c_9dc5, step);
    (hash ^ (hash >> 16)) as usize % PARTS
}

impl Endpoint {
    /// How many bytes a second what comes now has; `None`: as many as it likes.
    pub fn limit(&self) -> Option<&Arc<Limit>> {
        self.limit.as_ref().filter(|_| self.spec.bandwidth.is_some())
    }

    /// Whether TLS towards its replicas is made from the same as this.
    pub fn has_tls(&self, tls: &[(Name, Connector)]) -> bool {
        let now = self.deployments.iter().filter_map(|of| Some((&of.spec.name, of.tls.as_ref()?)));
        now.eq(tls.iter().map(|(name, connector)| (name, connector)))
    }

    /// The deployment of that name, in any case.
    pub fn deployment(&self, name: &str) -> Option<&Arc<Deployment>> {
        self.deployments.iter().find(|deployment| deployment.spec.name.matches(name))
    }
}
