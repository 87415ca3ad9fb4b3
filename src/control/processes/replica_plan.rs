//! Decides which replicas to start and stop so that a deployment has the desired ones.

use std::cmp::Reverse;

/// One replica that has not been told to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplicaObservation {
    pub(super) index: u32,
    /// Whether the replica was started from the current `process` block.
    pub(super) is_current: bool,
    pub(super) is_ready: bool,
    /// Requests in flight on the replica, as far as known.
    pub(super) in_flight: u32,
}

/// What to do now. Every later change is planned again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReplicaPlan {
    /// The number of replicas to start.
    pub(super) start_count: u32,
    /// The indices of the replicas to stop.
    pub(super) stop_indices: Vec<u32>,
}

/// Plans how to get from `replicas` to `count` current ones. Surplus replicas are stopped in this order: those that are
/// not ready, then the idlest, and among equals the highest index. Replicas of an earlier `process` block stay while
/// they serve and fewer than `count` current ones are ready, so that a change of the command does not cost capacity.
pub(super) fn plan_replicas(count: u32, replicas: &[ReplicaObservation]) -> ReplicaPlan {
    let mut current: Vec<&ReplicaObservation> = replicas.iter().filter(|replica| replica.is_current).collect();
    current.sort_by_key(|replica| (!replica.is_ready, Reverse(replica.in_flight), replica.index));
    let keep = current.len().min(count as usize);
    let ready = current[..keep].iter().filter(|replica| replica.is_ready).count();
    let surplus = current.split_off(keep).into_iter();

    // An old replica that is not ready serves no requests. It only takes memory from its successor.
    let (mut serving, idle): (Vec<&ReplicaObservation>, Vec<&ReplicaObservation>) =
        replicas.iter().filter(|replica| !replica.is_current).partition(|replica| replica.is_ready);
    serving.sort_by_key(|replica| replica.index);
    let outdated = serving.split_off(serving.len().min(count as usize - ready)).into_iter();

    let mut stop: Vec<u32> = surplus.chain(outdated).chain(idle).map(|replica| replica.index).collect();
    stop.sort_by_key(|index| Reverse(*index));
    ReplicaPlan { start_count: count - keep as u32, stop_indices: stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current_replica(index: u32, ready: bool) -> ReplicaObservation {
        ReplicaObservation { index, is_current: true, is_ready: ready, in_flight: 0 }
    }

    fn outdated_replica(index: u32, ready: bool) -> ReplicaObservation {
        ReplicaObservation { index, is_current: false, is_ready: ready, in_flight: 0 }
    }

    #[test]
    fn missing_replicas_start_and_of_surplus_ones_those_that_do_not_serve_stop_first() {
        assert_eq!(plan_replicas(3, &[current_replica(1, true)]), ReplicaPlan { start_count: 2, stop_indices: vec![] });
        let four =
            [current_replica(0, true), current_replica(3, true), current_replica(1, false), current_replica(2, true)];
        assert_eq!(plan_replicas(2, &four), ReplicaPlan { start_count: 0, stop_indices: vec![3, 1] });
        assert_eq!(plan_replicas(0, &four), ReplicaPlan { start_count: 0, stop_indices: vec![3, 2, 1, 0] });
    }

    #[test]
    fn the_idlest_stop_first() {
        let busy = |index, busy| ReplicaObservation { in_flight: busy, ..current_replica(index, true) };
        let three = [busy(0, 0), busy(1, 2), busy(2, 1)];
        assert_eq!(plan_replicas(2, &three), ReplicaPlan { start_count: 0, stop_indices: vec![0] });
        assert_eq!(plan_replicas(1, &three), ReplicaPlan { start_count: 0, stop_indices: vec![2, 0] });
    }

    #[test]
    fn old_replicas_leave_one_by_one_as_new_ones_become_ready() {
        let olds = [outdated_replica(0, true), outdated_replica(1, true)];
        assert_eq!(plan_replicas(2, &olds), ReplicaPlan { start_count: 2, stop_indices: vec![] });
        let with = |a, b| [olds[0], olds[1], current_replica(2, a), current_replica(3, b)];
        assert_eq!(plan_replicas(2, &with(false, false)), ReplicaPlan { start_count: 0, stop_indices: vec![] });
        assert_eq!(plan_replicas(2, &with(false, true)), ReplicaPlan { start_count: 0, stop_indices: vec![1] });
        assert_eq!(plan_replicas(2, &with(true, true)), ReplicaPlan { start_count: 0, stop_indices: vec![1, 0] });
    }

    #[test]
    fn an_old_replica_that_serves_nobody_stops_at_once() {
        assert_eq!(
            plan_replicas(2, &[outdated_replica(0, true), outdated_replica(1, false)]),
            ReplicaPlan { start_count: 2, stop_indices: vec![1] }
        );
    }

    #[test]
    fn a_removed_deployment_keeps_nothing() {
        assert_eq!(
            plan_replicas(0, &[outdated_replica(0, true), current_replica(1, true), current_replica(2, false)]),
            ReplicaPlan { start_count: 0, stop_indices: vec![2, 1, 0] }
        );
    }
}
