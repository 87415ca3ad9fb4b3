//! The protocol of a fleet of routers: slot leases. See `docs/design/fleet.md`.
//!
//! One router of the fleet, the coordinator, keeps the [`ledger`]: every slot of every replica is free, leased to a
//! member, or in quarantine. Each router, including the coordinator, is a [`member`], which uses its leased slots
//! without asking.
//!
//! All of this is state machines without clock, socket or randomness: each call says what happened and when, and
//! messages to send are collected. Times of two routers are never compared: messages contain ages and heartbeat
//! numbers.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::policy::scale::tally::LoadSums;

pub mod leader_election;
pub mod ledger;
pub mod member;

/// The identity of a router for the life of its process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId {
    /// The name of the router in its fleet.
    pub name: Arc<str>,
    /// Distinguishes processes that had the name one after the other. A later process has a higher number, and proves
    /// that earlier ones have ended. Two processes that run at the same time must not have the same name.
    pub incarnation: u64,
}

/// The number of a coordinator's term. Later terms have higher numbers, and no two coordinators have the same one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub u64);

/// The name of a deployment, which is the same at every router.
pub type DeploymentId = Arc<str>;

/// Identifies a replica from its start to its end; the same at every router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FleetReplicaKey {
    /// The deployment of the replica.
    pub deployment: DeploymentId,
    /// Unique within the deployment over time: the UID of a pod, or an address with the number of its start.
    pub name: Arc<str>,
}

/// Returns the flow-control window of a member that holds `held` of `slots` slots: the largest number of granted slots
/// that it has not acknowledged. It acknowledges after half of them.
fn flow_control_window(slots: u32, held: u32) -> u32 {
    (slots / 8).max(held / 2).max(1)
}

/// A number of slots of one replica.
pub type ReplicaSlots = (FleetReplicaKey, u32);

/// Timing of the protocol, the same at every router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetTiming {
    /// How long a member may use slots after it sent the last heartbeat that was answered.
    pub lease_duration: Duration,
    /// The interval between heartbeats of a member.
    pub heartbeat_interval: Duration,
    /// The interval between reports of changes that nobody waits for.
    pub report_interval: Duration,
    /// How long a slot stays idle before it is returned; up to one and a half times this.
    pub idle_slot_timeout: Duration,
    /// The age by which a request at another router must exceed those here to get a slot from here; eight round trips
    /// to the coordinator, if that is more.
    pub steal_threshold: Duration,
    /// How long a coordinator that cannot renew its term may rely on the confirmation of its members, see
    /// [`ledger::Ledger::confirmed_at`]; zero if it never does.
    pub confirmation_validity: Duration,
    /// The largest error of a router's clock, as a fraction: 0.1 is 10 % too fast or too slow.
    pub max_clock_drift: f64,
}

/// For a model checker, which has to tell states apart.
impl Hash for FleetTiming {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (
            self.lease_duration,
            self.heartbeat_interval,
            self.report_interval,
            self.idle_slot_timeout,
            self.steal_threshold,
            self.confirmation_validity,
        )
            .hash(state);
        self.max_clock_drift.to_bits().hash(state);
    }
}

impl Default for FleetTiming {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(1),
            report_interval: Duration::from_millis(100),
            idle_slot_timeout: Duration::from_millis(100),
            steal_threshold: Duration::from_millis(5),
            confirmation_validity: Duration::from_secs(3),
            max_clock_drift: 0.1,
        }
    }
}

impl FleetTiming {
    /// Returns the time that must pass on any router's clock so that `time` has passed on every other router's.
    pub fn with_drift_margin(&self, time: Duration) -> Duration {
        time.mul_f64((1.0 + self.max_clock_drift) / (1.0 - self.max_clock_drift))
    }
}

/// Messages of a member. Within one session they arrive in order, or the session has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub enum ToCoordinator {
    /// Begins a session with everything that the member holds. Nothing that it sent before counts.
    Hello(Hello),
    /// Reports changes.
    Report(MemberReport),
    /// The member holds nothing and will not come back.
    Bye {
        /// The coordinator's term.
        term: Term,
        /// The member's session.
        session: u64,
    },
}

/// The first message of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct Hello {
    /// The highest term that the member has seen.
    pub term: Term,
    /// The number of the session, higher than that of every earlier session of the member.
    pub session: u64,
    /// The number of a heartbeat.
    pub heartbeat: u64,
    /// Everything that the member holds, and what is in flight.
    pub claims: Vec<SlotClaim>,
    /// Replicas that the member cannot use.
    pub unusable: Vec<FleetReplicaKey>,
    /// Queued requests, by deployment.
    pub demand: Vec<SlotDemand>,
    /// The load of every deployment.
    pub loads: Vec<(DeploymentId, MemberLoad)>,
}

/// The slots of one replica that a member claims when a session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct SlotClaim {
    /// The replica.
    pub replica: FleetReplicaKey,
    /// Slots held under a lease: all of them while the lease is valid, otherwise those that have been busy since it
    /// was.
    pub leased_slots: u32,
    /// The larger of `leased_slots` and the number of requests in flight, which in fallback may have no lease.
    pub taken_slots: u32,
}

/// A later message of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct MemberReport {
    /// The coordinator's term.
    pub term: Term,
    /// The member's session.
    pub session: u64,
    /// A heartbeat, which asks for the lease to be renewed.
    pub heartbeat: Option<Heartbeat>,
    /// Slots that are returned to the coordinator.
    pub returned: Vec<ReplicaSlots>,
    /// Replicas that the member cannot use any more (`true`), or can use again (`false`).
    pub unusable_changes: Vec<(FleetReplicaKey, bool)>,
    /// Queued requests of deployments where they have changed.
    pub demand: Vec<SlotDemand>,
    /// The load of deployments where it has changed, apart from elapsed time.
    pub loads: Vec<(DeploymentId, MemberLoad)>,
}

/// A heartbeat of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Heartbeat {
    /// The number of the heartbeat, which counts up.
    pub number: u64,
    /// The last heartbeat of this session that was answered. It proves that the member was alive after that answer.
    pub last_answered: u64,
}

/// Queued requests of a member for slots of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct SlotDemand {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The number of queued requests.
    pub queued: u32,
    /// The age of the oldest of them; zero if there are none.
    pub oldest_age: Duration,
    /// The age of the newest of them; zero if there are none.
    pub newest_age: Duration,
    /// The number of slots of the deployment granted in this session that have arrived. If the coordinator has granted
    /// more, these requests do not know of the rest yet.
    pub grants_seen: u64,
}

/// The load of a deployment at a member, which the autoscaler needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, Hash)]
pub struct MemberLoad {
    /// The number of requests in flight.
    pub in_flight: u32,
    /// The number of queued requests.
    pub queued: u32,
    /// Sums of the load since the router started.
    pub sums: LoadSums,
}

impl MemberLoad {
    /// Returns whether durations keep adding up although nothing else happens.
    fn is_active(&self) -> bool {
        self.in_flight + self.queued > 0
    }

    fn has_changed_since(&self, other: &Self) -> bool {
        let sums = LoadSums { time: other.sums.time, ..self.sums };
        *other != Self { sums, ..*self }
    }
}

/// Messages of a coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub enum ToMember {
    /// Answers a [`Hello`]: the member holds what it claimed.
    Welcome {
        /// The coordinator's term.
        term: Term,
        /// The member's session.
        session: u64,
        /// The heartbeat that is answered.
        heartbeat: u64,
        /// For replicas of which the member may not keep all claimed slots, how many it may keep; see
        /// [`CoordinatorUpdate::keep_limits`].
        keep_limits: Vec<ReplicaSlots>,
    },
    /// Reports changes.
    Update(CoordinatorUpdate),
    /// The sender is not a coordinator, or the session is over: the member should look for the coordinator and begin
    /// another session.
    Refused {
        /// The highest term that the sender has seen.
        term: Term,
        /// The member's session.
        session: u64,
    },
}

/// A later message to a member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct CoordinatorUpdate {
    /// The coordinator's term.
    pub term: Term,
    /// The member's session.
    pub session: u64,
    /// The heartbeat that is answered: the lease is renewed.
    pub heartbeat: Option<u64>,
    /// Slots that are granted to the member.
    pub granted: Vec<ReplicaSlots>,
    /// How many slots of a replica the member may keep. The others are returned as they become free.
    pub keep_limits: Vec<ReplicaSlots>,
    /// Queued requests at other members, where they have changed.
    pub remote_demand: Vec<RemoteDemand>,
}

/// Queued requests at other members for slots of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct RemoteDemand {
    /// The deployment.
    pub deployment: DeploymentId,
    /// How many slots these requests would take; 0 if there are no such requests any more.
    pub wanted_slots: u32,
    /// The age of the oldest of them.
    pub oldest_age: Duration,
}

/// A snapshot of a queue, on the clock of the router that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QueueSnapshot {
    /// The number of queued requests; not zero.
    pub length: u32,
    /// When the oldest of them arrived.
    pub oldest: Instant,
    /// When the newest of them arrived.
    pub newest: Instant,
}

impl QueueSnapshot {
    /// Estimates when the request arrived that is first after `served` of them, as if they had arrived evenly.
    pub fn estimate_arrival_after(&self, served: u32) -> Instant {
        let span = self.newest.saturating_duration_since(self.oldest);
        self.oldest + span.mul_f64(f64::from(served.min(self.length)) / f64::from(self.length.max(1)))
    }
}

#[cfg(test)]
mod tests;
