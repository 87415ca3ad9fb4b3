//! Names of endpoints and deployments.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The shortest and the longest accepted name, in characters.
pub const NAME_LENGTH: std::ops::RangeInclusive<usize> = 3..=32;

/// The name of an endpoint or a deployment: 3 to 32 ASCII letters, digits and single inner dashes, starting with a
/// letter. Names that differ only in case are equal; the spelling is kept for display.
#[derive(Clone)]
pub struct Name {
    written: Arc<str>,
    key: Arc<str>,
}

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Fewer than 3 or more than 32 characters.
    #[error("a name has 3 to 32 characters")]
    Length,
    /// The name has other characters than letters, digits and single inner dashes, or does not start with a letter.
    #[error("a name starts with a letter and goes on with letters, digits and single dashes, the last not at the end")]
    Characters,
}

impl Name {
    /// Checks `written` against the rules above.
    ///
    /// # Errors
    /// [`NameError`] says which rule it breaks.
    pub fn new(written: &str) -> Result<Self, NameError> {
        if !NAME_LENGTH.contains(&written.chars().count()) {
            return Err(NameError::Length);
        }
        let bytes = written.as_bytes();
        let allowed = bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        let shape = bytes[0].is_ascii_alphabetic() && bytes[bytes.len() - 1] != b'-' && !written.contains("--");
        if !(allowed && shape) {
            return Err(NameError::Characters);
        }
        let written: Arc<str> = written.into();
        let key =
            if is_lowercase(&written) { written.clone() } else { Arc::from(written.to_ascii_lowercase().as_str()) };
        Ok(Self { written, key })
    }

    /// Returns the name as it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Returns the name in lower case, which is the same for all spellings.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns whether `other` is this name, compared without case.
    pub fn matches(&self, other: &str) -> bool {
        self.key.eq_ignore_ascii_case(other)
    }
}

fn is_lowercase(text: &str) -> bool {
    !text.bytes().any(|b| b.is_ascii_uppercase())
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Name {}
impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}
impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}
/// A map keyed by names can be searched with a lower-case `&str`.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.key
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_azure_accepts_and_nothing_else() {
        for good in ["abc", "my-endpoint", "A1b", "a-1-b", "abcdefghijklmnopqrstuvwxyz012345"] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("ab", NameError::Length),
            ("", NameError::Length),
            ("abcdefghijklmnopqrstuvwxyz0123456", NameError::Length),
            ("1abc", NameError::Characters),
            ("-abc", NameError::Characters),
            ("abc-", NameError::Characters),
            ("a--b", NameError::Characters),
            ("a_bc", NameError::Characters),
            ("äbc", NameError::Characters),
        ] {
            assert_eq!(Name::new(bad).unwrap_err(), why, "{bad}");
        }
    }

    #[test]
    fn two_spellings_are_one_name() {
        let (a, b) = (Name::new("My-Model").unwrap(), Name::new("my-model").unwrap());
        assert_eq!(a, b);
        assert_eq!(a.as_str(), "My-Model");
        assert!(a.matches("MY-MODEL"));
        assert!(!a.matches("my-models"));
    }
}
