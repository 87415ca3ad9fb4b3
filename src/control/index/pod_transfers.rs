//! Transfers of pods to another deployment or another address. A transfer waits until nothing is in flight on the pod,
//! because the slots of one deployment do not count the requests of the other.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::DeploymentKey;

/// The deployment that uses a pod, and the address at which it uses it (`host:port`).
pub(super) type PodPlacement = (DeploymentKey, String);

/// The released pods with requests in flight, and the claims on them.
#[derive(Debug, Default)]
pub(super) struct PodTransfers {
    /// The released pods by UID: the last placement, and a receiver that completes when nothing is in flight there.
    draining: HashMap<Arc<str>, (PodPlacement, oneshot::Receiver<()>)>,
    /// The claims on draining pods by UID: the deployment that waits, and the address it will use.
    pending_claims: HashMap<Arc<str>, (DeploymentKey, SocketAddr)>,
}

impl PodTransfers {
    /// Records that a deployment has released a pod, which drains until `drained` completes.
    pub(super) fn release_pod(&mut self, uid: &Arc<str>, placement: PodPlacement, drained: oneshot::Receiver<()>) {
        // Prunes finished releases, most of which are never claimed.
        let is_busy = |drained: &mut oneshot::Receiver<()>| matches!(drained.try_recv(), Err(TryRecvError::Empty));
        self.draining.retain(|_, (_, drained)| is_busy(drained));
        self.draining.insert(uid.clone(), (placement, drained));
    }

    /// Returns whether a deployment may use a pod at once. If it may not, the claim is recorded; it replaces an earlier
    /// one.
    pub(super) fn try_claim_pod(&mut self, uid: &Arc<str>, owner: &DeploymentKey, address: SocketAddr) -> bool {
        self.pending_claims.remove(uid);
        let Some((placement, drained)) = self.draining.get_mut(uid) else { return true };
        let is_busy = matches!(drained.try_recv(), Err(TryRecvError::Empty));
        if is_busy && (&placement.0, &placement.1) != (owner, &address.to_string()) {
            self.pending_claims.insert(uid.clone(), (owner.clone(), address));
            return false;
        }
        self.draining.remove(uid);
        true
    }

    /// Cancels the claim of a deployment on a pod, if there is one.
    pub(super) fn cancel_claim(&mut self, uid: &Arc<str>, owner: &DeploymentKey) {
        if self.pending_claims.get(uid).is_some_and(|(claimant, _)| claimant == owner) {
            self.pending_claims.remove(uid);
        }
    }

    /// Waits until a claimed pod is drained. Returns its UID, the claimant and the address to use.
    pub(super) async fn next(&mut self) -> (Arc<str>, DeploymentKey, SocketAddr) {
        poll_fn(|cx| {
            let Self { draining, pending_claims } = self;
            let mut free = None;
            for uid in pending_claims.keys() {
                let is_free = draining.get_mut(uid).is_none_or(|(_, drained)| Pin::new(drained).poll(cx).is_ready());
                if is_free {
                    free = Some(uid.clone());
                    break;
                }
            }
            let Some(uid) = free else { return Poll::Pending };
            draining.remove(&uid);
            match pending_claims.remove(&uid) {
                Some((owner, address)) => Poll::Ready((uid, owner, address)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::Name;

    fn pod_owner(deployment: &str) -> DeploymentKey {
        (Name::new("endpoint").unwrap(), Name::new(deployment).unwrap())
    }

    #[tokio::test]
    async fn a_pod_goes_to_another_deployment_when_nothing_is_in_flight_on_it() {
        let (mut transfers, uid, address) =
            (PodTransfers::default(), Arc::<str>::from("uid"), "10.0.0.1:80".parse().unwrap());
        assert!(transfers.try_claim_pod(&uid, &pod_owner("blue"), address), "nobody has it");
        let (busy, drained) = oneshot::channel();
        transfers.release_pod(&uid, (pod_owner("blue"), "10.0.0.1:80".to_owned()), drained);
        assert!(!transfers.try_claim_pod(&uid, &pod_owner("green"), address));
        let timed_out = tokio::time::timeout(std::time::Duration::from_millis(10), transfers.next()).await;
        assert!(timed_out.is_err());
        drop(busy);
        assert_eq!(transfers.next().await, (uid.clone(), pod_owner("green"), address));
        assert!(transfers.try_claim_pod(&uid, &pod_owner("green"), address) && transfers.draining.is_empty());
    }

    #[tokio::test]
    async fn who_let_go_of_a_pod_can_have_it_back_and_who_gives_up_does_not_get_it() {
        let (mut transfers, uid, address) =
            (PodTransfers::default(), Arc::<str>::from("uid"), "10.0.0.1:80".parse().unwrap());
        let (_busy, drained) = oneshot::channel();
        transfers.release_pod(&uid, (pod_owner("blue"), "10.0.0.1:80".to_owned()), drained);
        assert!(!transfers.try_claim_pod(&uid, &pod_owner("green"), address));
        transfers.cancel_claim(&uid, &pod_owner("green"));
        let elsewhere = "10.0.0.1:81".parse().unwrap();
        assert!(
            transfers.pending_claims.is_empty() && !transfers.try_claim_pod(&uid, &pod_owner("blue"), elsewhere),
            "that would be more at once"
        );
        assert!(transfers.try_claim_pod(&uid, &pod_owner("blue"), address) && transfers.pending_claims.is_empty());
    }
}
