//! Reading and writing who coordinates.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::{Duration, Instant};

use super::store::Store;
use crate::policy::fleet::election::{Election, Record};
use crate::policy::fleet::ledger::Former;
use crate::policy::fleet::{Epoch, MemberId};

/// Between two looks at a record that somebody else keeps, at most.
const LOOK: Duration = Duration::from_secs(1);
/// After something went wrong.
const AGAIN: Duration = Duration::from_millis(250);
/// For who is to be followed, of a router that has given its term back: what it holds is in doubt until it has told.
const SUCCESSOR: Duration = Duration::from_millis(50);

/// How reading or writing has ended.
pub(super) enum Outcome {
    Read(Result<Option<(Record, String)>, String>),
    /// What was to be written, and when that was sent.
    Written(Record, Instant, Result<Option<String>, String>),
}

/// The record, as far as it is known, and what is being done with it: one thing at a time.
pub(super) struct RecordKeeper {
    election: Election,
    store: Store,
    doing: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
    /// What is being written, or was, if it is not known whether it counts.
    in_doubt: Vec<BTreeSet<MemberId>>,
    look_at: Instant,
    /// Between two looks.
    look: Duration,
    /// Nothing is written before.
    write_at: Instant,
    won: Option<(Epoch, Former)>,
    trouble: Option<String>,
    /// Somebody else has changed it: it has to be read before anything is written.
    is_stale: bool,
    is_leaving: bool,
}

impl RecordKeeper {
    /// A term lasts for `term`: the end of one is to be seen while leases of its coordinator still last.
    pub(super) fn new(election: Election, store: Store, term: Duration) -> Self {
        let (look_at, write_at) = (Instant::now(), Instant::now());
        Self {
            election,
            store,
            doing: None,
            in_doubt: Vec::new(),
            look_at,
            look: LOOK.min(term / 4),
            write_at,
            won: None,
            trouble: None,
            is_stale: true,
            is_leaving: false,
        }
    }

    /// Begins what there is to be done; `roster` is that of this router's own term.
    pub(super) fn keep(&mut self, roster: &BTreeSet<MemberId>, now: Instant) {
        if self.doing.is_some() {
            return;
        }
        let store = self.store.clone();
        let may_write = now >= self.write_at && !self.is_stale;
        // Who comes while nothing can be written must not be one who may follow, for all that is known.
        let known = self.trouble.as_ref().map(|_| roster & &self.roster());
        let proposal = self.election.proposal(known.as_ref().unwrap_or(roster), now).filter(|_| may_write);
        if let Some(proposal) = proposal {
            if proposal.record.holder.is_none() {
                // Once it is sent another may have the term, whether that is answered or not.
                self.election.resign();
            }
            self.doubt(proposal.record.roster.clone());
            self.doing = Some(Box::pin(async move {
                let (record, sent) = (proposal.record.clone(), Instant::now());
                Outcome::Written(record, sent, store.write(proposal).await)
            }));
        } else if now >= self.look_at && self.has_to_look() {
            self.doing = Some(Box::pin(async move { Outcome::Read(store.read().await) }));
        }
    }

    /// Waits for what is being done; nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Outcome {
        match &mut self.doing {
            Some(doing) => doing.as_mut().await,
            None => pending().await,
        }
    }

    /// Takes note of what was done.
    pub(super) fn take(&mut self, outcome: Outcome) {
        let now = Instant::now();
        self.doing = None;
        self.look_at = now + self.look;
        match outcome {
            Outcome::Read(Ok(found)) => {
                self.well();
                self.is_stale = false;
                self.in_doubt.clear();
                self.election.observed(found, now);
                self.look_for_successor(now);
            }
            Outcome::Written(record, sent, Ok(Some(version))) => {
                self.well();
                self.in_doubt.clear();
                if let Some(won) = self.election.written(record, version, sent) {
                    self.won = Some(won);
                }
                self.look_for_successor(now);
            }
            // Somebody was faster: who?
            Outcome::Written(_, _, Ok(None)) => {
                self.well();
                self.is_stale = true;
                self.look_at = now;
            }
            Outcome::Read(Err(what)) => self.unwell(what, now),
            Outcome::Written(_, _, Err(what)) => {
                self.unwell(what, now);
                self.write_at = now + AGAIN;
            }
        }
    }

    /// The record may be another by now.
    pub(super) fn look(&mut self) {
        self.look_at = Instant::now();
    }

    /// A term that was won and that nobody has asked for yet.
    pub(super) fn take_won(&mut self) -> Option<(Epoch, Former)> {
        self.won.take()
    }

    /// Until when this router's term lasts, as the record says, if it has one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.election.until()
    }

    /// Who coordinates, as the record says, and since which epoch.
    pub(super) fn leader(&self) -> Option<(&MemberId, Epoch)> {
        self.election.leader()
    }

    /// Who may hold slots, as the record says.
    pub(super) fn roster(&self) -> BTreeSet<MemberId> {
        self.election.roster()
    }

    /// Who may hold slots, whichever record counts: whoever coordinates next knows of them.
    pub(super) fn surely_on_it(&self) -> BTreeSet<MemberId> {
        self.in_doubt.iter().fold(self.roster(), |all, roster| &all & roster)
    }

    /// Who may follow without waiting as long as a stranger, whichever record counts.
    pub(super) fn perhaps_on_it(&self) -> BTreeSet<MemberId> {
        self.in_doubt.iter().fold(self.roster(), |all, roster| &all | roster)
    }

    fn doubt(&mut self, roster: BTreeSet<MemberId>) {
        if !self.in_doubt.contains(&roster) {
            self.in_doubt.push(roster);
        }
    }

    /// Whether the record cannot be had.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Somebody has a later term.
    pub(super) fn resign(&mut self) {
        self.election.resign();
        self.look();
    }

    /// The router ends.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
        self.election.leave();
    }

    /// Whether the term was given back, if there was one; who cannot reach the record leaves it at that.
    pub(super) fn has_left(&self) -> bool {
        let is_over = self.election.until().is_none() && self.doing.is_none();
        self.is_leaving && (is_over || self.trouble.is_some())
    }

    /// When to look again, if nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.doing.is_some() {
            return None;
        }
        let look = self.look_at;
        let write = self.election.wake_at().map(|at| at.max(self.write_at)).filter(|_| !self.is_stale);
        write.into_iter().chain(self.has_to_look().then_some(look)).min()
    }

    fn look_for_successor(&mut self, now: Instant) {
        if self.is_leaving && self.election.leader().is_none() {
            self.look_at = now + SUCCESSOR;
        }
    }

    /// Whoever coordinates finds out when writing.
    fn has_to_look(&self) -> bool {
        self.is_stale || self.election.until().is_none()
    }

    fn well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("it can be read again who coordinates");
        }
    }

    fn unwell(&mut self, what: String, now: Instant) {
        self.look_at = now + AGAIN;
        if self.trouble.as_ref() != Some(&what) {
            let meanwhile = match self.election.leader() {
                Some(_) => "the group goes on as it is",
                None => "this router knows of no coordinator until it can",
            };
            tracing::warn!(what, "it cannot be read or written who coordinates; {meanwhile}");
            self.trouble = Some(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fleet::Settings;

    fn all(names: &[&str]) -> BTreeSet<MemberId> {
        names.iter().map(|name| MemberId { name: (*name).into(), incarnation: 1 }).collect()
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_one_trouble_and_not_a_new_one_each_time() {
        let term = Duration::from_secs(5);
        let election = Election::new(all(&["one"]).pop_first().unwrap(), term, Settings::default());
        // Where nobody can make a file, whoever runs this.
        let mut keeper = RecordKeeper::new(election, Store::File("/proc/leader".into()), term);
        let mut troubles = BTreeSet::new();
        for round in 0..4 {
            keeper.keep(&all(&["one"]), Instant::now() + AGAIN * round);
            let outcome = keeper.next().await;
            keeper.take(outcome);
            troubles.insert(keeper.trouble().map(str::to_owned));
        }
        // At first it was read that there is no record.
        assert_eq!(troubles.len(), 2, "{troubles:?}");
    }

    #[tokio::test]
    async fn who_comes_back_while_it_is_struck_off_is_not_on_the_record_until_it_is_written_again() {
        let (folder, term) = (tempfile::tempdir().unwrap(), Duration::from_secs(5));
        let election = Election::new(all(&["one"]).pop_first().unwrap(), term, Settings::default());
        let mut keeper = RecordKeeper::new(election, Store::File(folder.path().join("leader")), term);
        let both = all(&["one", "two"]);
        for _ in 0..3 {
            // Reads, begins its term, and has the other on its roster.
            keeper.keep(&both, Instant::now());
            let outcome = keeper.next().await;
            keeper.take(outcome);
        }
        assert_eq!((keeper.surely_on_it(), keeper.perhaps_on_it()), (both.clone(), both.clone()));
        // It is time to renew the term, and the other has gone.
        keeper.keep(&all(&["one", "three"]), Instant::now() + term / 2);
        assert!(keeper.doing.is_some());
        let everybody = all(&["one", "two", "three"]);
        let seen = |keeper: &RecordKeeper| (keeper.surely_on_it(), keeper.perhaps_on_it());
        assert_eq!(seen(&keeper), (all(&["one"]), everybody.clone()));
        // Whether that counts is not known, and the next says otherwise.
        let lost = Outcome::Written(Record::default(), Instant::now(), Err("no answer".to_owned()));
        keeper.take(lost);
        keeper.keep(&both, Instant::now() + term);
        assert_eq!(seen(&keeper), (all(&["one"]), everybody));
        let outcome = keeper.next().await;
        keeper.take(outcome);
        assert_eq!(seen(&keeper), (both.clone(), both));
    }
}
