//! The two answers to a mirrored request, and the result of comparing them.

use std::time::Duration;

use super::{Difference, Rules, Verdict, compare};

/// An answer of the live deployment or of its shadow.
#[derive(Debug)]
pub struct CapturedAnswer {
    /// How the answer ended.
    pub end: AnswerEnd,
    /// Time from the dispatch to the response head; `None` without a response head.
    pub latency: Option<Duration>,
    /// The size of the body in bytes.
    pub bytes: u64,
    /// The body, or why it was not captured.
    pub body: Result<Vec<u8>, NotComparedReason>,
    /// Whether the body is compressed. Such bodies can differ although their content is the same.
    pub is_encoded: bool,
}

impl CapturedAnswer {
    /// Returns the status, if it is known.
    pub fn status(&self) -> Option<u16> {
        match self.end {
            AnswerEnd::Complete(status) | AnswerEnd::BrokeOff(status) => Some(status),
            AnswerEnd::Unknown(_) => None,
        }
    }

    /// Returns whether the answer ended in the middle of its body.
    pub fn is_truncated(&self) -> bool {
        matches!(self.end, AnswerEnd::BrokeOff(_))
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The answer was complete, with this status. Without an answer of the model, it is the status that the router
    /// gives instead.
    Complete(u16),
    /// The answer was truncated in the middle of its body.
    BrokeOff(u16),
    /// Unknown, for this reason.
    Unknown(NotComparedReason),
}

/// Why two answers cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotComparedReason {
    /// `compareBodies` is off.
    Off,
    /// A body is larger than `maxBodyBytes`.
    TooLarge,
    /// Copies and answers together exceeded their memory budget.
    OverBudget,
    /// The queue of answers to compare was full.
    Busy,
    /// Comparing them would take too long.
    TooMuchWork,
    /// The bodies are compressed and not the same.
    Encoded,
    /// The copy's body lagged behind the live one.
    Lagging,
    /// Both answers were truncated, and how far each had come says nothing.
    BrokeOff,
    /// The client left.
    ClientLeft,
    /// No slot was free for the copy, at any router.
    NoSlot,
}

impl NotComparedReason {
    /// Returns the reason as in reports.
    pub fn as_str(self) -> &'static str {
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

/// The result of comparing two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ComparisonOutcome {
    Equal,
    WithinTolerance,
    Different,
    StatusDiffers,
    NotCompared(NotComparedReason),
}

impl ComparisonOutcome {
    /// Returns the result as in metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::WithinTolerance => "within_tolerance",
            Self::Different => "different",
            Self::StatusDiffers => "status_differs",
            Self::NotCompared(_) => "not_compared",
        }
    }
}

/// Compares two answers. If they differ, also returns where.
pub fn compare_answers(
    live: &CapturedAnswer,
    shadow: &CapturedAnswer,
    rules: &Rules,
) -> (ComparisonOutcome, Vec<Difference>) {
    let outcome = match (live.end, shadow.end) {
        (AnswerEnd::Unknown(gap), _) | (_, AnswerEnd::Unknown(gap)) => ComparisonOutcome::NotCompared(gap),
        (AnswerEnd::Complete(one), AnswerEnd::Complete(other)) if one == other => {
            return of_bodies(live, shadow, rules);
        }
        (AnswerEnd::BrokeOff(one), AnswerEnd::BrokeOff(other)) if one == other => {
            ComparisonOutcome::NotCompared(NotComparedReason::BrokeOff)
        }
        _ => ComparisonOutcome::StatusDiffers,
    };
    (outcome, Vec::new())
}

fn of_bodies(live: &CapturedAnswer, shadow: &CapturedAnswer, rules: &Rules) -> (ComparisonOutcome, Vec<Difference>) {
    if !rules.compare_bodies {
        return (ComparisonOutcome::NotCompared(NotComparedReason::Off), Vec::new());
    }
    let outcome = match (&live.body, &shadow.body) {
        (Err(gap), _) | (_, Err(gap)) => ComparisonOutcome::NotCompared(*gap),
        (Ok(one), Ok(other)) if one == other => ComparisonOutcome::Equal,
        _ if live.is_encoded || shadow.is_encoded => ComparisonOutcome::NotCompared(NotComparedReason::Encoded),
        (Ok(one), Ok(other)) => match compare(one, other, rules) {
            Verdict::Equal => ComparisonOutcome::Equal,
            Verdict::WithinTolerance => ComparisonOutcome::WithinTolerance,
            Verdict::Different(places) => return (ComparisonOutcome::Different, places),
            Verdict::TooMuchWork => ComparisonOutcome::NotCompared(NotComparedReason::TooMuchWork),
        },
    };
    (outcome, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(end: AnswerEnd, body: Result<&str, NotComparedReason>) -> CapturedAnswer {
        let body = body.map(|text| text.as_bytes().to_vec());
        CapturedAnswer { end, latency: None, bytes: 0, body, is_encoded: false }
    }

    fn rules(compare_bodies: bool) -> Rules {
        Rules {
            compare_bodies,
            max_body_bytes: 100,
            numeric_tolerance: 0.1,
            ignored_paths: Vec::new(),
            unordered_paths: Vec::new(),
        }
    }

    #[test]
    fn statuses_come_before_bodies_and_what_is_not_known_before_both() {
        let ok = |body| answer(AnswerEnd::Complete(200), Ok(body));
        let of = |live: CapturedAnswer, shadow: CapturedAnswer| compare_answers(&live, &shadow, &rules(true)).0;
        assert_eq!(of(ok("{\"a\": 1}"), ok("{\"a\":1}")), ComparisonOutcome::Equal);
        assert_eq!(of(ok("[1.0]"), ok("[1.05]")), ComparisonOutcome::WithinTolerance);
        assert_eq!(of(ok("[1.0]"), ok("[2.0]")), ComparisonOutcome::Different);
        assert_eq!(of(ok("[1]"), answer(AnswerEnd::Complete(504), Ok("[1]"))), ComparisonOutcome::StatusDiffers);
        assert_eq!(of(ok("[1]"), answer(AnswerEnd::BrokeOff(200), Ok("["))), ComparisonOutcome::StatusDiffers);
        let broken = || answer(AnswerEnd::BrokeOff(200), Ok("["));
        assert_eq!(of(broken(), broken()), ComparisonOutcome::NotCompared(NotComparedReason::BrokeOff));
        let left = answer(AnswerEnd::Unknown(NotComparedReason::ClientLeft), Ok(""));
        assert_eq!(
            of(left, answer(AnswerEnd::Complete(500), Ok(""))),
            ComparisonOutcome::NotCompared(NotComparedReason::ClientLeft)
        );
        let large = answer(AnswerEnd::Complete(200), Err(NotComparedReason::TooLarge));
        assert_eq!(of(ok("[1]"), large), ComparisonOutcome::NotCompared(NotComparedReason::TooLarge));
        assert_eq!(
            compare_answers(&ok("[1]"), &ok("[2]"), &rules(false)).0,
            ComparisonOutcome::NotCompared(NotComparedReason::Off)
        );
    }

    #[test]
    fn compressed_bodies_agree_only_when_they_are_the_same() {
        let packed = |body| CapturedAnswer { is_encoded: true, ..answer(AnswerEnd::Complete(200), Ok(body)) };
        assert_eq!(compare_answers(&packed("x"), &packed("x"), &rules(true)).0, ComparisonOutcome::Equal);
        assert_eq!(
            compare_answers(&packed("x"), &packed("y"), &rules(true)).0,
            ComparisonOutcome::NotCompared(NotComparedReason::Encoded)
        );
    }
}
