//! What is wrong with a document, said so that its author can mend it.

use std::fmt;

/// One thing wrong with a settings file or an endpoint document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the document came from: a file's path, `environment`, or empty.
    pub source: String,
    /// The field, as `spec.deployments[0].port`; empty for the whole document.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub what: String,
}

impl Problem {
    /// A problem of the field at `path`; the source is filled in by whoever knows it.
    pub fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { source: String::new(), path: path.into(), what: what.into() }
    }

    /// The same problem, known to come from `source`.
    #[must_use]
    pub fn from_source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.what)
    }
}
