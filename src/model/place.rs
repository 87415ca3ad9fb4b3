//! Places in JSON documents, as `$.predictions[*].score`.

/// A step from a value to one inside it.
#[derive(Debug, Clone, Copy)]
pub enum Step<'v> {
    /// To the member of that name.
    Name(&'v str),
    /// To the item at that position.
    Index(usize),
}

/// A place, or several: those that are the same but for positions in lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Name(String),
    Index(usize),
    /// `[*]`.
    EveryIndex,
    /// `.*`.
    EveryName,
}

/// What [`Place::parse`] takes, for the definition.
pub const PATTERN: &str = r#"^[$]([.][^.\[\]"\\ \t\r\n]+|\[((0|[1-9][0-9]{0,8})|[*]|"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\])*$"#;
/// Most characters of a text that names one.
pub const LONGEST: usize = 256;
/// Digits of a position.
const LONGEST_INDEX: usize = 9;
/// Not in a name without quotes.
const NEEDS_QUOTES: [char; 9] = ['.', '[', ']', '"', '\\', ' ', '\t', '\r', '\n'];

/// Why a text names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a place in JSON such as `$.model.version`, `$.predictions[*].score` or `$[\"odd name\"]`")]
pub struct WrongPlace;

impl Place {
    /// Reads `$`, then `.name`, `["name"]`, `[3]`, `[*]` or `.*`, as often as need be; names in quotes with the escapes of
    /// JSON. What [`text`] tells is read.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, WrongPlace> {
        if text.chars().count() > LONGEST {
            return Err(WrongPlace);
        }
        let mut rest = text.strip_prefix('$').ok_or(WrongPlace)?;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (part, after) = part(rest).ok_or(WrongPlace)?;
            parts.push(part);
            rest = after;
        }
        Ok(Self(parts))
    }

    /// Whether it is this place.
    pub fn is(&self, at: &[Step<'_>]) -> bool {
        self.0.len() == at.len() && self.0.iter().zip(at).all(|(part, step)| part.is(step))
    }
}

impl Part {
    fn is(&self, step: &Step<'_>) -> bool {
        match (self, step) {
            (Self::Name(name), Step::Name(other)) => name == other,
            (Self::Index(index), Step::Index(other)) => index == other,
            (Self::EveryIndex, Step::Index(_)) | (Self::EveryName, Step::Name(_)) => true,
            _ => false,
        }
    }
}

/// The next part, and what is after it.
fn part(text: &str) -> Option<(Part, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        return match name {
            "" => None,
            "*" => Some((Part::EveryName, after)),
            name if name.contains(NEEDS_QUOTES) => None,
            name => Some((Part::Name(name.to_owned()), after)),
        };
    }
    let inner = text.strip_prefix('[')?;
    if inner.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(inner).into_iter::<String>();
        let name = values.next()?.ok()?;
        return Some((Part::Name(name), inner[values.byte_offset()..].strip_prefix(']')?));
    }
    let (index, after) = inner.split_once(']')?;
    match index {
        "*" => Some((Part::EveryIndex, after)),
        index if index.len() > LONGEST_INDEX || index.len() > 1 && index.starts_with('0') => None,
        index if !index.bytes().all(|byte| byte.is_ascii_digit()) => None,
        index => Some((Part::Index(index.parse().ok()?), after)),
    }
}

/// A place, for people; without the positions in lists.
pub fn text(at: &[Step<'_>]) -> String {
    let mut text = "$".to_owned();
    for step in at {
        match step {
            Step::Index(_) => text.push_str("[*]"),
            Step::Name(name) if is_plain(name) => {
                text.push('.');
                text.push_str(name);
            }
            Step::Name(name) => text.push_str(&format!("[{}]", serde_json::Value::from(*name))),
        }
    }
    text
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_told() {
        for text in ["$", "$.a", "$.a.b[*].c", "$[\"odd name\"][3]", "$[\"a]b\"]", "$.*", "$[0][*]", "$.übung"] {
            assert!(Place::parse(text).is_ok(), "{text}");
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
            assert_eq!(Place::parse(text), Err(WrongPlace), "{text}");
        }
        assert_eq!(Place::parse(&format!("$.{}", "a".repeat(LONGEST))), Err(WrongPlace), "too long");
    }

    #[test]
    fn a_place_that_is_told_can_be_written_in_settings() {
        for name in ["a", "", "odd name", "a\"b", "a\\", "two\nlines", "a.b", "[0]", "\u{7f}", "*", "übung", "\\u0041"]
        {
            let at = [Step::Name("x"), Step::Index(7), Step::Name(name)];
            assert!(Place::parse(&text(&at).replace("[*]", "[7]")).is_ok_and(|place| place.is(&at)), "{name:?}");
            let other = [Step::Name("x"), Step::Index(7), Step::Name("other")];
            assert!(Place::parse(&text(&at)).is_ok_and(|place| !place.is(&other)), "{name:?} is no pattern");
        }
    }
}
