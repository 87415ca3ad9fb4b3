//! What a member says to its coordinator, and makes of the answers.

use std::time::Instant;

use super::super::{Beat, Hello, Lot, Report, ToCoordinator, Update};
use super::share::Share;
use super::{Member, Phase};

impl Member {
    pub(super) fn hello(&mut self, now: Instant) -> ToCoordinator {
        let beat = self.next_number(now);
        let is_leased = now < self.valid_until;
        let shares = self.shares.iter();
        let claims = shares.flat_map(|(name, share)| share.claims(is_leased, now >= self.abort_at(name)));
        let claims: Vec<_> = claims.collect();
        let settings = self.settings;
        let (mut barred, mut demand) = (Vec::new(), Vec::new());
        for (deployment, share) in &mut self.shares {
            share.begin();
            barred.extend(share.unusable());
            demand.extend(share.demand(deployment, now, true, &settings));
        }
        let hello = Hello { epoch: self.epoch, session: self.session, beat, claims: claims.clone(), barred, demand };
        self.phase = Phase::Greeted(claims, now);
        ToCoordinator::Hello(hello)
    }

    pub(super) fn report(&mut self, now: Instant) -> Option<ToCoordinator> {
        let (epoch, session, settings) = (self.epoch, self.session, self.settings);
        if self.is_retiring {
            let counts = self.shares.values().map(Share::count);
            if counts.map(|(_, busy, borrowed)| busy + borrowed).sum::<u32>() == 0 {
                // Nothing may start on what the coordinator takes back now.
                self.disconnected();
                self.valid_until = now;
                return Some(ToCoordinator::Bye { epoch, session });
            }
        }
        let is_due = now >= self.next_beat;
        let answered = self.answered;
        let beat = is_due.then(|| Beat { number: self.next_number(now), answered });
        let (mut returned, mut barred, mut demand) = (Vec::new(), Vec::new(), Vec::new());
        for (deployment, share) in &mut self.shares {
            returned.extend(share.take_returned());
            barred.extend(share.take_barred());
            demand.extend(share.demand(deployment, now, is_due, &settings));
        }
        let is_empty = beat.is_none() && returned.is_empty() && barred.is_empty() && demand.is_empty();
        let report = Report { epoch, session, beat, returned, barred, demand };
        (!is_empty).then_some(ToCoordinator::Report(report))
    }

    pub(super) fn welcome(&mut self, beat: u64, keep: &[Lot], now: Instant) {
        let Phase::Greeted(claims, sent) = &self.phase else { return };
        self.valid_until = *sent + self.settings.lease;
        for (deployment, share) in &mut self.shares {
            share.hold(claims.iter().filter(|claim| claim.replica.deployment == *deployment));
        }
        (self.phase, self.heard) = (Phase::Open, now);
        self.answer(beat);
        self.keep(keep);
        self.review_every();
    }

    pub(super) fn update(&mut self, update: &Update, now: Instant) {
        self.heard = now;
        if let Some(beat) = update.beat {
            self.answer(beat);
        }
        for (key, slots) in &update.granted {
            self.share(&key.deployment).grant(key, *slots);
        }
        self.keep(&update.keep);
        for wanted in &update.wanted {
            self.share(&wanted.deployment).want(wanted, now);
        }
        self.review_every();
    }

    /// The lease lasts from when the beat was sent: the coordinator counts from later.
    pub(super) fn answer(&mut self, beat: u64) {
        if let Some((_, sent)) = self.unanswered.iter().find(|sent| sent.0 == beat) {
            self.valid_until = self.valid_until.max(*sent + self.settings.lease);
        }
        self.unanswered.retain(|sent| sent.0 > beat);
        self.answered = self.answered.max(beat);
    }

    pub(super) fn keep(&mut self, keep: &[Lot]) {
        for (key, keep) in keep {
            self.share(&key.deployment).keep(key, *keep);
        }
    }
}
