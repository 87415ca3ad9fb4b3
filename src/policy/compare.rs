//! Whether two answers to one request agree.
//!
//! JSON by place: numbers within a tolerance, lists in order unless told otherwise, what is to be ignored left out. Places
//! that differ are told without the positions in lists, so that those of many answers add up.

use serde_json::{Map, Number, Value};

mod place;
pub use place::{Place, WrongPlace};

/// Most places that one comparison tells.
const MOST_PLACES: usize = 20;
/// Lists without an order are matched item by item up to this length; longer ones are put in an order first.
const MATCHED: usize = 256;

/// What counts as agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Numbers agree that differ by no more than this, or by no more than this part of the larger one.
    pub numeric_tolerance: f64,
    /// What is not looked at.
    pub ignore: Vec<Place>,
    /// Lists whose order does not count.
    pub unordered: Vec<Place>,
}

/// What a comparison comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs.
    Equal,
    /// Some numbers differ, by no more than they may.
    WithinTolerance,
    /// These places differ, or at least some of them; each once, in the order of the live answer.
    Different(Vec<String>),
}

/// Compares two answers: as JSON if both are, or else byte by byte.
pub fn compare(live: &[u8], shadow: &[u8], rules: &Rules) -> Verdict {
    match (serde_json::from_slice(live), serde_json::from_slice(shadow)) {
        (Ok(live), Ok(shadow)) => compare_json(&live, &shadow, rules),
        _ if live == shadow => Verdict::Equal,
        _ => Verdict::Different(vec!["$".to_owned()]),
    }
}

/// Compares two documents.
pub fn compare_json(live: &Value, shadow: &Value, rules: &Rules) -> Verdict {
    let mut comparison = Comparison { rules, at: Vec::new(), is_close: false, places: Vec::new() };
    comparison.values(live, shadow);
    match comparison {
        Comparison { places, .. } if !places.is_empty() => Verdict::Different(places),
        Comparison { is_close: true, .. } => Verdict::WithinTolerance,
        _ => Verdict::Equal,
    }
}

/// A step from a value to one inside it.
#[derive(Debug, Clone, Copy)]
enum Step<'v> {
    Name(&'v str),
    Index(usize),
}

struct Comparison<'r, 'v> {
    rules: &'r Rules,
    at: Vec<Step<'v>>,
    /// Whether any two numbers were only close.
    is_close: bool,
    places: Vec<String>,
}

impl<'v> Comparison<'_, 'v> {
    fn values(&mut self, live: &'v Value, shadow: &'v Value) {
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
            _ => self.differs(),
        }
    }

    fn objects(&mut self, live: &'v Map<String, Value>, shadow: &'v Map<String, Value>) {
        for (name, live) in live {
            self.inside(Step::Name(name), |this| match shadow.get(name) {
                Some(shadow) => this.values(live, shadow),
                None => this.is_alone(),
            });
        }
        for name in shadow.keys().filter(|name| !live.contains_key(*name)) {
            self.inside(Step::Name(name), Self::is_alone);
        }
    }

    fn lists(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.differs();
        }
        for (index, (live, shadow)) in live.iter().zip(shadow).enumerate() {
            self.inside(Step::Index(index), |this| this.values(live, shadow));
        }
    }

    /// Each item agrees with one of the other side.
    fn sets(&mut self, live: &'v [Value], shadow: &'v [Value]) {
        if live.len() != shadow.len() {
            return self.differs();
        }
        if live.len() > MATCHED {
            let in_order = |items: &'v [Value]| {
                let mut items: Vec<(String, &Value)> = items.iter().map(|item| (item.to_string(), item)).collect();
                items.sort_by(|one, other| one.0.cmp(&other.0));
                items
            };
            for (live, shadow) in in_order(live).into_iter().zip(in_order(shadow)) {
                self.inside(Step::Index(0), |this| this.values(live.1, shadow.1));
            }
            return;
        }
        let mut left: Vec<&Value> = shadow.iter().collect();
        for item in live {
            // One that is equal before one that is close.
            let verdicts = left.iter().map(|other| self.of_items(item, other)).collect::<Vec<_>>();
            let best = [Verdict::Equal, Verdict::WithinTolerance];
            let found = best.iter().find_map(|wanted| verdicts.iter().position(|verdict| verdict == wanted));
            match found {
                Some(place) => {
                    self.is_close |= verdicts[place] == Verdict::WithinTolerance;
                    left.swap_remove(place);
                }
                None => return self.inside(Step::Index(0), Self::differs),
            }
        }
    }

    /// Two items of a list, by themselves.
    fn of_items(&self, live: &'v Value, shadow: &'v Value) -> Verdict {
        let mut at = self.at.clone();
        at.push(Step::Index(0));
        let mut inner = Comparison { rules: self.rules, at, is_close: false, places: Vec::new() };
        inner.values(live, shadow);
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
        let (Some(live), Some(shadow)) = (live.as_f64(), shadow.as_f64()) else { return self.differs() };
        let tolerance = self.rules.numeric_tolerance;
        let difference = (live - shadow).abs();
        if tolerance > 0.0 && (difference <= tolerance || difference <= tolerance * live.abs().max(shadow.abs())) {
            self.is_close = true;
        } else {
            self.differs();
        }
    }

    fn inside(&mut self, step: Step<'v>, compare: impl FnOnce(&mut Self)) {
        self.at.push(step);
        compare(self);
        self.at.pop();
    }

    /// Only one side has a value here.
    fn is_alone(&mut self) {
        if !self.rules.ignore.iter().any(|place| place.is(&self.at)) {
            self.differs();
        }
    }

    fn differs(&mut self) {
        let text = place::text(&self.at);
        if self.places.len() < MOST_PLACES && !self.places.contains(&text) {
            self.places.push(text);
        }
    }
}

#[cfg(test)]
mod tests;
