//! `INFERENCE_ROUTER__LIMITS__MAX_HEADERS=50`: settings from the environment, over those of the file.

use serde_json::Value;

use crate::control::yaml;
use crate::model::problem::{Problem, field, is_within, quoted};
use crate::model::suggest;

use super::reference::KEYS;

/// What each variable for the router starts with; two underscores part the steps.
pub(super) const PREFIX: &str = "INFERENCE_ROUTER__";
/// Where problems of variables come from.
const SOURCE: &str = "environment";

/// Which variable set which field, and what is wrong with the variables themselves.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// The field's path and the variable's name.
    set: Vec<(String, String)>,
    pub(super) problems: Vec<Problem>,
}

/// Writes the variables that are for the router into `settings`.
pub(super) fn apply(settings: &mut Value, env: impl Iterator<Item = (String, String)>) -> Overrides {
    let mut ours: Vec<(String, String)> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // The environment has no order; by name, a section comes before its fields.
    ours.sort();
    let mut overrides = Overrides::default();
    for (name, text) in ours {
        match read(&name, &text, &overrides.set) {
            Ok((path, value)) => {
                put(settings, &path.split('.').collect::<Vec<_>>(), value);
                overrides.set.push((path, name));
            }
            // A name can have any characters, also such as break a line.
            Err(what) => overrides.problems.push(Problem::new(field("", &name), what).from_source(SOURCE)),
        }
    }
    overrides
}

impl Overrides {
    /// `problem`, said of the variable that set the field, or else of `file`.
    pub(super) fn attribute(&self, problem: Problem, file: &str) -> Problem {
        // The last one wins, here as above.
        let cause = self.set.iter().rev().find(|(path, _)| is_within(&problem.path, path));
        match cause {
            Some((path, variable)) => {
                let rest = problem.path[path.len()..].trim_start_matches('.');
                let what = if rest.is_empty() { problem.what } else { format!("{rest} {}", problem.what) };
                Problem::new(variable, what).from_source(SOURCE)
            }
            None => problem.from_source(file),
        }
    }
}

/// The variable that sets the field at `path`.
pub(super) fn variable(path: &str) -> String {
    let mut name = PREFIX.to_owned();
    for character in path.chars() {
        match character {
            '.' => name.push_str("__"),
            upper if upper.is_ascii_uppercase() => name.extend(['_', upper]),
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

fn read(name: &str, text: &str, set: &[(String, String)]) -> Result<(String, Value), String> {
    let path = path(name)?;
    if let Some((_, other)) = set.iter().find(|(known, _)| *known == path) {
        return Err(format!("sets `{path}`, which {other} sets too; remove one of the two"));
    }
    let mut documents = yaml::documents(text);
    match (documents.pop(), documents.len()) {
        (Some(Ok(value)), 0) => Ok((path, value)),
        (None, _) => Err("is empty; give it a value, or remove it".to_owned()),
        _ => Err(format!("is {}, which is not one YAML value, such as `10s` or `[a, b]`", quoted(text))),
    }
}

/// The path of the field or section that the variable `name` is for.
fn path(name: &str) -> Result<String, String> {
    let written: Vec<String> = name[PREFIX.len()..].split("__").map(plain).collect();
    let written: Vec<&str> = written.iter().map(String::as_str).collect();
    for key in KEYS {
        let steps: Vec<&str> = key.path.split('.').collect();
        let is_known = written.len() <= steps.len() && steps.iter().zip(&written).all(|(step, w)| plain(step) == **w);
        if is_known {
            return Ok(steps[..written.len()].join("."));
        }
    }
    let known: Vec<String> = KEYS.iter().map(|key| variable(key.path)).collect();
    Err(match suggest::nearest(name, known.iter().map(String::as_str)) {
        Some(known) => format!("is no setting; did you mean {known}?"),
        None => {
            format!("is no setting; the names follow the keys of the settings file, as {}", variable("log.level"))
        }
    })
}

/// `MAX_HEADERS`, `maxHeaders` and `MAXHEADERS` are the same step.
fn plain(step: &str) -> String {
    step.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

/// Puts `new` at `steps`; mappings are merged, anything else is replaced.
fn put(into: &mut Value, steps: &[&str], new: Value) {
    if let Some((first, rest)) = steps.split_first() {
        if into.is_null() {
            *into = Value::Object(serde_json::Map::new());
        }
        // What is not a mapping here is a problem of the file, and reported as such.
        if let Value::Object(map) = into {
            put(map.entry(*first).or_insert(Value::Null), rest, new);
        }
        return;
    }
    match (into, new) {
        (Value::Object(map), Value::Object(new)) => map.extend(new),
        (into, new) => *into = new,
    }
}
