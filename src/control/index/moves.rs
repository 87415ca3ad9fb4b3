//! Pods that go from one deployment to another, or to another address: only when nothing is in flight on them any more, since
//! the slots of the one know nothing of what the other has sent.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::model::name::Name;

/// An endpoint's deployment.
pub(super) type User = (Name, Name);

/// Where it uses a pod: `host:port`.
pub(super) type Place = (User, String);

/// Pods on their way.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// By uid: who has let go of a pod, where it took requests, and what ends when nothing is in flight there any more.
    leaving: HashMap<Arc<str>, (Place, oneshot::Receiver<()>)>,
    /// Who waits for one of these, and where it will take requests.
    waiting: HashMap<Arc<str>, (User, SocketAddr)>,
}

impl Moves {
    /// A pod is let go of.
    pub(super) fn left(&mut self, uid: &Arc<str>, place: Place, drained: oneshot::Receiver<()>) {
        // Of most that ever left nobody asks again.
        let is_busy = |drained: &mut oneshot::Receiver<()>| matches!(drained.try_recv(), Err(TryRecvError::Empty));
        self.leaving.retain(|_, (_, drained)| is_busy(drained));
        self.leaving.insert(uid.clone(), (place, drained));
    }

    /// Whether a pod can be had at once. If not, it is kept in mind who wants it.
    pub(super) fn may_have(&mut self, uid: &Arc<str>, user: &User, address: SocketAddr) -> bool {
        self.waiting.remove(uid);
        let Some((of, drained)) = self.leaving.get_mut(uid) else { return true };
        let is_busy = matches!(drained.try_recv(), Err(TryRecvError::Empty));
        if is_busy && (&of.0, &of.1) != (user, &address.to_string()) {
            self.waiting.insert(uid.clone(), (user.clone(), address));
            return false;
        }
        self.leaving.remove(uid);
        true
    }

    /// A pod is not wanted any more.
    pub(super) fn give_up(&mut self, uid: &Arc<str>, user: &User) {
        if self.waiting.get(uid).is_some_and(|(of, _)| of == user) {
            self.waiting.remove(uid);
        }
    }

    /// Waits until one that is waited for can be had.
    pub(super) async fn next(&mut self) -> (Arc<str>, User, SocketAddr) {
        poll_fn(|cx| {
            let Self { leaving, waiting } = self;
            let mut free = None;
            for uid in waiting.keys() {
                let is_free = leaving.get_mut(uid).is_none_or(|(_, drained)| Pin::new(drained).poll(cx).is_ready());
                if is_free {
                    free = Some(uid.clone());
                    break;
                }
            }
            let Some(uid) = free else { return Poll::Pending };
            leaving.remove(&uid);
            match waiting.remove(&uid) {
                Some((user, address)) => Poll::Ready((uid, user, address)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(deployment: &str) -> User {
        (Name::new("endpoint").unwrap(), Name::new(deployment).unwrap())
    }

    #[tokio::test]
    async fn a_pod_goes_to_another_deployment_when_nothing_is_in_flight_on_it() {
        let (mut moves, uid, address) = (Moves::default(), Arc::<str>::from("uid"), "10.0.0.1:80".parse().unwrap());
        assert!(moves.may_have(&uid, &user("blue"), address), "nobody has it");
        let (busy, drained) = oneshot::channel();
        moves.left(&uid, (user("blue"), "10.0.0.1:80".to_owned()), drained);
        assert!(!moves.may_have(&uid, &user("green"), address));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), moves.next()).await;
        assert!(waits.is_err());
        drop(busy);
        assert_eq!(moves.next().await, (uid.clone(), user("green"), address));
        assert!(moves.may_have(&uid, &user("green"), address) && moves.leaving.is_empty());
    }

    #[tokio::test]
    async fn who_let_go_of_a_pod_can_have_it_back_and_who_gives_up_does_not_get_it() {
        let (mut moves, uid, address) = (Moves::default(), Arc::<str>::from("uid"), "10.0.0.1:80".parse().unwrap());
        let (_busy, drained) = oneshot::channel();
        moves.left(&uid, (user("blue"), "10.0.0.1:80".to_owned()), drained);
        assert!(!moves.may_have(&uid, &user("green"), address));
        moves.give_up(&uid, &user("green"));
        let elsewhere = "10.0.0.1:81".parse().unwrap();
        assert!(
            moves.waiting.is_empty() && !moves.may_have(&uid, &user("blue"), elsewhere),
            "that would be more at once"
        );
        assert!(moves.may_have(&uid, &user("blue"), address) && moves.waiting.is_empty());
    }
}
