//! Settings from environment variables, such as `INFERENCE_ROUTER__LIMITS__MAX_HEADERS=50`, which override those of the
//! file.

use serde_json::Value;

use crate::control::yaml;
use crate::model::problem::{Problem, field_path, is_within, quoted};
use crate::model::suggest;

use super::reference::SETTING_KEYS;

/// The prefix of every variable. Two underscores separate the steps of a path.
pub(super) const VARIABLE_PREFIX: &str = "INFERENCE_ROUTER__";
/// Names of settings that are accepted besides those of the reference, with their name there; see `RawFleet`.
const OTHER_NAMES: [(&str, &str); 2] =
    [("fleet.leaseSeconds", "fleet.termSeconds"), ("fleet.lease", "fleet.leaderLock")];
/// The source of problems with variables.
const PROBLEM_SOURCE: &str = "environment";

/// Which variable set which field, and the problems of the variables themselves.
#[derive(Debug, Default)]
pub(super) struct EnvOverrides {
    /// The path of the field and the name of the variable.
    variables_by_path: Vec<(String, String)>,
    pub(super) problems: Vec<Problem>,
}

/// Writes the router's variables into `settings`.
pub(super) fn apply_variables(settings: &mut Value, env: impl Iterator<Item = (String, String)>) -> EnvOverrides {
    let mut ours: Vec<(String, String)> = env.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)).collect();
    // The environment has no order. Sorted by name, a section comes before its fields.
    ours.sort();
    let mut overrides = EnvOverrides::default();
    for (name, text) in ours {
        match read_variable(&name, &text, &overrides.variables_by_path) {
            Ok((path, value)) => {
                merge_at(settings, &path.split('.').collect::<Vec<_>>(), value);
                overrides.variables_by_path.push((path, name));
            }
            // A name can contain any characters, including line breaks.
            Err(what) => overrides.problems.push(Problem::new(field_path("", &name), what).from_source(PROBLEM_SOURCE)),
        }
    }
    overrides
}

impl EnvOverrides {
    /// Attributes a problem to the variable that set the field, or otherwise to `file`.
    pub(super) fn attribute_problem(&self, problem: Problem, file: &str) -> Problem {
        // The last variable wins, as in `apply_variables`.
        let cause = self.variables_by_path.iter().rev().find(|(path, _)| is_within(&problem.path, path));
        match cause {
            Some((path, variable)) => {
                let rest = problem.path[path.len()..].trim_start_matches('.');
                let what = if rest.is_empty() { problem.message } else { format!("{rest} {}", problem.message) };
                Problem::new(variable, what).from_source(PROBLEM_SOURCE)
            }
            None => problem.from_source(file),
        }
    }
}

/// Returns the name of the variable that sets the field at `path`.
pub(super) fn variable_name(path: &str) -> String {
    let mut name = VARIABLE_PREFIX.to_owned();
    for character in path.chars() {
        match character {
            '.' => name.push_str("__"),
            upper if upper.is_ascii_uppercase() => name.extend(['_', upper]),
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

fn read_variable(name: &str, text: &str, set: &[(String, String)]) -> Result<(String, Value), String> {
    let path = setting_path(name)?;
    if let Some((_, other)) = set.iter().find(|(known, _)| *known == path) {
        return Err(format!("sets `{path}`, which {other} sets too; remove one of the two"));
    }
    let mut documents = yaml::parse_documents(text);
    match (documents.pop(), documents.len()) {
        (Some(Ok(value)), 0) => Ok((path, value)),
        (None, _) => Err("is empty; give it a value, or remove it".to_owned()),
        _ => Err(format!("is {}, which is not one YAML value, such as `10s` or `[a, b]`", quoted(text))),
    }
}

/// Returns the path of the field or section that the variable `name` is for.
fn setting_path(name: &str) -> Result<String, String> {
    let written: Vec<String> = name[VARIABLE_PREFIX.len()..].split("__").map(normalized_step).collect();
    let written: Vec<&str> = written.iter().map(String::as_str).collect();
    for (name, path) in SETTING_KEYS.iter().map(|key| (key.path, key.path)).chain(OTHER_NAMES) {
        let steps: Vec<&str> = name.split('.').collect();
        let is_known =
            written.len() <= steps.len() && steps.iter().zip(&written).all(|(step, w)| normalized_step(step) == **w);
        if is_known {
            return Ok(path.split('.').take(written.len()).collect::<Vec<_>>().join("."));
        }
    }
    let known: Vec<String> = SETTING_KEYS.iter().map(|key| variable_name(key.path)).collect();
    Err(match suggest::nearest_word(name, known.iter().map(String::as_str)) {
        Some(known) => format!("is no setting; did you mean {known}?"),
        None => {
            format!("is no setting; the names follow the keys of the settings file, as {}", variable_name("log.level"))
        }
    })
}

/// `MAX_HEADERS`, `maxHeaders` and `MAXHEADERS` are the same step.
fn normalized_step(step: &str) -> String {
    step.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

/// Writes `new` at `steps`. Mappings are merged; anything else is replaced.
fn merge_at(into: &mut Value, steps: &[&str], new: Value) {
    if let Some((first, rest)) = steps.split_first() {
        if into.is_null() {
            *into = Value::Object(serde_json::Map::new());
        }
        // A value that is not a mapping here is a problem of the file and is reported as such.
        if let Value::Object(map) = into {
            merge_at(map.entry(*first).or_insert(Value::Null), rest, new);
        }
        return;
    }
    match (into, new) {
        (Value::Object(map), Value::Object(new)) => map.extend(new),
        (into, new) => *into = new,
    }
}
