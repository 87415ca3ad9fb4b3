//! The routing table: every endpoint by name, prepared for requests.
//!
//! A published table is immutable. A change publishes a new table that shares every unchanged part with the one before.
//! Slots and metrics outlive the tables.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::PathAndQuery;

use super::bandwidth::BandwidthLimit;
use super::key_sets::RemoteKeySet;
use super::metrics::{DeploymentMetrics, EndpointMetrics};
use super::mirror::MirrorEntry;
use super::scaling::Scaling;
use super::slots::DeploymentSlots;
use super::tls::Connector;
use crate::model::endpoint;
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::split::Split;

/// Every endpoint by its lower-case name. Entries are spread over shards, and each shard is sorted, so that a change of
/// one endpoint among ten thousand copies a few dozen entries, and a look-up searches one shard.
#[derive(Debug)]
pub struct RoutingTable {
    shards: Vec<TableShard>,
}

type TableShard = Arc<Vec<Arc<EndpointEntry>>>;

/// Number of shards of a table; a power of two.
const SHARD_COUNT: usize = 256;

/// The current table. Workers read it with `arc_swap::Cache`; the control plane replaces it.
pub type PublishedTable = Arc<ArcSwap<RoutingTable>>;

/// An endpoint, prepared for requests.
#[derive(Debug)]
pub struct EndpointEntry {
    /// The endpoint as in its document.
    pub spec: Arc<endpoint::Endpoint>,
    /// The credentials that the endpoint accepts.
    pub access: Access,
    /// Key sets of the trusted issuers, in the order of `access`.
    pub key_sets: Vec<Arc<RemoteKeySet>>,
    /// Changes whenever the endpoint's document changes. Tokens that were verified under another generation are
    /// verified again.
    pub generation: u64,
    /// How live traffic is split, by index into `deployments`.
    pub split: Split,
    /// The deployments, in the order of the document.
    pub deployments: Vec<Arc<DeploymentEntry>>,
    /// Where live requests are mirrored to, if the document asks for mirroring.
    pub mirror: Option<Arc<MirrorEntry>>,
    /// The bandwidth limit, once the endpoint has had one. [`EndpointEntry::active_bandwidth_limit`] says whether it
    /// applies.
    pub bandwidth_limit: Option<Arc<BandwidthLimit>>,
    /// Metrics of requests that fail before a deployment is chosen.
    pub metrics: EndpointMetrics,
}

/// A deployment, prepared for requests.
#[derive(Debug)]
pub struct DeploymentEntry {
    /// The deployment as in its document.
    pub spec: endpoint::Deployment,
    /// Slots and queue of the deployment.
    pub slots: Arc<DeploymentSlots>,
    /// State of the autoscaling; `None` where the number of replicas is fixed.
    pub scaling: Option<Arc<Scaling>>,
    /// Metrics of the deployment.
    pub metrics: Arc<DeploymentMetrics>,
    /// The name of the deployment as a value of the `azureml-model-deployment` header.
    pub name_header: HeaderValue,
    /// TLS towards the replicas, where the document configures it.
    pub tls: Option<Connector>,
    /// The `host` header sent to the model, where the document configures one.
    pub host_header: Option<HeaderValue>,
    /// The parsed `scoringPath`.
    pub scoring_path: PathAndQuery,
    /// The parsed `swaggerPath`.
    pub swagger_path: PathAndQuery,
}

impl Default for RoutingTable {
    fn default() -> Self {
        Self { shards: vec![TableShard::default(); SHARD_COUNT] }
    }
}

impl RoutingTable {
    /// Creates a table of these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Arc<EndpointEntry>>) -> Self {
        Self::default().with_changes(endpoints.into_iter().map(|endpoint| (endpoint.spec.name.clone(), Some(endpoint))))
    }

    /// Returns a table with these changes; `None` removes an endpoint.
    #[must_use]
    pub fn with_changes(&self, changes: impl IntoIterator<Item = (Name, Option<Arc<EndpointEntry>>)>) -> Self {
        let mut parts = self.shards.clone();
        for (name, endpoint) in changes {
            // Each shard is copied once, however many of its names change.
            let part = Arc::make_mut(&mut parts[shard_index(name.key())]);
            match (search_shard(part, name.key()), endpoint) {
                (Ok(place), Some(endpoint)) => part[place] = endpoint,
                (Ok(place), None) => drop(part.remove(place)),
                (Err(place), Some(endpoint)) => part.insert(place, endpoint),
                (Err(_), None) => {}
            }
        }
        Self { shards: parts }
    }

    /// Returns the endpoint with this lower-case name.
    pub fn endpoint(&self, key: &str) -> Option<&Arc<EndpointEntry>> {
        let part = &self.shards[shard_index(key)];
        search_shard(part, key).ok().map(|place| &part[place])
    }

    /// Returns every endpoint, in no particular order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<EndpointEntry>> {
        self.shards.iter().flat_map(|part| part.iter())
    }
}

/// Returns the position of a name in its shard, or where it would be inserted.
fn search_shard(part: &[Arc<EndpointEntry>], key: &str) -> Result<usize, usize> {
    part.binary_search_by(|endpoint| endpoint.spec.name.key().cmp(key))
}

/// Returns the shard of a name by its FNV-1a hash. The operator chooses the names, so nobody fills one shard on
/// purpose.
fn shard_index(key: &str) -> usize {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = key.bytes().fold(0x811c_9dc5, step);
    (hash ^ (hash >> 16)) as usize % SHARD_COUNT
}

impl EndpointEntry {
    /// Returns the bandwidth limit that applies to new bodies; `None` if they are not limited.
    pub fn active_bandwidth_limit(&self) -> Option<&Arc<BandwidthLimit>> {
        self.bandwidth_limit.as_ref().filter(|_| self.spec.bandwidth_bytes_per_second.is_some())
    }

    /// Returns whether the TLS configurations of all deployments were made from the same input as these.
    pub fn has_same_tls(&self, tls: &[(Name, Connector)]) -> bool {
        let now = self.deployments.iter().filter_map(|of| Some((&of.spec.name, of.tls.as_ref()?)));
        now.eq(tls.iter().map(|(name, connector)| (name, connector)))
    }

    /// Returns the deployment with this name, compared without case.
    pub fn deployment(&self, name: &str) -> Option<&Arc<DeploymentEntry>> {
        self.deployments.iter().find(|deployment| deployment.spec.name.matches(name))
    }
}
