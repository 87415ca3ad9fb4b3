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
pub const PATTERN: &str = r#"^[$]([.][^.\[]+|\[([0-9]{1,9}|[*]|"[^"\\]*")\])*$"#;
/// Digits of a position.
const LONGEST_INDEX: usize = 9;

/// Why a text names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a place in JSON such as `$.model.version`, `$.predictions[*].score` or `$[\"odd name\"]`")]
pub struct WrongPlace;

impl Place {
    /// Reads `$`, then `.name`, `["name"]`, `[3]`, `[*]` or `.*`, as often as need be.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, WrongPlace> {
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
            name => Some((Part::Name(name.to_owned()), after)),
        };
    }
    let inner = text.strip_prefix('[')?;
    if let Some(quoted) = inner.strip_prefix('"') {
        let (name, after) = quoted.split_once("\"]")?;
        return (!name.contains(['"', '\\'])).then(|| (Part::Name(name.to_owned()), after));
    }
    let (index, after) = inner.split_once(']')?;
    match index {
        "*" => Some((Part::EveryIndex, after)),
        index if index.len() > LONGEST_INDEX || !index.bytes().all(|byte| byte.is_ascii_digit()) => None,
        index => Some((Part::Index(index.parse().ok()?), after)),
    }
}

/// A place, for people; without the positions in lists.
pub fn text(at: &[Step<'_>]) -> String {
    let mut text = "$".to_owned();
    for step in at {
        match step {
            Step::Index(_) => text.push_str("[*]"),
            Step::Name(name) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                text.push('.');
                text.push_str(name);
            }
            Step::Name(name) => text.push_str(&format!("[{}]", serde_json::Value::from(*name))),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_told() {
        for text in ["$", "$.a", "$.a.b[*].c", "$[\"odd name\"][3]", "$[\"a]b\"]", "$.*", "$[0][*]"] {
            assert!(Place::parse(text).is_ok(), "{text}");
        }
        for text in ["", "a", "$a", "$.", "$..a", "$[", "$[x]", "$[\"a]", "$[-1]", "$[+1]", "$.a[1"] {
            assert_eq!(Place::parse(text), Err(WrongPlace), "{text}");
        }
    }
}
