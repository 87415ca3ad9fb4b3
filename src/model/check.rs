//! A pad to note problems on while a document is checked.

use std::ops::RangeInclusive;

use super::problem::Problem;
use super::suggest;

/// Collects what is wrong. Its checks note the problem and go on with the default, so that one pass finds everything.
#[derive(Debug, Default)]
pub struct Check {
    problems: Vec<Problem>,
}

impl Check {
    /// Notes that the field at `path` is wrong.
    pub fn problem(&mut self, path: &str, what: impl Into<String>) {
        self.problems.push(Problem::new(path, what));
    }

    /// Notes the problem, if it is one.
    pub fn ok<T, E: std::fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.problem(path, error.to_string())).ok()
    }

    /// A whole number within `range`; `unit` is said after it, as in " milliseconds", or empty.
    pub fn number(
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
        self.problem(path, format!("is {number}, but must be between {} and {}{unit}", range.start(), range.end()));
        default
    }

    /// One of the words `known`; `None` when nothing, or nothing known, is given.
    pub fn word<T: Copy>(&mut self, path: &str, given: Option<&str>, known: &[(&str, T)]) -> Option<T> {
        let given = given?;
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == given) {
            return Some(*value);
        }
        let instead = suggest::instead(given, known.iter().map(|(word, _)| *word));
        self.problem(path, format!("is {}, which is not known; {instead}", super::problem::quoted(given)));
        None
    }

    /// How many problems are noted so far.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// What was noted, in the order of noting.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
