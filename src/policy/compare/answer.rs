//! Two answers to one request, and what is to be said of them.

use std::time::Duration;

use super::{Difference, Rules, Verdict, compare};

/// An answer of the live deployment, or of its shadow.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub end: End,
    /// From dispatch to its head; `None`: there was none.
    pub latency: Option<Duration>,
    /// Of its body, in bytes.
    pub bytes: u64,
    /// Its body, or why it is not here.
    pub body: Result<Vec<u8>, Gap>,
    /// Whether the body is compressed: such bodies can differ where their content does not.
    pub is_encoded: bool,
}

impl Answer {
    /// Its status, if it is known.
    pub fn status(&self) -> Option<u16> {
        match self.end {
            End::Complete(status) | End::BrokeOff(status) => Some(status),
            End::Unknown(_) => None,
        }
    }

    /// Whether it ended in the middle of its body.
    pub fn broke_off(&self) -> bool {
        matches!(self.end, End::BrokeOff(_))
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this status, all of it; without an answer of the model, the status that the router gives instead.
    Complete(u16),
    /// In the middle of its body.
    BrokeOff(u16),
    /// Nobody knows how it would have ended.
    Unknown(Gap),
}

/// Why two answers cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// `compareBodies` is off.
    Off,
    /// A body is longer than `maxBodyBytes`.
    TooLarge,
    /// Copies and answers together held more memory than they may.
    OverBudget,
    /// Too many answers were waiting to be compared.
    Busy,
    /// To compare them takes too long.
    TooMuchWork,
    /// Compressed bodies that are not the same.
    Encoded,
    /// The copy's body lagged behind the live one.
    Lagging,
    /// Both answers broke off: how far each had come says nothing.
    BrokeOff,
    /// The client left.
    ClientLeft,
    /// No slot was free for the copy, at any router.
    NoSlot,
}

impl Gap {
    /// For reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::TooLarge => "too_large",
            Self::OverBudget => "over_budget",
            Self::Busy => "busy",
            Self::TooMuchWork => "too_much_work",
            Self::Encoded => "encoded",
            Self::Lagging => "lagging",
            Self::BrokeOff => "broke_off",
            Self::ClientLeft => "client_left",
            Self::NoSlot => "no_slot",
        }
    }
}

/// What two answers come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Outcome {
    Equal,
    WithinTolerance,
    Different,
    StatusDiffers,
    NotCompared(Gap),
}

impl Outcome {
    /// For metrics and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::WithinTolerance => "within_tolerance",
            Self::Different => "different",
            Self::StatusDiffers => "status_differs",
            Self::NotCompared(_) => "not_compared",
        }
    }
}

/// Compares two answers; where they are different, also where.
pub fn judge(live: &Answer, shadow: &Answer, rules: &Rules) -> (Outcome, Vec<Difference>) {
    let outcome = match (live.end, shadow.end) {
        (End::Unknown(gap), _) | (_, End::Unknown(gap)) => Outcome::NotCompared(gap),
        (End::Complete(one), End::Complete(other)) if one == other => return of_bodies(live, shadow, rules),
        (End::BrokeOff(one), End::BrokeOff(other)) if one == other => Outcome::NotCompared(Gap::BrokeOff),
        _ => Outcome::StatusDiffers,
    };
    (outcome, Vec::new())
}

fn of_bodies(live: &Answer, shadow: &Answer, rules: &Rules) -> (Outcome, Vec<Difference>) {
    if !rules.compare_bodies {
        return (Outcome::NotCompared(Gap::Off), Vec::new());
    }
    let outcome = match (&live.body, &shadow.body) {
        (Err(gap), _) | (_, Err(gap)) => Outcome::NotCompared(*gap),
        (Ok(one), Ok(other)) if one == other => Outcome::Equal,
        _ if live.is_encoded || shadow.is_encoded => Outcome::NotCompared(Gap::Encoded),
        (Ok(one), Ok(other)) => match compare(one, other, rules) {
            Verdict::Equal => Outcome::Equal,
            Verdict::WithinTolerance => Outcome::WithinTolerance,
            Verdict::Different(places) => return (Outcome::Different, places),
            Verdict::TooMuchWork => Outcome::NotCompared(Gap::TooMuchWork),
        },
    };
    (outcome, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(end: End, body: Result<&str, Gap>) -> Answer {
        let body = body.map(|text| text.as_bytes().to_vec());
        Answer { end, latency: None, bytes: 0, body, is_encoded: false }
    }

    fn rules(compare_bodies: bool) -> Rules {
        Rules { compare_bodies, max_body: 100, numeric_tolerance: 0.1, ignore: Vec::new(), unordered: Vec::new() }
    }

    #[test]
    fn statuses_come_before_bodies_and_what_is_not_known_before_both() {
        let ok = |body| answer(End::Complete(200), Ok(body));
        let of = |live: Answer, shadow: Answer| judge(&live, &shadow, &rules(true)).0;
        assert_eq!(of(ok("{\"a\": 1}"), ok("{\"a\":1}")), Outcome::Equal);
        assert_eq!(of(ok("[1.0]"), ok("[1.05]")), Outcome::WithinTolerance);
        assert_eq!(of(ok("[1.0]"), ok("[2.0]")), Outcome::Different);
        assert_eq!(of(ok("[1]"), answer(End::Complete(504), Ok("[1]"))), Outcome::StatusDiffers);
        assert_eq!(of(ok("[1]"), answer(End::BrokeOff(200), Ok("["))), Outcome::StatusDiffers);
        let broken = || answer(End::BrokeOff(200), Ok("["));
        assert_eq!(of(broken(), broken()), Outcome::NotCompared(Gap::BrokeOff));
        let left = answer(End::Unknown(Gap::ClientLeft), Ok(""));
        assert_eq!(of(left, answer(End::Complete(500), Ok(""))), Outcome::NotCompared(Gap::ClientLeft));
        let large = answer(End::Complete(200), Err(Gap::TooLarge));
        assert_eq!(of(ok("[1]"), large), Outcome::NotCompared(Gap::TooLarge));
        assert_eq!(judge(&ok("[1]"), &ok("[2]"), &rules(false)).0, Outcome::NotCompared(Gap::Off));
    }

    #[test]
    fn compressed_bodies_agree_only_when_they_are_the_same() {
        let packed = |body| Answer { is_encoded: true, ..answer(End::Complete(200), Ok(body)) };
        assert_eq!(judge(&packed("x"), &packed("x"), &rules(true)).0, Outcome::Equal);
        assert_eq!(judge(&packed("x"), &packed("y"), &rules(true)).0, Outcome::NotCompared(Gap::Encoded));
    }
}
