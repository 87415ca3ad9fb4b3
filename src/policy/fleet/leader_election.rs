//! Election of the coordinator: the router whose name is in a record that all routers can read and change, the leader
//! lock.
//!
//! A change counts only if nobody else has changed the record since it was read, which lock stores guarantee. Times of
//! two routers are not compared: a holder counts as gone when the record has not changed for the length of a term, on
//! the clock of the observer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ledger::PreviousHolders;
use super::{FleetTiming, MemberId, Term};

/// A term is renewed this often in its length.
const RENEWALS_PER_TERM: u32 = 3;
/// The additional delay of a router that the last coordinator may not know: a coordinator that cannot reach the lock
/// store may rely on the confirmation of the members it knows for that long
/// ([`Ledger::confirmed_at`](super::ledger::Ledger::confirmed_at)).
pub const NON_MEMBER_DELAY: Duration = Duration::from_secs(60);

/// The content of the leader lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderLockRecord {
    /// The coordinator; `None` if it has given its term back.
    pub holder: Option<MemberId>,
    /// The term of that coordinator, or of the last one.
    pub term: Term,
    /// The roster: the routers that may hold slots.
    #[serde(default)]
    pub roster: BTreeSet<MemberId>,
}

/// A change of the leader lock to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderLockProposal {
    /// The new record.
    pub record: LeaderLockRecord,
    /// The version that it changes; `None` if there is none.
    pub base_version: Option<String>,
}

/// The state of the election at one router.
#[derive(Debug)]
pub struct Election {
    id: MemberId,
    term_duration: Duration,
    timing: FleetTiming,
    /// The last observed record; `None` until it has been read once.
    observed: Option<ObservedRecord>,
    /// When this router's term ends, if it is the coordinator.
    term_end: Option<Instant>,
    /// The highest term that was ever read, because a record can be lost.
    highest_term: Term,
    is_leaving: bool,
}

#[derive(Debug)]
struct ObservedRecord {
    record: LeaderLockRecord,
    version: Option<String>,
    /// When this version was first observed, or, if this router wrote it, sent.
    observed_at: Instant,
}

impl Election {
    /// Creates the state of a router that has just started. A term lasts for `term_duration`, unless it is renewed.
    pub fn new(id: MemberId, term_duration: Duration, timing: FleetTiming) -> Self {
        Self {
            id,
            term_duration,
            timing,
            observed: None,
            term_end: None,
            highest_term: Term::default(),
            is_leaving: false,
        }
    }

    /// Records what was read: no record, or this version of it.
    pub fn record_observed(&mut self, found: Option<(LeaderLockRecord, String)>, now: Instant) {
        let (record, version) = match found {
            Some((record, version)) => (record, Some(version)),
            None => (LeaderLockRecord::default(), None),
        };
        if self.observed.as_ref().is_some_and(|seen| seen.version == version) {
            return;
        }
        if record.holder.as_ref() != Some(&self.id) {
            self.term_end = None;
        }
        self.highest_term = self.highest_term.max(record.term);
        self.observed = Some(ObservedRecord { record, version, observed_at: now });
    }

    /// Returns the change to write now, if there is one; `roster` is that of this router's own term.
    pub fn proposal(&self, roster: &BTreeSet<MemberId>, now: Instant) -> Option<LeaderLockProposal> {
        let seen = self.observed.as_ref()?;
        let record = if self.term_end.is_some() {
            let is_due = now >= seen.observed_at + self.term_duration / RENEWALS_PER_TERM
                || !roster.is_subset(&seen.record.roster);
            let holder = (!self.is_leaving).then(|| self.id.clone());
            (is_due || self.is_leaving).then(|| LeaderLockRecord {
                holder,
                term: seen.record.term,
                roster: roster.clone(),
            })
        } else {
            let term = Term(self.highest_term.0 + 1);
            let mut roster = seen.record.roster.clone();
            roster.extend(seen.record.holder.clone());
            roster.insert(self.id.clone());
            let holder = Some(self.id.clone());
            (!self.is_leaving && now >= self.vacant_at()?).then_some(LeaderLockRecord { holder, term, roster })
        };
        record.map(|record| LeaderLockProposal { record, base_version: seen.version.clone() })
    }

    /// Records that a proposal, which was sent at `sent`, is the record now. Returns the new term, if one begins, and
    /// the members that may hold slots of earlier terms.
    pub fn record_written(
        &mut self,
        record: LeaderLockRecord,
        version: String,
        sent: Instant,
    ) -> Option<(Term, PreviousHolders)> {
        let was_leading = self.term_end.is_some();
        let was_lost = self.highest_term > Term::default();
        self.highest_term = self.highest_term.max(record.term);
        let before =
            self.observed.replace(ObservedRecord { record: record.clone(), version: Some(version), observed_at: sent });
        if record.holder.as_ref() != Some(&self.id) {
            self.term_end = None;
            return None;
        }
        self.term_end = Some(sent + self.term_duration);
        let previous_holders = before.filter(|seen| seen.version.is_some()).map(|seen| {
            let mut roster = seen.record.roster;
            roster.extend(seen.record.holder);
            roster
        });
        let previous_holders = match previous_holders {
            Some(roster) => PreviousHolders::Known(roster),
            // The members of the lost record are unknown.
            None if was_lost => PreviousHolders::Unknown,
            None => PreviousHolders::Known(BTreeSet::new()),
        };
        (!was_leading).then_some((record.term, previous_holders))
    }

    /// Gives up the own term, because another router is the coordinator of a later one.
    pub fn resign(&mut self) {
        self.term_end = None;
    }

    /// Records that the router is leaving: it gives its term back and wins no other.
    pub fn set_leaving(&mut self) {
        self.is_leaving = true;
    }

    /// Returns when this router's term ends according to the record, if it has one.
    pub fn term_end(&self) -> Option<Instant> {
        self.term_end
    }

    /// Returns the coordinator and its term, as far as known.
    pub fn coordinator(&self) -> Option<(&MemberId, Term)> {
        let record = &self.observed.as_ref()?.record;
        record.holder.as_ref().map(|holder| (holder, record.term))
    }

    /// Returns the members that may hold slots according to the record. A router coordinates alone until others have
    /// joined.
    pub fn roster(&self) -> BTreeSet<MemberId> {
        self.observed.iter().flat_map(|seen| seen.record.roster.iter().chain(&seen.record.holder)).cloned().collect()
    }

    /// Returns when there may be something to propose, if the record does not change before.
    pub fn wake_at(&self) -> Option<Instant> {
        match (&self.observed, self.term_end) {
            (Some(seen), Some(_)) => Some(seen.observed_at + self.term_duration / RENEWALS_PER_TERM),
            _ if self.is_leaving => None,
            _ => self.vacant_at(),
        }
    }

    /// Returns when the term of the holder is over, unless it is renewed. Only one process has a name at a time: an
    /// earlier process of this router's name has ended if it does not renew its term while this one observes.
    fn vacant_at(&self) -> Option<Instant> {
        let seen = self.observed.as_ref()?;
        let Some(holder) = &seen.record.holder else { return Some(seen.observed_at) };
        if *holder == self.id {
            return Some(seen.observed_at);
        }
        let is_on_roster = seen.record.roster.iter().any(|member| member.name == self.id.name);
        let extra_delay = if is_on_roster { Duration::ZERO } else { NON_MEMBER_DELAY };
        Some(seen.observed_at + self.timing.with_drift_margin(self.term_duration) + extra_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM_DURATION: Duration = Duration::from_secs(5);

    fn member_id(name: &str) -> MemberId {
        MemberId { name: name.into(), incarnation: 1 }
    }

    fn election(name: &str) -> Election {
        Election::new(member_id(name), TERM_DURATION, FleetTiming::default())
    }

    fn roster(names: &[&str]) -> BTreeSet<MemberId> {
        names.iter().map(|name| member_id(name)).collect()
    }

    /// Writes the proposal of a router.
    fn write_proposal(election: &mut Election, version: &str, now: Instant) -> Option<(Term, PreviousHolders)> {
        let proposal = election.proposal(&roster(&["one", "two"]), now).expect("something to write");
        election.record_written(proposal.record, version.to_owned(), now)
    }

    #[test]
    fn the_first_wins_at_once_and_renews_in_time() {
        let (mut one, now) = (election("one"), Instant::now());
        assert_eq!(one.proposal(&roster(&[]), now), None, "the record has not been read");
        one.record_observed(None, now);
        assert_eq!(write_proposal(&mut one, "1", now), Some((Term(1), PreviousHolders::Known(roster(&[])))));
        assert_eq!(one.term_end(), Some(now + TERM_DURATION));
        assert_eq!(one.proposal(&roster(&["one"]), now), None, "not due");
        let later = one.wake_at().unwrap();
        assert!(later < now + TERM_DURATION / 2);
        assert_eq!(write_proposal(&mut one, "2", later), None, "the same term");
        assert_eq!(
            (one.term_end(), one.coordinator()),
            (Some(later + TERM_DURATION), Some((&member_id("one"), Term(1))))
        );
    }

    #[test]
    fn a_member_that_is_new_is_recorded_at_once() {
        let (mut one, now) = (election("one"), Instant::now());
        one.record_observed(None, now);
        write_proposal(&mut one, "1", now);
        let proposal = one.proposal(&roster(&["one", "two", "three"]), now).unwrap();
        assert_eq!(
            (proposal.record.roster, proposal.base_version),
            (roster(&["one", "two", "three"]), Some("1".to_owned()))
        );
    }

    #[test]
    fn a_holder_that_is_silent_for_a_term_is_followed_by_a_member_and_later_by_a_stranger() {
        let (mut two, mut three, now) = (election("two"), election("three"), Instant::now());
        let record =
            LeaderLockRecord { holder: Some(member_id("one")), term: Term(7), roster: roster(&["one", "two"]) };
        for election in [&mut two, &mut three] {
            election.record_observed(Some((record.clone(), "1".to_owned())), now);
            assert_eq!(election.proposal(&roster(&[]), now + TERM_DURATION), None, "its clock may be slow");
        }
        let later = now + FleetTiming::default().with_drift_margin(TERM_DURATION);
        assert_eq!(three.proposal(&roster(&[]), later), None);
        assert_eq!(
            write_proposal(&mut two, "2", later),
            Some((Term(8), PreviousHolders::Known(roster(&["one", "two"]))))
        );
        assert!(three.proposal(&roster(&[]), later + NON_MEMBER_DELAY).is_some());
        // It sees the new term first, and waits again.
        three.record_observed(Some((two.observed.as_ref().unwrap().record.clone(), "2".to_owned())), later);
        assert_eq!(three.proposal(&roster(&[]), later + TERM_DURATION), None);
        assert_eq!(three.coordinator(), Some((&member_id("two"), Term(8))));
    }

    #[test]
    fn who_leaves_gives_its_term_back_and_the_next_has_it_at_once() {
        let (mut one, mut two, now) = (election("one"), election("two"), Instant::now());
        one.record_observed(None, now);
        write_proposal(&mut one, "1", now);
        one.set_leaving();
        let proposal = one.proposal(&roster(&["two"]), now).unwrap();
        assert_eq!(proposal.record, LeaderLockRecord { holder: None, term: Term(1), roster: roster(&["two"]) });
        assert_eq!(one.record_written(proposal.record.clone(), "2".to_owned(), now), None);
        assert_eq!(
            (one.term_end(), one.proposal(&roster(&[]), now + TERM_DURATION * 9)),
            (None, None),
            "it wins no other"
        );
        two.record_observed(Some((proposal.record, "2".to_owned())), now);
        assert_eq!(write_proposal(&mut two, "3", now), Some((Term(2), PreviousHolders::Known(roster(&["two"])))));
    }

    #[test]
    fn who_is_followed_does_not_lead_and_who_comes_late_finds_its_own_term() {
        let (mut one, now) = (election("one"), Instant::now());
        one.record_observed(None, now);
        write_proposal(&mut one, "1", now);
        // It could not renew for long, but no other router has coordinated: the same term goes on.
        assert_eq!(write_proposal(&mut one, "2", now + TERM_DURATION * 3), None);
        assert_eq!(one.term_end(), Some(now + TERM_DURATION * 4));
        let other = LeaderLockRecord { holder: Some(member_id("two")), term: Term(2), roster: roster(&["one", "two"]) };
        one.record_observed(Some((other, "3".to_owned())), now + TERM_DURATION * 5);
        assert_eq!((one.term_end(), one.coordinator()), (None, Some((&member_id("two"), Term(2)))));
        // A restarted router begins a term of its own when it is sure that it is the only one of its name.
        let mut again =
            Election::new(MemberId { incarnation: 2, ..member_id("two") }, TERM_DURATION, FleetTiming::default());
        let before = LeaderLockRecord { holder: Some(member_id("two")), term: Term(2), roster: roster(&["two"]) };
        again.record_observed(Some((before.clone(), "3".to_owned())), now);
        assert_eq!(
            again.proposal(&roster(&[]), now + TERM_DURATION / RENEWALS_PER_TERM),
            None,
            "it may be another of the same name"
        );
        again.record_observed(Some((before, "4".to_owned())), now + TERM_DURATION / RENEWALS_PER_TERM);
        let later = now + TERM_DURATION / RENEWALS_PER_TERM;
        assert_eq!(again.proposal(&roster(&[]), later + TERM_DURATION), None, "it is");
        let proposal =
            again.proposal(&roster(&[]), later + TERM_DURATION * 2).expect("the process of before has ended");
        assert_eq!(proposal.record.term, Term(3));
        assert!(proposal.record.roster.contains(&member_id("two")), "but its requests have not");
    }

    #[test]
    fn a_record_that_is_lost_is_begun_again_in_a_later_term_and_anybody_may_hold_slots() {
        let (mut one, now) = (election("one"), Instant::now());
        one.record_observed(None, now);
        write_proposal(&mut one, "1", now);
        one.record_observed(None, now + TERM_DURATION / 2);
        assert_eq!(one.term_end(), None);
        assert_eq!(write_proposal(&mut one, "1", now + TERM_DURATION / 2), Some((Term(2), PreviousHolders::Unknown)));
    }
}
