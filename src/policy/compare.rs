//! Comparison of two answers to one request.
//!
//! JSON is compared by place: numbers within a tolerance, lists in order unless the rules say otherwise, without
//! ignored places. Differing places are reported without positions in lists, so that those of many answers add up.

use serde_json::{Map, Number, Value};

use crate::model::endpoint::ComparisonSettings as Rules;
use crate::model::json_path::{self, JsonStep};

mod answer;
mod matching;
mod report;
pub mod window;

pub use answer::{AnswerEnd, CapturedAnswer, ComparisonOutcome, NotComparedReason, compare_answers};
pub use report::{ComparisonReport, DifferenceSample, EndpointReport, ShareEstimate, SideReport};

/// The longest reported place, in characters.
const LONGEST_PLACE: usize = 200;
/// The largest number of places that one comparison reports.
const MOST_PLACES: usize = 20;
/// Lists without an order are matched item by item up to this length. Longer ones are sorted first, numbers by value
/// and other items by their text.
const MATCHED: usize = 64;
/// The largest number of values that one comparison visits. Lists without an order inside each other visit values many
/// times.
const MOST_VALUES: u32 = 4_000_000;

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Equal,
    /// Some numbers differ, within the tolerance.
    WithinTolerance,
    /// These places differ, each listed once, in the order of the live answer. There may be more.
    Different(Vec<Difference>),
    /// The comparison was given up because it would have taken too long.
    TooMuchWork,
}

/// A place where answers differ.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// The JSON path, such as `$.predictions[*].score`.
    pub place: String,
    /// How the answers differ, without any content but lengths, and by which fraction of the larger one numbers differ.
    /// Their absolute distance would reveal a number where the other one is zero.
    pub what: String,
}

impl Verdict {
    /// Returns the difference of two answers as a whole.
    fn whole_body(what: &str) -> Self {
        Self::Different(vec![Difference { place: "$".to_owned(), what: what.to_owned() }])
    }
}

/// Compares two answers: as JSON if both are JSON, otherwise byte by byte.
pub fn compare(live: &[u8], shadow: &[u8], rules: &Rules) -> Verdict {
    match (serde_json::from_slice(live), serde_json::from_slice(shadow)) {
        (Ok(live), Ok(shadow)) => compare_json(&live, &shadow, rules),
        _ if live == shadow => Verdict::Equal,
        (Ok(_), Err(_)) => Verdict::whole_body("only the live one is JSON"),
        (Err(_), Ok(_)) => Verdict::whole_body("only the shadow's is JSON"),
        _ => Verdict::whole_body(&format!("other content, of {} and {} bytes", live.len(), shadow.len())),
    }
}

/// Compares two documents.
pub fn compare_json(live: &Value, shadow: &Value, rules: &Rules) -> Verdict {
    let mut comparison = Comparison { rules, at: Vec::new(), is_close: false, places: Vec::new(), left: MOST_VALUES };
    comparison.values(live, shadow);
    match comparison {
        Comparison { left: 0, .. } => Verdict::TooMuchWork,
        Comparison { places, .. } if !places.is_empty() => Verdict::Different(places),
        Comparison { is_close: true, .. } => Verdict::WithinTolerance,
        _ => Verdict::Equal,
    }
}

struct Comparison<'r, 'v> {
    rules: &'r Rules,
    at: Vec<JsonStep<'v>>,
    /// Whether any two numbers were only within the tolerance.
    is_close: bool,
    places: Vec<Difference>,
    /// The number of values that may still be visited.
    left: u32,
}

impl<'v> Comparison<'_, 'v> {
    fn values(&mut self, live: &'v Value, shadow: &'v Value) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return;
        }
        if self.rules.ignored_paths.iter().any(|place| place.matches(&self.at)) {
            return;
        }
        match (live, shadow) {
            (Value::Object(live), Value::Object(shadow)) => self.objects(live, shadow),
            (Value::Array(live), Value::Array(shadow)) => {
                if self.rules.unordered_paths.iter().any(|place| place.matches(&self.at)) {
                    self.sets(live, shadow);
                } else {
                    self.lists(live, shadow);
                }
            }
            (Value::Number(live), Value::Number(shadow)) => self.numbers(live, shadow),
            _ if live == shadow => {}
            _ => self.record_difference(|| describe_difference(live, shadow)),
        }
    }

    fn objects(&mut self, live: &'v Map<String, Value>, shadow: &'v Map<String, Value>) {
        for (name, live) in live {
            self.compare_inside(JsonStep::Name(name), |this| match shadow.get(name) {
                Some(shadow) => this.values(live, shadow),
                None => this.record_missing("only in the live one"),
            });
        }
        for name in shadow.keys().filter(|name| !live.contains_key(*name)) {
            self.compare_inside(JsonStep::Name(name), |this| this.record_missing("only in the shadow's"));
        }
    }

    fn lists(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.record_difference(|| format!("lists of {} and {}", live.len(), shadow.len()));
        }
        for (index, (live, shadow)) in live.iter().zip(shadow).enumerate() {
            self.compare_inside(JsonStep::Index(index), |this| this.values(live, shadow));
        }
    }

    /// Compares lists without an order: each item must agree with another item of the other side.
    fn sets(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.record_difference(|| format!("lists of {} and {}", live.len(), shadow.len()));
        }
        if live.len() > MATCHED {
            for (live, shadow) in sorted_items(live).into_iter().zip(sorted_items(shadow)) {
                self.compare_inside(JsonStep::Index(0), |this| this.values(live, shadow));
            }
            return;
        }
        let verdicts: Vec<Vec<Verdict>> =
            live.iter().map(|item| shadow.iter().map(|other| self.compare_items(item, other)).collect()).collect();
        let is_equal = |item: usize, other: usize| verdicts[item][other] == Verdict::Equal;
        let agrees = |item, other| is_equal(item, other) || verdicts[item][other] == Verdict::WithinTolerance;
        if matching::has_perfect_matching(live.len(), is_equal) {
            return;
        }
        if matching::has_perfect_matching(live.len(), agrees) {
            self.is_close = true;
        } else {
            self.compare_inside(JsonStep::Index(0), |this| {
                this.record_difference(|| "an item that the other has not".to_owned())
            });
        }
    }

    /// Compares two items of a list in isolation.
    fn compare_items(&mut self, live: &'v Value, shadow: &'v Value) -> Verdict {
        let mut at = self.at.clone();
        at.push(JsonStep::Index(0));
        let mut inner = Comparison { at, places: Vec::new(), is_close: false, ..*self };
        inner.values(live, shadow);
        self.left = inner.left;
        match (inner.places.is_empty(), inner.is_close) {
            (true, false) => Verdict::Equal,
            (true, true) => Verdict::WithinTolerance,
            (false, _) => Verdict::Different(Vec::new()),
        }
    }

    fn numbers(&mut self, live: &Number, shadow: &Number) {
        // Whole numbers have more digits than a float can represent.
        let is_same = live == shadow || live.is_f64() != shadow.is_f64() && live.as_f64() == shadow.as_f64();
        if is_same {
            return;
        }
        let (Some(live), Some(shadow)) = (live.as_f64(), shadow.as_f64()) else {
            return self.record_difference(|| "numbers".to_owned());
        };
        let tolerance = self.rules.numeric_tolerance;
        let difference = (live - shadow).abs();
        if tolerance > 0.0 && (difference <= tolerance || difference <= tolerance * live.abs().max(shadow.abs())) {
            self.is_close = true;
        } else {
            let part = difference / live.abs().max(shadow.abs());
            self.record_difference(|| format!("numbers, by {:.3} %", part * 100.0));
        }
    }

    fn compare_inside(&mut self, step: JsonStep<'v>, compare: impl FnOnce(&mut Self)) {
        self.at.push(step);
        compare(self);
        self.at.pop();
    }

    /// Records that only one side has a value here.
    fn record_missing(&mut self, what: &str) {
        if !self.rules.ignored_paths.iter().any(|place| place.matches(&self.at)) {
            self.record_difference(|| what.to_owned());
        }
    }

    fn record_difference(&mut self, what: impl FnOnce() -> String) {
        let place = shorten_path(json_path::format_json_path(&self.at));
        if self.places.len() < MOST_PLACES && !self.places.iter().any(|known| known.place == place) {
            self.places.push(Difference { place, what: what() });
        }
    }
}

/// Sorts the items of a list whose order is ignored, so that agreeing items are at the same position.
fn sorted_items(items: &[Value]) -> Vec<&Value> {
    let mut in_order: Vec<(Option<f64>, String, &Value)> = Vec::with_capacity(items.len());
    for item in items {
        let number = item.as_f64();
        let text = if number.is_some() { String::new() } else { item.to_string() };
        in_order.push((number, text, item));
    }
    in_order.sort_by(|one, other| {
        let numbers = one.0.unwrap_or(f64::NEG_INFINITY).total_cmp(&other.0.unwrap_or(f64::NEG_INFINITY));
        numbers.then_with(|| one.1.cmp(&other.1))
    });
    in_order.into_iter().map(|(_, _, item)| item).collect()
}

/// Shortens a place. Names in an answer can be as long as the answer, and places are kept. `ignorePaths` refuses a
/// shortened place, because it would match nothing.
fn shorten_path(place: String) -> String {
    match place.char_indices().nth(LONGEST_PLACE) {
        Some((end, _)) => format!("{}[…]", &place[..end]),
        None => place,
    }
}

/// Describes how two values differ that are not lists, objects or numbers, or that have different types.
fn describe_difference(live: &Value, shadow: &Value) -> String {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    match (live, shadow) {
        (Value::String(live), Value::String(shadow)) => {
            format!("texts of {} and {} characters", live.chars().count(), shadow.chars().count())
        }
        (Value::Bool(_), Value::Bool(_)) => "booleans".to_owned(),
        _ => format!("{} and {}", kind(live), kind(shadow)),
    }
}

#[cfg(test)]
mod tests;
