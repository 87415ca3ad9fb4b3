//! From a parsed document to a typed one, with everything that does not fit reported at once.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;

use super::problem::{Problem, field, item, quoted};
use super::suggest;

/// Problems after which the rest of a document is not looked at any more.
const ROUNDS: usize = 100;

/// Fields below these hold credentials, so what was found there is described but never repeated.
const SECRET: [&str; 3] = ["keys", "env", "tokens"];

/// Reads `value`, a mapping, as a `T`. What does not fit is reported and left out, so the `T` holds the rest; `None` only when
/// nothing can be made of it.
///
/// Items of lists are replaced by null rather than left out, or the items after them would change their index; a `T`
/// with lists should take `Vec<Option<_>>`.
pub fn decode<T: DeserializeOwned>(mut value: Value) -> (Option<T>, Vec<Problem>) {
    let mut problems = Vec::new();
    for _ in 0..ROUNDS {
        let error = match serde_path_to_error::deserialize::<_, Mapping<T>>(&value) {
            Ok(Mapping(decoded)) => return (Some(decoded), problems),
            Err(error) => error,
        };
        let steps = steps(error.path());
        problems.push(describe(&value, &steps, &error.into_inner().to_string()));
        if !leave_out(&mut value, &steps) {
            return (None, problems);
        }
    }
    problems.push(Problem::new("", format!("has more problems than these {ROUNDS}; mend them first")));
    (None, problems)
}

/// For `#[serde(deserialize_with)]` on a field that holds a struct: takes a mapping only. (Serde by itself would also
/// take a list, and read its items as the fields in the order of their declaration.)
pub(crate) fn mapping<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Mapping<T>>::deserialize(from)?.map(|mapping| mapping.0))
}

/// The same for a list of structs.
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
        struct OnlyMap<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Mapping<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mapping<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Mapping)
            }
        }
        from.deserialize_map(OnlyMap(std::marker::PhantomData))
    }
}

/// One step from a node of a document to a node below it.
enum Step {
    Key(String),
    Index(usize),
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key.clone())),
            Segment::Unknown => None,
        })
        .collect()
}

fn find<'a>(value: &'a Value, steps: &[Step]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |node, step| match step {
        Step::Key(key) => node.get(key),
        Step::Index(index) => node.get(index),
    })
}

/// Takes the node at `steps` out of `value`; false when there is nothing to take out.
fn leave_out(value: &mut Value, steps: &[Step]) -> bool {
    let Some((last, parents)) = steps.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |node, step| match step {
        Step::Key(key) => node.get_mut(key),
        Step::Index(index) => node.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
        (Some(Value::Array(list)), Step::Index(index)) => {
            list.get_mut(*index).is_some_and(|item| !std::mem::replace(item, Value::Null).is_null())
        }
        _ => false,
    }
}

fn describe(value: &Value, steps: &[Step], error: &str) -> Problem {
    let path = steps.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) => field(&path, key),
        Step::Index(index) => item(&path, *index),
    });
    let secret = steps.iter().any(|step| matches!(step, Step::Key(key) if SECRET.contains(&key.as_str())));
    let what = match (steps.last(), error.rsplit_once(", expected ")) {
        (Some(Step::Key(key)), known) if error.starts_with("unknown field") => {
            unknown_field(key, known.map_or("", |(_, known)| known))
        }
        (_, Some((start, expected))) if start.starts_with("invalid ") => match find(value, steps) {
            Some(found) => wrong_type(found, expected, secret),
            None => format!("is not {}", wanted(expected).0),
        },
        _ if secret => "is not in the right form".to_owned(),
        _ => error.to_owned(),
    };
    Problem::new(path, what)
}

/// `known` is the end of Serde's message: "one of `a`, `b`", or "`a` or `b`".
fn unknown_field(key: &str, known: &str) -> String {
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    if known.is_empty() {
        return format!("unknown field {}; nothing can be written here", quoted(key));
    }
    format!("unknown field {}; {}", quoted(key), suggest::instead(key, known.iter().copied()))
}

fn wrong_type(found: &Value, expected: &str, secret: bool) -> String {
    let (wanted, wants) = wanted(expected);
    let mut what = format!("is {}, but {wanted} is expected", shown(found, secret));
    match (wants, found) {
        (Wants::Text, Value::Number(_) | Value::Bool(_)) if secret => what.push_str("; put it in quotes"),
        (Wants::Text, Value::Number(_) | Value::Bool(_)) => what.push_str(&format!("; put it in quotes: \"{found}\"")),
        (Wants::Number, Value::String(text)) if !secret && text.parse::<i64>().is_ok() => {
            what.push_str(&format!("; write {text} without quotes"));
        }
        (Wants::List, Value::String(text)) if !secret => {
            let words: Vec<String> = text.split_whitespace().take(10).map(quoted).collect();
            what.push_str(&format!("; write [{}]", words.join(", ")));
        }
        _ => {}
    }
    what
}

/// What Serde calls it, in the words of somebody who writes YAML.
fn wanted(expected: &str) -> (&str, Wants) {
    match expected {
        "a string" => ("text", Wants::Text),
        "a boolean" => ("`true` or `false`", Wants::Other),
        "a sequence" => ("a list", Wants::List),
        "a map" => ("a mapping (lines of `key: value`)", Wants::Other),
        "f32" | "f64" => ("a number", Wants::Number),
        "i8" | "i16" | "i32" | "i64" | "isize" => ("a whole number", Wants::Number),
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a whole number from 0 up", Wants::Number),
        _ if expected.starts_with("struct ") => ("a mapping (lines of `key: value`)", Wants::Other),
        other => (other, Wants::Other),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Text,
    Number,
    List,
    Other,
}

fn shown(found: &Value, secret: bool) -> String {
    match found {
        Value::Null => "empty".to_owned(),
        Value::Bool(_) if secret => "a boolean".to_owned(),
        Value::Number(_) if secret => "a number".to_owned(),
        Value::String(_) if secret => "text".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {}", quoted(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests;
