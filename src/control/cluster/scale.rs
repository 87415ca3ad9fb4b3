//! Workloads as what is scaled, through their `scale` subresource, so that anything scalable works.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams};
use serde_json::json;

use super::super::scale::{self, Supply};
use super::objects::{Pod, RawPod, RawWorkload};
use super::pods::WorkloadKey;
use super::{MANAGER, User, kinds, watch, words};
use crate::state::slots::Slots;
use crate::state::status::Status;

/// By which ReplicaSets choose the pods that go first: the cheapest.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Pods that are written to at the same time.
const AT_ONCE: usize = 8;

/// The workload of one deployment.
pub struct WorkloadTarget {
    client: Client,
    workload: Arc<WorkloadKey>,
    /// The version that its kind is asked after in.
    api_version: String,
    user: User,
    slots: Arc<Slots>,
    status: Arc<Status>,
    /// What the API server calls its kind, once that is known.
    resource: Option<ApiResource>,
}

impl WorkloadTarget {
    pub(super) fn new(
        client: Client,
        (workload, api_version): (Arc<WorkloadKey>, String),
        user: User,
        slots: Arc<Slots>,
        status: Arc<Status>,
    ) -> Self {
        Self { client, workload, api_version, user, slots, status, resource: None }
    }

    async fn resource(&mut self) -> Result<ApiResource, kube::Error> {
        if let Some(resource) = &self.resource {
            return Ok(resource.clone());
        }
        let (resource, _) = kinds::resource(&self.client, &self.api_version, &self.workload.kind).await?;
        Ok(self.resource.insert(resource).clone())
    }

    async fn ask(&mut self, count: u32) -> Result<(), kube::Error> {
        let resource = self.resource().await?;
        let key = &self.workload.key;
        let api: Api<RawWorkload> = watch::api(&self.client, &resource, &key.namespace);
        let now = api.get_scale(&key.name).await?;
        if now.spec.and_then(|spec| spec.replicas).is_some_and(|replicas| i64::from(replicas) > i64::from(count))
            && let Some(selector) = now.status.and_then(|status| status.selector)
            && let Err(error) = self.price(&selector).await
        {
            // The wrong pod may go; it finishes what it has all the same.
            tracing::debug!(workload = %key.name, %error, "the costs of deleting pods cannot be written");
        }
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_scale(&key.name, &params, &Patch::Merge(json!({"spec": {"replicas": count}}))).await?;
        Ok(())
    }

    /// Has the idlest pods go first.
    async fn price(&self, selector: &str) -> Result<(), kube::Error> {
        let pods: Api<RawPod> =
            watch::api(&self.client, &watch::resource("v1", "Pod", "pods"), &self.workload.key.namespace);
        let replicas = self.slots.replicas();
        let address = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
        let busy: HashMap<_, u32> =
            replicas.iter().filter_map(|replica| Some((address(&replica.address)?, replica.busy))).collect();
        let costs = pods.list(&ListParams::default().labels(selector)).await?.items.into_iter().filter_map(|raw| {
            let name = raw.name_any();
            let written = raw.annotations().get(DELETION_COST).cloned();
            let ip = Pod::of(raw).ip;
            let cost = ip.and_then(|ip| busy.get(&ip)).copied().unwrap_or_default().to_string();
            // None is 0.
            (written.as_deref().unwrap_or("0") != cost).then_some((name, cost))
        });
        let write = |(name, cost): (String, String)| {
            let (pods, patch) = (&pods, Patch::Merge(json!({"metadata": {"annotations": {DELETION_COST: cost}}})));
            async move { pods.patch_metadata(&name, &PatchParams::default(), &patch).await.map(drop) }
        };
        let results: Vec<_> = stream::iter(costs).map(write).buffer_unordered(AT_ONCE).collect().await;
        results.into_iter().collect()
    }
}

impl scale::Target for WorkloadTarget {
    fn replicas(&self) -> Supply {
        let starting = self.status.pending(self.user.0.as_str(), self.user.1.as_str()).count;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Supply { ready: count(self.slots.occupancy().ready), starting: count(starting) }
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let WorkloadKey { kind, key, .. } = &*self.workload.clone();
        self.ask(count).await.map_err(|error| format!("{kind} {}/{}: {}", key.namespace, key.name, words::of(&error)))
    }
}
