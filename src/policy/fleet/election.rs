//! Which router of a group is its coordinator: the one whose name is in a record that all can read and change.
//!
//! A change counts only if nobody else has changed the record since it was read, which is what stores promise. Times of two
//! routers are not compared: a holder is taken to be gone when the record has not changed for the length of a term, on the
//! clock of whoever looks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ledger::Former;
use super::{Epoch, MemberId, Settings};

/// A term is renewed so often in its length.
const RENEWALS: u32 = 3;
/// How much longer somebody waits of whom the last coordinator may not know: for so long a coordinator that cannot reach the
/// store may go by the word of all that it knows ([`Ledger::vouched`](super::ledger::Ledger::vouched)).
pub const STRANGER: Duration = Duration::from_secs(60);

/// What a group's routers write down together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Who coordinates. `None`: who did has given it back.
    pub holder: Option<MemberId>,
    /// Of that coordinator, or the last one.
    pub epoch: Epoch,
    /// Who may hold slots.
    #[serde(default)]
    pub roster: BTreeSet<MemberId>,
}

/// What there is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The new record.
    pub record: Record,
    /// The version it is a change of; `None`: there was none.
    pub onto: Option<String>,
}

/// The state of one router.
#[derive(Debug)]
pub struct Election {
    id: MemberId,
    term: Duration,
    settings: Settings,
    /// `None` until the record has been read once.
    seen: Option<Seen>,
    /// Until when this router coordinates, if it does.
    until: Option<Instant>,
    /// The highest epoch that was ever read: a record can be lost.
    highest: Epoch,
    is_leaving: bool,
}

#[derive(Debug)]
struct Seen {
    record: Record,
    version: Option<String>,
    /// When this version was first seen, or, of one's own, sent.
    since: Instant,
}

impl Election {
    /// Of a router that has just started. A term lasts for `term`, unless it is renewed.
    pub fn new(id: MemberId, term: Duration, settings: Settings) -> Self {
        Self { id, term, settings, seen: None, until: None, highest: Epoch::default(), is_leaving: false }
    }

    /// The record was read: there is none, or this version of it.
    pub fn observed(&mut self, found: Option<(Record, String)>, now: Instant) {
        let (record, version) = match found {
            Some((record, version)) => (record, Some(version)),
            None => (Record::default(), None),
        };
        if self.seen.as_ref().is_some_and(|seen| seen.version == version) {
            return;
        }
        if record.holder.as_ref() != Some(&self.id) {
            self.until = None;
        }
        self.highest = self.highest.max(record.epoch);
        self.seen = Some(Seen { record, version, since: now });
    }

    /// What to write now, if anything; `roster` is that of this router's own term.
    pub fn proposal(&self, roster: &BTreeSet<MemberId>, now: Instant) -> Option<Proposal> {
        let seen = self.seen.as_ref()?;
        let record = if self.until.is_some() {
            let is_due = now >= seen.since + self.term / RENEWALS || !roster.is_subset(&seen.record.roster);
            let holder = (!self.is_leaving).then(|| self.id.clone());
            (is_due || self.is_leaving).then(|| Record { holder, epoch: seen.record.epoch, roster: roster.clone() })
        } else {
            let epoch = Epoch(self.highest.0 + 1);
            let mut roster = seen.record.roster.clone();
            roster.extend(seen.record.holder.clone());
            roster.insert(self.id.clone());
            let holder = Some(self.id.clone());
            (!self.is_leaving && now >= self.vacant_at()?).then_some(Record { holder, epoch, roster })
        };
        record.map(|record| Proposal { record, onto: seen.version.clone() })
    }

    /// A proposal was sent at `sent`, and is the record now. Returns whether a term begins, and who may hold slots from
    /// before.
    pub fn written(&mut self, record: Record, version: String, sent: Instant) -> Option<(Epoch, Former)> {
        let was_leading = self.until.is_some();
        let was_lost = self.highest > Epoch::default();
        self.highest = self.highest.max(record.epoch);
        let before = self.seen.replace(Seen { record: record.clone(), version: Some(version), since: sent });
        if record.holder.as_ref() != Some(&self.id) {
            self.until = None;
            return None;
        }
        self.until = Some(sent + self.term);
        let former = before.filter(|seen| seen.version.is_some()).map(|seen| {
            let mut roster = seen.record.roster;
            roster.extend(seen.record.holder);
            roster
        });
        let former = match former {
            Some(roster) => Former::Only(roster),
            // Who was in it nobody knows.
            None if was_lost => Former::Anybody,
            None => Former::Only(BTreeSet::new()),
        };
        (!was_leading).then_some((record.epoch, former))
    }

    /// Somebody else coordinates, in a term that is later than this router's own.
    pub fn resign(&mut self) {
        self.until = None;
    }

    /// The router ends: it gives the term back, and wins no other.
    pub fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Until when this router's term lasts, as far as the record says, if it has one.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Who coordinates, as far as is known, and since which epoch.
    pub fn leader(&self) -> Option<(&MemberId, Epoch)> {
        let record = &self.seen.as_ref()?.record;
        record.holder.as_ref().map(|holder| (holder, record.epoch))
    }

    /// Who may hold slots, as the record says; a router that coordinates alone until others have come.
    pub fn roster(&self) -> BTreeSet<MemberId> {
        self.seen.iter().flat_map(|seen| seen.record.roster.iter().chain(&seen.record.holder)).cloned().collect()
    }

    /// When there may be something to propose, if the record is not changed before.
    pub fn wake_at(&self) -> Option<Instant> {
        match (&self.seen, self.until) {
            (Some(seen), Some(_)) => Some(seen.since + self.term / RENEWALS),
            _ if self.is_leaving => None,
            _ => self.vacant_at(),
        }
    }

    /// When the term of whoever holds it is surely over, unless it is renewed. A name is one process's at a time: an earlier
    /// one of this router's has ended, if it does not renew its term while this one looks.
    fn vacant_at(&self) -> Option<Instant> {
        let seen = self.seen.as_ref()?;
        let Some(holder) = &seen.record.holder else { return Some(seen.since) };
        if *holder == self.id {
            return Some(seen.since);
        }
        let is_known = seen.record.roster.iter().any(|member| member.name == self.id.name);
        let more = if is_known { Duration::ZERO } else { STRANGER };
        Some(seen.since + self.settings.surely(self.term) + more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(5);

    fn id(name: &str) -> MemberId {
        MemberId { name: name.into(), incarnation: 1 }
    }

    fn election(name: &str) -> Election {
        Election::new(id(name), TERM, Settings::default())
    }

    fn roster(names: &[&str]) -> BTreeSet<MemberId> {
        names.iter().map(|name| id(name)).collect()
    }

    /// Somebody writes what they propose.
    fn win(election: &mut Election, version: &str, now: Instant) -> Option<(Epoch, Former)> {
        let proposal = election.proposal(&roster(&["one", "two"]), now).expect("something to write");
        election.written(proposal.record, version.to_owned(), now)
    }

    #[test]
    fn the_first_wins_at_once_and_renews_in_time() {
        let (mut one, now) = (election("one"), Instant::now());
        assert_eq!(one.proposal(&roster(&[]), now), None, "the record has not been read");
        one.observed(None, now);
        assert_eq!(win(&mut one, "1", now), Some((Epoch(1), Former::Only(roster(&[])))));
        assert_eq!(one.until(), Some(now + TERM));
        assert_eq!(one.proposal(&roster(&["one"]), now), None, "not due");
        let later = one.wake_at().unwrap();
        assert!(later < now + TERM / 2);
        assert_eq!(win(&mut one, "2", later), None, "the same term");
        assert_eq!((one.until(), one.leader()), (Some(later + TERM), Some((&id("one"), Epoch(1)))));
    }

    #[test]
    fn a_member_that_is_new_is_recorded_at_once() {
        let (mut one, now) = (election("one"), Instant::now());
        one.observed(None, now);
        win(&mut one, "1", now);
        let proposal = one.proposal(&roster(&["one", "two", "three"]), now).unwrap();
        assert_eq!((proposal.record.roster, proposal.onto), (roster(&["one", "two", "three"]), Some("1".to_owned())));
    }

    #[test]
    fn a_holder_that_is_silent_for_a_term_is_followed_by_a_member_and_later_by_a_stranger() {
        let (mut two, mut three, now) = (election("two"), election("three"), Instant::now());
        let record = Record { holder: Some(id("one")), epoch: Epoch(7), roster: roster(&["one", "two"]) };
        for election in [&mut two, &mut three] {
            election.observed(Some((record.clone(), "1".to_owned())), now);
            assert_eq!(election.proposal(&roster(&[]), now + TERM), None, "its clock may be slow");
        }
        let later = now + Settings::default().surely(TERM);
        assert_eq!(three.proposal(&roster(&[]), later), None);
        assert_eq!(win(&mut two, "2", later), Some((Epoch(8), Former::Only(roster(&["one", "two"])))));
        assert!(three.proposal(&roster(&[]), later + STRANGER).is_some());
        // It sees the new term first, and waits again.
        three.observed(Some((two.seen.as_ref().unwrap().record.clone(), "2".to_owned())), later);
        assert_eq!(three.proposal(&roster(&[]), later + TERM), None);
        assert_eq!(three.leader(), Some((&id("two"), Epoch(8))));
    }

    #[test]
    fn who_leaves_gives_its_term_back_and_the_next_has_it_at_once() {
        let (mut one, mut two, now) = (election("one"), election("two"), Instant::now());
        one.observed(None, now);
        win(&mut one, "1", now);
        one.leave();
        let proposal = one.proposal(&roster(&["two"]), now).unwrap();
        assert_eq!(proposal.record, Record { holder: None, epoch: Epoch(1), roster: roster(&["two"]) });
        assert_eq!(one.written(proposal.record.clone(), "2".to_owned(), now), None);
        assert_eq!((one.until(), one.proposal(&roster(&[]), now + TERM * 9)), (None, None), "it wins no other");
        two.observed(Some((proposal.record, "2".to_owned())), now);
        assert_eq!(win(&mut two, "3", now), Some((Epoch(2), Former::Only(roster(&["two"])))));
    }

    #[test]
    fn who_is_followed_does_not_lead_and_who_comes_late_finds_its_own_term() {
        let (mut one, now) = (election("one"), Instant::now());
        one.observed(None, now);
        win(&mut one, "1", now);
        // It could not renew for long, but nobody else has led: the same term goes on.
        assert_eq!(win(&mut one, "2", now + TERM * 3), None);
        assert_eq!(one.until(), Some(now + TERM * 4));
        let other = Record { holder: Some(id("two")), epoch: Epoch(2), roster: roster(&["one", "two"]) };
        one.observed(Some((other, "3".to_owned())), now + TERM * 5);
        assert_eq!((one.until(), one.leader()), (None, Some((&id("two"), Epoch(2)))));
        // Who was restarted begins a term of its own when it is sure that it is the only one of its name.
        let mut again = Election::new(MemberId { incarnation: 2, ..id("two") }, TERM, Settings::default());
        let before = Record { holder: Some(id("two")), epoch: Epoch(2), roster: roster(&["two"]) };
        again.observed(Some((before.clone(), "3".to_owned())), now);
        assert_eq!(again.proposal(&roster(&[]), now + TERM / RENEWALS), None, "it may be another of the same name");
        again.observed(Some((before, "4".to_owned())), now + TERM / RENEWALS);
        let later = now + TERM / RENEWALS;
        assert_eq!(again.proposal(&roster(&[]), later + TERM), None, "it is");
        let proposal = again.proposal(&roster(&[]), later + TERM * 2).expect("the process of before has ended");
        assert_eq!(proposal.record.epoch, Epoch(3));
        assert!(proposal.record.roster.contains(&id("two")), "but its requests have not");
    }

    #[test]
    fn a_record_that_is_lost_is_begun_again_in_a_later_term_and_anybody_may_hold_slots() {
        let (mut one, now) = (election("one"), Instant::now());
        one.observed(None, now);
        win(&mut one, "1", now);
        one.observed(None, now + TERM / 2);
        assert_eq!(one.until(), None);
        assert_eq!(win(&mut one, "1", now + TERM / 2), Some((Epoch(2), Former::Anybody)));
    }
}
