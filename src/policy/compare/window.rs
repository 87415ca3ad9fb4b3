//! A sliding window over the last pairs of answers to the mirrored requests of an endpoint.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::report::{ComparisonReport, DifferenceSample, PlaceReport, ShareEstimate, SideReport};
use super::{CapturedAnswer, ComparisonOutcome, Difference, NotComparedReason};

/// Older pairs are dropped.
pub const WINDOW_DURATION: Duration = Duration::from_secs(3600);
/// The largest number of pairs.
pub const MAX_PAIRS: usize = 10_000;
/// Memory of one pair in bytes, without its places.
pub const PAIR_BYTES: usize = size_of::<AnswerPair>();
/// The largest number of distinct places. Further ones are counted as [`OTHER_PLACES`].
const MOST_PLACES: usize = 200;
/// The place under which differences are counted when there are too many distinct places.
pub const OTHER_PLACES: &str = "(other places)";
/// The number of places in a report.
const MAX_REPORTED_PLACES: usize = 10;
/// The number of differing pairs that are kept as samples.
const MAX_SAMPLES: usize = 20;
/// The number of differences of a sample.
const MAX_SAMPLE_DIFFERENCES: usize = 5;

/// The last pairs of an endpoint.
#[derive(Debug)]
pub struct ComparisonWindow {
    /// Times are relative to this.
    start: Instant,
    pairs: VecDeque<AnswerPair>,
    /// For each place, the number of pairs that differ there. Places without pairs are reused.
    places: Vec<(String, u32)>,
    samples: VecDeque<(Instant, DifferenceSample)>,
}

#[derive(Debug)]
struct AnswerPair {
    /// Whole seconds since `start`.
    at: u32,
    outcome: ComparisonOutcome,
    live: AnswerSummary,
    shadow: AnswerSummary,
    /// Indices of places.
    places: Box<[u8]>,
}

#[derive(Debug, Clone, Copy)]
struct AnswerSummary {
    /// The status; 0 if it is unknown.
    status: u16,
    /// Microseconds; [`u32::MAX`] if there was no answer.
    latency: u32,
    bytes: u32,
}

impl ComparisonWindow {
    /// Creates an empty window.
    pub fn new(now: Instant) -> Self {
        Self { start: now, pairs: VecDeque::new(), places: Vec::new(), samples: VecDeque::new() }
    }

    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Adds a pair. `may_grow` says whether there is memory for one more. Without it the oldest pair is dropped, and if
    /// there is none the new pair is not added.
    pub fn push(
        &mut self,
        now: Instant,
        live: &CapturedAnswer,
        shadow: &CapturedAnswer,
        outcome: ComparisonOutcome,
        differences: &[Difference],
        may_grow: bool,
    ) {
        self.drop_expired(now);
        if self.pairs.len() >= MAX_PAIRS || !may_grow {
            if self.pairs.is_empty() {
                return;
            }
            self.drop_oldest();
        }
        let mut places: Vec<u8> = Vec::with_capacity(differences.len());
        for difference in differences {
            let place = self.intern_place(&difference.place);
            if !places.contains(&place) {
                places.push(place);
                // Counted at once, because the next place must not find this one free.
                self.places[usize::from(place)].1 += 1;
            }
        }
        let at = u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX);
        let places = places.into_boxed_slice();
        self.pairs.push_back(AnswerPair {
            at,
            outcome,
            live: AnswerSummary::from_answer(live),
            shadow: AnswerSummary::from_answer(shadow),
            places,
        });
    }

    /// Keeps a pair that differs as a sample.
    pub fn add_sample(&mut self, now: Instant, mut sample: DifferenceSample) {
        sample.differences.truncate(MAX_SAMPLE_DIFFERENCES);
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, sample));
    }

    /// Drops pairs that are too old.
    pub fn drop_expired(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start).as_secs();
        while self.pairs.front().is_some_and(|pair| u64::from(pair.at) + WINDOW_DURATION.as_secs() < elapsed) {
            self.drop_oldest();
        }
        while self.samples.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW_DURATION) {
            self.samples.pop_front();
        }
    }

    /// Returns a report of the window.
    pub fn report(&self, now: Instant) -> ComparisonReport {
        let mut results: BTreeMap<String, u64> = BTreeMap::new();
        let mut not_compared: BTreeMap<String, u64> = BTreeMap::new();
        let (mut agreeing, mut compared, mut has_bodies) = (0, 0, true);
        for pair in &self.pairs {
            *results.entry(pair.outcome.as_str().to_owned()).or_default() += 1;
            match pair.outcome {
                ComparisonOutcome::NotCompared(gap) => {
                    *not_compared.entry(gap.as_str().to_owned()).or_default() += 1;
                    has_bodies &= gap != NotComparedReason::Off;
                }
                ComparisonOutcome::Equal | ComparisonOutcome::WithinTolerance => {
                    (agreeing, compared) = (agreeing + 1, compared + 1)
                }
                ComparisonOutcome::Different | ComparisonOutcome::StatusDiffers => compared += 1,
            }
        }
        let elapsed = now.saturating_duration_since(self.start).as_secs();
        ComparisonReport {
            pairs: self.pairs.len() as u64,
            span_seconds: self.pairs.front().map_or(0, |pair| elapsed.saturating_sub(u64::from(pair.at))),
            results,
            not_compared,
            // If only statuses are compared, only differing ones are known.
            agreement: ShareEstimate::new(agreeing, compared).filter(|_| has_bodies),
            live: summarize_side(self.pairs.iter().map(|pair| pair.live)),
            shadow: summarize_side(self.pairs.iter().map(|pair| pair.shadow)),
            places: self.most_frequent(),
            samples: self.samples.iter().map(|(_, sample)| sample.clone()).collect(),
        }
    }

    fn most_frequent(&self) -> Vec<PlaceReport> {
        let used = self.places.iter().filter(|(_, pairs)| *pairs > 0);
        let mut all: Vec<_> =
            used.map(|(place, pairs)| PlaceReport { place: place.clone(), pairs: u64::from(*pairs) }).collect();
        all.sort_by(|one, other| other.pairs.cmp(&one.pairs).then_with(|| one.place.cmp(&other.place)));
        all.truncate(MAX_REPORTED_PLACES);
        all
    }

    /// Returns the index of a place.
    fn intern_place(&mut self, place: &str) -> u8 {
        let known = |places: &[(String, u32)], place: &str| places.iter().position(|(known, _)| known == place);
        let index = known(&self.places, place).unwrap_or_else(|| {
            let free = self.places.iter().position(|(_, pairs)| *pairs == 0);
            match free {
                Some(index) => self.places[index].0 = place.to_owned(),
                None if self.places.len() < MOST_PLACES => self.places.push((place.to_owned(), 0)),
                None => {
                    return known(&self.places, OTHER_PLACES).unwrap_or_else(|| {
                        self.places.push((OTHER_PLACES.to_owned(), 0));
                        self.places.len() - 1
                    });
                }
            }
            free.unwrap_or(self.places.len() - 1)
        });
        u8::try_from(index).unwrap_or(u8::MAX)
    }

    fn drop_oldest(&mut self) {
        let Some(pair) = self.pairs.pop_front() else { return };
        for place in pair.places {
            self.places[usize::from(place)].1 -= 1;
        }
    }
}

impl AnswerSummary {
    fn from_answer(answer: &CapturedAnswer) -> Self {
        let micros = |latency: Duration| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX - 1);
        Self {
            status: answer.status().unwrap_or_default(),
            latency: answer.latency.map_or(u32::MAX, micros),
            bytes: u32::try_from(answer.bytes).unwrap_or(u32::MAX),
        }
    }
}

fn summarize_side(of: impl Iterator<Item = AnswerSummary> + Clone) -> SideReport {
    let mut statuses: BTreeMap<String, u64> = BTreeMap::new();
    for side in of.clone() {
        let class = match side.status / 100 {
            0 => "none".to_owned(),
            class => format!("{class}xx"),
        };
        *statuses.entry(class).or_default() += 1;
    }
    let known = of.clone().filter(|side| side.status > 0);
    let errors = known.clone().filter(|side| side.status >= 500).count();
    let mut latencies: Vec<u32> = of.clone().map(|side| side.latency).filter(|latency| *latency < u32::MAX).collect();
    latencies.sort_unstable();
    let quantile = |part: usize| latencies.get(latencies.len() * part / 100).map(|micros| f64::from(*micros) / 1e3);
    let quantiles = [("p50", 50), ("p90", 90), ("p99", 99)];
    SideReport {
        statuses,
        errors: ShareEstimate::new(errors as u64, known.count() as u64),
        latency_ms: quantiles.iter().filter_map(|(name, part)| Some(((*name).to_owned(), quantile(*part)?))).collect(),
        bytes: of.map(|side| u64::from(side.bytes)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::AnswerEnd;
    use super::*;

    fn answer(status: u16, milliseconds: u64) -> CapturedAnswer {
        let latency = Some(Duration::from_millis(milliseconds));
        CapturedAnswer {
            end: AnswerEnd::Complete(status),
            latency,
            bytes: 10,
            body: Err(NotComparedReason::Off),
            is_encoded: false,
        }
    }

    fn at(places: &[&str]) -> Vec<Difference> {
        places.iter().map(|place| Difference { place: (*place).to_owned(), what: String::new() }).collect()
    }

    #[test]
    fn what_is_told_is_what_was_noted() {
        let now = Instant::now();
        let mut window = ComparisonWindow::new(now);
        for number in 0..100 {
            let (outcome, places) = match number {
                0..96 => (ComparisonOutcome::Equal, at(&[])),
                96 => (ComparisonOutcome::WithinTolerance, at(&[])),
                97 => (ComparisonOutcome::Different, at(&["$.a", "$.b"])),
                98 => (ComparisonOutcome::Different, at(&["$.b"])),
                _ => (ComparisonOutcome::NotCompared(NotComparedReason::TooLarge), at(&[])),
            };
            let shadow = answer(if number == 0 { 500 } else { 200 }, 2 * (number + 1));
            window.push(now, &answer(200, number + 1), &shadow, outcome, &places, true);
        }
        let report = window.report(now + Duration::from_secs(5));
        assert_eq!((report.pairs, report.span_seconds), (100, 5));
        let agreement = report.agreement.unwrap();
        assert_eq!((agreement.share, agreement.of), (97.0 / 99.0, 99));
        assert_eq!(report.results["not_compared"], 1);
        assert_eq!(report.not_compared["too_large"], 1);
        assert_eq!(report.live.latency_ms["p50"], 51.0);
        assert_eq!((report.shadow.latency_ms["p99"], report.shadow.bytes), (200.0, 1_000));
        assert_eq!((report.shadow.statuses["5xx"], report.live.statuses["2xx"]), (1, 100));
        assert_eq!(report.shadow.errors.unwrap().share, 0.01);
        let places: Vec<_> = report.places.iter().map(|place| (place.place.as_str(), place.pairs)).collect();
        assert_eq!(places, [("$.b", 2), ("$.a", 1)]);
    }

    #[test]
    fn it_slides_by_time_and_by_number_and_places_go_with_their_pairs() {
        let now = Instant::now();
        let mut window = ComparisonWindow::new(now);
        let push = |window: &mut ComparisonWindow, now, places: &[&str], may_grow| {
            window.push(now, &answer(200, 1), &answer(200, 1), ComparisonOutcome::Different, &at(places), may_grow);
            window.len()
        };
        assert_eq!(push(&mut window, now, &["$.old"], false), 0, "no memory at all");
        for count in 1..=MAX_PAIRS {
            assert_eq!(push(&mut window, now, &["$.old"], true), count);
        }
        let later = now + Duration::from_secs(60);
        for _ in 0..10 {
            assert_eq!(push(&mut window, later, &["$.new"], true), MAX_PAIRS, "the oldest makes room");
        }
        assert_eq!(push(&mut window, later, &["$.new"], false), MAX_PAIRS, "as it does without memory");
        let report = window.report(later);
        assert_eq!((report.pairs, report.places[1].pairs), (MAX_PAIRS as u64, 11));
        let much_later = now + WINDOW_DURATION + Duration::from_secs(30);
        assert_eq!(push(&mut window, much_later, &["$.new"], true), 12);
        let report = window.report(much_later);
        assert_eq!((report.places.len(), report.places[0].pairs), (1, 12));
    }

    #[test]
    fn places_beyond_all_bounds_are_counted_together() {
        let now = Instant::now();
        let mut window = ComparisonWindow::new(now);
        for number in 0..1_000 {
            let places = at(&[&format!("$.n{number}"), "$.same"]);
            window.push(now, &answer(200, 1), &answer(200, 1), ComparisonOutcome::Different, &places, true);
        }
        let report = window.report(now);
        assert_eq!((report.places[0].place.as_str(), report.places[0].pairs), ("$.same", 1_000));
        assert_eq!((report.places[1].place.as_str(), report.places[1].pairs), (OTHER_PLACES, 801));
        assert_eq!(report.places.len(), MAX_REPORTED_PLACES);
    }

    #[test]
    fn samples_are_few_and_short() {
        let now = Instant::now();
        let mut window = ComparisonWindow::new(now);
        for number in 0..30 {
            let differences = at(&["$.a", "$.b", "$.c", "$.d", "$.e", "$.f"]);
            let (live_status, shadow_status) = (Some(200), Some(200));
            let (time, request_id) = (String::new(), number.to_string());
            window.add_sample(
                now,
                DifferenceSample {
                    time,
                    request_id,
                    live_status,
                    shadow_status,
                    live_broke_off: false,
                    shadow_broke_off: false,
                    differences,
                },
            );
        }
        let samples = window.report(now).samples;
        assert_eq!((samples.len(), samples[19].request_id.as_str(), samples[0].differences.len()), (20, "29", 5));
        window.drop_expired(now + WINDOW_DURATION * 2);
        assert!(window.report(now).samples.is_empty());
    }
}
