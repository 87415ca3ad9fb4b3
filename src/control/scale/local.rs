//! Local processes as what is scaled.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{Scaled, Supply, Target};
use crate::model::name::Name;
use crate::state::slots::Slots;
use crate::state::status::Status;

/// Another number of processes for one deployment.
#[derive(Debug)]
pub struct Order {
    /// The endpoint.
    pub endpoint: Name,
    /// One of its deployments.
    pub deployment: Name,
    /// How many there should be.
    pub count: u32,
    /// Told when that is noted.
    pub noted: oneshot::Sender<()>,
}

/// The processes of one deployment.
#[derive(Debug)]
pub struct Local {
    endpoint: Name,
    deployment: Name,
    slots: Arc<Slots>,
    status: Arc<Status>,
    orders: mpsc::Sender<Order>,
}

impl Local {
    /// Whoever receives `orders` has the processes started and stopped.
    pub fn new(of: &Scaled, status: Arc<Status>, orders: mpsc::Sender<Order>) -> Self {
        let Scaled { endpoint, deployment, slots, .. } = of.clone();
        Self { endpoint, deployment, slots, status, orders }
    }
}

impl Target for Local {
    fn replicas(&self) -> Supply {
        let starting = self.status.pending(self.endpoint.as_str(), self.deployment.as_str()).count;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Supply { ready: count(self.slots.occupancy().ready), starting: count(starting) }
    }

    async fn scale_to(&mut self, count: u32) -> Result<(), String> {
        let (noted, was_noted) = oneshot::channel();
        let order = Order { endpoint: self.endpoint.clone(), deployment: self.deployment.clone(), count, noted };
        let gone = |_| "the router is stopping".to_owned();
        self.orders.send(order).await.map_err(|_| gone(()))?;
        was_noted.await.map_err(|_| gone(()))
    }
}
