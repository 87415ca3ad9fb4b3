//! Places in JSON documents, as `$.predictions[*].score`.

use super::Step;

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
    pub(super) fn is(&self, at: &[Step<'_>]) -> bool {
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
    if inner.starts_with('"') {
        let mut names = serde_json::Deserializer::from_str(inner).into_iter::<String>();
        let name = names.next()?.ok()?;
        let after = inner[names.byte_offset()..].strip_prefix(']')?;
        return Some((Part::Name(name), after));
    }
    let (index, after) = inner.split_once(']')?;
    match index {
        "*" => Some((Part::EveryIndex, after)),
        index => Some((Part::Index(index.parse().ok()?), after)),
    }
}

/// A place, for people; without the positions in lists.
pub(super) fn text(at: &[Step<'_>]) -> String {
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
