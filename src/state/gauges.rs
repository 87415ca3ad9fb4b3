//! Gauges that are read off the slots when somebody looks, so that they can neither drift nor outlive an endpoint.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts};

use super::status::Status;
use super::table::Table;

/// The gauges of a table at this moment, without the common prefix.
///
/// # Errors
/// Only if a family's name were not a metric's name.
pub fn collect(table: &Table, status: &Status) -> prometheus::Result<Vec<MetricFamily>> {
    let gauge = |name: &str, help: &str, labels: &[&str]| {
        IntGaugeVec::new(Opts::new(name, help).namespace("inference_router"), labels)
    };
    let by_deployment = ["endpoint", "deployment"];
    let by_state = ["endpoint", "deployment", "state"];
    let in_flight = gauge("requests_in_flight", "Requests sent to a replica or waiting for one.", &by_deployment)?;
    let queue = gauge("queue_length", "Requests waiting for a slot.", &by_deployment)?;
    let slots = gauge("slots", "Slots, by state.", &by_state)?;
    let replicas = gauge("replicas", "Replicas, by state.", &by_state)?;
    let desired = gauge("autoscaler_desired_replicas", "Replicas that the autoscaler asks for.", &by_deployment)?;
    let utilization = GaugeVec::new(
        Opts::new("autoscaler_utilization_ratio", "Requests in flight and waiting, of what ready replicas can take.")
            .namespace("inference_router"),
        &by_deployment,
    )?;
    for endpoint in table.endpoints() {
        for deployment in &endpoint.deployments {
            let names = [endpoint.spec.name.as_str(), deployment.spec.name.as_str()];
            let now = deployment.slots.occupancy();
            let set = |family: &IntGaugeVec, state: &str, value: usize| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                family.with_label_values(&[names[0], names[1], state]).set(value);
            };
            if let Some(scaling) = &deployment.scaling {
                let view = scaling.view();
                desired.with_label_values(&names).set(view.desired.into());
                let ratio = view.latest.and_then(|decision| decision.utilization);
                utilization.with_label_values(&names).set(ratio.unwrap_or(0.0));
            }
            in_flight.with_label_values(&names).set((now.busy + now.busy_draining + now.waiting) as i64);
            queue.with_label_values(&names).set(now.waiting as i64);
            for (state, value) in [("free", now.free), ("busy", now.busy), ("draining", now.busy_draining)] {
                set(&slots, state, value);
            }
            for (state, value) in [
                ("ready", now.ready),
                ("pending", status.pending(names[0], names[1]).count),
                ("set_aside", now.set_aside),
                ("draining", now.draining),
            ] {
                set(&replicas, state, value);
            }
        }
    }
    let counts = [in_flight, queue, slots, replicas, desired];
    Ok(counts.iter().flat_map(Collector::collect).chain(utilization.collect()).collect())
}
