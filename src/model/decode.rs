//! Decoding of a parsed document into a typed one, with all misfits reported at once.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::problem::{Problem, field_path, item_path, quoted};
use super::suggest;

/// Number of problems after which the rest of a document is skipped.
const MAX_PROBLEMS: usize = 100;

/// Fields that hold credentials. Problems below them describe the value and never repeat it.
const SECRET_FIELDS: [&str; 3] = ["keys", "env", "tokens"];

/// Reads `value`, a mapping, as a `T`. Misfits are reported and left out, so the `T` holds the rest. Returns `None`
/// only when nothing of the value can be used.
///
/// A list item that does not fit becomes null instead of being left out, because the index of the items after it must
/// not change. A `T` with lists should take `Vec<Option<_>>`.
pub fn decode<T: DeserializeOwned>(mut value: Value) -> (Option<T>, Vec<Problem>) {
    let mut problems = Vec::new();
    for _ in 0..MAX_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, Mapping<T>>(&value) {
            Ok(Mapping(decoded)) => return (Some(decoded), problems),
            Err(error) => error,
        };
        let steps = path_steps(error.path());
        problems.push(describe_error(&value, &steps, &error.into_inner().to_string()));
        if !remove_at(&mut value, &steps) {
            return (None, problems);
        }
    }
    problems.push(Problem::new("", format!("has more problems than these {MAX_PROBLEMS}; mend them first")));
    (None, problems)
}

/// For `#[serde(deserialize_with)]` on a field that holds a struct: accepts a mapping only. Serde itself would also
/// accept a list and read its items as the fields in the order of their declaration.
pub(crate) fn mapping<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Mapping<T>>::deserialize(from)?.map(|mapping| mapping.0))
}

/// As [`mapping`], for a list of structs.
pub(crate) fn mappings<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Vec<Option<T>>>, D::Error> {
    let list = Option::<Vec<Option<Mapping<T>>>>::deserialize(from)?;
    Ok(list.map(|list| list.into_iter().map(|item| item.map(|mapping| mapping.0)).collect()))
}

/// A `T` that is written as a mapping.
struct Mapping<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Mapping<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct MappingVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for MappingVisitor<T> {
            type Value = Mapping<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mapping<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Mapping)
            }
        }
        from.deserialize_map(MappingVisitor(std::marker::PhantomData))
    }
}

/// One step from a node of a document to a node below it.
enum FieldPathStep {
    Key(String),
    Index(usize),
}

fn path_steps(path: &serde_path_to_error::Path) -> Vec<FieldPathStep> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(FieldPathStep::Index(*index)),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(FieldPathStep::Key(key.clone())),
            Segment::Unknown => None,
        })
        .collect()
}

fn value_at<'a>(value: &'a Value, steps: &[FieldPathStep]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |node, step| match step {
        FieldPathStep::Key(key) => node.get(key),
        FieldPathStep::Index(index) => node.get(index),
    })
}

/// Removes the node at `steps` from `value`. Returns whether there was one.
fn remove_at(value: &mut Value, steps: &[FieldPathStep]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |node, step| match step {
        FieldPathStep::Key(key) => node.get_mut(key),
        FieldPathStep::Index(index) => node.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(map)), FieldPathStep::Key(key)) => map.remove(key).is_some(),
        (Some(Value::Array(list)), FieldPathStep::Index(index)) => {
            list.get_mut(*index).is_some_and(|item| !std::mem::replace(item, Value::Null).is_null())
        }
        _ => false,
    }
}

fn describe_error(value: &Value, steps: &[FieldPathStep], error: &str) -> Problem {
    let path = steps.iter().fold(String::new(), |path, step| match step {
        FieldPathStep::Key(key) => field_path(&path, key),
        FieldPathStep::Index(index) => item_path(&path, *index),
    });
    let is_secret =
        steps.iter().any(|step| matches!(step, FieldPathStep::Key(key) if SECRET_FIELDS.contains(&key.as_str())));
    let what = match (steps.last(), error.rsplit_once(", expected ")) {
        (Some(FieldPathStep::Key(key)), known) if error.starts_with("unknown field") => {
            unknown_field(key, known.map_or("", |(_, known)| known))
        }
        (_, Some((start, expected))) if start.starts_with("invalid ") => match value_at(value, steps) {
            Some(found) => type_mismatch(found, expected, is_secret),
            None => format!("is not {}", expected_type(expected).0),
        },
        _ if is_secret => "is not in the right form".to_owned(),
        _ => error.to_owned(),
    };
    Problem::new(path, what)
}

/// Returns the message for an unknown field. `known` is the end of Serde's message: "one of `a`, `b`", or "`a` or `b`".
fn unknown_field(key: &str, known: &str) -> String {
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    if known.is_empty() {
        return format!("unknown field {}; nothing can be written here", quoted(key));
    }
    format!("unknown field {}; {}", quoted(key), suggest::did_you_mean(key, known.iter().copied()))
}

fn type_mismatch(found: &Value, expected: &str, is_secret: bool) -> String {
    let (wanted, wants) = expected_type(expected);
    let mut what = format!("is {}, but {wanted} is expected", describe_value(found, is_secret));
    match (wants, found) {
        (ExpectedType::Text, Value::Number(_) | Value::Bool(_)) if is_secret => what.push_str("; put it in quotes"),
        (ExpectedType::Text, Value::Number(_) | Value::Bool(_)) => {
            what.push_str(&format!("; put it in quotes: \"{found}\""))
        }
        (ExpectedType::Number, Value::String(text)) if !is_secret && text.parse::<i64>().is_ok() => {
            what.push_str(&format!("; write {text} without quotes"));
        }
        (ExpectedType::List, Value::String(text)) if !is_secret => {
            let words: Vec<String> = text.split_whitespace().take(10).map(quoted).collect();
            what.push_str(&format!("; write [{}]", words.join(", ")));
        }
        _ => {}
    }
    what
}

/// Translates Serde's name of a type into the words of a user who writes YAML.
fn expected_type(expected: &str) -> (&str, ExpectedType) {
    match expected {
        "a string" => ("text", ExpectedType::Text),
        "a boolean" => ("`true` or `false`", ExpectedType::Other),
        "a sequence" => ("a list", ExpectedType::List),
        "a map" => ("a mapping (lines of `key: value`)", ExpectedType::Other),
        "f32" | "f64" => ("a number", ExpectedType::Number),
        "i8" | "i16" | "i32" | "i64" | "isize" => ("a whole number", ExpectedType::Number),
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a whole number from 0 up", ExpectedType::Number),
        _ if expected.starts_with("struct ") => ("a mapping (lines of `key: value`)", ExpectedType::Other),
        other => (other, ExpectedType::Other),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpectedType {
    Text,
    Number,
    List,
    Other,
}

fn describe_value(found: &Value, is_secret: bool) -> String {
    match found {
        Value::Null => "empty".to_owned(),
        Value::Bool(_) if is_secret => "a boolean".to_owned(),
        Value::Number(_) if is_secret => "a number".to_owned(),
        Value::String(_) if is_secret => "text".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {}", quoted(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests;
