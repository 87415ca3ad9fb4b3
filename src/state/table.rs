//! The routing table: every endpoint by name, ready to be used by a request.
//!
//! Immutable once published; a change publishes a new one that shares what has not changed. Slots and counters outlive
//! their table.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::PathAndQuery;

use super::key_sets::KeySetOf;
use super::metrics::{DeploymentMetrics, EndpointMetrics};
use super::scaling::Scaling;
use super::slots::Slots;
use super::tls::Connector;
use crate::model::endpoint;
use crate::model::name::Name;
use crate::policy::access::Access;
use crate::policy::split::Split;

/// Every endpoint, by name in lower case.
#[derive(Debug, Default)]
pub struct Table {
    endpoints: HashMap<Name, Arc<Endpoint>>,
}

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

impl Table {
    /// A table of these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Arc<Endpoint>>) -> Self {
        Self { endpoints: endpoints.into_iter().map(|endpoint| (endpoint.spec.name.clone(), endpoint)).collect() }
    }

    /// The endpoint of that name, given in lower case.
    pub fn endpoint(&self, key: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(key)
    }

    /// Every endpoint, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }
}

impl Endpoint {
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
