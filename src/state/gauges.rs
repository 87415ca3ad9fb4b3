//! Gauges that are read off the slots when somebody looks, so that they can neither drift nor outlive an endpoint.

use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts};

use super::control_plane_status::ControlPlaneStatus;
use super::metrics::{DEPLOYMENT_LABELS, FamilyDescription, FamilyRegistrar};
use super::routing_table::RoutingTable;

/// The families that are read off the slots.
struct SlotGauges {
    families: FamilyRegistrar,
    requests_in_flight: IntGaugeVec,
    queue_length: IntGaugeVec,
    slots: IntGaugeVec,
    replicas: IntGaugeVec,
    autoscaler_desired_replicas: IntGaugeVec,
    autoscaler_utilization_ratio: GaugeVec,
}

impl SlotGauges {
    fn new() -> prometheus::Result<Self> {
        let mut families = FamilyRegistrar::new()?;
        let [endpoint, deployment] = DEPLOYMENT_LABELS;
        let by_state = [endpoint, deployment, "state"];
        let utilization = Opts::new(
            "autoscaler_utilization_ratio",
            "Requests in flight and queued, divided by what ready replicas can take at a time.",
        );
        Ok(Self {
            requests_in_flight: families.gauge_vec(
                "requests_in_flight",
                "Requests that were accepted for a deployment and are not finished, those in the queue included.",
                &DEPLOYMENT_LABELS,
            )?,
            queue_length: families.gauge_vec(
                "queue_length",
                "Requests in the queue, waiting for a slot.",
                &DEPLOYMENT_LABELS,
            )?,
            slots: families.gauge_vec("slots", "Slots of replicas, by state.", &by_state)?,
            replicas: families.gauge_vec("replicas", "Replicas of a deployment, by state.", &by_state)?,
            autoscaler_desired_replicas: families.gauge_vec(
                "autoscaler_desired_replicas",
                "Number of replicas that the autoscaler asks for.",
                &DEPLOYMENT_LABELS,
            )?,
            autoscaler_utilization_ratio: families.register("gauge", GaugeVec::new(utilization, &DEPLOYMENT_LABELS))?,
            families,
        })
    }
}

/// Describes the families that [`collect_gauges`] returns.
///
/// # Errors
/// Only if two families had the same name.
pub fn describe_gauges() -> prometheus::Result<Vec<FamilyDescription>> {
    Ok(SlotGauges::new()?.families.descriptions)
}

/// The gauges of a table at this moment.
///
/// # Errors
/// Only if two families had the same name.
pub fn collect_gauges(table: &RoutingTable, status: &ControlPlaneStatus) -> prometheus::Result<Vec<MetricFamily>> {
    let gauges = SlotGauges::new()?;
    for endpoint in table.endpoints() {
        for deployment in &endpoint.deployments {
            let names = [endpoint.spec.name.as_str(), deployment.spec.name.as_str()];
            let now = deployment.slots.occupancy();
            let set = |family: &IntGaugeVec, state: &str, value: usize| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.with_label_values(&[names[0], names[1], state]).set(value);
            };
            if let Some(scaling) = &deployment.scaling {
                let view = scaling.snapshot();
                gauges.autoscaler_desired_replicas.with_label_values(&names).set(view.desired.into());
                let ratio = view.latest_decision.and_then(|decision| decision.utilization);
                gauges.autoscaler_utilization_ratio.with_label_values(&names).set(ratio.unwrap_or(0.0));
            }
            gauges
                .requests_in_flight
                .with_label_values(&names)
                .set((now.busy + now.busy_draining + now.waiting) as i64);
            gauges.queue_length.with_label_values(&names).set(now.waiting as i64);
            for (state, value) in [("free", now.free), ("busy", now.busy), ("draining", now.busy_draining)] {
                set(&gauges.slots, state, value);
            }
            for (state, value) in [
                ("ready", now.ready),
                ("pending", status.pending_replicas(names[0], names[1]).count),
                ("ejected", now.ejected),
                ("draining", now.draining),
            ] {
                set(&gauges.replicas, state, value);
            }
        }
    }
    Ok(gauges.families.registry.gather())
}
