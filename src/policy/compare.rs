//! Whether two answers to one request agree.
//!
//! JSON by place: numbers within a tolerance, lists in order unless told otherwise, what is to be ignored left out. Places
//! that differ are told without the positions in lists, so that those of many answers add up.

use serde_json::{Map, Number, Value};

use crate::model::endpoint::Comparison as Rules;
use crate::model::place::{self, Step};

mod answer;
mod matching;
mod report;
pub mod window;

pub use answer::{Answer, End, Gap, Outcome, judge};
pub use report::{EndpointReport, Rate, Report, Sample, SideReport};

/// Characters of a place that is told.
const LONGEST_PLACE: usize = 200;
/// Most places that one comparison tells.
const MOST_PLACES: usize = 20;
/// Lists without an order are matched item by item up to this length; longer ones are put in an order first, numbers by
/// what they are and others by what is written.
const MATCHED: usize = 64;
/// Values that one comparison looks at: lists without an order inside each other take many times the values that there are.
const MOST_VALUES: u32 = 4_000_000;

/// What a comparison comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Equal,
    /// Some numbers differ, by no more than they may.
    WithinTolerance,
    /// These places differ, or at least some of them; each once, in the order of the live answer.
    Different(Vec<Difference>),
    /// Given up: it would have taken too long.
    TooMuchWork,
}

/// A place where answers differ.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// As `$.predictions[*].score`.
    pub place: String,
    /// In what way, without anything that was in the answers but lengths, and by which part of the larger one numbers differ:
    /// how far they are apart would be a number itself where the other one is zero.
    pub what: String,
}

impl Verdict {
    /// The answers as a whole differ.
    fn whole(what: &str) -> Self {
        Self::Different(vec![Difference { place: "$".to_owned(), what: what.to_owned() }])
    }
}

/// Compares two answers: as JSON if both are, or else byte by byte.
pub fn compare(live: &[u8], shadow: &[u8], rules: &Rules) -> Verdict {
    match (serde_json::from_slice(live), serde_json::from_slice(shadow)) {
        (Ok(live), Ok(shadow)) => compare_json(&live, &shadow, rules),
        _ if live == shadow => Verdict::Equal,
        (Ok(_), Err(_)) => Verdict::whole("only the live one is JSON"),
        (Err(_), Ok(_)) => Verdict::whole("only the shadow's is JSON"),
        _ => Verdict::whole(&format!("other content, of {} and {} bytes", live.len(), shadow.len())),
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
    at: Vec<Step<'v>>,
    /// Whether any two numbers were only close.
    is_close: bool,
    places: Vec<Difference>,
    /// How many values may still be looked at.
    left: u32,
}

impl<'v> Comparison<'_, 'v> {
    fn values(&mut self, live: &'v Value, shadow: &'v Value) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return;
        }
        if self.rules.ignore.iter().any(|place| place.is(&self.at)) {
            return;
        }
        match (live, shadow) {
            (Value::Object(live), Value::Object(shadow)) => self.objects(live, shadow),
            (Value::Array(live), Value::Array(shadow)) => {
                if self.rules.unordered.iter().any(|place| place.is(&self.at)) {
                    self.sets(live, shadow);
                } else {
                    self.lists(live, shadow);
                }
            }
            (Value::Number(live), Value::Number(shadow)) => self.numbers(live, shadow),
            _ if live == shadow => {}
            _ => self.differs(|| of_values(live, shadow)),
        }
    }

    fn objects(&mut self, live: &'v Map<String, Value>, shadow: &'v Map<String, Value>) {
        for (name, live) in live {
            self.inside(Step::Name(name), |this| match shadow.get(name) {
                Some(shadow) => this.values(live, shadow),
                None => this.is_alone("only in the live one"),
            });
        }
        for name in shadow.keys().filter(|name| !live.contains_key(*name)) {
            self.inside(Step::Name(name), |this| this.is_alone("only in the shadow's"));
        }
    }

    fn lists(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.differs(|| format!("lists of {} and {}", live.len(), shadow.len()));
        }
        for (index, (live, shadow)) in live.iter().zip(shadow).enumerate() {
            self.inside(Step::Index(index), |this| this.values(live, shadow));
        }
    }

    /// Each item agrees with another one of the other side.
    fn sets(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.differs(|| format!("lists of {} and {}", live.len(), shadow.len()));
        }
        if live.len() > MATCHED {
            for (live, shadow) in in_order(live).into_iter().zip(in_order(shadow)) {
                self.inside(Step::Index(0), |this| this.values(live, shadow));
            }
            return;
        }
        let verdicts: Vec<Vec<Verdict>> =
            live.iter().map(|item| shadow.iter().map(|other| self.of_items(item, other)).collect()).collect();
        let is_equal = |item: usize, other: usize| verdicts[item][other] == Verdict::Equal;
        let agrees = |item, other| is_equal(item, other) || verdicts[item][other] == Verdict::WithinTolerance;
        if matching::is_perfect(live.len(), is_equal) {
            return;
        }
        if matching::is_perfect(live.len(), agrees) {
            self.is_close = true;
        } else {
            self.inside(Step::Index(0), |this| this.differs(|| "an item that the other has not".to_owned()));
        }
    }

    /// Two items of a list, by themselves.
    fn of_items(&mut self, live: &'v Value, shadow: &'v Value) -> Verdict {
        let mut at = self.at.clone();
        at.push(Step::Index(0));
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
        // Whole numbers have more digits than a float can tell apart.
        let is_same = live == shadow || live.is_f64() != shadow.is_f64() && live.as_f64() == shadow.as_f64();
        if is_same {
            return;
        }
        let (Some(live), Some(shadow)) = (live.as_f64(), shadow.as_f64()) else {
            return self.differs(|| "numbers".to_owned());
        };
        let tolerance = self.rules.numeric_tolerance;
        let difference = (live - shadow).abs();
        if tolerance > 0.0 && (difference <= tolerance || difference <= tolerance * live.abs().max(shadow.abs())) {
            self.is_close = true;
        } else {
            let part = difference / live.abs().max(shadow.abs());
            self.differs(|| format!("numbers, by {:.3} %", part * 100.0));
        }
    }

    fn inside(&mut self, step: Step<'v>, compare: impl FnOnce(&mut Self)) {
        self.at.push(step);
        compare(self);
        self.at.pop();
    }

    /// Only one side has a value here.
    fn is_alone(&mut self, what: &str) {
        if !self.rules.ignore.iter().any(|place| place.is(&self.at)) {
            self.differs(|| what.to_owned());
        }
    }

    fn differs(&mut self, what: impl FnOnce() -> String) {
        let place = shortened(place::text(&self.at));
        if self.places.len() < MOST_PLACES && !self.places.iter().any(|known| known.place == place) {
            self.places.push(Difference { place, what: what() });
        }
    }
}

/// The items of a list whose order says nothing, so that those that agree are at the same position.
fn in_order(items: &[Value]) -> Vec<&Value> {
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

/// Names in an answer can be as long as the answer, and places are kept. What is cut off is told in a way that
/// `ignorePaths` refuses: it would match nothing.
fn shortened(place: String) -> String {
    match place.char_indices().nth(LONGEST_PLACE) {
        Some((end, _)) => format!("{}[…]", &place[..end]),
        None => place,
    }
}

/// How two values differ that are no lists, objects or numbers, or of two kinds.
fn of_values(live: &Value, shadow: &Value) -> String {
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
