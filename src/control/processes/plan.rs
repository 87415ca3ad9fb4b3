//! What to start and stop so that a deployment has the replicas it should have: a decision, without doing anything.

use std::cmp::Reverse;

/// One replica that was not told to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) index: u32,
    /// Started from the `process` block now in force.
    pub(super) current: bool,
    pub(super) ready: bool,
    /// Requests in flight on it, as far as is known.
    pub(super) busy: u32,
}

/// What to do now; the next change is planned for afresh.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many more replicas to start.
    pub(super) start: u32,
    /// Indices of the replicas to stop.
    pub(super) stop: Vec<u32>,
}

/// Brings `replicas` towards `count` current ones. Of those that are too many go first what is not ready, then the
/// idlest, of equals the highest index. Replicas of an earlier
/// `process` block stay while they serve and fewer than `count` current ones are ready, so that a change of command
/// does not cost capacity.
pub(super) fn plan(count: u32, replicas: &[Seen]) -> Plan {
    let mut current: Vec<&Seen> = replicas.iter().filter(|replica| replica.current).collect();
    current.sort_by_key(|replica| (!replica.ready, Reverse(replica.busy), replica.index));
    let keep = current.len().min(count as usize);
    let ready = current[..keep].iter().filter(|replica| replica.ready).count();
    let surplus = current.split_off(keep).into_iter();

    // An old replica that is not ready serves nobody: it only takes memory from its successor.
    let (mut serving, idle): (Vec<&Seen>, Vec<&Seen>) =
        replicas.iter().filter(|replica| !replica.current).partition(|replica| replica.ready);
    serving.sort_by_key(|replica| replica.index);
    let outdated = serving.split_off(serving.len().min(count as usize - ready)).into_iter();

    let mut stop: Vec<u32> = surplus.chain(outdated).chain(idle).map(|replica| replica.index).collect();
    stop.sort_by_key(|index| Reverse(*index));
    Plan { start: count - keep as u32, stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(index: u32, ready: bool) -> Seen {
        Seen { index, current: true, ready, busy: 0 }
    }

    fn old(index: u32, ready: bool) -> Seen {
        Seen { index, current: false, ready, busy: 0 }
    }

    #[test]
    fn missing_replicas_start_and_of_surplus_ones_those_that_do_not_serve_stop_first() {
        assert_eq!(plan(3, &[new(1, true)]), Plan { start: 2, stop: vec![] });
        let four = [new(0, true), new(3, true), new(1, false), new(2, true)];
        assert_eq!(plan(2, &four), Plan { start: 0, stop: vec![3, 1] });
        assert_eq!(plan(0, &four), Plan { start: 0, stop: vec![3, 2, 1, 0] });
    }

    #[test]
    fn the_idlest_stop_first() {
        let busy = |index, busy| Seen { busy, ..new(index, true) };
        let three = [busy(0, 0), busy(1, 2), busy(2, 1)];
        assert_eq!(plan(2, &three), Plan { start: 0, stop: vec![0] });
        assert_eq!(plan(1, &three), Plan { start: 0, stop: vec![2, 0] });
    }

    #[test]
    fn old_replicas_leave_one_by_one_as_new_ones_become_ready() {
        let olds = [old(0, true), old(1, true)];
        assert_eq!(plan(2, &olds), Plan { start: 2, stop: vec![] });
        let with = |a, b| [olds[0], olds[1], new(2, a), new(3, b)];
        assert_eq!(plan(2, &with(false, false)), Plan { start: 0, stop: vec![] });
        assert_eq!(plan(2, &with(false, true)), Plan { start: 0, stop: vec![1] });
        assert_eq!(plan(2, &with(true, true)), Plan { start: 0, stop: vec![1, 0] });
    }

    #[test]
    fn an_old_replica_that_serves_nobody_stops_at_once() {
        assert_eq!(plan(2, &[old(0, true), old(1, false)]), Plan { start: 2, stop: vec![1] });
    }

    #[test]
    fn a_removed_deployment_keeps_nothing() {
        assert_eq!(plan(0, &[old(0, true), new(1, true), new(2, false)]), Plan { start: 0, stop: vec![2, 1, 0] });
    }
}
