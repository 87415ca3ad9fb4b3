//! Reading and writing the leader lock, and what is known about it while its store is slow or unavailable.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};

use super::leader_lock_store::LeaderLockStore;
use crate::policy::fleet::leader_election::{Election, LeaderLockRecord};
use crate::policy::fleet::ledger::PreviousHolders;
use crate::policy::fleet::{MemberId, Term};

/// The longest interval between reads of a lock that another router holds.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// The delay after a failed read or write.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// The interval between reads of a router that has given its term back and waits for its successor. It is short,
/// because the slots that the router holds are unaccounted for until it has reported them to the successor.
const SUCCESSOR_READ_DELAY: Duration = Duration::from_millis(50);

/// The outcome of a read or write.
pub(super) enum LeaderLockOutcome {
    /// The record and its version, if there is one, or why the read failed.
    Read(Result<Option<(LeaderLockRecord, String)>, String>),
    /// The proposed record, when the write was sent, and its version; `None` if another router was faster. After an
    /// error, it is unknown whether the record was written.
    Written(LeaderLockRecord, Instant, Result<Option<String>, String>),
}

/// The leader lock as far as its content is known, with at most one operation in progress.
pub(super) struct LeaderLock {
    election: Election,
    store: LeaderLockStore,
    operation: Option<Pin<Box<dyn Future<Output = LeaderLockOutcome> + Send>>>,
    /// The rosters of writes whose outcome is unknown: that in progress, and those that failed.
    uncertain_rosters: Vec<BTreeSet<MemberId>>,
    /// When the next read is due.
    read_at: Instant,
    /// The interval between reads.
    read_interval: Duration,
    /// The earliest time of the next write.
    write_not_before: Instant,
    won_term: Option<(Term, PreviousHolders)>,
    error: Option<String>,
    /// Whether another router has changed the record, so that it must be read before the next write.
    is_stale: bool,
    is_leaving: bool,
}

impl LeaderLock {
    /// Creates the state of a lock that has not been read yet. The read interval is at most a quarter of
    /// `term_duration`, so that the end of a term is noticed while slot leases of its coordinator are still valid.
    pub(super) fn new(election: Election, store: LeaderLockStore, term_duration: Duration) -> Self {
        let (read_at, write_not_before) = (Instant::now(), Instant::now());
        Self {
            election,
            store,
            operation: None,
            uncertain_rosters: Vec::new(),
            read_at,
            read_interval: READ_INTERVAL.min(term_duration / 4),
            write_not_before,
            won_term: None,
            error: None,
            is_stale: true,
            is_leaving: false,
        }
    }

    /// Starts the next write or read, if one is due and none is in progress. `roster` is that of this router's own
    /// term.
    pub(super) fn start_operation(&mut self, roster: &BTreeSet<MemberId>, now: Instant) {
        if self.operation.is_some() {
            return;
        }
        let store = self.store.clone();
        let may_write = now >= self.write_not_before && !self.is_stale;
        // While the store is unavailable, no member is added: otherwise it would count as a possible successor,
        // although the write has probably failed.
        let known_members = self.error.as_ref().map(|_| roster & &self.roster());
        let proposal = self.election.proposal(known_members.as_ref().unwrap_or(roster), now).filter(|_| may_write);
        if let Some(proposal) = proposal {
            if proposal.record.holder.is_none() {
                // Once the write is sent, another router may win the next term, even if no answer arrives.
                self.election.resign();
            }
            self.add_uncertain_roster(proposal.record.roster.clone());
            self.operation = Some(Box::pin(async move {
                let (record, sent) = (proposal.record.clone(), Instant::now());
                LeaderLockOutcome::Written(record, sent, store.write(proposal).await)
            }));
        } else if now >= self.read_at && self.needs_read() {
            self.operation = Some(Box::pin(async move { LeaderLockOutcome::Read(store.read().await) }));
        }
    }

    /// Waits for the operation in progress. Cancellation-safe: the operation continues if the future is dropped.
    pub(super) async fn next_outcome(&mut self) -> LeaderLockOutcome {
        match &mut self.operation {
            Some(operation) => operation.as_mut().await,
            None => pending().await,
        }
    }

    /// Applies the outcome of an operation.
    pub(super) fn apply_outcome(&mut self, outcome: LeaderLockOutcome) {
        let now = Instant::now();
        self.operation = None;
        self.read_at = now + self.read_interval;
        match outcome {
            LeaderLockOutcome::Read(Ok(found)) => {
                self.clear_error();
                self.is_stale = false;
                self.uncertain_rosters.clear();
                self.election.record_observed(found, now);
                self.schedule_successor_read(now);
            }
            LeaderLockOutcome::Written(record, sent, Ok(Some(version))) => {
                self.clear_error();
                self.uncertain_rosters.clear();
                if let Some(won) = self.election.record_written(record, version, sent) {
                    self.won_term = Some(won);
                }
                self.schedule_successor_read(now);
            }
            // Lost the compare-and-swap: the record is read again at once.
            LeaderLockOutcome::Written(_, _, Ok(None)) => {
                self.clear_error();
                self.is_stale = true;
                self.read_at = now;
            }
            LeaderLockOutcome::Read(Err(error)) => self.set_error(error, now),
            LeaderLockOutcome::Written(_, _, Err(error)) => {
                self.set_error(error, now);
                self.write_not_before = now + RETRY_DELAY;
            }
        }
    }

    /// Makes a read due now, because the record may have changed.
    pub(super) fn read_now(&mut self) {
        self.read_at = Instant::now();
    }

    /// Returns the term that was won since the last call, if any, with the members that may hold slots of earlier
    /// terms.
    pub(super) fn take_won_term(&mut self) -> Option<(Term, PreviousHolders)> {
        self.won_term.take()
    }

    /// Returns the recorded end of this router's own term, if it has one.
    pub(super) fn term_end(&self) -> Option<Instant> {
        self.election.term_end()
    }

    /// Returns the coordinator and its term according to the record, if there is one.
    pub(super) fn coordinator(&self) -> Option<(&MemberId, Term)> {
        self.election.coordinator()
    }

    /// Returns the members that may hold slots according to the record.
    pub(super) fn roster(&self) -> BTreeSet<MemberId> {
        self.election.roster()
    }

    /// Returns the members on the roster of every version that may be current (the intersection). The next coordinator
    /// finds them on the roster in any case, so they may hold slots.
    pub(super) fn definite_members(&self) -> BTreeSet<MemberId> {
        self.uncertain_rosters.iter().fold(self.roster(), |all, roster| &all & roster)
    }

    /// Returns the members on the roster of any version that may be current (the union). They may become coordinator
    /// without the additional delay of a router that is not on the roster.
    pub(super) fn possible_members(&self) -> BTreeSet<MemberId> {
        self.uncertain_rosters.iter().fold(self.roster(), |all, roster| &all | roster)
    }

    fn add_uncertain_roster(&mut self, roster: BTreeSet<MemberId>) {
        if !self.uncertain_rosters.contains(&roster) {
            self.uncertain_rosters.push(roster);
        }
    }

    /// Returns why the leader lock is unavailable, if it is.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Ends this router's own term, because another router has a later one.
    pub(super) fn resign(&mut self) {
        self.election.resign();
        self.read_now();
    }

    /// Starts to leave: the term is given back, and no other is won.
    pub(super) fn set_leaving(&mut self) {
        self.is_leaving = true;
        self.election.set_leaving();
    }

    /// Returns whether the term was given back, if there was one, or cannot be, because the lock is unavailable.
    pub(super) fn has_left(&self) -> bool {
        let is_over = self.election.term_end().is_none() && self.operation.is_none();
        self.is_leaving && (is_over || self.error.is_some())
    }

    /// Returns when [`Self::start_operation`] is due at the latest, if nothing else happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.operation.is_some() {
            return None;
        }
        let write = self.election.wake_at().map(|at| at.max(self.write_not_before)).filter(|_| !self.is_stale);
        write.into_iter().chain(self.needs_read().then_some(self.read_at)).min()
    }

    fn schedule_successor_read(&mut self, now: Instant) {
        if self.is_leaving && self.election.coordinator().is_none() {
            self.read_at = now + SUCCESSOR_READ_DELAY;
        }
    }

    /// Returns whether the record has to be read. A coordinator notices changes by others when it writes.
    fn needs_read(&self) -> bool {
        self.is_stale || self.election.term_end().is_none()
    }

    fn clear_error(&mut self) {
        if self.error.take().is_some() {
            tracing::info!("leader lock available again");
        }
    }

    fn set_error(&mut self, error: String, now: Instant) {
        self.read_at = now + RETRY_DELAY;
        if self.error.as_ref() != Some(&error) {
            let meanwhile = match self.election.coordinator() {
                Some(_) => "the fleet continues with the last known coordinator",
                None => "this router has no coordinator until then",
            };
            tracing::warn!(error, "leader lock unavailable; {meanwhile}");
            self.error = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fleet::FleetTiming;

    fn members(names: &[&str]) -> BTreeSet<MemberId> {
        names.iter().map(|name| MemberId { name: (*name).into(), incarnation: 1 }).collect()
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_one_trouble_and_not_a_new_one_each_time() {
        let term = Duration::from_secs(5);
        let election = Election::new(members(&["one"]).pop_first().unwrap(), term, FleetTiming::default());
        // A folder in which no user can create a file.
        let mut lock = LeaderLock::new(election, LeaderLockStore::File("/proc/leader".into()), term);
        let mut errors = BTreeSet::new();
        for round in 0..4 {
            lock.start_operation(&members(&["one"]), Instant::now() + RETRY_DELAY * round);
            let outcome = lock.next_outcome().await;
            lock.apply_outcome(outcome);
            errors.insert(lock.error().map(str::to_owned));
        }
        // The first read succeeds without a record, so the outcomes are no error and one error.
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[tokio::test]
    async fn who_comes_back_while_it_is_struck_off_is_not_on_the_record_until_it_is_written_again() {
        let (folder, term) = (tempfile::tempdir().unwrap(), Duration::from_secs(5));
        let election = Election::new(members(&["one"]).pop_first().unwrap(), term, FleetTiming::default());
        let mut lock = LeaderLock::new(election, LeaderLockStore::File(folder.path().join("leader")), term);
        let both = members(&["one", "two"]);
        for _ in 0..3 {
            // Reads the record, begins a term, and adds the other member to the roster.
            lock.start_operation(&both, Instant::now());
            let outcome = lock.next_outcome().await;
            lock.apply_outcome(outcome);
        }
        assert_eq!((lock.definite_members(), lock.possible_members()), (both.clone(), both.clone()));
        // The term is renewed, and the other member is gone.
        lock.start_operation(&members(&["one", "three"]), Instant::now() + term / 2);
        assert!(lock.operation.is_some());
        let everybody = members(&["one", "two", "three"]);
        let rosters = |lock: &LeaderLock| (lock.definite_members(), lock.possible_members());
        assert_eq!(rosters(&lock), (members(&["one"]), everybody.clone()));
        // The outcome of this write is unknown, and the next write has another roster.
        let lost = LeaderLockOutcome::Written(LeaderLockRecord::default(), Instant::now(), Err("no answer".to_owned()));
        lock.apply_outcome(lost);
        lock.start_operation(&both, Instant::now() + term);
        assert_eq!(rosters(&lock), (members(&["one"]), everybody));
        let outcome = lock.next_outcome().await;
        lock.apply_outcome(outcome);
        assert_eq!(rosters(&lock), (both.clone(), both));
    }
}
