//! Several routers as one: slot leases. See `docs/fleet.md`.
//!
//! One router of the group, the coordinator, keeps the [`ledger`]: every slot of every replica is free, leased to a member,
//! or in quarantine. Each router, the coordinator too, is a [`member`]: it spends the slots it has leased without asking.
//!
//! State machines without a clock, a socket or chance: each call says what happened and when, what is to be sent is
//! collected. Times of two routers are never compared: what crosses a stream is an age, or the number of a beat.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::policy::scale::tally::Sums;

pub mod election;
pub mod ledger;
pub mod member;

/// A router, for as long as its process lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId {
    /// The name that its group knows it by.
    pub name: Arc<str>,
    /// Distinguishes the processes that had the name one after the other: a later one has more, and proves that those before
    /// have ended. Two that run at the same time must not have the same name.
    pub incarnation: u64,
}

/// The term of a coordinator: higher is later, and no two coordinators ever have the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// What a deployment is called, the same at every router.
pub type Deployment = Arc<str>;

/// A model server, from when it is started to when it is gone; the same at every router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaKey {
    /// What it belongs to.
    pub deployment: Deployment,
    /// Unique in the deployment over time: a pod's UID, an address with the number of the start.
    pub name: Arc<str>,
}

/// How many slots a member may be granted without saying that it knows of them, where there are `slots` and it holds `held`;
/// and half as many it knows of without saying so.
fn window(slots: u32, held: u32) -> u32 {
    (slots / 8).max(held / 2).max(1)
}

/// Slots of one replica.
pub type Lot = (ReplicaKey, u32);

/// The times of the protocol, the same at every router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How long a member may spend slots after it has sent the last beat that was answered.
    pub lease: Duration,
    /// Between two beats of a member.
    pub heartbeat: Duration,
    /// Between two reports of changes that nobody waits for.
    pub report: Duration,
    /// How long a slot stays idle before it is returned, up to one and a half times this.
    pub idle: Duration,
    /// How much older than those at home a request at another router must be to get a slot from here; eight round trips to
    /// the coordinator, if that is more.
    pub patience: Duration,
    /// How long a coordinator that cannot renew its term may go by the word of its members, see [`ledger::Ledger::vouched`];
    /// zero where it never does.
    pub vouch: Duration,
    /// How wrong a router's clock may run at most, as a share: 0.1 is 10 % too fast or too slow.
    pub drift: f64,
}

/// So that a model checker can tell states apart.
impl Hash for Settings {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.lease, self.heartbeat, self.report, self.idle, self.patience, self.vouch).hash(state);
        self.drift.to_bits().hash(state);
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            report: Duration::from_millis(100),
            idle: Duration::from_millis(100),
            patience: Duration::from_millis(5),
            vouch: Duration::from_secs(3),
            drift: 0.1,
        }
    }
}

impl Settings {
    /// What has to pass on any router's clock so that `time` has surely passed on every other's.
    pub fn surely(&self, time: Duration) -> Duration {
        time.mul_f64((1.0 + self.drift) / (1.0 - self.drift))
    }
}

/// What a member says. Within one session messages arrive in order, or the session has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub enum ToCoordinator {
    /// Begins a session: all that the member holds, and nothing else it has said before counts.
    Hello(Hello),
    /// What has changed.
    Report(Report),
    /// The member holds nothing and will not come back.
    Bye {
        /// Of the coordinator.
        epoch: Epoch,
        /// Of the member.
        session: u64,
    },
}

/// The first message of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct Hello {
    /// The highest that the member has seen.
    pub epoch: Epoch,
    /// Higher than of every session the member had before.
    pub session: u64,
    /// Counts as a beat.
    pub beat: u64,
    /// All that the member holds, and what is in flight.
    pub claims: Vec<Claim>,
    /// Replicas the member cannot use.
    pub barred: Vec<ReplicaKey>,
    /// Where requests wait.
    pub demand: Vec<Demand>,
    /// What goes on there, of every deployment.
    pub loads: Vec<(Deployment, Load)>,
}

/// What a member has of one replica when a session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Claim {
    /// Of which replica.
    pub replica: ReplicaKey,
    /// Slots by the right of a lease: those held while it is valid, and those busy since it was.
    pub slots: u32,
    /// These, or, if it is more, all requests in flight: in fallback they may have no right to it.
    pub out: u32,
}

/// A later message of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct Report {
    /// Of the coordinator.
    pub epoch: Epoch,
    /// Of the member.
    pub session: u64,
    /// Asks for the lease to be renewed.
    pub beat: Option<Beat>,
    /// Slots that are the coordinator's again.
    pub returned: Vec<Lot>,
    /// Replicas that the member cannot use any more (`true`), or again (`false`).
    pub barred: Vec<(ReplicaKey, bool)>,
    /// Where this has changed.
    pub demand: Vec<Demand>,
    /// Where this has changed, time aside.
    pub loads: Vec<(Deployment, Load)>,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Beat {
    /// Counts up.
    pub number: u64,
    /// The last of this session that has been answered: says that the member lived after that answer was given.
    pub answered: u64,
}

/// What waits at a member for slots of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Demand {
    /// What they wait for.
    pub deployment: Deployment,
    /// Requests that wait.
    pub waiting: u32,
    /// How long the first of them has waited; zero where none waits.
    pub oldest: Duration,
    /// How long the last of them has waited; zero where none waits.
    pub newest: Duration,
    /// Slots of the deployment granted so far in this session, as far as they have arrived: who sent more knows that
    /// these requests do not know it yet.
    pub granted: u64,
}

/// What goes on at a member in a deployment: what its autoscaler needs to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, Hash)]
pub struct Load {
    /// Requests in flight.
    pub busy: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// All that has gone on since the router began.
    pub sums: Sums,
}

impl Load {
    /// Whether times go on adding up though nothing else happens.
    fn is_active(&self) -> bool {
        self.busy + self.waiting > 0
    }

    fn differs_from(&self, other: &Self) -> bool {
        let sums = Sums { time: other.sums.time, ..self.sums };
        *other != Self { sums, ..*self }
    }
}

/// What a coordinator says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub enum ToMember {
    /// Answers a [`Hello`]: the member holds what it claimed.
    Welcome {
        /// Of the coordinator.
        epoch: Epoch,
        /// Of the member.
        session: u64,
        /// The beat that is answered.
        beat: u64,
        /// Of what it claims, how many slots of a replica it may keep, where that is not all; see [`Update::keep`].
        keep: Vec<Lot>,
    },
    /// What has changed.
    Update(Update),
    /// Not a coordinator, or the session is over: look for the coordinator and begin another one.
    Refused {
        /// The highest that the refusing router has seen.
        epoch: Epoch,
        /// Of the member.
        session: u64,
    },
}

/// A later message to a member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Hash)]
pub struct Update {
    /// Of the coordinator.
    pub epoch: Epoch,
    /// Of the member.
    pub session: u64,
    /// The beat that is answered: the lease is renewed.
    pub beat: Option<u64>,
    /// Slots that are the member's now.
    pub granted: Vec<Lot>,
    /// How many slots of a replica the member may keep: the others are returned as they become free.
    pub keep: Vec<Lot>,
    /// What waits at the other members, where that has changed.
    pub wanted: Vec<Wanted>,
}

/// What waits at the other members for slots of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct Wanted {
    /// What they wait for.
    pub deployment: Deployment,
    /// How many slots would be taken; 0: none any more.
    pub slots: u32,
    /// How long the first of them has waited.
    pub oldest: Duration,
}

/// Requests that wait in a queue, on the clock of whoever looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Requests that wait; not zero.
    pub length: u32,
    /// When the first of them came.
    pub oldest: Instant,
    /// When the last of them came.
    pub newest: Instant,
}

impl Queue {
    /// When the request came that is first after `served` of them: as if they had come evenly.
    pub fn first_after(&self, served: u32) -> Instant {
        let span = self.newest.saturating_duration_since(self.oldest);
        self.oldest + span.mul_f64(f64::from(served.min(self.length)) / f64::from(self.length.max(1)))
    }
}

#[cfg(test)]
mod tests;
