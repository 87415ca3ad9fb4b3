//! The scale target of deployments whose replicas are the pods of a workload. It uses the `scale` subresource, so that
//! every kind that has one works.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams};
use serde_json::json;

use super::super::autoscaler::{self, ReplicaCounts};
use super::objects::{Pod, RawPod, RawWorkload};
use super::pods::WorkloadKey;
use super::{DeploymentKey, FIELD_MANAGER, error_text, group_kinds, watch};
use crate::state::control_plane_status::ControlPlaneStatus;
use crate::state::slots::DeploymentSlots;

/// The annotation by which ReplicaSets choose the pods to delete first: those with the lowest cost.
const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The number of pods that are patched concurrently.
const MAX_CONCURRENT_PATCHES: usize = 8;

/// The scale target of one deployment with a workload.
pub struct WorkloadTarget {
    client: Client,
    workload: Arc<WorkloadKey>,
    /// The API version in which the kind is discovered.
    api_version: String,
    deployment_key: DeploymentKey,
    slots: Arc<DeploymentSlots>,
    status: Arc<ControlPlaneStatus>,
    /// The resource of the kind, once it is discovered.
    resource: Option<ApiResource>,
}

impl WorkloadTarget {
    pub(super) fn new(
        client: Client,
        (workload, api_version): (Arc<WorkloadKey>, String),
        deployment_key: DeploymentKey,
        slots: Arc<DeploymentSlots>,
        status: Arc<ControlPlaneStatus>,
    ) -> Self {
        Self { client, workload, api_version, deployment_key, slots, status, resource: None }
    }

    async fn resource(&mut self) -> Result<ApiResource, kube::Error> {
        if let Some(resource) = &self.resource {
            return Ok(resource.clone());
        }
        let (resource, _) =
            group_kinds::discover_resource(&self.client, &self.api_version, &self.workload.kind).await?;
        Ok(self.resource.insert(resource).clone())
    }

    async fn set_replicas(&mut self, count: u32) -> Result<(), kube::Error> {
        let resource = self.resource().await?;
        let key = &self.workload.key;
        let api: Api<RawWorkload> = watch::api_in_scope(&self.client, &resource, &key.namespace);
        let now = api.get_scale(&key.name).await?;
        if now.spec.and_then(|spec| spec.replicas).is_some_and(|replicas| i64::from(replicas) > i64::from(count))
            && let Some(selector) = now.status.and_then(|status| status.selector)
            && let Err(error) = self.write_deletion_costs(&selector).await
        {
            // A busy pod may be deleted instead of an idle one; it still finishes its requests.
            tracing::debug!(workload = %key.name, %error, "failed to write pod deletion costs");
        }
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_scale(&key.name, &params, &Patch::Merge(json!({"spec": {"replicas": count}}))).await?;
        Ok(())
    }

    /// Writes the deletion costs of all pods, so that the idlest pods are deleted first.
    async fn write_deletion_costs(&self, selector: &str) -> Result<(), kube::Error> {
        let pods: Api<RawPod> =
            watch::api_in_scope(&self.client, &watch::api_resource("v1", "Pod", "pods"), &self.workload.key.namespace);
        let replicas = self.slots.replicas();
        let address = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
        let busy: HashMap<_, u32> =
            replicas.iter().filter_map(|replica| Some((address(&replica.address)?, replica.busy))).collect();
        let costs = pods.list(&ListParams::default().labels(selector)).await?.items.into_iter().filter_map(|raw| {
            let name = raw.name_any();
            let written = raw.annotations().get(DELETION_COST_ANNOTATION).cloned();
            let ip = Pod::from_raw(raw).ip;
            let cost = ip.and_then(|ip| busy.get(&ip)).copied().unwrap_or_default().to_string();
            // A pod without the annotation has the cost 0.
            (written.as_deref().unwrap_or("0") != cost).then_some((name, cost))
        });
        let write = |(name, cost): (String, String)| {
            let (pods, patch) =
                (&pods, Patch::Merge(json!({"metadata": {"annotations": {DELETION_COST_ANNOTATION: cost}}})));
            async move { pods.patch_metadata(&name, &PatchParams::default(), &patch).await.map(drop) }
        };
        let results: Vec<_> = stream::iter(costs).map(write).buffer_unordered(MAX_CONCURRENT_PATCHES).collect().await;
        results.into_iter().collect()
    }
}

impl autoscaler::ScaleTarget for WorkloadTarget {
    fn replica_counts(&self) -> ReplicaCounts {
        let starting =
            self.status.pending_replicas(self.deployment_key.0.as_str(), self.deployment_key.1.as_str()).count;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        ReplicaCounts { ready: count(self.slots.occupancy().ready), starting: count(starting) }
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let WorkloadKey { kind, key, .. } = &*self.workload.clone();
        self.set_replicas(count)
            .await
            .map_err(|error| format!("{kind} {}/{}: {}", key.namespace, key.name, error_text::describe_error(&error)))
    }
}
