//! Collects the problems of a document while it is validated.

use std::ops::RangeInclusive;

use super::problem::Problem;
use super::suggest;

/// Collects problems. Its checks report the problem and continue with the default, so that one pass finds everything.
#[derive(Debug, Default)]
pub struct ProblemCollector {
    problems: Vec<Problem>,
}

impl ProblemCollector {
    /// Reports a problem of the field at `path`.
    pub fn report(&mut self, path: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(path, what));
    }

    /// Returns the value of `result`, or reports its error.
    pub fn ok_or_report<T, E: std::fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.report(path, error.to_string())).ok()
    }

    /// Returns a whole number within `range`, or reports a problem and returns the default. `unit` follows the number
    /// in messages, such as " milliseconds"; it may be empty.
    pub fn number_in_range(
        &mut self,
        path: &str,
        given: Option<i64>,
        range: RangeInclusive<i64>,
        default: i64,
        unit: &str,
    ) -> i64 {
        let Some(number) = given else { return default };
        if range.contains(&number) {
            return number;
        }
        self.report(path, format!("is {number}, but must be between {} and {}{unit}", range.start(), range.end()));
        default
    }

    /// Returns the value of one of the `known` keywords. Returns `None` when none is given, and also when an unknown
    /// one is given, which is reported.
    pub fn keyword<T: Copy>(&mut self, path: &str, given: Option<&str>, known: &[(&str, T)]) -> Option<T> {
        let given = given?;
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == given) {
            return Some(*value);
        }
        let instead = suggest::did_you_mean(given, known.iter().map(|(word, _)| *word));
        self.report(path, format!("is {}, which is not known; {instead}", super::problem::quoted(given)));
        None
    }

    /// Returns the number of problems reported so far.
    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// Returns the problems in the order in which they were reported.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
