//! What a member says to its coordinator, and makes of the answers.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::{Beat, Claim, Deployment, Hello, Lot, Report, ToCoordinator, Update};
use super::{Member, Phase, Shares};

impl<S: Shares> Member<S> {
    pub(super) fn hello(&mut self, now: Instant) -> ToCoordinator {
        let beat = self.next_number(now);
        let terms = self.terms();
        let is_leased = now < terms.valid_until;
        let (mut claims, mut barred, mut demand) = (Vec::new(), Vec::new(), Vec::new());
        self.shares.each(|deployment, share| {
            claims.extend(share.claims(is_leased, now >= terms.abort_at(share.hold_time())));
            share.begin();
            barred.extend(share.unusable());
            demand.extend(share.demand(deployment, now, true, &terms.settings));
        });
        let loads = self.loads.iter_mut().map(|(name, news)| (name.clone(), news.begin(now))).collect();
        let (epoch, session) = (self.epoch, self.session);
        let hello = Hello { epoch, session, beat, claims: claims.clone(), barred, demand, loads };
        self.phase = Phase::Greeted(claims, now);
        ToCoordinator::Hello(hello)
    }

    pub(super) fn report(&mut self, now: Instant) -> Option<ToCoordinator> {
        let (epoch, session, settings) = (self.epoch, self.session, self.terms.settings);
        if self.terms.is_retiring {
            let mut in_flight = 0;
            self.shares.restless(|_, share| {
                let (_, busy, borrowed) = share.count();
                in_flight += busy + borrowed;
            });
            if in_flight == 0 {
                // Nothing may start on what the coordinator takes back now.
                self.disconnected();
                self.terms.valid_until = now;
                return Some(ToCoordinator::Bye { epoch, session });
            }
        }
        let is_due = now >= self.next_beat;
        // One at a time: as often as the coordinator answers.
        let mut asks = false;
        if self.unanswered.is_empty() {
            self.shares.restless(|_, share| asks |= share.has_yielded());
        }
        let (answered, next_beat) = (self.answered, self.next_beat);
        let beat = (is_due || asks).then(|| Beat { number: self.next_number(now), answered });
        if !is_due {
            // The next that tells everything comes when it would have come.
            self.next_beat = next_beat;
        }
        let (mut returned, mut barred, mut demand) = (Vec::new(), Vec::new(), Vec::new());
        self.shares.restless(|deployment, share| {
            returned.extend(share.take_returned());
            if let Some(beat) = beat {
                share.said_with(beat.number);
            }
            barred.extend(share.take_barred());
            demand.extend(share.demand(deployment, now, is_due, &settings));
        });
        let loads = self.loads.iter_mut();
        let loads: Vec<_> = loads.filter_map(|(name, news)| Some((name.clone(), news.take(now, &settings)?))).collect();
        let nothing_moves = returned.is_empty() && barred.is_empty() && demand.is_empty();
        let is_empty = beat.is_none() && nothing_moves && loads.is_empty();
        let report = Report { epoch, session, beat, returned, barred, demand, loads };
        (!is_empty).then_some(ToCoordinator::Report(report))
    }

    pub(super) fn welcome(&mut self, beat: u64, keep: &[Lot], now: Instant) {
        let Phase::Greeted(claims, sent) = &self.phase else { return };
        self.terms.valid_until = *sent + self.terms.settings.lease;
        let mut by_deployment: BTreeMap<&Deployment, Vec<&Claim>> = BTreeMap::new();
        for claim in claims {
            by_deployment.entry(&claim.replica.deployment).or_default().push(claim);
        }
        self.shares.each(|deployment, share| share.hold(by_deployment.get(deployment).into_iter().flatten().copied()));
        (self.phase, self.heard, self.terms.has_joined) = (Phase::Open, now, true);
        self.answer(beat, now);
        self.keep(keep);
        self.review_every();
    }

    pub(super) fn update(&mut self, update: &Update, now: Instant) {
        self.heard = now;
        if let Some(beat) = update.beat {
            self.answer(beat, now);
        }
        for (key, slots) in &update.granted {
            self.shares.of(&key.deployment, |share| share.grant(key, *slots));
        }
        self.keep(&update.keep);
        for wanted in &update.wanted {
            self.shares.of(&wanted.deployment, |share| share.want(wanted, now));
        }
        self.review_every();
    }

    /// The lease lasts from when the beat was sent: the coordinator counts from later.
    pub(super) fn answer(&mut self, beat: u64, now: Instant) {
        if let Some((_, sent)) = self.unanswered.iter().find(|sent| sent.0 == beat) {
            let took = now.saturating_duration_since(*sent);
            self.terms.settings.patience = self.pace.patience(took, self.terms.settings.heartbeat);
            self.terms.valid_until = self.terms.valid_until.max(*sent + self.terms.settings.lease);
        }
        self.unanswered.retain(|sent| sent.0 > beat);
        self.answered = self.answered.max(beat);
        self.shares.restless(|_, share| share.heard(beat));
    }

    pub(super) fn keep(&mut self, keep: &[Lot]) {
        for (key, keep) in keep {
            self.shares.of(&key.deployment, |share| share.keep(key, *keep));
        }
    }
}
