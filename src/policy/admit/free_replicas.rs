//! Replicas with a free slot in buckets by load: the least loaded one is found, and any replica is moved, in constant
//! time.

use super::{AvoidedReplicas, ReplicaId};

/// One list of replicas per number of requests in flight, newest first, doubly linked through `links`.
#[derive(Debug, Default)]
pub(super) struct FreeReplicas {
    /// The first replica of each load.
    heads: Vec<Option<ReplicaId>>,
    /// The links of each replica.
    links: Vec<Link>,
    /// No replica in the lists has a lower load than this.
    lowest: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Link {
    /// The load of the list that the replica is in; `None` if it is in none.
    load: Option<u32>,
    before: Option<ReplicaId>,
    after: Option<ReplicaId>,
}

impl FreeReplicas {
    /// Moves a replica to the front of the list of `load`, or removes it from the lists.
    pub(super) fn set_load(&mut self, id: ReplicaId, load: Option<u32>) {
        if self.links.len() <= id.index() {
            self.links.resize(id.index() + 1, Link::default());
        }
        self.unlink(id);
        let Some(load) = load else { return };
        let at = load as usize;
        if self.heads.len() <= at {
            self.heads.resize(at + 1, None);
        }
        let after = self.heads[at].replace(id);
        if let Some(after) = after {
            self.links[after.index()].before = Some(id);
        }
        self.links[id.index()] = Link { load: Some(load), before: None, after };
        self.lowest = self.lowest.min(at);
    }

    /// Returns whether a replica is in one of the lists.
    pub(super) fn contains(&self, id: ReplicaId) -> bool {
        self.links.get(id.index()).is_some_and(|link| link.load.is_some())
    }

    /// Returns the least loaded replica that is not in `avoid`; among equals the one that was moved last.
    pub(super) fn least_loaded(&mut self, avoid: AvoidedReplicas) -> Option<ReplicaId> {
        while self.lowest < self.heads.len() && self.heads[self.lowest].is_none() {
            self.lowest += 1;
        }
        let lists = &self.heads[self.lowest.min(self.heads.len())..];
        lists.iter().find_map(|head| {
            let mut next = *head;
            while let Some(id) = next
                && avoid.contains(id)
            {
                next = self.links[id.index()].after;
            }
            next
        })
    }

    fn unlink(&mut self, id: ReplicaId) {
        let Link { load: Some(load), before, after } = std::mem::take(&mut self.links[id.index()]) else { return };
        match before {
            Some(before) => self.links[before.index()].after = after,
            None => self.heads[load as usize] = after,
        }
        if let Some(after) = after {
            self.links[after.index()].before = before;
        }
    }
}
