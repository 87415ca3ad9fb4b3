//! Paths of values in JSON documents, such as `$.predictions[*].score`.

/// One step from a JSON value to a value inside it.
#[derive(Debug, Clone, Copy)]
pub enum JsonStep<'v> {
    /// The step to the member with this name.
    Name(&'v str),
    /// The step to the item at this position.
    Index(usize),
}

/// A path pattern: one place in a document, or all places that differ only in their positions in lists or names of
/// members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<JsonPathSegment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum JsonPathSegment {
    Name(String),
    Index(usize),
    /// `[*]`, every position.
    EveryIndex,
    /// `.*`, every name.
    EveryName,
}

/// A regular expression for what [`JsonPath::parse`] accepts, for the custom resource definition.
pub const JSON_PATH_PATTERN: &str = r#"^[$]([.][^.\[\]"\\ \t\r\n]+|\[((0|[1-9][0-9]{0,8})|[*]|"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\])*$"#;
/// The longest text of a path, in characters.
pub const MAX_JSON_PATH_CHARS: usize = 256;
/// The most digits of a position.
const MAX_INDEX_DIGITS: usize = 9;
/// Characters that a name without quotes must not have.
const CHARS_NEEDING_QUOTES: [char; 9] = ['.', '[', ']', '"', '\\', ' ', '\t', '\r', '\n'];

/// The text is not a JSON path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a place in JSON such as `$.model.version`, `$.predictions[*].score` or `$[\"odd name\"]`")]
pub struct JsonPathError;

impl JsonPath {
    /// Parses `$`, followed by any number of `.name`, `["name"]`, `[3]`, `[*]` or `.*`. Quoted names have the escapes
    /// of JSON. Everything that [`format_json_path`] returns can be parsed.
    ///
    /// # Errors
    ///
    /// [`JsonPathError`] if the text is not a path.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.chars().count() > MAX_JSON_PATH_CHARS {
            return Err(JsonPathError);
        }
        let mut rest = text.strip_prefix('$').ok_or(JsonPathError)?;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (part, after) = parse_segment(rest).ok_or(JsonPathError)?;
            parts.push(part);
            rest = after;
        }
        Ok(Self(parts))
    }

    /// Returns whether the pattern matches this place.
    pub fn matches(&self, at: &[JsonStep<'_>]) -> bool {
        self.0.len() == at.len() && self.0.iter().zip(at).all(|(part, step)| part.matches(step))
    }
}

impl JsonPathSegment {
    fn matches(&self, step: &JsonStep<'_>) -> bool {
        match (self, step) {
            (Self::Name(name), JsonStep::Name(other)) => name == other,
            (Self::Index(index), JsonStep::Index(other)) => index == other,
            (Self::EveryIndex, JsonStep::Index(_)) | (Self::EveryName, JsonStep::Name(_)) => true,
            _ => false,
        }
    }
}

/// Parses the first segment. Returns it with the rest of the text.
fn parse_segment(text: &str) -> Option<(JsonPathSegment, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        return match name {
            "" => None,
            "*" => Some((JsonPathSegment::EveryName, after)),
            name if name.contains(CHARS_NEEDING_QUOTES) => None,
            name => Some((JsonPathSegment::Name(name.to_owned()), after)),
        };
    }
    let inner = text.strip_prefix('[')?;
    if inner.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(inner).into_iter::<String>();
        let name = values.next()?.ok()?;
        return Some((JsonPathSegment::Name(name), inner[values.byte_offset()..].strip_prefix(']')?));
    }
    let (index, after) = inner.split_once(']')?;
    match index {
        "*" => Some((JsonPathSegment::EveryIndex, after)),
        index if index.len() > MAX_INDEX_DIGITS || index.len() > 1 && index.starts_with('0') => None,
        index if !index.bytes().all(|byte| byte.is_ascii_digit()) => None,
        index => Some((JsonPathSegment::Index(index.parse().ok()?), after)),
    }
}

/// Formats a place for people, without positions in lists.
pub fn format_json_path(at: &[JsonStep<'_>]) -> String {
    let mut text = "$".to_owned();
    for step in at {
        match step {
            JsonStep::Index(_) => text.push_str("[*]"),
            JsonStep::Name(name) if is_plain_name(name) => {
                text.push('.');
                text.push_str(name);
            }
            JsonStep::Name(name) => text.push_str(&format!("[{}]", serde_json::Value::from(*name))),
        }
    }
    text
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_told() {
        for text in ["$", "$.a", "$.a.b[*].c", "$[\"odd name\"][3]", "$[\"a]b\"]", "$.*", "$[0][*]", "$.übung"] {
            assert!(JsonPath::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "a",
            "$a",
            "$.",
            "$..a",
            "$[",
            "$[x]",
            "$[\"a]",
            "$[-1]",
            "$[+1]",
            "$.a[1",
            "$.a ",
            "$[00]",
            "$.a\"",
            "$[\"\\x\"]",
        ] {
            assert_eq!(JsonPath::parse(text), Err(JsonPathError), "{text}");
        }
        assert_eq!(JsonPath::parse(&format!("$.{}", "a".repeat(MAX_JSON_PATH_CHARS))), Err(JsonPathError), "too long");
    }

    #[test]
    fn a_place_that_is_told_can_be_written_in_settings() {
        for name in ["a", "", "odd name", "a\"b", "a\\", "two\nlines", "a.b", "[0]", "\u{7f}", "*", "übung", "\\u0041"]
        {
            let at = [JsonStep::Name("x"), JsonStep::Index(7), JsonStep::Name(name)];
            assert!(
                JsonPath::parse(&format_json_path(&at).replace("[*]", "[7]")).is_ok_and(|place| place.matches(&at)),
                "{name:?}"
            );
            let other = [JsonStep::Name("x"), JsonStep::Index(7), JsonStep::Name("other")];
            assert!(
                JsonPath::parse(&format_json_path(&at)).is_ok_and(|place| !place.matches(&other)),
                "{name:?} is no pattern"
            );
        }
    }
}
