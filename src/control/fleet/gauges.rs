//! The group in metrics.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use crate::policy::fleet::ledger::Slots;

/// Figures of the group, as this router sees it.
pub(super) struct Gauges {
    pub(super) members: IntGauge,
    pub(super) coordinator: IntGauge,
    pub(super) epoch: IntGauge,
    pub(super) moves: IntCounter,
    leases: IntGaugeVec,
}

impl Gauges {
    /// Registers them.
    ///
    /// # Errors
    /// Only if two families had the same name.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let moves = IntCounter::new("fleet_slot_moves_total", "Slots that this router has granted as coordinator.")?;
        registry.register(Box::new(moves.clone()))?;
        let opts = Opts::new("fleet_slot_leases", "Where slots are; zero at routers that do not coordinate.");
        let leases = IntGaugeVec::new(opts, &["state"])?;
        registry.register(Box::new(leases.clone()))?;
        Ok(Self {
            members: gauge("fleet_members", "Routers that may hold slots, this one included.")?,
            coordinator: gauge("fleet_coordinator", "1 where this router coordinates its group.")?,
            epoch: gauge("fleet_epoch", "The coordinator's term: counts changes of it.")?,
            moves,
            leases,
        })
    }

    pub(super) fn set_slots(&self, slots: Slots) {
        for (state, count) in [("free", slots.free), ("leased", slots.leased), ("quarantined", slots.quarantined)] {
            self.leases.with_label_values(&[state]).set(count.into());
        }
    }
}
