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

/// All problems of a document: those of its form, and those of the rules that are not only their echo. (What was left
/// out for its form is not also missing, and does not spoil a sum.)
pub fn together(form: Vec<Problem>, rules: Vec<Problem>) -> Vec<Problem> {
    let is_echo = |problem: &Problem| {
        form.iter().any(|known| is_within(&known.path, &problem.path) || is_within(&problem.path, &known.path))
    };
    let news: Vec<Problem> = rules.into_iter().filter(|problem| !is_echo(problem)).collect();
    form.into_iter().chain(news).collect()
}

/// The path of the field `name` of the mapping at `parent`; a name that could be misread is quoted.
pub fn field(parent: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, parent.is_empty()) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{parent}.{name}"),
        (false, _) => format!("{parent}[{}]", quoted(name)),
    }
}

/// The path of one item of the list at `parent`, counted from 0.
pub fn item(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Whether `path` is `ancestor` or a field somewhere below it.
pub fn is_within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| ancestor.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// `text` as a message shows it: in quotes, control characters escaped, cut where it gets long.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_the_document() {
        assert_eq!(field(&item(&field("spec", "deployments"), 1), "port"), "spec.deployments[1].port");
        assert_eq!(field("", "spec"), "spec");
        assert_eq!(field("metadata.labels", "a.b/c"), "metadata.labels[\"a.b/c\"]");
    }

    #[test]
    fn within_is_by_whole_steps() {
        assert!(is_within("spec.port", "spec"));
        assert!(is_within("spec[0]", "spec"));
        assert!(is_within("spec", "spec"));
        assert!(is_within("spec", ""));
        assert!(!is_within("spectrum", "spec"));
    }

    #[test]
    fn quoted_text_cannot_break_a_log_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"x".repeat(61)), format!("\"{}\"…", "x".repeat(60)));
    }
}
