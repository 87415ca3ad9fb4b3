//! The metrics of a fleet, as one router sees it.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use crate::policy::fleet::ledger::SlotCounts;
use crate::state::membership::fallback_counter;
use crate::state::metrics::{FamilyDescription, FamilyRegistrar};

/// Metrics of the fleet that this router is a member of.
pub(super) struct FleetMetrics {
    pub(super) members: IntGauge,
    pub(super) coordinator: IntGauge,
    pub(super) term: IntGauge,
    pub(super) slots_granted: IntCounter,
    slots: IntGaugeVec,
}

impl FleetMetrics {
    /// Registers the metrics, with the counter of requests in fallback that [`crate::state::membership`] owns.
    ///
    /// # Errors
    /// Fails only if two families have the same name.
    pub(super) fn new(registry: &Registry, fallback_requests: &IntCounter) -> prometheus::Result<Self> {
        Self::register(&mut FamilyRegistrar::with_registry(registry.clone()), fallback_requests)
    }

    fn register(families: &mut FamilyRegistrar, fallback_requests: &IntCounter) -> prometheus::Result<Self> {
        families.register("counter", Ok(fallback_requests.clone()))?;
        Ok(Self {
            members: families.gauge("fleet_members", "Routers of the fleet that may hold slots, this one included.")?,
            coordinator: families.gauge("fleet_coordinator", "Whether this router is the coordinator: 1 or 0.")?,
            term: families
                .gauge("fleet_term", "Number of the coordinator's term; it grows with each new coordinator.")?,
            slots_granted: families.counter(
                "fleet_slots_granted_total",
                "Slots that this router has granted to members as coordinator.",
            )?,
            slots: families.gauge_vec(
                "fleet_slots",
                "Slots of all replicas by state, at the coordinator; zero at other routers.",
                &["state"],
            )?,
        })
    }

    pub(super) fn set_slots(&self, slots: SlotCounts) {
        for (state, count) in [("free", slots.free), ("leased", slots.leased), ("quarantined", slots.quarantined)] {
            self.slots.with_label_values(&[state]).set(count.into());
        }
    }
}

/// Describes the families that a router of a fleet registers.
///
/// # Errors
/// Fails only if two families have the same name.
pub fn describe_fleet_metrics() -> prometheus::Result<Vec<FamilyDescription>> {
    let mut families = FamilyRegistrar::new()?;
    FleetMetrics::register(&mut families, &fallback_counter()?)?;
    Ok(families.descriptions)
}
